"""Documents for the benchmarks: those of a mirror, or made-up ones with the word statistics of IMDB's.

Made-up words are as frequent as IMDB's of the same rank, and documents as long; so as many words occur once,
and new ones keep coming as documents do. A tenth of the words of a document tell its class. Shape letters: B
documents, N tokens of all of them, V different words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from textbed.data.encoding import encode
from textbed.data.vocabulary import as_texts

# Measured on IMDB's 25,000 training documents (words in lower case, punctuation apart): the share that words
# of these ranks have of all tokens. Beyond, new words came about as the root of the number of tokens, which
# is what a share that falls with the square of the rank gives.
RANKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 2e6]
SHARES = [
    4.8e-2, 4.7e-2, 2.3e-2, 1.4e-2, 6.4e-3, 2.5e-3, 1.2e-3, 5.2e-4, 1.9e-4, 8.7e-5, 3.8e-5, 1.2e-5, 4.4e-6,
    1.4e-6, 1.8e-7, 1.1e-10,
]  # fmt: skip
# Mean and standard deviation of the logarithm of a document's words; with the signs between them it has 279
# tokens on average.
LOG_MEAN, LOG_DEVIATION = 5.31, 0.64
TELLING = 0.1
_WORDS = int(RANKS[-1])


def shares() -> np.ndarray:
    """(V,) the share of each word of all tokens, the most frequent first."""
    ranks = np.arange(1, _WORDS + 1)
    found = np.exp(np.interp(np.log(ranks), np.log(RANKS), np.log(SHARES)))
    return found / found.sum()


class Maker:
    """Makes documents. The same seed makes the same ones, in whatever pieces they are asked for.

    Args:
        classes: C; labels are class numbers, in an order of chance.
        words: mean words of a document; None for IMDB's.
    """

    def __init__(self, classes: int = 2, words: float | None = None) -> None:
        self.classes = classes
        self.log_mean = LOG_MEAN if words is None else np.log(words) - LOG_DEVIATION**2 / 2
        self.below = np.cumsum(shares())
        self.names = names(_WORDS)

    def ids(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks (N,) int32 from 0, tokens of each document (B,) int64, and labels (B,) int64."""
        generator = np.random.default_rng([seed, count])
        lengths = generator.lognormal(self.log_mean, LOG_DEVIATION, count).astype(np.int64).clip(4, 2500)
        labels = generator.integers(0, self.classes, count)
        tokens = int(lengths.sum())
        ids = np.searchsorted(self.below, generator.random(tokens) * self.below[-1]).astype(np.int32)
        # A word that tells is one of 40 of its class, of the ranks from 200 on.
        told = np.flatnonzero(generator.random(tokens) < TELLING)
        of = np.repeat(labels, lengths)[told]
        ids[told] = 200 + 40 * of + generator.integers(0, 40, len(told))
        return ids, lengths, labels

    def texts(self, count: int, seed: int = 0) -> tuple[pa.Array, np.ndarray]:
        """Texts (B,) large_string, and labels (B,) int64."""
        ids, lengths, labels = self.ids(count, seed)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # every tenth word or so is followed by a comma or a full stop
        ends = np.random.default_rng([seed, count, 1]).random(len(ids))
        words = self.names.take(pa.array(ids))
        marks = pa.array(["", ",", "."], pa.large_string()).take(
            pa.array(np.searchsorted([0.88, 0.94], ends).astype(np.int8))
        )
        between = pa.scalar("", pa.large_string())
        marked = pc.binary_join_element_wise(words, marks, between)
        lists = pa.LargeListArray.from_arrays(pa.array(starts), marked)
        return pc.binary_join(lists, pa.scalar(" ", pa.large_string())), labels


def names(count: int) -> pa.Array:
    """Words of 2, 4 and 6 letters, the shortest first, as frequent words are short."""
    syllables = np.array([a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"], object)
    numbers = np.arange(count)
    found = syllables[numbers % 100].copy()
    for place, begin in ((100, 100), (10_000, 10_000)):
        found[begin:] = found[begin:] + syllables[numbers[begin:] // place % 100]
    # ranks from a million on come round again: they get a letter more
    found[1_000_000:] = found[1_000_000:] + "s"
    return pa.array(found, pa.large_string())


def write(path: Path, count: int, seed: int = 0, maker: Maker | None = None, piece: int = 50_000) -> None:
    """Write documents to a Parquet file, columns ``text`` and ``label``, a piece in memory at a time."""
    maker = maker or Maker()
    schema = pa.schema([("text", pa.large_string()), ("label", pa.int64())])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for number, begin in enumerate(range(0, count, piece)):
            texts, labels = maker.texts(min(piece, count - begin), seed * 100_000 + number)
            file.write_table(pa.table([texts, pa.array(labels)], schema=schema))


def read(mirror: Path | None, name: str, split: str, count: int) -> tuple[pa.Array, np.ndarray]:
    """Up to ``count`` texts (B,) large_string of a split, evenly from its file, and labels (B,) int64.

    Without a mirror they are made up; "test" are other ones than "train".
    """
    if mirror is None:
        return Maker().texts(count, seed=split == "test")
    table = pq.read_table(mirror / name / f"{split}.parquet", columns=["text", "label"])
    if count < len(table):
        table = table.take(np.linspace(0, len(table) - 1, count).astype(np.int64))
    return as_texts(table["text"]), table["label"].to_numpy()


def write_vectors(path: Path, rows: int, width: int) -> Path:
    """A text file of vectors of the most frequent made-up words."""
    numbers = np.random.default_rng(0).normal(scale=0.3, size=(rows, width)).round(4)
    lines = zip(names(rows).to_pylist(), numbers.tolist(), strict=True)
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in lines))
    return path


def write_table(path: Path, texts: pa.Array, labels: np.ndarray) -> None:
    """A Parquet file with the columns ``text`` and ``label``."""
    pq.write_table(pa.table({"text": texts, "label": labels.astype(np.int64)}), path)


def write_json(path: Path, texts: list[str], labels: np.ndarray) -> None:
    """A list of texts and a list of labels, for a peer's interpreter."""
    path.write_text(json.dumps([texts, labels.tolist()]), encoding="utf-8")


class Split:
    """Texts in memory in the shape of a source's split."""

    def __init__(self, texts: pa.Array, fingerprint: str = "benchmark") -> None:
        self.array, self.num_rows, self.fingerprint = texts, len(texts), fingerprint

    def texts(self, column: int = 0, rows_per_batch: int = 8192) -> Iterator[pa.Array]:
        for begin in range(0, self.num_rows, rows_per_batch):
            yield self.array.slice(begin, rows_per_batch)


def encoded(
    texts: dict[str, pa.Array], settings: dict[str, Any], cache: Path, threads: int | None = None
) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """V, counted from ``train``, and of each split the ids (N,) int32 and where documents start (B + 1,)."""
    splits = {name: Split(array, name) for name, array in texts.items()}
    rows = np.arange(len(texts["train"]))
    tokenizer, columns = encode(settings, splits, 1, ("train", rows), cache, threads)
    found = {name: columns[name][0].gather(np.arange(len(array))) for name, array in texts.items()}
    return len(tokenizer), found


def write_mirror(folder: Path, sizes: dict[str, dict[str, int]]) -> Path:
    """A made-up mirror: ``sizes`` says how many documents each split of each set has."""
    maker = Maker()
    for name, splits in sizes.items():
        for number, (split, count) in enumerate(splits.items()):
            write(folder / name / f"{split}.parquet", count, number, maker)
    return folder
