"""Schedules of the learning rate, for all parameter groups of an optimizer or for some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class GroupScheduler:
    """A scheduler of torch that sets the learning rate of one parameter group alone.

    torch's schedulers set that of every group of their optimizer, and Lightning refuses one whose optimizer
    is not the one it steps. So the scheduler in here is given a view of the optimizer, while ``optimizer`` is
    the optimizer itself.

    Args:
        make: takes an optimizer and returns a scheduler.
        optimizer: whose group it is; each of its groups has a ``name``.
        group: the group's name.
    """

    def __init__(self, make: Callable[[Optimizer], Any], optimizer: Optimizer, group: str) -> None:
        self.optimizer = optimizer
        self.scheduler = make(_Group(optimizer, group))

    def step(self, *arguments: Any) -> None:
        """One step; a plateau's takes the figure that it looks at."""
        self.scheduler.step(*arguments)

    def get_last_lr(self) -> list[Any]:
        """The group's learning rate, a list of one."""
        return self.scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in the form of torch's own."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.scheduler.load_state_dict(state)


class _Group(Optimizer):
    """One parameter group of an optimizer, as an optimizer that has no other."""

    def __init__(self, optimizer: Optimizer, name: str) -> None:
        # Without Optimizer's own: it would set up state and hooks for parameters that another steps.
        self._optimizer, self._name = optimizer, name
        self.defaults = optimizer.defaults
        self._opt_called = True  # torch warns of a schedule that is ahead of its optimizer, which never steps

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        # Looked up each time: loading a checkpoint puts other dictionaries into their place.
        return [group for group in self._optimizer.param_groups if group["name"] == self._name]
