"""Lookups and pooling against plain PyTorch: the values, and the gradients of our own backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from textbed.batch import TokenBatch
from textbed.embedding import bag

V, D, PAD = 30, 7, 0
MODES = ["sum", "mean", "max"]


def batch_of(*documents: list[int], weights: torch.Tensor | None = None) -> TokenBatch:
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0).int()
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(ids, offsets, weights=weights)


def drawn(seed: int = 0, weighted: bool = False) -> TokenBatch:
    """50 documents of 0 to 39 tokens, the lower numbers far more often; a few of them padding."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 40, (50,), generator=random).tolist()
    draw = torch.rand(sum(lengths), generator=random)
    ids = (draw**3 * V).int()
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    weights = torch.randn(len(ids), generator=random) if weighted else None
    return TokenBatch(ids, offsets, weights=weights)


BATCHES = {
    "drawn": drawn(),
    "one token": batch_of([3]),
    "empty documents": batch_of([], [5, 5, 5, 2], [], [PAD], []),
    "padding alone": batch_of([PAD, PAD]),
    "no tokens": batch_of([], []),
    "no documents": TokenBatch(torch.empty(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)),
}


def table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()


def plain(weight: torch.Tensor, batch: TokenBatch, mode: str, padding_idx: int | None) -> torch.Tensor:
    """Look up with PyTorch's own, and reduce."""
    batch = batch.without(padding_idx)
    rows = F.embedding(batch.ids, weight)
    return batch.reduce(rows if batch.weights is None else rows * batch.weights.unsqueeze(1), mode)


def gradients(pooled: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    towards = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    return [
        gradient.to_dense() if gradient.is_sparse else gradient
        for gradient in torch.autograd.grad(pooled, inputs, towards.to(pooled.dtype))
    ]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding_idx", [PAD, None])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BATCHES)
def test_gradients_of_pooling_are_those_of_pytorch_to_the_last_bit(name, mode, padding_idx, sparse):
    batch, weight = BATCHES[name], table()
    pooled = bag.pool(weight, batch, mode, padding_idx=padding_idx, sparse=sparse)
    expected = plain(weight, batch, mode, padding_idx)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5 if mode == "sum" else 1e-6)
    assert torch.equal(*gradients(pooled, weight), *gradients(expected, weight))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding_idx", [PAD, None])
@pytest.mark.parametrize("name", BATCHES)
def test_gradients_of_looking_up_are_those_of_pytorch_to_the_last_bit(name, padding_idx, sparse):
    batch, weight = BATCHES[name], table()
    rows = bag.look_up(weight, batch, padding_idx=padding_idx, sparse=sparse)
    expected = F.embedding(batch.ids, weight, padding_idx)
    assert torch.equal(rows, expected)
    assert torch.equal(*gradients(rows, weight), *gradients(expected, weight))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("trained", ["both", "table", "weights"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_get_their_gradient_too(mode, trained, sparse):
    batch, weight = drawn(weighted=True), table()
    batch.weights.requires_grad_(trained != "table")
    weight.requires_grad_(trained != "weights")
    inputs = [tensor for tensor in (weight, batch.weights) if tensor.requires_grad]
    pooled = bag.pool(weight, batch, mode, padding_idx=PAD, sparse=sparse)
    expected = plain(weight, batch, mode, PAD)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(gradients(pooled, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_against_differences(mode):
    """In float64, by moving every number a little."""
    batch, weight = batch_of([3, 1, 3], [], [2, 4, 1]), table(torch.float64)
    weights = torch.tensor([0.5, -2.0, 1.5, 3.0, 0.7, -0.3], dtype=torch.float64, requires_grad=True)

    def pooled(weight, weights):
        return bag.pool(weight, TokenBatch(batch.ids, batch.offsets, weights=weights), mode)

    assert torch.autograd.gradcheck(pooled, (weight, weights))
    assert torch.autograd.gradcheck(lambda weight: bag.pool(weight, batch, mode), weight)
    assert torch.autograd.gradcheck(lambda weight: bag.look_up(weight, batch), weight)


def test_the_first_of_equal_values_is_the_largest():
    weight = torch.ones(V, 2, requires_grad=True)
    batch = batch_of([4, 2, 9], [9, 4], weights=None)
    (gradient,) = torch.autograd.grad(bag.pool(weight, batch, "max").sum(), weight)
    assert gradient[[4, 2, 9]].tolist() == [[1, 1], [0, 0], [1, 1]]
    direct = F.embedding_bag(batch.ids, weight, batch.offsets, mode="max", include_last_offset=True)
    assert torch.equal(gradient, *torch.autograd.grad(direct.sum(), weight))


@pytest.mark.parametrize("mode", MODES)
def test_a_sparse_gradient_holds_every_touched_row_once(mode):
    weight = table()
    batch = batch_of([5, 2, 5, PAD, 5], [29, 2])
    bag.pool(weight, batch, mode, padding_idx=PAD, sparse=True).sum().backward()
    assert weight.grad.is_sparse
    rows, values = bag.touched(weight.grad)
    expected = [2, 5, 29]
    if mode == "max":  # a row that was largest nowhere is not touched
        assert weight.grad._indices()[0].tolist() == rows.tolist()
        expected = sorted({*plain_winners(weight, batch)})
    assert rows.tolist() == expected
    assert values.shape == (len(expected), D)


def plain_winners(weight, batch):
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        tokens = [token for token in batch.ids[start:end].tolist() if token != PAD]
        yield from (tokens[place] for place in weight[tokens].argmax(0).tolist())


@pytest.mark.parametrize("sparse", [False, True])
def test_one_table_used_several_times_and_in_several_batches(sparse):
    """Means, maxima and rows of one table in one graph, and a second batch before the step."""
    ours, reference = table(), table()
    batches = [drawn(seed) for seed in (3, 4)]

    def loss(pool, look_up, batch):
        return (pool(batch, "mean") * pool(batch, "max")).sum() + look_up(batch).square().sum()

    for batch in batches:
        loss(
            lambda batch, mode: bag.pool(ours, batch, mode, padding_idx=PAD, sparse=sparse),
            lambda batch: bag.look_up(ours, batch, padding_idx=PAD, sparse=sparse),
            batch,
        ).backward()
        loss(
            lambda batch, mode: plain(reference, batch, mode, PAD),
            lambda batch: F.embedding(batch.ids, reference, PAD),
            batch,
        ).backward()
    assert ours.grad.is_sparse == sparse
    torch.testing.assert_close(ours.grad.to_dense(), reference.grad, rtol=1e-5, atol=1e-5)
    if sparse:
        rows, values = bag.touched(ours.grad)
        assert rows.tolist() == sorted(set(torch.cat([batch.ids for batch in batches]).tolist()) - {PAD})
        torch.testing.assert_close(values, ours.grad.to_dense()[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_threads_changes_no_bit(mode, sparse):
    """120,000 tokens are enough for torch to divide them among threads."""
    random = torch.Generator().manual_seed(5)
    batch = TokenBatch(
        (torch.rand(120_000, generator=random) ** 3 * 5000).int(), torch.arange(0, 120_001, 200).int()
    )
    weight = torch.randn(5000, 20, generator=random, requires_grad=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(*gradients(bag.pool(weight, batch, mode, sparse=sparse), weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_sums_in_float32(mode, weighted, sparse):
    """300 times the same row: bfloat16 alone would stop adding ones at 256."""
    weight = torch.ones(V, 2, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.ones(300) if weighted else None
    batch = TokenBatch(torch.full((300,), 4).int(), torch.arange(301).int(), weights=weights)
    (gradient,) = torch.autograd.grad(bag.pool(weight, batch, mode, sparse=sparse).sum(), weight)
    assert gradient.dtype == torch.bfloat16
    assert gradient.to_dense()[4].tolist() == [300, 300]
    (gradient,) = torch.autograd.grad(bag.look_up(weight, batch, sparse=sparse).sum(), weight)
    assert gradient.to_dense()[4].tolist() == [300, 300]


def test_the_gradient_of_a_gradient():
    weight, batch = table(), drawn()
    rows = bag.look_up(weight, batch, padding_idx=PAD)
    (first,) = torch.autograd.grad((rows**3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    counts = torch.bincount(batch.ids, minlength=V)
    counts[PAD] = 0
    torch.testing.assert_close(second, counts.unsqueeze(1) * 6 * weight)
    pooled = bag.pool(weight, batch, "mean").square().sum()
    (first,) = torch.autograd.grad(pooled, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_rows_are_written_where_they_belong():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for whole in (torch.zeros(V, D, dtype=dtype), torch.zeros(D, V, dtype=dtype).t()):
            values = torch.randn(3, D, dtype=dtype)
            bag.write_rows(whole, torch.tensor([1, 4, 29]), values)
            assert torch.equal(whole[[1, 4, 29]], values)
            assert not whole[[0, 2, 3, *range(5, 29)]].any()
            bag.write_rows(whole, torch.empty(0, dtype=torch.int64), values[:0])
            assert torch.equal(whole[[1, 4, 29]], values)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled_gives_the_same(mode):
    """Inside a compiled graph PyTorch's own backward is taken; this backend traces and makes no code."""
    batch = drawn().without(PAD)
    weight = table()
    compiled = torch.compile(lambda weight: bag.pool(weight, batch, mode), backend="eager")
    expected = bag.pool(weight, batch, mode)
    torch.testing.assert_close(compiled(weight), expected)
    torch.testing.assert_close(*gradients(compiled(weight), weight), *gradients(expected, weight))
