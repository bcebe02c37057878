"""A paper's table beside what runs gave: published accuracy, our mean and spread over runs, the difference.

The published figures, and which runs belong to which row, are in ``published.yaml``. Nothing here imports
torch.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml
from rich.markup import escape

from textbed.errors import UserError, nearest
from textbed.runs import registry
from textbed.runs.registry import REPEATS, Run, differing
from textbed.runs.summary import console, text_table

FIGURE = "test/accuracy"
MISSING = "–"


@dataclass
class Cell:
    """One row of a paper's table on one data set."""

    row: str
    data: str
    published: float | None
    """Accuracy in per cent; None where the paper has none."""
    confirmed: bool = True
    """Whether that figure was compared with the paper or with what cites it."""
    accuracies: list[float] = field(default_factory=list)
    """Of our runs, in per cent."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the runs (that of a sample, n - 1); None of fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean less the published figure, in points."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass
class Replication:
    """A paper's table with our figures in it."""

    paper: str
    source: str
    cells: list[Cell]
    """Row by row, the data sets in the paper's order."""
    notes: list[str]
    """What a person should know of the runs, a line each."""


@cache
def published() -> dict[str, Any]:
    """The content of ``published.yaml``: papers by their short names."""
    text = (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
    papers: dict[str, Any] = yaml.safe_load(text)
    return papers


def replicate(paths: Iterable[str | Path], paper: str | None = None) -> Replication:
    """Put the runs into a paper's table.

    Args:
        paths: run folders, or folders that hold them.
        paper: its short name, such as ``kim2014``; None takes the name that all the runs have.

    Of runs with the same fold and seed on the same documents the newest counts in a cell.

    Raises:
        UserError: no such paper, no finished run, or none that belongs to it.
    """
    there = registry.find(paths)
    broken: list[str] = []
    found = registry.with_folds(registry.whole(there), broken)
    name = paper if paper is not None else _paper_of([run.config for run in found])
    if name not in published():
        raise UserError(
            f"--paper {name}: expected one of {', '.join(published())}.{nearest(name, published())}"
        )
    table = published()[name]
    cells = {
        (row, data): Cell(
            row, data, about.get("accuracy", {}).get(data), data not in about.get("unconfirmed", [])
        )
        for row, about in table["rows"].items()
        for data in table["sets"]
    }
    # by documents, seed and fold, of which the newest run counts
    members: dict[tuple[str, str], dict[tuple[Any, ...], Run]] = {}
    strangers, unfinished, replaced = [], 0, 0
    for run in found:  # the oldest first
        cell = cell_of(table, run.config)
        if cell is None:
            strangers.append(str(run.config.get("name")))
        elif run.status != "finished" or FIGURE not in run.metrics:
            unfinished += 1
        else:
            runs = members.setdefault(cell, {})
            # another file behind the same name is another set of documents, and its run no repeat
            repeat = (run.info.get("data"), *(run.config.get(key) for key in REPEATS))
            replaced += repeat in runs
            runs[repeat] = run
    if not members:
        raise UserError(_none_of(name, len(found), unfinished, strangers))
    notes = []
    shortened = 0
    for key, cell_runs in members.items():
        cells[key].accuracies = [100 * run.metrics[FIGURE] for run in cell_runs.values()]
        settings = [run.config for run in cell_runs.values()]
        shortened += sum(_is_shortened(values) for values in settings)
        others = differing(settings)
        if others:
            notes.append(f"{key[0]} on {key[1]}: its runs differ in {', '.join(others)} as well")
        if len({repeat[1:] for repeat in cell_runs}) < len(cell_runs) and not others:
            notes.append(f"{key[0]} on {key[1]}: its runs have read different documents or splits")
    for count, text in (
        (shortened, "trained on a part of the documents only"),
        (len(strangers), "of none of the table's rows or data sets"),
        (unfinished, "not finished, or not tested"),
        (replaced, "left out for a newer one of the same fold and seed"),
    ):
        if count:
            notes.append(f"{count} run{'s' if count > 1 else ''} {text}")
    notes += [f"left out: {line}" for line in (*there.left_out, *broken)]
    doubted = sum(not cell.confirmed for cell in cells.values())
    if doubted:
        notes.append(
            f"{doubted} published figures, with a question mark, were not compared with the paper itself"
        )
    shown = {cell.row for cell in cells.values() if cell.published is not None or cell.accuracies}
    return Replication(name, table["source"], [cell for cell in cells.values() if cell.row in shown], notes)


def _paper_of(configs: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({str(config.get("name")) for config in configs})
    if len(names) > 1 or names[0] not in published():
        raise UserError(
            f"these runs are of {', '.join(names)}; say whose table is meant: --paper with one of "
            f"{', '.join(published())}."
        )
    return names[0]


def cell_of(table: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Row and data set of a run; the first that fit."""
    for row, about in table["rows"].items():
        if "runs" in about and _fits(values, table.get("runs", {}) | about["runs"]):
            for data, wanted in table["sets"].items():
                if _fits(values, wanted):
                    return row, data
    return None


def _fits(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    def fits(value: Any, choice: Any) -> bool:
        if choice == "*":
            return value is not None
        return value in choice if isinstance(choice, list) else value == choice

    return all(fits(values.get(key), choice) for key, choice in wanted.items())


def _none_of(name: str, count: int, unfinished: int, strangers: Sequence[str]) -> str:
    if unfinished:
        return f"of {count} runs none is finished and tested that belongs to {name}."
    others = ", ".join(sorted(set(strangers)))
    return (
        f"none of the {count} runs ({others}) belongs to a row of {name}; "
        f"make some with: python train.py -m experiment=paper/{name}"
    )


def _is_shortened(values: Mapping[str, Any]) -> bool:
    return (
        values.get("data.limit") is not None
        or values.get("data.train_fraction", 1) < 1
        or values.get("trainer.limit_train_batches") is not None
        or bool(values.get("trainer.fast_dev_run"))
    )


# Showing


def _lines(replication: Replication) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Row, data set, paper, ours, difference, runs; the row's name at its first data set alone."""
    before = None
    for cell in replication.cells:
        ours = MISSING if cell.mean is None else f"{cell.mean:.1f}"
        if cell.spread is not None:
            ours += f" ± {cell.spread:.1f}"
        yield (
            "" if cell.row == before else cell.row,
            cell.data,
            MISSING if cell.published is None else f"{cell.published:.1f}{'' if cell.confirmed else '?'}",
            ours,
            MISSING if cell.difference is None else signed(cell.difference),
            str(len(cell.accuracies)),
        )
        before = cell.row


_HEADER = ("row", "data", "paper", "ours", "difference", "runs")


def signed(points: float) -> str:
    """+0.4, −1.2; 0.0 has no sign."""
    shown = f"{abs(points):.1f}"
    return shown if math.isclose(float(shown), 0) else f"{'+' if points > 0 else '−'}{shown}"


def show(replication: Replication, file: IO[str] | None = None) -> None:
    """Print the table on a terminal, standard output by default."""
    out = console(file or sys.stdout)
    out.print(replication.source, markup=False, soft_wrap=True)
    table = text_table(f"{replication.paper}: test accuracy in per cent", *_HEADER)
    for line in _lines(replication):
        table.add_row(*map(escape, line))
    out.print(table)
    for note in replication.notes:
        out.print(note, markup=False)


def markdown(replication: Replication) -> str:
    """The same as a Markdown table."""
    lines = [
        f"{replication.source}. Test accuracy in per cent; ours is the mean ± standard deviation over runs.",
        "",
        f"| {' | '.join(_HEADER)} |",
        "|---|---|--:|--:|--:|--:|",
        *(f"| {' | '.join(line)} |" for line in _lines(replication)),
    ]
    if replication.notes:
        lines += ["", *(f"- {note}" for note in replication.notes)]
    return "\n".join(lines)
