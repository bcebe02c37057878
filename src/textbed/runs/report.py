"""A comparison as one page of HTML that holds all it shows: it opens from a disk and needs no network.

What the page draws from is :func:`content`, plain values; page/page.js draws it with Vega-Lite, whose code
stands inside the page. The tables are those of :mod:`textbed.runs.comparison_tables`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textbed.errors import UserError
from textbed.runs import comparison_tables as shown
from textbed.runs.answers import (
    Answers,
    Disagreement,
    Predictions,
    disagreements,
    document_ids,
    read_answers,
    read_predictions,
)
from textbed.runs.comparison import (
    BYTES,
    PARAMETERS,
    SECONDS,
    SPLITS,
    Comparison,
    figure,
    is_lower_better,
    split_of,
    unit_name,
)
from textbed.runs.folder import now, plain, write_text
from textbed.runs.lines import read_metrics
from textbed.runs.pictures import curves

MOST_DOCUMENTS = 300
COSTS = {SECONDS: "seconds of training", BYTES: "peak memory, MiB", PARAMETERS: "parameters"}
BINS = 15
"""Of a reliability diagram: those of the figure ``calibration_error``."""
_MOST_POINTS = 200  # of a learning curve
_MOST_CHARACTERS = 1000  # of a text
_MOST_WORDS = 15
_PARTS = Path(__file__).with_name("page")


def write(comparison: Comparison, path: Path, most: int = MOST_DOCUMENTS) -> None:
    """Write the page.

    Args:
        most: documents shown on which groups differ.

    Raises:
        UserError: the extra ``report`` is not installed, or the place cannot be written to.
    """
    write_text(path, page(comparison, most), "--html")


def page(comparison: Comparison, most: int = MOST_DOCUMENTS) -> str:
    """The page as text."""
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise UserError(f"--html: {error.name} is missing; pip install -e '.[report]'") from error
    # no end of a script may stand inside one
    scripts = [
        script.replace("</script", r"<\/script")
        for script in (
            vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
            (_PARTS / "page.js").read_text(encoding="utf-8"),
        )
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    data = content(comparison, most)
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for special in "<>&":
        text = text.replace(special, f"\\u{ord(special):04x}")
    return environment.get_template("page.html").render(
        comparison=comparison,
        tables=shown.tables(comparison),
        title=" by ".join([comparison.metrics[0], *([", ".join(comparison.by)] if comparison.by else [])]),
        lead=lead(comparison),
        made=now(),
        data=data,
        data_text=text,
        style=(_PARTS / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        allowed=[_hash(script) for script in scripts],
    )


def _hash(script: str) -> str:
    """By which the page allows a script: another, such as a text might hold, does not run in it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def lead(comparison: Comparison) -> str:
    """What came of it in a sentence or two."""
    metric, best = comparison.metrics[0], comparison.groups[0]
    number, one = shown.number_of(metric), best.figures[metric]
    unit = " %" if shown.is_share(metric) else ""
    said = f"{best.name}, {metric} {number(one.mean)}{unit}"
    said += f" ± {number(one.spread)} over {one.count} runs." if one.spread is not None else ", one run."
    if len(comparison.groups) == 1:
        return said
    said = f"Best of {len(comparison.groups)} groups is {said}"
    second = comparison.groups[1].name
    pair = next((p for p in comparison.pairs if {p.first, p.second} == {best.name, second}), None)
    if pair is None:
        return said
    points = " points" if shown.is_share(metric) else ""
    said += (
        f" Against the next, {second}, that is {shown.with_sign(number, pair.repeats.difference)}{points}:"
    )
    sure = {"other runs": pair.holm, "other documents": pair.holm_documents}
    tested = [
        f"{what} would {'show it too' if p < 0.05 else 'not surely show it'} (p {shown.p_value(p)})"
        for what, p in sure.items()
        if p is not None
    ]
    return f"{said} {', '.join(tested) or 'nothing tells whether another run would show it'}."


def content(comparison: Comparison, most: int = MOST_DOCUMENTS) -> dict[str, Any]:
    """What the page draws from, in plain values; groups are known by their number.

    Each section has ``missing``: what some groups lack that it would show.
    """
    metric, split = comparison.metrics[0], split_of(comparison)
    documents, ids = _documents(comparison, most)
    return {
        **shown.everything(comparison),
        "split": split,
        "share": shown.is_share(metric),
        "runs": _runs(comparison),
        "shown_pairs": [comparison.pairs.index(pair) for pair in comparison.shown_pairs],
        "costs": _costs(comparison),
        "curves": _curves(comparison),
        **_predictions(comparison, documents, ids),
        "tables": _tables(comparison),
        "documents": documents,
    }


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "group": number,
            "name": unit_name(comparison.averaged, unit),
            "folder": str(run.path),
            "value": run.metrics[comparison.metrics[0]],
            **{name: run.metrics.get(name) for name in COSTS},
        }
        for number, group in enumerate(comparison.groups)
        for unit, run in group.runs.items()
    ]


def _missing(comparison: Comparison, what: str, lacking: Counter[int]) -> list[str]:
    """A line on groups of which some runs lack something."""
    parts = []
    for number, count in sorted(lacking.items()):
        group = comparison.groups[number]
        of = "" if count == len(group.runs) else f"{count} of {len(group.runs)} runs of "
        parts.append(f"{of}{group.name}")
    return [f"No {what}: {'; '.join(parts)}."] if parts else []


# Figures


def _costs(comparison: Comparison) -> dict[str, Any]:
    metric = comparison.metrics[0]
    axes: list[dict[str, Any]] = []
    missing = []
    for name, title in COSTS.items():
        having = [number for number, group in enumerate(comparison.groups) if name in group.figures]
        if not having:
            missing.append(f"No {title}.")
            continue
        costs, values = (
            [comparison.groups[number].figures[one].mean for number in having] for one in (name, metric)
        )
        kept = front(list(zip(costs, values, strict=True)), comparison.lower)
        axes.append({"name": name, "title": title, "front": [having[place] for place in kept]})
    return {"axes": axes, "missing": missing}


def front(points: Sequence[tuple[float, float]], lower: bool = False) -> list[int]:
    """The Pareto front of (cost, value) by rising cost: those than which none is as cheap and better, nor as
    good and cheaper.

    Args:
        lower: whether a value is better the less it is.
    """
    sign = 1 if lower else -1
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1])):
        if not kept or sign * points[i][1] < sign * points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def _curves(comparison: Comparison) -> dict[str, Any]:
    lacking: Counter[int] = Counter()
    lines: list[dict[str, Any]] = []
    for number, group in enumerate(comparison.groups):
        values: dict[str, dict[int, list[float]]] = {}
        for run in group.runs.values():
            try:
                found = curves(read_metrics(run.folder.record_file))
            except (OSError, UserError):
                found = {}
            lacking[number] += not found
            for name, points in found.items():
                for epoch, value in points.items():
                    values.setdefault(name, {}).setdefault(epoch, []).append(value)
        for name, by_epoch in values.items():
            epochs = sorted(by_epoch)
            step = math.ceil(len(epochs) / _MOST_POINTS)
            lines.append(
                {
                    "group": number,
                    "figure": name,
                    # epoch, mean, least and greatest of the runs that came so far, and their number
                    "points": [
                        [epoch, statistics.fmean(here), min(here), max(here), len(here)]
                        for epoch in sorted({*epochs[::step], epochs[-1]})
                        for here in [by_epoch[epoch]]
                    ],
                }
            )
    names = sorted({line["figure"] for line in lines})
    kind = comparison.metrics[0].partition("/")[2]
    first = next((name for name in (f"val/{kind}", "val/accuracy", "val/loss") if name in names), None)
    figures = [
        {"name": name, "share": shown.is_share(name), "lower": is_lower_better(name)}
        for name in ([first] if first else []) + [name for name in names if name != first]
    ]
    return {
        "figures": figures,
        "lines": lines,
        "missing": _missing(comparison, "learning curves (metrics.jsonl)", +lacking),
    }


# Predictions


def _documents(comparison: Comparison, most: int) -> tuple[dict[str, Any], np.ndarray]:
    """Documents on which groups differ, and their ids: for each group in turn that on which it differs most
    from the first, or from the one tested against.

    Where any two differ, one of them differs from the first: of documents that it has seen none is missed.
    """
    split, groups = split_of(comparison), comparison.groups
    answers = [read_answers(comparison.places_of(group).values(), split) for group in groups]
    there = {number: one for number, one in enumerate(answers) if one is not None}
    content: dict[str, Any] = {"total": 0, "items": [], "cut": _MOST_CHARACTERS, "missing": []}
    lacking = Counter({number: len(group.runs) for number, group in enumerate(groups) if number not in there})
    content["missing"] = _missing(comparison, f"predictions on {split} of all runs", lacking)
    if len(there) < 2:
        content["missing"].append("It takes two groups to disagree.")
        return content, np.zeros(0, np.int64)
    against = [number for number in there if groups[number].name == comparison.against]
    first = (against or list(there))[0]
    sides = [
        disagreements(there[first], one, len(one.ids)) for number, one in there.items() if number != first
    ]
    turns = (one for turn in itertools.zip_longest(*sides) for one in turn if one is not None)
    found = list({(one.place, one.row): one for one in turns}.values())
    content["total"] = len(found)
    if not found:
        content["missing"].append("None: groups are right on the same documents, or predicted other ones.")
    found, untold = shown.with_texts(comparison, groups[first], found[:most])
    content["missing"] += [f"No texts: {reason}." for reason in untold]
    ids = document_ids(np.array([one.row for one in found], np.int64), np.array([one.place for one in found]))
    shares = {number: _shares(one, ids, found) for number, one in there.items()}
    for i, one in enumerate(found):
        content["items"].append(
            {
                "row": one.row,
                "label": one.label,
                "text": one.text and one.text[:_MOST_CHARACTERS],
                "is_cut": one.text is not None and len(one.text) > _MOST_CHARACTERS,
                "right": [shares[number][i] if number in shares else None for number in range(len(groups))],
            }
        )
    return content, ids


def _shares(answers: Answers, ids: np.ndarray, found: Sequence[Disagreement]) -> list[float | None]:
    """How many of the runs are right on documents, None on one that they did not see."""
    places = np.searchsorted(answers.ids, ids).clip(max=len(answers.ids) - 1)
    same = (answers.ids[places] == ids) & (answers.labels[places] == [one.label for one in found])
    right = answers.right[places].tolist()
    return [value if is_same else None for value, is_same in zip(right, same, strict=True)]


class _Said:
    """What the runs of a group said of documents of the same classes, added up."""

    def __init__(self, classes: int) -> None:
        self.runs = 0
        self.support = np.zeros(classes)
        self.confusion: Counter[tuple[int, int]] = Counter()
        self.figures = np.zeros((3, classes))

    def add(self, said: Predictions) -> None:
        there, guessed = said.labels.sum(axis=0), said.predicted.sum(axis=0)
        hits = (said.labels & said.predicted).sum(axis=0)
        self.runs += 1
        self.support += there
        for place, (over, under) in enumerate(((hits, guessed), (hits, there), (2 * hits, there + guessed))):
            # 0 where a class neither was there nor was said, as in metrics.json
            self.figures[place] += over / np.maximum(under, 1)
        if not said.multilabel:
            pairs = np.stack([said.labels.argmax(axis=1), said.predicted.argmax(axis=1)], axis=1)
            self.confusion.update(map(tuple, pairs.tolist()))


def _predictions(
    comparison: Comparison, documents: dict[str, Any], ids: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Confusion, figures by class, and calibration; and what was said of ``documents``, filled in there."""
    split = split_of(comparison)
    stage = next(stage for stage, name in SPLITS.items() if name == split)
    lacking: Counter[int] = Counter()
    sets: dict[tuple[tuple[str, ...], bool], dict[int, _Said]] = {}
    calibrated = []
    said_of: list[dict[int, Counter[str]]] = [{} for _ in ids]
    for number, group in enumerate(comparison.groups):
        bins = np.zeros((BINS, 3))
        for folder, place in comparison.places_of(group).values():
            said = read_predictions(folder, split)
            if said is None:
                lacking[number] += 1
                continue
            key = tuple(said.classes), said.multilabel
            sets.setdefault(key, {}).setdefault(number, _Said(len(said.classes))).add(said)
            bins += reliability(said)
            _, here, shown_at = np.intersect1d(
                document_ids(said.rows, place), ids, assume_unique=True, return_indices=True
            )
            for row, i in zip(here.tolist(), shown_at.tolist(), strict=True):
                name = ", ".join(said.classes[one] for one in np.flatnonzero(said.predicted[row]))
                said_of[i].setdefault(number, Counter())[name] += 1
        count = bins[:, 0]
        if count.any():
            error = f"{stage}/calibration_error"
            recorded = [run.metrics.get(error) for run in group.runs.values()]
            errors = [value for value in recorded if isinstance(value, int | float)]
            filled = bins[count > 0]
            calibrated.append(
                {
                    "group": number,
                    "error": dataclasses.asdict(figure(errors, lower=True)) if errors else None,
                    # mean confidence, share of right answers, share of the documents
                    "bins": [[sure / n, right / n, n / count.sum()] for n, sure, right in filled.tolist()],
                }
            )
    for item, counters in zip(documents["items"], said_of, strict=True):
        item["said"] = [
            counters[number].most_common(1)[0][0] if number in counters else None
            for number in range(len(comparison.groups))
        ]
    missing = _missing(comparison, f"predictions on {split}", lacking)
    return {
        "classes": {"sets": [_set(*key, groups) for key, groups in sets.items()], "missing": missing},
        "calibration": {"groups": calibrated, "missing": missing},
    }


def _set(classes: tuple[str, ...], multilabel: bool, groups: dict[int, _Said]) -> dict[str, Any]:
    """Groups that predicted the same classes: figures are means over runs, so are the counts of documents."""
    return {
        "classes": list(classes),
        "multilabel": multilabel,
        "groups": [
            {
                "group": number,
                "support": (said.support / said.runs).tolist(),
                "precision": (said.figures[0] / said.runs).tolist(),
                "recall": (said.figures[1] / said.runs).tolist(),
                "f1": (said.figures[2] / said.runs).tolist(),
                # true class, predicted class, documents: those that are not 0
                "confusion": [[*pair, count / said.runs] for pair, count in sorted(said.confusion.items())],
            }
            for number, said in groups.items()
        ],
    }


def reliability(said: Predictions) -> np.ndarray:
    """Documents, their confidence and their right answers, summed in ``BINS`` bins of confidence.

    Guo et al. 2017 (arXiv:1706.04599). Of several labels each is one: its probability, and whether it holds.

    Returns:
        (BINS, 3)
    """
    if said.multilabel:
        sure, right = said.probabilities.ravel(), said.labels.ravel()
    else:
        sure = said.probabilities.max(axis=1)
        right = (said.labels & said.predicted).any(axis=1)
    bin_of = np.clip(np.digitize(sure, np.linspace(0, 1, BINS + 1)) - 1, 0, BINS - 1)
    return np.stack([np.bincount(bin_of, weights, BINS) for weights in (None, sure, right)], axis=1)


# Tables


def _tables(comparison: Comparison) -> dict[str, Any]:
    """What embedding.json says of the tables of each group, means over its runs."""
    lacking: Counter[int] = Counter()
    groups = []
    for number, group in enumerate(comparison.groups):
        found = []
        for run in group.runs.values():
            try:
                found.append(_table(json.loads(run.folder.embedding_file.read_text(encoding="utf-8"))))
            except (OSError, ValueError, KeyError, TypeError):  # none, or one of another format
                lacking[number] += 1
        if found:
            groups.append({"group": number, **_mean_table(found)})
    return {"groups": groups, "missing": _missing(comparison, "embedding.json", lacking)}


def _table(content: dict[str, Any]) -> dict[str, Any]:
    """Of one run: numbers by name, those of a bin of frequency by its least count, words that moved most."""
    half = content["movement"]["quantiles"].index(0.5)
    numbers = {
        "rows": content["rows"]["reported"],
        "moved": content["training"]["moved"],
        "distance": content["movement"]["distance_of_moved"][half],
        "cosine": content["movement"]["cosine_of_moved"][half],
        "length_before": content["norms"]["before"][half],
        "length_after": content["norms"]["after"][half],
    }
    for split, covered in content["coverage"].items():
        for part in ("known", "with_vector"):
            for of in ("types", "tokens"):
                numbers[f"{split} {part} {of}"] = covered[part] and covered[part][f"share_of_{of}"]
    return {
        "numbers": numbers,
        "splits": list(content["coverage"]),
        "bins": {bin["low"]: (bin["high"], *bin["distance"]) for bin in content["movement"]["by_count"]},
        "words": {
            entry["word"]: (entry["count"], entry["distance"]) for entry in content["movement"]["most_moved"]
        },
    }


def _mean_table(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words: dict[str, list[tuple[int, float]]] = {}
    for one in found:
        for word, values in one["words"].items():
            words.setdefault(word, []).append(values)
    # a word that moved far in one run alone comes after those that did in all
    ranked = sorted(words, key=lambda word: (-len(words[word]), -_mean(far for _, far in words[word])))
    lows = sorted({low for one in found for low in one["bins"]})
    return {
        "runs": len(found),
        "splits": found[0]["splits"],
        "numbers": {name: _mean(one["numbers"].get(name) for one in found) for name in found[0]["numbers"]},
        # least and greatest count, lower quartile, median and upper quartile of the distance
        "bins": [
            [low, *map(_mean, zip(*(one["bins"][low] for one in found if low in one["bins"]), strict=True))]
            for low in lows
        ],
        "words": [
            {
                "word": word,
                "count": words[word][0][0],
                "distance": _mean(far for _, far in words[word]),
                "runs": len(words[word]),
            }
            for word in ranked[:_MOST_WORDS]
        ],
    }


def _mean(values: Iterable[float | None]) -> Any:
    """The mean of those that are there; None where there is none."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
