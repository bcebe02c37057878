"""Optimizers that update only the rows a batch touched: torch's own, applied to those rows alone.

A parameter whose gradient is sparse, U of its V rows, has these rows of itself and of its state taken out,
updated by torch's step as if they were a small parameter with a dense gradient, and written back. So the
arithmetic of a touched row is torch's to the last bit, and the cost of a step grows with U, not with V.
Parameters with dense gradients are updated by the same step in the usual way.

What differs from the dense optimizer is the rows that a batch did not touch. Dense, they have a gradient of
zero. Under SGD without momentum and under Adagrad they stay as they are, so that without weight decay both
ways are the same to the last bit. Under Adam, or with momentum, they go on moving by what their moments hold,
and weight decay pulls at them in every step. Here they stay as they are, moments included, and a row decays
when it is touched. Where every step touches every row, both ways are the same to the last bit again. Adam's
correction of its moments' bias counts the steps of the whole parameter, so that the first touch of a row
moves it just as far as dense.

State lies in tensors of the parameter's shape under torch's own names: checkpoints load with
``weights_only=True``, and in the dense optimizer as well.

Shape letters: U touched rows, V rows of the parameter, D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from textbed.embedding import bag


class _Rowwise:
    """Stands before an optimizer of torch's that updates a number from its own gradient and state alone."""

    state: Any
    param_groups: list[dict[str, Any]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. ``closure``, where given, computes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        whole = [group["params"] for group in self.param_groups]
        taken: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for group in self.param_groups:
                group["params"] = [self._touched(parameter, taken) for parameter in group["params"]]
            super().step()  # type: ignore[misc]
        finally:
            for group, parameters in zip(self.param_groups, whole, strict=True):
                group["params"] = parameters
            for parameter, rows_U, part_UD in taken:
                self._put_back(parameter, rows_U, part_UD)
        return loss

    def _touched(self, parameter: Tensor, taken: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The rows of a parameter that its sparse gradient touches, with their state; else the parameter."""
        if parameter.grad is None or not parameter.grad.is_sparse:
            return parameter
        rows_U, gradient_UD = bag.touched(parameter.grad)
        part_UD = parameter.index_select(0, rows_U)
        part_UD.grad = gradient_UD
        if parameter in self.state:
            self.state[part_UD] = {
                name: value.index_select(0, rows_U) if _is_by_row(value, parameter) else value
                for name, value in self.state[parameter].items()
            }
        taken.append((parameter, rows_U, part_UD))
        return part_UD

    def _put_back(self, parameter: Tensor, rows_U: Tensor, part_UD: Tensor) -> None:
        bag.write_rows(parameter, rows_U, part_UD)
        state = self.state.pop(part_UD, None)
        if not state:  # SGD without momentum has none
            return
        whole = self.state[parameter]
        for name, value in state.items():
            if not _is_by_row(value, part_UD):
                whole[name] = value
                continue
            if name not in whole:  # the state of rows that were not touched yet is zero
                whole[name] = torch.zeros_like(parameter)
            bag.write_rows(whole[name], rows_U, value)


def _is_by_row(value: Any, parameter: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == parameter.shape


class RowwiseSGD(_Rowwise, optim.SGD):
    """SGD; momentum and weight decay act on a row when it is touched."""


class RowwiseAdam(_Rowwise, optim.Adam):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980); moments and decay of a row change when it is touched."""


class RowwiseAdamW(_Rowwise, optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as :class:`RowwiseAdam`."""


class RowwiseAdagrad(_Rowwise, optim.Adagrad):
    """Adagrad (Duchi et al. 2011); without weight decay the same as dense to the last bit."""


TWINS: dict[Any, Any] = {
    optim.SGD: RowwiseSGD,
    optim.Adam: RowwiseAdam,
    optim.AdamW: RowwiseAdamW,
    optim.Adagrad: RowwiseAdagrad,
}
"""The row-wise twin of each optimizer of torch's that has one."""


def clip(parameters: list[Tensor], largest: float, by_value: bool = False) -> None:
    """Clip gradients in place, sparse ones among them, as torch clips dense ones.

    Args:
        parameters: those without a gradient are passed over.
        largest: the largest L2 norm of all gradients together, or the largest magnitude of any number.
        by_value: which of the two.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:  # rows that come twice must be summed before they are measured
            rows_U, values_UD = bag.touched(parameter.grad)
            parameter.grad = torch.sparse_coo_tensor(
                rows_U.unsqueeze(0), values_UD, parameter.shape, is_coalesced=True, check_invariants=False
            )
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    if by_value:
        for value in values:
            value.clamp_(-largest, largest)
        return
    scale = (largest / (torch.nn.utils.get_total_norm(values) + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
