"""Sweeps over the stub, made without Hydra."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from textbed.schema import SweepConfig, defaults
from textbed.sweeps.devices import Slot
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.queue import Ending, Row
from textbed.sweeps.space import Dimension
from textbed.sweeps.trial import Trial
from textbed.sweeps.worker import Worker, queues

STUB = Path(__file__).parent / "stub.py"


class Quiet:
    """Listens, and keeps what it heard."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def began(self, trial: Trial) -> None:
        self.lines.append(f"{trial.job.number} begins")

    def ended(self, trial: Trial, ending: Ending, again: bool) -> None:
        self.lines.append(f"{trial.job.number} {ending.outcome}{' again' if again else ''}")

    def said(self, line: str) -> None:
        self.lines.append(line)

    def tick(self, worker: Worker) -> None: ...


def plan(folder: Path, *space: Dimension, fixed: tuple[str, ...] = (), **settings: Any) -> Plan:
    (folder / "runs").mkdir(exist_ok=True)
    return Plan(
        name="stub",
        program=[sys.executable, "-S", str(STUB)],  # -S: starts in a third of the time
        cwd=str(folder),
        fixed=[f"paths.runs={folder}/runs", *fixed],
        space=space,
        objectives=settings.pop("objectives", ["val/accuracy"]),
        seed=0,
        settings={**defaults(SweepConfig), **settings},
    )


def slots(count: int = 2) -> list[Slot]:
    return [Slot(f"gpu {number}", 1, {"CUDA_VISIBLE_DEVICES": str(number)}) for number in range(count)]


def choice(key: str, *values: object, **more: Any) -> Dimension:
    return Dimension(key, tuple(str(value) for value in values), **more)


def run(what: Plan, folder: Path, count: int = 2) -> tuple[SweepFolder, Quiet]:
    """Go through a sweep, new or stopped."""
    sweep = SweepFolder.create(folder / "sweep", what)
    begin(sweep)
    heard = Quiet()
    Worker(sweep, slots(count), heard).run()
    return sweep, heard


def rows(sweep: SweepFolder, queue: int = 0) -> list[Row]:
    return list(queues(sweep))[queue].rows()


def calls(folder: Path) -> list[dict[str, Any]]:
    """Every start of a trial, in order."""
    return [json.loads(line) for line in (folder / "runs" / "calls.txt").read_text().splitlines()]
