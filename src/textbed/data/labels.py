"""Labels of every kind as class ids: integers, strings, booleans, ``ClassLabel``, and lists of them.

A list means that a document may have several classes, or none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed.data.records import Records
from textbed.errors import UserError, nearest


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names that Hugging Face ``datasets`` keeps in a schema for a ``ClassLabel`` column, or None."""
    try:
        feature: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        for _ in range(2):
            if isinstance(feature, list):  # how a list of a feature was once written
                feature = feature[0]
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                return [str(name) for name in feature["names"]] if feature.get("names") else None
            feature = feature.get("feature") if isinstance(feature, dict) else feature
    except (KeyError, ValueError, TypeError, IndexError):
        pass
    return None


def _sorted_classes(values: pa.Array) -> list[Any]:
    """Distinct values in order: numbers by size, even if written as strings, the rest by code point."""
    distinct = [value for value in pc.unique(values).to_pylist() if value is not None]
    if all(isinstance(value, str) for value in distinct):
        try:
            return sorted(distinct, key=lambda value: (int(value), value))
        except ValueError:
            pass
    return sorted(distinct)


def _plain(array: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Booleans, numbers and strings as one of int64 and large_string; NaN and blank strings as null."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(array.cast(kind.value_type), column)
    if pa.types.is_boolean(kind):
        return pc.if_else(array, "true", "false").cast(pa.large_string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if pa.types.is_floating(kind):
            # A column of integers with gaps becomes floating in many tools; a gap is a missing label.
            array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            what = "fractions" if pa.types.is_floating(kind) else "numbers of more than 63 bits"
            raise UserError(
                f"data.label: column '{column}' holds {what}, not classes; name another column"
            ) from None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(array)), 0)
        return pc.if_else(blank, pa.scalar(None, array.type), array)
    if pa.types.is_null(kind):
        return array.cast(pa.large_string())
    raise UserError(
        f"data.label: column '{column}' is of type {kind}; expected integers, strings, booleans or lists of "
        "them"
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def encode_labels(records: dict[str, Records], column: str) -> tuple[dict[str, np.ndarray], list[str], bool]:
    """Turn the label column of every split into class ids.

    Classes are those of the training split, sorted (numbers by size); a ``ClassLabel`` keeps its own names
    and order.

    Returns:
        Labels by split, (rows,) int64, or (rows, C) uint8 of zeros and ones where labels are lists; the names
        of the C classes; whether labels are lists.

    Raises:
        UserError: missing labels, an unlabelled split, other class names than train's, a class that train
            lacks, fewer than two classes.
    """
    kind = records["train"].schema.field(column).type
    names = class_names(records["train"].schema, column)
    multilabel = _is_list(kind)
    flat: dict[str, pa.Array] = {}
    lengths: dict[str, np.ndarray] = {}
    for split, rows in records.items():
        _check_names(class_names(rows.schema, column), names, column, split)
        array = rows.column(column)
        if _is_list(array.type) != multilabel:
            raise UserError(f"data.label: column '{column}' is {array.type} in {split} but {kind} in train")
        if multilabel:
            _refuse_missing(pc.is_null(array), column, split, rows)
            lengths[split] = pc.list_value_length(array).to_numpy().astype(np.int64)
            array = pc.list_flatten(array)
        array = _plain(array, column)
        if not multilabel:
            _refuse_missing(pc.is_null(array), column, split, rows)
        elif array.null_count:
            raise UserError(
                f"data.label: {array.null_count} of the classes listed in '{column}' of {split} are empty"
            )
        flat[split] = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    types = {array.type for array in flat.values()}
    if len(types) > 1:
        raise UserError(f"data.label: column '{column}' holds numbers in one split and strings in another")

    if names is not None:
        ids = {split: _class_label_ids(array, names, column, split) for split, array in flat.items()}
    else:
        values = pa.array(_sorted_classes(flat["train"]), flat["train"].type)
        names = [str(value) for value in values.to_pylist()]
        ids = {
            split: pc.index_in(array, values).fill_null(-1).to_numpy().astype(np.int64)
            for split, array in flat.items()
        }
    present = np.bincount(ids["train"], minlength=len(names)) > 0
    for split, array in ids.items():
        known = (array >= 0) & np.append(present, False)[array]  # -1 finds the one appended
        if not known.all():
            _refuse_unknown(flat[split], ~known, ids[split], names, column, split)
    if present.sum() < 2:
        only = f"only '{names[int(present.argmax())]}'" if present.any() else "none"
        raise UserError(
            f"data.label: column '{column}' has one class in train ({only}); a classifier needs two or more"
        )
    if not multilabel:
        return ids, names, False
    return (
        {split: _matrix(ids[split], lengths[split], len(names), column, split) for split in ids},
        names,
        True,
    )


def match_labels(
    rows: Records, column: str, split: str, classes: Sequence[str], multilabel: bool
) -> np.ndarray:
    """The label column of one split as ids of known classes, by their names.

    Returns:
        (rows,) int64, or (rows, C) uint8 of zeros and ones for multi-label.

    Raises:
        UserError: missing labels, or one that is none of the classes.
    """
    array, names = rows.column(column), class_names(rows.schema, column)
    if _is_list(array.type) != multilabel:
        kind = "lists of classes" if multilabel else "one class a document"
        raise UserError(f"data.label: column '{column}' of {split} is {array.type}; the model knows {kind}")
    lengths = np.ones(0, np.int64)
    if multilabel:
        _refuse_missing(pc.is_null(array), column, split, rows)
        lengths = pc.list_value_length(array).to_numpy().astype(np.int64)
        array = pc.list_flatten(array)
    array = _plain(array, column)
    if not multilabel:
        _refuse_missing(pc.is_null(array), column, split, rows)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if names is not None:
        ids = _class_label_ids(array, names, column, split)
        array = pa.array(names, pa.large_string()).take(pa.array(ids))
    texts = array.cast(pa.large_string())
    found = pc.index_in(texts, pa.array(list(classes), pa.large_string()))
    if found.null_count:
        strangers = pc.unique(texts.filter(pc.is_null(found))).to_pylist()
        more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
        raise UserError(
            f"data.label: class '{strangers[0]}'{more} of {split} (column '{column}') is none that the model "
            f"knows: {', '.join(classes)}.{nearest(strangers[0], classes)}"
        )
    known = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return _matrix(known, lengths, len(classes), column, split) if multilabel else known


def _check_names(theirs: list[str] | None, names: list[str] | None, column: str, split: str) -> None:
    """Refuse a split whose numbers stand for other names than train's: its labels would be read wrongly."""
    if theirs is None or names is None or theirs == names:
        return
    place, (own, other) = next(
        (place, pair) for place, pair in enumerate(zip_longest(theirs, names)) if pair[0] != pair[1]
    )
    raise UserError(
        f"data.label: the class names of '{column}' differ between train and {split}: class {place} is "
        f"'{other}' in train and '{own}' in {split}; write both with the same ClassLabel, or as strings"
    )


def _refuse_missing(mask: pa.ChunkedArray, column: str, split: str, rows: Records) -> None:
    if pc.any(mask).as_py():
        empty = np.flatnonzero(mask.to_numpy())
        raise UserError(
            f"data.label: column '{column}' is empty in {len(empty):,} of {rows.num_rows:,} rows of {split}, "
            f"first in {rows.where(int(empty[0]))}; fill them in or take the rows out"
        )


def _class_label_ids(array: pa.Array, names: list[str], column: str, split: str) -> np.ndarray:
    if not pa.types.is_integer(array.type):
        raise UserError(f"data.label: column '{column}' of {split} is a ClassLabel but holds {array.type}")
    ids = array.to_numpy(zero_copy_only=False).astype(np.int64)
    unlabelled = int((ids == -1).sum())
    if unlabelled:
        raise UserError(
            f"data.label: {unlabelled:,} of {len(ids):,} rows of {split} carry no label (-1): the source "
            "ships this split without labels. Leave it out or take another, e.g. "
            "data.splits={train: train, test: validation}"
        )
    if len(ids) and (ids.min() < 0 or ids.max() >= len(names)):
        bad = ids[(ids < 0) | (ids >= len(names))][0]
        raise UserError(
            f"data.label: column '{column}' of {split} holds {bad}, but there are only {len(names)} class "
            "names"
        )
    return ids


def _refuse_unknown(
    values: pa.Array, mask: np.ndarray, ids: np.ndarray, names: list[str], column: str, split: str
) -> None:
    strangers = [
        names[i] if i >= 0 else str(v)
        for v, i in zip(values.filter(pa.array(mask)).to_pylist(), ids[mask], strict=True)
    ]
    name = strangers[0]
    count, others = strangers.count(name), len(set(strangers)) - 1
    more = f" (and {others} more such class{'es' if others > 1 else ''})" if others else ""
    raise UserError(
        f"data.label: class '{name}' occurs in {count:,} row{'s' if count > 1 else ''} of {split} (column "
        f"'{column}') but never in train{more}; add training documents of it or take these rows out"
    )


def _matrix(ids: np.ndarray, lengths: np.ndarray, classes: int, column: str, split: str) -> np.ndarray:
    rows = np.repeat(np.arange(len(lengths)), lengths)
    matrix = np.zeros((len(lengths), classes), np.uint8)
    matrix[rows, ids] = 1
    if matrix.sum(dtype=np.int64) != len(ids):
        row = int(np.flatnonzero(matrix.sum(axis=1, dtype=np.int64) != lengths)[0])
        raise UserError(
            f"data.label: row {row + 1} of {split} lists a class twice in '{column}'; expected the classes "
            "of the document (0/1 vectors are not lists of classes: give the positions of the ones)"
        )
    return matrix
