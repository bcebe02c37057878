"""GloVe text and word2vec text (fastText's .vec is the same): a word and D numbers a line.

A file is read once from front to back. Blocks of it go to threads, where NumPy finds the lines and counts
their separators over the bytes at once and Arrow turns the numbers of the rows that are asked for into
float32; the other rows cost a look at their word. Memory is that of a few blocks and of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from textbed.data.vocabulary import in_order
from textbed.embedding.vectors import files
from textbed.embedding.vectors.files import AGAIN, FINITE, SUPPORTED, Batch, Source, opened, read_fully, shown
from textbed.errors import UserError

BOM = b"\xef\xbb\xbf"


CHUNK = 1 << 21
"""Bytes that a thread looks at in one go: what is made of them should stay in its core's cache."""


class _WrongLineError(Exception):
    """What is wrong with a line of a block, counted from 0; ``short`` is one with too few numbers."""

    def __init__(self, line: int, what: str, short: bool = False) -> None:
        super().__init__(line, what)
        self.line, self.what, self.short = line, what, short


@dataclass
class _Block:
    """What one block of lines gave; lines are counted from 0 within it."""

    lines: int = 0
    rows: int = 0  # lines that are not blank
    blank: int | None = None  # the first of the blank lines at its end
    words: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    vectors: np.ndarray | None = None
    wrong: _WrongLineError | None = None


class TextVectors(Source):
    """A word and D numbers a line, with one separator between; word2vec's has a first line of rows and width.

    A word may contain spaces, as a few in GloVe 840B do: the last D fields are the numbers. Only where a part
    of such a word looks like a number itself is the line taken for one of the wrong width.
    """

    unit = "line"

    def __init__(self, path: Path, head: bytes) -> None:
        super().__init__(path)
        self._unended = False
        lines = head.removeprefix(BOM).split(b"\n")
        if len(lines) > 1 and len(head) == files.BLOCK:
            lines.pop()  # cut by the end of the block
        lines = [line.rstrip(b" \t\r") for line in lines if line.strip()]
        if not lines:
            raise UserError(f"{path}: is empty; expected a word and its numbers on each line")
        if len(lines[0]) >= files.BLOCK - 3:
            raise UserError(
                f"{path}: has no line end in its first {files.BLOCK:,} bytes, so it is not text; {SUPPORTED}"
            )
        self.promised: int | None
        self.promised, self.width = header_of(lines[0]) or (None, 0)
        if self.width != 1 and len(lines) > 1 and len(lines[1].split()) == 2:
            self.promised = None  # no first line of counts, but rows of one number each
        first = 0 if self.promised is None else 1
        if first == len(lines):
            what = (
                f"but there are none: the file is cut short; {AGAIN}"
                if self.promised
                else "and there are none: the file is empty of rows; expected a word and its numbers a line"
            )
            raise UserError(f"{path}: line 1 promises {self.promised:,} rows, {what}")
        if self.promised is not None and self.width > len(lines[first]):
            # Memory is taken by the width, before the rows are read.
            raise UserError(
                f"{path}: line 1 promises rows of {self.width:,} numbers, but line {first + 1} has fewer "
                f"bytes than that; {AGAIN}"
            )
        self.separator = b"\t" if lines[first].count(b"\t") > lines[first].count(b" ") else b" "
        if self.promised is None:
            # The usual number of fields, so that one odd line or word with spaces does not set the width.
            counts = Counter(len(_fields(line, self.separator)) for line in lines[:1000])
            self.width = min(counts, key=lambda fields: (-counts[fields], fields)) - 1
        if self.width < 1 or not is_number(_fields(lines[first], self.separator)[-1]):
            raise UserError(
                f"{path}: line {first + 1} begins '{shown(lines[first])}'; "
                f"expected a word and its numbers ({SUPPORTED})"
            )
        self.format = "GloVe text" if self.promised is None else "word2vec text"

    def peek(self) -> tuple[int | None, int]:
        return self.promised, self.width

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        before = 0 if self.promised is None else 1
        rows, blank = 0, None
        blocks = in_order(partial(self._examine, wanted), self._blocks(), None)
        for block in blocks:
            if block.rows or block.wrong is not None:
                if blank is not None:
                    raise self.error(blank, "is empty")
                if block.wrong is not None:
                    what = block.wrong.what
                    if block.wrong.short:
                        last = block.wrong.line + 1 == block.lines and next(blocks, None) is None
                        what += f"; is the file cut short? {AGAIN}" if last else "; mend or remove the line"
                    raise self.error(before + block.wrong.line + 1, what)
            if block.vectors is not None:
                yield Batch(block.words, [before + line + 1 for line in block.places], block.vectors)
            if block.blank is not None and blank is None:
                blank = before + block.blank + 1
            before += block.lines
            rows += block.rows
        if self.promised is not None and rows != self.promised:
            short = rows < self.promised
            what = f"the file is cut short; {AGAIN}" if short else "the first line is not of this file"
            raise UserError(
                f"{self.path}: line 1 promises {self.promised:,} rows, but there are {rows:,}: {what}"
            )
        if self.promised is None and self._unended and blank is None:
            self.doubt = (
                f"{self.path}: line {before:,}, the last, has no line end: if the file was cut short, its "
                "last number is wrong and more words are missing; if it is whole, add a line end"
            )

    def _blocks(self) -> Iterator[bytes]:
        """The lines of the file in blocks, without a first line of counts; what follows a block's last line
        end comes again with the next one."""
        with opened(self.path, progress=True) as stream:
            rest = b""
            size = min(CHUNK, files.BLOCK)
            start = True
            while data := read_fully(stream, size):
                if start:
                    data, start = data.removeprefix(BOM), False
                    if self.promised is not None:
                        data = data[data.index(b"\n") + 1 :]
                block = rest + data if rest else data
                end = block.rfind(b"\n", len(rest)) + 1
                if end:
                    yield block
                rest = block[end:]
                if len(rest) > files.BLOCK:
                    raise UserError(
                        f"{self.path}: has a line of more than {files.BLOCK:,} bytes, so it is not text"
                    )
            self._unended = bool(rest)
            if rest:
                yield rest + b"\n"

    def _examine(self, wanted: Mapping[bytes, int] | None, block: bytes) -> _Block:
        found = _Block()
        try:
            self._rows_of(wanted, block, found)
        except _WrongLineError as wrong:
            found.wrong = wrong
        return found

    def _rows_of(self, wanted: Mapping[bytes, int] | None, block: bytes, found: _Block) -> None:
        separator = self.separator
        data = np.frombuffer(block, np.uint8)
        ends = _line_ends(block)
        starts = np.zeros_like(ends)
        starts[1:] = ends[:-1] + 1
        stops = _without_blanks(data, starts, ends)
        even = _counts(data == ord(separator), starts, stops) == self.width
        found.lines = len(ends)
        numbers = []
        lines = zip(starts.tolist(), stops.tolist(), even.tolist(), strict=True)
        for line, (start, stop, fits) in enumerate(lines):
            if start == stop:
                found.blank = line if found.blank is None else found.blank
                continue
            if found.blank is not None:
                raise _WrongLineError(found.blank, "is empty")
            found.rows += 1
            if fits:
                cut = block.index(separator, start, stop)
                word = block[start:cut]
            else:
                word, fields = self._uneven(line, block[start:stop])
            if not word.isascii():
                _check_utf8(line, word)
            if wanted is not None and word not in wanted:
                continue
            found.words.append(word)
            found.places.append(line)
            numbers.append(block[cut + 1 : stop] if fits else fields)
        if numbers:
            found.vectors = self._numbers(numbers, found)

    def _uneven(self, line: int, text: bytes) -> tuple[bytes, bytes]:
        """Word and numbers where the separators do not add up: a word with spaces, or two between numbers."""
        fields = _fields(text, self.separator)
        extra = len(fields) - 1 - self.width
        if extra < 0 or any(is_number(item) for item in fields[1 : extra + 1]):
            source = "in line 1" if self.promised is not None else "by the other rows"
            wide = "; has its word a space in it, or is its separator another? mend or remove the line"
            raise _WrongLineError(
                line,
                f"has {self.width + extra:,} numbers where {self.width:,} are promised {source}"
                f"{wide if extra > 0 else ''}",
                short=extra < 0,
            )
        return self.separator.join(fields[: extra + 1]), self.separator.join(fields[extra + 1 :])

    def _numbers(self, numbers: list[bytes], block: _Block) -> np.ndarray:
        """The numbers of n rows as (n, D) float32.

        Arrow parses a number in 30 ns and without the interpreter's lock, NumPy in 150 ns with it. What Arrow
        does not take (a plus sign, a number beyond float32) is read again by NumPy, which says what is wrong.
        """
        data = np.frombuffer(self.separator.join([*numbers, b""]), np.uint8)
        between = data == ord(self.separator)
        ends = np.flatnonzero(between)
        count = len(numbers) * self.width
        if len(ends) == count:
            offsets = np.zeros(count + 1, np.int32)
            offsets[1:] = ends - np.arange(count)
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[~between])]
            try:
                values = pa.Array.from_buffers(pa.utf8(), count, buffers).cast(pa.float32()).to_numpy()
            except pa.ArrowInvalid:
                pass
            else:
                if np.isfinite(values).all():
                    return values.reshape(-1, self.width)
        rows = zip(block.places, block.words, numbers, strict=True)
        return np.stack([self._parse(*row) for row in rows])

    def _parse(self, line: int, word: bytes, numbers: bytes) -> np.ndarray:
        fields = numbers.split(self.separator)
        try:
            with np.errstate(over="ignore"):
                vector = np.array(fields, dtype=np.float32)
        except ValueError:
            wrong = next((item for item in fields if not is_number(item)), b"")
            raise _WrongLineError(
                line,
                f"('{shown(word)}') has '{shown(wrong)}' where a number is expected, such as 0.5 or -1e-3; "
                "mend or remove the line",
            ) from None
        finite = np.isfinite(vector)
        if not finite.all():
            wrong = fields[int(finite.argmin())]
            raise _WrongLineError(line, f"('{shown(word)}') has the value {shown(wrong)}; {FINITE}")
        return vector


def _line_ends(block: bytes) -> np.ndarray:
    """Where the line ends are, int64. Looking for each is 3 times faster than comparing every byte."""
    ends = []
    end = block.find(b"\n")
    while end >= 0:
        ends.append(end)
        end = block.find(b"\n", end + 1)
    return np.array(ends, np.int64)


def _counts(mask: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """How many True lie in each of the ranges, int64. Costs about 0.2 ns a byte."""
    words = _bits(mask)
    before = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.bitwise_count(words), out=before[1:])

    def until(place: np.ndarray) -> np.ndarray:
        word = place >> 6
        below = (np.uint64(1) << (place & 63).astype(np.uint64)) - np.uint64(1)
        return before[word] + np.bitwise_count(words[word] & below)

    return until(stops) - until(starts)


def _bits(mask: np.ndarray) -> np.ndarray:
    """A mask as 64-bit words, with at least one zero bit after its end."""
    packed = np.zeros(len(mask) // 64 * 8 + 8, np.uint8)
    bits = np.packbits(mask, bitorder="little")
    packed[: len(bits)] = bits
    return packed.view("<u8")


def _without_blanks(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Where lines end without the blanks and carriage returns at their ends."""
    stops = stops.copy()
    while True:
        last = data[np.maximum(stops - 1, 0)]
        blank = (stops > starts) & ((last == ord(" ")) | (last == ord("\t")) | (last == ord("\r")))
        if not blank.any():
            return stops
        stops -= blank


def _check_utf8(line: int, word: bytes) -> None:
    try:
        word.decode()
    except UnicodeDecodeError:
        raise _WrongLineError(
            line,
            f"has the word {word[:40]!r}, which is not UTF-8; convert the file, for instance with iconv",
        ) from None


def header_of(line: bytes) -> tuple[int, int] | None:
    """Rows and width from word2vec's first line, or None where the line is none."""
    fields = line.split()
    if len(fields) != 2 or not all(item.isdigit() and len(item) < 19 for item in fields):
        return None
    return int(fields[0]), int(fields[1])


def _fields(line: bytes, separator: bytes) -> list[bytes]:
    """The word and the numbers of a line; a first field may be empty, later ones not."""
    first, *others = line.split(separator)
    return [first, *filter(None, others)]


def is_number(field: bytes) -> bool:
    """Whether the bytes spell a number, NaN and the infinities included."""
    try:
        float(field)
    except ValueError:
        return False
    return True
