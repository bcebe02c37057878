"""A trial: a plain ``python train.py ...`` process, its device pinned, what it says kept, its end read.

The process knows nothing of the sweep. What it gave is read from the run folder it leaves, and whether it
falls behind from the figures that the folder's record has so far: so whatever writes such a folder can be
swept over, and a trial's command line can be given again by hand. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textbed.errors import UserError
from textbed.runs import registry
from textbed.runs.folder import LINK
from textbed.sweeps.devices import Slot, killed_for_memory
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.queue import FINISHED, PRUNED, TESTED, Ending, Job

if TYPE_CHECKING:
    import subprocess

GRACE_SECONDS = 30.0
"""Time that a process that is told to end has for it."""
LAST_LINES = 20
_WATCH_SECONDS = 1.0
_TAIL_BYTES = 16_384
_NOT_FINITE = re.compile(r"\bbecame (NaN|infinite|NaN or infinite)\b")
_NO_MEMORY = re.compile(r"OutOfMemoryError|MemoryError|CUDA out of memory|can't allocate memory|bad_alloc")
# What a person who starts the sweep has set for this process, and is not meant for another.
_NOT_PASSED_ON = ("HYDRA_FULL_ERROR",)


class Child(Protocol):
    """A process, however it was started."""

    pid: int

    @property
    def sentinel(self) -> int | None:
        """A file descriptor that can be read from when it has ended; None where the system has none."""

    def poll(self) -> int | None:
        """Its exit code; below 0 the signal that ended it; None while it runs."""


class Starter:
    """What starts the processes of trials: here plainly. In ``warm.py`` are those with the imports done."""

    def is_ready(self) -> bool:
        """Whether a trial that is given now would begin now."""
        return True

    def expect(self, count: int) -> None:
        """Be told that so many trials are still to begin, at most those that fit on this machine."""

    def __call__(self, words: Sequence[str], cwd: str, environment: Mapping[str, str], log: Path) -> Child:
        """Start ``words`` in the folder ``cwd``; what it prints is added to ``log``.

        In a session of its own, so that Ctrl-C reaches the worker alone, which then says what ends. On Linux
        it is told to end if the worker dies.
        """
        import subprocess

        with open(log, "ab") as file:
            return Process(
                subprocess.Popen(
                    words,
                    cwd=cwd,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    preexec_fn=end_with_parent if sys.platform == "linux" else None,
                )
            )


class Process:
    """A child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.pid, self.sentinel = process, process.pid, sentinel_of(process.pid)

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self.sentinel is not None:
            os.close(self.sentinel)
            self.sentinel = None
        return code


start_plainly = Starter()


def environment_of_trials() -> dict[str, str]:
    """This process's environment, as far as it is meant for others."""
    return {key: value for key, value in os.environ.items() if key not in _NOT_PASSED_ON}


def sentinel_of(pid: int) -> int | None:
    """What tells of the end of one's own child, see :class:`Child`."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone
        return os.pidfd_open(pid)
    return None


def end_with_parent() -> None:
    """Ask the system to send this process SIGTERM when its parent ends, however that ends."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Trial:
    """One attempt at a job, in a slot of this machine."""

    def __init__(self, folder: SweepFolder, job: Job, slot: Slot, start: Starter) -> None:
        self.folder, self.job, self.slot = folder, job, slot
        self.link = folder.link(job.queue.name, job.number)
        self.log = folder.log(job.queue.name, job.number)
        self.stopped: str | None = None
        """Why the worker ended it: pruned, timeout or stop."""
        self._since = time.monotonic()
        self._stop_since = 0.0
        self._next_watch = 0.0
        self._record, self._told = _Record(), 0
        self._kills = killed_for_memory()
        self.words = self._words()
        self.child: Child | None = None
        if self._finished() is None:  # else its worker died before it could say so
            environment = {**environment_of_trials(), **slot.environment, LINK: str(self.link)}
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"$ {self.command}\n")
            self._start = self.log.stat().st_size
            self.child = start(self.words, folder.plan.cwd, environment, self.log)
            self._since = time.monotonic()

    def _words(self) -> list[str]:
        plan = self.folder.plan
        overrides = list(self.job.overrides)
        run = self.run
        if run is not None and (run / "config.yaml").is_file() and (run / "run.json").is_file():
            overrides = [f"resume={run}"]
        given = any(one.partition("=")[0] == "threads" for one in overrides)
        more = [f"threads={self.slot.threads}"] if self.slot.is_cpu and not given else []
        return [*plan.program, *overrides, *more]

    @property
    def command(self) -> str:
        """The command line, as a person would give it again in the same folder."""
        pinned = [f"{key}={shlex.quote(value)}" for key, value in self.slot.environment.items()]
        return " ".join([*pinned, shlex.join(self.words)])

    @property
    def run(self) -> Path | None:
        """The run folder; None as long as there is none."""
        with contextlib.suppress(OSError):
            place = Path(os.path.realpath(self.link))
            if place.is_dir():
                return place
        return None

    @property
    def sentinels(self) -> list[int | None]:
        """What tells of its end, see :class:`Child`; nothing where it had ended before it began."""
        return [] if self.child is None else [self.child.sentinel]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    # -- while it runs ---------------------------------------------------------------------------------------

    def poll(self) -> Ending | None:
        """How it ended; None while it goes on."""
        code = 0 if self.child is None else self.child.poll()
        if code is None:
            self._watch()
            return None
        self._falls_behind()  # too late to end it, but others are measured against its last figures too
        return self._ending(code)

    def _watch(self) -> None:
        now = time.monotonic()
        if self.stopped is not None:
            if now - self._stop_since > GRACE_SECONDS:
                self._signal(signal.SIGKILL)
            return
        if now < self._next_watch:
            return
        self._next_watch = now + _WATCH_SECONDS
        settings = self.folder.plan.settings
        minutes = settings["trial_minutes"]
        if minutes is not None and self.seconds > minutes * 60:
            self.stop("timeout")
        elif self._falls_behind():
            self.stop(PRUNED)

    def _falls_behind(self) -> bool:
        """Tell the study of the validation figures that are new; whether its pruner gives the trial up."""
        run = self.run
        if run is None or self.job.queue.name != "trials" or self.folder.plan.settings["pruner"] == "none":
            return False
        figures = self._record.read(run / "metrics.jsonl", self.folder.plan.objectives[0])
        new, self._told = figures[self._told :], len(figures)
        return bool(new) and self.job.queue.report(self.job, new, ask=self.stopped is None)

    def stop(self, why: str) -> None:
        """Tell the process to end, and to leave what can be gone on from."""
        if self.stopped is None:
            self.stopped, self._stop_since = why, time.monotonic()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, which: int) -> None:
        # to all of its session: data workers and further processes of distributed training too
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, which)

    # -- the end ---------------------------------------------------------------------------------------------

    def _finished(self) -> registry.Run | None:
        run = self.run
        if run is None:
            return None
        with contextlib.suppress(UserError):
            found = registry.read(run)
            return found if found.status == "finished" else None
        return None

    def _ending(self, code: int) -> Ending:
        finished = self._finished()
        if finished is not None and code == 0:
            return self._of_figures(finished.metrics)
        self.kill()  # what a process that died may have left behind
        last = "" if self.child is None else self._last_lines()
        line = self._error(code, last)
        if self.stopped == PRUNED:
            return Ending(PRUNED, error="fell behind", last_lines=last)
        if self.stopped == "timeout":
            minutes = self.folder.plan.settings["trial_minutes"]
            return Ending("timeout", error=f"not done after {minutes:g} minutes", last_lines=last)
        if _NOT_FINITE.search(line):
            return Ending("nan", error=line, last_lines=last)
        if _NO_MEMORY.search(last) or (code == -signal.SIGKILL and killed_for_memory() > self._kills):
            return Ending("memory", error=line, last_lines=last)
        return Ending("killed" if code < 0 else "failed", error=line, last_lines=last)

    def _of_figures(self, metrics: Mapping[str, Any]) -> Ending:
        values = [metrics.get(name) for name in self.folder.plan.objectives]
        for name, value in zip(self.folder.plan.objectives, values, strict=True):
            if name in metrics and not (isinstance(value, int | float) and math.isfinite(value)):
                return Ending("nan", error=f"{name} is no finite number", last_lines="")
        missing = [
            name for name, value in zip(self.folder.plan.objectives, values, strict=True) if value is None
        ]
        if missing:  # the run is a run all the same
            return Ending(FINISHED, error=f"the run has no {missing[0]}")
        tested = metrics.get(TESTED)
        return Ending(
            FINISHED,
            [float(value) for value in values if value is not None],
            tested=float(tested) if isinstance(tested, int | float) else None,
        )

    def _error(self, code: int, last: str) -> str:
        """One line on what went wrong."""
        with contextlib.suppress(UserError, OSError):
            run = self.run
            if run is not None:
                said = registry.RunFolder(run).info().get("error")
                if said:
                    return str(said)
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        lines = [line for line in last.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("error: ")), None)
        if said is not None:
            return said.removeprefix("error: ")
        return lines[-1].strip() if lines else f"exit code {code}, and nothing said"

    def _last_lines(self) -> str:
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        return "\n".join(text.replace("\r", "\n").split("\n")[-LAST_LINES - 1 :]).strip()


class _Record:
    """Reads a growing metrics.jsonl, each line once."""

    def __init__(self) -> None:
        self._place = 0
        self._found: list[float] = []

    def read(self, path: Path, name: str) -> list[tuple[int, float]]:
        """The figure so far: the number of the validation, from 1, and its value."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._place += len(line)
                value = json.loads(line).get(name)
                if isinstance(value, int | float):
                    self._found.append(float(value))
        return list(enumerate(self._found, start=1))
