"""A schedule over one parameter group, against the closed forms of torch's schedulers."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from textbed.scheduling import GroupScheduler


def two_groups() -> torch.optim.Optimizer:
    table, rest = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return torch.optim.SGD(
        [{"params": [table], "name": "table", "lr": 0.5}, {"params": [rest], "name": "rest"}], lr=2.0
    )


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_each_group_follows_its_own_curve():
    optimizer = two_groups()
    table = GroupScheduler(partial(ExponentialLR, gamma=0.5), optimizer, "table")
    rest = GroupScheduler(
        partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=4), optimizer, "rest"
    )
    assert table.optimizer is optimizer
    for step in range(5):
        assert rates(optimizer) == pytest.approx([0.5 * 0.5**step, 2.0 * (1 - step / 4)])
        assert (table.get_last_lr(), rest.get_last_lr()) == ([rates(optimizer)[0]], [rates(optimizer)[1]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch would warn of a schedule ahead of its optimizer
            optimizer.step()
            table.step()
            rest.step()


def test_a_plateau_moves_its_group_alone():
    optimizer = two_groups()
    plateau = GroupScheduler(partial(ReduceLROnPlateau, factor=0.1, patience=0), optimizer, "table")
    for figure in (1.0, 0.5, 0.5):
        plateau.step(figure)
    assert rates(optimizer) == pytest.approx([0.05, 2.0])


def test_schedulers_that_set_more_than_the_rate():
    optimizer = two_groups()
    GroupScheduler(partial(OneCycleLR, max_lr=1.0, total_steps=10), optimizer, "table")
    table, rest = optimizer.param_groups
    assert table["momentum"] == 0.95  # which goes down as the rate goes up
    assert rest["momentum"] == 0
    assert rest["lr"] == 2.0


def test_what_a_checkpoint_restores_goes_on_as_before():
    def start() -> tuple[torch.optim.Optimizer, list[GroupScheduler]]:
        optimizer = two_groups()
        return optimizer, [
            GroupScheduler(partial(CosineAnnealingLR, T_max=10), optimizer, "table"),
            GroupScheduler(partial(ExponentialLR, gamma=0.9), optimizer, "rest"),
        ]

    def go_on(optimizer: torch.optim.Optimizer, schedulers: list[GroupScheduler], steps: int) -> None:
        for _ in range(steps):
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()

    whole = start()
    go_on(*whole, 3)
    optimizer_state = whole[0].state_dict()
    scheduler_states = [scheduler.state_dict() for scheduler in whole[1]]
    resumed = start()
    # Loading puts new groups in the place of those that the schedulers began with.
    resumed[0].load_state_dict(optimizer_state)
    for scheduler, kept in zip(resumed[1], scheduler_states, strict=True):
        scheduler.load_state_dict(kept)
    go_on(*whole, 5)
    go_on(*resumed, 5)
    assert rates(resumed[0]) == rates(whole[0])
    assert rates(whole[0])[1] == pytest.approx(2.0 * 0.9**8)
