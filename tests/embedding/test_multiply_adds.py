"""Multiply-adds of every front end that the configs offer: by hand, and by torch's own count of products."""

from __future__ import annotations

import pytest
import torch
from running import EMBEDDINGS, front_end
from torch.utils.flop_counter import FlopCounterMode

from textbed.batch import TokenBatch
from textbed.embedding.effects import Effects
from textbed.embedding.table import FrontEnd, Table

V, D = 12, 6
LENGTHS = [4, 1, 7]
IDS = torch.tensor([3, 4, 3, 5, 11, 3, 3, 6, 7, 8, 9, 10], dtype=torch.int32)
BATCH = TokenBatch(IDS, torch.tensor([0, 4, 5, 12], dtype=torch.int32))
COUNTS = torch.bincount(IDS, minlength=V)
N, B = 12, 3
# No front end gives rows in one go and pools besides: a head asks for the one or the other.
READ, SUM, MAX = None, ["mean"], ["max"]

# For each file the multiply-adds where a head reads rows, takes a mean, and takes a maximum.
BY_HAND = {
    **dict.fromkeys(("random", "frozen", "finetuned", "thawed", "multichannel"), (0, 0, 0)),
    # A of rank 2 times B: for each token; for each document, besides the sum of A; for each token
    "adapted": (N * 2 * D, N * 2 + B * 2 * D, N * 2 * D),
    "projected": (N * D * 5, B * D * 5, N * D * 5),
    # 2 rows a word, of which one is what the head's own reduction reads
    "hashed": (N * 2 * D, N * D, N * 2 * D),
    # "<word3>" has 4 n-grams of 4 characters, "<word10>" 5; pairs of words: 3, none and 6
    "ngrams": ((N + 10 * 4 + 2 * 5 + 9) * D, (10 * 4 + 2 * 5 + 9) * D, (10 * 4 + 2 * 5 + 9) * D),
}
MORE = {
    "adapted": {"rank": 2},
    "projected": {"out_dim": 5},
    "ngrams": {"min_char": 4, "max_char": 4, "buckets": 50},
}


def make(name: str) -> FrontEnd:
    torch.manual_seed(0)
    found = torch.arange(V) % 3 > 0
    return front_end(name, V, D, found=found, **MORE.get(name, {}))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_by_hand(name):
    embedding = make(name)
    made = tuple(embedding.multiply_adds(LENGTHS, COUNTS, pools) for pools in (READ, SUM, MAX))
    assert made == BY_HAND[name]
    read, mean, most = BY_HAND[name]
    assert embedding.multiply_adds(LENGTHS, COUNTS, ["mean", "max", "sum"]) == 2 * mean + most
    assert Effects(embedding, V, noise=0.1).multiply_adds(LENGTHS, COUNTS) == read


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("pools", [READ, SUM, MAX, ["max", "sum"]], ids=str)
def test_a_sum_over_documents_and_tokens(name, pools):
    """A document of each length, as often as there are such, and all tokens: what the recipe relies on."""
    embedding, none = make(name), torch.zeros_like(COUNTS)
    apart = sum(embedding.multiply_adds([length], none, pools) for length in LENGTHS)
    assert apart + embedding.multiply_adds([], COUNTS, pools) == embedding.multiply_adds(
        LENGTHS, COUNTS, pools
    )


@pytest.mark.parametrize("name", ["adapted", "projected"])
@pytest.mark.parametrize("pools", [READ, SUM, MAX, ["max", "sum"]], ids=str)
def test_products_of_matrices_are_torchs(name, pools):
    embedding = make(name)
    with FlopCounterMode(display=False) as flops:
        for mode in pools or []:
            embedding.pool(BATCH, mode)
        if pools is None:
            embedding(BATCH)
    reductions = N * 2 * (len(pools or []) - (pools or []).count("max")) if name == "adapted" else 0
    assert embedding.multiply_adds(LENGTHS, COUNTS, pools) - reductions == flops.get_total_flops() / 2


@pytest.mark.parametrize("missing", ["random", "shared"])
def test_rows_that_lie_in_a_table_of_their_own_are_summed_by_themselves(missing):
    """Ids 3, 6 and 9 have no vector: 4 tokens and 2. A row that all of them share is read as often."""
    found = torch.tensor([True, True, True] + [False, True, True] * 3)
    table = Table(
        V,
        vectors=torch.randn(V, D),
        found=found,
        trainable=False,
        train_missing=True,
        missing=missing,
        padding_idx=0,
    )
    read = []
    plain = table.learnt.pool
    table.learnt.pool = lambda batch, mode: (read.append(int((batch.ids > 0).sum())), plain(batch, mode))[1]
    table.pool(BATCH, "mean")
    assert table.multiply_adds(LENGTHS, COUNTS, SUM) == read[0] * D == 6 * D
    assert table.multiply_adds(LENGTHS, COUNTS, MAX) == table.multiply_adds(LENGTHS, COUNTS) == 0


def test_one_that_does_not_say():
    with pytest.raises(NotImplementedError):
        FrontEnd().multiply_adds([1], COUNTS)


def test_ngrams_beside_the_words_leave_these_alone():
    """A head that pools counts N (D + 2): with that each word is read once, and each n-gram, 2 wide, once."""
    embedding = front_end("ngrams", V, D, **MORE["ngrams"], ngram_dim=2)
    ngrams = 10 * 4 + 2 * 5 + 9
    assert embedding.multiply_adds(LENGTHS, COUNTS, READ) == 2 * ngrams
    for pools in (SUM, MAX, ["mean", "max"]):
        of_head = len(pools) * N * (D + 2)
        assert embedding.multiply_adds(LENGTHS, COUNTS, pools) + of_head == len(pools) * (N * D + 2 * ngrams)
