"""Minimal recurrent heads against the paper's sequential form, one token after the other."""

from __future__ import annotations

import pytest
import torch
from head_reference import D, V, assert_same, make_batch
from reader_reference import plain_minimal
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.minimal import MinRecurrent


@pytest.mark.parametrize("cell", ["mingru", "minlstm"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bidirectional": True, "readout": "max", "candidate": "linear"},
        {"layers": 3, "bidirectional": True, "layer_norm": True, "residual": True, "readout": "attention"},
        {"layers": 2, "bidirectional": True, "truncate": 3, "readout": "mean"},
        {"window": 4, "stride": 3, "bidirectional": True, "window_pooling": "max"},
    ],
    ids=str,
)
def test_values_and_gradients_against_the_sequential_form(cell, settings):
    torch.manual_seed(0)
    head = MinRecurrent(D, cell, 4, **settings)
    assert_same(head, plain_minimal(head), [4, 0, 1, 9, 23, 2, 0])


def test_one_layer_is_smaller_than_a_gru():
    sizes = [sum(p.numel() for p in MinRecurrent(D, cell, 4).parameters()) for cell in ("mingru", "minlstm")]
    assert sizes == [2 * 4 * (D + 1), 3 * 4 * (D + 1)]


@pytest.mark.parametrize("cell", ["mingru", "minlstm"])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_gates_that_are_open_or_shut_keep_finite_gradients(cell, size):
    """Sigmoids of -100 vanish in float32, and their quotient is what minLSTM's definition asks for."""
    torch.manual_seed(0)
    head, table, batch = MinRecurrent(D, cell, 4), Table(V, D, scale=1.0), make_batch([2500, 3])
    with torch.no_grad():
        head.layers[0].weight.mul_(size)
        head.layers[0].bias.uniform_(-size, size)
    out = head(batch, table)
    out.sum().backward()
    for part in (out, head.layers[0].weight.grad, table.table.weight.grad):
        assert part.isfinite().all()
    exact = head.double()(batch, table.double())
    torch.testing.assert_close(out.double(), exact, rtol=2e-5, atol=2e-5)


def test_in_bfloat16_the_state_is_not():
    """A state that keeps 299 of 300 parts at each token stands still in bfloat16."""
    torch.manual_seed(0)
    head = MinRecurrent(D, "mingru", 4).bfloat16()
    nn.init.zeros_(head.layers[0].weight)
    with torch.no_grad():
        head.layers[0].bias[:4] = -5.7  # keeps 0.9967
        head.layers[0].bias[4:] = 1.5  # adds towards 2
    out = head(make_batch([2000]), Table(V, D).bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.full((1, 4), 2.0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "layers": 2}])
def test_multiply_adds_are_those_of_the_maps(settings):
    head = MinRecurrent(D, "minlstm", 4, **settings)
    with FlopCounterMode(display=False) as flops:
        values = torch.randn(14, D)
        for layer in head.layers:
            values = torch.zeros(14, head.out_dim) + layer(values).sum()
    assert head.multiply_adds([4, 1, 9]) == flops.get_total_flops() / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "gru"}, r"head.cell is 'gru'; expected one of mingru, minlstm. Did you mean 'mingru'"),
        ({"candidate": "log"}, r"head.candidate is 'log'; expected one of positive, linear"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        MinRecurrent(D, **{"cell": "mingru", "hidden": 4, **settings})
