"""Tables of numbers with their words: NumPy's .npy and .npz, and safetensors. Nothing is ever unpickled.

The words of an .npz are its array ``words`` beside ``vectors``. A table without words of its own takes them
from a file beside it, of the same name but for the ending: ``x.npy`` and ``x.txt``, ``x.vocab`` or
``x.words``, a word a line in the order of the rows; what follows a tab, such as a count, is left out. A
safetensors file can bring them as a JSON list under ``words`` in its metadata.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textbed.embedding.vectors.files import AGAIN, Batch, Source, blocks_of, codec_of, mapped, opened, reading
from textbed.errors import UserError

WORD_FILES = (".txt", ".vocab", ".words")
LONGEST_HEADER = 100_000_000
"""Bytes: what the safetensors library itself allows."""


class TableVectors(Source):
    """Rows (V, D) of any number type that NumPy can map, and their words."""

    def __init__(self, path: Path, table: np.ndarray, words: Sequence[bytes], beside: Path | None) -> None:
        super().__init__(path)
        self.table, self.words, self.beside = table, words, beside
        if len(words) != len(table):
            where = beside or path
            raise UserError(f"{where}: has {len(words):,} words for the {len(table):,} rows of {path.name}")

    def peek(self) -> tuple[int | None, int]:
        return len(self.table), self.table.shape[1]

    def files(self) -> list[Path]:
        return [self.path, self.beside] if self.beside else [self.path]

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        rows = np.fromiter(
            (row for row, word in enumerate(self.words) if wanted is None or word in wanted), np.int64
        )
        for part in blocks_of(len(rows), self.table.shape[1]):
            some = rows[part]
            words, numbers = [self.words[row] for row in some], (some + 1).tolist()
            vectors = self.take(some)
            for number, word in zip(numbers, words, strict=True):
                self.check_word(number, word)
            self.check_finite(vectors, words, numbers)
            yield Batch(words, numbers, vectors)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, D) float32."""
        return as_float(self.table[rows])


def as_float(values: np.ndarray) -> np.ndarray:
    """Numbers as float32; uint16 is bfloat16, int8 what model2vec's quantisation keeps, in parts of 127."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    if values.dtype == np.int8:
        return values.astype(np.float32) / 127
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _check_shape(path: Path, shape: Sequence[int], kind: Any, what: str = "") -> None:
    if len(shape) != 2 or not shape[0] or not shape[1]:
        raise UserError(f"{path}:{what} has the shape {tuple(shape)}; expected rows and columns")
    if np.dtype(kind).kind != "f":
        raise UserError(f"{path}:{what} holds {np.dtype(kind).name}; expected floating-point numbers")


# NumPy


def open_npy(path: Path) -> TableVectors:
    """A .npy matrix, with its words in a file beside it."""
    data = mapped(path)
    table = _array(path, data)
    return TableVectors(path, table, *words_beside(path, len(table)))


def _array(path: Path, data: Any) -> np.ndarray:
    head = io.BytesIO(data[: 1 << 16])
    shape, fortran, kind = _npy_header(path, head)
    _check_shape(path, shape, kind)
    count = shape[0] * shape[1]
    if head.tell() + count * kind.itemsize > len(data):
        raise UserError(f"{path}: promises {shape[0]:,} rows of {shape[1]:,}, but is cut short; {AGAIN}")
    values = np.frombuffer(data, kind, count, head.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def _npy_header(path: Path, head: Any, what: str = "") -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = read[version](head)
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{path}:{what} its NumPy header is damaged or cut short ({str(error)[:80]}); {AGAIN}"
        ) from None
    if kind.hasobject:
        raise UserError(f"{path}:{what} holds Python objects, a pickle, which is never opened")
    return shape, fortran, kind


class NpzVectors(Source):
    """An .npz with ``words`` and ``vectors``; its table is read from front to back, packed or not."""

    format = "NumPy .npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _unzipping(path), zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if not {"words", "vectors"} <= names:
                raise UserError(
                    f"{path}: is a zip archive without arrays 'words' and 'vectors'; save one with "
                    "np.savez(path, words=np.array(words), vectors=matrix)"
                )
            with archive.open("vectors.npy") as file:
                self.shape, fortran, kind = _npy_header(path, file, " array 'vectors'")
            _check_shape(path, self.shape, kind, " array 'vectors'")
            if fortran:
                raise UserError(f"{path}: its vectors lie by columns; save them with np.ascontiguousarray")
            with archive.open("words.npy") as file:
                shape, _, _ = _npy_header(path, file, " array 'words'")
            if shape != (self.shape[0],):
                raise UserError(
                    f"{path}: its words have the shape {shape}; expected ({self.shape[0]},), one a row"
                )

    def peek(self) -> tuple[int | None, int]:
        return self.shape[0], self.shape[1]

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        with _unzipping(self.path), zipfile.ZipFile(self.path) as archive:
            with archive.open("words.npy") as file:
                words = np.lib.format.read_array(file, allow_pickle=False)
            if words.dtype.kind not in "US":
                raise UserError(f"{self.path}: its words are {words.dtype.name}; expected text")
            with archive.open("vectors.npy") as file:
                _, _, kind = _npy_header(self.path, file)
                for part in blocks_of(self.shape[0], self.shape[1]):
                    data = file.read((part.stop - part.start) * self.shape[1] * kind.itemsize)
                    if len(data) < (part.stop - part.start) * self.shape[1] * kind.itemsize:
                        raise UserError(f"{self.path}: array 'vectors' is cut short; {AGAIN}")
                    named = [_encoded(word) for word in words[part].tolist()]
                    chosen = [
                        row for row, word in enumerate(named) if wanted is None or word in wanted
                    ]  # fmt: skip
                    if not chosen:
                        continue
                    table = np.frombuffer(data, kind).reshape(-1, self.shape[1])
                    vectors = as_float(table[chosen])
                    some = [named[row] for row in chosen]
                    numbers = [part.start + row + 1 for row in chosen]
                    for number, word in zip(numbers, some, strict=True):
                        self.check_word(number, word)
                    self.check_finite(vectors, some, numbers)
                    yield Batch(some, numbers, vectors)


def _encoded(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode(errors="surrogatepass")


class _unzipping:
    """Turn a damaged archive into a line for the user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import zlib

        if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | ValueError | NotImplementedError):
            reason = str(error).split("\n")[0][:80]
            raise UserError(
                f"{self.path}: the zip archive is damaged or cut short ({reason}); {AGAIN}"
            ) from None


def open_npz(path: Path) -> NpzVectors:
    """A zip archive that NumPy wrote."""
    if codec_of(path):
        raise UserError(f"{path}: is a packed zip archive; unpack it first, an .npz is packed in itself")
    return NpzVectors(path)


# Words in a file beside the table


def words_beside(path: Path, rows: int) -> tuple[list[bytes], Path]:
    """The words of a table's rows, from a file of the same name with another ending."""
    stem = path
    while stem.suffix and stem.suffix != ".":
        whole = [stem.with_suffix(suffix) for suffix in WORD_FILES]
        found = next((file for file in whole if file.is_file() and file != path), None)
        if found is not None:
            return _word_list(found), found
        stem = stem.with_suffix("")
        if stem == stem.with_suffix(""):
            break
    names = ", ".join(path.with_suffix(suffix).name for suffix in WORD_FILES)
    raise UserError(
        f"{path}: has {rows:,} rows but no words; expected a word a line, in the order of the rows, in a "
        f"file beside it named one of {names}"
    )


def _word_list(path: Path) -> list[bytes]:
    with reading(path), opened(path) as stream:
        text = stream.read()
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    words = [line.rstrip(b"\r").partition(b"\t")[0] for line in lines]
    for number, word in enumerate(words, start=1):
        try:
            word.decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}: line {number:,} is not UTF-8 ({word[:40]!r})") from None
    return words


# safetensors

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "I64": "<i8", "I32": "<i4"}


class SafeTensors:
    """A safetensors file, mapped: a header of names, types, shapes and places, then the numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = mapped(path)
        size = int.from_bytes(self._data[:8], "little")
        if size > LONGEST_HEADER or 8 + size > len(self._data):
            raise UserError(f"{path}: its safetensors header is cut short or damaged; {AGAIN}")
        try:
            header = json.loads(self._data[8 : 8 + size])
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self._entries = {
                name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its safetensors header is damaged ({str(error)[:80]}); {AGAIN}"
            ) from None
        self._begin = 8 + size

    def names(self) -> list[str]:
        return list(self._entries)

    def tables(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what could be a table of vectors, by name."""
        return {
            name: shape
            for name, (kind, shape, *_) in self._entries.items()
            if len(shape) == 2 and kind in ("F64", "F32", "F16", "BF16", "I8")
        }

    def get(self, name: str) -> np.ndarray:
        """One tensor, on disk until it is looked at; bfloat16 comes as uint16."""
        kind, shape, begin, end = self._entries[name]
        if kind not in TYPES:
            raise UserError(f"{self.path}: tensor {name} is of type {kind}; expected {', '.join(TYPES)}")
        count = int(np.prod(shape, dtype=np.int64))
        if end - begin != count * np.dtype(TYPES[kind]).itemsize:
            raise UserError(f"{self.path}: the size of tensor {name} is not what its shape {shape} asks for")
        if begin < 0 or self._begin + end > len(self._data):
            raise UserError(f"{self.path}: is cut short: tensor {name} lies beyond its end; {AGAIN}")
        return np.frombuffer(self._data, TYPES[kind], count, self._begin + begin).reshape(shape)


def open_safetensors(path: Path) -> TableVectors:
    """A safetensors file with one table and its words in its metadata or beside it."""
    tensors = SafeTensors(path)
    tables = tensors.tables()
    known = [name for name in ("vectors", "embeddings", "embedding.weight", "weight") if name in tables]
    name = known[0] if known else next(iter(tables)) if len(tables) == 1 else None
    if name is None:
        listed = ", ".join(list(tables)[:5]) or "none"
        raise UserError(
            f"{path}: expected one table, named vectors, embeddings or weight; its tables are {listed}. For "
            "a transformer give its folder, with tokenizer.json in it."
        )
    table = tensors.get(name)
    if not table.size:
        raise UserError(f"{path}: its table '{name}' has the shape {table.shape}; expected rows and columns")
    if "words" in tensors.metadata:
        try:
            words = [_encoded(word) for word in json.loads(tensors.metadata["words"])]
        except (ValueError, AttributeError, TypeError):
            raise UserError(f"{path}: the words in its metadata are no JSON list of texts") from None
        return _named(TableVectors(path, table, words, None))
    return _named(TableVectors(path, table, *words_beside(path, len(table))))


def _named(source: TableVectors) -> TableVectors:
    source.format = "safetensors"
    return source


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file starts with the length of a JSON header and the header's brace."""
    return len(head) > 9 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= LONGEST_HEADER
