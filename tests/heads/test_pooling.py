"""Pooling against values taken by hand, and against plain loops over one document at a time."""

from __future__ import annotations

import math

import pytest
import torch
from head_reference import D, assert_same, make_batch
from plain_heads import plain_of
from torch.utils.flop_counter import FlopCounterMode

from textbed.batch import TokenBatch
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.pooling import Hierarchical, LogSumExp, Pooling, PowerMean, RandomProjection

ROWS = torch.tensor([[0.0, 0.0], [1.0, -2.0], [4.0, 8.0], [-3.0, -1.0]])
# Documents 1 2 | (empty) | 3 3 | 1 2 3
BATCH = TokenBatch(
    torch.tensor([1, 2, 3, 3, 1, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 4, 7], dtype=torch.int32)
)


def by_hand(head):
    return head(BATCH, Table(4, vectors=ROWS, padding_idx=0))


def one_document(*values):
    """A batch of one document of one-column rows, and its front end."""
    table = Table(len(values), vectors=torch.tensor(values, dtype=torch.float).unsqueeze(1))
    size = len(values)
    return TokenBatch(
        torch.arange(size, dtype=torch.int32), torch.tensor([0, size], dtype=torch.int32)
    ), table


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["mean"], [[2.5, 3.0], [0, 0], [-3, -1], [2 / 3, 5 / 3]]),
        (["max"], [[4, 8], [0, 0], [-3, -1], [4, 8]]),
        (["min"], [[1, -2], [0, 0], [-3, -1], [-3, -2]]),
        (["sum"], [[5, 6], [0, 0], [-6, -2], [2, 5]]),
        (["max", "mean"], [[4, 8, 2.5, 3], [0] * 4, [-3, -1, -3, -1], [4, 8, 2 / 3, 5 / 3]]),
        (["min", "mean"], [[1, -2, 2.5, 3], [0] * 4, [-3, -1, -3, -1], [-3, -2, 2 / 3, 5 / 3]]),
    ],
)
def test_by_hand(modes, expected):
    head = Pooling(2, modes)
    assert head.out_dim == 2 * len(modes)
    assert not list(head.parameters())
    torch.testing.assert_close(by_hand(head), torch.tensor(expected, dtype=torch.float))


def test_pooling_against_one_document_at_a_time():
    head = Pooling(D, ["sum", "min", "max", "mean"])
    assert_same(head, plain_of(head))


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9, 20])
def test_hierarchical_against_one_document_at_a_time(window):
    head = Hierarchical(D, window)
    assert_same(head, plain_of(head))


def test_hierarchical_lies_between_maximum_and_mean():
    torch.testing.assert_close(by_hand(Hierarchical(2, 1)), by_hand(Pooling(2, ["max"])))
    torch.testing.assert_close(by_hand(Hierarchical(2, 3)), by_hand(Pooling(2, ["mean"])))


def test_power_means_by_hand():
    batch, table = one_document(1.0, 2.0, -3.0)
    powers = [1, 2, 3, 1.5, math.inf, -math.inf]
    fractional = (1 + 2**1.5 - 3**1.5) / 3
    expected = [0, math.sqrt(14 / 3), -((18 / 3) ** (1 / 3)), -(abs(fractional) ** (1 / 1.5)), 2, -3]
    torch.testing.assert_close(
        PowerMean(1, powers)(batch, table), torch.tensor([expected]), rtol=1e-6, atol=1e-6
    )


def test_power_means_grow_with_the_power_from_mean_to_maximum():
    batch, table = one_document(0.01, 0.02, 0.05)  # 0.01 to the 40th is nothing in float32
    values = PowerMean(1, [1, 2, 3, 7.5, 40, math.inf])(batch, table).squeeze(0)
    assert (values.diff() > 0).all()
    assert values[-2].item() == pytest.approx(0.05 * (1 / 3) ** (1 / 40), rel=1e-4)


@pytest.mark.parametrize("power", [2, 3, 4, 1.5, 2.5])
def test_power_means_against_one_document_at_a_time(power):
    head = PowerMean(D, [power])
    assert_same(head, plain_of(head))


@pytest.mark.parametrize("values", [[1.0, -1.0], [0.0, 0.0], [1e-20, -1e-30]])
@pytest.mark.parametrize("power", [2, 3, 1.5])
def test_the_gradient_of_a_root_at_zero_is_bounded(values, power):
    batch, table = one_document(*values)
    PowerMean(1, [power])(batch, table).sum().backward()
    assert table.table.weight.grad.isfinite().all()
    assert table.table.weight.grad.abs().max() <= 2e4


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_log_sum_exp_against_one_document_at_a_time(temperature):
    head = LogSumExp(D, temperature)
    assert_same(head, plain_of(head))


def test_log_sum_exp_lies_between_mean_and_maximum():
    torch.testing.assert_close(by_hand(LogSumExp(2, 1e-3)), by_hand(Pooling(2, ["max"])), rtol=0, atol=2e-3)
    torch.testing.assert_close(by_hand(LogSumExp(2, 1e4)), by_hand(Pooling(2, ["mean"])), rtol=0, atol=2e-3)
    batch, table = one_document(1e4, 0.0, -1e4)  # exp(1e4) is infinite
    assert LogSumExp(1, 1.0)(batch, table).item() == pytest.approx(1e4 - math.log(3))


def test_random_projection_against_one_document_at_a_time(monkeypatch):
    monkeypatch.setattr("textbed.heads.pooling._CHUNK", 8)
    head = RandomProjection(D, 20)
    assert_same(head, plain_of(head))


def test_a_random_projection_is_uniform_and_never_moves():
    torch.manual_seed(0)
    head = RandomProjection(100, 4096)
    assert head.weight.abs().max() <= 0.1
    assert head.weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
    assert [parameter.requires_grad for parameter in head.parameters()] == [False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_are_taken_in_float32(dtype):
    """A thousand times 1.5 is 1,500; added up in bfloat16 it stops at 512, where 1.5 is half a step."""
    batch, table = one_document(*[1.5] * 1000)
    table = table.to(dtype)
    for head in (PowerMean(1, [1, 2, 3]), LogSumExp(1, 1.0), Hierarchical(1, 1000)):
        values = head(batch, table)
        assert values.dtype == dtype
        torch.testing.assert_close(values.float(), torch.full_like(values, 1.5).float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("head", [PowerMean(1, [2, 3, 7]), LogSumExp(1, 0.1)], ids=["power", "logsumexp"])
def test_powers_of_rows_in_half_precision_are_taken_in_float32(head):
    """What is left of the rows' own rounding is that of the result, to half a step of bfloat16's."""
    batch, table = one_document(*torch.linspace(0.1, 1, 100).bfloat16().tolist())
    exact = head(batch, table)
    values = head(batch, table.bfloat16())
    assert torch.equal(values, exact.bfloat16())


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (Pooling(D, ["mean", "max"]), 7 * 2 * D),
        (PowerMean(D, [1, 2, 3]), 7 * 3 * D),
        (LogSumExp(D, 1.0), 7 * 2 * D),
        # A document of 1 token: one window of 1; of 6 tokens: 4 windows of 3.
        (Hierarchical(D, 3), (1 + 4 * 3) * D + (1 + 4) * D),
    ],
)
def test_multiply_adds_by_hand(head, expected):
    assert head.multiply_adds([1, 6]) == expected


def test_multiply_adds_of_a_projection_are_torchs():
    head, lengths = RandomProjection(D, 20), [1, 6]
    with FlopCounterMode(display=False) as flops:
        head(make_batch(lengths), Table(30, D))
    reduced = sum(lengths) * 20
    assert head.multiply_adds(lengths) - reduced == flops.get_total_flops() / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Pooling(2, ["meen"]),
            r"head.modes has 'meen'; expected sum, mean, max, min. Did you mean 'mean'\?",
        ),
        (lambda: Pooling(2, []), r"expected a list of one or more of sum, mean, max, min"),
        (lambda: Pooling(2, "mean"), r"head.modes is 'mean'; expected a list"),
        (lambda: Hierarchical(2, 0), r"head.window is 0; expected at least 1 token"),
        (lambda: PowerMean(2, []), r"head.powers is empty"),
        (lambda: PowerMean(2, [1, 0.5]), r"head.powers has 0.5; expected numbers of at least 1, inf or -inf"),
        (lambda: PowerMean(2, [math.nan]), r"head.powers has nan"),
        (lambda: LogSumExp(2, 0.0), r"head.temperature is 0.0; expected a number above 0"),
        (lambda: RandomProjection(2, 0), r"head.projections is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()
