"""What a person sees of a sweep: on a terminal a table that lives, elsewhere a line for each event."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from textbed.runs.comparison import is_lower_better
from textbed.runs.registry import shown
from textbed.runs.summary import console, duration, text_table
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.queue import FINISHED, PRUNED, Ending, Queue, Row
from textbed.sweeps.trial import Trial
from textbed.sweeps.worker import Worker

_DRAW_SECONDS = 0.5
_MOST_ENDED = 12
"""Trials that have ended which the table shows, the last ones."""


class Screen:
    """Tells of a sweep's course on stderr; standard output belongs to the run folders."""

    def __init__(self, folder: SweepFolder, file: IO[str] | None = None) -> None:
        self.folder = folder
        self._out: Console = console(file)
        self._live: Live | None = None
        self._next = 0.0
        self._last: tuple[Worker, Queue] | None = None
        """What the table was last drawn of."""
        self._began = time.monotonic()

    def __enter__(self) -> Screen:
        if self._out.is_terminal:
            # drawn by hand: a thread that draws would be copied into every process that is forked
            self._live = Live(console=self._out, auto_refresh=False, transient=False)
            self._live.start()
        self.said(f"sweep: {self.folder.path}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            if self._last is not None:  # as it was left
                self._live.update(self._table(*self._last), refresh=True)
            self._live.stop()

    # -- events ----------------------------------------------------------------------------------------------

    def said(self, line: str) -> None:
        self._out.print(escape(line), soft_wrap=True)

    def began(self, trial: Trial) -> None:
        if self._live is None:
            again = f", attempt {trial.job.attempt}" if trial.job.attempt > 1 else ""
            self.said(f"{_name(trial)} begins on {trial.slot.name}{again}")

    def ended(self, trial: Trial, ending: Ending, again: bool) -> None:
        line = f"{_name(trial)} {ending.outcome} after {duration(trial.seconds)}"
        if ending.values:
            figures = zip(self.folder.plan.objectives, ending.values, strict=True)
            line += ": " + ", ".join(f"{name} {shown(value)}" for name, value in figures)
            line += " (best so far)" if self._is_best(trial, ending.values[0]) else ""
        elif ending.error:
            line += f": {ending.error}"
        if again:
            line += "; once more"
        if self._live is None or ending.outcome not in (FINISHED, PRUNED):
            self.said(line)
        self._next = 0.0

    def tick(self, worker: Worker) -> None:
        if self._live is not None and time.monotonic() >= self._next and worker.queue is not None:
            self._last = (worker, worker.queue)
            self._live.update(self._table(*self._last), refresh=True)
            self._next = time.monotonic() + _DRAW_SECONDS

    def _is_best(self, trial: Trial, value: float) -> bool:
        queue = trial.job.queue
        others = [row.values[0] for row in queue.rows() if row.values and row.number != trial.job.number]
        lower = is_lower_better(self.folder.plan.objectives[0])
        return queue.name == "trials" and all(value < other if lower else value > other for other in others)

    # -- the table -------------------------------------------------------------------------------------------

    def _table(self, worker: Worker, queue: Queue) -> Group:
        rows = queue.rows()
        here = {trial.job.number: trial for trial in worker.running.values()}
        return Group(
            trials_table(
                self.folder.plan.objectives,
                [row for row in rows if row.status == "running"],
                [row for row in rows if row.status not in ("running", "waiting")][-_MOST_ENDED:],
                {number: trial.seconds for number, trial in here.items()},
            ),
            self._stand(worker, queue, rows),
        )

    def _stand(self, worker: Worker, queue: Queue, rows: list[Row]) -> str:
        counts = Counter(row.status for row in rows)
        failed = sum(row.failed for row in rows)
        parts = [f"{queue.name}: {counts['running']} running", f"{counts[FINISHED]} finished"]
        parts += [f"{counts[PRUNED]} pruned"] if counts[PRUNED] else []
        parts += [f"{failed} failed"] if failed else []
        left = queue.left(rows)
        if left is not None:
            parts.append(f"{left} to go")
        best = queue.best(rows)
        if best is not None:
            parts.append(f"best {shown(best.value)} ({best.name})")
        parts.append(f"{duration(time.monotonic() - self._began)} so far")
        rest, limit = self._rest(worker, rows, left), queue.seconds_left()
        if limit is not None and (rest is None or limit < rest):
            parts.append(f"none begins after {duration(limit)}" if limit else "none begins any more")
        elif rest is not None:
            parts.append(f"about {duration(rest)} left")
        return escape(", ".join(parts))

    @staticmethod
    def _rest(worker: Worker, rows: Sequence[Row], left: int | None) -> float | None:
        """Seconds that the trials which are still to end may take; None where nothing tells."""
        took = [row.seconds for row in rows if row.seconds and row.status in (FINISHED, PRUNED)]
        if not left or not took:
            return None
        mean = statistics.fmean(took)
        running = sum(row.status == "running" for row in rows)
        done = sum(min(trial.seconds, mean) for trial in worker.running.values())  # of those that run here
        return (mean * left - done) / max(len(worker.slots), running)


def trials_table(
    objectives: list[str], running: list[Row], ended: list[Row], seconds: dict[int, float]
) -> Table:
    """Trials as a table: those that have ended, then those at work."""
    table = text_table(None, "trial", "", "device", *objectives, "status", "time")
    for column in table.columns[1:3]:
        column.justify = "left"
    for row in (*ended, *running):
        values: list[Any] = [shown(value) for value in row.values] or ["–"] * len(objectives)
        took = row.seconds if row.status != "running" else seconds.get(row.number)
        table.add_row(
            str(row.number),
            escape(row.name),
            escape(str(row.start.get("device", "–"))),
            *values,
            escape(row.status),
            "–" if took is None else duration(took),
        )
    return table


def _name(trial: Trial) -> str:
    which = "" if trial.job.queue.name == "trials" else f"{trial.job.queue.name} "
    point = trial.job.overrides[len(trial.job.queue.fixed) :]
    return f"{which}trial {trial.job.number} ({' '.join(point) or 'as it is'})"
