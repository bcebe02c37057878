"""A run of k folds: what its folds gave, as one record. Nothing here imports torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from textbed.errors import UserError
from textbed.runs.folder import RunFolder, is_rank_zero, replacing

SPREAD = "sd/"
"""In front of the name of a figure: its standard deviation over the folds (n - 1)."""


def figures_of(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a run from those of its folds.

    Seconds are summed, of memory it is the peak, and all else is the mean over the folds that have a number
    for it, with its spread under ``SPREAD`` where folds can differ in it. A class may be absent from a fold;
    a figure of all documents that is no number in one of them, as after a loss of NaN, is none of the run.
    """
    figures: dict[str, Any] = {}
    spreads: dict[str, float] = {}
    for name in dict.fromkeys(name for fold in folds for name in fold):
        values = [fold[name] for fold in folds if isinstance(fold.get(name), int | float)]
        of_all = name.count("/") == 1  # test/loss; of a class test/f1/neg
        if not values or (of_all and any(name in fold and fold[name] is None for fold in folds)):
            figures[name] = None
        elif name.startswith("seconds/"):
            figures[name] = sum(values)
        elif name.startswith("memory/"):
            figures[name] = max(values)
        else:
            same = len(set(values)) == 1
            figures[name] = values[0] if same else statistics.fmean(values)
            if name.partition("/")[0] in ("test", "val") and len(values) > 1:
                spreads[f"{SPREAD}{name}"] = statistics.stdev(values)
    return {**figures, **spreads, "folds": len(folds)}


def gather(folder: RunFolder, count: int) -> dict[str, Any]:
    """Write what the ``count`` folds gave into the run's own folder: figures, and what each document got from
    the fold that did not train on it.

    Returns:
        The figures.

    Raises:
        UserError: a fold lacks its figures or predictions, or two of them tested one document.
    """
    folds = [folder.fold(number) for number in range(count)]
    figures = figures_of([fold.read_metrics() for fold in folds])
    tested = [fold.predictions / "test.parquet" for fold in folds]
    if is_rank_zero() and any(path.is_file() for path in tested):
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        for path in tested:
            if not path.is_file():
                raise UserError(f"{path} is missing: the predictions of its fold cannot be put beside others")
        table = pa.concat_tables(map(pq.read_table, tested)).sort_by("row")
        if pc.count_distinct(table["row"]).as_py() < len(table):
            raise UserError(f"{folder}: folds tested the same documents; their data is not of one run")
        with replacing(folder.predictions / "test.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
    folder.write_metrics(figures)
    return figures
