"""LSTM and GRU steps over packed tokens, with a backward pass that is linear in the tokens.

PyTorch's own packed LSTM and GRU, off CUDA, cut each step out of all tokens, and the backward pass of each
cut fills a gradient of the size of all tokens: with N tokens in L steps it writes N x L rows. On 64 reviews
of up to 2,500 tokens that took nine tenths of the time. Here the backward pass is written out: what does not
depend on the step before is computed for all tokens at once, and the loop keeps a few operations a step.

Shape letters: N tokens in packed order (time-major, longest document first), L steps, H width of the state,
and G the gates of it: 3H for GRU (reset, update, new), 4H for LSTM (input, forget, cell, output), PyTorch's
order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Span = tuple[int, int, int, int]


def _spans(sizes: list[int], reverse: bool) -> list[Span]:
    """For each step in the order of reading, start and end of its rows and of the states before it.

    The rows before it may be fewer than its own: the documents after them begin at this step. When read
    forwards they are all there, since documents only end.
    """
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    spans = []
    before = (0, 0)
    for step in range(len(sizes))[:: -1 if reverse else 1]:
        start, end = starts[step], starts[step + 1]
        spans.append((start, end, before[0], min(before[1], before[0] + end - start)))
        before = start, end
    return spans


def _before(states: Tensor, spans: list[Span]) -> Tensor:
    """The state before each token (N, H), zeros where a document begins."""
    before = torch.zeros_like(states)
    for start, _, first, last in spans:
        before[start : start + last - first] = states[first:last]
    return before


def _drop_vanished(grad: Tensor) -> None:
    """Set gradients that went down to nothing over many steps to zero, in place.

    Left alone they become denormal numbers, on which a processor computes ten times as slowly.
    """
    grad.copy_(F.hardshrink(grad, 1e-25))


class _GRU(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, inputs_NG: Tensor, weight_GH: Tensor, bias_G: Tensor, spans: list[Span]) -> Tensor:
        width = weight_GH.shape[1]
        transposed = weight_GH.t()
        gates = inputs_NG.clone()
        hidden = bias_G.repeat(len(gates), 1)
        states = gates.new_empty(len(gates), width)
        for start, end, first, last in spans:
            known = last - first
            past = states[first:last]
            part, gate, out = hidden[start:end], gates[start:end], states[start:end]
            if known:
                part[:known].addmm_(past, transposed)
            reset_update = gate[:, : 2 * width].add_(part[:, : 2 * width]).sigmoid_()
            update = reset_update[:, width:]
            new = gate[:, 2 * width :].addcmul_(reset_update[:, :width], part[:, 2 * width :]).tanh_()
            torch.addcmul(new, update, new, value=-1, out=out)  # (1 - update) x new + update x past
            if known:
                out[:known].addcmul_(update[:known], past)
        ctx.spans = spans
        ctx.save_for_backward(weight_GH, gates, hidden[:, 2 * width :].clone(), states)
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_NH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight_GH, gates, hidden_new, states = ctx.saved_tensors
        reset, update, new = gates.chunk(3, dim=1)
        past = _before(states, ctx.spans)
        # What the gradient of a state is multiplied by to be that of each gate before its squashing.
        by_new = (1 - update) * (1 - new * new)
        factors = torch.stack(
            [by_new * hidden_new * reset * (1 - reset), (past - new) * update * (1 - update), by_new * reset],
            dim=1,
        )
        grad = grad_NH.clone()
        grad_gates = torch.empty_like(factors)
        for start, end, first, last in reversed(ctx.spans):
            known = last - first
            torch.mul(factors[start:end], grad[start:end].unsqueeze(1), out=grad_gates[start:end])
            if known:
                earlier = grad[first:last].addcmul_(
                    grad[start : start + known], update[start : start + known]
                )
                earlier.addmm_(grad_gates[start : start + known].flatten(1), weight_GH)
                _drop_vanished(earlier)
        grad_hidden = grad_gates.flatten(1)
        grad_weight, grad_bias = grad_hidden.t() @ past, grad_hidden.sum(0)
        torch.mul(
            grad, by_new, out=grad_gates[:, 2]
        )  # the input's share of the new gate does not pass the reset gate
        return grad_gates.flatten(1), grad_weight, grad_bias, None


class _LSTM(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, inputs_NG: Tensor, weight_GH: Tensor, bias_G: Tensor, spans: list[Span]) -> Tensor:
        width = weight_GH.shape[1]
        transposed = weight_GH.t()
        gates = inputs_NG + bias_G
        cells = gates.new_empty(len(gates), width)
        squashed = torch.empty_like(cells)
        states = torch.empty_like(cells)
        for start, end, first, last in spans:
            known = last - first
            gate, cell = gates[start:end], cells[start:end]
            if known:
                gate[:known].addmm_(states[first:last], transposed)
            enter_forget = gate[:, : 2 * width].sigmoid_()
            new = gate[:, 2 * width : 3 * width].tanh_()
            out = gate[:, 3 * width :].sigmoid_()
            torch.mul(enter_forget[:, :width], new, out=cell)
            if known:
                cell[:known].addcmul_(enter_forget[:known, width:], cells[first:last])
            torch.mul(out, torch.tanh(cell, out=squashed[start:end]), out=states[start:end])
        ctx.spans = spans
        ctx.save_for_backward(weight_GH, gates, cells, squashed, states)
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_NH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight_GH, gates, cells, squashed, states = ctx.saved_tensors
        enter, forget, new, out = gates.chunk(4, dim=1)
        past_cells = _before(cells, ctx.spans)
        # What the gradients of a cell (three gates) and of a state (the last) are multiplied by.
        by_cell = torch.stack(
            [new * enter * (1 - enter), past_cells * forget * (1 - forget), enter * (1 - new * new)], dim=1
        )
        by_state = squashed * out * (1 - out)
        cell_by_state = out * (1 - squashed * squashed)
        grad = grad_NH.clone()
        grad_cells = torch.zeros_like(grad)
        grad_gates = gates.new_empty(len(gates), 4, cells.shape[1])
        for start, end, first, last in reversed(ctx.spans):
            known = last - first
            grad_state = grad[start:end]
            grad_cell = grad_cells[start:end].addcmul_(grad_state, cell_by_state[start:end])
            torch.mul(by_cell[start:end], grad_cell.unsqueeze(1), out=grad_gates[start:end, :3])
            torch.mul(by_state[start:end], grad_state, out=grad_gates[start:end, 3])
            if known:
                earlier_cells = grad_cells[first:last]
                earlier_cells.addcmul_(grad_cell[:known], forget[start : start + known])
                _drop_vanished(earlier_cells)
                earlier = grad[first:last].addmm_(grad_gates[start : start + known].flatten(1), weight_GH)
                _drop_vanished(earlier)
        grad_inputs = grad_gates.flatten(1)
        return grad_inputs, grad_inputs.t() @ _before(states, ctx.spans), grad_inputs.sum(0), None


def scan(
    cell: str, inputs_NG: Tensor, weight_GH: Tensor, bias_G: Tensor, sizes: list[int], reverse: bool
) -> Tensor:
    """The states (N, H) of one layer in one direction.

    Args:
        cell: lstm or gru.
        inputs_NG: what the tokens give to the gates, their own bias included, in packed order.
        weight_GH: from the state before to the gates.
        bias_G: added to that.
        sizes: how many documents have a token at each of the L steps.
        reverse: read each document from its end.
    """
    function = _LSTM if cell == "lstm" else _GRU
    # Under autocast the inputs come in half precision; what follows step by step keeps the weights' own.
    return function.apply(inputs_NG.to(weight_GH.dtype), weight_GH, bias_G, _spans(sizes, reverse))
