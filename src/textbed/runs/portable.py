"""A run's model as a graph that runs without textbed: ONNX, or torch's own exported program.

Beside the graph lie the classes, the tokenizer in the form of the ``tokenizers`` library, and a page on how
to use them. Before anything is left behind, the graph and the model are both run on real documents.

Shape letters: B documents in the batch, L tokens of the longest, C classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.data.characters import CharacterTokenizer
from textbed.data.subwords import SubwordTokenizer
from textbed.data.vocabulary import HTML_BREAK, Tokenizer
from textbed.data.words import ASCII_SPACE, WIDE_SPACE, WordTokenizer
from textbed.errors import UserError
from textbed.padded import Padded
from textbed.runs.folder import RunFolder
from textbed.runs.model import Model

GRAPHS = {"onnx": "model.onnx", "torch.export": "model.pt2"}
TOLERANCE = 1e-4
"""Largest difference of a probability between graph and model that is put up with: both round to float32, in
another order."""
MOST = 1000
"""Documents that are compared; of more, so many that lie evenly among them."""
_BATCH = 32

Graph = Callable[[list[np.ndarray]], np.ndarray]
"""Ids (B, L), lengths (B,), for pairs those of the second texts too, to probabilities (B, C)."""


def write_graph(model: Model, folder: RunFolder, to: str, out: Path) -> list[str]:
    """Write a graph of the model and what goes with it into the folder ``out``.

    Args:
        to: ``onnx`` or ``torch.export``.

    Returns:
        Lines to show: how far graph and model are apart, and on what.

    Raises:
        UserError: the head or the front end has no form for it, a package is missing, or the graph says
            something else than the model.
    """
    needed = ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(f"--to {to} needs {', '.join(missing)}: pip install -e '.[onnx]'")
    model.network.float().requires_grad_(False)
    padded = Padded(model.network, len(model.tokenizer)).eval()
    texts = _texts(model, folder)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / GRAPHS[to]
        graph = _made(padded, to, file)
        apart = _compare(model, graph, texts)
        if not apart <= TOLERANCE:  # nor if it is no number
            raise UserError(
                f"--to {to}: the graph gives probabilities up to {apart:.2g} apart from the model's, more "
                f"than {TOLERANCE:g}, on {texts.told}; use --to folder"
            )
        lines = [f"largest difference of a probability to the model's: {apart:.1e}, on {texts.told}"]
        for path in Path(temporary).iterdir():  # weights of 2 GB and more lie beside the graph
            shutil.move(path, out / path.name)
    about = {"classes": model.classes, "multilabel": model.multilabel, "pairs": model.pairs}
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (out / "classes.json").write_text(f"{text}\n", encoding="utf-8")
    why = _write_tokenizer(model.tokenizer, texts.sample, out)
    if why:
        lines.append(why)
    (out / "README.md").write_text(_page(model, to, lines[0], why), encoding="utf-8")
    return lines


# ------------------------------------------------------------------------------------------------------------
# The graph
# ------------------------------------------------------------------------------------------------------------


def _example(padded: Padded) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...], list[str]]:
    """Inputs to trace with, which of their sizes are free, and their names."""
    documents = torch.export.Dim("documents", min=1)
    inputs: list[Tensor] = []
    free: list[dict[int, Any]] = []
    names = ["ids", "lengths", "second_ids", "second_lengths"][: 4 if padded.pairs else 2]
    for name in names[::2]:
        inputs += [torch.ones(3, 7, dtype=torch.int64), torch.tensor([7, 1, 4])]
        tokens = torch.export.Dim("tokens" if name == "ids" else "second_tokens", min=1)
        free += [{0: documents, 1: tokens}, {0: documents}]
    return tuple(inputs), tuple(free), names


def _made(padded: Padded, to: str, file: Path) -> Graph:
    """Write the graph, and return what runs it."""
    try:
        with _quiet():
            return (_onnx if to == "onnx" else _program)(padded, file)
    except Exception as error:  # of the exporters, which raise all kinds of them
        reason = " ".join(str(error).split())
        raise UserError(
            f"--to {to}: head {type(padded.head).__name__} cannot be exported: {reason[:200]}; "
            "use --to folder"
        ) from error


def _program(padded: Padded, file: Path) -> Graph:
    inputs, free, names = _example(padded)
    program = torch.export.export(padded, inputs, dynamic_shapes=dict(zip(names, free, strict=True)))
    torch.export.save(program, file)
    module = torch.export.load(file).module()

    def run(given: list[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return module(*map(torch.from_numpy, given)).numpy()

    return run


def _onnx(padded: Padded, file: Path) -> Graph:
    import onnxruntime

    inputs, free, names = _example(padded)
    program = torch.onnx.export(
        padded,
        inputs,
        dynamo=True,
        input_names=names,
        output_names=["probabilities"],
        dynamic_shapes=dict(zip(names, free, strict=True)),
        verbose=False,
    )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, dict(zip(names, given, strict=True)))[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages that are not there and on their own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


# ------------------------------------------------------------------------------------------------------------
# The comparison
# ------------------------------------------------------------------------------------------------------------


@dataclass
class _Texts:
    """Documents to compare on."""

    batches: list[TokenBatch]
    sample: list[str]
    """Some of their texts, for the tokenizer."""
    told: str
    """What they are."""


def _texts(model: Model, folder: RunFolder) -> _Texts:
    """The run's test documents, or some made up of its vocabulary where its data cannot be read."""
    from textbed.runs.evaluation import own_data

    try:
        data = own_data(folder, model.tokenizer)
        split = "test" if "test" in data.sets else "validation"
        documents = data.sets[split]
    except (UserError, KeyError) as error:
        reason = " ".join(str(error).split())
        draw = np.random.RandomState(0)
        lengths = [0, 1, 2, *draw.randint(1, 60, 61)]
        made = [draw.randint(0, len(model.tokenizer), length) for length in lengths]
        ids = torch.from_numpy(np.concatenate(made).astype(np.int32))
        offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        told = f"64 documents made up of the vocabulary (the run's own cannot be read: {reason})"
        return _Texts([TokenBatch(ids, offsets)], [*model.tokenizer.tokens[-500:], "A b", ""], told)
    total = len(documents)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST)).astype(np.int64))
    # The first of them one at a time: a graph can be right for the size it was made with alone.
    bounds = [*range(8), *range(8, len(chosen), _BATCH), len(chosen)]
    parts = [chosen[begin:end] for begin, end in itertools.pairwise(bounds)]
    batches = [documents.__getitems__(part) for part in parts if len(part)]
    rows = data.splits[split]
    texts = data.corpus.splits[rows.split]
    sample = [
        texts.text(int(row), column)
        for row in rows.rows[chosen[:100]]
        for column in range(data.corpus.columns)
    ]
    of = f"{len(chosen):,} of {total:,}" if len(chosen) < total else f"all {total:,}"
    return _Texts(batches, sample, f"{of} {split} documents of the run")


def _compare(model: Model, graph: Graph, texts: _Texts) -> float:
    """The largest difference of a probability; also over no token, one token, and a very long document."""
    longest = max(texts.batches, key=lambda batch: len(batch.ids)).ids
    long = longest.repeat(1 + 1000 // max(len(longest), 1))[:2000]
    copies = 2 if model.pairs else 1
    extreme = [long[:0], long[:1], long] * copies
    offsets = torch.tensor([0, *map(len, extreme)]).cumsum(0).int()
    together = TokenBatch(torch.cat(extreme), offsets)
    apart = 0.0
    for batch in [*texts.batches, together]:
        with torch.no_grad():
            expected = model.network.probabilities(model.network(batch)).numpy()
        apart = float(np.maximum(apart, np.abs(graph(_inputs(batch, copies)) - expected).max()))
    return apart


def _inputs(batch: TokenBatch, texts: int) -> list[np.ndarray]:
    """Ids and lengths, for each of the texts of a document."""
    ids_BL, mask_BL = batch.padded(0)
    ids_BL = F.pad(ids_BL.long(), (0, int(not ids_BL.shape[1])))  # at least one column
    parts = zip(ids_BL.tensor_split(texts), mask_BL.sum(dim=1).tensor_split(texts), strict=True)
    return [value.numpy() for part in parts for value in part]


# ------------------------------------------------------------------------------------------------------------
# What lies beside it
# ------------------------------------------------------------------------------------------------------------


def _write_tokenizer(tokenizer: Tokenizer, sample: Sequence[str], out: Path) -> str | None:
    """Write the tokenizer in the form of ``tokenizers``, where it has one; else our own, and say why."""
    from tokenizers import Tokenizer as Library

    why = None
    try:
        made = Library.from_str(json.dumps(_library_form(tokenizer), ensure_ascii=False))
    except NotImplementedError as error:
        why = str(error)
    else:
        ids, starts = tokenizer.encode(list(sample))
        for number, encoding in enumerate(made.encode_batch(list(sample))):
            size = sum(encoding.attention_mask)
            if encoding.ids[:size] != ids[starts[number] : starts[number + 1]].tolist():
                why = f"the library cuts {sample[number][:60]!r} otherwise"
                break
    if why is None:
        made.save(str(out / "tokenizer.json"))
        return None
    tokenizer.save(out / "tokenizer")
    return f"tokenizer/ is textbed's own and needs it: the tokenizers library has no form of it ({why})"


def _library_form(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``tokenizer.json`` of the ``tokenizers`` library that cuts texts as ours does, and pads them.

    Raises:
        NotImplementedError: it has no such form; says why.
    """
    if not isinstance(tokenizer, WordTokenizer | CharacterTokenizer | SubwordTokenizer):
        raise NotImplementedError(f"{type(tokenizer).__name__} is not one of ours")
    settings = tokenizer.settings
    if settings.max_tokens is not None and settings.keep == "both":
        raise NotImplementedError("tokenizer.keep=both: it keeps one end of a long text")
    if getattr(settings, "unknown", "keep") == "drop":
        raise NotImplementedError("tokenizer.unknown=drop: it drops no word")
    form: dict[str, Any] = {"version": "1.0", "added_tokens": [], "pre_tokenizer": None}
    steps: list[dict[str, Any]] = []
    if settings.html_breaks:
        steps.append(_replace(HTML_BREAK, " "))
    if isinstance(tokenizer, SubwordTokenizer):
        form = json.loads(tokenizer.model)
        # Names of special tokens in a text are text, and none are put around it.
        form["added_tokens"] = [token for token in form.get("added_tokens") or () if not token["special"]]
    if not isinstance(tokenizer, SubwordTokenizer) or tokenizer.settings.file is None:
        steps += [{"type": settings.normalize}] if settings.normalize else []
        steps += [{"type": "Lowercase"}] if settings.lowercase else []
    else:
        steps += [form["normalizer"]] if form.get("normalizer") else []
    if not isinstance(tokenizer, SubwordTokenizer):
        pieces = [_split(r"[\s\S]", "Isolated")]
        if isinstance(tokenizer, WordTokenizer):
            cut = tokenizer.settings.before_vocabulary()
            steps += [_replace(_any_of(cut["drop"]), "")] if cut["drop"] else []
            pieces = [_split(_any_of(ASCII_SPACE + WIDE_SPACE), "Removed")]
            pieces += [_split(_any_of(cut["split_off"]), "Isolated")] if cut["split_off"] else []
        form["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pieces}
        words = {token: row for row, token in enumerate(tokenizer.tokens)}
        form["model"] = {"type": "WordLevel", "vocab": words, "unk_token": tokenizer.tokens[tokenizer.unk_id]}
    limit = {"direction": "Left" if settings.keep == "tail" else "Right", "max_length": settings.max_tokens}
    return form | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "truncation": limit | {"strategy": "LongestFirst", "stride": 0} if settings.max_tokens else None,
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": tokenizer.pad_id,
            "pad_type_id": 0,
            "pad_token": tokenizer.tokens[tokenizer.pad_id],
        },
        "post_processor": None,
        "decoder": None,
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _any_of(characters: str) -> str:
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]"


def _page(model: Model, to: str, compared: str, why: str | None) -> str:
    """How to use the folder, with a few lines of Python that need nothing of ours."""
    file, pairs = GRAPHS[to], model.pairs
    texts = ["a fine film", "dull"]
    if to == "onnx":
        needs, runtime = "numpy onnxruntime tokenizers", "import onnxruntime"
        opening = f'session = onnxruntime.InferenceSession("{file}")'
        names = ["ids", "lengths", "second_ids", "second_lengths"][: 4 if pairs else 2]
        given = ", ".join(f'"{name}": {name}' for name in names)
        running = f"(probabilities,) = session.run(None, {{{given}}})"
    else:
        needs, runtime = f"numpy tokenizers torch=={torch.__version__.partition('+')[0]}", "import torch"
        opening = f'model = torch.export.load("{file}").module()'
        names = ["ids", "lengths", "second_ids", "second_lengths"][: 4 if pairs else 2]
        running = f"probabilities = model({', '.join(f'torch.from_numpy({name})' for name in names)}).numpy()"
    reading = [
        "encoded = tokenizer.encode_batch(texts)",
        "ids = np.array([one.ids for one in encoded], dtype=np.int64)",
        "lengths = np.array([sum(one.attention_mask) for one in encoded], dtype=np.int64)",
    ]
    if pairs:
        reading += [
            "encoded = tokenizer.encode_batch(seconds)",
            "second_ids = np.array([one.ids for one in encoded], dtype=np.int64)",
            "second_lengths = np.array([sum(one.attention_mask) for one in encoded], dtype=np.int64)",
        ]
    saying = (
        "[[name for name, one in zip(classes, row) if one > 0.5] for row in probabilities]"
        if model.multilabel
        else "[classes[row.argmax()] for row in probabilities]"
    )
    code = [
        "import json",
        "import numpy as np",
        runtime,
        "from tokenizers import Tokenizer",
        "",
        'tokenizer = Tokenizer.from_file("tokenizer.json")  # pads to the longest text of a batch',
        'classes = json.load(open("classes.json"))["classes"]',
        opening,
        f"texts = {json.dumps(texts)}",
        *(["seconds = " + json.dumps(["a good one", "long"])] if pairs else []),
        *reading,
        running,
        f"print({saying})",
    ]
    second = ", second_ids and second_lengths likewise for the second texts" if pairs else ""
    lines = [
        f"# {file}",
        "",
        f"Classifies {'pairs of texts' if pairs else 'texts'} into "
        f"{'any number of' if model.multilabel else 'one of'} {len(model.classes)} classes, without textbed.",
        "",
        "- In: `ids` (documents, tokens) int64, token ids filled up at the right; `lengths` (documents,) "
        f"int64, how many tokens each has{second}. At least one column, also where all texts are empty.",
        "- Out: `probabilities` (documents, classes) float32, in the order of `classes.json`.",
        f"- Checked when it was written: {compared}.",
        "",
    ]
    if why is None:
        lines += [f"    pip install {needs}", "", "```python", *code, "```"]
    else:
        lines += [f"{why[0].upper()}{why[1:]}.", "", "```python"]
        lines += ["from pathlib import Path", "from textbed.data.encoding import load_tokenizer", ""]
        lines += [f"texts = {json.dumps(texts)}"]
        lines += ['ids, starts = load_tokenizer(Path("tokenizer")).encode(texts)  # end to end', "```"]
    return "\n".join(lines) + "\n"
