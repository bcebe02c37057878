"""CSV, JSON lines and folders of text as :class:`Records`.

Files are parsed with Arrow, once, into an uncompressed Arrow file in the cache, named by content and
settings, which is memory-mapped from then on. Only where Arrow stumbles does Python walk through the file, to
say on which line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from textbed.data.files import SPLIT_NAMES, missing, split_of
from textbed.data.records import (
    TableRecords,
    content_hash,
    hash_of,
    message_of,
    status_of,
    written_atomically,
)
from textbed.errors import UserError, nearest

# A CSV row must lie in two neighbouring blocks at most. 16 MiB hold any sane document; what does not fit is
# tried as one block.
BLOCK_BYTES = 16 << 20

# ---- the parsed, cached


def _cached_table(path: Path, write: Callable[[Path], None]) -> pa.Table:
    """The cached table at ``path``, memory-mapped; ``write(temporary path)`` makes it where it is missing."""
    for attempt in range(2):
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid):
            if attempt:
                raise
        with written_atomically(path) as temporary:
            write(temporary)
    raise AssertionError("unreachable")


def _records(
    kind: str, paths: list[Path], settings: list[Any], cache: Path, parse: Callable[[Path, Path], None]
) -> TableRecords:
    """Parse each file once (``parse(file, arrow file to write)``) and put the tables one below another."""
    tables, keys = [], []
    for path in paths:
        try:
            key = hash_of(kind, 1, content_hash(path, cache), settings)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        tables.append(_cached_table(cache / "parsed" / f"{key}.arrow", partial(parse, path)))
        keys.append(key)
    names = tables[0].schema.names
    for path, table in zip(paths, tables, strict=True):
        if table.schema.names != names:
            raise UserError(
                f"{path}: has columns {', '.join(table.schema.names)} where {paths[0]} has {', '.join(names)}"
            )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{paths[0].parent}: the files' columns differ in type ({message_of(error)})"
        ) from None
    return TableRecords(
        table, hash_of(keys), [(str(p), t.num_rows) for p, t in zip(paths, tables, strict=True)]
    )


# ---- csv


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Attributes:
        delimiter: one character between values.
        quote: the character around values that hold delimiters or line ends, doubled inside; None where
            quotes mean nothing.
        encoding: a name that Python knows.
        header: True where the first row names the columns, False where none does (they are called c0, c1, …),
            or the names.
    """

    delimiter: str = ","
    quote: str | None = '"'
    encoding: str = "utf-8"
    header: Any = True

    def __post_init__(self) -> None:
        for key, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n"):
                raise UserError(f"data.{key}: {value!r} is not one ASCII character")
        check_encoding(self.encoding)


def check_encoding(encoding: str) -> None:
    """Raise UserError where Python knows no text encoding of that name."""
    try:
        "".encode(encoding)
    except LookupError:
        known = (
            "utf-8",
            "utf-16",
            "latin-1",
            "cp1252",
            "cp1251",
            "gb18030",
            "shift_jis",
            "euc-kr",
            "big5",
            "ascii",
        )
        raise UserError(f"data.encoding: no encoding '{encoding}'.{nearest(encoding, known)}") from None


@contextmanager
def _open_bytes(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the compressed file is damaged or cut short ({message_of(error)})"
        ) from None


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """A file, packed or not, as text whose lines end at \\n alone."""
    with _open_bytes(path) as file:
        yield io.TextIOWrapper(file, encoding=encoding, newline="\n")


def undecodable(path: Path, encoding: str) -> UserError | None:
    """The error for the first line of a file that is not in ``encoding``; None where all of them are."""

    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with _open_bytes(path) as file:
        while True:
            block = file.read(1 << 20)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                other = "utf-16" if block[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
                return UserError(
                    f"{path}, line {line}: byte 0x{byte:02x} is not {encoding}; name the file's encoding, "
                    f"e.g. data.encoding={other}"
                )
            if not block:
                return None


def _examine_csv(path: Path, format: CsvFormat, strict: bool) -> UserError | None:
    """Walk through a file with Python's reader (about 50 MB/s), to say on which line it goes wrong.

    Only called where Arrow has seen something odd, since Arrow knows rows but not lines, and forgives a quote
    that never closes.
    """
    options: dict[str, Any] = {"delimiter": format.delimiter, "strict": strict}
    options |= {"quotechar": format.quote} if format.quote else {"quoting": csv.QUOTE_NONE}
    expected = len(format.header) if isinstance(format.header, list) else None
    limit = csv.field_size_limit(sys.maxsize)
    line = 0

    try:
        with _open_bytes(path) as file:
            utf8 = codecs.lookup(format.encoding).name == "utf-8"
            encoding = "utf-8-sig" if utf8 else format.encoding
            reader = csv.reader(io.TextIOWrapper(file, encoding=encoding, newline=""), **options)
            for row in reader:
                if row and expected is None:
                    expected = len(row)
                if row and len(row) != expected:
                    shown = format.delimiter.join(row)[:60].replace("\n", " ")
                    header = "data.header" if isinstance(format.header, list) else "the first row"
                    return UserError(
                        f"{path}, line {line + 1}: {len(row)} values where {header} has {expected} "
                        f"(“{shown}”); quote values that hold {format.delimiter!r}, or set data.delimiter or "
                        "data.quote"
                    )
                line = reader.line_num
    except UnicodeDecodeError:
        return undecodable(path, format.encoding)
    except csv.Error:
        return UserError(
            f"{path}, line {line + 1}: a quote ({format.quote}) opens in this row and is not closed as it "
            f"should be (noticed on line {reader.line_num}); mend the row, or set data.quote=null where "
            "quotes are ordinary characters"
        )
    finally:
        csv.field_size_limit(limit)
    return None


def _parse_csv(path: Path, out: Path, format: CsvFormat, block_bytes: int = BLOCK_BYTES) -> None:
    invalid: list[Any] = []

    def note(row: Any) -> str:
        invalid.append(row)
        return "skip"

    read: dict[str, Any] = {"block_size": block_bytes, "encoding": format.encoding}
    if format.header is not True:
        read |= {"column_names": format.header} if format.header else {"autogenerate_column_names": True}
    parse = pyarrow.csv.ParseOptions(
        delimiter=format.delimiter,
        quote_char=format.quote or False,
        double_quote=True,
        newlines_in_values=format.quote is not None,
        invalid_row_handler=note,
    )

    def reader(types: dict[str, pa.DataType], **more: Any) -> Any:
        stream = pa.input_stream(str(path), compression="detect")
        # Everything is text: a column of numbers or dates, or the word "NA", must reach the tokenizer as it
        # was written.
        convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False, check_utf8=True)
        return pyarrow.csv.open_csv(stream, pyarrow.csv.ReadOptions(**read, **more), parse, convert)

    try:
        names = reader({}).schema.names
        invalid.clear()
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise UserError(
                f"{path}: two columns are called '{duplicates[0]}'; if the file has no header, set "
                "data.header=false"
            )
        suspicious = False
        written = [f"c{index}" for index in range(len(names))] if format.header is False else names
        schema = pa.schema([(name, pa.string()) for name in written])
        with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in reader(dict.fromkeys(names, pa.string())):
                if format.quote and not suspicious:
                    suspicious = any(
                        pc.any(pc.match_substring(column, "\n")).as_py() for column in batch.columns
                    )
                writer.write_batch(pa.record_batch(batch.columns, schema=schema))
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if "straddling" in str(error) and block_bytes == BLOCK_BYTES:
            if trouble := _examine_csv(path, format, strict=True):
                raise trouble from None
            _parse_csv(path, out, format, block_bytes=1 << 30)
            return
        trouble = undecodable(path, format.encoding)
        if trouble is None and "Empty CSV" in str(error):
            trouble = UserError(f"{path}: the file is empty")
        raise trouble or UserError(f"{path}: not readable as CSV ({message_of(error)})") from None
    if invalid:
        # Prefer the tale of the unclosed quote: it makes rows ragged, and is the cause.
        trouble = _examine_csv(path, format, strict=True)
        row = invalid[0]
        raise trouble or UserError(
            f"{path}: {row.actual_columns} values where {row.expected_columns} are expected, in the row "
            f"“{row.text[:60]}”"
        )
    if (
        format.quote
        and (suspicious or _odd_quotes(path, format))
        and (trouble := _examine_csv(path, format, strict=True))
    ):
        raise trouble


def _odd_quotes(path: Path, format: CsvFormat) -> bool:
    """Whether the number of quotes is odd: one never closes. Costs one reading of the file."""
    assert format.quote is not None
    quote, count = format.quote.encode("ascii"), 0
    with _open_bytes(path) as file:
        while block := file.read(1 << 20):
            count += block.count(quote)
    return count % 2 == 1


def read_csv(paths: list[Path], format: CsvFormat, cache: Path) -> TableRecords:
    """Rows of CSV files, all columns as strings exactly as written, parsed once and memory-mapped afterwards.

    Raises:
        UserError: ragged rows, quotes that do not close, another encoding, two columns of one name, an empty
            file; with the line.
    """
    settings = [format.delimiter, format.quote, format.encoding, format.header]
    return _records("csv", paths, settings, cache, lambda path, out: _parse_csv(path, out, format))


# ---- json lines


JSON_KINDS = {
    int: "number",
    float: "number",
    str: "string",
    bool: "boolean",
    list: "list",
    dict: "mapping",
    type(None): "null",
}


def _bad_json_line(path: Path) -> UserError | None:
    """The error for the first line that is no JSON object, or whose values change kind; else None."""
    kinds: dict[str, tuple[str, int]] = {}
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                value = json.loads(text) if text else {}
            except UnicodeDecodeError:
                return UserError(
                    f"{path}, line {number}: not UTF-8, as JSON must be; convert the file (iconv -f latin1 "
                    "-t utf-8)"
                )
            except json.JSONDecodeError as error:
                return UserError(
                    f"{path}, line {number}: not JSON ({error.msg} at character {error.pos + 1}); expected "
                    "one object a line"
                )
            if not isinstance(value, dict):
                return UserError(
                    f"{path}, line {number}: a {JSON_KINDS[type(value)]} where one object a line is expected"
                )
            for name, item in value.items():
                kind = JSON_KINDS[type(item)]
                if item is not None and kinds.setdefault(name, (kind, number))[0] != kind:
                    return UserError(
                        f"{path}, line {number}: '{name}' is a {kind}, but a {kinds[name][0]} on line "
                        f"{kinds[name][1]}"
                    )
    return None


def _parse_json(path: Path, out: Path) -> None:
    def read(schema: pa.Schema | None = None) -> pa.Table:
        stream = pa.input_stream(str(path), compression="detect")
        options = pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=False)
        return pyarrow.json.read_json(stream, pyarrow.json.ReadOptions(block_size=BLOCK_BYTES), options)

    with _open_bytes(path) as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    try:
        if start == b"":
            raise UserError(f"{path}: the file is empty")
        if start == b"[":  # one array instead of lines
            with _open_bytes(path) as file:
                rows = json.loads(file.read())
            for number, row in enumerate(rows, start=1):
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}: value {number} of the array is a {JSON_KINDS[type(row)]}; expected objects"
                    )
            table = pa.Table.from_pylist(rows)
        else:
            table = read()
            # Arrow takes texts that look like dates for dates, if all of them do.
            dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
            if dates:
                table = read(pa.schema([(name, pa.string()) for name in dates]))
            table.validate(full=True)  # finds what is not UTF-8, which Arrow's JSON reader lets through
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        trouble = None if start == b"[" else _bad_json_line(path)
        what = "a JSON array" if start == b"[" else "JSON lines"
        raise trouble or UserError(f"{path}: not readable as {what} ({message_of(error)})") from None
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1 << 16)


def read_json(paths: list[Path], cache: Path) -> TableRecords:
    """Rows of JSON lines (or one JSON array), parsed once and memory-mapped afterwards.

    Raises:
        UserError: a line that is no JSON object, values that change kind, an empty file; with the line.
    """
    return _records("json", paths, [], cache, _parse_json)


# ---- folders of text by class


def _text_files(folder: Path, split: str, classes: list[str] | None) -> list[tuple[str, Path]]:
    """``(class, file)`` for every ``<class>/*.txt`` under ``folder``, in sorted order."""
    found = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    for name in classes or []:
        if name not in found and split == "train":
            raise UserError(
                f"data.classes: {folder} has no folder '{name}' (it has "
                f"{', '.join(found[:20])}).{nearest(name, found)}"
            )
    return [
        (name, file)
        for name in found
        if not classes or name in classes
        for file in sorted((folder / name).glob("*.txt"))
    ]


def read_text_folders(
    path: Any, encoding: str, classes: list[str] | None, cache: Path
) -> dict[str, TableRecords]:
    """Rows ``text`` and ``label`` by split from ``path/<split>/<class>/*.txt``, or all as train from
    ``path/<class>/*.txt``.

    Args:
        classes: names of the class folders to read; None for all of them.

    Raises:
        UserError: no such folder, no texts in it, or a file that is not in ``encoding`` (it is named).
    """
    check_encoding(encoding)
    if path in (None, "") or isinstance(path, Mapping):
        raise UserError(
            "data.path: data.source=text needs a folder with CLASS/*.txt or SPLIT/CLASS/*.txt in it"
        )
    root = Path(os.path.expanduser(str(path)))
    if not root.is_dir():
        raise (
            UserError(f"data.path: {root} is a file; data.source=text needs a folder")
            if root.exists()
            else missing(root, "data.path")
        )
    folders: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        split = split_of(entry.name) if entry.is_dir() else None
        if split is not None:
            if split in folders:
                raise UserError(
                    f"data.path: {folders[split].name} and {entry.name} in {root} both look like the {split} "
                    "split"
                )
            folders[split] = entry
    result = {}
    folders = folders or {"train": root}
    for split in sorted(folders, key=list(SPLIT_NAMES).index):
        folder = folders[split]
        files = _text_files(folder, split, classes)
        if not files:
            raise UserError(f"data.path: {folder} holds no CLASS/*.txt")
        listing = [(name, str(file), *status_of(file)) for name, file in files]
        # The folder's content hash is remembered by its listing, as a single file's is by its status.
        memo = cache / "hashes" / hash_of("folder", os.path.realpath(folder), listing)
        try:
            key = memo.read_text()
        except OSError:
            digest = hashlib.blake2b(digest_size=16)
            for name, file in files:
                content = file.read_bytes()
                digest.update(f"{name}/{file.name} {len(content)}\n".encode())
                digest.update(content)
            key = digest.hexdigest()
            with written_atomically(memo) as temporary:
                temporary.write_text(key)

        def write(out: Path, files: list[tuple[str, Path]] = files) -> None:
            schema = pa.schema([("text", pa.string()), ("label", pa.string())])
            with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for start in range(0, len(files), 8192):
                    part, texts = files[start : start + 8192], []
                    for _, file in part:
                        try:
                            # Decoded by hand: reading as text would turn \r\n into \n
                            texts.append(file.read_bytes().decode(encoding).removeprefix("\ufeff"))
                        except UnicodeDecodeError:
                            raise undecodable(file, encoding) or UserError(
                                f"{file}: not {encoding}"
                            ) from None
                    columns = [
                        pa.array(texts, pa.string()),
                        pa.array([name for name, _ in part], pa.string()),
                    ]
                    writer.write_batch(pa.record_batch(columns, schema=schema))

        fingerprint = hash_of("text", 1, key, encoding)
        table = _cached_table(cache / "parsed" / f"{fingerprint}.arrow", write)
        result[split] = TableRecords(table, fingerprint, [(str(file), 1) for _, file in files])
    return result
