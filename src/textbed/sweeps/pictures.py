"""Pictures of a sweep: which keys matter (importances.png), and what each value gave (slices.png)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textbed.runs.pictures import GREY, GRID, INK, TRAIN, VALIDATION, drawing
from textbed.sweeps.queue import Row
from textbed.sweeps.space import Dimension, Space

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes

_LEAST_TRIALS = 4
_COLUMNS = 4
_MOST_SLICES = 24


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each key in what sets the better half of trials apart (PED-ANOVA, Watanabe et al. 2023,
    arXiv:2304.10255), for the first objective; empty of fewer than four finished trials."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE,)
    if len(study.get_trials(deepcopy=False, states=states)) < _LEAST_TRIALS:
        return {}
    target = None
    if len(study.directions) > 1:  # of a target of its own Optuna takes the low values for the good ones
        sign = 1 if study.directions[0] is optuna.study.StudyDirection.MINIMIZE else -1
        target = lambda trial: sign * trial.values[0]  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # the usual best tenth is two of twenty trials: of these, any key may seem to matter
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        except (RuntimeError, ValueError):  # all trials gave the same, or have no key in common
            return {}
    return {key: share for key, share in found.items() if math.isfinite(share)}


def draw_importances(shares: Mapping[str, float], path: Path, title: str) -> bool:
    """Draw the shares as bars, the largest on top; False where there are none.

    Args:
        shares: as :func:`importances` gives them.
        path: the PNG file.
    """
    if not shares:
        return False
    names = sorted(shares, key=lambda key: shares[key])
    with drawing(path, (7.0, 1.1 + 0.32 * len(names))) as picture:
        axes = picture.subplots()
        bars = axes.barh(names, [shares[name] for name in names], color=TRAIN, height=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=4, color=INK, fontsize=9)
        axes.set_xlim(0, 1.1 * max(shares.values()) or 1)
        _dress(axes)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share", color=INK)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
    return True


def draw_slices(space: Space, rows: Sequence[Row], objective: str, path: Path, title: str) -> bool:
    """Draw the first objective over each key's values, a dot for each trial; False where there is nothing.

    Args:
        space: the sweep's.
        rows: its trials; those that finished are drawn.
        objective: the figure's name.
        path: the PNG file.
    """
    done = [row for row in rows if row.values]
    shown = [one for one in space if len({row.point.get(one.key) for row in done} - {None}) > 1]
    shown = shown[:_MOST_SLICES]
    if not shown:
        return False
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    with drawing(path, (3.2 * columns + 0.6, 2.9 * lines + 0.5)) as picture:
        grid = picture.subplots(lines, columns, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(shown):
                axes.set_visible(False)
                continue
            _slice(axes, shown[place], done)
            axes.set_ylabel(objective if place % columns == 0 else "", color=INK)
        lined = any(one.choices for one in shown)
        title += "; lines are means" if lined else ""
        picture.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", parse_math=False)
    return True


def _slice(axes: Axes, dimension: Dimension, done: Sequence[Row]) -> None:
    there = [(row.point[dimension.key], row.values[0]) for row in done if dimension.key in row.point]
    values = [value for _, value in there]
    if dimension.choices:
        names = [one for one in dimension.choices if any(one == given for given, _ in there)]
        places = [float(names.index(given)) for given, _ in there]
        for number, name in enumerate(names):
            mean = [value for given, value in there if given == name]
            axes.hlines(sum(mean) / len(mean), number - 0.3, number + 0.3, color=VALIDATION, lw=1.6, zorder=2)
        upright = sum(map(len, names)) > 24
        axes.set_xticks(range(len(names)), [name[:20] for name in names], rotation=90 if upright else 0)
        axes.set_xlim(-0.6, len(names) - 0.4)
    else:
        places = [float(given) for given, _ in there]
        if dimension.log:
            axes.set_xscale("log")
    axes.scatter(places, values, s=18, color=TRAIN, alpha=0.65, linewidths=0, zorder=3)
    axes.set_xlabel(dimension.key, color=INK)
    _dress(axes)


def _dress(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, which="both", labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
