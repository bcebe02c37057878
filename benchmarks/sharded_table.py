"""A table of ten million rows on two processes: whole in each (DDP), or half of it in each.

    python benchmarks/sharded_table.py --threads 1 [--rows 10000000] [--dim 16] [--steps 6] [--repeats 1]

Two gloo processes on the CPU train a classifier of made-up documents with Adam, each way in processes of
their own. Figures are of the process that took the most: megabytes that its rows, their gradient and their
optimizer state take, its peak, and the time of a step. Needs about 10 GB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from typing import Any

import numpy as np
import torch
import torch._dynamo  # by torch's first optimizer: 100 MB and seconds of each side, were it not here already
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from measuring import CLOCKS, Results, at_least_one, options, peak_mb, read
from torch.nn.parallel import DistributedDataParallel

from textbed.batch import TokenBatch
from textbed.embedding.gradient import set_gradient
from textbed.embedding.optimizers import RowwiseAdam
from textbed.embedding.table import Table
from textbed.heads.pooling import Pooling
from textbed.network import Network


def batches(rows: int, steps: int, documents: int, rank: int) -> list[TokenBatch]:
    """Documents of 100 tokens whose frequencies fall as those of words do."""
    draw = np.random.default_rng(rank)
    made = []
    for _ in range(steps):
        ids = (rows * draw.random(documents * 100) ** 4).astype(np.int32)
        offsets = np.arange(0, documents * 100 + 1, 100, dtype=np.int32)
        labels = torch.from_numpy(draw.integers(0, 2, documents))
        made.append(TokenBatch(torch.from_numpy(ids), torch.from_numpy(offsets), labels))
    return made


def train(rank: int, port: int, sharded: bool, gradient: Any, given: argparse.Namespace, to: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(given.threads)
    before, clock = peak_mb(), CLOCKS[given.clock]
    dist.init_process_group("gloo", rank=rank, world_size=2)
    table = Table(given.rows, given.dim)
    if sharded:
        table.divide(rank, 2)
    model = Network(table, Pooling(given.dim, ["mean"]), 2)
    if sharded:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["embedding.table.weight"])
    set_gradient(table, gradient)
    shared = DistributedDataParallel(model)
    make = RowwiseAdam if gradient == "lazy" else partial(torch.optim.Adam, foreach=False)
    optimizer = make(shared.parameters(), lr=1e-3)
    seconds = []
    for batch in batches(given.rows, given.steps, 64, rank):
        begin = clock()
        loss = torch.nn.functional.cross_entropy(shared(batch), batch.labels)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(clock() - begin)
    weight = table.table.weight
    state = [value for value in optimizer.state[weight].values() if value.ndim]
    gradient_size = weight.grad._values() if weight.grad.is_sparse else weight.grad
    sizes = {
        "rows": weight.nbytes,
        "gradient": gradient_size.nbytes,
        "state": sum(part.nbytes for part in state),
    }
    figures = {f"{name}_mb": size / 1e6 for name, size in sizes.items()}
    to.send(
        figures
        | {"seconds": float(np.median(seconds[1:])), "peak_mb": peak_mb(), "grown_mb": peak_mb() - before}
    )
    dist.barrier()


def both(sharded: bool, gradient: Any, given: argparse.Namespace) -> dict[str, float]:
    """The larger of two processes' figures."""
    context = multiprocessing.get_context("fork")
    port, found = find_free_network_port(), []
    started = []
    for rank in (0, 1):
        mine, other = context.Pipe(duplex=False)
        process = context.Process(target=train, args=(rank, port, sharded, gradient, given, other))
        process.start()
        other.close()
        started.append((process, mine))
    for process, mine in started:
        found.append(mine.recv())
        process.join()
    return {name: max(figures[name] for figures in found) for name in found[0]}


def main() -> int:
    parser = options(__doc__, repeats=1)
    parser.set_defaults(threads=1)
    parser.add_argument("--rows", type=at_least_one, default=10_000_000)
    parser.add_argument("--dim", type=at_least_one, default=16)
    parser.add_argument("--steps", type=at_least_one, default=6)
    given = read(parser, {"rows": 1000, "dim": 4, "steps": 2})
    results = Results("sharded_table", given)
    for _ in range(given.repeats):
        for gradient in ("dense", "lazy"):
            for name, sharded in (("whole", False), ("sharded", True)):
                results.add(gradient, name, **both(sharded, gradient, given))
    for gradient in ("dense", "lazy"):
        sides = (gradient, "sharded"), (gradient, "whole")
        results.ratio(f"{gradient}: memory, sharded / whole", *sides, figure="grown_mb")
        results.ratio(f"{gradient}: time, sharded / whole", *sides)
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
