"""Heads that read token by token, run the slow way: one document, direction and token after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from textbed.heads.minimal import MinRecurrent
from textbed.heads.reading import Reader
from textbed.heads.recurrent import Recurrent
from textbed.heads.reservoir import EchoState

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn_tanh": nn.RNNCell, "rnn_relu": nn.RNNCell}
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
FUNCTIONS = {"none": lambda values: values, "relu": torch.relu, "tanh": torch.tanh}

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


def weights_of(layer: nn.Module, direction: int) -> dict[str, Tensor]:
    """A direction's weights, by the names that PyTorch's cells have for them."""
    return {name: getattr(layer, f"{name}_l0{'_reverse' * direction}") for name in NAMES}


def plain_recurrent(head: Recurrent) -> Callable[[Tensor], Tensor]:
    """The head by PyTorch's own cells."""

    def step(layer, direction, value, state):
        kind = {"nonlinearity": head.cell[4:]} if head.cell.startswith("rnn") else {}
        cell = CELLS[head.cell](len(value), head.hidden, **kind)
        before = state if state is None or head.cell == "lstm" else state[0]
        after = functional_call(cell, weights_of(layer, direction), (value, before))
        return after if head.cell == "lstm" else (after,)

    return read_slowly(head, step)


def plain_minimal(head: MinRecurrent) -> Callable[[Tensor], Tensor]:
    """The head in the sequential form of its paper."""

    def step(layer, direction, value, state):
        maps = layer(value).unflatten(0, (head.directions, -1, head.hidden))[direction]
        before = 0 if state is None else state[0]
        candidate = maps[-1]
        if head.candidate == "positive":
            candidate = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
        if head.cell == "mingru":
            update = torch.sigmoid(maps[0])
            return ((1 - update) * before + update * candidate,)
        forget, enter = torch.sigmoid(maps[0]), torch.sigmoid(maps[1])
        return (forget / (forget + enter) * before + enter / (forget + enter) * candidate,)

    return read_slowly(head, step)


def plain_echo_state(head: EchoState) -> Callable[[Tensor], Tensor]:
    """The head by its formula."""

    def step(layer, direction, value, state):
        from_input, from_state = layer[2 * direction], layer[2 * direction + 1]
        before = torch.zeros(head.hidden, dtype=value.dtype) if state is None else state[0]
        new = FUNCTIONS[head.activation](from_input @ value + from_state @ before)
        return ((1 - head.leak) * before + head.leak * new,)

    return read_slowly(head, step)
