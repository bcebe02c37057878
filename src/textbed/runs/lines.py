"""Reading metrics.jsonl, the record of a run, without importing what writes it (torch, seconds)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from textbed.errors import UserError

PLACES = ("step", "epoch", "time")
"""Where and when, in every line; the rest are figures."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record as they stand, half a last one left out.

    Raises:
        UserError: a line that is not JSON.
    """
    # split at "\n" alone: splitlines() also splits at characters that may stand inside a name
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line end behind it: the process was killed while it wrote
                return
            raise UserError(f"{path}, line {number}: not JSON ({error}); delete the line to go on") from error
        if isinstance(content, dict):
            yield content


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a record: the lines of metrics.jsonl in order, null figures as NaN; half a last line is left out.

    Args:
        path: the file, or the run folder.

    Raises:
        UserError: there is no such file, or a line that is not JSON.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: nothing was logged there")
    return [
        {key: math.nan if value is None and key not in PLACES else value for key, value in line.items()}
        for line in read_lines(path)
    ]


def by_epoch(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The last value of each figure in each epoch: epoch (from 0) -> name -> value."""
    epochs: dict[int, dict[str, float]] = {}
    for line in lines:
        if line.get("epoch") is not None:
            figures = {key: value for key, value in line.items() if key not in PLACES}
            epochs.setdefault(int(line["epoch"]), {}).update(figures)
    return epochs
