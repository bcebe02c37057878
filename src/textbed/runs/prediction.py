"""What ``scripts/predict.py`` does: a model over the rows of a file, in memory that does not grow with it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from textbed.data import parsing
from textbed.data.files import EXTENSIONS, missing
from textbed.data.records import ParquetRecords, message_of, written_atomically
from textbed.data.sources import find_texts
from textbed.errors import UserError, nearest
from textbed.runs.model import BATCH_SIZE, Model

INPUTS = EXTENSIONS | {"text": (".txt", ".txt.gz")}
OUTPUTS = (".parquet", ".csv", ".tsv", ".jsonl")
# Rows in memory at a time.
ROWS = 1024
BETWEEN = "|"  # classes of a document in a file that has no lists


@dataclass(frozen=True)
class Wanted:
    """What is said of each row.

    Attributes:
        top: how many classes, the likeliest first.
        probabilities: whether also the probability of every class, a column each.
        prefix: in front of the names of all columns.
    """

    top: int = 1
    probabilities: bool = False
    prefix: str = ""

    def check(self, model: Model) -> None:
        """Raise UserError where the model has not so many classes."""
        if not 1 <= self.top <= len(model.classes):
            raise UserError(f"--top {self.top}: expected 1 to {len(model.classes)}, the model's classes")

    def columns(self, model: Model, chances: np.ndarray, lists: bool = True) -> dict[str, Any]:
        """Columns by name for probabilities (B, C), as Arrow takes them.

        ``predicted`` is the likeliest class, for multi-label all classes above one half: a list, or where
        there are no lists joined by ``|``. ``probability`` is that of the likeliest. ``predicted_2``,
        ``probability_2`` and so on follow where ``top`` asks for more, and ``probability_of_NAME``.
        """
        names = np.array(model.classes, dtype=object)
        order = np.argsort(-chances, axis=1, kind="stable")[:, : self.top]
        best = np.take_along_axis(chances, order, axis=1)
        if model.multilabel:
            hits = [names[row].tolist() for row in chances > 0.5]
            kind = pa.list_(pa.string()) if lists else pa.string()
            first = pa.array(hits if lists else [BETWEEN.join(some) for some in hits], kind)
        else:
            first = pa.array(names[order[:, 0]], pa.string())
        made: dict[str, Any] = {"predicted": first, "probability": pa.array(best[:, 0])}
        if model.multilabel and self.top > 1:  # the likeliest need not be above one half
            made["predicted_1"] = pa.array(names[order[:, 0]], pa.string())
        for place in range(1, self.top):
            made[f"predicted_{place + 1}"] = pa.array(names[order[:, place]], pa.string())
            made[f"probability_{place + 1}"] = pa.array(best[:, place])
        if self.probabilities:
            for number, name in enumerate(model.classes):
                made[f"probability_of_{name}"] = pa.array(chances[:, number])
        return {self.prefix + name: column for name, column in made.items()}


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


class Rows(Protocol):
    """The rows of a file."""

    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]: ...


class _Table:
    """Rows of a memory-mapped table."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.schema = table, table.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches(max_chunksize=ROWS)


class _Parquet:
    """Rows of a Parquet file, a piece at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = ParquetRecords._open(path)
        self.schema = self.file.schema_arrow

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self.file.iter_batches(ROWS)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged ({message_of(error)})") from None


class _Lines:
    """A document a line; line ends are \\n and \\r\\n alone, since a text may hold any other."""

    schema = pa.schema([("text", pa.string())])

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.encoding = path, encoding
        parsing.check_encoding(encoding)

    def batches(self) -> Iterator[pa.RecordBatch]:
        utf8 = self.encoding.replace("_", "-").lower() in ("utf-8", "utf8")
        waiting: list[str] = []
        try:
            with parsing.open_text(self.path, "utf-8-sig" if utf8 else self.encoding) as file:
                for line in file:
                    waiting.append(line.removesuffix("\n").removesuffix("\r"))
                    if len(waiting) == ROWS:
                        yield self._batch(waiting)
                        waiting = []
        except UnicodeDecodeError:
            trouble = parsing.undecodable(self.path, self.encoding)
            raise UserError(as_options(str(trouble or f"{self.path}: not {self.encoding}"))) from None
        if waiting:
            yield self._batch(waiting)

    def _batch(self, lines: list[str]) -> pa.RecordBatch:
        return pa.record_batch([pa.array(lines, pa.string())], schema=self.schema)


def kind_of(path: Path, endings: dict[str, tuple[str, ...]] = INPUTS) -> str:
    """Which kind of file this is, by its ending. Raises UserError for another."""
    for kind, some in endings.items():
        if path.name.lower().endswith(some):
            return kind
    known = [ending for some in endings.values() for ending in some]
    raise UserError(
        f"{path}: the ending does not say what it is; expected one of {', '.join(known)}."
        f"{nearest(path.suffix, known)}"
    )


def csv_format(path: Path, **settings: Any) -> parsing.CsvFormat:
    """How a CSV file is written: as ``settings`` say, with the delimiter of its ending where they do not.

    Raises:
        UserError: a setting that cannot be.
    """
    try:
        return parsing.CsvFormat(**{"delimiter": "\t" if kind_of(path) == "tsv" else ","} | settings)
    except UserError as error:
        raise UserError(as_options(str(error))) from error


def open_rows(path: Path, cache: Path, form: parsing.CsvFormat) -> Rows:
    """Open a file of documents.

    Args:
        form: how CSV is written; its encoding counts for texts too.
        cache: folder that CSV and JSON are parsed into: on the disk they take about as much room again.

    Raises:
        UserError: no such file, an unknown ending, or it cannot be read; names the file and the line.
    """
    if not path.is_file():
        raise UserError(f"--file: {path} is a folder") if path.is_dir() else missing(path, "--file")
    kind = kind_of(path)
    if kind == "parquet":
        return _Parquet(path)
    if kind == "text":
        return _Lines(path, form.encoding)
    try:
        if kind == "json":
            return _Table(parsing.read_json([path], cache).table)
        return _Table(parsing.read_csv([path], form, cache).table)
    except UserError as error:
        raise UserError(as_options(str(error))) from error


def as_options(message: str) -> str:
    """A message that names keys of the configuration, with the script's options in their place."""
    message = message.replace("data.header=false", "--no-header")
    return re.sub(r"\bdata\.(\w+)(=?)", lambda key: f"--{key[1]}{' ' if key[2] else ''}", message)


def text_columns(rows: Rows, model: Model, named: Sequence[str] | None, kind: str) -> tuple[str, ...]:
    """The column of the texts, or two for pairs: those named, else those of the training data where they are
    there, else the only ones that can be meant.

    Raises:
        UserError: it is not plain which, or there are not as many as the model reads.
    """
    expected = 2 if model.pairs else 1
    if not named and set(model.design.text) <= set(rows.schema.names):
        named = model.design.text
    if not named and model.pairs:
        raise UserError(
            f"--text: the model classifies pairs, read from the columns {' and '.join(model.design.text)} "
            f"in training; name two of {', '.join(rows.schema.names)}: --text FIRST SECOND"
        )
    try:
        found = find_texts(rows.schema, list(named) if named else None, kind, "--text")
    except UserError as error:
        raise UserError(as_options(str(error))) from error
    if len(found) != expected:
        raise UserError(f"--text: {len(found)} columns are named; the model reads {expected}")
    return found


# ------------------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------------------


Write = Callable[[pa.RecordBatch], None]


def _write_json(file: IO[str], batch: pa.RecordBatch) -> None:
    for row in batch.to_pylist():
        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


@contextmanager
def writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    """Write batches of one schema to a file whose ending says how."""
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            yield lambda batch: _write_json(file, batch)
        return
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as parquet:
            yield parquet.write_batch
        return
    nested = [field.name for field in schema if pa.types.is_nested(field.type)]
    if nested:
        raise UserError(
            f"--out: column '{nested[0]}' holds {schema.field(nested[0]).type}, for which {path.suffix} has "
            "no place; choose .parquet or .jsonl"
        )
    options = pyarrow.csv.WriteOptions(delimiter="," if path.suffix == ".csv" else "\t")
    with pyarrow.csv.CSVWriter(path, schema, write_options=options) as table:
        yield table.write_batch


# ------------------------------------------------------------------------------------------------------------
# The whole
# ------------------------------------------------------------------------------------------------------------


def predict_file(
    model: Model,
    path: Path,
    out: Path | None,
    *,
    wanted: Wanted,
    text: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    form: Mapping[str, Any] | None = None,
    show: Callable[[str], None] = print,
) -> int:
    """Classify each row of a file, and write its own columns and what was said of it.

    Args:
        out: .parquet, .csv, .tsv or .jsonl; None shows a JSON line for each row.
        text: the column of the texts, or two for pairs; None finds them.
        form: how CSV is written, where it is not as usual; see :func:`csv_format`.

    Returns:
        The number of rows.

    Raises:
        UserError: a mistake in the file, its columns or the request; then nothing is written.
    """
    wanted.check(model)
    if out is not None:
        if out.suffix not in OUTPUTS:
            raise UserError(
                f"--out: {out}: expected a name that ends in {', '.join(OUTPUTS)}."
                f"{nearest(out.suffix, OUTPUTS)}"
            )
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder; expected the name of a file")
        if out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"--out: {out} is the file that is read; give another")
    lists = out is None or out.suffix in (".parquet", ".jsonl")
    with _parsing_folder(out) as cache:
        rows = open_rows(path, Path(cache), csv_format(path, **form or {}))
        columns = text_columns(rows, model, text, kind_of(path))
        added = wanted.columns(model, np.zeros((0, len(model.classes)), np.float32), lists)
        taken = [name for name in added if name in rows.schema.names]
        if taken:
            raise UserError(
                f"{path} has a column '{taken[0]}' already; give the new ones another name, such as "
                "--prefix model_"
            )
        schema = pa.schema([*rows.schema, *(pa.field(name, kind.type) for name, kind in added.items())])
        count = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal count
            for batch in rows.batches():
                texts = [_strings(batch.column(name)) for name in columns]
                given = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
                try:
                    chances = model.predict_proba(given, batch_size=batch_size)
                except UserError as error:
                    raise UserError(f"{path}, rows {count + 1} to {count + len(batch)}: {error}") from error
                said = wanted.columns(model, chances, lists)
                yield pa.record_batch([*batch.columns, *said.values()], schema=schema)
                count += len(batch)
            if not count:
                raise UserError(f"{path} has no rows")

        if out is None:
            for batch in batches():
                for row in batch.to_pylist():
                    show(json.dumps(row, ensure_ascii=False, default=str))
        else:
            with written_atomically(out, "--out") as temporary:
                named = temporary.with_name(temporary.name + out.suffix)
                try:
                    with writer(named, schema) as write:
                        for batch in batches():
                            write(batch)
                    named.replace(temporary)
                finally:
                    named.unlink(missing_ok=True)
        return count


def _parsing_folder(out: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A folder for parsed files, near what is written: the system's own place is often memory. Where nothing
    can be written that is known here, before any text has been read."""
    place = next(folder for folder in out.absolute().parents if folder.is_dir()) if out is not None else None
    try:
        return tempfile.TemporaryDirectory(prefix=".textbed-", dir=place)
    except OSError as error:
        if out is None:
            raise UserError(f"no place for temporary files ({error.strerror}): set TMPDIR to one") from None
        raise UserError(
            f"cannot write {out}: nothing can be made in {place} ({error.strerror}): choose another place "
            "(--out)"
        ) from None


def _strings(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.to_pylist()


def predict_texts(
    model: Model, texts: Sequence[str], *, wanted: Wanted, batch_size: int = BATCH_SIZE
) -> list[str]:
    """A line for each text: the likeliest classes with their probabilities, tab-separated, and the text.

    Of a model of pairs two texts after one another are a pair.

    Raises:
        UserError: an odd number of texts for pairs.
    """
    wanted.check(model)
    given: Sequence[Any] = texts
    if model.pairs:
        if len(texts) % 2:
            raise UserError(
                f"{len(texts)} texts: the model classifies pairs, so give two after one another for each"
            )
        given = list(zip(texts[::2], texts[1::2], strict=True))
    chances = model.predict_proba(given, batch_size=batch_size)
    order = np.argsort(-chances, axis=1, kind="stable")
    lines = []
    for text, row, best in zip(given, chances, order, strict=True):
        shown = best[: wanted.top]
        if model.multilabel:
            hits = [number for number in best if row[number] > 0.5]
            shown = hits if len(hits) >= wanted.top else shown
        if wanted.probabilities:
            shown = best
        cells = [f"{model.classes[number]}\t{row[number]:.4f}" for number in shown]
        words = " ".join((text if isinstance(text, str) else " ||| ".join(text)).split())
        lines.append("\t".join([*cells, words]))
    return lines
