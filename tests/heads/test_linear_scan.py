"""The parallel scan against a loop over tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from head_reference import make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from textbed.heads.linear_scan import Pieces, linear_scan


def loop(a, b, lengths, backwards, cut=None):
    """h = a h' + b, token after token."""
    states = [None] * len(a)
    for start, end in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        before = torch.zeros_like(a[0])
        for count, token in enumerate(range(end - 1, start - 1, -1) if backwards else range(start, end)):
            before = before.detach() if cut and count % cut == 0 else before
            before = states[token] = a[token] * before + b[token]
    return torch.stack(states)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("cut", [None, 1, 3])
@pytest.mark.parametrize("lengths", [[1], [5], [0, 3, 1], [4, 0, 1, 9, 9, 2, 0], [40, 2, 17]], ids=str)
def test_values_and_gradients(lengths, backwards, cut):
    torch.manual_seed(0)
    order = Pieces.of(make_batch(lengths))
    a = torch.rand(sum(lengths), 3, dtype=torch.double, requires_grad=True)
    b = torch.randn(sum(lengths), 3, dtype=torch.double, requires_grad=True)
    ours = linear_scan(a[order.tokens], b[order.tokens], order, backwards=backwards, cut=cut)[order.slots]
    expected = loop(a, b, lengths, backwards, cut)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    factors = torch.randn_like(expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * factors).sum(), [a, b]) for out in (ours, expected)),
        rtol=1e-11,
        atol=1e-12,
    )


@pytest.mark.parametrize("kept", [0.0, 1e-30, 0.9, 0.999, 1.0, None])
@pytest.mark.parametrize("backwards", [False, True])
def test_2500_tokens_in_float32(kept, backwards):
    """As near to double precision as float32 is to it, whatever the factors; None: anything from 0 to 1."""
    torch.manual_seed(0)
    lengths = [2500, 3]
    order = Pieces.of(make_batch(lengths))
    a = torch.rand(2503, 2) ** torch.tensor([0.1, 30.0]) if kept is None else torch.full((2503, 2), kept)
    b = (1 - a).clamp(min=1e-3) * torch.randn(2503, 2)
    results = []
    for dtype in (torch.float32, torch.double):
        pair = [part.detach().to(dtype).requires_grad_() for part in (a, b)]
        parts = [part[order.tokens] for part in pair]
        states = linear_scan(*parts, order, backwards=backwards)[order.slots]
        weights = torch.zeros_like(states).index_fill(0, torch.tensor([0, 1250, 2499, 2502]), 1)
        grads = torch.autograd.grad((states * weights).sum(), pair)
        results.append([states.detach(), *grads])
        assert all(part.isfinite().all() for part in results[-1])
    torch.testing.assert_close(results[1][0], loop(a.double(), b.double(), lengths, backwards))
    for narrow, wide in zip(*results, strict=True):
        assert (narrow - wide).abs().max() <= 2e-6 * wide.abs().max()
        # on which a processor is slow, so no more than a decay passes on its way to zero
        denormal = (narrow != 0) & (narrow.abs() < torch.finfo().tiny)
        assert denormal.float().mean() < 0.01


def test_steps_grow_with_the_square_root_of_the_length():
    class Steps(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten.addcmul_.default
            return function(*args, **kwargs or {})

    for length in (100, 2500):
        order = Pieces.of(make_batch([length]))
        with Steps() as steps:
            linear_scan(torch.rand(length, 1), torch.rand(length, 1), order)
        assert steps.count <= 3 * math.sqrt(length)
