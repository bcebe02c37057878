"""A table of ten million rows on two processes: whole in each (DDP), or half of it in each.

    OMP_NUM_THREADS=1 python benchmarks/sharded_table.py

Two gloo processes on the CPU train a classifier of made-up documents with Adam over a table of
10,000,000 x 16 floats, each way in processes of their own. A JSON line for each process: the memory that its
rows, their gradient and their optimizer state take, its peak, and the time of a step. Needs about 10 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.nn.parallel import DistributedDataParallel

from textbed.batch import TokenBatch
from textbed.embedding.gradient import set_gradient
from textbed.embedding.optimizers import RowwiseAdam
from textbed.embedding.table import Table
from textbed.heads.pooling import Pooling
from textbed.network import Network
from textbed.runs.folder import peak_memory

MIB = 2**20


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


def train(rank: int, port: int, sharded: bool, gradient: Any, options: argparse.Namespace) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    table = Table(options.rows, options.dim)
    if sharded:
        table.divide(rank, 2)
    model = Network(table, Pooling(options.dim, ["mean"]), 2)
    if sharded:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["embedding.table.weight"])
    set_gradient(table, gradient)
    shared = DistributedDataParallel(model)
    make = RowwiseAdam if gradient == "lazy" else partial(torch.optim.Adam, foreach=False)
    optimizer = make(shared.parameters(), lr=1e-3)
    seconds = []
    for batch in batches(options.rows, options.steps, 64, rank):
        begin = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(shared(batch), batch.labels)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    weight = table.table.weight
    state = [value for value in optimizer.state[weight].values() if value.ndim]
    gradient_size = weight.grad._values() if weight.grad.is_sparse else weight.grad
    figures = {
        "benchmark": "sharded_table",
        "table": f"{options.rows} x {options.dim}",
        "sharded": sharded,
        "gradient": gradient,
        "rank": rank,
        "rows_kept": len(weight),
        "rows_mib": round(weight.nbytes / MIB),
        "gradient_mib": round(gradient_size.nbytes / MIB, 1),
        "state_mib": round(sum(value.nbytes for value in state) / MIB),
        "peak_mib": round(peak_memory()["memory/peak_bytes"] / MIB),
        "seconds_a_step": round(float(np.median(seconds[1:])), 3),
        "loss": round(loss.item(), 4),
    }
    print(json.dumps(figures), flush=True)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    for gradient in ("dense", "lazy"):
        for sharded in (False, True):
            port = find_free_network_port()
            processes = [
                context.Process(target=train, args=(rank, port, sharded, gradient, options))
                for rank in (0, 1)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()


if __name__ == "__main__":
    main()
