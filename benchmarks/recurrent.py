"""Training of recurrent heads beside the obvious ways, in turn, on the same documents.

    python benchmarks/recurrent.py [--mirror DIR] [--documents 1024] [--repeats 3] [--threads N] [--clock cpu]

First a two-way LSTM with the maximum of its states, on documents of at most 400 words: IMDB's training texts
with --mirror, else made-up ones. A pass is forward, backward and an Adam step over all documents, in batches
of 64; a side makes --passes of them after a short warm-up, and is then tested.

- textbed: documents of like length together (data.batching=bucketed), over flat tokens.
- padded: random batches, padded to the longest, nn.LSTM over the padded batch, the mask at the maximum. Its
  backward direction reads the padding first, which a model has to learn to overlook.
- packed: random batches through pack_padded_sequence. On a CPU a batch takes half a minute, so only
  --packed-batches of them are timed, and their time is scaled up to the pass.

Then one-way GRU and minGRU above a frozen table, 16 documents of 128, 512 and 2,048 words each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch._dynamo  # by torch's first optimizer: 100 MB and seconds of each side, were it not here already
from documents import encoded
from documents import read as read_documents
from measuring import CLOCKS, Results, apart, at_least_one, options, read
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from textbed.batch import TokenBatch
from textbed.data.loading import BucketedBatches, ShuffledBatches
from textbed.embedding.table import Table
from textbed.heads.base import Head
from textbed.heads.minimal import MinRecurrent
from textbed.heads.recurrent import Recurrent

BATCH, WORDS, DIM, HIDDEN, CLASSES = 64, 400, 100, 128, 2


class Documents:
    """Ids of documents end to end, where each starts, and their classes; and batches of them."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray, labels: np.ndarray) -> None:
        self.ids, self.starts, self.labels = ids, starts, labels
        self.lengths = np.diff(starts)

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


def documents(given: argparse.Namespace) -> tuple[int, Documents, Documents]:
    """V, and documents to train and to test on."""
    counts = {"train": given.documents, "test": given.tested}
    found = {split: read_documents(given.mirror, "imdb", split, count) for split, count in counts.items()}
    with tempfile.TemporaryDirectory() as cache:
        texts = {split: texts for split, (texts, _) in found.items()}
        rows, ids = encoded(texts, {"kind": "words", "min_count": 2, "max_tokens": WORDS}, Path(cache))
    made = {split: Documents(*ids[split], labels) for split, (_, labels) in found.items()}
    return rows, made["train"], made["test"]


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


class Way(NamedTuple):
    """A side: how its model is made, the batches of a pass and of the test, and what part of a pass it is."""

    make: Callable[[], nn.Module]
    batches: list[TokenBatch]
    tests: list[TokenBatch]
    share: float = 1.0


def run(way: Way, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of a pass, and per cent right after the last."""
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, clock = way.make(), CLOCKS[given.clock]
    train = trainer(model)
    if way.share == 1.0:
        train(way.batches[:2])
    start = clock()
    for _ in range(given.passes):
        train(way.batches)
    figures = {"seconds": (clock() - start) / given.passes / way.share}
    return figures | ({"accuracy": accuracy(model, way.tests)} if way.tests else {})


def compare(case: str, ways: dict[str, Way], given: argparse.Namespace, results: Results) -> None:
    for _ in range(given.repeats):
        for name, way in ways.items():
            figures, memory = apart(run, way, given)
            results.add(case, name, **figures, **memory)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--documents", type=at_least_one, default=1024, help="how many documents a pass has")
    parser.add_argument("--tested", type=at_least_one, default=1000, help="documents of the test")
    parser.add_argument("--passes", type=at_least_one, default=1, help="passes that a side makes")
    parser.add_argument(
        "--packed-batches", type=int, default=1, help="batches that are timed of packed; 0: none"
    )
    lengths = [128, 512, 2048]
    parser.add_argument("--lengths", type=at_least_one, nargs="+", default=lengths, help="words for minGRU")
    given = read(parser, {"documents": 8, "tested": 8, "lengths": [16]})
    results = Results("recurrent", given)
    rows, train, test = documents(given)

    def lstm() -> nn.Module:
        return Ours(rows, Recurrent(DIM, "lstm", HIDDEN, bidirectional=True, readout="max"))

    # each side trains on, and is tested in, batches of its own making
    makers = {"textbed": BucketedBatches, "padded": ShuffledBatches}
    models: dict[str, Callable[[], nn.Module]] = {"textbed": lstm, "padded": lambda: Obvious(rows, False)}
    ways = {
        name: Way(models[name], train.batches(maker), test.batches(maker)) for name, maker in makers.items()
    }
    if given.packed_batches:
        some = train.batches(ShuffledBatches)[: given.packed_batches]
        share = sum(map(len, some)) / len(train.lengths)
        ways["packed"] = Way(lambda: Obvious(rows, True), some, [], share)
    compare("bilstm", ways, given, results)
    for name, aim in (("padded", ">= 2.5"), ("packed", ">= 0.95")):
        results.ratio(f"bilstm: {name} / textbed", ("bilstm", name), ("bilstm", "textbed"), aim)

    heads: dict[str, Callable[[], Head]] = {
        "mingru": lambda: MinRecurrent(DIM, "mingru", HIDDEN, readout="max"),
        "gru": lambda: Recurrent(DIM, "gru", HIDDEN, readout="max"),
    }
    for length in given.lengths:
        ids = train.ids[np.arange(16 * length) % len(train.ids)]
        same = Documents(ids, np.arange(0, len(ids) + 1, length), np.arange(16) % CLASSES)
        batches = [same.batch(np.arange(16))]
        frozen = {
            name: Way(lambda make=make: Ours(rows, make(), trainable=False), batches, [])  # type: ignore[misc]
            for name, make in heads.items()
        }
        case = f"{length} words"
        compare(case, frozen, given, results)
        results.ratio(f"{case}: gru / mingru", (case, "gru"), (case, "mingru"))
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
