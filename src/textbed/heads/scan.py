"""Recurrent steps over packed tokens on the CPU, with a backward pass that is linear in the tokens.

PyTorch's own packed layers, off CUDA, cut each step out of all tokens, and the backward pass of each cut
fills a gradient of the size of all tokens: with N tokens in L steps it writes N x L rows. On 64 reviews of up
to 2,500 tokens that took nine tenths of the time. Here both passes are written out:

- What the tokens give to the gates comes in once for each distinct token, and is gathered step by step.
- Both directions go through one loop, each in its own order of reading, so a step is half as many calls.
- The gradient of the gates is kept for ``CHUNK`` tokens at a time and worked into the gradients of weights
  and inputs while it lies in the processor's cache; for all tokens it is never stored.

Shape letters: K directions, N tokens in packed order (time-major, longest document first), L steps, M rows of
inputs, H width of the state, and G the gates of it: H for the plain network, 3H for GRU (reset, update, new),
4H for LSTM (input, forget, cell, output), PyTorch's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256
"""Tokens of one direction whose gates' gradients are worked in together; 128 and 512 were a little slower."""
_FLUSH = 8
"""Steps after which vanished gradients are looked for."""

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input


def scan(
    cell: str,
    inputs_KMG: Tensor,
    index_KN: Tensor,
    weight_KGH: Tensor,
    bias_KG: Tensor | None,
    sizes: Sequence[int],
    *,
    cut: int | None = None,
    leak: float = 1.0,
) -> Tensor:
    """The states (K, N, H) of one layer, those of each direction in the order in which it reads.

    Args:
        cell: lstm, gru, rnn_tanh, rnn_relu or rnn_none, a plain network without an activation.
        inputs_KMG: what a token gives to the gates of each direction, all that is added there included.
        index_KN: the row of ``inputs_KMG`` of each token, in packed order by each direction's own reading.
        weight_KGH: from the state before to the gates.
        bias_KG: added to that, for gru alone, whose reset gate takes hold of it.
        sizes: how many documents have a token at each of the L steps.
        cut: no gradient goes from a step that is a multiple of this to the step before: truncated
            backpropagation. States are the same.
        leak: for the plain network, the share of the new value in the state; the rest is the state before.
    """
    # Under autocast the inputs come in half precision; what follows step by step keeps the weights' own.
    inputs_KMG = inputs_KMG.to(weight_KGH.dtype)
    return _Scan.apply(inputs_KMG, weight_KGH, bias_KG, index_KN, tuple(sizes), cell, cut, leak)


class _Scan(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        index: Tensor,
        sizes: tuple[int, ...],
        name: str,
        cut: int | None,
        leak: float,
    ) -> Tensor:
        directions, gates, width = weight.shape
        memory = _CELLS[name].memory(inputs, directions, index.shape[1], gates, width, leak)
        cell = _CELLS[name](memory, sizes, name, leak)
        weights = [matrix.t().contiguous() for matrix in weight]
        biases = None if bias is None else list(bias)
        for steps, rows in _chunks(sizes):
            for k in range(directions):
                torch.index_select(inputs[k], 0, index[k, rows], out=memory[0][k, rows])
            for step in steps:
                cell.forward(step, weights, biases)
        ctx.save_for_backward(weight, bias, index, *memory)
        ctx.settings = sizes, name, cut, leak, inputs.shape[1]
        return memory[-1]

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_KNH: Tensor) -> tuple[Any, ...]:
        weight, bias, index, *memory = ctx.saved_tensors
        sizes, name, cut, leak, rows_of_inputs = ctx.settings
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        directions, gates, width = weight.shape
        cell = _CELLS[name](memory, sizes, name, leak)
        states = memory[-1]
        chunks = list(_chunks(sizes))
        most = max(rows.stop - rows.start for _, rows in chunks)

        grad_inputs = weight.new_zeros(directions, rows_of_inputs, gates) if wants_inputs else None
        grad_weight = weight.new_zeros(directions, width, gates) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        grad_gates = weight.new_empty(directions, most, gates)
        # What comes back from the steps behind, for every document: of states, and of LSTM cells.
        back = weight.new_zeros(2, directions, sizes[0], width)
        before = _rows_before(sizes, index.device)
        matrices = list(weight)
        for steps, rows in reversed(chunks):
            count = rows.stop - rows.start
            cell.begin(grad_KNH[:, rows], grad_gates[:, :count], steps)
            for step in reversed(steps):
                cell.backward(step, matrices, back)
                if cut is not None and step % cut == 0:
                    back.zero_()
                elif step % _FLUSH == 0:
                    # Gradients that went down to nothing over many steps become denormal numbers, on which
                    # a processor computes ten times as slowly.
                    back.copy_(F.hardshrink(back, 1e-25))
            for k in range(directions):
                part = grad_gates[k, :count]
                if grad_weight is not None:
                    # The documents' first tokens have no state before them.
                    known = slice(max(rows.start, sizes[0]), rows.stop)
                    past = states[k].index_select(0, before[known])
                    grad_weight[k].addmm_(past.t(), part[known.start - rows.start :])
                if grad_bias is not None:
                    grad_bias[k] += part.sum(0)
                if grad_inputs is not None:
                    grad_inputs[k].index_add_(0, index[k, rows], cell.of_inputs(part, k))
        if grad_weight is not None:
            grad_weight = grad_weight.transpose(1, 2)
        return grad_inputs, grad_weight, grad_bias, None, None, None, None, None


def _chunks(sizes: Sequence[int]) -> Iterator[tuple[range, slice]]:
    """Steps that are worked on together, and their rows: whole steps until there are ``CHUNK`` rows."""
    first = start = end = 0
    for step, size in enumerate(sizes):
        end += size
        if end - start >= CHUNK or step == len(sizes) - 1:
            yield range(first, step + 1), slice(start, end)
            first, start = step + 1, end


def _rows_before(sizes: Sequence[int], device: torch.device) -> Tensor:
    """(N,) int64: the row of the token before each; of no meaning at the first step."""
    sizes_L = torch.tensor(sizes)
    back = torch.repeat_interleave(sizes_L.roll(1), sizes_L)
    return (torch.arange(len(back)) - back).clamp_(min=0).to(device)


class _Cell:
    """The steps of one layer: what is kept of all tokens, and views of each step in it.

    Views are cut all at once, which costs a third of cutting each when its step has come.
    """

    @staticmethod
    def memory(inputs: Tensor, directions: int, tokens: int, gates: int, width: int, leak: float) -> Any:
        """Room for what the backward pass needs: the gates (K, N, G) first, the states (K, N, H) last."""
        raise NotImplementedError

    def __init__(self, memory: Sequence[Tensor], sizes: tuple[int, ...], name: str, leak: float) -> None:
        self.sizes, self.name, self.leak = sizes, name, leak
        self.width = memory[-1].shape[2]
        self.gates_of = [gates.split(sizes) for gates in memory[0]]
        self.states_of = [states.split(sizes) for states in memory[-1]]
        self.states = memory[-1].split(sizes, 1)
        self.keep(memory)

    def keep(self, memory: Sequence[Tensor]) -> None:
        """Cut the views that the cell needs."""
        raise NotImplementedError

    def forward(self, step: int, weights: list[Tensor], biases: list[Tensor] | None) -> None:
        """Fill the step's states and gates, which hold what the inputs give."""
        raise NotImplementedError

    def begin(self, grad: Tensor, grad_gates: Tensor, steps: range) -> None:
        """Look at these steps now: the gradients of their states (K, n, H) and, to be filled, of gates."""
        sizes = self.sizes[steps.start : steps.stop]
        self.first = steps.start
        self.grad = grad.split(sizes, 1)
        self.grad_gates_of = [part.split(sizes) for part in grad_gates]
        self.begin_gates(grad_gates, sizes)

    def begin_gates(self, grad_gates: Tensor, sizes: tuple[int, ...]) -> None:
        """Cut views of the gates' gradients."""
        raise NotImplementedError

    def backward(self, step: int, weights: list[Tensor], back: Tensor) -> None:
        """Fill the gradients of the step's gates, and exchange what comes back from it for what came in."""
        raise NotImplementedError

    def of_inputs(self, grad_gates: Tensor, direction: int) -> Tensor:
        """The gradients of what the inputs gave, from those of what the states gave."""
        return grad_gates

    def part(self, gates: Tensor, first: int, last: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Views of the gates from one number to another at each step."""
        return gates[:, :, first * self.width : last * self.width].split(sizes, 1)

    def past(self, views: Sequence[Tensor], step: int, dim: int = 1) -> Tensor:
        """What was a step before, for the documents that go on."""
        size = self.sizes[step]
        view = views[step - 1]
        return view if self.sizes[step - 1] == size else view.narrow(dim, 0, size)

    def add_past(self, step: int, weights: list[Tensor]) -> None:
        """Add to the gates what the states before give."""
        if step:
            for gates, states, weight in zip(self.gates_of, self.states_of, weights, strict=True):
                gates[step].addmm_(self.past(states, step, 0), weight)

    def receive(self, step: int, back: Tensor) -> tuple[Tensor, Tensor]:
        """The full gradients of the step's states and cells."""
        size = self.sizes[step]
        grad, grad_cells = back if size == back.shape[2] else back[:, :, :size]
        return grad.add_(self.grad[step - self.first]), grad_cells


class _LSTM(_Cell):
    @staticmethod
    def memory(inputs: Tensor, directions: int, tokens: int, gates: int, width: int, leak: float) -> Any:
        narrow = [inputs.new_empty(directions, tokens, width) for _ in range(3)]
        return inputs.new_empty(directions, tokens, gates), *narrow

    def keep(self, memory: Sequence[Tensor]) -> None:
        gates, cells, squashed, _ = memory
        self.enter_forget, self.enter, self.forget, self.new, self.out = (
            self.part(gates, first, last, self.sizes)
            for first, last in ((0, 2), (0, 1), (1, 2), (2, 3), (3, 4))
        )
        self.cells, self.squashed = (kept.split(self.sizes, 1) for kept in (cells, squashed))

    def forward(self, step: int, weights: list[Tensor], biases: list[Tensor] | None) -> None:
        self.add_past(step, weights)
        self.enter_forget[step].sigmoid_()
        new, out = self.new[step].tanh_(), self.out[step].sigmoid_()
        cells = torch.mul(self.enter[step], new, out=self.cells[step])
        if step:
            cells.addcmul_(self.forget[step], self.past(self.cells, step))
        torch.mul(out, torch.tanh(cells, out=self.squashed[step]), out=self.states[step])

    def begin_gates(self, grad_gates: Tensor, sizes: tuple[int, ...]) -> None:
        self.grad_enter_forget, self.grad_enter, self.grad_forget, self.grad_new, self.grad_out = (
            self.part(grad_gates, first, last, sizes)
            for first, last in ((0, 2), (0, 1), (1, 2), (2, 3), (3, 4))
        )

    def backward(self, step: int, weights: list[Tensor], back: Tensor) -> None:
        grad, grad_cells = self.receive(step, back)
        here = step - self.first
        squashed, new, out = self.squashed[step], self.new[step], self.out[step]
        by_out = torch.mul(grad, squashed, out=self.grad_out[here])
        _sigmoid_backward(by_out, out, grad_input=by_out)
        grad.mul_(out)
        grad_cells.add_(_tanh_backward(grad, squashed, grad_input=grad))
        torch.mul(grad_cells, new, out=self.grad_enter[here])
        if step:
            torch.mul(grad_cells, self.past(self.cells, step), out=self.grad_forget[here])
        else:
            self.grad_forget[here].zero_()
        both = self.grad_enter_forget[here]
        _sigmoid_backward(both, self.enter_forget[step], grad_input=both)
        by_new = torch.mul(grad_cells, self.enter[step], out=self.grad_new[here])
        _tanh_backward(by_new, new, grad_input=by_new)
        if step:
            grad_cells.mul_(self.forget[step])
            for part, gates, weight in zip(grad, self.grad_gates_of, weights, strict=True):
                torch.mm(gates[here], weight, out=part)


class _GRU(_Cell):
    @staticmethod
    def memory(inputs: Tensor, directions: int, tokens: int, gates: int, width: int, leak: float) -> Any:
        narrow = [inputs.new_empty(directions, tokens, width) for _ in range(2)]
        return inputs.new_empty(directions, tokens, gates), *narrow

    def keep(self, memory: Sequence[Tensor]) -> None:
        gates, given, states = memory
        self.reset_update, self.reset, self.update, self.new = (
            self.part(gates, first, last, self.sizes) for first, last in ((0, 2), (0, 1), (1, 2), (2, 3))
        )
        self.given = given.split(self.sizes, 1)  # what the state before gives to the new gate
        self.room = states.new_empty(states.shape[0], self.sizes[0], 3 * self.width)

    def forward(self, step: int, weights: list[Tensor], biases: list[Tensor] | None) -> None:
        assert biases is not None
        hidden = self.room[:, : self.sizes[step]]
        for part, states, weight, bias in zip(hidden, self.states_of, weights, biases, strict=True):
            if step:
                torch.addmm(bias, self.past(states, step, 0), weight, out=part)
            else:
                part.copy_(bias)
        self.reset_update[step].add_(hidden[:, :, : 2 * self.width]).sigmoid_()
        given = self.given[step].copy_(hidden[:, :, 2 * self.width :])
        new = self.new[step].addcmul_(self.reset[step], given).tanh_()
        update, states = self.update[step], self.states[step]
        if step:  # (1 - update) x new + update x past
            torch.lerp(new, self.past(self.states, step), update, out=states)
        else:
            torch.addcmul(new, update, new, value=-1, out=states)

    def begin_gates(self, grad_gates: Tensor, sizes: tuple[int, ...]) -> None:
        self.grad_reset_update, self.grad_reset, self.grad_update, self.grad_new = (
            self.part(grad_gates, first, last, sizes) for first, last in ((0, 2), (0, 1), (1, 2), (2, 3))
        )
        # The input's share of the new gate does not pass the reset gate.
        self.by_new = grad_gates.new_empty(*grad_gates.shape[:2], self.width)
        self.by_new_at = self.by_new.split(sizes, 1)

    def backward(self, step: int, weights: list[Tensor], back: Tensor) -> None:
        grad, _ = self.receive(step, back)
        here = step - self.first
        update, new, reset = self.update[step], self.new[step], self.reset[step]
        by_new = torch.addcmul(grad, grad, update, value=-1, out=self.by_new_at[here])
        _tanh_backward(by_new, new, grad_input=by_new)
        torch.mul(by_new, self.given[step], out=self.grad_reset[here])
        by_update = self.grad_update[here]
        if step:
            torch.sub(self.past(self.states, step), new, out=by_update).mul_(grad)
        else:
            torch.mul(grad, new, out=by_update).neg_()
        both = self.grad_reset_update[here]
        _sigmoid_backward(both, self.reset_update[step], grad_input=both)
        torch.mul(by_new, reset, out=self.grad_new[here])
        if step:
            grad.mul_(update)
            for part, gates, weight in zip(grad, self.grad_gates_of, weights, strict=True):
                part.addmm_(gates[here], weight)

    def of_inputs(self, grad_gates: Tensor, direction: int) -> Tensor:
        grad_gates[:, 2 * self.width :] = self.by_new[direction]
        return grad_gates


class _Plain(_Cell):
    @staticmethod
    def memory(inputs: Tensor, directions: int, tokens: int, gates: int, width: int, leak: float) -> Any:
        values = inputs.new_empty(directions, tokens, width)
        # Without a leak the state is the activation's value.
        return (values,) if leak == 1 else (values, torch.empty_like(values))

    def keep(self, memory: Sequence[Tensor]) -> None:
        self.values = memory[0].split(self.sizes, 1)

    def forward(self, step: int, weights: list[Tensor], biases: list[Tensor] | None) -> None:
        self.add_past(step, weights)
        values = self.values[step]
        if self.name == "rnn_tanh":
            values.tanh_()
        elif self.name == "rnn_relu":
            values.relu_()
        if self.leak != 1:
            states = torch.mul(values, self.leak, out=self.states[step])
            if step:
                states.add_(self.past(self.states, step), alpha=1 - self.leak)

    def begin_gates(self, grad_gates: Tensor, sizes: tuple[int, ...]) -> None:
        self.grad_values = grad_gates.split(sizes, 1)

    def backward(self, step: int, weights: list[Tensor], back: Tensor) -> None:
        grad, _ = self.receive(step, back)
        here = step - self.first
        values = torch.mul(grad, self.leak, out=self.grad_values[here])
        if self.name == "rnn_tanh":
            _tanh_backward(values, self.values[step], grad_input=values)
        elif self.name == "rnn_relu":
            _relu_backward(values, self.values[step], 0, grad_input=values)
        if step:
            grad.mul_(1 - self.leak)
            for part, gates, weight in zip(grad, self.grad_gates_of, weights, strict=True):
                part.addmm_(gates[here], weight)


_CELLS: dict[str, type[_Cell]] = {
    "lstm": _LSTM,
    "gru": _GRU,
    "rnn_tanh": _Plain,
    "rnn_relu": _Plain,
    "rnn_none": _Plain,
}
