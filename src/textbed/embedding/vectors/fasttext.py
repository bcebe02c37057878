"""fastText's own .bin models: words, and vectors of character n-grams for the words that they lack.

A word's vector is the mean of its own row and of those of its n-grams (Bojanowski et al. 2017,
doi:10.1162/tacl_a_00051); a word without a row is the mean of its n-grams. The n-grams share ``bucket`` rows
by a hash: FNV-1a over UTF-8 bytes, each taken as signed, as fastText does on most machines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from textbed.embedding.ngram_hash import ngram_rows
from textbed.embedding.vectors.files import AGAIN, Batch, Source, mapped
from textbed.errors import UserError

MAGIC = struct.pack("<i", 793712314)
HEAD = struct.Struct("<ii12idiiiqq")
"""Magic, version, 12 settings, threshold; then entries, words, labels, tokens and pruned rows."""
WORDS_AT_ONCE = 1024
"""Of 30 n-grams each and 300 columns: 37 MB of gathered rows."""


class FastTextVectors(Source):
    """A .bin model, skip-gram, CBOW or supervised; a quantised one (.ftz) is refused."""

    format = "fastText binary"
    composes = True

    def __init__(self, path: Path, head: bytes) -> None:
        super().__init__(path)
        if len(head) < HEAD.size:
            raise self._cut()
        values = HEAD.unpack_from(head)
        self.version = values[1]
        self.width, self.loss_model = values[2], values[9]
        self.bucket, self.shortest, self.longest = values[10:13]
        self.entries, self.words, self.labels, _, self.pruned = values[15:20]
        if self.version not in (11, 12):
            raise UserError(f"{path}: is a fastText model of version {self.version}; expected 11 or 12")
        if self.version == 11 and self.loss_model == 3:
            self.longest = 0  # supervised models of old had no character n-grams
        if self.width < 1 or self.entries != self.words + self.labels or self.words < 0 or self.bucket < 0:
            raise UserError(f"{path}: its header contradicts itself: the file is damaged; {AGAIN}")
        if self.pruned >= 0:
            raise self._quantised()

    def peek(self) -> tuple[int | None, int]:
        return self.words, self.width

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        self._open()
        rows = range(len(self.dictionary))
        chosen = rows if wanted is None else [row for row in rows if self.dictionary[row] in wanted]
        for begin in range(0, len(chosen), WORDS_AT_ONCE):
            some = chosen[begin : begin + WORDS_AT_ONCE]
            words = [self.dictionary[row] for row in some]
            numbers = [row + 1 for row in some]
            for number, word in zip(numbers, words, strict=True):
                self.check_word(number, word)
            vectors, _ = self._means(words, np.array(some, np.int64))
            self.check_finite(vectors, words, numbers)
            yield Batch(words, numbers, vectors)

    def compose(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self._open()
        vectors = np.zeros((len(words), self.width), np.float32)
        found = np.zeros(len(words), bool)
        for begin in range(0, len(words), WORDS_AT_ONCE):
            some = [word.encode() for word in words[begin : begin + WORDS_AT_ONCE]]
            part = slice(begin, begin + len(some))
            vectors[part], found[part] = self._means(some, None)
            self.check_finite(vectors[part], some, range(1, len(some) + 1))
        return vectors, found

    def _means(self, words: list[bytes], own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The means of the words' rows (``own``, where they have one) and n-grams, and which have any."""
        owner, rows = ngram_rows(words, self.shortest, self.longest, self.bucket)
        rows = rows + self.words
        if own is not None:
            owner = np.concatenate([np.arange(len(words)), owner])
            rows = np.concatenate([own, rows])
        order = np.argsort(owner, kind="stable")
        owner, rows = owner[order], rows[order]
        counts = np.bincount(owner, minlength=len(words))
        vectors = np.zeros((len(words), self.width), np.float32)
        some = counts > 0
        if some.any():
            begins = (np.cumsum(counts) - counts)[some]
            vectors[some] = np.add.reduceat(self.matrix[rows], begins, axis=0) / counts[some, None]
        return vectors, some

    def _open(self) -> None:
        """Map the file and read its dictionary; the matrix stays on disk."""
        if hasattr(self, "matrix"):
            return
        data = mapped(self.path)
        place = HEAD.size
        words = []
        for _ in range(self.entries):
            end = data.find(b"\0", place)
            if end < 0 or end + 10 > len(data):
                raise self._cut()
            words.append(data[place:end])
            if data[end + 9] > 1:
                raise UserError(
                    f"{self.path}: row {len(words):,} is of no kind that fastText knows: the file is "
                    f"damaged; {AGAIN}"
                )
            place = end + 10
        if place + 17 > len(data):
            raise self._cut()
        if data[place]:
            raise self._quantised()
        rows, width = struct.unpack_from("<qq", data, place + 1)
        place += 17
        if width != self.width:
            raise UserError(
                f"{self.path}: promises rows of {self.width:,}, but they are {width:,} wide; {AGAIN}"
            )
        if rows < self.words + (self.bucket if self.longest else 0):
            raise UserError(
                f"{self.path}: has {rows:,} rows for {self.words:,} words and {self.bucket:,} buckets: "
                f"the file is damaged; {AGAIN}"
            )
        if place + 4 * rows * width > len(data):
            raise self._cut()
        self.dictionary = words[: self.words]
        self.matrix = np.frombuffer(data, "<f4", rows * width, place).reshape(rows, width)

    def _cut(self) -> UserError:
        return UserError(
            f"{self.path}: ends before the words and rows that it promises: it is cut short; {AGAIN}"
        )

    def _quantised(self) -> UserError:
        return UserError(
            f"{self.path}: is a quantised fastText model (.ftz), whose rows are only approximate; "
            "give the .bin or .vec file that it was made from"
        )
