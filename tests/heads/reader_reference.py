"""Heads that read token by token, run the slow way: one document, direction and token after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from textbed.heads.reading import Reader

Step = Callable[[nn.Module, int, Tensor, tuple[Tensor, ...] | None], tuple[Tensor, ...]]
"""Layer, direction, a token's values and the state before to the new state, of which the first part is read;
no state before stands for zeros."""


def read_slowly(head: Reader, step: Step) -> Callable[[Tensor], Tensor]:
    """What the head makes of a document's rows (n, D) in evaluation, from nothing but ``step``."""

    def read(layer: nn.Module, values: Tensor) -> Tensor:
        directions = []
        for direction in range(head.directions):
            state, states = None, []
            for count, value in enumerate(values.flip(0) if direction else values):
                if head.truncate and state is not None and count % head.truncate == 0:
                    state = tuple(part.detach() for part in state)
                state = step(layer, direction, value, state)
                states.append(state[0])
            directions.append(torch.stack(states[::-1] if direction else states))
        return torch.cat(directions, dim=1)

    def read_window(values: Tensor) -> Tensor:
        states = read(head.layers[0], values)
        for number, layer in enumerate(head.layers[1:]):
            above = read(layer, head.norms[number](states) if len(head.norms) else states)
            states = states + above if head.residual else above
        if head.readout == "last":
            return torch.cat([states[-1, : head.hidden], states[0, head.hidden :]])
        if head.readout == "attention":
            return torch.softmax(head.score(states), dim=0).t().squeeze(0) @ states
        return states.mean(0) if head.readout == "mean" else states.amax(0)

    def whole(rows: Tensor) -> Tensor:
        if head.window is None:
            return read_window(rows)
        starts = [0]
        while starts[-1] + head.window < len(rows):
            starts.append(starts[-1] + head.stride)
        read = torch.stack([read_window(rows[start : start + head.window]) for start in starts])
        return read.mean(0) if head.window_pooling == "mean" else read.amax(0)

    return whole
