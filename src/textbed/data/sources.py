"""Where documents come from: every source gives the same :class:`Corpus` of :class:`Split` s.

Local CSV, TSV, JSON lines, Parquet and folders of text are read with Arrow (:mod:`textbed.data.parsing`), the
hub and ``save_to_disk`` folders with Hugging Face ``datasets`` (:mod:`textbed.data.hub`), the built-in data
set is made by :mod:`textbed.data.docstrings`. Texts are never all in memory: they are streamed from
memory-mapped or Parquet files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed.data import docstrings, files, hub, parsing
from textbed.data.files import split_of
from textbed.data.labels import class_names, encode_labels, match_labels
from textbed.data.records import JoinedRecords, ParquetRecords, Records, hash_of
from textbed.data.vocabulary import text_bytes
from textbed.errors import UserError, nearest

SOURCES = ("docstrings", "csv", "tsv", "json", "parquet", "text", "disk", "hub")
# Names under which columns are found where the config names none. The first wins where several are there; of
# the others there may be only one.
TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "review",
    "document",
    "question",
    "body",
    "comment",
    "tweet",
    "abstract",
)
LABEL_NAMES = ("label", "labels", "class", "category", "target")


@dataclass
class Split:
    """Documents of one split, in the source's order.

    Attributes:
        num_rows: number of rows.
        labels: class ids, (rows,) int64, or (rows, C) uint8 of zeros and ones where a document may have
            several classes.
        fingerprint: changes whenever a text does, or the settings by which the texts are read; safe as a
            cache key.
        records: the rows beneath.
        columns: names of the one or two text columns.
    """

    num_rows: int
    labels: np.ndarray
    fingerprint: str
    records: Records = field(repr=False)
    columns: tuple[str, ...] = ("text",)

    def texts(self, column: int = 0, rows_per_batch: int = 8192) -> Iterator[pa.Array]:
        """Yield the texts in order as ``large_string`` arrays of at most ``rows_per_batch``.

        A missing text is the empty string.
        """
        for batch in self.records.batches(self.columns[column], rows_per_batch):
            batch = batch.cast(pa.large_string())
            yield pc.fill_null(batch, "") if batch.null_count else batch

    def text(self, row: int, column: int = 0) -> str:
        """One document; meant for showing, not for loops."""
        return self.records.value(self.columns[column], row) or ""


@dataclass
class Corpus:
    """A data set: its splits and classes.

    Attributes:
        splits: ``train`` always, ``validation`` and ``test`` where the source has them.
        classes: names of the C classes, by class id.
        multilabel: whether a document may have several classes, or none.
        columns: texts in a document: 1, or 2 for pairs.
        description: one line that says where it came from.
    """

    splits: dict[str, Split]
    classes: list[str]
    multilabel: bool
    columns: int
    description: str


# ---- columns


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _named(columns: list[str], names: Sequence[str]) -> list[str]:
    """Columns among ``names`` in any case; only the first where ``names[0]`` is there."""
    found = [column for column in columns if column.lower() in names]
    best = [column for column in found if column.lower() == names[0]]
    return best if len(best) == 1 else found


def _hint(columns: list[str], source: str) -> str:
    """What may be wrong with a CSV file whose columns are not the expected ones."""
    if source not in ("csv", "tsv") or columns[0] == "c0":
        return ""
    if len(columns) == 1 and (signs := [sign for sign in "\t;|," if sign in columns[0]]):
        return f"; if the values are separated by {signs[0]!r}, set data.delimiter={signs[0]!r}"
    return "; if the file has no header, set data.header=false"


def _list(columns: list[str]) -> str:
    shown = ", ".join(repr(column[:40]) for column in columns[:20])
    return shown + (", …" if len(columns) > 20 else "")


def _check_column(schema: pa.Schema, name: Any, key: str, source: str) -> str:
    """The name, if the schema has one such column."""
    columns = list(schema.names)
    if name not in columns:
        near = nearest(name, columns)
        raise UserError(
            f"{key}: no column '{name}'; the columns are {_list(columns)}"
            f"{'.' + near if near else _hint(columns, source)}"
        )
    if columns.count(name) > 1:
        raise UserError(f"{key}: two columns are called '{name}'; rename one")
    return str(name)


def _strings(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_text(field.type)]


def find_texts(
    schema: pa.Schema, text: Any, source: str, key: str = "data.text", label: str | None = None
) -> tuple[str, ...]:
    """Names of the text columns (one or two), as named or by their usual names.

    Args:
        key: what names them, for messages.
        label: the column of the label, where it is known.

    Raises:
        UserError: a named column is not there or holds no text, or nothing is named and it is not plain which
            column it is.
    """
    strings = _strings(schema)
    if text is not None:
        names = [text] if isinstance(text, (str, int)) else list(text)
        texts = [_check_column(schema, name, key, source) for name in names]
        if not 1 <= len(texts) <= 2:
            example = "--text A B" if key.startswith("--") else f"{key}=[a,b]"
            raise UserError(
                f"{key}: {len(texts)} columns are named; expected one, or two for pairs ({example})"
            )
    else:
        found = _named([name for name in strings if name != label], TEXT_NAMES)
        # Every column of a CSV file is text, so there it takes a name, or a named label beside it, to tell
        # which is which.
        rest = [
            name
            for name in strings
            if name != label and (label is not None or name.lower() not in LABEL_NAMES)
        ]
        if (
            len(found) != 1
            and len(rest) == 1
            and (source not in ("csv", "tsv") or label or len(strings) > len(rest))
        ):
            found = rest
        if len(found) != 1:
            which = (
                f"{_list(found)} could all be the text"
                if found
                else f"none of {_list(list(schema.names))} is plainly the text"
            )
            how = (
                f"{key} COLUMN, or {key} A B for pairs"
                if key.startswith("--")
                else f"{key}=COLUMN, or {key}=[A,B] for pairs"
            )
            raise UserError(f"{key}: {which}; name it, {how}{_hint(list(schema.names), source)}")
        texts = found
    for name in texts:
        if name not in strings:
            raise UserError(
                f"{key}: column '{name}' is of type {schema.field(name).type}; expected text. Text "
                f"columns: {_list(strings) or 'none'}"
            )
    return tuple(texts)


def find_columns(schema: pa.Schema, text: Any, label: Any, source: str) -> tuple[tuple[str, ...], str]:
    """Names of the text columns (one or two) and the label column, from the config or by their usual names.

    Raises:
        UserError: a named column is not there, or nothing is named and it is not plain which column it is.
    """
    columns = list(schema.names)
    texts = find_texts(schema, text, source) if text is not None else ()
    if label is not None:
        label = _check_column(schema, label, "data.label", source)
    if not texts:
        texts = find_texts(schema, text, source, label=label)
    if label is None:
        others = [name for name in columns if name not in texts]
        found = _named(others, LABEL_NAMES)
        if not found and len(others) == 1:
            found = others
        if len(found) != 1:
            which = (
                f"{_list(found)} could all be the label"
                if found
                else f"none of {_list(columns)} is plainly the label"
            )
            raise UserError(f"data.label: {which}; name it, data.label=COLUMN{_hint(columns, source)}")
        label = found[0]
    if label in texts:
        raise UserError(f"data.label: '{label}' is also data.text; name another column")
    return texts, label


# ---- corpus


def _named_split(records: dict[str, Records], ours: str, theirs: Any) -> Records:
    """The split of the source that ``data.splits`` names, or the several that it lists, end to end."""
    if isinstance(theirs, str) or not isinstance(theirs, Sequence):
        theirs = theirs if theirs in records else split_of(str(theirs)) or theirs
        if theirs not in records:
            raise UserError(
                f"data.splits.{ours}: the source has no split '{theirs}', only "
                f"{', '.join(records)}.{nearest(theirs, records)}"
            )
        return records[theirs]
    if not theirs or len(set(theirs)) < len(theirs):
        raise UserError(f"data.splits.{ours}: expected different splits of the source, such as [train, test]")
    parts = {str(name): _named_split(records, ours, name) for name in theirs}
    joined = JoinedRecords(parts)
    for column in joined.schema.names:  # whichever the label will be
        names = class_names(joined.schema, column)
        for part in joined.parts:
            if class_names(part.schema, column) != names:
                raise UserError(
                    f"data.splits.{ours}: the class names of '{column}' differ between "
                    f"{' and '.join(parts)}; write them with the same ClassLabel, or as strings"
                )
    return joined


def _choose_splits(
    records: dict[str, Records], wanted: Any, need: str | None = "train"
) -> dict[str, Records]:
    """Our three splits from the source's, by name or by the mapping ``data.splits``, ``need`` among them."""
    chosen: dict[str, Records] = {}
    if wanted:
        for split, theirs in wanted.items():
            ours = split_of(str(split))
            if ours is None:
                raise UserError(f"data.splits.{split}: no such split; there are train, validation, test")
            if theirs is not None:
                chosen[ours] = _named_split(records, split, theirs)
    else:
        for name, rows in records.items():
            split = split_of(name)
            if split is not None and split in chosen:
                raise UserError(
                    f"data.splits: several splits of the source ({', '.join(records)}) look like {split}; "
                    f"name one, data.splits={{train: train, {split}: {name}}}"
                )
            if split is not None:
                chosen[split] = rows
    if need is not None and need not in chosen:
        raise UserError(
            f"data.splits: no train split; the source has {', '.join(records) or 'none'}. Name one: "
            f"data.splits={{train: NAME}}"
        )
    return {split: chosen[split] for split in files.SPLIT_NAMES if split in chosen}


def _content_fingerprint(split: Split) -> str:
    """Hash of the texts themselves (about 1 GB/s), for rows that are no files of the user's."""
    digest = hashlib.blake2b(digest_size=16)
    for column in range(len(split.columns)):
        lengths, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        for batch in split.texts(column):
            lengths.update(pc.binary_length(batch).to_numpy().astype("<i8").tobytes())
            content.update(text_bytes(batch)[0].data)
        digest.update(lengths.digest() + content.digest())
    return digest.hexdigest()


def _corpus(
    records: dict[str, Records], text: Any, label: Any, splits: Any, source: str, description: str
) -> Corpus:
    chosen = _choose_splits(records, splits)
    for split, rows in chosen.items():
        if rows.num_rows == 0:
            raise UserError(f"data.path: the {split} split has no rows ({description})")
    texts, label = find_columns(chosen["train"].schema, text, label, source)
    for split, rows in chosen.items():
        for name in (*texts, label):
            if rows.schema.names.count(name) != 1:
                raise UserError(
                    f"data.{'label' if name == label else 'text'}: the {split} split has no column '{name}' "
                    "as train has; its columns are "
                    f"{_list(rows.schema.names)}{_hint(rows.schema.names, source)}"
                )
        for name in texts:
            if not _is_text(rows.schema.field(name).type):
                raise UserError(
                    f"data.text: column '{name}' of {split} is of type {rows.schema.field(name).type}; "
                    "expected text"
                )
    labels, classes, multilabel = encode_labels(chosen, label)
    result = {}
    for ours, rows in chosen.items():
        part = Split(rows.num_rows, labels[ours], "", rows, texts)
        part.fingerprint = (
            hash_of(rows.fingerprint, texts) if rows.fingerprint else _content_fingerprint(part)
        )
        result[ours] = part
    return Corpus(result, classes, multilabel, len(texts), description)


def from_datasets(
    data: Any,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    splits: Mapping[str, str] | None = None,
    description: str = "a datasets.DatasetDict",
) -> Corpus:
    """A corpus of a ``datasets.DatasetDict``, or of a single ``Dataset`` (which becomes train).

    Args:
        text: name of the text column, or of two for pairs; found by its usual names where None.
        label: name of the label column; found likewise.
        splits: which of the source's splits is our train, validation and test; by their names where None.

    Raises:
        UserError: as :func:`load` does.
    """
    return _corpus(hub._by_split(data, description), text, label, splits, "datasets", description)


def load_labelled(settings: Any, cache: Path, classes: Sequence[str], multilabel: bool) -> Corpus:
    """Read a data set for a model that has its classes: labels go by name, and no training split is needed.

    Args:
        classes: names of the C classes, by class id.
        multilabel: whether a document may have several of them.

    Raises:
        UserError: as :func:`load`, or a label that is none of the classes.
    """
    records, where = _read(settings, cache)
    chosen = _choose_splits(records, _get(settings, "splits"), need=None)
    if not chosen:
        raise UserError(f"data.splits: the source has no split; it has {', '.join(records) or 'nothing'}")
    splits: dict[str, Split] = {}
    for name, rows in chosen.items():
        given = (_get(settings, "text"), _get(settings, "label"), _get(settings, "source"))
        texts, label = find_columns(rows.schema, *given)
        labels = match_labels(rows, label, name, classes, multilabel)
        splits[name] = Split(rows.num_rows, labels, rows.fingerprint, rows, texts)
    return Corpus(splits, list(classes), multilabel, len(texts), where)


def load(settings: Any, cache: Path) -> Corpus:
    """Read the data set that the settings describe.

    Args:
        settings: the config group ``data``, as a mapping or an object with attributes.
        cache: folder for parsed files and the built-in data set; made where it is not there.

    Raises:
        UserError: a file, column or label that is missing or broken, an unreachable hub; one line with the
            way to mend it.
    """
    records, where = _read(settings, cache)
    text, label, splits = (_get(settings, key) for key in ("text", "label", "splits"))
    return _corpus(records, text, label, splits, _get(settings, "source"), where)


def _get(settings: Any, key: str, default: Any = None) -> Any:
    return settings.get(key, default) if isinstance(settings, Mapping) else getattr(settings, key, default)


def _read(settings: Any, cache: Path) -> tuple[dict[str, Records], str]:
    """The rows of each split of the source, and one line on where they are from."""

    def get(key: str, default: Any = None) -> Any:
        return _get(settings, key, default)

    source, path, cache = get("source"), get("path"), Path(cache).expanduser()
    records: dict[str, Records]
    if source == "docstrings":
        folder = docstrings.build(cache, get("size"), get("classes"))
        found = files.find_in_folder(folder, (".parquet",))
        records = {split: ParquetRecords(paths, cache) for split, paths in found.items()}
        where = "docstrings of the installed libraries"
    elif source in ("csv", "tsv"):
        delimiter = get("delimiter") or ("," if source == "csv" else "\t")
        header = get("header", True)
        format = parsing.CsvFormat(
            delimiter=delimiter.replace("\\t", "\t"),
            quote=get("quote", '"') or None,
            encoding=get("encoding") or "utf-8",
            header=header if isinstance(header, bool) or header is None else [str(name) for name in header],
        )
        records = {
            split: parsing.read_csv(paths, format, cache)
            for split, paths in files.find_splits(path, source).items()
        }
        where = f"{source} {path}"
    elif source == "json":
        records = {
            split: parsing.read_json(paths, cache) for split, paths in files.find_splits(path, source).items()
        }
        where = f"json {path}"
    elif source == "parquet":
        records = {
            split: ParquetRecords(paths, cache) for split, paths in files.find_splits(path, source).items()
        }
        where = f"parquet {path}"
    elif source == "text":
        classes = get("classes")
        records = dict(
            parsing.read_text_folders(
                path, get("encoding") or "utf-8", list(classes) if classes else None, cache
            )
        )
        where = f"text {path}"
    elif source == "disk":
        records = hub.read_disk(path)
        where = f"disk {path}"
    elif source == "hub":
        arguments = (get("name") or "", get("hub_id"), get("config"), get("revision"), get("mirror"))
        records, where = hub.read_hub(*arguments, cache=cache)
    else:
        raise UserError(
            f"data.source: no source '{source}'; there are {', '.join(SOURCES)}.{nearest(source, SOURCES)}"
        )
    return records, where
