"""Word tokenization beside Hugging Face ``tokenizers`` (WordLevel), in turn, on the same texts.

    python benchmarks/tokenize_words.py --mirror DIR [--documents 25000] [--repeats 3] [--threads N]

Both sides start from the same texts in memory, cut at white space with Unicode's punctuation apart, drop
case, count a vocabulary of the words that occur twice, and end with the ids of all documents end to end. Ours
also writes its cache to a fresh folder, as in a first run. Only the library's own work is timed for it: the
conversion to Python strings that it needs is left out, that of its encodings to flat ids is left in. Ends in
one JSON line.
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
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import processor

from textbed.data.encoding import encode
from textbed.data.vocabulary import as_texts, thread_count

# What the library's own Punctuation sets apart: ASCII's signs, and what Unicode calls punctuation.
PUNCTUATION = "$+<=>^`|~" + "".join(
    char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char).startswith("P")
)


class Texts:
    """An array of texts in the shape of a split."""

    fingerprint = "benchmark"

    def __init__(self, texts: pa.Array) -> None:
        self.array = texts
        self.num_rows = len(texts)

    def texts(self, column: int = 0, rows_per_batch: int = 8192) -> Iterator[pa.Array]:
        for begin in range(0, self.num_rows, rows_per_batch):
            yield self.array.slice(begin, rows_per_batch)


def ours(texts: pa.Array, threads: int) -> tuple[float, int, int]:
    """Return seconds, tokens and rows of the vocabulary."""
    settings = {"kind": "words", "split_off": PUNCTUATION, "normalize": None, "html_breaks": False}
    rows = np.arange(len(texts))
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        tokenizer, columns = encode(
            {**settings, "min_count": 2}, {"train": Texts(texts)}, 1, ("train", rows), Path(cache), threads
        )
        ids, _ = columns["train"][0].gather(rows)
        return time.perf_counter() - start, len(ids), len(tokenizer)


def theirs(strings: list[str]) -> tuple[float, int, int]:
    """Return seconds, tokens and rows of the vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    start = time.perf_counter()
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=10**7, min_frequency=2, special_tokens=["<pad>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(strings, trainer, length=len(strings))
    encodings = chain.from_iterable(
        tokenizer.encode_batch_fast(strings[begin : begin + 1024], add_special_tokens=False)
        for begin in range(0, len(strings), 1024)
    )
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
    return time.perf_counter() - start, len(ids), tokenizer.get_vocab_size()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mirror", type=Path, required=True, help="folder with imdb/train.parquet in it")
    parser.add_argument("--documents", type=int, default=25_000, help="how many of IMDB's training texts")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs, in turn")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads of both sides; all cores if not given"
    )
    given = parser.parse_args()
    path = given.mirror / "imdb" / "train.parquet"
    if not path.is_file():
        print(f"no file {path}: --mirror must name a folder with imdb/train.parquet in it", file=sys.stderr)
        return 2
    if given.documents < 1 or given.repeats < 1:
        print("--documents and --repeats must be at least 1", file=sys.stderr)
        return 2
    threads = thread_count(given.threads)
    # Read by the library as it is loaded.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    import tokenizers

    texts = as_texts(pq.read_table(path, columns=["text"])["text"].slice(0, given.documents))
    strings = texts.to_pylist()
    runs: dict[str, list[tuple[float, int, int]]] = {"textbed": [], "tokenizers": []}
    ours(texts.slice(0, 100), threads)
    for repeat in range(given.repeats):
        runs["textbed"].append(ours(texts, threads))
        runs["tokenizers"].append(theirs(strings))
        seconds = {name: round(done[-1][0], 2) for name, done in runs.items()}
        print(f"repeat {repeat + 1}: seconds {seconds}", flush=True)
    result: dict[str, object] = {
        "benchmark": "tokenize_words",
        "documents": len(texts),
        "threads": threads,
        "repeats": given.repeats,
    }
    medians = {}
    for name, done in runs.items():
        medians[name] = statistics.median(seconds for seconds, _, _ in done)
        result[name] = {
            "seconds": round(medians[name], 3),
            "documents_per_second": round(len(texts) / medians[name]),
            "tokens_per_second": round(done[0][1] / medians[name]),
            "tokens": done[0][1],
            "vocabulary": done[0][2],
        }
    result["ratio"] = round(medians["tokenizers"] / medians["textbed"], 2)
    result["machine"] = {"cores": os.cpu_count(), "processor": processor()}
    result["versions"] = {
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
