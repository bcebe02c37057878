"""word2vec's binary format: a line of rows and width, then word, blank and D float32 for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from textbed.embedding.vectors import files
from textbed.embedding.vectors.files import AGAIN, Batch, Source, codec_of, opened, read_fully, shown
from textbed.embedding.vectors.text import header_of
from textbed.errors import UserError

LONGEST_WORD = 10_000
"""Bytes: where no blank comes for so long, the rows are not of the promised width."""
NUMBER_BYTES = frozenset(b"0123456789+-.eEnaifINFNAty \t\r")


class BinaryVectors(Source):
    """A file as word2vec's own ``-binary 1`` and gensim write it."""

    format = "word2vec binary"

    def __init__(self, path: Path, head: bytes) -> None:
        super().__init__(path)
        line = head.split(b"\n", 1)[0]
        header = header_of(line) or (0, 0)
        self.count, self.width = header
        self.begin = len(line) + 1
        if not self.count or not self.width:
            raise UserError(f"{path}: line 1 is '{shown(line)}'; expected the number of rows and their width")
        size = path.stat().st_size
        if codec_of(path) is None and size < 4 * self.width:  # memory is taken by the width: look first
            raise UserError(
                f"{path}: line 1 promises {self.count:,} rows of {self.width:,}, but the file has {size:,} "
                f"bytes, fewer than a row; {AGAIN}"
            )

    def peek(self) -> tuple[int | None, int]:
        return self.count, self.width

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        size = 4 * self.width
        done = 0
        with opened(self.path, progress=True) as stream:
            read_fully(stream, self.begin)
            data, place, over = b"", 0, False
            while not over and done < self.count:
                block = stream.read(max(files.BLOCK, 2 * size))
                over = not block
                data, place = data[place:] + block, 0
                words, numbers, rows = [], [], []
                while done < self.count:
                    # Some writers end a row with a line's end, others do not.
                    start = place + 1 if data.startswith(b"\n", place) else place
                    cut = data.find(b" ", start, start + LONGEST_WORD)
                    if cut < 0 and len(data) - start >= LONGEST_WORD:
                        raise self.error(done + 1, f"has no word; {self._misfit()}")
                    if cut < 0 or cut + 1 + size > len(data):
                        break
                    word, place = data[start:cut], cut + 1 + size
                    done += 1
                    if not word.isascii():
                        self.check_word(done, word)
                    if wanted is None or word in wanted:
                        words.append(word)
                        numbers.append(done)
                        rows.append(np.frombuffer(data, "<f4", self.width, cut + 1))
                if rows:
                    vectors = np.stack(rows).astype(np.float32, copy=False)
                    self.check_finite(vectors, words, numbers)
                    yield Batch(words, numbers, vectors)
            if done < self.count:
                raise UserError(
                    f"{self.path}: line 1 promises {self.count:,} rows of {self.width:,}, but the file ends "
                    f"in row {done + 1:,}: it is cut short; {AGAIN}"
                )
            rest = (data[place:] + stream.read(64)).strip(b"\n\0")
            if rest:
                raise UserError(
                    f"{self.path}: line 1 promises {self.count:,} rows of {self.width:,}, but the file goes "
                    "on after them: the first line is not of this file"
                )

    def check_word(self, number: int, word: bytes) -> None:
        try:
            word.decode()
        except UnicodeDecodeError:
            # Numbers taken for a word: bytes below a blank are in none, whatever its encoding.
            if len(word) > 100 or min(word) < 32:
                raise self.error(number, f"begins in the middle of numbers; {self._misfit()}") from None
            raise self.error(
                number,
                f"has the word {word[:40]!r}, which is not UTF-8; if it is a word, save the file anew with "
                f"its words in UTF-8, and if it is none, {self._misfit()}",
            ) from None

    def _misfit(self) -> str:
        return f"the width in line 1, {self.width:,}, does not fit the rows of this file; {AGAIN}"


def is_binary(head: bytes) -> bool:
    """Whether a file starts as word2vec's binary format: a line of counts, then no numbers in writing."""
    line, _, body = head.partition(b"\n")
    header = header_of(line)
    if header is None or not body:
        return False
    _, _, numbers = body[: LONGEST_WORD + 4 * header[1]].lstrip(b"\n").partition(b" ")
    written = numbers.split(b"\n", 1)[0]
    if written.strip() and NUMBER_BYTES.issuperset(written):
        return False
    numbers = numbers[: 4 * header[1]]
    # A character may be cut at the end.
    decoded = numbers.decode(errors="replace")[:-1]
    return "\ufffd" in decoded or any(byte < 32 and byte not in b"\t\r\n" for byte in numbers)
