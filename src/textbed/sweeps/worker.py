"""A worker: fills the slots of one machine with trials of a sweep until none is left.

One thread looks at all of its processes in turn, so that nothing has to be kept apart. Any number of workers
may be at one sweep: what is left to do, and by whom, stands in the study alone. Nothing here imports torch.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Protocol

from textbed.runs.folder import RunFolder
from textbed.sweeps.devices import Slot
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.queue import FINISHED, PRUNED, Ending, Job, Queue
from textbed.sweeps.space import Dimension, overrides
from textbed.sweeps.trial import Starter, Trial, start_plainly

_LOOK_SECONDS = 0.25
"""Time between two looks at everything; the end of a trial is looked at as it happens."""
_POLL_SECONDS = 0.02
"""The same where the system does not tell of the end of a process."""
_ASK_SECONDS = 1.0
"""Time between two looks for trials, where the last found none: those of others may come free."""
_LOST_SECONDS = 5.0


class Listener(Protocol):
    """What is told of the course of things."""

    def began(self, trial: Trial) -> None: ...
    def ended(self, trial: Trial, ending: Ending, again: bool) -> None: ...
    def said(self, line: str) -> None: ...
    def tick(self, worker: Worker) -> None: ...


class Worker:
    """Runs trials of ``folder`` in ``slots``.

    Args:
        start: what starts a trial's process.
    """

    def __init__(
        self, folder: SweepFolder, slots: Sequence[Slot], listener: Listener, start: Starter = start_plainly
    ) -> None:
        self.folder, self.slots, self.listener, self._start = folder, list(slots), listener, start
        self.running: dict[int, Trial] = {}
        """By the slot's place in ``slots``."""
        self.queue: Queue | None = None
        self._presence = folder.presence()
        self._interrupts = _Interrupts()
        self._has_said_import = False
        self._next_ask = self._next_lost = 0.0

    def run(self) -> None:
        """Work until the sweep is over.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when all trials have ended and wait to be gone on
                with.
        """
        with self._presence, self._interrupts:
            try:
                for queue in queues(self.folder):
                    self.queue, self._next_ask = queue, 0.0
                    self._work(queue)
            except BaseException:
                self._stop()
                raise

    def _work(self, queue: Queue) -> None:
        while True:
            if not self._presence.beat():
                self._leave_to_others(queue)
            self._look(queue)
            self._take_back(queue)
            nothing = self._fill(queue)
            self.listener.tick(self)
            if nothing and not self.running and queue.is_over():
                return
            self._wait()

    def _leave_to_others(self, queue: Queue) -> None:
        """End the trials that others took up while this worker was not heard of."""
        for trial in self.running.values():
            if not queue.is_mine(trial.job):
                self.listener.said(f"trial {trial.job.number}: another worker has taken it up")
                trial.stop("stop")

    def _wait(self) -> None:
        """Until a trial ends, or it is time to look at everything."""
        sentinels = {one for trial in self.running.values() for one in trial.sentinels}
        watched = [one for one in sentinels if one is not None]
        seconds = _LOOK_SECONDS if len(watched) == len(sentinels) else _POLL_SECONDS
        with self._interrupts.heeded():
            if watched:
                wait(watched, seconds)
            else:
                time.sleep(seconds)

    def _look(self, queue: Queue) -> None:
        for place, trial in list(self.running.items()):
            ending = trial.poll()
            if ending is not None:
                del self.running[place]
                self._next_ask = 0.0
                self._end(place, trial, ending)

    def _end(self, place: int, trial: Trial, ending: Ending) -> None:
        job, queue = trial.job, trial.job.queue
        retries = self.folder.plan.settings["retries"]
        if ending.outcome in (FINISHED, PRUNED) or len(job.failures) >= retries:
            if queue.end(job, ending, trial.seconds):
                self.listener.ended(trial, ending, False)
        elif queue.again(job, ending, self._presence.id, self.slots[place].name):
            self.listener.ended(trial, ending, True)
            self._begin(place, job)

    def _fill(self, queue: Queue) -> bool:
        """Begin a trial in every free slot; whether it found that there is none at present."""
        if time.monotonic() < self._next_ask:
            return False
        for place, slot in enumerate(self.slots):
            if place in self.running:
                continue
            if queue.to_begin() and not self._start.is_ready():
                if not self._has_said_import:
                    self.listener.said("importing, once for all trials")
                self._has_said_import = True
                return False
            job = queue.claim(self._presence, slot.name)
            if job is None:
                self._next_ask = time.monotonic() + _ASK_SECONDS
                return True
            self._begin(place, job)
            self._start.expect(int(min(queue.to_begin(), len(self.slots))))
        return False

    def _begin(self, place: int, job: Job) -> None:
        trial = Trial(self.folder, job, self.slots[place], self._start)
        self.running[place] = trial
        job.trial.set_user_attr("command", trial.command)
        self.listener.began(trial)

    def _take_back(self, queue: Queue) -> None:
        if time.monotonic() < self._next_lost:
            return
        self._next_lost = time.monotonic() + _LOST_SECONDS
        for number in queue.take_back(self._presence, lambda number: _is_busy(self.folder, queue, number)):
            self._next_ask = 0.0
            self.listener.said(f"trial {number}: its worker is gone; it is taken up again")

    def _stop(self) -> None:
        """End all trials, and let them wait to be gone on with; a second Ctrl-C kills them."""
        if not self.running:
            return
        self.listener.said(f"stopping {len(self.running)} trials; Ctrl-C again kills them")
        for trial in self.running.values():
            trial.stop("stop")
        while self.running:
            try:
                for place, trial in list(self.running.items()):
                    ending = trial.poll()
                    if ending is None:
                        continue
                    del self.running[place]
                    if ending.outcome == FINISHED:  # just before
                        trial.job.queue.end(trial.job, ending, trial.seconds)
                        self.listener.ended(trial, ending, False)
                    else:
                        trial.job.queue.give_back(trial.job)
                self.listener.tick(self)
                self._wait()
            except KeyboardInterrupt:
                for trial in self.running.values():
                    trial.kill()


def queues(folder: SweepFolder) -> Iterator[Queue]:
    """The sweep's trials, and after them the winner's runs over fresh seeds, where some are asked for.

    Every worker comes by the same: the first that gets so far puts the runs in.
    """
    plan = folder.plan
    trials = Queue(folder, "trials", trial_overrides(plan), plan.space, draws=not plan.grid)
    yield trials
    refitted = refit(folder, trials)
    if refitted is not None:
        yield refitted


def stages(folder: SweepFolder) -> list[Queue]:
    """Those of the queues that there are, to look at: nothing is put in."""
    names = [study.study_name for study in folder.storage.get_all_studies()]
    return [Queue(folder, name, (), ()) for name in ("trials", "refit") if folder.study_name(name) in names]


def trial_overrides(plan: Plan) -> list[str]:
    """What all trials have; those of a search do not see the test set."""
    return [*plan.fixed, *(["test=false"] if plan.search else [])]


def refit(folder: SweepFolder, trials: Queue) -> Queue | None:
    """The winner again over fresh seeds, with a test; None where that is not asked for, or nobody won."""
    plan, best = folder.plan, trials.best()
    if not plan.settings["refit"] or best is None:
        return None
    seen = {plan.seed} | {int(row.point["seed"]) for row in trials.rows() if "seed" in row.point}
    fresh = [str(seed) for seed in range(len(seen) + plan.settings["refit"]) if seed not in seen]
    fixed = [one for one in plan.fixed if one.partition("=")[0] != "seed"]
    folds = [one for one in plan.space if one.key == "data.fold"]
    seeds = Dimension("seed", tuple(fresh[: plan.settings["refit"]]))
    queue = Queue(folder, "refit", [*fixed, *overrides(best.point)], (*folds, seeds))
    queue.fill()
    return queue


def _is_busy(folder: SweepFolder, queue: Queue, number: int) -> bool:
    """Whether a trial's process is at work on its run, although its worker is gone."""
    link = folder.link(queue.name, number)
    return link.exists() and RunFolder(link.resolve()).is_locked()


class _Interrupts:
    """Ctrl-C, and a cluster's SIGTERM, which ends a worker in the same way.

    They are heeded while the worker waits, so that no trial is claimed and not begun, or ended and not
    written down; a second one before that is heeded at once.
    """

    def __init__(self) -> None:
        self._heeds = self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(which) is not signal.SIG_IGN:  # as under nohup
                    self._before[which] = signal.signal(which, self._come)

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _come(self, *_: object) -> None:
        if self._heeds or self._came:
            raise KeyboardInterrupt
        self._came = True

    @contextmanager
    def heeded(self) -> Iterator[None]:
        self._heeds = True
        try:
            if self._came:
                self._came = False
                raise KeyboardInterrupt
            yield
        finally:
            self._heeds = False
