"""A queue of trials, which is an Optuna study: workers claim trials, and say how they ended.

A trial is one row however often it was begun: what a worker leaves unfinished waits again under the same
number. A trial is claimed, and its end written, by one worker at a time (``SweepFolder.lock``). Nothing here
imports torch.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from textbed.runs.comparison import is_lower_better
from textbed.runs.folder import now
from textbed.runs.registry import REPEATS
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.presence import SignOfLife, host_of
from textbed.sweeps.space import Space, name_of, overrides, points, size, suggest

if TYPE_CHECKING:
    import optuna

FINISHED, PRUNED = "finished", "pruned"
TESTED = "test/accuracy"
_TOLD = (FINISHED, PRUNED)
_INSTEAD_OF = "instead_of"
MOST_LOST = 3
"""A trial whose worker died so often is not taken up again: it may be what kills them."""


@dataclass(frozen=True)
class Ending:
    """How a trial ended, or one attempt at it."""

    outcome: str
    """finished, pruned, failed, killed, memory, timeout or nan."""
    values: Sequence[float] = ()
    """The objectives; empty where there are none."""
    tested: float | None = None
    """The figure of the test set (``TESTED``), where the run has one."""
    error: str | None = None
    """One line."""
    last_lines: str = ""


@dataclass
class Job:
    """A trial that this worker has claimed."""

    queue: Queue
    number: int
    overrides: list[str]
    trial: optuna.Trial
    attempt: int
    failures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What is on record of a trial."""

    queue: str
    number: int
    status: str
    """waiting, running, or an outcome."""
    point: dict[str, str]
    values: tuple[float, ...]
    start: Mapping[str, Any]
    """worker, device, command, attempt and time of the last beginning."""
    error: str | None
    last_lines: str
    failures: Sequence[Mapping[str, Any]]
    seconds: float | None
    tested: float | None = None
    same_as: int | None = None
    """The trial with the same point whose end this one was given, without being run."""

    @property
    def name(self) -> str:
        return name_of(self.point)

    @property
    def host(self) -> str:
        """Where it ran last."""
        return host_of(self.start.get("worker", ""))

    @property
    def failed(self) -> bool:
        """Whether it ended without being done or given up for falling behind."""
        return self.status not in (*_TOLD, "waiting", "running")


@dataclass(frozen=True)
class Best:
    """What won, or wins so far."""

    point: dict[str, str]
    """Without seed and fold."""
    value: float
    runs: int

    @property
    def name(self) -> str:
        return name_of(self.point)


class Queue:
    """Trials of one kind: the sweep's own (``trials``), or the winner's over fresh seeds (``refit``).

    Args:
        folder: the sweep.
        name: that of the study.
        fixed: overrides that all of its trials have.
        space: what they differ in.
        draws: whether further trials are drawn by the sampler, up to the limits; else only what was put in.
    """

    def __init__(
        self, folder: SweepFolder, name: str, fixed: Sequence[str], space: Space, draws: bool = False
    ) -> None:
        import optuna

        self.folder, self.name, self.fixed, self.space, self.draws = folder, name, list(fixed), space, draws
        self.settings = folder.plan.settings
        self.study = optuna.create_study(
            storage=folder.storage,
            study_name=folder.study_name(name),
            directions=["minimize" if is_lower_better(one) else "maximize" for one in folder.plan.objectives],
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
            pruner=_pruner(self.settings),
        )
        self._study_id = folder.storage.get_study_id_from_name(folder.study_name(name))
        (folder.path / name).mkdir(exist_ok=True)

    # -- what is on record -----------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Of all trials; one that was put in again stands for the one that had failed."""
        trials = self.study.get_trials(deepcopy=False)
        gone = {trial.user_attrs.get(_INSTEAD_OF) for trial in trials}
        return [self._row(trial) for trial in trials if trial.number not in gone]

    def _row(self, trial: optuna.trial.FrozenTrial) -> Row:
        attributes = trial.user_attrs
        end = attributes.get("end", {})
        state = trial.state.name.lower()
        return Row(
            self.name,
            trial.number,
            state if state in ("waiting", "running") else end.get("outcome", "failed"),
            dict(attributes.get("point", {})),
            tuple(trial.values or ()) if end.get("outcome") == FINISHED else (),
            attributes.get("start", {}),
            end.get("error"),
            end.get("last_lines", ""),
            attributes.get("failures", ()),
            end.get("seconds"),
            end.get("tested"),
            end.get("same_as"),
        )

    # -- putting in ------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Put in every point of the space that is not there yet."""
        with self.folder.lock():
            there = {tuple(row.point.items()) for row in self.rows()}
            for point in points(self.space):
                if tuple(point.items()) not in there:
                    self.study.enqueue_trial(point, user_attrs={"point": point})

    def put_back_failed(self) -> None:
        """Let what failed less often than ``sweep.retries`` says by now wait again.

        What has ended in a study has ended for good, so that another trial takes its place, with its failures
        and its run folder.
        """
        with self.folder.lock():
            for row in self.rows():
                if not row.failed or len(row.failures) >= self.settings["retries"]:
                    continue
                attempt = row.start.get("attempt", 1)
                failure = _failure(attempt, row.status, row.error, row.last_lines)
                self.study.enqueue_trial(
                    self._now(row.number).params,
                    user_attrs={
                        "point": row.point,
                        "failures": [*row.failures, failure],
                        "start": {"attempt": attempt},
                        _INSTEAD_OF: row.number,
                    },
                )
                run = self.folder.link(self.name, row.number)
                if run.exists():
                    number = self.study.get_trials(deepcopy=False)[-1].number
                    self.folder.link(self.name, number).symlink_to(run.resolve())

    # -- taking out ------------------------------------------------------------------------------------------

    def claim(self, worker: SignOfLife, device: str) -> Job | None:
        """The next trial, now this worker's; None where there is none at present."""
        with self.folder.lock():
            while True:
                rows = self.rows()
                if not self._may_begin(rows):
                    return None
                number = len(self.study.get_trials(deepcopy=False))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of Optuna, about itself
                    # seeded by its number, a trial is the same whichever worker draws it
                    self.study.sampler = _sampler(self.settings, number)
                    trial = self.study.ask()
                    point = suggest(self.space, trial)
                twin = next((row for row in rows if row.point == point and row.status in _TOLD), None)
                if twin is None or not self.draws:
                    break
                self._end_as(trial, point, twin)  # the same command gives the same figures
            start = trial.user_attrs.get("start", {})
            job = Job(
                self,
                trial.number,
                [*self.fixed, *overrides(point)],
                trial,
                int(start.get("attempt", 0)) + 1,
                list(trial.user_attrs.get("failures", ())),
            )
            if "point" not in trial.user_attrs:
                trial.set_user_attr("point", point)
            self.begin(job, worker.id, device, lost=int(start.get("lost", 0)))
        return job

    def to_begin(self) -> float:
        """Trials that may still begin; infinite where only a time limits them."""
        rows = self.rows()
        if not self._may_begin(rows):
            return 0
        waiting = sum(row.status == "waiting" for row in rows)
        most = self._size if self.draws else len(rows)
        return max(min(most, self._limit()) - len(rows) + waiting, 1)

    def _may_begin(self, rows: Sequence[Row]) -> bool:
        """Whether there is a trial to begin, by the limits and what was put in."""
        if any(row.status == "waiting" and row.start for row in rows):
            return True  # it was begun within the limits
        waiting = sum(row.status == "waiting" for row in rows)
        more = waiting or (self.draws and not self._is_exhausted(rows))
        return bool(more) and len(rows) - waiting < self._limit() and self._in_time()

    def _is_exhausted(self, rows: Sequence[Row]) -> bool:
        """Whether every point of a space of choices has been tried."""
        return len({tuple(row.point.items()) for row in rows}) >= self._size

    @functools.cached_property
    def _size(self) -> float:
        """Number of points; infinite where numbers are drawn from an interval."""
        return size(self.space) if all(dimension.choices for dimension in self.space) else math.inf

    def _end_as(self, trial: optuna.Trial, point: Mapping[str, str], twin: Row) -> None:
        trial.set_user_attr("point", point)
        trial.set_user_attr("end", {"outcome": twin.status, "same_as": twin.number, "seconds": 0.0})
        self._tell(trial.number, twin.status, twin.values)

    def begin(self, job: Job, worker: str, device: str, lost: int = 0) -> None:
        """Write down that an attempt begins."""
        start = {"worker": worker, "device": device, "attempt": job.attempt, "lost": lost, "time": now()}
        job.trial.set_user_attr("start", start)

    def _limit(self) -> float:
        most = self.settings["trials"]
        return math.inf if most is None or self.name != "trials" else most

    def _in_time(self) -> bool:
        return self.seconds_left() != 0

    def seconds_left(self) -> float | None:
        """Until no trial begins any more; None where only a number limits them."""
        end = self.study.user_attrs.get("end")
        return None if end is None or self.name != "trials" else max(end - time.time(), 0.0)

    def limit_hours(self, hours: float | None) -> None:
        """From now on count these hours, after which no trial begins."""
        self.study.set_user_attr("end", None if hours is None else time.time() + hours * 3600)

    # -- while one runs --------------------------------------------------------------------------------------

    def report(self, job: Job, figures: Iterable[tuple[int, float]], ask: bool = True) -> bool:
        """Write down what validations of a trial gave; whether the pruner gives the trial up.

        The pruner is asked about each by itself, up to the first at which it gives up: which rungs a trial
        reached, and with what, must not hang on how many validations there were between two looks.

        Args:
            figures: the number of a validation, from 1, and the first objective's value. Those that are on
                record, of an attempt before, may be among them.
            ask: whether the pruner is asked; not about what was told to end.
        """
        with self.folder.lock():
            behind = False
            if not self.is_mine(job):
                return False
            known = self._now(job.number).intermediate_values
            for step, value in figures:
                if step not in known and math.isfinite(value):
                    job.trial.report(value, step)
                    behind = behind or (ask and job.trial.should_prune())
        return behind

    # -- ending ----------------------------------------------------------------------------------------------

    def end(self, job: Job, ending: Ending, seconds: float) -> bool:
        """Write down how a trial ended; False where it had been taken away meanwhile."""
        with self.folder.lock():
            if not self.is_mine(job):
                return False
            end = {
                "outcome": ending.outcome,
                "error": ending.error,
                "last_lines": ending.last_lines if ending.outcome not in (FINISHED, PRUNED) else "",
                "seconds": round(seconds, 3),
                "tested": ending.tested,
            }
            job.trial.set_user_attr("end", end)
            self._tell(job.number, ending.outcome, ending.values)
        return True

    def again(self, job: Job, ending: Ending, worker: str, device: str) -> bool:
        """Write down that an attempt failed and another begins; False where it had been taken away."""
        with self.folder.lock():
            if not self.is_mine(job):
                return False
            job.failures.append(_failure(job.attempt, ending.outcome, ending.error, ending.last_lines))
            job.trial.set_user_attr("failures", job.failures)
            job.attempt += 1
            self.begin(job, worker, device)
        return True

    def _tell(self, number: int, outcome: str, values: Sequence[float]) -> None:
        import optuna

        if outcome == FINISHED and values:
            self.study.tell(number, list(values))
        else:
            states = optuna.trial.TrialState
            self.study.tell(number, state=states.PRUNED if outcome == PRUNED else states.FAIL)

    def give_back(self, job: Job) -> None:
        """Let a trial that was stopped wait again, for this worker or another."""
        with self.folder.lock():
            if self.is_mine(job):
                self._wait_again(job.number)

    def take_back(self, worker: SignOfLife, is_busy: Callable[[int], bool]) -> list[int]:
        """Let trials of workers that are dead wait again.

        Args:
            is_busy: whether a trial's process is still there, by its number.

        Returns:
            Their numbers.
        """
        import optuna

        taken = []
        running = optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(deepcopy=False, states=(running,)):
            if not self._is_lost(trial, worker, is_busy):
                continue
            with self.folder.lock():
                trial = self._now(trial.number)
                if trial.state is not running or not self._is_lost(trial, worker, is_busy):
                    continue
                start = trial.user_attrs.get("start", {})
                lost = int(start.get("lost", 0)) + 1
                storage, key = self.folder.storage, self._key(trial.number)
                storage.set_trial_user_attr(key, "start", {**start, "lost": lost})
                if lost > MOST_LOST:
                    line = f"{lost} workers ended while they were at it"
                    storage.set_trial_user_attr(key, "end", {"outcome": "killed", "error": line})
                    self._tell(trial.number, "killed", ())
                else:
                    self._wait_again(trial.number)
                taken.append(trial.number)
        return taken

    def _is_lost(
        self, trial: optuna.trial.FrozenTrial, worker: SignOfLife, is_busy: Callable[[int], bool]
    ) -> bool:
        owner = trial.user_attrs.get("start", {}).get("worker", "")
        return not worker.is_alive(owner) and not is_busy(trial.number)

    def is_mine(self, job: Job) -> bool:
        """Whether no other worker has taken it up."""
        trial = self._now(job.number)
        start = trial.user_attrs.get("start", {})
        mine = job.trial.user_attrs.get("start", {})
        return trial.state.name == "RUNNING" and start.get("worker") == mine.get("worker")

    def _now(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _wait_again(self, number: int) -> None:
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        self.folder.storage.set_trial_state_values(self._key(number), waiting)

    def _key(self, number: int) -> int:
        return self.folder.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    # -- where it stands -------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to come."""
        rows = self.rows()
        return not any(row.status == "running" for row in rows) and not self._may_begin(rows)

    def left(self, rows: Sequence[Row]) -> int | None:
        """Trials that are still to end; None where a number is not known."""
        ended = sum(row.status not in ("waiting", "running") for row in rows)
        limit = self._limit()
        if self.draws:
            return None if math.isinf(limit) else max(int(limit) - ended, 0)
        return int(min(len(rows), limit)) - ended

    def best(self, rows: Sequence[Row] | None = None) -> Best | None:
        """The point with the best first objective, the mean over seeds and folds where there are several."""
        rows = self.rows() if rows is None else rows
        groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
        for row in rows:
            if row.values and row.same_as is None:
                point = tuple(one for one in row.point.items() if one[0] not in REPEATS)
                groups.setdefault(point, []).append(row.values[0])
        found = [Best(dict(point), fmean(values), len(values)) for point, values in groups.items()]
        sign = 1 if is_lower_better(self.folder.plan.objectives[0]) else -1
        return min(found, key=lambda one: sign * one.value, default=None)


def _failure(attempt: int, outcome: str, error: str | None, last_lines: str) -> dict[str, Any]:
    """How an attempt failed, as it is kept with its trial."""
    return {"outcome": outcome, "error": error, "last_lines": last_lines, "attempt": attempt}


def _sampler(settings: Mapping[str, Any], number: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    seed = (settings["seed"] * 1_000_003 + number) % 2**32
    startup = settings["startup_trials"]
    if settings["sampler"] == "tpe":
        # constant_liar: several trials run at once, and should not all be drawn at the same place
        return samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=seed)
    if settings["sampler"] == "cmaes":
        return samplers.CmaEsSampler(n_startup_trials=startup, warn_independent_sampling=False, seed=seed)
    return samplers.RandomSampler(seed=seed)


def _pruner(settings: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    from optuna import pruners

    name = settings["pruner"]
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=settings["startup_trials"])
    if name == "asha":
        # of each rung (the 1st validation, the 3rd, the 9th ...) the best third go on
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if name == "hyperband":
        return pruners.HyperbandPruner()
    return pruners.NopPruner()
