"""Training of recurrent heads beside the obvious ways, in turn, on the same documents.

    python benchmarks/recurrent.py [--mirror DIR] [--documents 1024] [--repeats 3] [--threads N] [--clock cpu]

First a two-way LSTM with the maximum of its states, on documents of at most 400 words: IMDB's training texts
with --mirror, else random ones with as many words and as many different ones. A pass is forward, backward and
an Adam step over all documents, in batches of 64. With --mirror the accuracy that each side has reached after
its last pass is measured, on IMDB's test texts.

- textbed: documents of like length together (data.batching=bucketed), over flat tokens.
- padded: random batches, padded to the longest, nn.LSTM over the padded batch, the mask at the maximum. Its
  backward direction reads the padding first, which a model has to learn to overlook.
- packed: random batches through pack_padded_sequence. On a CPU a batch takes half a minute, so only
  --packed-batches of them are timed, and their time is scaled up to the pass.

Then one-way GRU and minGRU above a frozen table, 16 documents of 128, 512 and 2,048 words each. Ends in one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from machine import processor
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from textbed.batch import TokenBatch
from textbed.data.loading import BucketedBatches, ShuffledBatches
from textbed.embedding.table import Table
from textbed.heads.base import Head
from textbed.heads.minimal import MinRecurrent
from textbed.heads.recurrent import Recurrent

BATCH, WORDS, DIM, HIDDEN, CLASSES = 64, 400, 100, 128, 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Documents:
    """Ids of documents end to end, their classes, and batches of them."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.ids, self.lengths = ids, lengths
        self.labels = np.arange(len(lengths)) % CLASSES if labels is None else labels
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.rows = int(ids.max()) + 1  # of the table

    def batch(self, positions: np.ndarray) -> TokenBatch:
        parts = [self.ids[self.starts[i] : self.starts[i + 1]] for i in positions]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[positions])])
        return TokenBatch(
            torch.from_numpy(np.concatenate(parts)),
            torch.from_numpy(offsets.astype(np.int32)),
            torch.from_numpy(self.labels[positions]),
        )

    def batches(self, maker: Callable[..., Iterable[np.ndarray]]) -> list[TokenBatch]:
        """All documents, in the batches that ``maker`` puts them into."""
        return [self.batch(positions) for positions in maker(self.lengths, BATCH)]


def made_up(documents: int) -> Documents:
    """As long as IMDB's, of as many words, those as frequent as the ranks of English."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.42, 0.62, documents), 10, WORDS).astype(np.int64)
    ids = np.minimum(generator.zipf(1.2, 3 * lengths.sum()), 1 << 40)
    ids = ids[ids < 30_000][: lengths.sum()]
    return Documents(ids.astype(np.int32), lengths)


def imdb(mirror: Path, documents: int, tested: int) -> tuple[Documents, Documents]:
    """Some of IMDB's training and test texts, evenly from both classes; the words are the training texts'."""
    import pyarrow.parquet as pq

    from textbed.data.encoding import encode
    from textbed.data.vocabulary import as_texts

    class Texts:
        def __init__(self, split: str) -> None:
            table = pq.read_table(mirror / "imdb" / f"{split}.parquet", columns=["text", "label"])
            self.array, self.labels = as_texts(table["text"]), table["label"].to_numpy()
            self.fingerprint, self.num_rows = split, len(self.array)

        def texts(self, column: int = 0, rows_per_batch: int = 8192):
            for begin in range(0, self.num_rows, rows_per_batch):
                yield self.array.slice(begin, rows_per_batch)

    splits = {split: Texts(split) for split in ("train", "test")}
    settings = {"kind": "words", "min_count": 2, "max_tokens": WORDS}
    with tempfile.TemporaryDirectory() as cache:
        _, columns = encode(settings, splits, 1, ("train", np.arange(splits["train"].num_rows)), Path(cache))
        made = []
        for (split, texts), number in zip(splits.items(), (documents, tested), strict=True):
            rows = np.linspace(0, texts.num_rows - 1, number).astype(np.int64)
            ids, offsets = columns[split][0].gather(rows)
            made.append(Documents(np.asarray(ids), np.diff(offsets), texts.labels[rows]))
    trained, tests = made
    trained.rows = max(trained.rows, tests.rows)  # only some of the training texts are trained on
    return trained, tests


class Ours(nn.Module):
    """A table, a head of this package and a linear layer."""

    def __init__(self, rows: int, head: Head, trainable: bool = True) -> None:
        super().__init__()
        self.table, self.head = Table(rows, DIM, trainable=trainable), head
        self.linear = nn.Linear(head.out_dim, CLASSES)

    def forward(self, batch: TokenBatch) -> Tensor:
        return self.linear(self.head(batch, self.table))


class Obvious(nn.Module):
    """The same out of torch's own layers, on a padded batch."""

    def __init__(self, rows: int, packed: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(rows + 1, DIM, padding_idx=rows)
        self.rnn = nn.LSTM(DIM, HIDDEN, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * HIDDEN, CLASSES)
        self.packed = packed

    def forward(self, batch: TokenBatch) -> Tensor:
        ids_BL, mask_BL = batch.padded(self.table.padding_idx or 0)
        rows_BLD = self.table(ids_BL)
        if self.packed:
            packed = pack_padded_sequence(rows_BLD, batch.lengths, batch_first=True, enforce_sorted=False)
            states_BLH, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        else:
            states_BLH, _ = self.rnn(rows_BLD)
        return self.linear(states_BLH.masked_fill(~mask_BL.unsqueeze(2), -2).max(dim=1).values)


def trainer(model: nn.Module) -> Callable[[Sequence[TokenBatch]], None]:
    """A function that takes an optimizer step on each batch."""
    optimizer = torch.optim.Adam(parameter for parameter in model.parameters() if parameter.requires_grad)

    def train(batches: Sequence[TokenBatch]) -> None:
        for batch in batches:
            assert batch.labels is not None
            loss = nn.functional.cross_entropy(model(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[TokenBatch]) -> float:
    """Per cent of the documents that the model gets right."""
    right = total = 0
    for batch in batches:
        right += int((model(batch).argmax(dim=1) == batch.labels).sum())
        total += len(batch.lengths)
    return round(100 * right / total, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mirror", type=Path, help="folder with imdb/train.parquet in it")
    parser.add_argument("--documents", type=int, default=1024, help="how many documents a pass has")
    parser.add_argument("--tested", type=int, default=2000, help="test texts for the accuracy, with --mirror")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs, in turn")
    parser.add_argument(
        "--packed-batches", type=int, default=1, help="batches that are timed of packed; 0: none"
    )
    parser.add_argument("--threads", type=int, default=None, help="of all sides; torch's choice if not given")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a machine that is busy"
    )
    given = parser.parse_args()
    if given.mirror is not None and not (given.mirror / "imdb" / "train.parquet").is_file():
        print(f"{given.mirror}: --mirror must name a folder with imdb/train.parquet in it", file=sys.stderr)
        return 2
    if given.documents < BATCH or given.repeats < 1 or given.packed_batches < 0:
        print(f"--documents must be at least {BATCH}, --repeats at least 1", file=sys.stderr)
        return 2
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    tests = None
    if given.mirror:
        documents, tests = imdb(given.mirror, given.documents, given.tested)
    else:
        documents = made_up(given.documents)
    head = Recurrent(DIM, "lstm", HIDDEN, bidirectional=True, readout="max")
    # each side trains on, and is tested in, batches of its own making
    makers = {"textbed": BucketedBatches, "padded": ShuffledBatches}
    models = {"textbed": Ours(documents.rows, head), "padded": Obvious(documents.rows, False)}
    sides: dict[str, tuple[Callable[[Sequence[TokenBatch]], None], list[TokenBatch], float]] = {
        name: (trainer(model), documents.batches(makers[name]), 1.0) for name, model in models.items()
    }
    if given.packed_batches:
        some = documents.batches(ShuffledBatches)[: given.packed_batches]
        scale = len(documents.lengths) / sum(map(len, some))
        sides["packed"] = (trainer(Obvious(documents.rows, True)), some, scale)
    result: dict[str, object] = {
        "benchmark": "recurrent",
        "documents": given.documents,
        "words": int(documents.lengths.sum()),
        "source": "imdb" if given.mirror else "made up",
        "threads": torch.get_num_threads(),
        "clock": given.clock,
        "repeats": given.repeats,
    }
    result["bilstm"] = compare(sides, given.repeats, CLOCKS[given.clock])
    if tests:
        result["accuracy"] = {
            name: accuracy(model, tests.batches(makers[name])) for name, model in models.items()
        }

    for length in (128, 512, 2048):
        lengths = np.full(16, length)
        same = Documents(documents.ids[np.arange(16 * length) % len(documents.ids)], lengths)
        batch = same.batch(np.arange(16))
        sides = {
            name: (trainer(Ours(documents.rows, head, trainable=False)), [batch], 1.0)
            for name, head in (
                ("mingru", MinRecurrent(DIM, "mingru", HIDDEN, readout="max")),
                ("gru", Recurrent(DIM, "gru", HIDDEN, readout="max")),
            )
        }
        result[f"mingru_{length}"] = compare(sides, given.repeats, CLOCKS[given.clock])
    result["machine"] = {"cores": os.cpu_count(), "processor": processor()}
    result["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(result))
    return 0


def compare(
    sides: dict[str, tuple[Callable[[Sequence[TokenBatch]], None], list[TokenBatch], float]],
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Median seconds of each side, and how many times as long as the first the others take."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, (train, batches, scale) in sides.items():
            if repeat == 0 and name == "packed":
                continue
            start = clock()
            train(batches[:2] if repeat == 0 else batches)  # first a little, to warm up
            if repeat:
                seconds[name].append((clock() - start) * scale)
        if repeat:
            last = {name: round(done[-1], 3) for name, done in seconds.items()}
            print(f"repeat {repeat}: seconds {last}", flush=True)
    medians = {name: statistics.median(done) for name, done in seconds.items()}
    first = next(iter(sides))
    ratios = {f"{name}_ratio": round(medians[name] / medians[first], 2) for name in sides if name != first}
    return {name: round(median, 3) for name, median in medians.items()} | ratios


if __name__ == "__main__":
    raise SystemExit(main())
