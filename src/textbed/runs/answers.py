"""What runs said of each document, where they disagree, and the text of it.

Nothing here imports torch; reading a text imports what reads data sets.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textbed.errors import UserError
from textbed.runs.folder import RunFolder


@dataclass
class Answers:
    """What the runs of a group said of each document."""

    ids: np.ndarray
    """(documents,) ascending: which documents these are; see :func:`read_answers`."""
    labels: np.ndarray
    """(documents,) text: their classes."""
    right: np.ndarray
    """(documents,) share of the runs that were right; of several labels, the mean share of these."""
    runs: np.ndarray
    """(documents,) how many runs that was."""

    def beside(self, other: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids that both have, and the shares of both; none where their classes say that these are not the
        same documents."""
        ids, mine, theirs = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        if not (self.labels[mine] == other.labels[theirs]).all():
            ids, mine, theirs = ids[:0], mine[:0], theirs[:0]
        return ids, self.right[mine], other.right[theirs]


_PLACE = 1 << 40  # rows of a data set; above it the number of the data set


def document_ids(rows: np.ndarray, place: np.ndarray | int) -> np.ndarray:
    """What documents are known by: their rows and the number of their data set; see :func:`read_answers`."""
    return rows + _PLACE * place


def read_answers(runs: Iterable[tuple[RunFolder, int]], split: str) -> Answers | None:
    """What runs said of the documents of a split; None where one of them has no predictions on it.

    Beside each run stands the number of its data set (or of whatever else was averaged over): a document is
    known by that and its row. Seeds and folds tell no documents apart, a row is the same one in all of them.
    """
    ids, labels, right = [], [], []
    for folder, place in runs:
        path = folder.predictions / f"{split}.parquet"
        try:
            status = path.stat()
            rows, true, hits = _read(path, status.st_mtime_ns, status.st_size)
        except (OSError, KeyError, ValueError):  # Arrow's errors are of the last kind
            return None
        ids.append(document_ids(rows, place))
        labels.append(true)
        right.append(hits)
    if not ids:
        return None
    distinct, first, inverse, counts = np.unique(
        np.concatenate(ids), return_index=True, return_inverse=True, return_counts=True
    )
    return Answers(
        distinct,
        np.concatenate(labels)[first],
        np.bincount(inverse, np.concatenate(right)) / counts,
        counts,
    )


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, classes and whether right; read once for all pairs, and again when the file is another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["row", "label_name", "predicted_name"])
    classes = json.loads((table.schema.metadata or {})[b"classes"])
    true, said = (table[name].to_pylist() for name in ("label_name", "predicted_name"))
    if pa.types.is_list(table["label_name"].type):
        hits = [1 - len({*a} ^ {*b}) / len(classes) for a, b in zip(true, said, strict=True)]
        true = [", ".join(names) for names in true]
    else:
        hits = [float(a == b) for a, b in zip(true, said, strict=True)]
    return table["row"].to_numpy(), np.array(true, dtype=np.str_), np.array(hits)


@dataclass
class Predictions:
    """What one run said, whole."""

    rows: np.ndarray
    """(documents,)"""
    classes: list[str]
    """The C names."""
    labels: np.ndarray
    """(documents, C) bool: one a row, or any number where a document has several labels."""
    predicted: np.ndarray
    """(documents, C) bool, of the same kind."""
    probabilities: np.ndarray
    """(documents, C)"""
    multilabel: bool


def read_predictions(folder: RunFolder, split: str) -> Predictions | None:
    """What a run said of the documents of a split; None where it has no such file, or none of that kind."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            folder.predictions / f"{split}.parquet", columns=["row", "label", "predicted", "probability"]
        )
        classes = json.loads((table.schema.metadata or {})[b"classes"])
        labels, predicted = (_members(table[name], len(classes)) for name in ("label", "predicted"))
        flat = table["probability"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        probabilities = flat.reshape(-1, len(classes))
    except (OSError, KeyError, ValueError, IndexError):  # Arrow's errors are of the third kind
        return None
    return Predictions(
        table["row"].to_numpy(),
        classes,
        labels,
        predicted,
        probabilities,
        _is_list(table["label"]),
    )


def _is_list(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(column.type)


def _members(column: Any, classes: int) -> np.ndarray:
    """Class ids, or lists of them, as a table of who is in which."""
    values = column.combine_chunks()
    found = np.zeros((len(values), classes), bool)
    if _is_list(values):
        documents = np.repeat(np.arange(len(values)), values.value_lengths().to_numpy())
        found[documents, values.flatten().to_numpy()] = True
    else:
        found[np.arange(len(values)), values.to_numpy()] = True
    return found


@dataclass(frozen=True)
class Disagreement:
    """A document on which two differ."""

    place: int
    """Number of its data set; see :func:`read_answers`."""
    row: int
    label: str
    first: float
    """Share of the runs of the first that were right."""
    second: float
    text: str | None = None


def disagreements(first: Answers, second: Answers, most: int) -> list[Disagreement]:
    """The documents on which they differ most, those that the first gets right and those that the second
    does in turn; of equal ones the first rows."""
    ids, mine, theirs = first.beside(second)
    labels = first.labels[np.searchsorted(first.ids, ids)]
    gap = mine - theirs
    order = np.lexsort((ids, -np.abs(gap)))
    sides = [[i for i in order.tolist() if gap[i] * sign > 0] for sign in (1, -1)]
    longest = max(map(len, sides))
    turns = [side[turn] for turn in range(longest) for side in sides if turn < len(side)]
    return [
        Disagreement(
            int(ids[i] // _PLACE), int(ids[i] % _PLACE), str(labels[i]), float(mine[i]), float(theirs[i])
        )
        for i in turns[:most]
    ]


def read_texts(folder: RunFolder, split: str, rows: Sequence[int], labels: Sequence[str]) -> list[str]:
    """The texts of documents of a run's split, read from where its configuration says; of pairs both.

    Raises:
        UserError: the data cannot be read, or are not those that the run saw.
    """
    from omegaconf import OmegaConf

    from textbed.data import sources, splits
    from textbed.schema import DataConfig, defaults

    config = OmegaConf.load(folder.config_file)
    settings = OmegaConf.merge(defaults(DataConfig), config.data)  # a run of before may lack what came since
    corpus = sources.load(settings, Path(config.paths.cache))
    source = corpus.splits[splits.make_splits(corpus, settings)[split].split]
    if max(rows) >= source.num_rows:
        raise UserError(f"{folder.path}: its data set has changed since: row {max(rows)} is not there")
    for row, label in zip(rows, labels, strict=True):
        found = source.labels[row]
        ids = [int(found)] if np.ndim(found) == 0 else np.flatnonzero(found).tolist()
        if ", ".join(corpus.classes[one] for one in ids) != label:
            raise UserError(f"{folder.path}: its data set has changed since: row {row} is not {label!r}")
    return [" || ".join(source.text(row, column) for column in range(corpus.columns)) for row in rows]
