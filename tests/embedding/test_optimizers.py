"""Row-wise optimizers: against torch's dense ones where both must agree, else against a loop over rows."""

from __future__ import annotations

import copy
import io
import math
import tracemalloc

import pytest
import torch
from torch import nn, optim

from textbed.batch import TokenBatch
from textbed.embedding import bag
from textbed.embedding.optimizers import TWINS, RowwiseAdagrad, RowwiseAdam, RowwiseAdamW, RowwiseSGD, clip

V, D = 40, 7

SAME = {  # untouched rows stay as they are, dense too
    "sgd": (optim.SGD, {"lr": 0.1}),
    "adagrad": (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adagrad, fused": (optim.Adagrad, {"lr": 0.1, "fused": True}),
}
SAME_WHEN_TOUCHED = SAME | {
    "sgd, momentum and decay": (
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adagrad, decay": (optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
    "adam": (optim.Adam, {"lr": 0.1}),
    "adam, decay": (optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
    "adam, amsgrad": (optim.Adam, {"lr": 0.1, "amsgrad": True}),
    "adam, fused": (optim.Adam, {"lr": 0.1, "fused": True}),
    "adamw": (optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
}


def sparse(rows: list[int], values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor(rows).unsqueeze(0), values, (V, values.shape[1]), check_invariants=False
    )


def pair(cls, settings):
    """The same table and layer under the dense optimizer and its twin."""
    made = []
    for kind in (cls, TWINS[cls]):
        torch.manual_seed(0)
        table, layer = torch.randn(V, D, requires_grad=True), torch.randn(3, 5, requires_grad=True)
        groups = [{"params": [table], "lr": 0.2}, {"params": [layer]}]
        made.append((table, layer, kind(groups, **settings)))
    return made


def step(made, rows, seed, twice=False):
    """Give both the same gradients and let both step. ``twice``: in two parts, in another order of rows."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(len(rows), D, generator=random)
    of_layer = torch.randn(3, 5, generator=random)
    for (table, layer, optimizer), lazy in zip(made, (False, True), strict=True):
        table.grad = torch.zeros(V, D).index_copy(0, torch.tensor(rows), values)
        if lazy:
            table.grad = sparse(rows, values)
            if twice:
                table.grad = sparse(rows[::-1] + rows, torch.cat([values.flip(0) / 4, values * 0.75]))
        layer.grad = of_layer.clone()
        optimizer.step()


def assert_same(made):
    (table, layer, dense), (lazy_table, lazy_layer, lazy) = made
    assert torch.equal(table, lazy_table)
    assert torch.equal(layer, lazy_layer)
    mine, theirs = lazy.state_dict(), dense.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert mine["state"][number].keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(mine["state"][number][name], value), name


@pytest.mark.parametrize("name", SAME)
def test_the_same_as_dense_to_the_last_bit_where_nothing_moves_untouched_rows(name):
    made = pair(*SAME[name])
    for seed in range(8):
        rows = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[: 1 + 3 * seed]
        step(made, rows.sort().values.tolist(), seed)
    assert_same(made)


@pytest.mark.parametrize("name", SAME_WHEN_TOUCHED)
def test_the_same_as_dense_to_the_last_bit_where_all_rows_are_touched(name):
    made = pair(*SAME_WHEN_TOUCHED[name])
    for seed in range(5):
        step(made, list(range(V)), seed)
    assert_same(made)


def test_rows_that_come_twice_are_summed_first():
    made = pair(optim.Adagrad, {"lr": 0.1})
    for seed in range(3):
        step(made, [2, 3, 11], seed, twice=True)
    torch.testing.assert_close(made[0][0], made[1][0], rtol=1e-6, atol=1e-7)
    with pytest.raises(AssertionError):  # what comes of stepping twice instead
        torch.testing.assert_close(
            made[0][2].state[made[0][0]]["sum"] * 0.625, made[1][2].state[made[1][0]]["sum"]
        )


def by_hand(kind, weight, touches, *, lr, beta=(0.9, 0.999), eps=1e-8, decay=0.0, momentum=0.0):
    """One row after another, one number after another, in Python's float64.

    ``touches`` has for each step a mapping from row to gradient; moments are those of the row alone, the
    correction of their bias counts all steps.
    """
    rows = weight.double().tolist()
    first = [[0.0] * D for _ in rows]
    second = [[0.0] * D for _ in rows]
    for count, touched in enumerate(touches, start=1):
        for row, gradient in touched.items():
            for i, g in enumerate(gradient):
                x, m, v = rows[row][i], first[row][i], second[row][i]
                if kind == "adamw":
                    x -= lr * decay * x
                else:
                    g += decay * x
                if kind == "sgd":
                    m = momentum * m + g
                    x -= lr * m
                elif kind == "adagrad":
                    v += g * g
                    x -= lr * g / (math.sqrt(v) + 1e-10)
                else:
                    m = beta[0] * m + (1 - beta[0]) * g
                    v = beta[1] * v + (1 - beta[1]) * g * g
                    unbiased = m / (1 - beta[0] ** count), v / (1 - beta[1] ** count)
                    x -= lr * unbiased[0] / (math.sqrt(unbiased[1]) + eps)
                rows[row][i], first[row][i], second[row][i] = x, m, v
    return torch.tensor(rows).float()


BY_HAND = {
    "sgd": (RowwiseSGD, {"momentum": 0.9}),
    "adam": (RowwiseAdam, {}),
    "adamw": (RowwiseAdamW, {}),
    "adagrad": (RowwiseAdagrad, {}),
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", BY_HAND)
def test_against_a_loop_over_touched_rows(kind, decay):
    cls, settings = BY_HAND[kind]
    table = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    start = table.clone()
    optimizer = cls([table.requires_grad_()], lr=0.05, weight_decay=decay, **settings)
    touches = []
    random = torch.Generator().manual_seed(1)
    for _ in range(12):
        rows = torch.randperm(V - 1, generator=random)[:6].sort().values.tolist()  # never the last
        values = torch.randn(6, D, generator=random)
        touches.append(dict(zip(rows, values.tolist(), strict=True)))
        table.grad = sparse(rows, values)
        optimizer.step()
    expected = by_hand(kind, start, touches, lr=0.05, decay=decay, **settings)
    torch.testing.assert_close(table.detach(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(table[-1], start[-1])
    for value in optimizer.state[table].values():
        assert value.shape == () or not value[-1].any()


@pytest.mark.parametrize(
    ("kind", "lazy"), [(kind, lazy) for kind in ("adam", "adamw") for lazy in (True, False)]
)
def test_an_untouched_row_drifts_under_dense_decay_and_not_under_lazy(kind, lazy):
    """Dense: AdamW takes lr * decay of each row at every step; Adam's L2 becomes steps of lr towards zero."""
    cls = {"adam": optim.Adam, "adamw": optim.AdamW}[kind]
    start = torch.full((V, D), 0.5)
    table = start.clone().requires_grad_()
    optimizer = (TWINS[cls] if lazy else cls)([table], lr=0.01, weight_decay=0.1)
    for _ in range(10):
        gradient = sparse([3], torch.ones(1, D))
        table.grad = gradient if lazy else gradient.to_dense()
        optimizer.step()
    untouched = 0.5 if lazy else {"adam": 0.5 - 10 * 0.01, "adamw": 0.5 * (1 - 0.01 * 0.1) ** 10}[kind]
    torch.testing.assert_close(table[5], torch.full((D,), untouched), rtol=0, atol=0 if lazy else 1e-3)
    assert (table[3] < 0.41).all()


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("name", SAME_WHEN_TOUCHED)
def test_the_padding_row_and_untouched_rows_stay_and_touched_ones_move(name, mode):
    cls, settings = SAME_WHEN_TOUCHED[name]
    torch.manual_seed(0)
    start = torch.randn(V, D)
    start[0] = 0
    table = start.clone().requires_grad_()
    optimizer = TWINS[cls]([table], **settings)
    batch = TokenBatch(torch.tensor([0, 3, 5, 3, 0, 9], dtype=torch.int32), torch.tensor([0, 2, 6, 6]).int())
    for _ in range(4):
        optimizer.zero_grad()
        pooled = bag.pool(table, batch, mode, padding_idx=0, sparse=True)
        (pooled.square().sum() + bag.look_up(table, batch, padding_idx=0, sparse=True).sum()).backward()
        optimizer.step()
    assert (table != start).any(dim=1).nonzero().flatten().tolist() == [3, 5, 9]


@pytest.mark.parametrize("name", ["adam, decay", "adagrad", "sgd, momentum and decay"])
def test_a_step_with_no_touched_row(name):
    made = pair(*SAME_WHEN_TOUCHED[name])
    table, _, optimizer = made[1]
    before = table.detach().clone()
    table.grad = sparse([], torch.empty(0, D))
    optimizer.step()
    assert torch.equal(table, before)
    table.grad = None
    optimizer.step()
    assert torch.equal(table, before)


def test_the_closure_computes_the_gradients():
    table = torch.ones(V, D, requires_grad=True)
    optimizer = RowwiseSGD([table], lr=1.0)
    batch = TokenBatch(torch.tensor([4, 4]).int(), torch.tensor([0, 2]).int())

    def closure():
        optimizer.zero_grad()
        loss = bag.pool(table, batch, "sum", sparse=True).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2 * D
    assert table[4].tolist() == [-1.0] * D
    assert (table.sum() == V * D - 2 * D).item()


@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd, momentum and decay"])
def test_state_is_kept_and_taken_up_again_bit_for_bit(name):
    """Through a file without pickled code, in the middle of training; the dense twin takes it too."""
    cls, settings = SAME_WHEN_TOUCHED[name]
    through, other = pair(cls, settings), pair(cls, settings)
    for seed in range(3):
        step(through, [1, 5, 30], seed)
    file = io.BytesIO()
    torch.save(through[1][2].state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for mine, theirs in zip(other[1][:2], through[1][:2], strict=True):
        mine.data.copy_(theirs.data)
    other[1][2].load_state_dict(copy.deepcopy(state))
    other[0][2].load_state_dict(state)
    for seed in range(3, 6):
        step(through, [1, 7, 30], seed)
        step(other, [1, 7, 30], seed)
    assert torch.equal(through[1][0], other[1][0])
    assert torch.equal(through[1][1], other[1][1])


def test_schedulers_move_the_rate_of_the_rows():
    table = torch.zeros(V, D, requires_grad=True)
    optimizer = RowwiseSGD([table], lr=1.0)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        table.grad = sparse([2], torch.ones(1, D))
        optimizer.step()
        scheduler.step()
    assert table[2].tolist() == [-1.75] * D


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_is_that_of_dense_gradients(largest, by_value):
    torch.manual_seed(0)
    parts = torch.randn(5, D)
    gradient = sparse([3, 1, 3, 8, 1], parts)  # rows that come twice
    ours = [nn.Parameter(torch.zeros(V, D)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))]
    theirs = [nn.Parameter(torch.zeros(V, D)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))]
    ours[0].grad, theirs[0].grad = gradient, gradient.to_dense()
    ours[1].grad = torch.randn(4)
    theirs[1].grad = ours[1].grad.clone()
    clip(ours, largest, by_value)
    if by_value:
        nn.utils.clip_grad_value_(theirs, largest)
    else:
        nn.utils.clip_grad_norm_(theirs, largest)
    assert ours[0].grad.is_sparse
    assert ours[2].grad is None
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(mine.grad.to_dense(), other.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_two_million_rows_cost_no_dense_gradient(name):
    """Bytes asked for in a step: those of the touched rows, a thousandth of the table's."""
    cls, settings = SAME_WHEN_TOUCHED[name]
    rows, width = 2_000_000, 4
    table = torch.zeros(rows, width, requires_grad=True)
    optimizer = TWINS[cls]([table], **settings)
    ids = torch.arange(0, rows, 1000).int()  # 2,000 tokens
    batch = TokenBatch(ids, torch.arange(0, 2001, 20).int())

    def one() -> None:
        bag.pool(table, batch, "mean", sparse=True).sum().backward()
        assert table.grad is not None
        assert table.grad.is_sparse
        assert table.grad._values().shape == (2000, width)
        optimizer.step()
        optimizer.zero_grad()

    one()  # which makes the state, as large as the table
    tracemalloc.start()  # what NumPy takes
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            one()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    taken += sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < taken < rows * width * 4 / 20
    assert table[::1000].all()
    assert not table[1::1000].any()
