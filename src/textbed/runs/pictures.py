"""Pictures of a run: learning curves and the confusion matrix, as PNG files.

matplotlib is imported when a picture is drawn (0.5 s and more), and used through its objects: no window, no
global state.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textbed.runs.folder import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VALIDATION, _INK, _GRID = "#1b6ca8", "#d1495b", "#333333", "#e3e3e3"
_ANNOTATED_CLASSES = 20
_NAMED_CLASSES = 60
_LONGEST_NAME = 24


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """What the learning curves show, from the record: figure -> epoch (from 1) -> value.

    ``train/loss_epoch`` is shown as ``train/loss``; where it was not logged, the mean of the logged steps of
    each epoch. Values that are missing or not finite are left out.
    """
    steps: dict[int, list[float]] = {}
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if line.get("epoch") is None:
            continue
        epoch = int(line["epoch"]) + 1
        for key, value in line.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if key == "train/loss":
                steps.setdefault(epoch, []).append(float(value))
            elif key == "train/loss_epoch":
                found.setdefault("train/loss", {})[epoch] = float(value)
            elif key.startswith("val/"):
                found.setdefault(key, {})[epoch] = float(value)
    if "train/loss" not in found and steps:
        found["train/loss"] = {epoch: float(np.mean(values)) for epoch, values in steps.items()}
    return found


def draw_learning_curves(
    lines: Sequence[Mapping[str, Any]], path: Path, figure: str = "val/accuracy", title: str | None = None
) -> bool:
    """Draw loss (training and validation) and one figure of validation by epoch; False where there is nothing
    to draw.

    Args:
        lines: the record, as :func:`textbed.runs.record.read_metrics` reads it.
        path: the PNG file.
        figure: the figure of validation that the run goes by.
        title: shown above.
    """
    data = curves(lines)
    losses = [(key, name, colour) for key, name, colour in _LOSSES if data.get(key)]
    shown = data.get(figure) if figure != "val/loss" else None
    if not losses and not shown:
        return False
    with _drawing(path, (9.0 if losses and shown else 5.2, 3.8)) as picture:
        axes = picture.subplots(1, 2 if losses and shown else 1, squeeze=False)[0]
        last = max(epoch for values in data.values() for epoch in values)
        if losses:
            for key, name, colour in losses:
                _line(axes[0], data[key], name, colour)
            _dress(axes[0], "loss", last)
            axes[0].legend(frameon=False, labelcolor=_INK)
        if shown:
            name = figure.split("/", 1)[1].replace("_", " ")
            better = min if "loss" in figure or "error" in figure else max
            best = better(shown, key=lambda epoch: (shown[epoch], -epoch if better is max else epoch))
            _line(axes[-1], shown, f"validation {name}", _VALIDATION)
            axes[-1].plot([best], [shown[best]], "o", ms=9, mfc="none", mec=_INK, mew=1.2, zorder=4)
            axes[-1].set_title(
                f"best {shown[best]:.4f} in epoch {best}", fontsize=10, color=_INK, loc="right"
            )
            _dress(axes[-1], f"validation {name}", last)
        if title:
            picture.suptitle(title, fontsize=12, color=_INK, x=0.01, ha="left", parse_math=False)
    return True


_LOSSES = (("train/loss", "training", _TRAIN), ("val/loss", "validation", _VALIDATION))


def draw_confusion(counts: Any, classes: Sequence[str], path: Path, title: str | None = None) -> bool:
    """Draw a confusion matrix, each row as shares of its class; False where it has no documents.

    Args:
        counts: (C, C) documents by true class (row) and predicted class (column).
        classes: the C names.
        path: the PNG file.
        title: shown above.
    """
    counts = np.asarray(counts)
    total = counts.sum()
    if counts.ndim != 2 or not total:
        return False
    size = len(classes)
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    names = [_short(name) for name in classes]
    # Room for a number in every cell where there are numbers, for a name on every line where there are names.
    annotated, named = size <= _ANNOTATED_CLASSES, size <= _NAMED_CLASSES
    digits = len(str(int(counts.max())))
    cell = max(0.42, 0.11 * digits + 0.14) if annotated else 0.19
    margin = 0.085 * max(map(len, names)) if named else 0.3
    side = max(cell * size, 2.4)
    with _drawing(path, (side + margin + 1.5, side + margin + 1.0)) as picture:
        axes = picture.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if annotated:
            for i, j in np.ndindex(*counts.shape):
                if counts[i, j]:
                    ink = "white" if shares[i, j] > 0.55 else _INK
                    axes.text(j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=8, color=ink)
        if named:
            small = 9 if annotated else 7
            upright = max(map(len, names)) * 0.085 < side / size  # names that fit above each other's columns
            axes.set_xticks(range(size), names, rotation=0 if upright else 90, fontsize=small, color=_INK)
            axes.set_yticks(range(size), names, fontsize=small, color=_INK)

        axes.tick_params(length=0)
        axes.set_xlabel("predicted", color=_INK)
        axes.set_ylabel("true", color=_INK)
        axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8 if annotated else 0.4)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_color(_GRID)
        bar = picture.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
        bar.outline.set_visible(False)
        right = np.trace(counts) / total
        heading = f"{int(total):,} documents, {100 * right:.1f} % on the diagonal"
        axes.set_title(
            f"{title}\n{heading}" if title else heading, fontsize=10, color=_INK, loc="left", parse_math=False
        )
    return True


@contextlib.contextmanager
def _drawing(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure; when the block ends, it is written to ``path`` in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    figure = Figure(figsize=inches, dpi=144, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes; metrics.json and the predictions
        # have it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        fonts.setLevel(logging.ERROR)
        try:
            yield figure
            with replacing(path) as temporary:
                canvas.print_figure(temporary, format="png")
        finally:
            fonts.setLevel(level)


def _line(axes: Axes, values: Mapping[int, float], name: str, colour: str) -> None:
    epochs = sorted(values)
    # dots where they can be told apart; a single epoch would show nothing without
    marker = "o" if len(epochs) <= 40 else ""
    axes.plot(
        epochs, [values[e] for e in epochs], marker=marker, ms=4, lw=1.8, color=colour, label=name, zorder=3
    )


def _dress(axes: Axes, label: str, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", color=_INK)
    axes.set_ylabel(label, color=_INK)
    room = max(0.5, 0.03 * last)
    axes.set_xlim(1 - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#999999")


def _short(name: object) -> str:
    text = " ".join(str(name).split()) or "(empty)"
    text = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")  # a pair of $ would be read as a formula
