"""Recurrent heads against nn.LSTM and nn.GRU run over one unpadded document at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.recurrent import Recurrent, pack

V, D = 30, 5
LENGTHS = [4, 0, 1, 9, 9, 2, 0]


def make_batch(lengths: list[int]) -> TokenBatch:
    torch.manual_seed(1)
    ids = torch.randint(1, V, (sum(lengths),), dtype=torch.int32)
    return TokenBatch(ids, torch.tensor([0, *lengths]).cumsum(0).int())


def one_by_one(head: Recurrent, batch: TokenBatch, table: Table) -> torch.Tensor:
    """The same by a loop: no packing, no sorting, no neighbours."""
    width = head.out_dim // head.directions
    rows = []
    for start, end in itertools.pairwise(batch.offsets.tolist()):
        if start == end:
            rows.append(torch.zeros(head.out_dim))
            continue
        states, _ = head.rnn(table.table(batch.ids[start:end]))
        if head.readout == "last":
            parts = [states[-1, :width]] + ([states[0, width:]] if head.directions == 2 else [])
            rows.append(torch.cat(parts))
        else:
            rows.append(states.mean(0) if head.readout == "mean" else states.amax(0))
    return torch.stack(rows)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("readout", ["last", "mean", "max"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (3, True)])
def test_values_and_gradients_against_one_document_at_a_time(cell, readout, layers, bidirectional):
    torch.manual_seed(0)
    head = Recurrent(D, cell, 7, layers=layers, bidirectional=bidirectional, readout=readout)
    assert isinstance(head.rnn, nn.LSTM if cell == "lstm" else nn.GRU)
    assert head.out_dim == (14 if bidirectional else 7)
    table = Table(V, D, padding_idx=0, scale=1.0)
    batch = make_batch(LENGTHS)
    ours, expected = head(batch, table), one_by_one(head, batch, table)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # evaluation goes through PyTorch's own packed layers, training through scan
        torch.testing.assert_close(head(batch, table), expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(len(LENGTHS), head.out_dim)
    parameters = [*head.parameters(), *table.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("lengths", [[3], [1, 1, 1], [2, 5, 1, 5], list(range(1, 40))])
def test_packing_is_torchs_own(lengths):
    batch = make_batch(lengths)
    ids_BL, _ = batch.padded(0)
    expected = pack_padded_sequence(ids_BL, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    slots, batch_sizes, documents = pack(batch)
    assert torch.equal(torch.empty_like(batch.ids).scatter_(0, slots, batch.ids), expected.data)
    assert torch.equal(batch_sizes, expected.batch_sizes)
    assert [lengths[i] for i in documents.tolist()] == sorted(lengths, reverse=True)


def test_packing_leaves_empty_documents_out():
    slots, batch_sizes, documents = pack(make_batch([0, 2, 0, 3]))
    assert slots.tolist() == [1, 3, 0, 2, 4]
    assert batch_sizes.tolist() == [2, 2, 1]
    assert documents.tolist() == [3, 1]


def test_dropout_is_between_layers_and_in_training_only():
    torch.manual_seed(0)
    table, batch = Table(V, D, padding_idx=0), make_batch(LENGTHS)
    head = Recurrent(D, "gru", 7, layers=2, dropout=0.5)
    assert not torch.equal(head(batch, table), head(batch, table))
    head.eval()
    assert torch.equal(head(batch, table), head(batch, table))
    single = Recurrent(D, "gru", 7, dropout=0.5)
    assert torch.equal(single(batch, table), single(batch, table))


@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_no_tensor_of_padded_size_is_made(readout):
    """Nothing is larger than the gates of all tokens, (N, 3 x hidden), however long one document is."""
    lengths, width, hidden = [1] * 200 + [100], 8, 8
    batch, table = make_batch(lengths), Table(V, width, padding_idx=0)
    head = Recurrent(width, "gru", hidden, readout=readout)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    with Largest() as largest:
        head(batch, table).sum().backward()
    assert largest.numel == sum(lengths) * 3 * hidden
    assert largest.numel < len(lengths) * max(lengths) * width / 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "gur"}, r"head.cell is 'gur'; expected one of lstm, gru. Did you mean 'gru'\?"),
        ({"readout": "final"}, r"head.readout is 'final'; expected one of last, mean, max"),
        ({"hidden": 0}, r"head.hidden is 0; expected at least 1"),
        ({"layers": 0}, r"head.layers is 0; expected at least 1"),
        ({"dropout": 1.0}, r"head.dropout is 1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Recurrent(D, **{"cell": "gru", "hidden": 4, **settings})
