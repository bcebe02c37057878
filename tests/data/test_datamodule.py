"""The data module: what it builds once, what its loaders give, and what it tells a person."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from running import documents, write_csv
from torch.utils.data import DataLoader

from textbed.batch import TokenBatch
from textbed.data import sources
from textbed.data.datamodule import TextDataModule
from textbed.data.loading import BucketedBatches, OrderedBatches, ShuffledBatches
from textbed.data.words import WordSettings
from textbed.errors import UserError
from textbed.schema import DataConfig


@pytest.fixture
def make(tmp_path: Path, topics: Path) -> Any:
    """A data module on the documents of the topics, set up."""

    def build(seed: int = 0, path: Any = topics, **settings: Any) -> TextDataModule:
        data = OmegaConf.create(DataConfig(source="csv"))
        data = OmegaConf.merge(data, {"path": str(path) if isinstance(path, Path) else path, **settings})
        words = OmegaConf.create({"kind": "words", **vars(WordSettings(min_count=1))})
        module = TextDataModule(data, words, tmp_path / "cache", seed)
        module.setup()
        return module

    return build


def trainer_of(rank: int = 0, world_size: int = 1, overfit_batches: float = 0.0) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, overfit_batches=overfit_batches, strategy=strategy
    )


def rows_of(loader: Any) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


def test_train_counts_are_of_the_training_documents_alone(make: Any) -> None:
    module = make()
    expected = np.bincount(np.concatenate(list(module.train_documents())), minlength=len(module.tokenizer))
    assert module.train_counts.tolist() == expected.tolist()
    assert expected.sum() == module.sets["train"].lengths.sum()


def test_added_words_change_nothing_of_the_training_documents(make: Any, tmp_path: Path) -> None:
    rows = [*documents(60), ("a heron sailed to mongolia", "birds"), ("mongolia mongolia peru", "boats")]
    path = {
        "train": str(write_csv(tmp_path / "a.csv", rows[:50])),
        "test": str(write_csv(tmp_path / "b.csv", rows[50:])),
    }
    module = make(path=path)
    tokens, counts, held = module.tokenizer.tokens, module.train_counts, module.train_document_counts
    train = [ids.tolist() for ids in module.train_documents()]
    assert {"mongolia", "peru"} <= set(module.unseen_words)
    assert module.unseen_words[0] == "mongolia"
    ids = module.sets["test"][11].ids.tolist()
    assert ids == [1, 1, 1]
    for _ in range(2):
        module.add_words(["mongolia", "peru"])
        assert module.tokenizer.tokens == [*tokens, "mongolia", "peru"]
        assert module.added_words == 2
        assert "+2 words with a vector that only the validation or test text has" in module.notes
        assert [ids.tolist() for ids in module.train_documents()] == train
        assert module.train_counts.tolist() == [*counts.tolist(), 0, 0]
        assert module.train_document_counts.tolist() == [*held.tolist(), 0, 0]
        assert module.sets["test"][11].ids.tolist() == [len(tokens), len(tokens), len(tokens) + 1]
    module.add_words([])
    assert (module.tokenizer.tokens, module.added_words) == (tokens, 0)
    assert module.sets["test"][11].ids.tolist() == ids
    assert module.train_counts.tolist() == counts.tolist()


def test_set_up_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    sets = dict(module.sets)
    monkeypatch.setattr(sources, "load", lambda *args: pytest.fail("read again"))
    for stage in ("fit", "validate", "test", None):
        module.setup(stage)
    assert all(module.sets[name] is sets[name] for name in sets)
    assert list(sets) == ["train", "validation", "test"]
    assert [len(part) for part in sets.values()] == [108, 12, 30]
    assert module.num_classes == 3
    assert np.bincount(module.train_labels).tolist() == [36, 36, 36]


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        (
            {},
            [
                "the source has no test split: 20% of it was set aside as one",
                "validation is cut from the training documents: 10% of them",
            ],
        ),
        (
            {"test": 0.5, "validation": 0},
            [
                "the source has no test split: 50% of it was set aside as one",
                "no validation split: the last epoch is tested, not the best",
            ],
        ),
        (
            {"folds": 5, "fold": 2},
            [
                "fold 2 of 5 (counted from 0) is the test split",
                "validation is cut from the training documents: 10% of them",
            ],
        ),
        (
            {"test": 0},
            [
                "no test split: the source has none, and none was set aside",
                "validation is cut from the training documents: 10% of them",
            ],
        ),
    ],
    ids=["the usual", "no validation", "folds", "no test"],
)
def test_notes_on_splits(settings: dict[str, Any], notes: list[str], make: Any) -> None:
    assert make(**settings).notes == notes


def test_nothing_to_note_where_the_source_has_all_splits(make: Any, tmp_path: Path) -> None:
    counts = {"train": 30, "validation": 12, "test": 9}
    paths = {
        name: str(write_csv(tmp_path / f"{name}.csv", documents(count, seed=count)))
        for name, count in counts.items()
    }
    module = make(path=paths)
    assert module.notes == []
    assert {name: len(part) for name, part in module.sets.items()} == counts
    # the vocabulary is of the training split alone
    words = {word for text, _ in documents(30, seed=30) for word in text.split()}
    assert set(module.tokenizer.tokens) == {"<pad>", "<unk>", *words}


def test_training_batches(make: Any) -> None:
    module = make(batch_size=25)
    loader = module.train_dataloader()
    assert isinstance(loader, DataLoader)
    assert type(loader.batch_sampler) is ShuffledBatches
    batches = list(loader)
    assert [len(batch) for batch in batches] == [25, 25, 25, 25, 8]
    assert len(loader) == 5
    assert sorted(itertools.chain(*rows_of(loader))) == module.splits["train"].rows.tolist()
    # rows, labels and ids belong together
    texts, labels = module.corpus.splits["train"], module.corpus.splits["train"].labels
    for batch in batches:
        assert batch.labels.tolist() == labels[batch.rows.numpy()].tolist()
        ids, offsets = module.tokenizer.encode([texts.text(row) for row in batch.rows.tolist()])
        assert batch.ids.tolist() == ids.tolist()
        assert batch.offsets.tolist() == offsets.tolist()


def test_the_seed_decides_the_order_and_nothing_else(make: Any) -> None:
    one, same, other = make(seed=0), make(seed=0), make(seed=1)
    assert rows_of(one.train_dataloader()) == rows_of(same.train_dataloader())
    assert rows_of(one.train_dataloader()) != rows_of(other.train_dataloader())
    for split in one.splits:
        assert one.splits[split].rows.tolist() == other.splits[split].rows.tolist()
    assert rows_of(one.test_dataloader()) == rows_of(other.test_dataloader())


def test_bucketed_and_budgeted_batches(make: Any) -> None:
    module = make(batching="bucketed", batch_tokens=100)
    loader = module.train_dataloader()
    assert type(loader.batch_sampler) is BucketedBatches
    batches = list(loader)
    assert all(len(batch.ids) <= 100 for batch in batches)
    assert sorted(itertools.chain(*rows_of(loader))) == module.splits["train"].rows.tolist()
    spread = max(int(batch.lengths.max() - batch.lengths.min()) for batch in batches)
    assert spread < 8  # of 2 to 24 tokens


def test_evaluation_batches(make: Any) -> None:
    module = make(eval_batch_size=7)
    for loader, split, sizes in (
        (module.val_dataloader(), "validation", [7, 5]),
        (module.test_dataloader(), "test", [7, 7, 7, 7, 2]),
    ):
        assert type(loader.batch_sampler) is OrderedBatches
        assert [len(batch) for batch in loader] == sizes
        assert sorted(itertools.chain(*rows_of(loader))) == module.splits[split].rows.tolist()


def test_without_validation_there_is_nothing_to_load(make: Any) -> None:
    assert make(validation=0).val_dataloader() == []


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_processes_share_the_documents(split: str, make: Any) -> None:
    seen = []
    for rank in range(2):
        module = make(batch_size=10, eval_batch_size=4)
        module.trainer = trainer_of(rank, 2)
        name = {"validation": "val"}.get(split, split)
        loader = getattr(module, f"{name}_dataloader")()
        seen.append(rows_of(loader))
        assert len(loader) == len(seen[-1])
    assert len(seen[0]) == len(seen[1])
    rows = [row for batches in seen for batch in batches for row in batch]
    assert sorted(rows) == module.splits[split].rows.tolist()


def test_overfitting_repeats_the_first_batches(make: Any) -> None:
    for share, same in ((0.0, False), (2, True)):
        module = make()
        module.trainer = trainer_of(overfit_batches=share)
        loader = module.train_dataloader()
        orders = []
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            orders.append(rows_of(loader))
        assert (orders[0] == orders[1]) is same


@pytest.mark.parametrize("key", ["batch_size", "batch_tokens"])
def test_sizes_that_cannot_be(key: str, make: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}=0"):
        make(**{key: 0}).train_dataloader()


def test_a_batch_goes_to_a_device(make: Any) -> None:
    module = make()
    batch = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, TokenBatch)
    for name in ("ids", "offsets", "labels", "rows"):
        assert getattr(moved, name).is_meta
        assert getattr(moved, name).shape == getattr(batch, name).shape
    stays = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert stays.ids.data_ptr() == batch.ids.data_ptr()


@pytest.mark.parametrize(("device", "without_waiting"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_a_copy_from_pinned_memory_is_not_waited_for(device: str, without_waiting: bool) -> None:
    class Batch:
        def to(self, *args: Any, **how: Any) -> tuple[Any, ...]:
            return (*args, how)

    where = torch.device(device)
    moved = TextDataModule(None, None, Path()).transfer_batch_to_device(Batch(), where, 0)
    assert moved == (where, {"non_blocking": without_waiting})


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu_alone(device: str, pinned: bool, make: Any) -> None:
    module = make()
    module.trainer = trainer_of()
    module.trainer.strategy.root_device = torch.device(device)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert loader.pin_memory is pinned


def test_the_fingerprint_is_of_documents_labels_and_splits(make: Any, tmp_path: Path, topics: Path) -> None:
    first = make().fingerprint
    copy = tmp_path / "elsewhere" / "copy.csv"
    copy.parent.mkdir()
    copy.write_bytes(topics.read_bytes())
    assert make(path=copy, seed=5, batch_size=3).fingerprint == first
    rows = documents(150)
    changes: dict[str, Any] = {
        "a word": [("another", rows[0][1]), *rows[1:]],
        "a label": [(rows[0][0], "bread"), *rows[1:]],
    }
    others = {
        name: make(path=write_csv(tmp_path / "new.csv", made)).fingerprint for name, made in changes.items()
    }
    others["validation"] = make(validation_seed=1).fingerprint
    others["a share"] = make(train_fraction=0.5).fingerprint
    others["no test"] = make(test=0).fingerprint
    assert len({first, *others.values()}) == 1 + len(others)
