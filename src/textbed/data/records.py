"""Rows of a data set, column by column, from Parquet or memory-mapped Arrow; and the cache they lie in."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from textbed.errors import UserError


def message_of(error: BaseException) -> str:
    """The first line of an exception's message, for use inside a message of ours."""
    lines = str(error).strip().split("\n")
    return lines[0][:300] if lines[0] else type(error).__name__


@contextmanager
def written_atomically(path: Path, key: str = "paths.cache") -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure.

    ``key`` is what the user can change where it cannot be written.

    Two processes that write the same path at once both succeed, and a reader sees a whole file or none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left to write {path}: free some, or choose another place ({key})"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot write {path} ({error.strerror}): choose another place ({key})") from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def status_of(path: Path) -> tuple[int, ...]:
    """What changes when a file does: size, both times and inode.

    The time of change beside that of modification, because copying tools set the latter back to that of the
    original, and two versions of a file may have the same size.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _memo(path: Path, cache: Path) -> Path:
    key = [os.path.realpath(path), *status_of(path)]
    return cache / "hashes" / hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()


def remembered_hash(path: Path, cache: Path) -> str | None:
    """What ``content_hash`` would return, where that costs nothing; else None."""
    try:
        return _memo(path, cache).read_text()
    except OSError:
        return None


def content_hash(path: Path, cache: Path) -> str:
    """Hash of a file's bytes, remembered in the cache by :func:`status_of` the file.

    The first look costs one reading of the file (about 1 GB/s), later ones nothing.
    """
    remembered = remembered_hash(path, cache)
    if remembered is not None:
        return remembered
    memo = _memo(path, cache)
    with open(path, "rb") as file:
        value = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    try:
        with written_atomically(memo) as temporary:
            temporary.write_text(value)
    except (OSError, UserError):
        pass  # only a memo: a cache that cannot be written is reported where it matters
    return value


def hash_of(*parts: object) -> str:
    """Short hash of plain values."""
    return hashlib.blake2b(
        json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()


class Records:
    """Rows of one split: named columns, read a column at a time.

    ``fingerprint`` changes whenever the rows do.
    """

    schema: pa.Schema
    num_rows: int
    fingerprint: str

    def column(self, name: str) -> pa.ChunkedArray:
        """The whole column."""
        raise NotImplementedError

    def batches(self, name: str, rows_per_batch: int) -> Iterator[pa.Array]:
        """The column in pieces of at most ``rows_per_batch`` rows, in order."""
        raise NotImplementedError

    def value(self, name: str, row: int) -> Any:
        """One value as a Python object."""
        raise NotImplementedError

    def where(self, row: int) -> str:
        """``row 5 of FILE`` for messages; rows count from 1 and a header does not count."""
        raise NotImplementedError


def _where(files: list[tuple[str, int]], row: int) -> str:
    for name, rows in files:
        if row < rows:
            return f"row {row + 1} of {name}"
        row -= rows
    return f"row {row + 1}"


def _end_to_end(
    name: str, pieces: Sequence[pa.Array | pa.ChunkedArray], place: str, parts: str
) -> pa.ChunkedArray:
    """Pieces of one column as one; types that differ in width alone become the widest."""
    try:
        # Different tools may have written them: int32 beside int64, string beside large_string.
        tables = [pa.table({name: piece}) for piece in pieces]
        return pa.concat_tables(tables, promote_options="permissive").column(0)
    except pa.ArrowException as error:
        raise UserError(
            f"{place}: column '{name}' differs in type between the {parts} ({message_of(error)})"
        ) from None


class JoinedRecords(Records):
    """Splits of one source, laid end to end.

    Args:
        parts: one or more by the source's own names, in this order.

    Raises:
        UserError: their columns do not have the same names.
    """

    def __init__(self, parts: Mapping[str, Records]):
        self.names, self.parts = list(parts), list(parts.values())
        first = self.parts[0]
        for name, part in parts.items():
            if sorted(part.schema.names) != sorted(first.schema.names):
                raise UserError(
                    f"data.splits: {self.names[0]} and {name} cannot be laid end to end: their columns are "
                    f"{', '.join(first.schema.names)} and {', '.join(part.schema.names)}"
                )
        self.schema = first.schema
        self.num_rows = sum(part.num_rows for part in self.parts)
        fingerprints = [part.fingerprint for part in self.parts]
        self.fingerprint = hash_of("joined", fingerprints) if all(fingerprints) else ""

    def column(self, name: str) -> pa.ChunkedArray:
        pieces = [part.column(name) for part in self.parts]
        return _end_to_end(name, pieces, "data.splits", "splits")

    def batches(self, name: str, rows_per_batch: int) -> Iterator[pa.Array]:
        for part in self.parts:
            yield from part.batches(name, rows_per_batch)

    def value(self, name: str, row: int) -> Any:
        part, row = self._find(row)
        return part.value(name, row)

    def where(self, row: int) -> str:
        part, row = self._find(row)
        return part.where(row)

    def _find(self, row: int) -> tuple[Records, int]:
        for part in self.parts:
            if row < part.num_rows:
                return part, row
            row -= part.num_rows
        raise IndexError(f"row {row}")


class TableRecords(Records):
    """Rows of an Arrow table, usually memory-mapped.

    ``files`` gives the name and the number of rows of each file that they came from.
    """

    def __init__(self, table: pa.Table, fingerprint: str, files: list[tuple[str, int]]):
        self.table, self.schema, self.num_rows = table, table.schema, table.num_rows
        self.fingerprint, self.files = fingerprint, files

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def batches(self, name: str, rows_per_batch: int) -> Iterator[pa.Array]:
        for chunk in self.table.column(name).chunks:
            for start in range(0, len(chunk), rows_per_batch):
                yield chunk.slice(start, rows_per_batch)

    def value(self, name: str, row: int) -> Any:
        return self.table.column(name)[row].as_py()

    def where(self, row: int) -> str:
        return _where(self.files, row)


class ParquetRecords(Records):
    """Rows of Parquet files, read from them whenever they are asked for: nothing is kept in memory."""

    def __init__(self, paths: list[Path], cache: Path):
        self.paths = paths
        self.row_counts: list[int] = []
        for path in paths:
            file = self._open(path)
            schema = file.schema_arrow
            if not self.row_counts:
                self.schema = schema
            elif schema.names != self.schema.names:
                raise UserError(
                    f"{path}: has columns {', '.join(schema.names)} where {paths[0]} has "
                    f"{', '.join(self.schema.names)}"
                )
            self.row_counts.append(file.metadata.num_rows)
        self.num_rows = sum(self.row_counts)
        self.fingerprint = hash_of("parquet", [content_hash(path, cache) for path in paths])

    @staticmethod
    def _open(path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file, or cut short ({message_of(error)})") from None

    def batches(self, name: str, rows_per_batch: int) -> Iterator[pa.Array]:
        for path in self.paths:
            try:
                for batch in self._open(path).iter_batches(rows_per_batch, columns=[name], use_threads=True):
                    yield batch.column(0)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path}: column '{name}' is damaged ({message_of(error)})") from None

    def column(self, name: str) -> pa.ChunkedArray:
        pieces = list(self.batches(name, 1 << 16))
        if not pieces:
            return pa.chunked_array([], self.schema.field(name).type)
        return _end_to_end(name, pieces, f"{self.paths[0].parent}", "files")

    def value(self, name: str, row: int) -> Any:
        for path, rows in zip(self.paths, self.row_counts, strict=True):
            if row < rows:
                file = self._open(path)
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if row < size:
                        return file.read_row_group(group, columns=[name]).column(0)[row].as_py()
                    row -= size
            row -= rows
        raise IndexError(f"row {row}")

    def where(self, row: int) -> str:
        return _where(
            [(str(path), rows) for path, rows in zip(self.paths, self.row_counts, strict=True)], row
        )
