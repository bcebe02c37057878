"""The invariants of the design, held through the whole recipe: equal ground, the three modes of the table,
every document once, and seeds that are seeds, also over an interruption."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from running import (
    EMBEDDINGS,
    ROOT,
    Runs,
    accuracy,
    assert_same_run,
    documents,
    f1_macro,
    figures,
    on,
    predictions,
    record,
    stopping,
    weights,
    write_csv,
)

from textbed import training
from textbed.batch import TokenBatch
from textbed.data.datamodule import TextDataModule
from textbed.data.encoding import load_tokenizer
from textbed.errors import UserError
from textbed.runs import registry
from textbed.runs.folder import RunFolder

HEADS = sorted(path.stem for path in (ROOT / "configs" / "head").glob("*.yaml"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of 8 numbers for some words of the topics, and for two words that no document has."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    words = ["a", "b", "c", "d", "owl", "nest", "mast", "keel", "loaf", "unseen", "nowhere"]
    rows = draw.normal(size=(len(words), 8)).round(4)
    path.write_text(
        "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, rows, strict=True))
    )
    return path


# Equal ground


class Ground:
    """What a run begins with: its splits, the documents of two epochs in their order, its initial weights."""

    def __init__(self, runs: Runs, *overrides: str) -> None:
        self.cfg = runs.config(*overrides)
        self.data = TextDataModule(
            self.cfg.data, self.cfg.tokenizer, Path(self.cfg.paths.cache), self.cfg.seed
        )
        self.data.setup()
        self.splits = {name: rows.rows.tolist() for name, rows in self.data.splits.items()}
        self.epochs = []
        loader = self.data.train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            self.epochs.append([batch.rows.tolist() for batch in loader])
        model, _ = training.build_model(self.cfg, self.data)
        self.weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def part(self, name: str) -> dict[str, torch.Tensor]:
        return {key: weight for key, weight in self.weights.items() if key.startswith(name + ".")}


def assert_equal_ground(one: Ground, other: Ground) -> None:
    assert one.splits == other.splits
    assert one.epochs == other.epochs
    assert one.epochs[0] != one.epochs[1]
    assert sorted(itertools.chain(*one.epochs[0])) == sorted(one.splits["train"])


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def usual(place: Runs, topics: Path) -> Ground:
    return Ground(place, *on(topics, "head=gru", "head.hidden=5", "seed=3"))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_another_front_end_changes_nothing_else(
    name: str, usual: Ground, place: Runs, topics: Path, vectors: Path
) -> None:
    given = [] if name in ("random", "hashed") else [f"embedding.vectors='{vectors}'"]
    if name == "multichannel":  # two of half the width
        given += ["embedding.reduce=truncate", "embedding.dim=4"]
    other = Ground(place, *on(topics, "head=gru", "head.hidden=5", "seed=3", f"embedding={name}", *given))
    assert_equal_ground(usual, other)
    assert_same_weights(usual.part("head"), other.part("head"))
    assert_same_weights(usual.part("linear"), other.part("linear"))


@pytest.mark.parametrize("name", HEADS)
def test_another_head_changes_nothing_else(name: str, usual: Ground, place: Runs, topics: Path) -> None:
    other = Ground(place, *on(topics, f"head={name}", "seed=3"))
    assert_equal_ground(usual, other)
    assert_same_weights(usual.part("embedding"), other.part("embedding"))


def test_heads_of_one_width_share_their_classifier(place: Runs, topics: Path) -> None:
    mean, most = (Ground(place, *on(topics, f"head={name}")) for name in ("mean", "max"))
    two_way = Ground(place, *on(topics, "head=bigru", "head.hidden=4"))  # 2 * 4, as wide as the table
    assert_same_weights(mean.part("linear"), most.part("linear"))
    assert_same_weights(mean.part("linear"), two_way.part("linear"))


def test_each_seed_has_its_own_matter(place: Runs, topics: Path) -> None:
    zero, one = (Ground(place, *on(topics, f"seed={seed}", "head=gru")) for seed in (0, 1))
    assert zero.splits == one.splits
    assert zero.epochs != one.epochs
    for part in ("embedding", "head", "linear"):
        for name, weight in zero.part(part).items():
            assert not torch.equal(weight, one.weights[name]), name
    fewer = ("seed=0", "head=gru", "data.train_fraction=0.9")
    same = Ground(place, *on(topics, *fewer))
    for key, changed in (
        ("validation_seed", {"train", "validation"}),
        ("test_seed", {"train", "validation", "test"}),
    ):
        other = Ground(place, *on(topics, *fewer, f"data.{key}=1"))
        assert {name for name in other.splits if other.splits[name] != same.splits[name]} == changed
        if other.data.tokenizer.tokens == same.data.tokenizer.tokens:
            assert_same_weights(zero.part("embedding"), other.part("embedding"))
        assert_same_weights(zero.part("head"), other.part("head"))
        assert_same_weights(zero.part("linear"), other.part("linear"))
    other = Ground(place, *on(topics, *fewer, "data.fraction_seed=1"))
    assert {name for name in other.splits if other.splits[name] != same.splits[name]} == {"train"}


# The three modes


def table_of(folder: RunFolder, which: str = "last") -> torch.Tensor:
    return weights(folder, which)["embedding.table.weight"]


def optimizer_state(folder: RunFolder) -> dict[str, Any]:
    (state,) = torch.load(folder.last_checkpoint, weights_only=True)["optimizer_states"]
    return state


@pytest.mark.parametrize("head", [["mean"], ["gru", "head.hidden=4"]], ids=["mean", "gru"])
def test_a_frozen_table_stays_as_it_is(head: list[str], runs: Runs, topics: Path, vectors: Path) -> None:
    head = [f"head={head[0]}", *head[1:]]
    settings = on(topics, "embedding=frozen", f"embedding.vectors='{vectors}'", *head)
    ground = Ground(runs, *settings)
    before = ground.weights["embedding.table.weight"]
    run = runs(*settings)
    assert torch.equal(table_of(run), before)
    assert torch.equal(table_of(run, "best"), before)
    state = optimizer_state(run)
    assert [group["name"] for group in state["param_groups"]] == ["rest"]
    shapes = {tuple(value["exp_avg"].shape) for value in state["state"].values()}
    assert tuple(before.shape) not in shapes
    assert len(shapes) > (0 if "head=mean" in head else 2)
    given = figures(run)
    assert (given["parameters/embedding"], given["parameters_trainable/embedding"]) == (before.numel(), 0)
    assert torch.equal(before[0], torch.zeros(8))  # <pad>
    # vectors are those of the file
    tokens = ground.data.tokenizer.tokens
    lines = dict(line.split(" ", 1) for line in vectors.read_text().splitlines())
    for word in ("owl", "a", "loaf"):
        expected = torch.tensor([float(number) for number in lines[word].split()])
        torch.testing.assert_close(before[tokens.index(word)], expected)


@pytest.mark.parametrize("padding", ["auto", "3"])
def test_rows_that_documents_touch_move_in_a_tuned_table(
    padding: str, runs: Runs, topics: Path, vectors: Path
) -> None:
    # a word that validation alone has is in the vocabulary of nobody; <unk> is touched where words are rare
    settings = on(
        topics, "embedding=finetuned", f"embedding.vectors='{vectors}'", f"embedding.padding_idx={padding}"
    )
    ground = Ground(runs, *settings)
    before = ground.weights["embedding.table.weight"]
    after = table_of(runs(*settings))
    moved = (before != after).any(dim=1)
    touched = torch.zeros(len(before), dtype=torch.bool)
    for row in range(len(ground.data.sets["train"])):
        touched[ground.data.sets["train"][row].ids.long()] = True
    pad = 0 if padding == "auto" else 3
    assert touched.sum() > 30
    assert not moved[pad]
    touched[pad] = False
    assert torch.equal(moved, touched)
    assert torch.equal(after[pad], torch.zeros(8))


def with_strangers(runs: Runs) -> list[str]:
    """Overrides for documents of which the test split holds words that training lacks: owls and mongolia."""
    train = [(text.replace("owl", "heron"), topic) for text, topic in documents(60)]
    test = [("owl mongolia", "birds"), ("mongolia", "boats"), ("owl the", "bread"), *documents(20, seed=5)]
    paths = [write_csv(runs.folder / f"{len(rows)}.csv", rows) for rows in (train, test)]
    return on(paths[0], f"data.path={{train: '{paths[0]}', test: '{paths[1]}'}}")


@pytest.mark.parametrize("name", ["frozen", "finetuned"])
def test_words_that_training_lacks_keep_their_vectors(name: str, runs: Runs, vectors: Path) -> None:
    settings = [
        *with_strangers(runs),
        f"embedding={name}",
        f"embedding.vectors='{vectors}'",
    ]
    keep, unknown = (Ground(runs, *settings, f"embedding.unseen={unseen}") for unseen in ("keep", "unknown"))
    assert_equal_ground(keep, unknown)
    assert_same_weights(keep.part("linear"), unknown.part("linear"))
    tokens = unknown.data.tokenizer.tokens
    assert keep.data.tokenizer.tokens == [*tokens, "owl"]
    assert "mongolia" not in tokens
    # the rows of the training vocabulary are the same numbers, random ones too
    table = "embedding.table.weight"
    assert torch.equal(keep.weights[table][:-1], unknown.weights[table])
    with_vector, without = (runs(*settings, f"embedding.unseen={unseen}") for unseen in ("keep", "unknown"))
    line = next(line for line in vectors.read_text().splitlines() if line.startswith("owl "))
    owl = torch.tensor([float(number) for number in line.split()[1:]])
    assert torch.equal(table_of(with_vector)[-1], owl)
    assert torch.equal(table_of(with_vector)[:-1], table_of(without))
    assert torch.equal(weights(with_vector)["linear.weight"], weights(without)["linear.weight"])
    for run, ground, row in ((with_vector, keep, owl), (without, unknown, table_of(without, "best")[1])):
        # the test's first document by hand: the mean of the owl's row and the unknown row
        best = weights(run, "best")
        pooled = (row + best[table][1]) / 2
        expected = torch.softmax(best["linear.weight"] @ pooled + best["linear.bias"], 0)
        torch.testing.assert_close(torch.tensor(predictions(run)["probability"][0]), expected)
        saved = load_tokenizer(run.tokenizer)
        assert saved.tokens == ground.data.tokenizer.tokens
    assert load_tokenizer(with_vector.tokenizer).encode(["owl mongolia"])[0].tolist() == [len(tokens), 1]
    assert predictions(with_vector)["probability"][1] == pytest.approx(predictions(without)["probability"][1])
    assert predictions(with_vector)["probability"][0] != pytest.approx(predictions(without)["probability"][0])


def test_a_run_with_added_words_is_resumed(
    runs: Runs, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = runs.folder / "own.txt"
    own.write_bytes(vectors.read_bytes())
    settings = [*with_strangers(runs), "embedding=finetuned", f"embedding.vectors='{own}'", "name=cut"]
    whole = runs(*settings, "name=whole")
    go_on = stopping(monkeypatch, 1, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*settings)
    cut = next(run for run in runs.made() if run.path.parent.name == "cut")
    go_on()
    own.write_text(own.read_text().replace("owl ", "elk "))
    with pytest.raises(UserError, match=r"vocabulary is not .* the file of vectors has changed"):
        runs.resume(cut)
    own.write_bytes(vectors.read_bytes())
    assert_same_run(runs.resume(cut), whole)


def test_each_fold_adds_its_own_words(runs: Runs, vectors: Path) -> None:
    texts = [text.split() for text, _ in documents(40)]
    path = write_csv(runs.folder / "folds.csv", documents(40))
    settings = on(path, "data.folds=5", "embedding=frozen", f"embedding.vectors='{vectors}'")
    known = {line.split()[0] for line in vectors.read_text().splitlines()}
    added = []
    for fold in range(5):
        ground = Ground(runs, *settings, f"data.fold={fold}")
        inside = {word for row in ground.splits["train"] for word in texts[row]}
        outside = {
            word for name in ("validation", "test") for row in ground.splits[name] for word in texts[row]
        }
        tokens = ground.data.tokenizer.tokens
        added.append(set(tokens[len(tokens) - ground.data.added_words :]))
        assert added[-1] == (outside - inside) & known
        assert set(tokens[2 : len(tokens) - ground.data.added_words]) == inside
    assert len(set(map(frozenset, added))) > 1


def rows_of(ground: Ground, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """(V, D): the row of every word under these weights."""
    model, _ = training.build_model(ground.cfg, ground.data)
    model.load_state_dict(state)
    size = len(ground.data.tokenizer)
    with torch.no_grad():
        return model.embedding(TokenBatch(torch.arange(size).int(), torch.tensor([0, size]).int()))


# What trains besides the layers above, and which rows it moves: those of training documents, all, or of those
# only the ones without a vector.
MODES = {
    "frozen": ([], [], "none"),
    "frozen, missing trained": (["embedding.train_missing=true"], ["learnt.table.weight"], "missing"),
    "frozen, one row trained": (
        ["embedding.train_missing=true", "embedding.missing=shared"],
        ["learnt.table.weight"],
        "missing",
    ),
    "finetuned": (["embedding.missing=mean"], ["table.weight"], "touched"),
    "finetuned, shared": (["embedding.missing=shared"], ["table.weight"], "touched"),
    "thawed": (["embedding.frozen_epochs=1"], ["table.weight"], "touched"),
    "multichannel": ([], ["table.weight"], "touched"),
    "adapted": (["embedding.rank=2"], ["coefficients.table.weight", "directions"], "touched"),
    "projected": (["embedding.out_dim=6"], ["projection.weight", "projection.bias"], "all"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["mean", "gru"])
def test_what_each_mode_moves(mode: str, head: str, runs: Runs, topics: Path, vectors: Path) -> None:
    given, trained, moves = MODES[mode]
    layers = [f"head={head}", *(["head.hidden=4"] if head == "gru" else [])]
    option = f"embedding={mode.partition(',')[0]}"
    settings = on(topics, *layers, option, f"embedding.vectors='{vectors}'", *given)
    ground = Ground(runs, *settings)
    run = runs(*settings)
    before, after = ground.weights, weights(run)
    parts = {name.removeprefix("embedding.") for name in before if name.startswith("embedding.")}
    assert {*trained} <= parts
    for name in parts - {*trained}:
        assert torch.equal(after[f"embedding.{name}"], before[f"embedding.{name}"]), name
        assert torch.equal(weights(run, "best")[f"embedding.{name}"], before[f"embedding.{name}"]), name

    # optimizer state of what is trained, and of nothing else
    state = optimizer_state(run)
    groups = {group["name"]: group for group in state["param_groups"]}
    shapes = [
        state["state"][number]["exp_avg"].shape for number in groups.get("table", {"params": ()})["params"]
    ]
    assert sorted(shapes) == sorted(before[f"embedding.{name}"].shape for name in trained)
    assert len(state["state"]) == len(trained) + len(groups["rest"]["params"])
    assert figures(run)["parameters_trainable/embedding"] == sum(shape.numel() for shape in shapes)

    vocabulary = ground.data.tokenizer.tokens
    lines = vectors.read_text().splitlines()
    touched = torch.zeros(len(vocabulary), dtype=torch.bool)
    for row in range(len(ground.data.sets["train"])):
        touched[ground.data.sets["train"][row].ids.long()] = True
    missing = ~torch.isin(
        torch.arange(len(vocabulary)),
        torch.tensor([vocabulary.index(line.split()[0]) for line in lines if line.split()[0] in vocabulary]),
    )
    assert 5 <= (~missing).sum() <= 9
    if "embedding.missing=shared" in given:
        touched |= missing
    expected = {
        "none": touched & False,
        "missing": touched & missing,
        "touched": touched,
        "all": touched | True,
    }[moves]
    expected[0] = False  # <pad>
    start, end = rows_of(ground, before), rows_of(ground, after)
    assert (start != end).any(dim=1).tolist() == expected.tolist()
    assert not start[0].any()
    assert not end[0].any()


def test_until_it_thaws_a_table_is_frozen(runs: Runs, topics: Path, vectors: Path) -> None:
    """The same as frozen to the last bit, optimizer state and checkpoint of the best epoch included."""
    one = [f"embedding.vectors='{vectors}'", "trainer.max_epochs=1", "optimizer.weight_decay=0.1"]
    frozen = runs(*on(topics, "embedding=frozen", *one, "name=frozen"))
    for name, settings in {
        "epochs": ["frozen_epochs=1"],
        "steps": ["frozen_epochs=0", "frozen_steps=100"],
    }.items():
        run = runs(
            *on(topics, "embedding=thawed", *one, *(f"embedding.{each}" for each in settings), f"name={name}")
        )
        for which in ("best", "last"):
            mine, theirs = weights(run, which), weights(frozen, which)
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        assert predictions(run) == predictions(frozen)
        state = optimizer_state(run)
        assert [group["name"] for group in state["param_groups"]] == ["table", "rest"]
        assert list(state["state"]) == state["param_groups"][1]["params"]


def thawing(topics: Path, vectors: Path, *more: str) -> list[str]:
    # seven batches an epoch: it thaws with the third of the second
    own = [
        "embedding=thawed",
        f"embedding.vectors='{vectors}'",
        "embedding.frozen_steps=9",
        "embedding.lr=0.01",
    ]
    return three(topics, *own, "embedding.frozen_epochs=1", "scheduler=linear", *more)


@pytest.mark.parametrize("place", [(1, 1), (1, 5), (2, 2)], ids=["frozen", "in the epoch of it", "thawed"])
def test_an_interrupted_run_thaws_when_it_would_have(
    place: tuple[int, int],
    runs: Runs,
    topics: Path,
    vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = runs(*thawing(topics, vectors, "name=whole"))
    shown = capfd.readouterr().err
    assert "the table is frozen for the first 9 steps, and learns from epoch 2 on" in shown
    assert "the table thaws: epoch 2, step 9" in whole.log_file.read_text()
    go_on = stopping(monkeypatch, *place, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*thawing(topics, vectors, "name=parts"))
    (run,) = (run for run in runs.made() if run.name == "parts")
    go_on()
    runs.resume(run)
    assert_same_run(whole, run)
    steps = optimizer_state(run)["state"]
    assert {int(steps[0]["step"]), int(steps[1]["step"])} == {3 * 7 - 9, 3 * 7}


def test_a_table_that_never_thaws_is_told_of(
    runs: Runs, topics: Path, vectors: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = ["embedding=thawed", f"embedding.vectors='{vectors}'", "embedding.frozen_epochs=2"]
    with pytest.warns(UserWarning, match=r"ended before the table thawed; lower embedding\.frozen_epochs"):
        runs(*on(topics, *own, "test=false"))
    assert re.search(
        r"never thaws.*14 steps.*ends after 14;.*lower", " ".join(capfd.readouterr().err.split())
    )


# Seeds


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> RunFolder:
    """A run of three epochs, in which every step draws random numbers."""
    return Runs(tmp_path_factory.mktemp("reference"))(*three(topics))


def three(topics: Path, *more: str) -> list[str]:
    return on(topics, "head=bigru", "head.hidden=4", "classifier.dropout=0.5", "trainer.max_epochs=3", *more)


def test_the_same_command_twice(reference: RunFolder, runs: Runs, topics: Path) -> None:
    again = runs(*three(topics))
    assert_same_run(reference, again)
    assert again.path.name != reference.path.name


def test_another_seed_is_another_run(reference: RunFolder, runs: Runs, topics: Path) -> None:
    other = runs(*three(topics, "seed=1"))
    assert OmegaConf.load(reference.config_file).seed == 0
    mine, theirs = weights(reference), weights(other)
    assert all(not torch.equal(mine[name][1:], theirs[name][1:]) for name in mine)
    assert figures(other)["test/loss"] != figures(reference)["test/loss"]
    assert predictions(other)["row"] == predictions(reference)["row"]


# Interruptions


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("power cut"), "failed")],
    ids=["Ctrl-C", "an error"],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    error: BaseException,
    status: str,
    reference: RunFolder,
    runs: Runs,
    topics: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = stopping(monkeypatch, 1, 4, error)
    with pytest.raises(type(error)):
        runs(*three(topics))
    (run,) = runs.made()
    assert run.info()["status"] == status
    assert not run.metrics_file.exists()
    go_on()
    runs.resume(run)
    assert_same_run(reference, run)
    info = run.info()
    assert (info["status"], len(info["resumed"])) == ("finished", 1)


def test_interrupted_before_the_first_epoch_ended(
    reference: RunFolder, runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = stopping(monkeypatch, 0, 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*three(topics))
    (run,) = runs.made()
    assert not run.checkpoints.exists() or list(run.checkpoints.iterdir()) == []
    go_on()
    runs.resume(run)
    assert_same_run(reference, run)


def test_interrupted_twice_with_a_schedule_and_validation_inside_epochs(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = three(
        topics,
        "scheduler=linear",
        "trainer.val_check_interval=0.5",
        "data.batching=bucketed",
        "callbacks.early_stopping=null",
    )
    whole = runs(*settings, "name=whole")
    go_on = stopping(monkeypatch, 0, 5, KeyboardInterrupt())  # the only checkpoint is best.ckpt, of batch 3
    with pytest.raises(KeyboardInterrupt):
        runs(*settings, "name=parts")
    (run,) = (run for run in runs.made() if run.name == "parts")
    assert [path.name for path in run.checkpoints.iterdir()] == ["best.ckpt"]
    go_on()
    go_on = stopping(monkeypatch, 2, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs.resume(run)
    go_on()
    runs.resume(run)
    assert_same_run(whole, run)
    assert len(run.info()["resumed"]) == 2


def test_a_checkpoint_between_two_optimizer_steps_is_not_gone_on_from(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    accumulate = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"]
    whole = runs(*three(topics, *accumulate, "name=whole"))
    go_on = stopping(monkeypatch, 0, 4, KeyboardInterrupt())  # best.ckpt is of batch 3, half of a step
    with pytest.raises(KeyboardInterrupt):
        runs(*three(topics, *accumulate, "name=parts"))
    (run,) = (run for run in runs.made() if run.name == "parts")
    go_on()
    runs.resume(run)
    assert "between two optimizer steps" in capfd.readouterr().err
    assert_same_run(whole, run)


WITNESS = """
import mmap, os, time
from lightning.pytorch import Callback

class Witness(Callback):
    \"""Counts steps where a killed process leaves them, and makes each long enough to be killed in; the last
    that there is to be lasts until then.\"""

    def __init__(self):
        self.seen = mmap.mmap(os.open(os.environ["WITNESS"], os.O_RDWR), 8)

    def count(self, trainer):
        self.seen[:8] = (1 + trainer.global_step).to_bytes(8, "little")

    def on_train_start(self, trainer, module):
        self.count(trainer)

    def on_train_batch_end(self, trainer, *args):
        time.sleep(0.02 if trainer.global_step < int(os.environ["LAST"]) else 600)
        self.count(trainer)
"""


def killed(runs: Runs, moment: float, *overrides: str) -> tuple[RunFolder, int]:
    """Start ``python train.py`` and kill it ``moment`` steps after the first began; the run and its steps."""
    (runs.folder / "witness.py").write_text(WITNESS)
    witness = runs.folder / "witness.bin"
    witness.write_bytes(bytes(8))

    def steps() -> int:
        return int.from_bytes(witness.read_bytes(), "little") - 1  # -1: training has not begun

    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *runs.usual, *overrides],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(runs.folder), os.environ.get("PYTHONPATH", "")]),
            "WITNESS": str(witness),
            "LAST": str(int(moment) + 1),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        while steps() < int(moment) and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(0.02 * (moment % 1))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    (run,) = (run for run in runs.made() if run.name == "killed")
    return run, steps()


def check_killed(reference: RunFolder, runs: Runs, moment: float, *overrides: str) -> str:
    """Kill a run, resume it, and compare it with one that was not killed; what there was to go on from."""
    run, steps = killed(
        runs, moment, *overrides, "name=killed", "+callbacks.witness._target_=witness.Witness"
    )
    assert [one.status for one in registry.find([run.path]).runs] == [registry.KILLED]
    lines, wanted = record(run) if run.record_file.exists() else [], record(reference)
    assert lines == wanted[: len(lines)]  # nothing before the last is missing, and nothing is half
    logged = {line["step"] for line in lines if "train/loss_step" in line or "train/loss" in line}
    assert logged >= set(range(steps - 1))
    left = run.checkpoint_to_resume()
    runs.resume(run, "callbacks.witness=null")
    assert_same_run(reference, run)
    place = left.name if left else "the start"
    return f"{steps} steps, {len(lines)} of {len(wanted)} lines, then from {place}"


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(runs: Runs, topics: Path) -> None:
    every = three(topics, "trainer.log_every_n_steps=1")
    reference = runs(*every)
    check_killed(reference, runs, 10.5, *every)


@pytest.mark.slow
@pytest.mark.kills
def test_killed_ten_times_at_any_moment(tmp_path: Path, offline: None, topics: Path) -> None:
    draw = random.Random(5)
    every = three(topics, "trainer.log_every_n_steps=1", "report.embedding=false")
    reference = Runs(tmp_path / "whole")(*every)
    for step in draw.sample(range(figures(reference)["steps"]), 10):
        moment = step + draw.random()
        runs = Runs(tmp_path / f"killed{step}")
        runs.folder.mkdir()
        print(f"killed after {moment:.2f} steps:", check_killed(reference, runs, moment, *every))


def copied(folder: RunFolder, to: Path) -> RunFolder:
    return RunFolder.open(shutil.copytree(folder.path, to / "run"))


def test_a_finished_run_is_not_resumed(reference: RunFolder, runs: Runs) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.path.rglob("*")}
    with pytest.raises(UserError, match=r"finished.*trainer\.max_epochs"):
        runs.resume(reference)
    assert {path: path.stat().st_mtime_ns for path in reference.path.rglob("*")} == before


def test_a_finished_run_trains_on(reference: RunFolder, runs: Runs, topics: Path, tmp_path: Path) -> None:
    """Three epochs and then two give what five give; also where the folder has been moved."""
    run = copied(reference, tmp_path)
    runs.resume(run, "trainer.max_epochs=5")
    assert_same_run(runs(*three(topics, "trainer.max_epochs=5")), run)
    assert figures(run)["epochs"] == 5


def test_a_half_deleted_run_trains_on_or_says_what_is_missing(
    reference: RunFolder, runs: Runs, tmp_path: Path
) -> None:
    run = copied(reference, tmp_path)
    for path in run.path.iterdir():
        if path.name not in ("run.json", "config.yaml", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    runs.resume(run, "trainer.max_epochs=4")
    assert figures(run)["epochs"] == 4
    assert record(run)[0]["step"] >= figures(reference)["steps"] - 1  # of what was deleted nothing comes back
    assert len(predictions(run)["row"]) == 30
    run.best_checkpoint.unlink()
    with pytest.raises(UserError, match=r"^checkpoint .*best\.ckpt does not exist$"):
        runs.resume(run, "test=true")


def test_what_a_resume_changed_is_kept(
    reference: RunFolder, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(reference, tmp_path)
    go_on = stopping(monkeypatch, 3, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs.resume(run, "trainer.max_epochs=5")
    go_on()
    runs.resume(run)  # five epochs, as it was told before
    assert figures(run)["epochs"] == 5
    assert OmegaConf.load(run.config_file).trainer.max_epochs == 5
    assert [one["overrides"] for one in run.info()["resumed"]] == [["trainer.max_epochs=5"], []]


def test_a_resumed_run_keeps_its_configuration(reference: RunFolder, runs: Runs) -> None:
    for wanted in ("head=mean", "optimizer.lr=1", "data.batch_size=8", "seed=4", "trainer=gpu"):
        with pytest.raises(UserError) as caught:
            runs.resume(reference, wanted)
        line = str(caught.value)
        assert line.startswith(f"{wanted}: ")
        assert all(name in line for name in training.RESUME_MAY_CHANGE)
    with pytest.raises(UserError, match=r"trainer\.max_epoch.*Did you mean 'trainer\.max_epochs'"):
        runs.resume(reference, "trainer.max_epoch=4")
    assert reference.info()["status"] == "finished"


@pytest.mark.parametrize("size", [0, 1000, -100])
def test_a_damaged_checkpoint_is_named(size: int, reference: RunFolder, runs: Runs, tmp_path: Path) -> None:
    run = copied(reference, tmp_path)
    content = run.last_checkpoint.read_bytes()
    run.last_checkpoint.unlink()  # it may be one file with best.ckpt
    run.last_checkpoint.write_bytes(content[:size])
    with pytest.raises(UserError, match=rf"{run.last_checkpoint}.*best\.ckpt beside it is whole: delete"):
        runs.resume(run, "trainer.max_epochs=4")
    run.last_checkpoint.unlink()
    runs.resume(run, "trainer.max_epochs=4")
    assert figures(run)["epochs"] == 4


CHANGES: dict[str, Callable[[list[tuple[str, str]]], list[tuple[str, str]]]] = {
    "another word": lambda rows: [*rows[:-1], ("another word", rows[-1][1])],
    "a document more": lambda rows: [*rows, rows[0]],
    "another label": lambda rows: [*rows[:-1], (rows[-1][0], "boats")],
    "another order": lambda rows: rows[::-1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_data_that_has_changed_since(
    change: Callable[[Any], Any], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(runs.folder / "mine.csv", documents(60))
    go_on = stopping(monkeypatch, 1, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*on(path))
    (run,) = runs.made()
    go_on()
    write_csv(path, change(documents(60)))
    with pytest.raises(UserError, match="data has changed since"):
        runs.resume(run)
    assert run.info()["status"] == "failed"
    write_csv(path, documents(60))
    runs.resume(run)
    assert run.info()["status"] == "finished"


# Every document once


@pytest.mark.slow
def test_two_processes_count_every_document_once(runs: Runs) -> None:
    # 31 documents to validate and 61 to test: neither can be halved
    paths = {
        name: write_csv(runs.folder / f"{name}.csv", documents(count, seed=count))
        for name, count in (("train", 90), ("validation", 31), ("test", 61))
    }
    files = ", ".join(f"{name}: '{path}'" for name, path in paths.items())
    settings = on(paths["train"], f"data.path={{{files}}}", "data.batch_size=10", "data.eval_batch_size=7")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *runs.usual, *settings, "trainer=ddp_sim"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs.made()
    assert done.stdout == f"{run.path}\n"
    said, given = predictions(run), figures(run, costs=True)
    assert said["row"] == list(range(61))
    topics = {"birds": 0, "boats": 1, "bread": 2}
    assert said["label"] == [topics[topic] for _, topic in documents(61, seed=61)]
    assert given["test/accuracy"] == pytest.approx(accuracy(said["label"], said["predicted"]), abs=1e-6)
    assert given["test/f1_macro"] == pytest.approx(f1_macro(said["label"], said["predicted"], 3), abs=1e-6)
    assert given["steps"] == 2 * 5  # 90 documents in steps of two times 10, the last of two times 5
    assert "5 batches an epoch" in done.stderr
    # the first five steps are warm-up; both processes' documents count
    assert given["speed/documents_per_second"] == pytest.approx(90 / 5 * given["speed/steps_per_second"])
    # one process that evaluates the same checkpoint says the same of every document
    ground = Ground(runs, *settings)
    model, _ = training.build_model(ground.cfg, ground.data)
    model.load_state_dict(weights(run, "best"))
    model.eval()
    for split in ("test", "validation"):
        with torch.no_grad():
            logits = model(ground.data.sets[split].__getitems__(range(len(ground.data.sets[split]))))
        labels = torch.from_numpy(ground.data.sets[split].labels)
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        prefix = "val" if split == "validation" else "test"
        assert given[f"{prefix}/loss"] == pytest.approx(loss, abs=1e-5)
        assert given[f"{prefix}/accuracy"] == pytest.approx(
            accuracy(labels.tolist(), logits.argmax(dim=1).tolist()), abs=1e-6
        )
        if split == "test":
            torch.testing.assert_close(
                logits.softmax(dim=1), torch.tensor(said["probability"]), atol=1e-6, rtol=0
            )
    lines = [json.loads(line) for line in run.record_file.read_text().splitlines()]
    assert len({(line["step"], *line) for line in lines}) == len(lines)  # one process wrote them
