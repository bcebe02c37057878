"""Gathers and samplers: every document where it should be, exactly once, the same for a seed and an epoch."""

from __future__ import annotations

from itertools import chain, pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from textbed.data.loading import BucketedBatches, OrderedBatches, ShuffledBatches, TokenDataset, make_loader
from textbed.errors import UserError


class Column:
    """An encoded column in memory: token k of row r is 1000 r + k."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.texts = [1000 * row + np.arange(length) for row, length in enumerate(lengths)]

    def gather(self, rows):
        texts = [self.texts[row] for row in rows]
        ids = np.concatenate([*texts, np.zeros(0)]).astype(np.int32)
        return ids, np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)


def documents(count, longest=40, seed=0):
    return np.random.default_rng(seed).integers(0, longest, count)


# ---- gathers


def test_gather_of_chosen_rows():
    data = TokenDataset([Column([2, 0, 3, 1])], np.array([7, 8, 9]), np.array([3, 0, 2]))
    batch = data.__getitems__([2, 0])
    assert batch.ids.tolist() == [2000, 2001, 2002, 3000]
    assert batch.offsets.tolist() == [0, 3, 4]
    assert batch.labels.tolist() == [9, 7]
    assert batch.rows.tolist() == [2, 3]
    assert (batch.ids.dtype, batch.offsets.dtype) == (torch.int32, torch.int32)
    assert (batch.labels.dtype, batch.rows.dtype) == (torch.int64, torch.int64)
    assert data.lengths.tolist() == [1, 2, 3]
    assert len(data) == 3


def test_pairs_are_first_texts_then_second_texts():
    data = TokenDataset([Column([1, 2]), Column([0, 3])], np.array([0, 1]), np.arange(2))
    batch = data.__getitems__(np.array([1, 0]))
    assert batch.ids.tolist() == [1000, 1001, 0, 1000, 1001, 1002]
    assert batch.offsets.tolist() == [0, 2, 3, 6, 6]
    assert batch.labels.tolist() == [1, 0]
    assert batch.rows.tolist() == [1, 0]
    assert data.lengths.tolist() == [1, 5]


def test_multilabel_labels_are_floats_and_labels_may_be_absent():
    labels = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    batch = TokenDataset([Column([1, 1])], labels, np.arange(2), multilabel=True).__getitems__([0])
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0]]
    assert TokenDataset([Column([1, 1])], None, np.arange(2))[1].labels is None


def test_read_only_columns_are_copied():
    gathered = []

    class Frozen(Column):
        def gather(self, rows):
            gathered[:] = super().gather(rows)
            for part in gathered:
                part.flags.writeable = False
            return gathered

    batch = TokenDataset([Frozen([2, 2])], np.array([0, 1]), np.arange(2))[1]
    batch.ids[0] = batch.offsets[0] = 5  # undefined on the map itself
    assert [part.tolist() for part in gathered] == [[1000, 1001], [0, 2]]


def test_wrong_number_of_labels():
    with pytest.raises(ValueError, match="2 labels for 3 documents"):
        TokenDataset([Column([1, 1, 1])], np.array([0, 1]), np.arange(3))


# ---- samplers

TRAINING = [ShuffledBatches, BucketedBatches]
SIZES = [{"batch_size": 7}, {"batch_tokens": 90}]


def collect(kind, lengths, world_size, epoch=0, **arguments):
    """Batches of each process in that epoch."""
    result = []
    for rank in range(world_size):
        batches = kind(lengths, rank=rank, world_size=world_size, **arguments)
        batches.set_epoch(epoch)
        result.append([list(batch) for batch in batches])
        assert len(batches) == len(result[-1])
    return result


@pytest.mark.parametrize("kind", [*TRAINING, OrderedBatches])
@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=25, deadline=None)
@given(count=st.integers(4, 300), world_size=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_document_once_and_equal_steps(kind, size, count, world_size, epoch):
    lengths = documents(count, seed=count)
    parts = collect(kind, lengths, world_size, epoch, **size)
    positions = np.concatenate([batch for part in parts for batch in part])
    assert sorted(positions) == list(range(count))
    assert len({len(part) for part in parts}) == 1
    assert min(len(batch) for part in parts for batch in part) >= 1
    steps = {kind(lengths, world_size=world_size, **size).__len__()}
    assert steps == {len(parts[0])}


@pytest.mark.parametrize("kind", [*TRAINING, OrderedBatches])
@pytest.mark.parametrize("epoch", range(8))
def test_token_budget_holds_and_the_number_of_batches_stays(kind, epoch):
    lengths = documents(2000)
    lengths[:3] = 500  # longer than the budget
    (batches,) = collect(kind, lengths, 1, epoch, batch_tokens=256)
    assert len(batches) == len(kind(lengths, batch_tokens=256))
    over = [batch for batch in batches if lengths[batch].sum() > 256]
    assert sorted(over) == [[0], [1], [2]]
    # Not wasteful either: within a tenth of what could be if every batch were full.
    assert len(batches) <= 1.1 * (lengths[3:].sum() / 256 + 3) + 1


def test_a_batch_of_empty_documents_is_bounded():
    (batches,) = collect(OrderedBatches, np.zeros(100, dtype=np.int64), 1, batch_tokens=30)
    assert [len(batch) for batch in batches] == [30, 30, 30, 10]


@pytest.mark.parametrize("kind", TRAINING)
@pytest.mark.parametrize("size", SIZES)
def test_order_is_decided_by_seed_and_epoch_alone(kind, size):
    lengths = documents(200)
    first = collect(kind, lengths, 1, 3, seed=5, **size)
    assert first == collect(kind, lengths, 1, 3, seed=5, **size)
    assert first != collect(kind, lengths, 1, 4, seed=5, **size)
    assert first != collect(kind, lengths, 1, 3, seed=6, **size)
    assert first != collect(kind, lengths, 1, 3, seed=0, **size)
    # Not only the order of batches: other documents meet.
    other = collect(kind, lengths, 1, 4, seed=5, **size)
    assert {frozenset(batch) for batch in first[0]} != {frozenset(batch) for batch in other[0]}


@pytest.mark.parametrize("kind", TRAINING)
def test_processes_share_the_documents_of_one_large_batch(kind):
    lengths = documents(100)
    (alone,) = collect(kind, lengths, 1, batch_size=12)
    parts = collect(kind, lengths, 3, batch_size=4)
    steps = zip(*parts, strict=True)
    assert [sorted(chain(*step)) for step in steps] == [sorted(batch) for batch in alone]
    # 100 = 8 x 12 + 4: the last step's four are dealt out evenly too.
    assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in zip(*parts, strict=True))


def test_a_remainder_too_small_for_all_processes_joins_the_step_before():
    parts = collect(ShuffledBatches, documents(26), 3, batch_size=4)  # 26 = 2 x 12 + 2
    assert [[len(batch) for batch in part] for part in parts] == [[4, 5], [4, 5], [4, 4]]


def test_fewer_training_documents_than_processes():
    with pytest.raises(
        UserError, match=r"2 training documents cannot be shared by 3 processes.*trainer.devices"
    ):
        ShuffledBatches(np.ones(2), batch_size=4, world_size=3)


def test_fewer_evaluation_documents_than_processes():
    assert collect(OrderedBatches, np.ones(2), 3, batch_size=4) == [[[0]], [[1]], [[]]]
    assert collect(OrderedBatches, np.ones(0), 2, batch_size=4) == [[], []]


@pytest.mark.parametrize("size", [{"batch_size": 0}, {"batch_tokens": -1}])
def test_impossible_sizes(size):
    with pytest.raises(UserError, match=f"data.{next(iter(size))}={next(iter(size.values()))}"):
        ShuffledBatches(np.ones(3), **size)


def test_evaluation_goes_from_long_to_short():
    lengths = np.array([3, 9, 1, 9, 5])
    (batches,) = collect(OrderedBatches, lengths, 1, batch_size=2)
    assert batches == [[1, 3], [4, 0], [2]]
    (batches,) = collect(OrderedBatches, lengths, 1, batch_size=2, by_length=False)
    assert batches == [[0, 1], [2, 3], [4]]


def padding(batches, lengths):
    return sum(max(lengths[batch]) * len(batch) for batch in batches) / lengths.sum() - 1


def test_bucketing_saves_padding():
    lengths = np.random.default_rng(0).geometric(1 / 80, 20_000)
    (shuffled,) = collect(ShuffledBatches, lengths, 1, batch_size=32)
    (bucketed,) = collect(BucketedBatches, lengths, 1, batch_size=32)
    assert padding(shuffled, lengths) > 2  # three cells in memory for one token
    assert padding(bucketed, lengths) < 0.1
    # The order of batches is shuffled: their lengths do not rise.
    means = [lengths[batch].mean() for batch in bucketed]
    assert 0.4 < np.mean([a < b for a, b in pairwise(means)]) < 0.6


def test_no_reshuffling_repeats_the_first_epoch():
    batches = ShuffledBatches(documents(50), batch_size=4, reshuffle=False)
    first = [list(batch) for batch in batches]
    batches.set_epoch(3)
    assert [list(batch) for batch in batches] == first


# ---- loaders


def loader(count=60, workers=0, **arguments):
    data = TokenDataset([Column(documents(count))], np.arange(count) % 3, np.arange(count))
    arguments = {"batch_size": 4} | arguments
    return make_loader(data, ShuffledBatches(data.lengths, seed=1, **arguments), workers)


def test_workers_give_the_same_batches():
    plain = [batch.rows.tolist() for batch in loader()]
    with_workers = loader(workers=2)
    assert [batch.rows.tolist() for batch in with_workers] == plain
    with_workers.batch_sampler.set_epoch(1)
    again = [batch.rows.tolist() for batch in with_workers]
    assert again != plain
    assert sorted(chain(*again)) == list(range(60))


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    assert len(list(loader())) == 15
    assert torch.equal(torch.get_rng_state(), state)


def test_skip_leaves_out_batches_once():
    whole = [batch.rows.tolist() for batch in loader()]
    resumed = loader()
    resumed.skip(5)
    assert [batch.rows.tolist() for batch in resumed] == whole[5:]
    assert [batch.rows.tolist() for batch in resumed] == whole


class Recorder(pl.LightningModule):
    """Notes the rows of every batch it is given. Asks for the number of steps, as a schedule does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = {}

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 15 * 4
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch.rows.tolist())
        return self.weight.sum()


def fit(folder, data, ckpt_path=None, stop_after=None):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(folder / f"{trainer.current_epoch}.ckpt")
            trainer.should_stop = trainer.current_epoch == stop_after

    module = Recorder()
    pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Stop()],
    ).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_gives_each_epoch_its_order_also_after_a_resume(tmp_path, workers):
    whole = fit(tmp_path, loader(workers=workers))
    assert list(whole) == [0, 1, 2, 3]
    assert all(sorted(chain(*epoch)) == list(range(60)) for epoch in whole.values())
    assert len({str(epoch) for epoch in whole.values()}) == 4
    assert fit(tmp_path, loader(), stop_after=1) == {epoch: whole[epoch] for epoch in (0, 1)}
    resumed = fit(tmp_path, loader(workers=workers), ckpt_path=tmp_path / "1.ckpt")
    assert resumed == {epoch: whole[epoch] for epoch in (2, 3)}
