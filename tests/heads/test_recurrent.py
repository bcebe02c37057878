"""Recurrent heads against nn.LSTMCell, nn.GRUCell and nn.RNNCell run over one document at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from head_reference import LENGTHS, D, V, assert_same, make_batch
from reader_reference import CELLS, plain_recurrent, weights_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads import recurrent
from textbed.heads.reading import windows
from textbed.heads.recurrent import Packed, Recurrent, pack, read_packed


def make_head(cell="lstm", **settings):
    torch.manual_seed(0)
    return Recurrent(D, cell, 4, **settings)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bidirectional": True, "readout": "max"},
        {"layers": 2, "readout": "mean", "residual": True},
        {"layers": 3, "bidirectional": True, "layer_norm": True, "residual": True, "readout": "attention"},
        {"layers": 2, "bidirectional": True, "truncate": 3, "readout": "mean"},
        {"truncate": 4},
        {"window": 4, "stride": 3, "bidirectional": True},
        {"window": 3, "window_pooling": "max", "readout": "attention", "layers": 2, "layer_norm": True},
    ],
    ids=str,
)
def test_values_and_gradients_against_cells(cell, settings):
    head = make_head(cell, **settings)
    assert isinstance(head.layers[0], {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN))
    assert head.out_dim == (8 if settings.get("bidirectional") else 4)
    assert_same(head, plain_recurrent(head))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("settings", [{"bidirectional": True}, {"layers": 2, "window": 4, "stride": 2}])
def test_evaluation_gives_what_training_does(cell, settings):
    """Through PyTorch's own kernels, instead of through scan."""
    head, table, batch = make_head(cell, **settings), Table(V, D, padding_idx=0), make_batch(LENGTHS)
    trained = head(batch, table)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(head(batch, table), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"window": 4, "stride": 3, "bidirectional": True}])
def test_words_that_are_looked_up_once_get_the_gradients_of_all(settings):
    """A table's rows stand for all their tokens; weights on the tokens make a row for each."""
    head, table, batch = make_head(**settings).double(), Table(V, D, scale=1.0).double(), make_batch(LENGTHS)
    assert len(batch.ids.unique()) < len(batch.ids)
    each = TokenBatch(batch.ids, batch.offsets, weights=torch.ones(len(batch.ids), dtype=torch.double))
    parameters = [*head.parameters(), *table.parameters()]
    results = []
    for given in (batch, each):
        out = head(given, table)
        factors = torch.linspace(-1, 1, out.numel(), dtype=torch.double).view_as(out)
        results.append((out, *torch.autograd.grad((out * factors).sum(), parameters)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_rows_that_are_scaled_by_frequency_are_looked_up_for_every_token():
    table = Table(V, D, scale_grad_by_freq=True, scale=1.0)
    batch = TokenBatch(torch.tensor([3, 3, 4], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32))
    head = make_head()
    plain_table = Table(V, D, vectors=table.table.weight.detach())
    for each in (table, plain_table):
        head(batch, each).sum().backward()
    expected = plain_table.table.weight.grad.clone()
    expected[3] /= 2
    torch.testing.assert_close(table.table.weight.grad, expected)


# Packing


@pytest.mark.parametrize("lengths", [[3], [1, 1, 1], [2, 5, 1, 5], list(range(1, 40))])
def test_packing_is_torchs_own(lengths):
    batch = make_batch(lengths)
    ids_BL, _ = batch.padded(0)
    expected = pack_padded_sequence(ids_BL, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    slots, batch_sizes = pack(batch)
    assert torch.equal(torch.empty_like(batch.ids).scatter_(0, slots, batch.ids), expected.data)
    assert torch.equal(batch_sizes, expected.batch_sizes)
    order = Packed.of(batch)
    assert torch.equal(batch.ids[order.tokens], expected.data)
    # taken in the order of flip, the tokens lie as those of the documents read backwards
    texts = batch.ids.split(lengths)
    turned = TokenBatch(torch.cat([text.flip(0) for text in texts]), batch.offsets)
    assert torch.equal(expected.data[order.flip], turned.ids[Packed.of(turned).tokens])


def test_packing_leaves_empty_documents_out():
    slots, batch_sizes = pack(make_batch([0, 2, 0, 3]))
    assert slots.tolist() == [1, 3, 0, 2, 4]
    assert batch_sizes.tolist() == [2, 2, 1]


@pytest.mark.parametrize("readout", ["last", "mean", "max", "attention"])
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


# Dropout


def test_dropout_is_between_layers_and_in_training_only():
    table, batch = Table(V, D, padding_idx=0), make_batch(LENGTHS)
    head = make_head("gru", layers=2, dropout=0.5)
    assert not torch.equal(head(batch, table), head(batch, table))
    head.eval()
    assert torch.equal(head(batch, table), head(batch, table))
    single = make_head("gru", dropout=0.5)
    assert torch.equal(single(batch, table), single(batch, table))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("gradient", [True, False])
def test_weight_drop_is_one_mask_on_the_weights_between_states(bidirectional, gradient):
    """By the same random numbers drawn here, and by a head whose weights are the dropped ones."""
    head = make_head("lstm", bidirectional=bidirectional, layers=2, weight_drop=0.5)
    table, batch = Table(V, D, padding_idx=0, scale=1.0), make_batch(LENGTHS)
    with torch.set_grad_enabled(gradient):
        torch.manual_seed(3)
        dropped = head(batch, table)
        again = head(batch, table)
        torch.manual_seed(3)
        other = make_head("lstm", bidirectional=bidirectional, layers=2)
        other.load_state_dict(head.state_dict())
        torch.manual_seed(3)
        for layer in other.layers:
            for suffix in ["", "_reverse"][: head.directions]:
                weight = getattr(layer, f"weight_hh_l0{suffix}")
                weight.data = F.dropout(weight.data, 0.5)
                assert 0 < (weight == 0).float().mean() < 1
        torch.testing.assert_close(dropped, other(batch, table), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(dropped, again)
        head.eval()
        before = head(batch, table)
        assert torch.equal(before, head(batch, table))
    if gradient:
        (grad,) = torch.autograd.grad(dropped.sum(), head.layers[0].weight_hh_l0)
        torch.manual_seed(3)
        mask = F.dropout(torch.ones(grad.shape), 0.5)
        assert not grad[mask == 0].any()
        assert grad[mask != 0].any()


@pytest.mark.parametrize("variational", [False, True])
def test_variational_dropout_drops_the_same_columns_all_through_a_document(variational):
    head = Recurrent(50, "gru", 3, dropout=0.4, variational=variational)
    batch = make_batch([40, 0, 30])
    tokens = torch.randperm(70)
    dropped = torch.empty(70, 50)
    dropped[tokens] = head._drop(torch.full((70, 50), 3.0), 0.4, batch, tokens)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 5])
    first, second = dropped[:40], dropped[40:]
    assert not torch.equal(first[0], second[0])
    for document in (first, second):
        assert bool((document == document[0]).all()) == variational
        # 50 columns, or 1,500 values and more: four standard deviations
        share = (document == 0).float().mean()
        assert share == pytest.approx(0.4, abs=0.28 if variational else 0.06)


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("settings", [{}, {"layer_norm": True, "residual": True}, {"window": 3}], ids=str)
def test_dropout_between_layers_by_the_same_random_numbers(settings, variational):
    """Of what each layer but the first reads, after its norm; what is added to the result is not dropped.

    A document's mask holds in all its windows.
    """
    head = make_head("gru", layers=3, dropout=0.4, variational=variational, readout="max", **settings)
    table, batch = Table(V, D, padding_idx=0, scale=1.0), make_batch([5, 0, 2])
    torch.manual_seed(3)
    ours = head(batch, table)
    torch.manual_seed(3)
    pieces = windows(batch, head.window, head.window).texts if head.window else batch
    order = Packed.of(pieces)
    states = None
    for number, layer in enumerate(head.layers):
        values = table(batch) if states is None else states
        if number:
            values = head.norms[number - 1](states) if settings.get("layer_norm") else states
            if variational:
                values = values * F.dropout(torch.ones(3, 4), 0.4)[batch.documents]
            else:
                mask = torch.empty_like(values)
                mask[order.tokens] = F.dropout(torch.ones_like(values), 0.4)
                values = values * mask
        parts = values.split(pieces.lengths.tolist())
        read = torch.cat([layer(part)[0] for part in parts if len(part)])
        states = states + read if number and settings.get("residual") else read
    tops = [part.amax(0) for part in states.split(pieces.lengths.tolist()) if len(part)]
    first = (tops[0] + tops[1]) / 2 if head.window else tops[0]
    torch.testing.assert_close(ours, torch.stack([first, torch.zeros(4), tops[-1]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variational", [False, True])
def test_input_dropout_by_the_same_random_numbers(variational):
    head = make_head("gru", input_dropout=0.3, variational=variational)
    table, batch = Table(V, D, padding_idx=0, scale=1.0), make_batch([3, 0, 2])
    torch.manual_seed(3)
    ours = head(batch, table)
    torch.manual_seed(3)
    tokens = Packed.of(batch).tokens
    rows = table(batch)
    if variational:
        dropped = rows * F.dropout(torch.ones(3, D), 0.3)[batch.documents]
    else:
        dropped = torch.empty_like(rows).index_copy(0, tokens, F.dropout(rows[tokens], 0.3))
    assert 0 < (dropped == 0).float().mean() < 1
    expected = [plain_recurrent(head)(dropped[:3]), torch.zeros(4), plain_recurrent(head)(dropped[3:])]
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-5, atol=1e-6)
    head.eval()
    torch.testing.assert_close(head(batch, table)[0], plain_recurrent(head)(rows[:3]), rtol=1e-5, atol=1e-6)


# Long documents


def test_windows_by_hand():
    batch = make_batch([0, 1, 5, 4, 6, 0])
    cut = windows(batch, 4, 2)
    assert cut.of_documents.lengths.tolist() == [0, 1, 2, 1, 2, 0]
    pieces = [part.tolist() for part in cut.tokens.split(cut.texts.lengths.tolist())]
    assert pieces == [[0], [1, 2, 3, 4], [3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [12, 13, 14, 15]]
    assert torch.equal(cut.texts.ids, batch.ids[cut.tokens])
    side_by_side = windows(batch, 3, 3)
    assert side_by_side.tokens.tolist() == list(range(16))
    assert side_by_side.texts.lengths.tolist() == [1, 3, 2, 3, 1, 3, 3]


def test_truncation_changes_no_value_and_keeps_gradients_between_cuts():
    head, table = make_head(readout="mean").double(), Table(V, D, scale=1.0).double()
    batch = TokenBatch(torch.arange(1, 8, dtype=torch.int32), torch.tensor([0, 7], dtype=torch.int32))
    cut = make_head(readout="mean", truncate=3).double()
    assert torch.equal(head(batch, table), cut(batch, table))
    last = Recurrent(D, "lstm", 4, truncate=3).double()
    (grad,) = torch.autograd.grad(last(batch, table).sum(), table.table.weight)
    assert [bool(row.any()) for row in grad[1:8]] == [False] * 6 + [
        True
    ]  # 7 tokens: cuts before the 4th and 7th


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cut", [None, 1, 3, 20])
def test_librarys_kernels_train_alike(cell, cut):
    """What CUDA takes in training, run here: pieces of the batch with the states between them cut loose."""
    torch.manual_seed(0)
    head, batch = Recurrent(D, cell, 4, bidirectional=True).double(), make_batch(LENGTHS)
    order = Packed.of(batch)
    weights = [list(weights_of(head.layers[0], direction).values()) for direction in (0, 1)]
    values = torch.randn(len(batch.ids), D, dtype=torch.double, requires_grad=True)
    places = torch.arange(len(batch.ids)).flip(0)
    ours = read_packed(cell, values, places, order, weights, cut=cut)
    theirs = recurrent._by_library(cell, values[places], order, weights, cut)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    factors = torch.randn_like(ours)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * factors).sum(), [values, *head.parameters()]) for out in (ours, theirs)),
        rtol=1e-9,
        atol=1e-11,
    )


# Frozen, counted, refused


def test_a_frozen_head_is_random_and_hands_gradients_on():
    torch.manual_seed(0)
    frozen = Recurrent(D, "lstm", 16, bidirectional=True, readout="max", trainable=False)
    trained = Recurrent(D, "lstm", 16, bidirectional=True, readout="max")
    trained.load_state_dict(frozen.state_dict())
    for parameter in frozen.parameters():
        # a thousand weights reach from end to end of what the paper draws them from
        assert parameter.abs().max() <= 16**-0.5
        assert parameter.numel() < 300 or parameter.min() < -0.24 < 0.24 < parameter.max()
    table, batch = Table(V, D, scale=1.0), make_batch(LENGTHS)
    grads = []
    for head in (frozen, trained):
        out = head(batch, table)
        grads.append(torch.autograd.grad(out.square().sum(), table.table.weight)[0])
    torch.testing.assert_close(*grads)
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert not frozen(batch, Table(V, D, trainable=False)).requires_grad


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({}, 0),
        ({"bidirectional": True, "layers": 2, "readout": "mean"}, 14 * 8),
        # the weighted sum, and the softmax's maximum and sum; its scores are products of matrices
        ({"readout": "attention"}, 14 * 2),
        ({"window": 4, "stride": 3, "readout": "max"}, 16 * 4 + 5 * 4),
    ],
)
def test_multiply_adds_are_those_of_the_cells_and_the_reductions(cell, settings, extra):
    head = make_head(cell, **settings)
    with FlopCounterMode(display=False) as flops:
        for length in (4, 1, 9):
            plain_recurrent(head)(torch.randn(length, D))
    counted = flops.get_total_flops() / 2
    assert head.multiply_adds([4, 1, 9]) == counted + extra


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cell": "gur"},
            r"head.cell is 'gur'; expected one of lstm, gru, rnn_tanh, rnn_relu. Did you mean 'gru'",
        ),
        ({"readout": "final"}, r"head.readout is 'final'; expected one of last, mean, max, attention"),
        ({"hidden": 0}, r"head.hidden is 0; expected at least 1"),
        ({"layers": 0}, r"head.layers is 0; expected at least 1"),
        ({"dropout": 1.0}, r"head.dropout is 1.0"),
        ({"weight_drop": -0.1}, r"head.weight_drop is -0.1"),
        ({"truncate": 0}, r"head.truncate is 0; expected at least 1"),
        (
            {"stride": 3},
            r"head.stride is 3, but head.window is None; expected a window of at least the stride",
        ),
        ({"window": 2, "stride": 3}, r"head.stride is 3, but head.window is 2"),
        ({"window_pooling": "sum"}, r"head.window_pooling is 'sum'; expected one of mean, max"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Recurrent(D, **{"cell": "gru", "hidden": 4, **settings})
