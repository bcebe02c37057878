"""Pairs and several labels with every head and every front end of the configs, found by listing them.

A pair is read as InferSent reads it (Conneau et al. 2017, arXiv:1705.02364): both texts through one front end
and one head, then u, v, |u - v| and u * v side by side.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from running import EMBEDDINGS, HEADS, front_end, head_config
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.classifier import TextClassifier
from textbed.data.loading import TokenDataset
from textbed.embedding.table import FrontEnd, Table
from textbed.pooled import PooledDocuments, can_be_reused
from textbed.training import build_head

V, D, C = 30, 6, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
# Five pairs: equal texts, an empty one on either side, one token, long beside short.
FIRST = [[3, 4, 5], [7], [], [9, 9, 10, 11, 12, 13, 3], [14, 15]]
SECOND = [[3, 4, 5], [8, 4], [16, 17], [18], []]
# Words that are the whole text of one side, and that the other has not.
ONLY_FIRST, ONLY_SECOND = 7, 18


def batch_of(*texts: list[int]) -> TokenBatch:
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    return TokenBatch(ids, torch.tensor([0, *map(len, texts)]).cumsum(0).int())


def make(
    head: str, embedding: FrontEnd | None = None, pairs: bool = True, multilabel: bool = False
) -> TextClassifier:
    torch.manual_seed(0)
    if embedding is None:
        embedding = Table(V, D, padding_idx=0, scale=1.0)
    made = build_head(head_config(head), embedding.dim, C, seed=0)
    return TextClassifier(embedding, made, C, pairs=pairs, multilabel=multilabel)


def alone(model: TextClassifier, text: list[int]) -> Tensor:
    """(H,) of one text in a batch of its own."""
    return model.head(model.embedding.prepare(batch_of(text)), model.embedding)[0]


def by_hand(model: TextClassifier, first: list[int], second: list[int]) -> Tensor:
    """(C,) logits of one pair, from its two texts each read alone."""
    u, v = alone(model, first), alone(model, second)
    weight = model.linear.weight.split(len(u), dim=1)
    parts = [u, v, torch.maximum(u, v) - torch.minimum(u, v), u * v]
    return model.linear.bias + sum(w @ part for w, part in zip(weight, parts, strict=True))


def check_pairs(model: TextClassifier) -> None:
    """Logits and gradients are those of both texts read alone, and swapped texts swap u and v."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    ours = model(batch_of(*FIRST, *SECOND))
    expected = torch.stack([by_hand(model, u, v) for u, v in zip(FIRST, SECOND, strict=True)])
    assert ours.shape == (5, C)
    torch.testing.assert_close(ours, expected, **CLOSE)
    factors = torch.linspace(-1, 1, 5 * C).view(5, C)
    grads = [torch.autograd.grad((out * factors).sum(), trained) for out in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    for parameter, grad in zip(trained, grads[0], strict=True):
        assert grad.any(), parameter.shape
    with torch.no_grad():
        plain, swapped = (model.features(batch_of(*a, *b)) for a, b in ((FIRST, SECOND), (SECOND, FIRST)))
    u, v, apart, times = plain.chunk(4, dim=1)
    torch.testing.assert_close(swapped, torch.cat([v, u, apart, times], dim=1), **CLOSE)
    assert not torch.allclose(u, v, atol=1e-3)
    torch.testing.assert_close(u[0], v[0], **CLOSE)  # equal texts
    assert not apart[0].any() or apart[0].max() < 1e-5
    assert not times[2].any()  # beside an empty text
    assert not times[4].any()


@pytest.mark.parametrize("head", HEADS)
def test_pairs_with_every_head(head):
    model = make(head)
    check_pairs(model)
    model(batch_of(*FIRST, *SECOND)).square().sum().backward()
    grad = model.embedding.table.weight.grad
    assert grad[ONLY_FIRST].any()
    assert grad[ONLY_SECOND].any()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("head", ["mean", "max", "hierarchical", "gru"])
def test_pairs_with_every_front_end(embedding, head):
    torch.manual_seed(0)
    found = torch.arange(V) % 4 > 0
    more = {"adapted": {"rank": 2}, "hashed": {"buckets": 50}, "ngrams": {"buckets": 50}}
    made = front_end(embedding, V, D, found=found, **more.get(embedding, {}))
    with torch.no_grad():  # what begins as zeros would give and get nothing
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    for part in made.modules():
        if isinstance(part, Table):
            part.set_clock(99, 99)  # past any thaw
        if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx] = 0
    check_pairs(make(head, made))


class Column:
    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.lengths = np.array([len(text) for text in texts])

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = [token for row in rows for token in self.texts[row]]
        return np.array(ids, np.int32), np.cumsum([0, *self.lengths[rows]])


@pytest.mark.parametrize("head", HEADS)
def test_pairs_whose_texts_are_pooled_once(head):
    """The same logits to the last bit, by whichever head has a part that can be kept."""
    vectors = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
    model = make(head, Table(V, vectors=vectors, trainable=False, padding_idx=0)).eval()
    fixed = {"mean", "sum", "max", "min", "mean_max", "hierarchical", "dan"}
    assert can_be_reused(model.embedding, model.head) == (head in fixed)
    if head not in fixed:
        return
    dataset = TokenDataset([Column(FIRST), Column(SECOND)], np.zeros(5, np.int64), np.arange(5))
    kept = PooledDocuments(dataset, model.embedding, model.head, "cpu")
    batch = dataset.__getitems__([3, 0, 4])
    with torch.no_grad():
        again = model(TokenBatch(batch.ids[:0], batch.offsets * 0, pooled=kept[batch.rows]))
        assert torch.equal(again, model(batch))


# Losses by hand


def cross_entropy(logits: list[float], label: int) -> float:
    exponents = np.exp(logits)
    return -float(np.log(exponents[label] / exponents.sum()))


def binary_cross_entropy(logits: list[float], targets: list[float]) -> float:
    chances = 1 / (1 + np.exp(-np.array(logits)))
    return -float(
        np.mean([np.log(p if target else 1 - p) for p, target in zip(chances, targets, strict=True)])
    )


@pytest.mark.parametrize(("pairs", "multilabel"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("head", HEADS)
def test_steps_of_training_with_every_head(head, pairs, multilabel):
    """The first loss is that of each document alone, by hand; steps lower it, and what is trained moves."""
    model = make(head, pairs=pairs, multilabel=multilabel)
    batch = batch_of(*FIRST, *SECOND) if pairs else batch_of(*FIRST)
    labels = torch.tensor([0, 2, 1, 0, 1])
    if multilabel:
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
    before = {name: value.clone() for name, value in model.named_parameters()}

    model.make_optimizer = functools.partial(torch.optim.Adam, lr=0.003)
    optimizer = model._optimizer()
    losses = []
    for _ in range(4):
        total, weight = model.loss_parts(model(batch), labels)
        losses.append((total / weight).item())
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    assert losses[3] < losses[0]

    first = make(head, pairs=pairs, multilabel=multilabel)
    loss = binary_cross_entropy if multilabel else cross_entropy
    by_document = []
    with torch.no_grad():
        for number, label in enumerate(labels.tolist()):
            if pairs:
                logits = by_hand(first, FIRST[number], SECOND[number])
            else:
                logits = first.linear.weight @ alone(first, FIRST[number]) + first.linear.bias
            by_document.append(loss(logits.tolist(), label))
    assert losses[0] == pytest.approx(np.mean(by_document), rel=1e-4)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad, name
    chances = model.probabilities(model(batch))
    assert chances.shape == (5, C)
    if not multilabel:
        torch.testing.assert_close(chances.sum(1), torch.ones(5))


def test_the_activation_is_of_each_text_not_of_the_combination():
    head = build_head(head_config("mean"), D, C, seed=0)
    model = TextClassifier(Table(V, D, padding_idx=0, scale=1.0), head, C, pairs=True, activation="tanh")
    u, v = alone(model, FIRST[0]).tanh(), alone(model, SECOND[0]).tanh()
    expected = model.linear(torch.cat([u, v, (u - v).abs(), u * v]))
    torch.testing.assert_close(model(batch_of(FIRST[0], SECOND[0]))[0], expected)


def test_no_two_combinations_of_texts_are_mixed_up():
    """Each pair has its own texts: a pair alone, and any pair in any batch, gives the same."""
    model = make("bilstm").eval()
    with torch.no_grad():
        for order in itertools.permutations(range(3)):
            both = batch_of(*(FIRST[i] for i in order), *(SECOND[i] for i in order))
            expected = [model(batch_of(FIRST[i], SECOND[i]))[0] for i in order]
            torch.testing.assert_close(model(both), torch.stack(expected), **CLOSE)
