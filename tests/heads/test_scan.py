"""The scan against PyTorch's own packed LSTM and GRU, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from textbed.heads.scan import scan

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[1], [3], [1, 1, 1], [4, 4, 3, 1, 1], [5, 1]], ids=str)
def test_states_and_gradients(cell, reverse, sizes):
    torch.manual_seed(0)
    width = 7
    rnn = KINDS[cell](5, width, bidirectional=True, dtype=torch.double)
    values = torch.randn(sum(sizes), 5, dtype=torch.double, requires_grad=True)
    half = slice(width, None) if reverse else slice(width)
    expected = rnn(PackedSequence(values, torch.tensor(sizes)))[0].data[:, half]
    names = [f"{name}_l0{'_reverse' * reverse}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weight_in, weight, bias_in, bias = parameters = [getattr(rnn, name) for name in names]
    ours = scan(cell, F.linear(values, weight_in, bias_in), weight, bias, sizes, reverse)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), [values, *parameters]),
        torch.autograd.grad((expected * weights).sum(), [values, *parameters]),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("cell", KINDS)
def test_work_is_linear_in_the_tokens(cell):
    """PyTorch's packed GRU writes 2 x N x L x gates numbers, 8 million; 200 x N x hidden are allowed."""
    steps, hidden = 400, 8
    gates = {"lstm": 4, "gru": 3}[cell] * hidden
    inputs = torch.randn(steps, gates, requires_grad=True)
    weight, bias = torch.randn(gates, hidden, requires_grad=True), torch.zeros(gates, requires_grad=True)

    class Written(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor) and not function.is_view:
                self.numbers += out.numel()
            return out

    with Written() as written:
        scan(cell, inputs, weight, bias, [1] * steps, reverse=False).sum().backward()
    assert 20 * steps * hidden < written.numbers < 200 * steps * hidden


@pytest.mark.parametrize("cell", KINDS)
def test_inputs_in_half_precision_are_taken(cell):
    """As they come under the autocast of another device than the CPU."""
    torch.manual_seed(0)
    gates = {"lstm": 8, "gru": 6}[cell]
    inputs, weight, bias = torch.randn(5, gates).bfloat16(), torch.randn(gates, 2), torch.randn(gates)
    states = scan(cell, inputs.requires_grad_(), weight, bias, [2, 2, 1], reverse=False)
    assert torch.equal(states, scan(cell, inputs.float(), weight, bias, [2, 2, 1], reverse=False))
    states.sum().backward()
    assert inputs.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("cell", KINDS)
def test_under_autocast_it_stays_in_float32(cell):
    torch.manual_seed(0)
    rnn = KINDS[cell](5, 4)
    values = torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = F.linear(values, rnn.weight_ih_l0, rnn.bias_ih_l0)
        assert inputs.dtype == torch.bfloat16
        states = scan(cell, inputs, rnn.weight_hh_l0, rnn.bias_hh_l0, [3, 2, 1], reverse=False)
    assert states.dtype == torch.float32
    states.sum().backward()
    assert rnn.weight_ih_l0.grad.dtype == torch.float32
    expected = rnn(PackedSequence(values, torch.tensor([3, 2, 1])))[0].data
    torch.testing.assert_close(states, expected, rtol=0.02, atol=0.02)
