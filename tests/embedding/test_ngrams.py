"""Words and their n-grams against a slow plain reference: one feature at a time, in Python's own numbers."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.func import functional_call

from textbed.batch import TokenBatch
from textbed.embedding.ngrams import NGrams, _unsigned_remainder
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.schema import PASSED_ON, RECIPE_KEYS

MODES = ["sum", "mean", "max"]
TOKENS = ["<pad>", "<unk>", "the", "film", "film's", "café", "日本語", "a", "was", "not", "good", "naïveté"]
V, D, PAD, BUCKETS = len(TOKENS), 4, 0, 97
SETTINGS: dict[str, dict[str, Any]] = {
    "bigrams": {"word_ngrams": 2},
    "up to four words": {"word_ngrams": 4},
    "characters": {"word_ngrams": 1, "min_char": 2, "max_char": 4},
    "both": {"word_ngrams": 3, "min_char": 3, "max_char": 6},
    "only long": {"word_ngrams": 1, "min_char": 7, "max_char": 8},  # of most words there are none
    "bigrams beside the words": {"word_ngrams": 2, "ngram_dim": 3},
    "both beside the words": {"word_ngrams": 3, "min_char": 3, "max_char": 6, "ngram_dim": 3},
    "only long beside the words": {"word_ngrams": 1, "min_char": 7, "max_char": 8, "ngram_dim": 3},
}


def make(name: str = "both", **settings: Any) -> NGrams:
    """With rows everywhere, so that a feature in the wrong place shows."""
    torch.manual_seed(0)
    usual = {"dim": D, "padding_idx": PAD, "buckets": BUCKETS, "ngram_init": "normal", "scale": 1.0}
    usual |= {"ngram_scale": 1.0}
    return NGrams(V, tokens=TOKENS, **{**usual, **SETTINGS[name], **settings})


def batch_of(*documents: list[int], weights: list[float] | None = None) -> TokenBatch:
    lengths = torch.tensor([0, *map(len, documents)])
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(
        ids, lengths.cumsum(0).int(), weights=None if weights is None else torch.tensor(weights)
    )


DOCUMENTS = [[2, 3, 8, 9, 10], [], [5], [2, 3], [7, PAD, 3, PAD, PAD, 8, 6], [PAD], [11, 4, 1, 1, 4] * 6]
BATCH = batch_of(*DOCUMENTS)
WEIGHTS = torch.linspace(-1.5, 2.5, BATCH.ids.shape[0])


# The reference


def plain_hash(text: str) -> int:
    """FNV-1a of 32 bits, bytes signed."""
    value = 2166136261
    for byte in text.encode():
        signed = byte - 256 if byte > 127 else byte
        value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) % 2**32
    return value


def plain_word_ngrams(words: list[str], longest: int, buckets: int) -> list[tuple[int, int, int]]:
    """(first word, last word, bucket) of each, as fastText's source goes about it."""
    numbers = [plain_hash(word) for word in words]
    numbers = [number - 2**32 if number >= 2**31 else number for number in numbers]
    found = []
    for first in range(len(words)):
        value = numbers[first] % 2**64
        for last in range(first + 1, min(first + longest, len(words))):
            value = (value * 116049371 + numbers[last]) % 2**64
            found.append((first, last, value % buckets))
    return found


def plain_char_ngrams(word: str, shortest: int, longest: int, buckets: int) -> list[int]:
    marked = f"<{word}>"
    return [
        plain_hash(marked[begin:end]) % buckets
        for begin in range(len(marked))
        for end in range(begin + shortest, min(begin + longest, len(marked)) + 1)
    ]


def features(
    model: NGrams, document: list[int], weights: list[Tensor] | None = None
) -> tuple[list[Tensor], list[tuple[int, Tensor]]]:
    """The weighted row of each word of a document without its padding, and that of each n-gram together with
    the word it belongs to, counted from 0."""
    kept = [place for place, token in enumerate(document) if token != PAD]
    factors = [torch.tensor(1.0) if weights is None else weights[place] for place in kept]
    ids = [document[place] for place in kept]
    words, ngrams = model.words.table.weight, model.ngrams.table.weight
    own = [factors[place] * words[token] for place, token in enumerate(ids)]
    found = []
    for first, last, bucket in plain_word_ngrams(
        [TOKENS[token] for token in ids], model.word_ngrams, model.buckets
    ):
        factor = sum(factors[first : last + 1]) / (last + 1 - first)
        found.append((last, factor * ngrams[bucket]))
    if model.min_char is not None and model.max_char is not None:
        for place, token in enumerate(ids):
            for bucket in plain_char_ngrams(TOKENS[token], model.min_char, model.max_char, model.buckets):
                found.append((place, factors[place] * ngrams[bucket]))
    return own, found


def parts_of(batch: TokenBatch) -> list[tuple[list[int], list[Tensor] | None]]:
    weights = batch.weights
    return [
        (batch.ids[begin:end].tolist(), None if weights is None else list(weights[begin:end]))
        for begin, end in pairwise(batch.offsets.tolist())
    ]


def reduced_by_hand(rows: list[Tensor], mode: str, width: int) -> Tensor:
    if not rows:
        return torch.zeros(width)
    stack = torch.stack(rows)
    return stack.amax(0) if mode == "max" else getattr(stack, mode)(0)


def beside_by_hand(model: NGrams, own: list[Tensor], ngrams: list[Tensor], mode: str, words: str) -> Tensor:
    """Words and n-grams reduced together, or each by itself: the words as ``words`` says."""
    if not model.beside:
        return reduced_by_hand(own + ngrams, mode, D)
    parts = reduced_by_hand(own, words, D), reduced_by_hand(ngrams, mode, model.dim - D)
    return torch.cat(parts)


def pooled_by_hand(model: NGrams, batch: TokenBatch, mode: str) -> Tensor:
    rows = []
    for document, weights in parts_of(batch):
        own, found = features(model, document, weights)
        rows.append(beside_by_hand(model, own, [row for _, row in found], mode, mode))
    return torch.stack(rows)


def rows_by_hand(model: NGrams, batch: TokenBatch) -> Tensor:
    rows = []
    for document, weights in parts_of(batch):
        words, found = features(model, document)
        place = 0
        for number, token in enumerate(document):
            if token == PAD:
                rows.append(torch.zeros(model.dim))
                continue
            ngrams = [row for owner, row in found if owner == place]
            row = beside_by_hand(model, [words[place]], ngrams, "mean", "sum")
            rows.append(row if weights is None else row * weights[number])
            place += 1
    return torch.stack(rows)


# Values


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_pool_and_its_gradient_against_the_reference(name, mode, weighted):
    model = make(name)
    batch = TokenBatch(BATCH.ids, BATCH.offsets)
    if weighted:
        batch.weights = WEIGHTS.clone().requires_grad_()
    expected = pooled_by_hand(model, batch, mode)
    ours = model.pool(batch, mode)
    torch.testing.assert_close(ours, expected)
    factors = torch.randn(len(batch), model.dim)
    wanted = [*model.parameters(), *([batch.weights] if weighted else [])]
    torch.testing.assert_close(
        torch.autograd.grad((ours * factors).sum(), wanted),
        torch.autograd.grad((expected * factors).sum(), wanted),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_rows_of_tokens_and_their_gradient_against_the_reference(name, weighted):
    model = make(name)
    batch = TokenBatch(BATCH.ids, BATCH.offsets)
    if weighted:
        batch.weights = WEIGHTS.clone().requires_grad_()
    expected = rows_by_hand(model, batch)
    ours = model(batch)
    torch.testing.assert_close(ours, expected)
    assert not ours[batch.ids == PAD].any()
    factors = torch.randn(len(batch.ids), model.dim)
    wanted = [*model.parameters(), *([batch.weights] if weighted else [])]
    torch.testing.assert_close(
        torch.autograd.grad((ours * factors).sum(), wanted),
        torch.autograd.grad((expected * factors).sum(), wanted),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("mode", [*MODES, "rows"])
@pytest.mark.parametrize("name", ["bigrams", "both", "both beside the words"])
def test_gradients_against_finite_differences(name, mode):
    model = make(name, buckets=11).double()
    batch = batch_of([2, 3, 8], [], [5], [9, 10])
    parameters = dict(model.named_parameters())

    def reduced(weights, *values):
        given = TokenBatch(batch.ids, batch.offsets, weights=weights)

        class Call(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self):
                return self.inner(given) if mode == "rows" else self.inner.pool(given, mode)

        named = {f"inner.{key}": value for key, value in zip(parameters, values, strict=True)}
        return functional_call(Call(), named)

    weights = torch.linspace(0.5, 2, 6, dtype=torch.float64, requires_grad=True)
    values = [value.detach().clone().requires_grad_() for value in parameters.values()]
    assert torch.autograd.gradcheck(reduced, (weights, *values))


def test_buckets_are_those_of_fasttext():
    """Numbers taken from the document vectors of fastText's own program, at 1,000 buckets."""
    found, counts = make("bigrams", buckets=1000, word_ngrams=3)._word_ngrams(batch_of([2, 3, 8], [5, 6]))
    # the film, film was, the film was; café 日本語
    assert found.ids.tolist() == [519, 723, 975, 530]
    assert found.offsets.tolist() == [0, 3, 4]
    assert counts.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("divisor", [1, 2, 7, 1000, 2_000_000, 2**31 - 1])
def test_hashes_are_taken_without_a_sign(divisor):
    draw = random.Random(0)
    numbers = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, *(draw.randrange(2**64) for _ in range(200))]
    signed = torch.tensor([number - 2**64 if number >= 2**63 else number for number in numbers])
    assert _unsigned_remainder(signed, divisor).tolist() == [number % divisor for number in numbers]


def test_documents_share_no_ngram_across_their_border():
    model = make("up to four words")
    together = model.pool(batch_of([2, 3], [8, 9], [10]), "sum")
    alone = torch.cat([model.pool(batch_of(document), "sum") for document in ([2, 3], [8, 9], [10])])
    torch.testing.assert_close(together, alone)
    joined = model.pool(batch_of([2, 3, 8, 9, 10]), "sum")
    assert not torch.allclose(joined[0], together.sum(0))


def test_ngrams_know_the_order_of_words():
    model = make("bigrams")
    ahead, back = model.pool(batch_of([2, 3, 8], [8, 3, 2]), "mean")
    assert not torch.allclose(ahead, back)
    words = make("characters")
    torch.testing.assert_close(*words.pool(batch_of([2, 3, 8], [8, 3, 2]), "mean"))


def test_one_word_and_none():
    model = make("bigrams")
    single = model.pool(batch_of([3], [], [PAD]), "mean")
    assert torch.equal(single[0], model.words.table.weight[3])
    assert not single[1:].any()
    assert model(batch_of([], [])).shape == (0, D)
    assert model.pool(batch_of(), "mean").shape == (0, D)
    rows = -model.ngrams.table.weight.detach().abs() - model.words.table.weight[3].abs().max() - 1
    model.ngrams.table.weight.data.copy_(rows)
    model.words.table.weight.data[3] = -50.0
    assert model.pool(batch_of([3], [3, 3]), "max")[0].tolist() == [-50.0] * D  # not the zeros of no bigram
    assert (model.pool(batch_of([3, 3]), "max") > -50).all()


def test_a_word_has_the_same_ngrams_in_every_vocabulary():
    """The rows of n-grams follow from the text, whatever numbers its words have."""
    model, other = make("both"), make("both")
    order = list(range(V))
    random.Random(0).shuffle(order)
    other = NGrams(
        V,
        D,
        tokens=[TOKENS[old] for old in order],
        padding_idx=order.index(PAD),
        buckets=BUCKETS,
        **SETTINGS["both"],
    )
    other.words.table.weight.data.copy_(model.words.table.weight[order])
    other.ngrams.table.weight.data.copy_(model.ngrams.table.weight)
    renamed = [[order.index(token) for token in document] for document in DOCUMENTS]
    for mode in MODES:
        torch.testing.assert_close(other.pool(batch_of(*renamed), mode), model.pool(BATCH, mode))


def test_a_checkpoint_holds_the_tables_alone_and_gives_the_same_again():
    model = make("both")
    state = model.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "words.table.weight": (V, D),
        "ngrams.table.weight": (BUCKETS, D),
    }
    torch.manual_seed(5)
    again = NGrams(V, D, tokens=TOKENS, padding_idx=PAD, buckets=BUCKETS, **SETTINGS["both"])
    again.load_state_dict(state)
    assert torch.equal(again.pool(BATCH, "mean"), model.pool(BATCH, "mean"))
    assert torch.equal(again(BATCH), model(BATCH))


# The start, and what trains


def test_words_start_as_a_plain_table_does():
    torch.manual_seed(3)
    plain = Table(V, D, padding_idx=PAD)
    for start in ("zeros", "uniform"):
        torch.manual_seed(3)
        model = NGrams(V, D, tokens=TOKENS, padding_idx=PAD, buckets=5000, ngram_init=start, ngram_scale=0.25)
        assert torch.equal(model.words.table.weight, plain.table.weight)
        rows = model.ngrams.table.weight
        assert rows.abs().max().item() == pytest.approx(0.25 if start == "uniform" else 0, rel=0.01)


def test_words_that_training_never_meets_change_no_other_row():
    vectors, found = torch.randn(V, D), torch.arange(V) % 3 == 0
    settings: dict[str, Any] = {"padding_idx": PAD, "buckets": BUCKETS, "ngram_init": "normal"}
    torch.manual_seed(0)
    fewer = NGrams(V - 3, tokens=TOKENS[:-3], vectors=vectors[:-3], found=found[:-3], **settings)
    torch.manual_seed(0)
    found[-3:] = True
    more = NGrams(V, tokens=TOKENS, vectors=vectors, found=found, appended=3, **settings)
    assert torch.equal(more.words.table.weight[:-3], fewer.words.table.weight)
    assert torch.equal(more.words.table.weight[-3:], vectors[-3:])
    assert torch.equal(more.ngrams.table.weight, fewer.ngrams.table.weight)


@pytest.mark.parametrize("trainable", [True, False])
def test_vectors_fill_the_words_and_ngrams_always_train(trainable):
    vectors = torch.randn(V, D)
    found = torch.arange(V) % 3 == 0
    model = NGrams(
        V, tokens=TOKENS, vectors=vectors, found=found, trainable=trainable, padding_idx=PAD, buckets=BUCKETS
    )
    assert model.dim == D
    assert torch.equal(model.words.table.weight[3::3], vectors[3::3])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model.pool(BATCH, "mean") - 1).square().sum().backward()
        optimizer.step()
    moved = {key: (value != before[key]).any(1) for key, value in model.state_dict().items()}
    touched = torch.zeros(V, dtype=torch.bool)
    touched[BATCH.ids.long()] = trainable
    touched[PAD] = False
    assert torch.equal(moved["words.table.weight"], touched)
    kept = BATCH.without(PAD)
    buckets = torch.zeros(BUCKETS, dtype=torch.bool)
    buckets[model._word_ngrams(kept)[0].ids.long()] = True
    assert 5 < buckets.sum() < BUCKETS
    assert torch.equal(moved["ngrams.table.weight"], buckets)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("mode", MODES)
def test_sparse_gradients_are_the_dense_ones(mode):
    gradients = []
    for sparse in (False, True):
        model = make("both", sparse=sparse)
        model.pool(BATCH, mode).square().sum().backward()
        given = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.is_sparse == sparse for gradient in given)
        gradients.append([gradient.to_dense() for gradient in given if gradient is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word_ngrams": 0}, r"embedding.word_ngrams is 0; expected at least 1"),
        ({"word_ngrams": 1}, r"there are no n-grams; give one of them, or choose embedding=random"),
        ({"min_char": 3}, r"embedding.min_char is given without embedding.max_char"),
        ({"max_char": 3}, r"embedding.max_char is given without embedding.min_char"),
        ({"min_char": 4, "max_char": 3}, r"min_char is 4 and embedding.max_char 3; expected 1 <= "),
        ({"min_char": 0, "max_char": 3}, r"min_char is 0 and"),
        ({"ngram_dim": 0}, r"embedding.ngram_dim is 0; expected null or a width of at least 1"),
        ({"buckets": 0}, r"embedding.buckets is 0; expected 1 to 2147483647"),
        ({"buckets": 2**31}, r"embedding.buckets is 2147483648; expected 1 to"),
        ({"dim": None}, r"embedding.dim is null"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        NGrams(V, **{"dim": D, "tokens": TOKENS, "buckets": BUCKETS, **settings})


def test_a_word_for_every_row():
    with pytest.raises(ValueError, match="11 tokens for 12 rows"):
        NGrams(V, D, tokens=TOKENS[1:])


def test_the_config_builds_what_it_says():
    with hydra.initialize(version_base="1.3", config_path="../../configs"):
        settings = OmegaConf.to_container(hydra.compose("embedding/ngrams"), resolve=True)["embedding"]
    settings = {key: value for key, value in settings.items() if key not in RECIPE_KEYS or key in PASSED_ON}
    settings |= {"num_embeddings": V, "tokens": TOKENS, "padding_idx": PAD}
    model = hydra.utils.instantiate(settings)
    assert (model.word_ngrams, model.min_char, model.max_char) == (2, None, None)
    assert model.ngrams.table.weight.shape == (model.buckets, model.dim)
