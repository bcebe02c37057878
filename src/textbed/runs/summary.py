"""What the person reads: a summary before training, and one table at the end. Plain values in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from textbed.runs.folder import screen

_MIN_WIDTH = 100
_MAX_CLASSES = 30  # more are in metrics.json, and would push the result off the screen


@dataclass(frozen=True)
class SplitSummary:
    """One split of the data."""

    documents: int
    tokens: int
    """After cutting to the tokenizer's ``max_tokens``; of both texts for pairs."""
    unknown: int
    """Of these, tokens that are not in the vocabulary."""
    empty: int = 0
    """Documents without a single token."""


@dataclass(frozen=True)
class PartSummary:
    """Numbers of one part of the model."""

    all: int
    trainable: int
    multiply_adds: float | None = None
    """Of a forward pass over a training document, on average; None where a part does not say."""


@dataclass(frozen=True)
class Overview:
    """What a run is made of, known before training."""

    name: str
    data: str
    """One line: where the documents come from."""
    splits: Mapping[str, SplitSummary]
    """By name, in the order they are shown."""
    class_counts: Mapping[str, int]
    """Class -> training documents."""
    tokenizer: str
    """One line: its kind and settings that matter."""
    vocabulary: int
    """V, rows of the table."""
    parts: Mapping[str, PartSummary]
    """Part of the model -> its parameters."""
    device: str
    precision: str
    steps_per_epoch: int
    epochs: int | None = None
    multilabel: bool = False
    vectors: str | None = None
    """Coverage by the pretrained vectors, one line; None where none are used."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Further lines, such as what a resumed run goes on from."""


def console(file: IO[str] | None = None) -> Console:
    """A console on ``file`` (stderr by default); at least 100 characters wide where that is no terminal."""
    stream = file or screen()
    plain = Console(file=stream, highlight=False)
    if plain.is_terminal:
        return plain
    return Console(file=stream, highlight=False, width=max(plain.width, _MIN_WIDTH), color_system=None)


def show_overview(overview: Overview, file: IO[str] | None = None) -> None:
    """Print the summary before training."""
    out = console(file)
    table = text_table(f"{overview.name}", "", "")
    table.add_row("data", escape(overview.data))
    table.add_row(
        "tokenizer", escape(f"{overview.tokenizer}; {overview.vocabulary:,} rows in the vocabulary")
    )
    if overview.vectors is not None:
        table.add_row("vectors", escape(overview.vectors))
    table.add_row("classes", escape(describe_classes(overview.class_counts, overview.multilabel)))
    epochs = f", {overview.epochs} epochs at the most" if overview.epochs and overview.epochs > 0 else ""
    table.add_row("device", f"{escape(overview.device)}, {overview.precision}")
    table.add_row("steps", f"{overview.steps_per_epoch:,} batches an epoch{epochs}")
    for note in overview.notes:
        table.add_row("", escape(note))
    out.print(table)

    splits = text_table(None, "split", "documents", "tokens", "tokens a document", "unknown", "empty")
    for name, split in overview.splits.items():
        splits.add_row(
            name,
            f"{split.documents:,}",
            f"{split.tokens:,}",
            f"{split.tokens / split.documents:,.1f}" if split.documents else "-",
            share(split.unknown, split.tokens),
            f"{split.empty:,}",
        )
    out.print(splits)

    parts = text_table(None, "part", "parameters", "trainable", "multiply-adds a document")
    for name, part in overview.parts.items():
        parts.add_row(escape(name), *_numbers(part))
    each = list(overview.parts.values())
    work = [part.multiply_adds for part in each if part.multiply_adds is not None]
    total = PartSummary(
        sum(part.all for part in each),
        sum(part.trainable for part in each),
        sum(work) if len(work) == len(each) else None,
    )
    parts.add_section()
    parts.add_row("all", *_numbers(total))
    out.print(parts)


def _numbers(part: PartSummary) -> tuple[str, str, str]:
    work = "-" if part.multiply_adds is None else f"{part.multiply_adds:,.0f}"
    return f"{part.all:,}", f"{part.trainable:,}", work


def show_result(
    figures: Mapping[str, float | int | None],
    folder: str | Path,
    file: IO[str] | None = None,
    notes: Sequence[str] = (),
    per_class: Sequence[Mapping[str, Any]] = (),
    split: str = "test",
) -> None:
    """Print what came of it: a table by class where there is room for one, and the one table at the end.

    Args:
        figures: as in metrics.json: ``test/...``, ``val/...``, ``seconds/...``, ``speed/...``,
            ``memory/...``. What they do not hold is left out; so are figures of one class (``test/f1/spam``).
        folder: the run folder.
        notes: further lines, such as the epoch of the best checkpoint.
        per_class: for each class its name (``class``), ``precision``, ``recall``, ``f1`` and ``support``.
        split: what the figures called ``test/...`` and ``per_class`` are of.
    """
    out = console(file)
    if 0 < len(per_class) <= _MAX_CLASSES:
        classes = text_table(
            f"{split.capitalize()}, by class", "class", "precision", "recall", "f1", "documents"
        )
        for row in per_class:
            values = (number(row[name]) for name in ("precision", "recall", "f1"))
            classes.add_row(escape(str(row["class"])), *values, f"{row['support']:,}")
        out.print(classes)
    stages = [stage for stage in ("test", "val") if any(key.startswith(f"{stage}/") for key in figures)]
    titles = {"test": split, "val": "best validation"}
    table = text_table("Result", "", *([titles[stage] for stage in stages] or [""]))
    for name in _figure_names(figures, stages):
        table.add_row(escape(name), *(number(figures.get(f"{stage}/{name}")) for stage in stages))
    table.add_section()
    for name, shown in _costs(figures):
        table.add_row(name, shown)
    out.print(table)
    for note in notes:
        out.print(note, markup=False)
    # on a line of its own and never broken: it is there to be copied
    out.print(f"run folder  {folder}", markup=False, soft_wrap=True)


def _figure_names(figures: Mapping[str, object], stages: Sequence[str]) -> list[str]:
    keys = [key.split("/", 1) for key in figures]
    names = list(
        dict.fromkeys(
            name
            for stage, name in (key for key in keys if len(key) == 2)
            if stage in stages and "/" not in name
        )
    )
    # what is read first comes first
    order = ["accuracy", "f1_macro", "f1_weighted", "mcc"]
    first = [name for name in order if name in names]
    last = sorted(
        (name for name in names if name == "loss" or name.startswith("calibration")), key="loss".__eq__
    )
    return first + [name for name in names if name not in first and name not in last] + last


def _costs(figures: Mapping[str, float | int | None]) -> list[tuple[str, str]]:
    seconds = {
        key.split("/", 1)[1]: value for key, value in figures.items() if key.startswith("seconds/") and value
    }
    total = seconds.pop("total", None) or sum(seconds.values())
    costs = [(f"time, {name}", duration(value)) for name, value in seconds.items()]
    if seconds:
        costs.append(("time, all", duration(total)))
    for what in ("steps", "documents", "tokens"):
        speed = figures.get(f"speed/{what}_per_second")
        if speed:
            costs.append((f"{what} a second", f"{speed:,.0f}" if speed >= 10 else f"{speed:.2f}"))
    for key, name in (
        ("memory/peak_bytes", "memory at the peak"),
        ("memory/gpu_peak_bytes", "GPU memory at the peak"),
    ):
        amount = figures.get(key)
        if amount:
            costs.append((name, size(amount)))
    return costs


def describe_classes(counts: Mapping[str, int], multilabel: bool = False) -> str:
    """One line on the classes of the training split and their balance."""
    if not counts:
        return "none"
    total = sum(counts.values())
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    kind = f"{len(counts)} labels, any number a document" if multilabel else f"{len(counts)}"
    if len(set(counts.values())) == 1:
        return f"{kind}, {share(counts[largest], total)} each"
    return (
        f"{kind}; largest {largest!r} {share(counts[largest], total)}, "
        f"smallest {smallest!r} {share(counts[smallest], total)}"
    )


def share(part: int, whole: int) -> str:
    """``part`` of ``whole`` in per cent; a share that is not zero is not shown as zero."""
    if not whole:
        return "-"
    if not part:
        return "0 %"
    value = 100 * part / whole
    if value < 0.01:
        return "< 0.01 %"
    return f"{value:.2f} %" if value < 1 else f"{value:.1f} %"


def number(value: float | int | None) -> str:
    """A figure with four places; NaN and nothing are a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """0.42 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"


def text_table(title: str | None, *columns: str) -> Table:
    """An empty table as all of them here look: the first column is of names, the others of numbers."""
    table = Table(
        title=escape(title) if title else None,
        title_justify="left",
        title_style="bold",
        show_header=any(columns),
        box=box.SIMPLE,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        # what is left of a table of numbers is a name; numbers are read by their right ends
        right = i > 0 and any(columns)
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=i == 0)
    return table
