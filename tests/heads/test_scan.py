"""The scan against PyTorch's own packed layers, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from textbed.heads import scan as module
from textbed.heads.scan import scan

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1, "rnn_none": 1}


def make(cell, width=7, dtype=torch.double):
    torch.manual_seed(0)
    kind = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    return KINDS[cell](5, width, dtype=dtype, **kind)


def run(cell, rnn, values, sizes, **settings):
    """One direction over one row of inputs for each token."""
    weight_in, weight, bias_in, bias = rnn.parameters()
    inputs = F.linear(values, weight_in, bias_in if cell == "gru" else bias_in + bias)
    bias = bias.unsqueeze(0) if cell == "gru" else None
    index = torch.arange(len(values)).unsqueeze(0)
    return scan(cell, inputs.unsqueeze(0), index, weight.unsqueeze(0), bias, sizes, **settings)[0]


def assert_same_gradients(ours, expected, parameters):
    factors = torch.randn_like(expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * factors).sum(), parameters) for out in (ours, expected)),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("chunk", [1, 5, 256])
@pytest.mark.parametrize("sizes", [[1], [3], [1, 1, 1], [4, 4, 3, 1, 1], [5, 1], [2] * 20 + [1]], ids=str)
def test_states_and_gradients(cell, sizes, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rnn = make(cell)
    values = torch.randn(sum(sizes), 5, dtype=torch.double, requires_grad=True)
    expected = rnn(PackedSequence(values, torch.tensor(sizes)))[0].data
    ours = run(cell, rnn, values, sizes)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert_same_gradients(ours, expected, [values, *rnn.parameters()])


@pytest.mark.parametrize("cell", KINDS)
def test_directions_read_in_orders_and_with_weights_of_their_own(cell):
    torch.manual_seed(0)
    width, sizes, rows = 3, [4, 3, 3, 1], 6
    inputs = torch.randn(2, rows, GATES[cell] * width, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, GATES[cell] * width, width, dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, GATES[cell] * width, dtype=torch.double, requires_grad=True)
    index = torch.randint(rows, (2, sum(sizes)))
    parameters = [inputs, weight, *([bias] if cell == "gru" else [])]
    given = bias if cell == "gru" else None
    together = scan(cell, inputs, index, weight, given, sizes)
    alone = torch.cat(
        [
            scan(
                cell,
                inputs[k : k + 1, index[k]],
                torch.arange(sum(sizes)).unsqueeze(0),
                weight[k : k + 1],
                None if given is None else given[k : k + 1],
                sizes,
            )
            for k in (0, 1)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert_same_gradients(together, alone, parameters)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "rnn_none"])
@pytest.mark.parametrize("leak", [1.0, 0.3])
@pytest.mark.parametrize("cut", [None, 2])
def test_leaks_and_cuts_by_a_loop(cell, leak, cut):
    torch.manual_seed(0)
    sizes, width = [3, 3, 2, 1, 1], 4
    inputs = torch.randn(1, sum(sizes), width, dtype=torch.double, requires_grad=True)
    weight = torch.randn(1, width, width, dtype=torch.double, requires_grad=True)
    ours = scan(cell, inputs, torch.arange(10).unsqueeze(0), weight, None, sizes, cut=cut, leak=leak)[0]
    function = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu, "rnn_none": lambda values: values}[cell]
    states, before = [], torch.zeros(3, width, dtype=torch.double)
    for step, values in enumerate(inputs[0].split(sizes)):
        before = before[: len(values)]
        before = before.detach() if cut and step % cut == 0 else before
        before = (1 - leak) * before + leak * function(values + before @ weight[0].t())
        states.append(before)
    expected = torch.cat(states)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert_same_gradients(ours, expected, [inputs, weight])


@pytest.mark.parametrize("cell", GATES)
def test_weights_that_are_frozen_get_no_gradient_and_cost_none(cell):
    gates = GATES[cell] * 3
    inputs = torch.randn(1, 4, gates, requires_grad=True)
    weight, bias = torch.randn(1, gates, 3), torch.randn(1, gates) if cell == "gru" else None
    scan(cell, inputs, torch.arange(4).unsqueeze(0), weight, bias, [2, 1, 1]).sum().backward()
    assert inputs.grad.any()
    fixed = inputs.detach()
    states = scan(cell, fixed, torch.arange(4).unsqueeze(0), weight.requires_grad_(), bias, [2, 1, 1])
    states.sum().backward()
    assert fixed.grad is None
    assert weight.grad.any()


@pytest.mark.parametrize("cell", GATES)
def test_work_is_linear_in_the_tokens(cell):
    """PyTorch's packed GRU writes 2 x N x L x gates numbers, 8 million; 200 x N x hidden are allowed."""
    steps, hidden = 400, 8
    gates = GATES[cell] * hidden
    inputs = torch.randn(1, steps, gates, requires_grad=True)
    weight = torch.randn(1, gates, hidden, requires_grad=True)
    bias = torch.zeros(1, gates, requires_grad=True) if cell == "gru" else None

    class Written(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor) and not function.is_view:
                self.numbers += out.numel()
            return out

    with Written() as written:
        scan(cell, inputs, torch.arange(steps).unsqueeze(0), weight, bias, [1] * steps).sum().backward()
    assert 5 * steps * hidden < written.numbers < 200 * steps * hidden


@pytest.mark.parametrize("cell", GATES)
def test_gradients_that_vanish_are_zero_and_not_denormal(cell):
    torch.manual_seed(0)
    steps, gates = 300, GATES[cell] * 4
    inputs = torch.randn(1, steps, gates).requires_grad_()
    weight = (torch.randn(1, gates, 4) * 0.05).requires_grad_()
    bias = torch.zeros(1, gates) if cell == "gru" else None
    states = scan(cell, inputs, torch.arange(steps).unsqueeze(0), weight, bias, [1] * steps)
    states[0, -1].sum().backward()
    size = inputs.grad.abs()
    assert size[0, -1].max() > 0.01
    assert not size[0, :50].any()
    assert not ((size > 0) & (size < torch.finfo().tiny)).any()


@pytest.mark.parametrize("cell", KINDS)
def test_inputs_in_half_precision_are_taken(cell):
    """As they come under the autocast of another device than the CPU."""
    torch.manual_seed(0)
    gates = GATES[cell] * 2
    inputs, weight = torch.randn(1, 5, gates).bfloat16(), torch.randn(1, gates, 2)
    bias = torch.randn(1, gates) if cell == "gru" else None
    rest = torch.arange(5).unsqueeze(0), weight, bias, [2, 2, 1]
    states = scan(cell, inputs.requires_grad_(), *rest)
    assert torch.equal(states, scan(cell, inputs.float(), *rest))
    states.sum().backward()
    assert inputs.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("cell", KINDS)
def test_under_autocast_it_stays_in_float32(cell):
    rnn, values = make(cell, 4, torch.float32), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(values, rnn.weight_ih_l0).dtype == torch.bfloat16
        states = run(cell, rnn, values, [3, 2, 1])
    assert states.dtype == torch.float32
    states.sum().backward()
    assert rnn.weight_ih_l0.grad.dtype == torch.float32
    expected = rnn(PackedSequence(values, torch.tensor([3, 2, 1])))[0].data
    torch.testing.assert_close(states, expected, rtol=0.02, atol=0.02)
