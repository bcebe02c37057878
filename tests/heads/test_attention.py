"""Learned weights of tokens against plain loops over one document at a time."""

from __future__ import annotations

import pytest
import torch
from head_reference import LENGTHS, D, V, assert_same, make_batch
from plain_heads import plain_of
from running import threads_restored
from torch.utils.flop_counter import FlopCounterMode

from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.attention import Attention, LabelAttention, WeightedMean, softmax, weighted_sums
from textbed.heads.layers import Layered

C = 3


def test_the_weights_of_a_document_sum_to_one():
    batch = make_batch(LENGTHS)
    scores = torch.randn(len(batch.ids), 2) * 100
    sums = batch.reduce(softmax(scores, batch), "sum")
    torch.testing.assert_close(sums, (batch.lengths > 0).float().unsqueeze(1).expand(-1, 2))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, queries):
    """A thousand equal rows under equal weights: their mean is the row, whatever a sum in halves gives."""
    batch = make_batch([1000])
    values, scores = torch.full((1000, 1), 1.5, dtype=dtype), torch.zeros(1000, queries, dtype=dtype)
    sums = weighted_sums(values, softmax(scores, batch), batch)
    assert torch.equal(sums, torch.full((1, queries), 1.5, dtype=dtype))


def test_weighted_mean_against_one_document_at_a_time():
    torch.manual_seed(0)
    head = WeightedMean(D)
    assert_same(head, plain_of(head))


def test_a_weighted_mean_of_weights_that_vanish_is_a_mean():
    head, table, batch = WeightedMean(D), Table(V, D, scale=1.0), make_batch([4])
    torch.nn.init.zeros_(head.score.weight)
    torch.nn.init.constant_(head.score.bias, -200.0)  # its sigmoid is 0 in float32
    torch.testing.assert_close(head(batch, table), table(batch).mean(0, keepdim=True))


@pytest.mark.parametrize(("hidden", "queries"), [(None, 1), (4, 1), (4, 3), (None, 2)])
def test_attention_against_one_document_at_a_time(hidden, queries):
    torch.manual_seed(0)
    head = Attention(D, hidden, queries)
    assert_same(head, plain_of(head))
    assert len(list(head.parameters())) == (1 if hidden is None else 2)


def test_overlap_costs_in_training_alone_and_is_asked_once():
    torch.manual_seed(0)
    head, table, batch = Attention(D, None, 3, overlap=0.5), Table(V, D, scale=1.0), make_batch([4, 0, 1])
    assert head.penalty() is None
    head(batch, table)
    penalty = head.penalty()
    assert head.penalty() is None
    expected = 0.0
    for rows in table(batch).split([4, 1]):
        weights = head.score(rows).softmax(0)
        expected = expected + 0.5 * (weights.t() @ weights - torch.eye(3)).square().sum() / 3
    torch.testing.assert_close(penalty, expected)
    parameters = [*head.parameters(), table.table.weight]
    torch.testing.assert_close(
        torch.autograd.grad(penalty, parameters), torch.autograd.grad(expected, parameters)
    )
    for quiet in (head.eval(), Attention(D, None, 3)):
        quiet(batch, table)
        assert quiet.penalty() is None
    # One token is all that each of the three queries can look at: 1 everywhere, six of nine too much.
    head.train()(make_batch([1]), table)
    assert Layered(head, [2]).penalty().item() == pytest.approx(0.5 * 6)


@pytest.mark.parametrize("window", [1, 3, 5, 21])
def test_label_attention_against_one_document_at_a_time(window):
    torch.manual_seed(0)
    head = LabelAttention(D, C, window)
    torch.nn.init.normal_(head.bias, std=0.1)
    assert_same(head, plain_of(head))


def test_rows_of_zeros_have_no_direction_and_a_small_gradient():
    """Beside others, since where all rows are zeros no weight of theirs matters."""
    torch.manual_seed(0)
    table, batch = Table(V, D, scale=1.0), make_batch([4, 5])
    with torch.no_grad():
        table.table.weight[batch.ids[1].long()] = 0
    head = LabelAttention(D, C, 3)
    torch.nn.init.constant_(head.bias, 5.0)  # so that the ReLU lets every gradient through
    head(batch, table).sum().backward()
    grads = table.table.weight.grad.norm(dim=1)
    assert 10 < grads[batch.ids[1].long()] < 1e4


def test_label_attention_to_a_token_alone_reads_nothing_of_nothing():
    head, table = LabelAttention(D, C, 1), Table(V, D, scale=1.0)
    values = head(make_batch([0, 0]), table)
    assert torch.equal(values, torch.zeros(2, D))
    values.sum().backward()


@pytest.mark.parametrize(
    ("head", "reductions"),
    [
        # For each query the largest score, the sum of the exponents, and the sum of the rows.
        (WeightedMean(D), 2 + D),
        (Attention(D, 4, 3), 3 * (2 + D)),
        (Attention(D, None, 1), 2 + D),
        (LabelAttention(D, C, 5), 2 + D),
    ],
)
def test_multiply_adds_are_torchs_and_the_reductions(head, reductions):
    lengths = [9]
    with FlopCounterMode(display=False) as flops:
        head(make_batch(lengths), Table(V, D))
    counted = flops.get_total_flops() / 2
    if isinstance(head, Attention) and head.queries > 1:
        counted -= 9 * head.queries * D  # the sum of the rows is a product there
    if isinstance(head, LabelAttention):
        counted -= 4 * 5 * C  # windows around the zeros at both ends, which nobody reads
    assert head.multiply_adds(lengths) - 9 * reductions == counted
    assert head.multiply_adds([4, 5]) == head.multiply_adds(lengths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(D, 0), r"head.hidden is 0; expected at least 1, or null"),
        (lambda: Attention(D, 4, 0), r"head.queries is 0; expected at least 1"),
        (lambda: Attention(D, 4, 2, -1.0), r"head.overlap is -1.0; expected a number from 0 up"),
        (lambda: LabelAttention(D, C, 4), r"head.window is 4; expected an odd number"),
        (lambda: LabelAttention(D, C, -1), r"head.window is -1; expected an odd number"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "head",
    [WeightedMean(D), Attention(D, 4, 1), Attention(D, 4, 3, overlap=1.0), LabelAttention(D, C, 3)],
    ids=["weighted", "attention", "queries", "labels"],
)
def test_threads_add_gradients_up_in_the_same_order_every_time(head):
    """Enough tokens for torch to divide them among threads, all of one document, whose sum these share."""
    batch, table = make_batch([40_000]), Table(V, D, scale=1.0)
    grad_BH = torch.randn(1, head.out_dim, generator=torch.Generator().manual_seed(1))
    parameters = [*head.parameters(), *table.parameters()]

    def gradients():
        result = (head(batch, table) * grad_BH).sum() + (head.penalty() or 0)
        return torch.autograd.grad(result, parameters)

    with threads_restored():
        torch.set_num_threads(2)
        first, *others = [gradients() for _ in range(4)]
    for other in others:
        assert all(map(torch.equal, first, other))


def test_threads_add_a_softmax_up_in_the_same_order_every_time():
    """The gradient of a document's sum is a sum over its tokens, which is where the order could differ."""
    batch = make_batch([40_000])
    scores = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    grad = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(3))
    with threads_restored():
        torch.set_num_threads(2)
        first, *others = [torch.autograd.grad(softmax(scores, batch), scores, grad)[0] for _ in range(6)]
    assert all(torch.equal(first, other) for other in others)
