"""What the table of a run did: embedding.json, and the same as tables for the loggers.

Works on plain things: a front end as it was before training, and its trained weights. The arithmetic is in
:mod:`textbed.embedding.report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textbed.embedding import report
from textbed.embedding.table import FrontEnd
from textbed.runs.loggers import Table

MOST_NUMBERS = 1 << 25
"""Numbers of the rows that are compared, before and after each: 128 MiB as float32. Of a larger table the
rows of the most frequent tokens are reported on alone."""
LISTED = 50
"""Words in a list of the commonest or the most moved."""
SHOWN = 8
"""Words whose neighbours are shown where none were asked for."""


@dataclass(frozen=True, eq=False)
class TableReport:
    """What came of it. Arrays hold one number for each row reported on."""

    content: dict[str, Any]
    """What embedding.json holds."""
    counts: np.ndarray
    """(n,) how often the row's token occurs in the training text."""
    distance: np.ndarray
    """(n,) how far it moved."""
    norms_before: np.ndarray
    norms_after: np.ndarray

    def summary(self) -> str:
        """One line for the person."""
        moved, rows = self.distance > 0, len(self.distance)
        some = int(np.count_nonzero(moved))
        if not some:
            return f"table: none of {rows:,} rows moved"
        far, long = np.median(self.distance[moved]), np.median(self.norms_before[moved])
        which = f"all {rows:,}" if some == rows else f"{some:,} of {rows:,}"
        return f"table: {which} rows moved, by {far:.3g} in the median (length before: {long:.3g})"

    def tables(self) -> dict[str, Table]:
        """Tables for the loggers, by name."""
        content = self.content
        tables: dict[str, Table] = {}
        columns = ["split", "types", "tokens"]
        parts = ["known", "known_but_not_in_training", "with_vector"]
        rows = []
        for split, covered in content["coverage"].items():
            row = [split, covered["types"], covered["tokens"]]
            for part in parts:
                shares = covered[part] or {}
                row += [shares.get("share_of_types"), shares.get("share_of_tokens")]
            rows.append(row)
        columns += [f"{part}: {of}" for part in parts for of in ("share of types", "share of tokens")]
        tables["coverage"] = (columns, rows)
        if content["without_vector"] is not None:
            tables["without_vector"] = _table(content["without_vector"]["commonest"], ("word", "count"))
        tables["movement_by_count"] = (
            ["least count", "greatest count", "rows", "moved", "distance: lower quartile", "median", "upper"],
            [
                [*(bin[key] for key in ("low", "high", "rows", "moved")), *bin["distance"]]
                for bin in content["movement"]["by_count"]
            ],
        )
        tables["most_moved"] = _table(
            content["movement"]["most_moved"], ("word", "count", "distance", "cosine")
        )
        tables["neighbours"] = (
            ["word", "before", "after"],
            [
                [entry["word"], *(", ".join(one["word"] for one in entry[when]) for when in _WHEN)]
                for entry in content["neighbours"]
                if entry["in_vocabulary"]
            ],
        )
        return tables


_WHEN = ("before", "after")


def _table(entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    return list(columns), [[entry[column] for column in columns] for entry in entries]


def make_report(
    front_end: FrontEnd,
    trained: Mapping[str, Tensor],
    tokens: Sequence[str],
    counts: np.ndarray,
    *,
    texts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    found: np.ndarray | None = None,
    pad_id: int | None = None,
    unk_id: int | None = None,
    words: Sequence[str] | None = None,
    neighbours: int = 10,
    projected: int = 200,
    most_numbers: int = MOST_NUMBERS,
) -> TableReport:
    """Compare a front end with what training made of it.

    Args:
        front_end: as it was before training; it holds the trained weights afterwards.
        trained: its state after training; of another precision, the rows before are rounded to that first.
        tokens: the V tokens of the vocabulary.
        counts: (V,) how often each occurs in the training documents.
        texts: for each split how often each token occurs, (V,), and each distinct one outside the vocabulary;
            the training text is ``train``.
        found: (V,) bool, which have a pretrained vector; None where there are none.
        pad_id: the padding row, which is not reported on.
        unk_id: the row of unknown tokens, which is no word.
        words: words whose neighbours are wanted; None takes those that moved most, or the most frequent where
            none moved.
        neighbours: how many of each.
        projected: most frequent words in the projection.
        most_numbers: rows times width from which on the most frequent tokens' rows are reported on alone.
    """
    size, width = len(tokens), front_end.dim
    reported = np.ones(size, bool)
    if pad_id is not None:
        reported[pad_id] = False
    whole = size * width <= most_numbers
    if not whole:
        chosen = report.largest(counts, max(most_numbers // width, 1), reported)
        reported[:] = False
        reported[chosen] = True
    ids = np.flatnonzero(reported)
    names = [tokens[row] for row in ids.tolist()]
    counts = np.asarray(counts)[ids]
    is_word: np.ndarray = ids != (-1 if unk_id is None else unk_id)

    _round(front_end, trained)
    before = report.word_rows(front_end, ids)
    front_end.load_state_dict(trained)
    after = report.word_rows(front_end, ids)

    distance, cosine = report.movement(before, after)
    lengths = report.norms(before), report.norms(after)
    moved, in_text = distance > 0, counts > 0

    def entry(row: int) -> dict[str, Any]:
        return {
            "word": names[row],
            "count": int(counts[row]),
            "distance": float(distance[row]),
            "cosine": float(cosine[row]),
        }

    most_moved = report.largest(distance, LISTED, is_word & moved)
    if words is not None:
        places = {name: row for row, name in enumerate(names) if is_word[row]}
        wanted = {word: places.get(word) for word in words}
    else:
        shown = most_moved[:SHOWN]
        if not len(shown):
            readable = np.array([any(map(str.isalpha, name)) for name in names], bool)
            shown = report.largest(counts, SHOWN, is_word & in_text & readable)
        wanted = {names[row]: int(row) for row in shown}
    asked = np.array([row for row in wanted.values() if row is not None], np.int64)
    near = {
        when: dict(zip(asked.tolist(), report.neighbours(rows, asked, neighbours, is_word), strict=True))
        for when, rows in zip(_WHEN, (before, after), strict=True)
    }
    beside: list[dict[str, Any]] = []
    for word, place in wanted.items():
        if place is None:
            beside.append({"word": word, "in_vocabulary": False})
            continue
        lists = {
            when: [{"word": names[row], "cosine": cosine} for row, cosine in near[when][place]]
            for when in _WHEN
        }
        beside.append({"in_vocabulary": True, **entry(place), **lists})

    frequent = report.largest(counts, projected, is_word & in_text)
    plotted = np.array(list(dict.fromkeys([*frequent, *most_moved[:SHOWN], *asked])), np.int64)
    content: dict[str, Any] = {
        "rows": {
            "vocabulary": size,
            "width": width,
            "reported": len(ids),
            "which": "all but padding" if whole else "those of the tokens most frequent in training",
        },
        "coverage": {
            split: report.coverage(
                known, unknown, found=found, train_counts=None if split == "train" else texts["train"][0]
            ).as_dict()
            for split, (known, unknown) in texts.items()
        },
        "without_vector": None if found is None else _without_vector(tokens, *texts["train"], found),
        "training": {
            "in_training_text": int(in_text.sum()),
            "moved": int(moved.sum()),
            "moved_in_training_text": int((moved & in_text).sum()),
            "moved_outside": int((moved & ~in_text).sum()),
        },
        "movement": {
            "quantiles": list(report.QUANTILES),
            "distance_of_moved": report.quantiles(distance[moved]),
            "cosine_of_moved": report.quantiles(cosine[moved]),
            "by_count": [bin._asdict() for bin in report.by_frequency(counts, distance, cosine)],
            "most_moved": [entry(row) for row in most_moved],
        },
        "norms": {
            "quantiles": list(report.QUANTILES),
            **{when: report.quantiles(values) for when, values in zip(_WHEN, lengths, strict=True)},
        },
        "neighbours": beside,
        "projection": _projection(before[plotted], after[plotted], [entry(row) for row in plotted]),
    }
    return TableReport(content, counts, distance, *lengths)


@torch.no_grad()
def _round(front_end: FrontEnd, trained: Mapping[str, Tensor]) -> None:
    # A model that was trained in bfloat16 began with its rows rounded to that.
    for name, value in front_end.state_dict().items():
        if name in trained and value.is_floating_point():
            value.copy_(value.to(trained[name].dtype))


def _without_vector(
    tokens: Sequence[str], counts: np.ndarray, unknown: np.ndarray, found: np.ndarray
) -> dict[str, Any]:
    lacking = (counts > 0) & ~found
    commonest = report.largest(counts, LISTED, lacking)
    return {
        "types": int(lacking.sum()),
        "tokens": int(counts[lacking].sum()),
        "outside_vocabulary": {"types": int(np.count_nonzero(unknown)), "tokens": int(unknown.sum())},
        "commonest": [{"word": tokens[row], "count": int(counts[row])} for row in commonest],
    }


def _projection(
    before: np.ndarray, after: np.ndarray, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Both by the plane of the rows after: it shows what training made, and where that came from."""
    if len(entries) < 2:
        return None
    plane = report.projection(after)
    both = plane.of(before), plane.of(after)
    return {
        "explained": plane.explained,
        "words": [
            {"word": one["word"], "count": one["count"], "before": old.tolist(), "after": new.tolist()}
            for one, old, new in zip(entries, *both, strict=True)
        ],
    }
