"""TokenBatch against documents kept as plain lists."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import move_data_to_device

from textbed.batch import TokenBatch

DOCUMENTS = st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=8)


def make(documents: list[list[int]], **more: torch.Tensor) -> TokenBatch:
    offsets = [0]
    for document in documents:
        offsets.append(offsets[-1] + len(document))
    ids = [token for document in documents for token in document]
    return TokenBatch(torch.tensor(ids, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int32), **more)


def lists(batch: TokenBatch) -> list[list[int]]:
    return [batch.ids[start:end].tolist() for start, end in pairwise(batch.offsets.tolist())]


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS)
def test_lengths_and_padding(documents):
    batch = make(documents)
    assert len(batch) == len(documents)
    assert batch.lengths.tolist() == [len(document) for document in documents]
    ids_BL, mask_BL = batch.padded(9)
    longest = max(map(len, documents), default=0)
    assert ids_BL.shape == mask_BL.shape == (len(documents), longest)
    assert ids_BL.dtype == torch.int32
    for document, ids, mask in zip(documents, ids_BL.tolist(), mask_BL.tolist(), strict=True):
        assert ids == document + [9] * (longest - len(document))
        assert mask == [True] * len(document) + [False] * (longest - len(document))


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS)
def test_without_takes_a_token_out_of_every_document(documents):
    batch = make(documents, labels=torch.arange(len(documents)))
    left = batch.without(0)
    assert lists(left) == [[token for token in document if token != 0] for document in documents]
    assert left.offsets.dtype == left.ids.dtype == torch.int32
    assert left.labels is batch.labels
    assert batch.without(None) is batch
    assert batch.without(77) is batch


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, st.sampled_from(["sum", "mean", "max"]), st.sampled_from([torch.float32, torch.float64]))
def test_reduce_and_its_gradient_against_a_loop(documents, mode, dtype):
    batch = make(documents)
    torch.manual_seed(0)
    values = torch.randn(len(batch.ids), 3, dtype=dtype, requires_grad=True)
    weights = torch.randn(len(documents), 3, dtype=dtype)
    rows = []
    for start, end in pairwise(batch.offsets.tolist()):
        part = values[start:end]
        if start == end:
            rows.append(torch.zeros(3, dtype=dtype))
        else:
            rows.append(part.amax(0) if mode == "max" else getattr(part, mode)(0))
    reduced = batch.reduce(values, mode)
    assert reduced.dtype == dtype
    expected = torch.stack(rows) if rows else torch.zeros(0, 3, dtype=dtype)
    torch.testing.assert_close(reduced, expected)
    if len(batch.ids):
        ours = torch.autograd.grad((reduced * weights).sum(), values)
        torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), values))


def test_a_maximum_below_zero_is_kept():
    assert make([[1], []]).reduce(torch.tensor([[-2.0]]), "max").tolist() == [[-2.0], [0.0]]


def test_a_long_mean_in_bfloat16_keeps_its_digits():
    values = torch.full((3000, 1), 1.5, dtype=torch.bfloat16)
    mean = make([[1] * 3000]).reduce(values, "mean")
    assert mean.item() == 1.5
    assert mean.dtype == torch.bfloat16  # a linear layer in bfloat16 takes nothing else


def test_reduce_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="expected sum, mean or max"):
        make([[1]]).reduce(torch.zeros(1, 1), "median")  # type: ignore[arg-type]


def test_moves_as_one_thing():
    batch = make([[1, 2], []], labels=torch.tensor([0, 1]), rows=torch.tensor([5, 6]))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, TokenBatch)
    assert {field.device.type for field in (moved.ids, moved.offsets, moved.labels, moved.rows)} == {"meta"}
    bare = move_data_to_device(make([[1, 2], []]), torch.device("meta"))
    assert bare.labels is None
    assert bare.rows is None


def test_a_loader_hands_it_on_unchanged():
    class Source(torch.utils.data.Dataset):
        def __getitems__(self, positions):
            return make([[position] * position for position in positions], rows=torch.tensor(positions))

        def __len__(self):
            return 4

    loader = torch.utils.data.DataLoader(Source(), batch_size=2, collate_fn=lambda batch: batch)
    assert [lists(batch) for batch in loader] == [[[], [1]], [[2, 2], [3, 3, 3]]]
