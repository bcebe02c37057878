"""A step of training a mean-pooled table beside nn.EmbeddingBag: forward, backward and update.

    python benchmarks/bag.py [--rows 10000 100000 2000000] [--documents 256] [--tokens 270] [--dim 64]
        [--optimizers adam adagrad] [--repeats 5] [--seconds 1] [--clock wall] [--threads N]

Ids are drawn as words come, by Zipf's law, and lie in the table in an order of chance. Ours is what
embedding.gradient=dense and lazy do; PyTorch's is nn.EmbeddingBag with a dense gradient, and with a sparse
one under SparseAdam or Adagrad. Each optimizer that can is also taken fused (optimizer.fused=true), on both
sides. In every repeat each side runs once, in turn, in a process of its own, so that its peak of memory is
its own. What would not fit into the memory that is free is left out. All must have moved the table alike
after their first step. Ends in one JSON line: milliseconds of a step (median over repeats of the mean step),
peak megabytes above those of the start, and how many times as long as each of ours PyTorch takes (median of
the ratios within a repeat).
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from machine import processor
from torch import Tensor, nn, optim

from textbed.batch import TokenBatch
from textbed.embedding import bag
from textbed.embedding.optimizers import RowwiseAdagrad, RowwiseAdam

LR = 0.01
BATCHES = 4  # different ones, in turn


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


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def run(side: Side, rows: int, given: argparse.Namespace, connection: Connection) -> None:
    """Train for ``given.seconds``; send seconds of a step, megabytes, and some rows after one step."""
    if given.threads:
        torch.set_num_threads(given.threads)
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    batches = draw(rows, given.documents, given.tokens)
    towards = torch.randn(given.documents, given.dim, generator=torch.Generator().manual_seed(0))
    before = peak()
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
    connection.send((seconds, peak() - before, moved))


def measure(side: Side, rows: int, given: argparse.Namespace) -> tuple[float, float, np.ndarray]:
    """``run`` in a process of its own, a copy of this one, which has run nothing of torch yet."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(side, rows, given, other))
    process.start()
    other.close()
    try:
        return mine.recv()
    except EOFError:
        raise SystemExit("a side's process ended without a result, perhaps for want of memory") from None
    finally:
        process.join()


def fits(side: Side, rows: int, dim: int) -> bool:
    """Whether there is memory for the side, and a fifth of all that is free to spare."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return True
    return side.tables * rows * dim * 4 < 0.8 * free


def compare(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """All sides on a table of ``rows`` rows."""
    taken, left_out = {}, []
    for name, side in sides(given.optimizers).items():
        if fits(side, rows, given.dim):
            taken[name] = side
        else:
            left_out.append(name)
    seconds: dict[str, list[float]] = {name: [] for name in taken}
    megabytes: dict[str, float] = {}
    for repeat in range(given.repeats):
        reference: dict[str, np.ndarray] = {}
        for name, side in taken.items():
            took, memory, moved = measure(side, rows, given)
            seconds[name].append(took)
            megabytes[name] = max(memory, megabytes.get(name, 0.0))
            # A first step moves each number by about LR. SparseAdam adds eps in another place, which shows
            # where a gradient is next to nothing; so the mean is looked at.
            expected = reference.setdefault(name.split()[0], moved)
            assert np.abs(expected - moved).mean() < 0.01 * LR < np.abs(moved).mean(), name
        print(
            f"{rows:,} rows, repeat {repeat + 1}: milliseconds "
            f"{ {name: round(done[-1] * 1e3, 1) for name, done in seconds.items()} }",
            flush=True,
        )
    ratios: dict[str, dict[str, float]] = {}
    for name in taken:
        if "torch" in name:
            ratios[name] = {
                other: round(
                    statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 2
                )
                for other in taken
                if "ours" in other and other.split()[0] == name.split()[0]
            }
    return {
        "rows": rows,
        "milliseconds": {name: round(statistics.median(done) * 1e3, 2) for name, done in seconds.items()},
        "megabytes": {name: round(value) for name, value in megabytes.items()},
        "ratios": ratios,
        "left_out": left_out,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    sizes = [10_000, 100_000, 2_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="rows of the table; several sizes")
    parser.add_argument("--documents", type=int, default=256, help="documents of a batch")
    parser.add_argument("--tokens", type=int, default=270, help="tokens of each document")
    parser.add_argument("--dim", type=int, default=64, help="width of a row")
    choices = ["adam", "adagrad"]
    parser.add_argument("--optimizers", nargs="+", choices=choices, default=choices, help="some of these")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side runs, in turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each side runs in a repeat")
    clocks = ["wall", "cpu"]
    parser.add_argument("--clock", choices=clocks, default="wall", help="cpu where others use the machine")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads; its choice if not given")
    given = parser.parse_args()
    if min(*given.rows, given.documents, given.tokens, given.dim, given.repeats) < 1 or given.seconds < 0:
        print("sizes and --repeats must be at least 1, --seconds at least 0", file=sys.stderr)
        return 2
    if not hasattr(os, "fork"):
        print("needs a system on which processes can be copied, such as Linux", file=sys.stderr)
        return 2
    result = {
        "benchmark": "bag",
        "documents": given.documents,
        "tokens": given.documents * given.tokens,
        "dim": given.dim,
        "repeats": given.repeats,
        "clock": given.clock,
        "threads": given.threads or torch.get_num_threads(),
        "tables": [compare(rows, given) for rows in given.rows],
        "machine": {
            "cores": os.cpu_count(),
            "processor": processor(),
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
