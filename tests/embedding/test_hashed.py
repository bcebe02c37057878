"""Tables shared by hashing: which rows words have, and sums of them against a loop."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.embedding.hashed import Hashed, hashed_rows
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.schema import PASSED_ON, RECIPE_KEYS

MODES = ["sum", "mean", "max"]
TOKENS = ["<pad>", "<unk>", "the", "film", "café", "日本語", "a", "was"]
V, D, PAD = len(TOKENS), 4, 0
SETTINGS: dict[str, dict[str, Any]] = {
    "bloom": {"importance": False},
    "one hash": {"importance": False, "hashes": 1},
    "hash embeddings": {"importance": True, "hashes": 3},
    "appended": {"importance": True, "append_importance": True},
}


def make(name: str, **settings: Any) -> Hashed:
    torch.manual_seed(0)
    usual = {"dim": D, "tokens": TOKENS, "buckets": 6, "padding_idx": PAD, "scale": 1.0}
    model = Hashed(V, **{**usual, **SETTINGS[name], **settings})
    if model.importance is not None:  # not all the same, so that a wrong one shows
        model.importance.table.weight.data[1:] = torch.randn(V - 1, model.rows.shape[1])
    return model


def batch_of(*documents: list[int]) -> TokenBatch:
    lengths = torch.tensor([0, *map(len, documents)])
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(ids, lengths.cumsum(0).int())


BATCH = batch_of([2, 3, 2, 7], [], [5], [6, PAD, 1, PAD], [PAD], [4] * 20)
WEIGHTS = torch.linspace(-1.5, 2.5, BATCH.ids.shape[0])


def rows_by_hand(model: Hashed, batch: TokenBatch) -> Tensor:
    """(N, D), one token after another."""
    found = []
    for number, token in enumerate(batch.ids.tolist()):
        if token == PAD:
            found.append(torch.zeros(model.dim))
            continue
        digest = hashlib.blake2b(TOKENS[token].encode()).digest()
        row = torch.zeros(D)
        numbers = []
        for place in range(model.rows.shape[1]):
            bucket = int.from_bytes(digest[8 * place : 8 * place + 8], "little") % 6
            factor = torch.tensor(1.0)
            if model.importance is not None:
                factor = model.importance.table.weight[token, place]
            row = row + factor * model.table.table.weight[bucket]
            numbers.append(factor)
        if model.append_importance:
            row = torch.cat([row, torch.stack(numbers)])
        found.append(row if batch.weights is None else row * batch.weights[number])
    return torch.stack(found)


def pooled_by_hand(model: Hashed, batch: TokenBatch, mode: str) -> Tensor:
    rows = rows_by_hand(model, batch)
    pooled = []
    for begin, end in pairwise(batch.offsets.tolist()):
        part = rows[begin:end][batch.ids[begin:end] != PAD]
        if not len(part):
            pooled.append(torch.zeros(model.dim))
        else:
            pooled.append(part.amax(0) if mode == "max" else getattr(part, mode)(0))
    return torch.stack(pooled)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", [*MODES, "rows"])
@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_gradients_against_a_loop(name, mode, weighted):
    model = make(name)
    batch = TokenBatch(BATCH.ids, BATCH.offsets)
    if weighted:
        batch.weights = WEIGHTS.clone().requires_grad_()
    if mode == "rows":
        ours, expected = model(batch), rows_by_hand(model, batch)
    else:
        ours, expected = model.pool(batch, mode), pooled_by_hand(model, batch, mode)
    torch.testing.assert_close(ours, expected)
    factors = torch.randn(ours.shape)
    wanted = [*model.parameters(), *([batch.weights] if weighted else [])]
    torch.testing.assert_close(
        torch.autograd.grad((ours * factors).sum(), wanted),
        torch.autograd.grad((expected * factors).sum(), wanted),
        rtol=1e-4,
        atol=1e-4,
    )


def test_rows_follow_from_the_text_alone():
    """Pinned: a model of one machine, version or vocabulary must mean the same in another."""
    assert hashed_rows(["the", "film", "café", "日本語", ""], 3, 1000).tolist() == PINNED
    assert hashed_rows(["日本語", "the"], 2, 1000).tolist() == [PINNED[3][:2], PINNED[0][:2]]
    assert hashed_rows(["the"], 8, 1000)[0, :3].tolist() == PINNED[0]
    assert hashed_rows([], 2, 1000).shape == (0, 2)


PINNED = [[333, 650, 387], [254, 397, 744], [898, 496, 308], [107, 505, 157], [184, 270, 313]]


def test_collisions_are_as_many_as_chance_gives():
    """Of 20,000 words over 2,000 rows: two functions are as two independent draws."""
    rows = hashed_rows([f"word{number}" for number in range(20_000)], 2, 2000)
    counts = np.bincount(rows.ravel(), minlength=2000)
    # Poisson with mean 20: its variance is its mean, known here to 1 / sqrt(1000).
    assert counts.mean() == 20
    assert counts.var() == pytest.approx(20, rel=0.15)
    assert (rows[:, 0] == rows[:, 1]).sum() == pytest.approx(10, abs=10)  # 20,000 / 2,000
    pairs = len(rows) - len(np.unique(rows, axis=0))
    assert pairs == pytest.approx(20_000**2 / 2 / 2000**2, abs=25)  # 50 share both


def test_importance_starts_as_the_plain_sum():
    torch.manual_seed(0)
    hashed = Hashed(V, D, tokens=TOKENS, buckets=6, padding_idx=PAD)
    torch.manual_seed(0)
    bloom = Hashed(V, D, tokens=TOKENS, buckets=6, padding_idx=PAD, importance=False)
    torch.testing.assert_close(hashed.pool(BATCH, "mean"), bloom.pool(BATCH, "mean"))
    assert torch.equal(hashed.table.table.weight, bloom.table.table.weight)
    torch.manual_seed(0)
    assert torch.equal(Table(6, D).table.weight, bloom.table.table.weight)


def test_importance_tells_words_apart_that_share_all_rows():
    """One row for all words: only their own numbers can make them differ."""
    batch, target = batch_of([2], [3]), torch.tensor([[1.0], [-1.0]])
    for importance in (True, False):
        model = Hashed(V, 1, tokens=TOKENS, buckets=1, importance=importance)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model.pool(batch, "sum") - target).square().sum()
            loss.backward()
            optimizer.step()
        assert loss.item() == pytest.approx(0 if importance else 2, abs=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_padding_is_zeros_and_gets_no_gradient(name):
    model = make(name)
    batch = batch_of([PAD, 2, PAD], [PAD])
    for given in (model(batch), model.pool(batch, "sum")):
        given.sum().backward()
    assert not model(batch)[batch.ids == PAD].any()
    assert not model.pool(batch, "mean")[1].any()
    touched = torch.zeros(6, dtype=torch.bool)
    touched[model.rows[2].long()] = True
    assert torch.equal(model.table.table.weight.grad.any(1), touched)
    if model.importance is not None:
        assert model.importance.table.weight.grad.any(1).nonzero().flatten().tolist() == [2]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_sparse_gradients_are_the_dense_ones(name, mode):
    gradients = []
    for sparse in (False, True):
        model = make(name, sparse=sparse)
        model.pool(BATCH, mode).square().sum().backward()
        given = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.is_sparse == sparse for gradient in given)
        gradients.append([gradient.to_dense() for gradient in given if gradient is not None])
    torch.testing.assert_close(*gradients)


def test_a_checkpoint_holds_the_tables_alone_and_gives_the_same_again():
    model = make("appended")
    state = model.state_dict()
    assert list(state) == ["table.table.weight", "importance.table.weight"]
    again = make("appended", scale=0.3)
    again.load_state_dict(state)
    assert torch.equal(again.pool(BATCH, "mean"), model.pool(BATCH, "mean"))


def test_untrained_tables_hold_no_gradient():
    model = make("hash embeddings", trainable=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hashes": 0}, r"embedding.hashes is 0; expected 1 to 8"),
        ({"hashes": 9}, r"embedding.hashes is 9; expected 1 to 8"),
        ({"buckets": 0}, r"embedding.buckets is 0; expected 1 to 2147483647"),
        ({"append_importance": True, "importance": False}, r"set embedding.importance to true"),
        ({"dim": None}, r"embedding.dim is null"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Hashed(V, **{"dim": D, "tokens": TOKENS, **settings})


def test_a_word_for_every_row():
    with pytest.raises(ValueError, match="7 tokens for 8 rows"):
        Hashed(V, D, tokens=TOKENS[1:])


def test_the_config_builds_what_it_says():
    with hydra.initialize(version_base="1.3", config_path="../../configs"):
        settings = OmegaConf.to_container(hydra.compose("embedding/hashed"), resolve=True)["embedding"]
    settings = {key: value for key, value in settings.items() if key not in RECIPE_KEYS or key in PASSED_ON}
    settings |= {"num_embeddings": V, "tokens": TOKENS, "padding_idx": PAD}
    model = hydra.utils.instantiate(settings)
    assert model.importance is not None
    assert model.importance.table.weight.shape == (V, 2)
    assert model.dim == settings["dim"]
