"""A step of training a mean-pooled table beside nn.EmbeddingBag: forward, backward and update.

    python benchmarks/bag.py [--rows 10000 100000 1000000 10000000] [--documents 256] [--tokens 270]
        [--dim 64] [--optimizers adam adagrad] [--repeats 5] [--seconds 1] [--clock cpu] [--threads N]

Ids are drawn as words come, by Zipf's law, and lie in the table in an order of chance. Ours is what
embedding.gradient=dense and lazy do; PyTorch's is nn.EmbeddingBag with a dense gradient, and with a sparse
one under SparseAdam or Adagrad. Each optimizer that can is also taken fused (optimizer.fused=true), on both
sides. Ratios are of like with like: dense with dense, fused with fused, sparse with lazy, neither of the two
fused since PyTorch's is not. Dense fused over lazy fused has no aim: lazy Adam is another Adam than the dense
one, since it leaves rows alone that a batch does not look up, which the dense one moves by their momentum.

A side's "rows a step" are those that a batch holds, which do not grow with the table as it does. "growth" is
the ratio of a lazy step's seconds, the largest table over the smallest, divided by that of the rows a step:
1 where a row costs as much whatever the table. What would not fit into the memory that is free is left out.
All must have moved the table alike after their first step.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._dynamo  # by torch's first optimizer: 100 MB and seconds of each side, were it not here already
from measuring import CLOCKS, Results, apart, at_least_one, options, read
from torch import Tensor, nn, optim

from textbed.batch import TokenBatch
from textbed.embedding import bag
from textbed.embedding.optimizers import RowwiseAdagrad, RowwiseAdam

LR = 0.01
BATCHES = 4  # different ones, in turn
# What of PyTorch's stands over what of ours, and the aim.
PAIRS = [
    ("torch dense", "ours dense", ">= 3"),
    ("torch dense fused", "ours dense fused", ">= 3"),
    ("torch sparse", "ours lazy", ">= 3"),
    ("torch dense fused", "ours lazy fused", None),
]


@dataclass(frozen=True)
class Side:
    """One way to train the table."""

    ours: bool
    sparse: bool
    make: Any
    """Parameters to an optimizer."""
    tables: int
    """How many tables of memory it takes at its peak: the table, its state, gradient and scratch."""


def sides(optimizers: list[str]) -> dict[str, Side]:
    """By name; the first word is the optimizer's."""
    found = {}
    kinds: dict[str, tuple[Any, Any, Any, int]] = {
        "adam": (optim.Adam, RowwiseAdam, optim.SparseAdam, 3),
        "adagrad": (optim.Adagrad, RowwiseAdagrad, optim.Adagrad, 2),
    }
    for name in optimizers:
        dense, lazy, sparse, tables = kinds[name]
        for suffix, settings in (("", {}), (" fused", {"fused": True})):
            make = functools.partial(dense, lr=LR, **settings)
            found[f"{name} torch dense{suffix}"] = Side(False, False, make, tables + 3)
            found[f"{name} ours dense{suffix}"] = Side(True, False, make, tables + 3)
            found[f"{name} ours lazy{suffix}"] = Side(
                True, True, functools.partial(lazy, lr=LR, **settings), tables
            )
        found[f"{name} torch sparse"] = Side(False, True, functools.partial(sparse, lr=LR), tables)
    return found


def draw(rows: int, documents: int, tokens: int) -> list[TokenBatch]:
    """Batches of documents of ``tokens`` tokens; the k-th commonest word has a share of 1 / (k + 2)."""
    generator = np.random.default_rng(0)
    shares = 1 / (np.arange(rows) + 3.0)
    below = np.cumsum(shares / shares.sum())
    places = generator.permutation(rows)
    offsets = torch.arange(0, documents * tokens + 1, tokens, dtype=torch.int32)
    return [
        TokenBatch(
            torch.from_numpy(
                places[np.searchsorted(below, generator.random(documents * tokens) * below[-1])].astype(
                    np.int32
                )
            ),
            offsets,
        )
        for _ in range(BATCHES)
    ]


def run(side: Side, rows: int, given: argparse.Namespace) -> tuple[float, int, np.ndarray]:
    """Train for ``given.seconds``: seconds of a step, rows that it holds, some of them after one step."""
    if given.threads:
        torch.set_num_threads(given.threads)
    clock = CLOCKS[given.clock]
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    batches = draw(rows, given.documents, given.tokens)
    towards = torch.randn(given.documents, given.dim, generator=torch.Generator().manual_seed(0))
    theirs = nn.EmbeddingBag(
        rows,
        given.dim,
        mode="mean",
        sparse=side.sparse,
        include_last_offset=True,
        _weight=torch.zeros(rows, given.dim),
    )
    optimizer = side.make(theirs.parameters())

    def step(batch: TokenBatch) -> None:
        pooled: Tensor
        if side.ours:
            pooled = bag.pool(theirs.weight, batch, "mean", sparse=side.sparse)
        else:
            pooled = theirs(batch.ids, batch.offsets)
        pooled.backward(towards)
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0])
    moved = theirs.weight.detach()[batches[0].ids[:200].long()].numpy().copy()
    step(batches[1])
    count, start = 0, clock()
    while count < 2 or clock() - start < given.seconds:
        step(batches[count % BATCHES])
        count += 1
    seconds = (clock() - start) / count
    held = sum(len(np.unique(batch.ids.numpy())) for batch in batches) // BATCHES
    return seconds, held, moved


def fits(side: Side, rows: int, dim: int) -> bool:
    """Whether there is memory for the side, and a fifth of all that is free to spare."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return True
    return side.tables * rows * dim * 4 < 0.8 * free


def compare(rows: int, given: argparse.Namespace, results: Results) -> None:
    """All sides on a table of ``rows`` rows."""
    case, taken = f"{rows:,} rows", {}
    for name, side in sides(given.optimizers).items():
        if fits(side, rows, given.dim):
            taken[name] = side
        else:
            results.leave_out(f"{case}, {name}", "it would not fit into the memory that is free")
    for _ in range(given.repeats):
        reference: dict[str, np.ndarray] = {}
        for name, side in taken.items():
            (seconds, held, moved), memory = apart(run, side, rows, given)
            results.add(case, name, seconds=seconds, rows_a_step=held, **memory)
            # A first step moves each number by about LR. SparseAdam adds eps in another place, which shows
            # where a gradient is next to nothing; so the mean is looked at.
            expected = reference.setdefault(name.split()[0], moved)
            assert np.abs(expected - moved).mean() < 0.01 * LR < np.abs(moved).mean(), name


def summarise(given: argparse.Namespace, results: Results) -> None:
    """PyTorch's ways beside the same of ours; ours on the largest beside the smallest table."""
    for rows, kind, (theirs, ours, aim) in itertools.product(given.rows, given.optimizers, PAIRS):
        case, over, under = f"{rows:,} rows", f"{kind} {theirs}", f"{kind} {ours}"
        results.ratio(f"{case}: {over} / {under}", (case, over), (case, under), aim)
    least, most = (f"{rows:,} rows" for rows in (min(given.rows), max(given.rows)))
    for kind in given.optimizers:
        side = f"{kind} ours lazy"
        if least == most or side not in results.cases.get(most, {}):
            continue
        seconds, held = (f"{what}: {most} / {least}" for what in (side, "rows a step"))
        results.ratio(seconds, (most, side), (least, side))
        results.ratio(held, (most, side), (least, side), figure="rows_a_step")
        growth = results.ratios[seconds] / results.ratios[held]
        results.note(f"growth of {seconds}", growth, "<= 1.5")


def main() -> int:
    parser = options(__doc__, repeats=5)
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument(
        "--rows", type=at_least_one, nargs="+", default=sizes, help="rows of the table; several"
    )
    parser.add_argument("--documents", type=at_least_one, default=256, help="documents of a batch")
    parser.add_argument("--tokens", type=at_least_one, default=270, help="tokens of each document")
    parser.add_argument("--dim", type=at_least_one, default=64, help="width of a row")
    choices = ["adam", "adagrad"]
    parser.add_argument("--optimizers", nargs="+", choices=choices, default=choices, help="some of these")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each side runs in a repeat")
    tiny = {"optimizers": ["adam"], "rows": [500, 1000], "documents": 8, "tokens": 20, "dim": 4, "seconds": 0}
    given = read(parser, tiny)
    results = Results("bag", given, ["numpy"])
    for rows in given.rows:
        compare(rows, given, results)
    summarise(given, results)
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
