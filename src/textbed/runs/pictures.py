"""Pictures of a run: learning curves, the confusion matrix, and what the table did, as PNG files.

matplotlib is imported when a picture is drawn (0.5 s and more), and used through its objects: no window, no
global state.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textbed.runs.folder import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from textbed.runs.embedding_report import TableReport

TRAIN, VALIDATION, INK, GRID = "#1b6ca8", "#d1495b", "#333333", "#e3e3e3"
_PALE, GREY = "#a9cbe3", "#8c8c8c"
_ANNOTATED_CLASSES = 20
_NAMED_CLASSES = 60
_LONGEST_NAME = 24
_MOST_POINTS = 5000
"""Rows that are drawn as points; of more, equally many of each part of the vocabulary."""
_MOST_LABELS = 90


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
        lines: the record, as :func:`textbed.runs.lines.read_metrics` reads it.
        path: the PNG file.
        figure: the figure of validation that the run goes by.
        title: shown above.
    """
    data = curves(lines)
    losses = [(key, name, colour) for key, name, colour in _LOSSES if data.get(key)]
    shown = data.get(figure) if figure != "val/loss" else None
    if not losses and not shown:
        return False
    with drawing(path, (9.0 if losses and shown else 5.2, 3.8)) as picture:
        axes = picture.subplots(1, 2 if losses and shown else 1, squeeze=False)[0]
        last = max(epoch for values in data.values() for epoch in values)
        if losses:
            for key, name, colour in losses:
                _line(axes[0], data[key], name, colour)
            _dress(axes[0], "loss", last)
            axes[0].legend(frameon=False, labelcolor=INK)
        if shown:
            name = figure.split("/", 1)[1].replace("_", " ")
            better = min if "loss" in figure or "error" in figure else max
            best = better(shown, key=lambda epoch: (shown[epoch], -epoch if better is max else epoch))
            _line(axes[-1], shown, f"validation {name}", VALIDATION)
            axes[-1].plot([best], [shown[best]], "o", ms=9, mfc="none", mec=INK, mew=1.2, zorder=4)
            axes[-1].set_title(f"best {shown[best]:.4f} in epoch {best}", fontsize=10, color=INK, loc="right")
            _dress(axes[-1], f"validation {name}", last)
        if title:
            picture.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", parse_math=False)
    return True


_LOSSES = (("train/loss", "training", TRAIN), ("val/loss", "validation", VALIDATION))


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
    with drawing(path, (side + margin + 1.5, side + margin + 1.0)) as picture:
        axes = picture.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if annotated:
            for i, j in np.ndindex(*counts.shape):
                if counts[i, j]:
                    ink = "white" if shares[i, j] > 0.55 else INK
                    axes.text(j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=8, color=ink)
        if named:
            small = 9 if annotated else 7
            upright = max(map(len, names)) * 0.085 < side / size  # names that fit above each other's columns
            axes.set_xticks(range(size), names, rotation=0 if upright else 90, fontsize=small, color=INK)
            axes.set_yticks(range(size), names, fontsize=small, color=INK)

        axes.tick_params(length=0)
        axes.set_xlabel("predicted", color=INK)
        axes.set_ylabel("true", color=INK)
        axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8 if annotated else 0.4)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_color(GRID)
        bar = picture.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
        bar.outline.set_visible(False)
        right = np.trace(counts) / total
        heading = f"{int(total):,} documents, {100 * right:.1f} % on the diagonal"
        axes.set_title(
            f"{title}\n{heading}" if title else heading, fontsize=10, color=INK, loc="left", parse_math=False
        )
    return True


# What the table did


def draw_table(report: TableReport, path: Path, title: str | None = None) -> None:
    """Draw a page on the table: coverage, movement against frequency, norms, a projection, neighbours.

    Args:
        report: as :func:`textbed.runs.embedding_report.make_report` makes it.
        path: the PNG file.
        title: shown above.
    """
    content = report.content
    beside = [entry for entry in content["neighbours"] if entry["in_vocabulary"]][:_SHOWN_WORDS]
    text = 0.75 + 0.36 * len(beside) if beside else 0.0
    cover = 0.7 * len(content["coverage"])
    plane = 5.0 if content["projection"] else 0.0
    # In inches, from above: where each part begins.
    wide = 11.0
    movement = 0.95 + cover + 0.75
    projection = movement + 2.6 + 0.95
    neighbours = projection + (plane + 0.55 if plane else 0)
    tall = neighbours + text + 0.1

    with drawing(path, (wide, tall), fitted=False) as picture:

        def panel(left: float, top: float, width: float, height: float) -> Axes:
            axes = picture.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))
            axes.tick_params(colors=INK, length=0, labelsize=9)
            for spine in axes.spines.values():
                spine.set_visible(False)
            return axes

        if title:
            picture.text(
                0.2 / wide, 1 - 0.2 / tall, title, fontsize=12, color=INK, va="top", parse_math=False
            )
        lacking = content["without_vector"]
        _coverage(panel(1.6, 0.95, 4.6 if lacking else 8.6, cover), content["coverage"])
        if lacking:
            _without_vector(panel(7.4, 0.95, 3.4, cover), cover, lacking)
        _moves(panel(0.85, movement, 5.4, 2.6), report)
        _lengths(panel(7.3, movement, 3.4, 2.6), report)
        if plane:
            _plane(panel(0.3, projection, 10.4, plane), content["projection"])
        if beside:
            _beside(panel(0.3, neighbours, 10.4, text), text, beside)


_SHOWN_WORDS = 20


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, color=INK, loc="left", pad=6)


def _coverage(axes: Axes, coverage: Mapping[str, Mapping[str, Any]]) -> None:
    """A bar for each split and way of counting: what has a vector, what has a row, what has neither."""
    vectors = any(covered["with_vector"] for covered in coverage.values())
    extra = any(covered["known_but_not_in_training"]["tokens"] for covered in coverage.values())
    names = []
    for place, (split, covered) in enumerate(coverage.items()):
        for step, of in enumerate(("types", "tokens")):
            at = 2.4 * place + step
            names.append((at, f"{split}, {'distinct' if of == 'types' else 'all'}"))
            known = covered["known"][f"share_of_{of}"] or 0.0
            axes.barh(at, 1, height=0.8, color=GRID)
            axes.barh(at, known, height=0.8, color=_PALE if vectors else TRAIN)
            if covered["known_but_not_in_training"]["tokens"]:
                new = covered["known_but_not_in_training"][f"share_of_{of}"] or 0.0
                # drawn over the rest: it is part of what has a row, and may be part of what has a vector
                axes.barh(
                    at, new, left=known - new, height=0.8, color="none", edgecolor=INK, hatch="////",
                    linewidth=0, zorder=4,
                )  # fmt: skip
            shares = [known]
            if vectors:
                shares.insert(0, covered["with_vector"][f"share_of_{of}"] or 0.0)
                axes.barh(at, shares[0], height=0.8, color=TRAIN)
            said = " / ".join(f"{100 * value:.1f}" for value in shares)
            axes.text(1.02, at, f"{said} %", va="center", fontsize=9, color=INK)
    axes.set_yticks([at for at, _ in names], [name for _, name in names])
    axes.set_ylim(max(at for at, _ in names) + 0.6, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    parts = [("has a vector", TRAIN)] if vectors else []
    parts += [("a row, no vector", _PALE) if vectors else ("has a row", TRAIN), ("unknown", GRID)]
    handles: list[Any] = [axes.barh(0, 0, color=colour, label=name) for name, colour in parts]
    if extra:
        handles.append(
            axes.barh(0, 0, color="none", edgecolor=INK, hatch="////", label="not in the training text")
        )
    axes.legend(
        handles=handles, frameon=False, labelcolor=INK, fontsize=9, ncols=len(handles), loc="lower left",
        bbox_to_anchor=(0, 1.0), borderaxespad=0.1, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    axes.annotate(  # in the line of the title: the legend below it may reach as far
        "vector / row" if vectors else "row", (1.02, 1), xytext=(0, 24), xycoords="axes fraction",
        textcoords="offset points", fontsize=9, color=GREY,
    )  # fmt: skip
    axes.set_title(
        "Coverage by split, of distinct tokens and of all", fontsize=10, color=INK, loc="left", pad=24
    )


def _without_vector(axes: Axes, height: float, lacking: Mapping[str, Any]) -> None:
    axes.set_axis_off()
    axes.set_title(
        f"Commonest in training without a vector, of {lacking['types']:,}",
        fontsize=10, color=INK, loc="left", pad=24,
    )  # fmt: skip
    lines = max(int((height + 0.2) / 0.19), 1)
    for place, entry in enumerate(lacking["commonest"][: 2 * lines]):
        column, line = divmod(place, lines)
        down = 1 + (0.1 - 0.19 * line) / height
        name = _cut(entry["word"], 14)
        for x, side, said in (
            (0.5 * column, "left", name),
            (0.5 * column + 0.43, "right", f"{entry['count']:,}"),
        ):
            axes.text(
                x, down, said, transform=axes.transAxes, ha=side, va="top", fontsize=8.5, color=INK,
                parse_math=False,
            )  # fmt: skip
    if not lacking["commonest"]:
        said = "none: every word of the vocabulary has one"
        if rare := lacking["outside_vocabulary"]["types"]:
            said += f";\n{rare:,} that are left out of it have no row"
        axes.text(0, 1, said, transform=axes.transAxes, va="top", fontsize=9, color=INK)


def _moves(axes: Axes, report: TableReport) -> None:
    """How far rows moved against how often their token occurs: points, the median, half of the rows."""
    counts, distance = report.counts, report.distance
    _heading(axes, "How far rows moved, by how often the token occurs in training")
    if not (distance > 0).any():
        _say(axes, "no row moved")
        return
    place = np.where(counts > 0, counts, 0.5)  # a logarithm has no 0
    shown = slice(None, None, max(1, math.ceil(len(counts) / _MOST_POINTS)))
    order = np.argsort(-counts, kind="stable")[shown]
    spread = np.random.default_rng(0).uniform(0.92, 1.08, len(order))  # else rare words lie on one another
    size = 2.2 if len(order) > 1000 else 4
    axes.plot(place[order] * spread, distance[order], ".", ms=size, color=_PALE, alpha=0.7, mew=0)
    most = int(counts.max())
    bins = [each for each in report.content["movement"]["by_count"] if each["high"]]
    middle = [math.sqrt(each["low"] * min(each["high"], most)) for each in bins]
    lower, median, upper = np.array([each["distance"] for each in bins], float).reshape(-1, 3).T
    axes.fill_between(middle, lower, upper, color=TRAIN, alpha=0.25, lw=0, label="middle half")
    axes.plot(middle, median, marker="o", ms=4, lw=1.8, color=TRAIN, label="median")
    if (counts == 0).any():  # apart: between 0 and 1 there is nothing
        lower, median, upper = report.content["movement"]["by_count"][0]["distance"]
        axes.plot([0.5, 0.5], [lower, upper], color=TRAIN, alpha=0.25, lw=5, solid_capstyle="butt")
        axes.plot([0.5], [median], "o", ms=4, color=TRAIN)
    axes.set_xscale("log")
    _ticks(axes, counts)
    top = float(np.quantile(distance, 0.999)) or float(distance.max())
    axes.set_ylim(-0.03 * top, 1.08 * top)  # a few rows far away would press the others together
    axes.set_xlabel("occurrences in the training text", color=INK)
    axes.set_ylabel("distance (L2)", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")


def _ticks(axes: Axes, counts: np.ndarray) -> None:
    from matplotlib.ticker import NullLocator

    most = int(counts.max(initial=1))
    ticks = [10**power for power in range(len(str(most)))]
    names = [f"{tick:,}" for tick in ticks]
    least = 0.8
    if (counts == 0).any():
        ticks, names, least = [0.5, *ticks], ["0", *names], 0.4
    axes.set_xticks(ticks, names)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(least, most * 1.25)


def _lengths(axes: Axes, report: TableReport) -> None:
    """How long rows are, before and after."""
    before, after = report.norms_before, report.norms_after
    _heading(axes, "Length of rows (L2)")
    same = np.array_equal(before, after)
    both = np.concatenate([before, after])
    # one row far away would squeeze all others into a bar
    low, high = np.quantile(both, (0.001, 0.999))
    room = max(0.02 * (high - low), 1e-3 * max(high, 1e-12))
    edges = np.linspace(max(low - room, 0), high + room, 49)
    drawn = [(after, "before and after alike" if same else "after", TRAIN)]
    if not same:
        drawn.insert(0, (before, "before", GREY))
    for values, name, colour in drawn:
        heights = np.histogram(values, edges)[0]
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(heights, edges, color=colour, lw=1.4, label=name)
    axes.set_ylim(0, None)
    axes.margins(y=0.25)
    axes.set_xlabel("length", color=INK)
    axes.set_ylabel("rows", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")


def _plane(axes: Axes, projection: Mapping[str, Any]) -> None:
    """The projection: where words lie after training, and a line from where they lay before."""
    from matplotlib.collections import LineCollection

    words = projection["words"]
    before = np.array([word["before"] for word in words])
    after = np.array([word["after"] for word in words])
    kept = 100 * sum(projection["explained"])
    moved = bool((before != after).any())
    _heading(
        axes,
        f"The {len(words)} most frequent {'and most moved ' if moved else ''}tokens in two dimensions "
        f"({kept:.0f} % of the variance{' after training' if moved else ''})"
        + ("; lines come from where each lay before" if moved else ""),
    )
    order = np.arange(len(words))
    if moved:
        axes.add_collection(
            LineCollection(list(np.stack([before, after], axis=1)), colors=GRID, lw=0.8, zorder=1)
        )
        order = np.argsort(-np.linalg.norm(after - before, axis=1), kind="stable")
    axes.plot(after[:, 0], after[:, 1], "o", ms=3.2, color=TRAIN, mew=0, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)
    axes.autoscale_view()  # else only when it is drawn
    points = axes.transData.transform(after)
    frame = axes.get_window_extent()
    measure = _ruler(axes, 7.5)
    pixels = axes.figure.dpi / 72  # of a point
    gap, half = 4 * pixels, 5 * pixels
    # what no label may lie over: left, bottom, right and top of points and of other labels
    taken = [(x - 2, y - 2, x + 2, y + 2) for x, y in points]
    labels = 0
    for place in order:  # the most frequent first, or those that moved most
        at, (x, y), name = after[place], points[place], _cut(words[place]["word"], 18)
        long = measure(name)
        for left in (x + gap, x - gap - long):
            box = (left - 1, y - half, left + long + 1, y + half)
            outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
            if outside or any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                continue
            taken.append(box)
            labels += 1
            axes.annotate(
                name, at, xytext=(4 if left > x else -4, 0), textcoords="offset points", fontsize=7.5,
                color=INK, ha="left" if left > x else "right", va="center", zorder=4, parse_math=False,
            )  # fmt: skip
            break
        if labels == _MOST_LABELS:
            break


def _beside(axes: Axes, height: float, beside: Sequence[Mapping[str, Any]]) -> None:
    """The nearest neighbours of some words, as text."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(height, 0)  # in inches from above

    def write(x: float, y: float, text: str, colour: str = INK, size: float = 8.5) -> None:
        axes.text(x, y, text, fontsize=size, color=colour, va="top", linespacing=1.25, parse_math=False)

    measure, whole = _ruler(axes, 8.5), axes.get_window_extent().width

    def fits(line: str, width: float) -> bool:
        return measure(line) < 0.97 * width * whole

    moved = any(word["distance"] for word in beside)
    write(0, 0.1, "Nearest by cosine", size=10)
    columns = [(0.19, 0.4, "before"), (0.6, 0.4, "after")] if moved else [(0.19, 0.8, "after")]
    for x, _, when in columns:
        write(x, 0.12, f"{when} training" if moved else "the same before and after training", GREY, 9)
    for line, word in enumerate(beside):
        y = 0.42 + 0.36 * line
        write(0, y, _cut(word["word"], 20), TRAIN)
        said = f"{word['count']:,} times" + (f", moved {word['distance']:.2g}" if word["distance"] else "")
        write(0, y + 0.15, said, GREY, 7)
        for x, width, when in columns:
            names = [_cut(one["word"], 18) for one in word[when]]
            write(x, y, _two_lines(names, functools.partial(fits, width=width)))


def _two_lines(names: Sequence[str], fits: Callable[[str], bool]) -> str:
    """Names with commas, on two lines at the most; what does not fit on them is left out."""
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if fits(longer):
            lines[-1] = longer
        elif len(lines) == 2:
            break
        else:
            lines = [f"{lines[0]},", name]
    return "\n".join(lines)


def _ruler(axes: Axes, size: float) -> Callable[[str], float]:
    """What measures a line of text of that size, in pixels."""
    from matplotlib.font_manager import FontProperties

    renderer: Any = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    font = FontProperties(size=size)
    return lambda line: renderer.get_text_width_height_descent(line, font, False)[0]


def _say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=GREY)


@contextlib.contextmanager
def drawing(path: Path, inches: tuple[float, float], fitted: bool = True) -> Iterator[Figure]:
    """Give a figure; when the block ends, it is written to ``path`` in one step.

    ``fitted`` looks for room for all that is written beside the axes, which takes a drawing of its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    figure = Figure(figsize=inches, dpi=144, layout="constrained" if fitted else None, facecolor="white")
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

    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(label, color=INK)
    room = max(0.5, 0.03 * last)
    axes.set_xlim(1 - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#999999")


def _short(name: object) -> str:
    text = " ".join(str(name).split()) or "(empty)"
    text = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")  # a pair of $ would be read as a formula


def _cut(name: str, longest: int) -> str:
    """A token as it can be read: what is invisible as its code, long ones cut."""
    if not name.isprintable() or name != name.strip() or not name:
        name = repr(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
