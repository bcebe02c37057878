"""Documents pooled once: the same bits as pooling them in every epoch, and only where nothing learns or is
drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import (
    Runs,
    assert_same_run,
    documents,
    figures,
    in_two_processes,
    on,
    predictions,
    stopping,
    write_csv,
)
from torch import nn

from textbed import pooled, training
from textbed.batch import TokenBatch
from textbed.data.loading import TokenDataset, WithoutTokens
from textbed.embedding.effects import Effects
from textbed.embedding.table import FrontEnd, Table
from textbed.heads.base import Head
from textbed.heads.layers import Layered
from textbed.heads.pooling import Hierarchical, Pooling
from textbed.heads.recurrent import Recurrent
from textbed.pooled import PooledDocuments, can_be_reused, mebibytes
from textbed.runs.folder import RunFolder
from textbed.training import train


class Column:
    """Random documents of 0 to 20 tokens below 50, kept in memory."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.lengths = draw.integers(0, 20, count)
        self.documents = [draw.integers(0, 50, length).astype(np.int32) for length in self.lengths]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = [np.zeros(0, np.int32), *(self.documents[row] for row in rows)]
        return np.concatenate(ids), np.concatenate([[0], np.cumsum(self.lengths[rows])])


def dataset_of(texts: int) -> TokenDataset:
    """41 documents, or pairs, of a split of 60."""
    rows = np.random.default_rng(9).permutation(60)[:41]
    return TokenDataset([Column(60, seed) for seed in range(texts)], rows % 3, rows)


def heads() -> dict[str, Head]:
    return {
        "pooling": Pooling(9, ["mean", "max", "sum"]),
        "with min": Pooling(9, ["mean", "min"]),
        "windows": Hierarchical(9, 3),
        "layers": Layered(Layered(Pooling(9, ["mean", "max"]), [13]), [5, 6], "tanh"),
    }


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("block", [256, 7])
@pytest.mark.parametrize("name", heads())
def test_pooled_documents_are_what_the_head_makes_of_any_batch(
    name: str, texts: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "BLOCK", block)
    torch.manual_seed(0)
    head = heads()[name]
    inner = Table(50, 9, trainable=False, padding_idx=3)
    inner.table.weight[7] = 0  # a document of a zero row is not an empty one
    embedding = Effects(inner, 50, weights=torch.rand(50))
    dataset = dataset_of(texts)
    known = PooledDocuments(dataset, embedding, head, "cpu")
    for positions in ([3], [40, 0, 7, 7, 39], list(range(41)), []):
        batch = dataset.__getitems__(positions)
        assert batch.rows is not None
        part = known[batch.rows]
        assert part.shape == (len(batch), head.fixed_dim)
        assert torch.equal(head.rest(part), head(embedding.prepare(batch), embedding))
        bare = WithoutTokens(dataset).__getitems__(positions)
        assert (len(bare), len(bare.ids)) == (len(batch), 0)
        assert bare.pooled is not None
        for field in ("labels", "rows"):
            mine, theirs = getattr(bare, field), getattr(batch, field)
            assert torch.equal(mine, theirs)
            assert mine.dtype == theirs.dtype


def test_memory() -> None:
    assert mebibytes([dataset_of(1), dataset_of(2)], 2**20) == 4 * (41 + 2 * 41)


class Noisy(FrontEnd):
    """Learns nothing, and says nothing of its noise."""

    dim = 4


def table(**settings: Any) -> Table:
    return Table(5, 4, trainable=False, **settings)


class Scaled(Table):
    """A frozen table times a number that is learnt."""

    def __init__(self) -> None:
        super().__init__(5, 4, trainable=False)
        self.scale = nn.Parameter(torch.ones(()))


class Steered(Pooling):
    """A mean times a number that is learnt."""

    def __init__(self) -> None:
        super().__init__(4, ["mean"])
        self.scale = nn.Parameter(torch.ones(()))


MEAN = Pooling(4, ["mean"])


@pytest.mark.parametrize(
    ("embedding", "head", "reused"),
    [
        (table(), MEAN, True),
        (table(max_norm=0.1, padding_idx=2), Hierarchical(4, 2), True),
        (table(), Layered(MEAN, [3], dropout=0.5), True),
        (Effects(table(), 5, weights=torch.ones(5)), MEAN, True),
        (Table(5, 4), MEAN, False),
        (Scaled(), MEAN, False),
        (Noisy(), MEAN, False),
        (Effects(table(), 5, word_dropout=0.1), MEAN, False),
        (Effects(table(), 5, row_dropout=0.1), MEAN, False),
        (Effects(table(), 5, noise=0.1), MEAN, False),
        (Effects(table(), 5, learn_weights=True), MEAN, False),
        (Effects(table(), 5, pull=0.1), MEAN, False),
        (Effects(Table(5, 4), 5), MEAN, False),
        (table(), Steered(), False),
        (table(), Layered(Steered(), [3]), False),
        (table(), Recurrent(4, "gru", 3), False),
        (table(), Recurrent(4, "gru", 3).requires_grad_(False), False),
    ],
)
def test_what_can_be_reused(embedding: FrontEnd, head: Head, reused: bool) -> None:
    assert can_be_reused(embedding, head) is reused


# Whole runs


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    words = sorted({word for text, _ in documents(40) for word in text.split()})
    rows = np.random.default_rng(0).normal(size=(len(words), 8)).round(4)
    lines = (f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, rows, strict=True))
    path.write_text("".join(lines))
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Documents in each batch that a pooling head was called with."""
    seen: list[int] = []
    plain = Pooling.forward

    def counted(self: Pooling, batch: TokenBatch, embedding: FrontEnd) -> torch.Tensor:
        seen.append(len(batch))
        return plain(self, batch, embedding)

    monkeypatch.setattr(Pooling, "forward", counted)
    return seen


def frozen(topics: Path, vectors: Path, *more: str) -> list[str]:
    return on(topics, "embedding=frozen", f"embedding.vectors='{vectors}'", "embedding.dim=null", *more)


def both(runs: Runs, calls: list[int], *settings: str) -> tuple[RunFolder, list[int], list[int]]:
    """A run that reuses and one that does not must be the same; the first, and the calls of each."""
    reused = runs(*settings)
    first = list(calls)
    calls.clear()
    assert_same_run(reused, runs(*settings, "classifier.reuse_mib=0"))
    return reused, first, list(calls)


WAYS: dict[str, tuple[list[str], list[int]]] = {
    "mean": ([], [108, 12, 30]),
    "three at once, weighted, bucketed, by tokens": (
        [
            "head.modes=[mean,max,sum]",
            "data.batching=bucketed",
            "data.batch_tokens=120",
            "embedding.token_weights=idf",
        ],
        [108, 12, 30],
    ),
    "layers above, a worker, accumulated": (
        ["head=dan", "head.dense_dropout=0.2", "data.workers=1", "trainer.accumulate_grad_batches=2"],
        [108, 12, 30],
    ),
    "part of the documents": (
        ["data.train_fraction=0.5", "data.limit=40", "data.folds=3", "data.fold=1"],
        [40, 10, 40],
    ),
    "validation inside epochs": (
        ["trainer.val_check_interval=3", "scheduler=plateau"],
        [108, 12, 30],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_reused_and_plain_end_alike(
    way: str, runs: Runs, topics: Path, vectors: Path, calls: list[int]
) -> None:
    settings, documents = WAYS[way]
    run, reused, plain = both(runs, calls, *frozen(topics, vectors, "trainer.max_epochs=3", *settings))
    # the head sees every document once, in one batch as none has more than 256, but the test's as they come
    tested = len(predictions(run)["row"])
    # and those to validate once more at the end, with the checkpoint that is tested
    assert reused[:3] == [*documents[:2], documents[1]]
    assert (sum(reused[3:]), tested) == (documents[2], documents[2])
    assert len(plain) > figures(run)["steps"] > 3
    assert sum(plain) >= 2 * documents[0] + 2 * documents[1] + documents[2]


def test_pairs_are_reused(runs: Runs, vectors: Path, calls: list[int]) -> None:
    rows = [(text, " ".join(text.split()[::-1][:5]), label) for text, label in documents(60)]
    path = write_csv(runs.folder / "pairs.csv", rows, ("first", "second", "label"))
    _, reused, plain = both(runs, calls, *frozen(path, vectors, "data.text=[first,second]"))
    assert reused == [86, 10, 10, 24]  # 43 pairs to train on, 5 to validate, at the end too, and 12 to test
    assert sum(plain) == 2 * (86 + 10) + 10 + 24


def test_several_labels_are_reused(runs: Runs, vectors: Path, calls: list[int]) -> None:
    rows = [f'{{"text": "{text}", "label": ["{label}"]}}' for text, label in documents(60)]
    path = runs.folder / "many.jsonl"
    path.write_text("\n".join(rows))
    settings = [one for one in frozen(path, vectors) if one != "data=csv"]
    _, reused, _ = both(runs, calls, "data=json", *settings)
    assert reused == [43, 5, 5, 12]


def test_a_resumed_run_reuses_too(
    runs: Runs, topics: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = frozen(topics, vectors, "trainer.max_epochs=3")
    whole = runs(*settings, "name=whole", "classifier.reuse_mib=0")
    go_on = stopping(monkeypatch, 1, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*settings, "name=cut")
    go_on()
    cut = next(run for run in runs.made() if run.path.parent.name == "cut")
    assert_same_run(runs.resume(cut), whole)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["embedding=finetuned"], [*[16] * 6, 12, 12, 12, 30]),
        (["head=gru", "head.hidden=3"], []),
        (["+trainer.limit_train_batches=3"], [16, 16, 16, 12, 12, 30]),
        (["+trainer.overfit_batches=2"], [16, 16, 12, 12, 30]),
    ],
    ids=["finetuned", "gru", "limited", "overfit"],
)
def test_not_reused(
    wanted: list[str],
    expected: list[int],
    runs: Runs,
    topics: Path,
    vectors: Path,
    calls: list[int],
    capfd: Any,
) -> None:
    runs(*frozen(topics, vectors, *wanted, "trainer.max_epochs=1"))
    assert "pooled" not in capfd.readouterr().err
    assert calls == expected


def test_the_bound_on_memory(
    runs: Runs, topics: Path, vectors: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def run_with(needed: float) -> str:
        calls.clear()
        monkeypatch.setattr(training, "mebibytes", lambda datasets, width: needed)
        runs(*frozen(topics, vectors, "classifier.reuse_mib=3"))
        return " ".join(capfd.readouterr().err.split())

    assert "documents are pooled once and kept in 3.0 MiB" in run_with(3.0)
    assert calls == [108, 12, 12, 30]
    assert "kept, they would take 4 MiB, more than classifier.reuse_mib=3" in run_with(3.5)
    assert len(calls) > 2 * 108 / 16


@pytest.mark.slow
def test_two_processes_reuse(runs: Runs, topics: Path, vectors: Path, capfd: Any) -> None:
    def work() -> None:
        for more in ("name=reused", "classifier.reuse_mib=0"):
            train(runs.config(*frozen(topics, vectors, "trainer=ddp_sim", more)))

    in_two_processes(work)
    assert capfd.readouterr().err.count("documents are pooled once") == 1
    assert_same_run(*runs.made())
