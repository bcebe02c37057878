"""A step of training under Lightning beside the same step in a bare PyTorch loop.

    python benchmarks/loop.py [--tokens 20 80 300] [--documents 32 64 256 1024] [--rows 10000] [--dim 64]
        [--steps 200] [--repeats 3] [--clock cpu] [--threads N]

Both train the same mean-pooled table from the same initial weights on the same batches, which the same loader
gathers, with dense Adam, fused. The bare loop does nothing else: no seeds, no look for NaN, no log, no mean
loss. Ours is a run's trainer with the callbacks of configs/callbacks/default.yaml but for checkpoints, in
Lightning's loop as it comes ("lightning") and with callbacks.quick_loop ("textbed"). A first epoch is not
timed. All end with the same weights, to the last bit.
"""

from __future__ import annotations

import argparse
import functools
import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from measuring import CLOCKS, Results, apart, at_least_one, options, read

from textbed.callbacks import Progress, SeedSteps, StopOnNaN, Timing
from textbed.classifier import TextClassifier
from textbed.data.loading import ShuffledBatches, TokenDataset, make_loader
from textbed.embedding.table import Table
from textbed.heads.pooling import Pooling
from textbed.loop import QuickLoop

EPOCHS = 3  # the first warms up


class Texts:
    """Documents of random words, by Zipf's law, as a column of ids."""

    def __init__(self, rows: int, documents: int, tokens: int) -> None:
        generator = np.random.default_rng(0)
        ranks = np.minimum(rows ** generator.random(documents * tokens), rows - 1)
        self.ids = ranks.astype(np.int32).reshape(documents, tokens)
        self.lengths = np.full(documents, tokens)

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[rows].ravel(), np.arange(len(rows) + 1) * self.ids.shape[1]


def loader(documents: int, tokens: int, given: argparse.Namespace) -> Any:
    count = documents * given.steps
    texts = Texts(given.rows, count, tokens)
    labels = np.random.default_rng(1).integers(0, 2, count)
    dataset = TokenDataset([texts], labels, np.arange(count))
    return make_loader(dataset, ShuffledBatches(np.asarray(dataset.lengths), documents))


def classifier(given: argparse.Namespace) -> TextClassifier:
    torch.manual_seed(0)
    make = functools.partial(torch.optim.Adam, lr=0.01, fused=True)
    return TextClassifier(Table(given.rows, given.dim), Pooling(given.dim, ["mean"]), 2, optimizer=make)


class Clock(pl.Callback):
    """Seconds of each epoch."""

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begin = self.now()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(self.now() - self.begin)


def bare(batches: Any, given: argparse.Namespace) -> tuple[list[float], torch.Tensor]:
    model = classifier(given).train()
    (optimizer,), _ = model.configure_optimizers()
    clock = Clock(given.clock)
    for epoch in range(EPOCHS):
        batches.batch_sampler.set_epoch(epoch)
        clock.on_train_epoch_start()
        for batch in batches:
            loss = F.cross_entropy(model(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clock.on_train_epoch_end()
    return clock.seconds, model.linear.weight.detach()


def lightning(quick: bool, batches: Any, given: argparse.Namespace) -> tuple[list[float], torch.Tensor]:
    model, clock = classifier(given), Clock(given.clock)
    callbacks = [Progress(), StopOnNaN(), SeedSteps(0), Timing(), clock, *([QuickLoop()] if quick else [])]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, batches)
    return clock.seconds, model.linear.weight.detach()


SIDES = {
    "bare": bare,
    "lightning": functools.partial(lightning, False),
    "textbed": functools.partial(lightning, True),
}


def run(side: Any, batches: Any, given: argparse.Namespace) -> tuple[float, np.ndarray]:
    """Seconds a step, the least of the epochs', and the last layer's weights."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.threads:
        torch.set_num_threads(given.threads)
    seconds, weights = side(batches, given)
    return min(seconds[1:]) / given.steps, weights.numpy()


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=at_least_one, nargs="+", default=[20, 80, 300], help="of a document")
    sizes = [32, 64, 256, 1024]
    parser.add_argument("--documents", type=at_least_one, nargs="+", default=sizes, help="of a batch")
    parser.add_argument("--rows", type=at_least_one, default=10_000, help="rows of the table")
    parser.add_argument("--dim", type=at_least_one, default=64, help="width of a row")
    parser.add_argument("--steps", type=at_least_one, default=200, help="of an epoch")
    tiny = {"tokens": [5], "documents": [8], "rows": 50, "dim": 4, "steps": 3}
    given = read(parser, tiny)
    results = Results("loop", given, ["lightning", "numpy"])
    for documents in given.documents:
        for tokens in given.tokens:
            case = f"{documents} documents of {tokens}"
            batches = loader(documents, tokens, given)
            for _ in range(given.repeats):
                reference = None
                for name, side in SIDES.items():
                    (seconds, weights), memory = apart(run, side, batches, given)
                    results.add(case, name, seconds=seconds, **memory)
                    reference = weights if reference is None else reference
                    assert np.array_equal(reference, weights), name
            aim = "<= 1.05" if documents >= 64 else "<= 1.15"
            results.ratio(f"{case}: textbed / bare", (case, "textbed"), (case, "bare"), aim=aim)
            results.ratio(f"{case}: lightning / bare", (case, "lightning"), (case, "bare"))
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
