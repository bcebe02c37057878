"""How time and memory grow with the number of documents.

    python benchmarks/scale.py [--documents 10000 100000 1000000] [--words 0] [--repeats 1] [--folder DIR]

Documents are made up at IMDB's word statistics and written to a Parquet file, outside of the time; --words
makes them shorter, so that more of them fit on the disk. A run is words, a mean over a random table, one
epoch, a validation tenth of at most 5,000 documents and no test; it starts without a cache. Its vocabulary is
the 50,000 most frequent words, since new ones keep coming and the table would grow with them. The aims
are on the largest set beside the one before it: seconds a document, and bytes for each document more.

    python benchmarks/scale.py --documents 1000000 10000000 --words 20     # goes to ten million

Memory is anonymous memory at its largest (anonymous_mb, looked at every 20 ms), which no other process can
have: the pages of memory-mapped files, which count towards peak_mb, go back to the system when it wants them.
It is bounded by the table and its optimizer's state, which tokenizer.vocabulary_size bounds; by MERGE_TOKENS
of tokens that wait to be numbered and BLOCK_TOKENS that are counted at a time (data/encoding.py), whatever
the set; and by the words that are different, each of them once, whether the vocabulary has them or not. What
is left grows with documents by a few numbers each: its row, its label, its place in an epoch's order. So the
aim of at most 64 bytes a document says that no text is held, nor its tokens: IMDB's, of four bytes each, are
1,100. A set with less than MERGE_TOKENS waits whole; the next has no aim on memory beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import documents
import torch
import torch._dynamo  # by torch's first optimizer: 100 MB and seconds of each side, were it not here already
import trained
from measuring import CLOCKS, Results, apart, at_least_one, options, read

import textbed.training  # noqa: F401  in each side else
from textbed.data.encoding import MERGE_TOKENS

TOKENS = 279  # of a document of IMDB's, on average


class Anonymous:
    """The largest anonymous memory of this process while it is entered, in MB."""

    def __enter__(self) -> Anonymous:
        self.most, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().split("\n")
            held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, held / 1000)
            if self.over.wait(0.02):
                return


def run(path: Path, folder: Path, given: argparse.Namespace, count: int) -> dict[str, float]:
    """A run over the documents in ``path``."""
    if given.threads:
        torch.set_num_threads(given.threads)
    overrides = [
        *trained.on(path), "embedding=random", f"embedding.dim={given.dim}", "head=mean",
        "tokenizer.vocabulary_size=50000", "data.batch_size=256", "trainer.max_epochs=1", "data.test=0",
        f"data.validation={min(0.1, 5000 / count)}", "test=false", f"threads={torch.get_num_threads()}",
    ]  # fmt: skip
    with Anonymous() as memory:
        start = CLOCKS[given.clock]()
        made = trained.train(trained.configured(overrides, folder))
        seconds = CLOCKS[given.clock]() - start
    figures = json.loads((made / "metrics.json").read_text())
    return {
        "seconds": seconds,
        "seconds_a_million": 1e6 * seconds / count,
        "anonymous_mb": memory.most,
        "accuracy": 100 * figures["val/accuracy"],
    }


def measure(folder: Path, given: argparse.Namespace, results: Results) -> None:
    maker = documents.Maker(words=given.words or None)
    for count in given.documents:
        path = folder / f"{count}.parquet"
        began = time.perf_counter()
        documents.write(path, count, maker=maker)
        print(f"{count:,} documents: {path.stat().st_size / 1e6:.0f} MB, made in "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
        for _ in range(given.repeats):
            figures, memory = apart(run, path, folder / "made", given, count)
            cache = sum(file.stat().st_size for file in (folder / "made").rglob("*") if file.is_file())
            results.add(f"{count:,}", "textbed", **figures, disk_mb=cache / 1e6, **memory)
            shutil.rmtree(folder / "made")
        path.unlink()


def summarise(given: argparse.Namespace, results: Results) -> None:
    """Each set beside the one before it."""
    for fewer, more in itertools.pairwise(given.documents):
        sides, last = ((f"{more:,}", "textbed"), (f"{fewer:,}", "textbed")), more == given.documents[-1]
        name = f"seconds a document: {more:,} / {fewer:,}"
        results.ratio(name, *sides, aim="<= 1.1" if last else None, figure="seconds_a_million")
        most, least = (results.median(*side, "anonymous_mb") for side in sides)
        name, grown = f"bytes a document: {fewer:,} to {more:,}", 1e6 * (most - least) / (more - fewer)
        full = fewer * (given.words or TOKENS) >= MERGE_TOKENS
        results.note(name, grown, "<= 64" if last and full else None)


def main() -> int:
    parser = options(__doc__, repeats=1)
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument("--documents", type=at_least_one, nargs="+", default=sizes, help="of each set")
    parser.add_argument("--words", type=int, default=0, help="mean words of a document; 0: as IMDB's")
    parser.add_argument("--dim", type=at_least_one, default=50, help="columns of the table")
    parser.add_argument("--folder", type=Path, help="where files are made; the system's temporary folder")
    given = read(parser, {"documents": [100, 200], "dim": 4})
    given.documents = sorted(set(given.documents))
    results = Results("scale", given, ["lightning", "pyarrow"])
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        measure(Path(place), given, results)
    summarise(given, results)
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
