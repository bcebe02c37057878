"""Files of vectors as bytes: unpacked on the way, with a progress bar, and mapped where rows are picked."""

from __future__ import annotations

import contextlib
import mmap
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from textbed.errors import UserError

SUPPORTED = (
    "supported are GloVe and word2vec text, word2vec and fastText binaries, .npy, .npz, safetensors, and "
    "folders of model2vec and transformers"
)
AGAIN = "download or make it again"
"""What mends a file that is damaged or cut short."""
FINITE = "expected finite ones; remove the row, or make the file anew"
BLOCK = 1 << 22
"""Bytes read at once, and the longest line that is taken for text: 300 numbers take 3,000 bytes."""
SHOW_PROGRESS_FROM = 1 << 26
"""Bytes from which a file gets a progress bar: about half a second of reading."""
CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}


class Batch(NamedTuple):
    """Rows of a file: words as UTF-8, the line or row of each in the file (from 1 on), and vectors (n, D)."""

    words: list[bytes]
    numbers: list[int]
    vectors: np.ndarray


class Source:
    """A file or folder of vectors of one format.

    ``stream`` walks through it once from front to back; ``compose`` makes rows for words that it does not
    hold, where the format can (``composes``). ``pieces`` says that its entries are pieces of words.
    """

    format = ""
    unit = "row"
    composes = False
    pieces = False
    doubt: str | None = None
    """What ``stream``, once at the end, found that may be a mistake: a line for the user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def peek(self) -> tuple[int | None, int]:
        """Rows, None where only counting would tell, and the width of a row."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The files that all rows depend on."""
        return [self.path]

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        """The rows of the words in ``wanted``, or all rows, in the order of the file.

        A word that comes twice is given twice. Raises UserError for what is wrong with the file, naming line
        or row; of rows that nobody asks for only what it takes to step over them is checked.
        """
        raise NotImplementedError

    def compose(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, D) for ``words`` made of their parts, and which of them have one, (n,) bool."""
        raise NotImplementedError

    def error(self, number: int, what: str) -> UserError:
        return UserError(f"{self.path}: {self.unit} {number:,} {what}")

    def check_word(self, number: int, word: bytes) -> None:
        """Raise UserError for a word that is not UTF-8."""
        try:
            word.decode()
        except UnicodeDecodeError:
            raise self.error(
                number,
                f"has the word {word[:40]!r}, which is not UTF-8; convert the file, for instance with iconv",
            ) from None

    def check_finite(self, vectors: np.ndarray, words: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Raise UserError for the first row with NaN or an infinite value."""
        # The sum of a row is finite only if all of it is, but for an overflow: the cheap look comes first.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(vectors.sum(dtype=np.float64)):
                return
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            row = int(bad[0])
            value = vectors[row][~np.isfinite(vectors[row])][0]
            raise self.error(numbers[row], f"('{shown(words[row])}') has the value {value}; {FINITE}")


def shown(text: bytes) -> str:
    """The start of a field or line, fit to stand in a message of one line."""
    decoded = text[:40].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in decoded)


def codec_of(path: Path) -> str | None:
    """What a file is packed with, by its first bytes: gzip, bz2, zstd, or None."""
    with reading(path), path.open("rb") as file:
        head = file.read(4)
    return next((codec for signature, codec in CODECS.items() if head.startswith(signature)), None)


@contextlib.contextmanager
def reading(path: Path, codec: str | None = None) -> Iterator[None]:
    """Turn what can go wrong between disk and bytes into a line for the user."""
    try:
        yield
    except (OSError, EOFError) as error:
        if codec is not None and getattr(error, "errno", None) is None:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{path}: the {codec} file is damaged or cut short ({reason}); {AGAIN}"
            ) from error
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


@contextlib.contextmanager
def opened(path: Path, progress: bool = False) -> Iterator[Any]:
    """The bytes of a file, unpacked; with ``progress`` a large file shows a bar, where standard error is a
    terminal."""
    codec = codec_of(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(reading(path, codec))
        raw: Any = stack.enter_context(path.open("rb"))
        size = path.stat().st_size
        if progress and size >= SHOW_PROGRESS_FROM and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import wrap_file

            bar = wrap_file(
                raw, size, description=f"Reading {path.name}", console=Console(stderr=True), transient=True
            )
            raw = stack.enter_context(bar)
        if codec is not None:
            import pyarrow as pa

            raw = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec))
        yield raw


def head_of(path: Path, size: int = BLOCK) -> bytes:
    """The first bytes of a file, unpacked."""
    with opened(path) as stream:
        return read_fully(stream, size)


def read_fully(stream: Any, size: int) -> bytes:
    """``size`` bytes, or what is left: a packed stream may give less at once, at the end of a part."""
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def mapped(path: Path) -> mmap.mmap:
    """A file as memory, read from disk where it is looked at.

    A packed file is unpacked into a temporary one first, which vanishes with the map.
    """
    codec = codec_of(path)
    with reading(path):
        if codec is None:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with tempfile.TemporaryFile() as plain:
            with opened(path, progress=True) as stream:
                while block := stream.read(BLOCK):
                    plain.write(block)
            plain.flush()
            return mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ)


def blocks_of(count: int, width: int) -> Iterator[slice]:
    """Slices of ``count`` rows of ``width`` numbers, each a few megabytes of float32."""
    step = max(1, BLOCK // max(4 * width, 1))
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))
