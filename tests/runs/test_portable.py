from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import front_end
from tokenizers import Tokenizer

from textbed.batch import TokenBatch
from textbed.data.characters import CharacterSettings, CharacterTokenizer
from textbed.data.subwords import SubwordTokenizer
from textbed.data.vocabulary import Vocabulary
from textbed.data.words import WordSettings, WordTokenizer
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.network import Network
from textbed.padded import Documents, Padded, read
from textbed.runs import portable
from textbed.runs.export import export
from textbed.runs.folder import RunFolder
from textbed.runs.model import load
from textbed.training import build_head

Trained = Callable[[str], RunFolder]


def page(folder: Path) -> str:
    """The Python of a folder's page, between its fences."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.slow
def test_both_graphs_run_without_textbed_as_their_pages_say(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    said = {}
    for to in ("onnx", "torch.export"):
        lines = export(str(run.path), to, tmp_path / to)
        assert "on all 30 test documents of the run" in lines[1]
        assert float(lines[1].split("model's: ")[1].split(",")[0]) < 1e-6
        said[to] = page(tmp_path / to) + "\nprint(json.dumps(probabilities.tolist()))\n"
    code = (
        "import contextlib, json, sys\n"
        f"for folder, code in {json.dumps(said)}.items():\n"
        f"    with contextlib.chdir({str(tmp_path)!r} + '/' + folder):\n"
        "        exec(code)\n"
        "print([name for name in sys.modules if name.startswith(('textbed', 'lightning'))])\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    model, texts = load(run.path), ["a fine film", "dull"]
    names, expected = model.predict(texts, as_list=True), model.predict_proba(texts)
    assert printed[4] == "[]"
    for named, chances in (printed[:2], printed[2:4]):
        assert named == str(names)
        np.testing.assert_allclose(json.loads(chances), expected, rtol=0, atol=1e-6)


def test_pairs_and_several_classes(trained: Trained, tmp_path: Path) -> None:
    """Subwords and characters, in the form of the tokenizers library."""
    import onnxruntime

    export(str(trained("pairs").path), "onnx", tmp_path / "pairs")
    model = load(trained("pairs").path)
    texts = [("an owl in its nest", "a <PAD> mast"), ("", "rye"), ("Bread & <br> SAIL", "")]
    given: dict[str, Any] = {}
    library = Tokenizer.from_file(str(tmp_path / "pairs" / "tokenizer.json"))
    for begin, column in (("", 0), ("second_", 1)):
        encoded = library.encode_batch([pair[column] for pair in texts])
        given[f"{begin}ids"] = np.array([one.ids for one in encoded])
        given[f"{begin}lengths"] = np.array([sum(one.attention_mask) for one in encoded])
    session = onnxruntime.InferenceSession(tmp_path / "pairs" / "model.onnx")
    assert [(one.name, one.shape) for one in session.get_inputs()] == [
        ("ids", ["documents", "tokens"]),
        ("lengths", ["documents"]),
        ("second_ids", ["documents", "second_tokens"]),
        ("second_lengths", ["documents"]),
    ]
    np.testing.assert_allclose(session.run(None, given)[0], model.predict_proba(texts), rtol=0, atol=1e-6)

    export(str(trained("multilabel").path), "torch.export", tmp_path / "several")
    model = load(trained("multilabel").path)
    library = Tokenizer.from_file(str(tmp_path / "several" / "tokenizer.json"))
    encoded = library.encode_batch(["an owl\nin Its nest", "ê"])
    program = torch.export.load(tmp_path / "several" / "model.pt2").module()
    chances = program(
        torch.tensor([one.ids for one in encoded]),
        torch.tensor([sum(one.attention_mask) for one in encoded]),
    )
    expected = model.predict_proba(["an owl\nin Its nest", "ê"])
    np.testing.assert_allclose(chances.detach().numpy(), expected, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "several" / "classes.json").read_text()) == {
        "classes": ["birds", "boats", "bread"],
        "multilabel": True,
        "pairs": False,
    }


READER = {"_target_": "textbed.heads.recurrent.Recurrent", "bidirectional": True, "hidden": 4}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "onnx": ("ngrams", {"_target_": "textbed.heads.convolutional.Convolutional", "widths": [2], "maps": 3}),
    "torch.export": ("random", {**READER, "cell": "lstm", "window": 5, "stride": 3, "readout": "attention"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("to", portable.GRAPHS)
def test_graphs_of_any_size(to: str, tmp_path: Path) -> None:
    """A batch of one, one token, no token, and documents far longer than those it was made with."""
    torch.manual_seed(0)
    embedding, node = HEADS[to]
    table = front_end(embedding, 30, 6)
    network = Network(table, build_head(node, table.dim, 3, 0), 3).eval().requires_grad_(False)
    graph = portable._made(Padded(network, 30).eval(), to, tmp_path / "graph")
    for lengths in ([1], [0], [400, 1, 0, 7], [2] * 50):
        ids = torch.randint(0, 30, (sum(lengths),), dtype=torch.int32)
        batch = TokenBatch(ids, torch.tensor([0, *lengths]).cumsum(0).int())
        expected = network.probabilities(network(batch)).numpy()
        np.testing.assert_allclose(graph(portable._inputs(batch, 1)), expected, rtol=0, atol=2e-6)


def test_what_is_refused(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(trained("words").path)
    monkeypatch.setattr(portable, "_made", lambda *_: lambda given: np.full((len(given[0]), 3), 0.9))
    with pytest.raises(UserError, match=r"--to onnx: the graph gives .* apart .* more than 0.0001.*use --to"):
        export(path, "onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(portable.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--to onnx needs onnx, onnxscript, onnxruntime: pip install"):
        export(path, "onnx", tmp_path / "new")


class Odd(Head):
    """A head whose padded form looks at numbers, which no graph can."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim


def test_a_head_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    @read.register
    def _(head: Odd, documents: Documents) -> torch.Tensor:
        return documents.rows().sum(1) if documents.rows().sum() > 0 else documents.rows().mean(1)

    network = Network(front_end("random", 9, 4), Odd(4), 3).eval()
    with pytest.raises(UserError, match=r"--to torch.export: head Odd cannot be exported: .*use --to folder"):
        portable._made(Padded(network, 9), "torch.export", tmp_path / "graph")


def test_without_the_data_the_documents_are_made_up(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textbed.runs import evaluation

    def gone(*_: object) -> None:
        raise UserError("data.path=topics.csv: no such file")

    monkeypatch.setattr(evaluation, "own_data", gone)
    line = export(str(trained("words").path), "torch.export", tmp_path / "model")[1]
    assert "on 64 documents made up of the vocabulary" in line
    assert "no such file" in line


WORDS = ["a", "b", "it", "'", "s", "wellknown", "é", "\x85", "-", "<", ">", "pad", "ab"]
TEXTS = ["It's  a<br/>b", "WELL-known É", "", "a\x85b b\x1cab", "a<pad>b ]^\\", "it b a s ' ab é b"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop": "-", "max_tokens": 3, "keep": "tail"},
        {"split_off": "", "lowercase": False, "max_tokens": 2},
    ],
)
def test_the_library_cuts_words_as_we_do(settings: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa

    tokenizer = WordTokenizer(WordSettings(**settings), Vocabulary(pa.array(WORDS, pa.large_string())))
    assert portable._write_tokenizer(tokenizer, TEXTS, tmp_path) is None  # which compares them
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids, starts = tokenizer.encode(TEXTS)
    for number, one in enumerate(library.encode_batch(TEXTS)):
        assert one.ids[: sum(one.attention_mask)] == ids[starts[number] : starts[number + 1]].tolist()
        assert set(one.ids[sum(one.attention_mask) :]) <= {tokenizer.pad_id}


def test_what_the_library_cannot_do_is_said(trained: Trained, tmp_path: Path) -> None:
    points = np.array([97, 98])
    both = CharacterTokenizer(CharacterSettings(max_tokens=3, keep="both"), points)
    assert "keep=both" in (portable._write_tokenizer(both, TEXTS, tmp_path) or "")
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert not (tmp_path / "tokenizer.json").exists()
    drop = CharacterTokenizer(CharacterSettings(unknown="drop"), points)
    assert "unknown=drop" in (portable._write_tokenizer(drop, TEXTS, tmp_path) or "")
    # A difference that shows only in the texts: the file of a published tokenizer that cleans otherwise.
    subwords = load(trained("pairs").path).tokenizer
    assert isinstance(subwords, SubwordTokenizer)
    other = SubwordTokenizer(subwords.settings, subwords.model)
    other.encode = lambda texts, threads=None: (np.zeros(len(texts), np.int32), np.arange(len(texts) + 1))  # type: ignore[method-assign]
    assert 'cuts "It\'s  a<br/>b" otherwise' in (portable._write_tokenizer(other, TEXTS, tmp_path) or "")
