"""Pretrained word vectors from text files: GloVe and word2vec, plain or gzipped, told apart by content.

A file is read once from front to back, block by block, and only the rows that are asked for become numbers,
so memory is that of the result and time that of the disk. NumPy only: a configuration can be checked without
torch.

To add a format: a class with ``peek`` and ``read`` like ``TextVectors``, and its line in ``_open``.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np

from textbed.errors import UserError, nearest

SUPPORTED = "supported are GloVe text and word2vec text, plain or gzipped"
BLOCK = 1 << 22
"""Bytes read at once, and the longest line that is taken for text: 300 numbers take 3,000 bytes."""
SHOW_PROGRESS_FROM = 1 << 26
"""Bytes from which a file gets a progress bar: about a second of reading."""

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive (unpack it first; torch's .pt files are such archives too)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xba\x16\x4f\x2f", "a fastText .bin model (its .vec file is text)"),
    (b"BZh", "a bzip2 file (unpack it first)"),
    (b"\xfd7zXZ\x00", "an xz file (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\xff\xfe", "UTF-16 text (save it as UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (save it as UTF-8)"),
    *((b"\x80" + bytes([protocol]), "a Python pickle, which is never opened") for protocol in range(2, 6)),
)


class Vectors(Protocol):
    """A file of one format."""

    def peek(self) -> tuple[int | None, int]:
        """Rows, None where only counting would tell, and the width of a row."""

    def read(self, rows: dict[bytes, int], matrix: np.ndarray, found: np.ndarray) -> None:
        """Put the vector of each word (UTF-8) into its row of ``matrix`` and mark it in ``found``."""


def peek(path: str | Path) -> tuple[int | None, int]:
    """How many rows a vectors file holds (None where it does not say) and their width, from its first block.

    Raises:
        UserError: the file is missing, unreadable, empty, or of a kind that is not supported.
    """
    return _open(Path(path)).peek()


def read(path: str | Path, words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of ``words``, found by exact spelling.

    Args:
        path: a vectors file.
        words: V different words, a list or an Arrow array.

    Returns:
        a matrix (V, D) float32, zeros where a word has no vector, and found (V,) bool.

    Raises:
        UserError: what ``peek`` raises; and, with the line, a row of another width, a number that is not one
            or not finite, a word that comes twice with different vectors or is not UTF-8, fewer or more rows
            than the file promises; or a file that has none of the words.
    """
    words = words.to_pylist() if hasattr(words, "to_pylist") else list(words)
    rows = {word.encode(): row for row, word in enumerate(words)}
    file = _open(Path(path))
    matrix = np.zeros((len(words), file.peek()[1]), dtype=np.float32)
    found = np.zeros(len(words), dtype=bool)
    file.read(rows, matrix, found)
    if not found.any():
        some = ", ".join(repr(word) for word in words[:5])
        raise UserError(
            f"{path}: has a vector for none of the {len(words):,} words of the vocabulary, which begins with "
            f"{some}; is it of another language, case or tokenizer?"
        )
    return matrix, found


def _open(path: Path) -> Vectors:
    """Find the format of a file by its first block."""
    with _reading(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; expected a file of vectors ({SUPPORTED})")
        if not path.exists():
            siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{path}: there is no such vectors file.{nearest(path.name, siblings)}")
        with _bytes(path) as stream:
            block = stream.read(BLOCK)
    for signature, what in _SIGNATURES:
        if block.startswith(signature):
            raise UserError(f"{path}: is {what}; {SUPPORTED}")
    if b"\0" in block:
        kind = "word2vec's binary format" if _header(block.split(b"\n", 1)[0]) else "binary"
        raise UserError(f"{path}: is {kind}, not text; {SUPPORTED}")
    return TextVectors(path, block)


class TextVectors:
    """A word and D numbers a line, with one separator between; word2vec's has a first line of rows and width.

    A word may contain spaces, as a few in GloVe 840B do: the last D fields are the numbers. Only where a part
    of such a word looks like a number itself is the line taken for one of the wrong width.
    """

    def __init__(self, path: Path, block: bytes) -> None:
        self.path = path
        lines = block.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if len(lines) > 1 and len(block) == BLOCK:
            lines.pop()  # cut by the end of the block
        lines = [line.rstrip(b" \t\r") for line in lines if line.strip()]
        if not lines:
            raise UserError(f"{path}: is empty; expected a word and its numbers on each line")
        if len(lines[0]) >= BLOCK - 3:
            raise UserError(
                f"{path}: has no line end in its first {BLOCK:,} bytes, so it is not text; {SUPPORTED}"
            )
        self.promised, self.width = _header(lines[0]) or (None, 0)
        if self.width != 1 and len(lines) > 1 and len(lines[1].split()) == 2:
            self.promised = None  # no first line of counts, but rows of one number each
        first = 0 if self.promised is None else 1
        if first == len(lines):
            raise UserError(
                f"{path}: line 1 promises {self.promised:,} rows, but there are none: the file is cut short"
            )
        self.separator = b"\t" if lines[first].count(b"\t") > lines[first].count(b" ") else b" "
        if self.promised is None:
            # The usual number of fields, so that one odd line or word with spaces does not set the width.
            counts = Counter(len(_fields(line, self.separator)) for line in lines[:1000])
            self.width = min(counts, key=lambda fields: (-counts[fields], fields)) - 1
        if self.width < 1 or not _is_number(_fields(lines[first], self.separator)[-1]):
            raise UserError(
                f"{path}: line {first + 1} begins '{_shown(lines[first])}'; "
                f"expected a word and its numbers ({SUPPORTED})"
            )

    def peek(self) -> tuple[int | None, int]:
        return self.promised, self.width

    def read(self, rows: dict[bytes, int], matrix: np.ndarray, found: np.ndarray) -> None:
        """Read the rows of ``rows``; the others are only checked for their number of fields."""
        separator, width = self.separator, self.width
        header = self.promised is not None
        line_of: dict[int, int] = {}
        number, blank = 0, 0
        for number, line in enumerate(self._lines(), start=1):
            if header and number == 1:
                continue
            line = line.rstrip(b" \t\r")
            if not line:
                blank = blank or number
                continue
            if blank:
                raise self._error(blank, "is empty")
            if line.count(separator) == width:
                word, _, numbers = line.partition(separator)
            else:
                word, numbers = self._uneven(number, line)
            if not word.isascii():
                self._check_utf8(number, word)
            row = rows.get(word)
            if row is None:
                continue
            vector = self._parse(number, word, numbers)
            if found[row] and not np.array_equal(matrix[row], vector):
                raise self._error(
                    number,
                    f"has '{word.decode()}' again, with other numbers than line {line_of[row]:,}; remove one",
                )
            matrix[row] = vector
            found[row] = True
            line_of.setdefault(row, number)
        count = (blank - 1 if blank else number) - header
        if self.promised is not None and count != self.promised:
            what = "the file is cut short" if count < self.promised else "the first line is not of this file"
            raise UserError(
                f"{self.path}: line 1 promises {self.promised:,} rows, but there are {count:,}: {what}"
            )

    def _uneven(self, number: int, line: bytes) -> tuple[bytes, bytes]:
        """Word and numbers where the separators do not add up: a word with spaces, or two between numbers."""
        fields = _fields(line, self.separator)
        extra = len(fields) - 1 - self.width
        if extra < 0 or any(_is_number(field) for field in fields[1 : extra + 1]):
            source = "in line 1" if self.promised is not None else "by the other rows"
            cut = "; is the file cut short?" if extra < 0 else ""
            raise self._error(
                number, f"has {self.width + extra} numbers where {self.width} are promised {source}{cut}"
            )
        return self.separator.join(fields[: extra + 1]), self.separator.join(fields[extra + 1 :])

    def _parse(self, number: int, word: bytes, numbers: bytes) -> np.ndarray:
        fields = numbers.split(self.separator)
        try:
            with np.errstate(over="ignore"):
                vector = np.array(
                    fields, dtype=np.float32
                )  # from bytes: a third of the time of float() on each
        except ValueError:
            wrong = next((field for field in fields if not _is_number(field)), b"")
            raise self._error(
                number, f"('{word.decode()}') has '{_shown(wrong)}' where a number is expected"
            ) from None
        finite = np.isfinite(vector)
        if not finite.all():
            wrong = fields[int(finite.argmin())]
            raise self._error(
                number, f"('{word.decode()}') has the value {_shown(wrong)}; expected finite ones"
            )
        return vector

    def _check_utf8(self, number: int, word: bytes) -> None:
        try:
            word.decode()
        except UnicodeDecodeError:
            raise self._error(
                number,
                f"has the word {word!r}, which is not UTF-8; convert the file, for instance with iconv",
            ) from None

    def _error(self, number: int, what: str) -> UserError:
        return UserError(f"{self.path}: line {number:,} {what}")

    def _lines(self) -> Iterator[bytes]:
        """The lines of the file, without their ends. A last line needs none."""
        with _reading(self.path), _bytes(self.path, progress=True) as stream:
            rest = b""
            start = True
            while block := stream.read(BLOCK):
                if start:
                    block, start = block.removeprefix(b"\xef\xbb\xbf"), False
                lines = (rest + block).split(b"\n")
                rest = lines.pop()
                if len(rest) > BLOCK:
                    raise UserError(
                        f"{self.path}: has a line of more than {BLOCK:,} bytes, so it is not text"
                    )
                yield from lines
            if rest:
                yield rest


def _header(line: bytes) -> tuple[int | None, int] | None:
    """Rows and width from word2vec's first line, or None where the line is none."""
    fields = line.split()
    return (int(fields[0]), int(fields[1])) if len(fields) == 2 and all(f.isdigit() for f in fields) else None


def _fields(line: bytes, separator: bytes) -> list[bytes]:
    """The word and the numbers of a line; a first field may be empty, later ones not."""
    first, *others = line.split(separator)
    return [first, *filter(None, others)]


def _shown(text: bytes) -> str:
    """The start of a field or line, fit to stand in a message of one line."""
    shown = text[:40].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in shown)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong between disk and bytes into a line for the user."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is damaged or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _bytes(path: Path, progress: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked; with ``progress`` a large file shows a bar, where standard error is a
    terminal."""
    with contextlib.ExitStack() as stack:
        raw: BinaryIO = stack.enter_context(path.open("rb"))
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        size = path.stat().st_size
        if progress and size >= SHOW_PROGRESS_FROM and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import wrap_file

            bar = wrap_file(
                raw, size, description=f"Reading {path.name}", console=Console(stderr=True), transient=True
            )
            raw = stack.enter_context(bar)
        yield cast(BinaryIO, stack.enter_context(gzip.open(raw))) if packed else raw
