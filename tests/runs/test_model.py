from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from running import EMBEDDINGS, ROOT, TOPICS, Runs, documents, on, predictions, write_csv

import textbed
from textbed import training
from textbed.batch import TokenBatch
from textbed.config import PRETRAINED
from textbed.data.datamodule import TextDataModule
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.network import FORMAT, Design, construct, rebuild
from textbed.runs.folder import RunFolder
from textbed.runs.model import Model, load

HEADS = sorted(path.stem for path in (ROOT / "configs" / "head").glob("*.yaml"))
Trained = Callable[[str], RunFolder]


# Made again from design, vocabulary and weights


class Ground:
    """A data set read once, over which any model of the configs is made and made again."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(folder)
        self.path = write_csv(folder / "topics.csv", documents(60))
        self.vectors = folder / "some.txt"
        words = [word for topic in TOPICS.values() for word in topic[:6]]
        lines = [f"{word} {number} 0.5 {-number} 1\n" for number, word in enumerate(words)]
        self.vectors.write_text("".join(lines))
        cfg = self.runs.config(*on(self.path))
        self.data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache))
        self.data.setup()

    def check(self, *overrides: str) -> Design:
        """The model that these describe gives the same to the last bit once it is made again elsewhere."""
        cfg = self.runs.config(*on(self.path), "embedding.dim=4", *overrides)
        model, _ = training.build_model(cfg, self.data)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():  # what begins as zeros would hide that it was not loaded
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
        for part in model.modules():
            if isinstance(part, Table):
                part.set_clock(99, 99)
        design = training.describe(cfg, self.data, model)
        design = Design.load(self.written(design))
        # Its own, as from a file: a look-up may shorten rows in place.
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        again = rebuild(design, self.data.tokenizer.tokens, state)
        batch = TokenBatch(
            torch.arange(len(self.data.tokenizer), dtype=torch.int32),
            torch.tensor([0, 3, 3, 4, len(self.data.tokenizer)], dtype=torch.int32),
        )
        model.eval()
        with torch.no_grad():
            expected = model(batch)
            assert expected.isfinite().all()
            assert len(expected.unique()) > 3
            for _ in range(2):  # and no look-up changes what the next gives
                assert torch.equal(again(batch), expected)
        assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
        return design

    def written(self, design: Design) -> Path:
        path = self.runs.folder / "model.yaml"
        path.write_text(design.dump())
        return path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_made_again(ground: Ground, head: str) -> None:
    narrow = ["head.hidden=8"] if head in ("esn", "random_lstm") else []
    ground.check(f"head={head}", *narrow)


@pytest.mark.parametrize("head", ["mean_max", "gru"])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_front_end_is_made_again(ground: Ground, embedding: str, head: str) -> None:
    own = {"adapted": ["embedding.rank=2"], "hashed": ["embedding.buckets=50"]}.get(embedding, [])
    if embedding == "ngrams":
        own = ["embedding.buckets=50", "embedding.min_char=2", "embedding.max_char=3"]
    if embedding in PRETRAINED:
        own += [f"embedding.vectors='{ground.vectors}'", "embedding.dim=null"]
    design = ground.check(f"embedding={embedding}", f"head={head}", *own)
    assert design.embedding["dim"] == 4
    assert "vectors" not in design.embedding


@pytest.mark.parametrize(
    "overrides",
    [
        ["embedding=frozen", "embedding.missing=shared"],
        ["embedding=frozen", "embedding.train_missing=true", "embedding.max_norm=0.7"],
        ["embedding=frozen", "embedding.train_missing=true", "embedding.missing=shared"],
        ["embedding=adapted", "embedding.rank=2", "embedding.train_missing=true"],
        ["embedding=finetuned", "embedding.max_norm=0.5", "embedding.norm_type=1.0"],
        ["embedding=finetuned", "embedding.pull=0.1", "embedding.token_weights=sif"],
        ["embedding=finetuned", "embedding.token_weights=learned", "embedding.noise=0.1"],
        ["embedding=multichannel", "embedding.token_weights=idf", "embedding.missing=shared"],
        ["embedding=finetuned", "embedding.scale_grad_by_freq=true"],
        ["embedding=projected", "embedding.out_dim=3"],
        ["embedding=thawed", "head=bigru", "embedding.max_norm=0.5", "classifier.activation=gelu"],
        ["embedding=ngrams", "embedding.ngram_dim=3", "embedding.buckets=50"],
    ],
    ids=" ".join,
)
def test_every_way_to_treat_rows_is_made_again(ground: Ground, overrides: list[str]) -> None:
    ground.check(*overrides, f"embedding.vectors='{ground.vectors}'", "embedding.dim=null")


def test_a_head_sized_by_its_parameters_keeps_its_width(ground: Ground) -> None:
    design = ground.check(
        "head=cnn", "+head.parameters=500", "+head.dense=[5]", "+head.dense_activation=tanh"
    )
    assert design.head["maps"] > 1
    assert "parameters" not in design.head
    assert design.head["dense"] == [5]
    layered = ["head=mean", "+head.dense=[3]", "+head.dense_activation=tanh"]
    assert ground.check(*layered, "+head.parameters=64").head["dense"] == [12]


def test_weights_of_another_model(ground: Ground) -> None:
    cfg = ground.runs.config(*on(ground.path), "head=gru", "head.hidden=3")
    model, _ = training.build_model(cfg, ground.data)
    design = training.describe(cfg, ground.data, model)
    tokens = ground.data.tokenizer.tokens
    other = dataclasses.replace(design, head={**design.head, "hidden": 4})
    with pytest.raises(UserError, match=r"the weights do not fit the model: .*size mismatch"):
        rebuild(other, tokens, model.state_dict())
    with pytest.raises(UserError, match="do not fit"):
        rebuild(design, tokens[:-1], model.state_dict())


def test_a_design_names_parts_of_a_network_alone() -> None:
    with pytest.raises(UserError, match=r"os\.system: the model names this as a part of it, but it is no"):
        construct({"_target_": "os.system", "command": "true"}, torch.nn.Module)
    with pytest.raises(UserError, match=r"textbed\.heads\.no\.Head: .* cannot be imported"):
        construct({"_target_": "textbed.heads.no.Head"}, torch.nn.Module)
    assert construct({"_target_": "torch.nn.Linear", "out_features": 2}, torch.nn.Module, in_features=3)


def test_a_module_that_a_design_names_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    trace = tmp_path / "trace"
    lines = [
        "import pathlib, torch.nn as nn",
        f"pathlib.Path({str(trace)!r}).touch()",
        "class Head(nn.Identity): pass",
    ]
    for name in ("__init__", "parts"):
        (package / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "their_package.parts.Head"}
    with pytest.raises(UserError, match=r"first \(import their_package\.parts, or --import"):
        construct(node, torch.nn.Module)
    assert not trace.exists()
    try:  # whoever imports it has asked for it
        importlib.import_module("their_package.parts")
        assert type(construct(node, torch.nn.Module)).__module__ == "their_package.parts"
    finally:
        for name in ("their_package.parts", "their_package"):
            sys.modules.pop(name, None)


# A trained run


def rows_of(run: RunFolder) -> tuple[list[Any], dict[str, list[Any]]]:
    """The texts of the test documents, read as the run read them, and what it said of them."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(run.config_file)
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache))
    data.setup()
    said = predictions(run)
    split = data.corpus.splits[data.splits["test"].split]
    texts = [tuple(split.text(row, column) for column in range(data.corpus.columns)) for row in said["row"]]
    return texts if data.corpus.columns == 2 else [text[0] for text in texts], said


@pytest.mark.parametrize("name", ["words", "pairs", "multilabel"])
def test_it_says_what_the_run_said(trained: Trained, name: str) -> None:
    run = trained(name)
    texts, said = rows_of(run)
    model = textbed.load(run.path)
    chances = model.predict_proba(texts)
    assert chances.dtype == np.float32
    np.testing.assert_allclose(chances, said["probability"], rtol=0, atol=1e-6)
    assert model.predict(texts, as_list=True) == said["predicted_name"]
    if name == "multilabel":
        hits = model.predict(texts)
        assert hits.shape == (len(texts), 3)
        assert [list(np.flatnonzero(row)) for row in hits] == said["predicted"]
        assert chances.sum(axis=1).std() > 1e-3
    else:
        assert model.predict(texts).tolist() == said["predicted_name"]
        np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert model.classes == ["birds", "boats", "bread"]
    # in any batches, alone, and from what holds texts elsewhere
    for size in (1, 7):
        np.testing.assert_allclose(model.predict_proba(texts, batch_size=size), chances, rtol=0, atol=1e-6)
    (first,) = model.predict_proba(texts[:1], as_list=True)
    assert first == pytest.approx(chances[0].tolist(), abs=1e-6)
    given = np.array(texts, dtype=object) if name == "pairs" else pa.array(texts)
    np.testing.assert_array_equal(model.predict_proba(given), chances)
    assert model.predict_proba([]).shape == (0, 3)
    assert model.predict([], as_list=True) == []


def test_embeddings_are_the_heads_output(trained: Trained) -> None:
    texts, _ = rows_of(trained("words"))
    model = load(trained("words").path)
    state = model.network.state_dict()
    table = state["embedding.table.weight"].double().numpy()
    for text, row in zip(texts[:5], model.embed(texts), strict=False):
        ids = model.tokenizer.encode([text])[0]
        np.testing.assert_allclose(row, table[ids].mean(axis=0), atol=1e-6)
        logits = state["linear.weight"].numpy() @ row + state["linear.bias"].numpy()
        chances = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(model.predict_proba([text])[0], chances, atol=1e-6)
    assert not model.embed([None, ""]).any()

    pairs = load(trained("pairs").path)
    both = pairs.embed([("an owl", "rye bread"), ("a mast", "")])
    assert both.shape == (2, 2, pairs.network.head.out_dim)
    np.testing.assert_allclose(both[:, 0], pairs.embed(["an owl", "a mast"]), atol=1e-6)
    assert not both[1, 1].any()

    for texts in (["an owl", None, "a mast"], [("an owl", "rye bread"), ("a mast", None)]):
        given = [text for text in texts if text is None or isinstance(text, str)]
        for made in (model, pairs) if given else (pairs,):
            np.testing.assert_array_equal(made.embed(pa.array(texts)), made.embed(texts))
            np.testing.assert_array_equal(made.embed(pa.array(texts).to_pandas()), made.embed(texts))
    column = pa.array(["an owl", None]).to_pandas()  # NaN in the place of None, or pandas' NA
    for missing in (column, column.astype("string"), ["an owl", float("nan")]):
        np.testing.assert_array_equal(model.predict_proba(missing), model.predict_proba(["an owl", None]))


def test_what_is_no_text(trained: Trained) -> None:
    model, pairs = load(trained("words").path), load(trained("pairs").path)
    for given, expected in (
        (lambda: model.predict("a text"), r"write \[text\]"),
        (lambda: model.predict(["a", 3.5]), "text 2 is 3.5; expected a string"),
        (lambda: model.predict({"text": ["a"]}), r"a table was given .* name its column, table\['text'\]"),
        (lambda: model.predict(pa.table({"text": ["a"]})), "a table was given"),
        (lambda: model.predict([("a", "b")]), r"text 1 is \('a', 'b'\); expected a string"),
        (lambda: model.predict(["a"], batch_size=0), "batch_size=0"),
        (lambda: pairs.predict(["a", "b"]), r"text 1 is 'a'; this model classifies pairs"),
        (lambda: pairs.predict([("a", "b"), ("a", "b", "c")]), "text 2 is .* expected .first, second"),
        (lambda: pairs.predict([("a", 1)]), "text 1 is 1; expected a string"),
    ):
        with pytest.raises(UserError, match=expected):
            given()


def test_neither_hydra_nor_lightning_nor_the_data_is_needed(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    moved = tmp_path / "elsewhere" / run.id
    shutil.copytree(run.path, moved)
    code = (
        "import sys, textbed; assert 'torch' not in sys.modules; "
        "print(textbed.load(sys.argv[1]).predict_proba(['an owl in its nest']).tolist()); "
        "print([name for name in ('hydra', 'lightning', 'omegaconf', 'datasets') if name in sys.modules])"
    )
    told = subprocess.check_output([sys.executable, "-c", code, str(moved)], text=True)
    chances, imported = told.splitlines()
    assert imported == "[]"
    assert json.loads(chances)[0] == load(run.path).predict_proba(["an owl in its nest"]).tolist()[0]


@pytest.mark.parametrize("device", ["cdua", "cuda:99", "cuda:x", "meta"])
def test_a_device_that_is_not_there(trained: Trained, device: str) -> None:
    with pytest.raises(UserError, match=f"^device {device}: expected cpu.*, which torch has here") as caught:
        load(trained("words").path, device)
    assert "\n" not in str(caught.value)


# Folders that hold no model


def copied(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(shutil.copytree(run.path, folder / "copy", copy_function=shutil.copy))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_such_run(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    assert "does not exist. Did you mean" in refusal(run.path.with_name(f"{run.id}x"))
    assert "is no run folder: run.json and config.yaml missing" in refusal(tmp_path)
    assert f"the latest is {run.path.parent}" in refusal(run.path.parent)


def test_a_run_without_a_checkpoint(trained: Trained, tmp_path: Path) -> None:
    run = copied(trained("words"), tmp_path)
    run.best_checkpoint.unlink()
    assert isinstance(load(run.path), Model)  # the last one
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:1000])
    assert "last.ckpt is cut short or damaged (1,000 bytes)" in refusal(run.path)
    run.last_checkpoint.unlink()
    assert "has no checkpoint (the run is finished): it ended before its first epoch" in refusal(run.path)
    run.update(status="running")
    assert "(the run is running): its first epoch has not ended yet" in refusal(run.path)


def test_half_deleted_folders(trained: Trained, tmp_path: Path) -> None:
    run = copied(trained("words"), tmp_path)
    (run.tokenizer / "tokenizer.json").unlink()
    assert "no tokenizer.json in it" in refusal(run.path)
    run.model_file.unlink()
    assert "no model.yaml in it, which says what the model is made of" in refusal(run.path)
    run.config_file.unlink()
    assert "config.yaml missing" in refusal(run.path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": FORMAT + 1}, f"is of format {FORMAT + 1}; this version of textbed reads up to {FORMAT}"),
        ({"classes": None, "more": 1}, "model.yaml is damaged"),
        ({"embedding": {"_target_": "textbed.embedding.table.Tablet"}}, "Tablet"),
        ({"head": {"_target_": "subprocess.Popen", "args": "true"}}, "it is no Head"),
    ],
)
def test_other_formats(trained: Trained, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    run = copied(trained("words"), tmp_path)
    content = yaml.safe_load(run.model_file.read_text()) | change
    run.model_file.write_text(yaml.safe_dump(content))
    assert expected in refusal(run.path)


def test_a_damaged_design(trained: Trained, tmp_path: Path) -> None:
    run = copied(trained("words"), tmp_path)
    run.model_file.write_text("classes: [a\nhead")
    assert "model.yaml cannot be read" in refusal(run.path)
    run.model_file.write_text("just words")
    assert "model.yaml is damaged" in refusal(run.path)
