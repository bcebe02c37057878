"""The convolutional head against nn.Conv1d over one document at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from head_reference import LENGTHS, D, V, assert_same, make_batch
from plain_heads import plain_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.borders import with_borders
from textbed.heads.convolutional import Convolutional


@pytest.mark.parametrize("border", [0, 1, 3])
def test_borders(border):
    batch = make_batch([2, 0, 1, 3])
    values = torch.arange(1, 7.0).unsqueeze(1)
    rows, places = with_borders(values, batch, border)
    zeros = [0.0] * border
    expected = [*zeros, 1, 2, *zeros, *zeros, 3, *zeros, 4, 5, 6, *zeros]
    assert rows.squeeze(1).tolist() == expected
    assert torch.equal(rows[places], values)


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [2, 2], [0, 30]], ids=str)
@pytest.mark.parametrize("widths", [[3, 4, 5], [1], [2, 1]], ids=str)
def test_against_one_document_at_a_time(widths, lengths):
    torch.manual_seed(0)
    head = Convolutional(D, widths, 4)
    assert head.out_dim == 4 * len(widths)
    assert_same(head, plain_of(head), lengths)


@pytest.mark.parametrize("width", [1, 3])
def test_nothing_but_empty_documents(width):
    head, table = Convolutional(D, [width], 4), Table(V, D)
    values = head(make_batch([0, 0]), table)
    assert torch.equal(values, torch.zeros(2, 4))
    values.sum().backward()
    for parameter in [*head.parameters(), table.table.weight]:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_a_document_is_read_as_by_kim_where_it_is_the_longest():
    """Zeros of the widest window on both sides, which then gives windows of zeros alone: the bias."""
    torch.manual_seed(0)
    head, table = Convolutional(D, [2, 3], 50), Table(V, D, scale=1.0)
    batch = make_batch([6])
    rows = F.pad(table(batch).t(), (2, 2)).unsqueeze(0)
    theirs = torch.cat(
        [
            F.conv1d(rows, weight.permute(2, 1, 0), bias).relu().amax(2)
            for weight, bias in zip(head.weights, head.bias.split(50), strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(torch.maximum(head(batch, table), head.bias.relu()), theirs)


def test_starts_as_nn_conv1d_does():
    torch.manual_seed(0)
    head = Convolutional(100, [4], 500)
    ours, theirs = head.weights[0], torch.nn.Conv1d(100, 500, 4).weight
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.01)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert head.bias.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


def test_a_frozen_table_gets_no_gradient_and_costs_none():
    head, batch = Convolutional(D, [3], 4), make_batch(LENGTHS)
    head(batch, Table(V, D, vectors=torch.randn(V, D), trainable=False)).sum().backward()
    assert head.weights[0].grad.any()
    table = Table(V, D, scale=1.0)
    head.requires_grad_(False)
    head(batch, table).sum().backward()
    assert table.table.weight.grad.any()


def test_windows_are_not_laid_out():
    """Nothing is larger than the rows, or the maps' values at each window, where windows would be width times
    as large; and a long document among short ones makes nothing larger."""
    lengths, dim, maps = [1] * 200 + [1000], 16, 8
    batch, table = make_batch(lengths), Table(V, dim, padding_idx=0)
    head = Convolutional(dim, [5], maps)

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
    assert largest.numel == (sum(lengths) + (len(lengths) + 1) * 4) * dim


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    torch.manual_seed(0)
    # One window a document: of several, rounding may choose another, with another gradient.
    head, table, batch = Convolutional(D, [1], 4), Table(V, D, scale=1.0), make_batch([1, 0, 1, 1])
    expected = head(batch, table)
    expected.sum().backward()
    gradient = head.weights[0].grad.clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(batch, table), expected)
    head.zero_grad()
    halves = head.to(dtype)(batch, table.to(dtype))
    assert halves.dtype == dtype
    halves.sum().backward()
    torch.testing.assert_close(halves.float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(head.weights[0].grad.float(), gradient, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("lengths", [[9], [4, 1, 6]], ids=str)
def test_multiply_adds_are_torchs_and_the_maxima(lengths):
    head = Convolutional(D, [3, 1], 4)
    with FlopCounterMode(display=False) as flops:
        head(make_batch(lengths), Table(V, D))
    windows = sum(length + 2 + length for length in lengths)
    assert head.multiply_adds(lengths) == flops.get_total_flops() / 2 + 4 * windows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": []}, r"head.widths is \[\]; expected one number or more"),
        ({"widths": [3, 0]}, r"head.widths is \[3, 0\]; expected one number or more, each at least 1"),
        ({"maps": 0}, r"head.maps is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Convolutional(D, **{"widths": [3], "maps": 4, **settings})
