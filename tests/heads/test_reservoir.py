"""Echo state networks against a loop over one document's tokens."""

from __future__ import annotations

import pytest
import torch
from head_reference import LENGTHS, D, V, assert_same, make_batch
from reader_reference import FUNCTIONS, plain_echo_state

from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads import reservoir
from textbed.heads.reservoir import EchoState, spectral_radius

SETTINGS = [
    {"readout": "max", "bidirectional": True},
    {"layers": 2, "window": 4},
    {"truncate": 3, "readout": "mean"},
]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("leak", [1.0, 0.4])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_values_and_what_the_table_gets(activation, leak, settings):
    torch.manual_seed(0)
    head = EchoState(D, 6, activation=activation, leak=leak, input_scale=1.0, **settings)
    assert_same(head, plain_echo_state(head))


def test_evaluation_gives_what_training_does():
    torch.manual_seed(0)
    table, batch = Table(V, D), make_batch(LENGTHS)
    for activation in FUNCTIONS:
        head = EchoState(D, 6, activation=activation, bidirectional=True)
        trained = head(batch, table)
        with torch.no_grad():
            torch.testing.assert_close(head(batch, table), trained)


def test_what_is_drawn():
    torch.manual_seed(0)
    head = EchoState(50, 200, bidirectional=True, spectral_radius=0.7, sparsity=0.9, input_scale=0.2)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    for from_input, from_state in (head.layers[0][:2], head.layers[0][2:]):
        assert 0.19 < from_input.max() <= 0.2
        assert -0.2 <= from_input.min() < -0.19
        assert torch.linalg.eigvals(from_state).abs().max() == pytest.approx(0.7, rel=1e-4)
        assert (from_state == 0).float().mean() == pytest.approx(0.9, abs=0.01)
    assert not torch.equal(head.layers[0][1], head.layers[0][3])


@pytest.mark.parametrize("size", [1, 7, 300])
def test_spectral_radius(size, monkeypatch):
    torch.manual_seed(0)
    matrix = torch.randn(size, size) * (torch.rand(size, size) < 0.5)
    expected = float(torch.linalg.eigvals(matrix.double()).abs().max())
    assert spectral_radius(matrix) == pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr(reservoir, "_EXACT", 0)
    assert spectral_radius(matrix) == pytest.approx(expected, rel=1e-3)


def test_finding_a_radius_draws_nothing_of_what_follows():
    matrix = torch.randn(300, 300)
    before = torch.get_rng_state()
    spectral_radius(matrix)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_matrix_that_is_reached_in_a_few_steps():
    """Of rank 3 in 300 rows, where Arnoldi's iteration has nowhere to go on."""
    torch.manual_seed(0)
    matrix = torch.zeros(300, 300)
    matrix[0, 0], matrix[1, 1], matrix[2, 2] = 0.3, -0.8, 0.5
    assert spectral_radius(matrix) == pytest.approx(0.8, rel=1e-4)
    assert spectral_radius(torch.zeros(300, 300)) == 0
    assert EchoState(D, 1, sparsity=0.999).layers[0][1].isfinite().all()


def test_multiply_adds():
    head = EchoState(D, 4, bidirectional=True, readout="max")
    assert head.multiply_adds([2, 3]) == 5 * (2 * 4 * (D + 4) + 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spectral_radius": 0}, r"head.spectral_radius is 0; expected a number above 0"),
        ({"input_scale": -1}, r"head.input_scale is -1"),
        ({"sparsity": 1.0}, r"head.sparsity is 1.0"),
        ({"leak": 0}, r"head.leak is 0; expected a share above 0 and up to 1"),
        ({"activation": "sigmoid"}, r"head.activation is 'sigmoid'; expected one of none, relu, tanh"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        EchoState(D, 4, **settings)
