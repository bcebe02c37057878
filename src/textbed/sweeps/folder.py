"""A sweep's folder: what was asked, the study, and who is at work on it.

``runs/sweeps/<name>-<time>-<six hex digits>/`` holds

=====================  =======================================================================================
sweep.yaml             the command, the space and the settings: all that a worker needs to join
journal.log            the Optuna study: every trial, its values, how it ended
trials/0007            a link to the run folder of trial 7; ``scripts/compare.py`` takes the sweep's folder
trials/0007.log        all that its processes printed
workers/               a file for each worker that is alive
=====================  =======================================================================================

With ``sweep.storage`` the study is in a database, as is who is at work on it, and the folder holds what this
machine has of the sweep. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from textbed.errors import UserError, nearest
from textbed.runs.folder import now, write_text, writing
from textbed.sweeps.database import Database
from textbed.sweeps.presence import BEAT_SECONDS, SignOfLife, host_of
from textbed.sweeps.space import Dimension, Space

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

FORMAT = 1
"""Number of this layout, in sweep.yaml."""
LOST_SECONDS = 120.0
"""A worker on another machine that has not been heard of for so long is taken for dead."""


@dataclass(frozen=True)
class Plan:
    """What a sweep runs."""

    name: str
    program: list[str]
    """The words before the overrides: interpreter and script, with flags such as --config-dir."""
    cwd: str
    fixed: list[str]
    """Overrides that all trials have."""
    space: Space
    objectives: list[str]
    """Figures that are looked at; the first decides."""
    seed: int
    """That of the runs, where the space does not vary it."""
    settings: Mapping[str, Any]
    """The ``sweep`` node of the configuration, checked."""
    accelerator: str = "auto"
    """What trials train on, as far as it is the same for all."""
    threads: int | None = None
    """CPU threads of a trial, where they were given."""
    imports: list[str] = dataclasses.field(default_factory=list)
    """Modules that trials import beside those of every run."""
    study: str | None = None
    """The sweep's name in ``sweep.storage``."""

    @property
    def grid(self) -> bool:
        """Whether every combination is run, and not drawn from."""
        return self.settings["sampler"] == "grid"

    @property
    def search(self) -> bool:
        """Whether a winner is looked for, so that trials must not see the test set."""
        return not self.grid or bool(self.settings["refit"])

    def plain(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**values, "settings": dict(self.settings), "space": [one.plain() for one in self.space]}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Plan:
        return cls(**{**values, "space": tuple(Dimension.from_plain(one) for one in values["space"])})


class SweepFolder:
    """A sweep's folder, new (:meth:`create`) or one that is there (:meth:`open`)."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan

    def __repr__(self) -> str:
        return f"SweepFolder({str(self.path)!r})"

    plan_file = property(lambda self: self.path / "sweep.yaml")
    journal = property(lambda self: self.path / "journal.log")
    pictures = property(lambda self: self.path / "pictures")
    comparison_file = property(lambda self: self.path / "comparison.md")

    def link(self, queue: str, number: int) -> Path:
        """The link to a trial's run folder."""
        return self.path / queue / f"{number:04d}"

    def log(self, queue: str, number: int) -> Path:
        return self.path / queue / f"{number:04d}.log"

    @classmethod
    def create(cls, path: Path, plan: Plan) -> SweepFolder:
        """Write the plan of a new sweep, or change the settings of one that is there.

        Raises:
            UserError: another sweep lies there.
        """
        path = path.expanduser().absolute()
        if plan.settings["storage"] is not None:
            plan = dataclasses.replace(plan, study=path.name)
        folder = cls(path, plan)
        if folder.plan_file.is_file():
            before = cls.open(path).plan
            for what in ("program", "fixed", "space", "objectives"):
                if getattr(before, what) != getattr(plan, what):
                    raise UserError(
                        f"sweep.dir={path}: another sweep lies there: its {what} "
                        f"{_differ(before, plan, what)}. Give the same command to go on with it, or another "
                        "folder."
                    )
            if before.settings["sampler"] != plan.settings["sampler"]:
                raise UserError(
                    f"sweep.dir={path}: the sweep there goes by sweep={before.settings['sampler']}; "
                    "give the same, or another folder."
                )
            if before.settings.get("storage") != plan.settings["storage"]:
                raise UserError(
                    f"sweep.dir={path}: the sweep there has another sweep.storage: "
                    f"{before.settings.get('storage') or 'none'}. Give the same, or another folder."
                )
        elif folder.database is not None and folder.database.is_there():
            raise UserError(
                f"sweep.dir={path}: {folder.database.shown} has a sweep {path.name}, which is not in that "
                f"folder. Take part in it by scripts/sweep.py --join URL --study {path.name}, or give "
                "another folder."
            )
        folder._write()
        return folder

    @classmethod
    def of_database(cls, url: str, name: str, path: Path | None = None) -> SweepFolder:
        """What this machine has of a sweep whose study is in a database, new or there.

        Its trials are run by this interpreter. Paths below the folder in which the sweep began are taken for
        ones below the current one.

        Args:
            name: that of the sweep.
            path: by default below ``runs/sweeps``.

        Raises:
            UserError: there is none, or the database cannot be reached.
        """
        plan = Plan.from_plain(Database(url, name).plan())
        here = os.getcwd()
        moved = [_moved(word, plan.cwd, here) for word in plan.program[1:]]
        settings = {**plan.settings, "storage": url, "devices": None}  # which are those of a machine
        plan = dataclasses.replace(plan, program=[sys.executable, *moved], cwd=here, settings=settings)
        folder = cls((path or Path("runs", "sweeps", name)).expanduser().absolute(), plan)
        folder._write()
        return folder

    def _write(self) -> None:
        with writing(self.path):
            for place in (self.path, self.path / "trials", self.path / "workers"):
                place.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "written": now(), **self.plan.plain()}
        write_text(self.plan_file, yaml.safe_dump(_lists(content), sort_keys=False, allow_unicode=True))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SweepFolder:
        """The sweep in the folder ``path``.

        Raises:
            UserError: there is none.
        """
        place = Path(path).expanduser().absolute()
        file = place / "sweep.yaml"
        if not file.is_file():
            parent = place.parent
            beside = [one.name for one in parent.iterdir()] if parent.is_dir() and not place.is_dir() else []
            raise UserError(f"{path}: no sweep lies there: no sweep.yaml.{nearest(place.name, beside)}")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            if content.pop("format") > FORMAT:
                raise UserError(f"{file}: written by a newer version")
            content.pop("written")
            return cls(place, Plan.from_plain(content))
        except (yaml.YAMLError, OSError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error

    @functools.cached_property
    def database(self) -> Database | None:
        """Where the study is; None where it is in the folder."""
        url, name = self.plan.settings.get("storage"), self.plan.study
        return None if url is None or name is None else Database(url, name)

    @functools.cached_property
    def storage(self) -> BaseStorage:
        """The one place that says where studies are kept."""
        if self.database is not None:
            return self.database.storage
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lock = FileLock(self.path / "journal.lock")
        backend = JournalFileBackend(str(self.journal), lock if lock.works() else None)  # type: ignore[arg-type]
        return JournalStorage(backend)

    def study_name(self, queue: str) -> str:
        """That of a queue's study in the storage."""
        return queue if self.database is None else self.database.study_name(queue)

    def keep_plan(self) -> None:
        """Let workers that do not see the folder know what is run."""
        if self.database is not None:
            settings = {**self.plan.settings, "storage": None}  # how it is reached, each says himself
            self.database.keep_plan(dataclasses.replace(self.plan, settings=settings).plain())

    def presence(self) -> SignOfLife:
        """A worker's sign of life, a context."""
        return Presence(self) if self.database is None else self.database.presence()

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """What goes wrong with the storage, as one line."""
        return contextlib.nullcontext() if self.database is None else self.database.errors()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """What is done inside, no other worker does at the same time: taking trials and giving them back."""
        if self.database is not None:
            with self.database.lock():
                yield
            return
        lock = FileLock(self.path / "lock")
        lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _lists(value: Any) -> Any:
    """Tuples as lists: YAML knows no others."""
    if isinstance(value, Mapping):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _moved(word: str, before: str, after: str) -> str:
    """A word of a command line whose path lay below the folder ``before``, for one below ``after``."""
    flag, equals, path = word.rpartition("=")
    place = Path(path)
    return (
        f"{flag}{equals}{Path(after) / place.relative_to(before)}" if place.is_relative_to(before) else word
    )


def _differ(before: Plan, after: Plan, what: str) -> str:
    if what == "space":
        keys = [sorted(one.key for one in plan.space) for plan in (before, after)]
        if keys[0] == keys[1]:
            there = {one.key: one for one in before.space}
            return f"has other values of {next(one.key for one in after.space if there[one.key] != one)}"
        return f"is over {', '.join(keys[0])}"
    return f"was {' '.join(getattr(before, what)) or 'nothing'}"


class FileLock:
    """A lock that the system takes back however its holder ends, also over NFS 4; Optuna's own outlives a
    holder that is killed by 30 s. Where there are no such locks, it does nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def works(self) -> bool:
        try:
            self.acquire()
        except OSError:
            return False
        works = self._file is not None
        self.release()
        return works

    def acquire(self, wait: bool = True) -> bool:
        """Take it; without ``wait``, False where another has it."""
        try:
            import fcntl
        except ImportError:  # Windows
            return True
        file = open(self.path, "ab")  # noqa: SIM115  held as long as the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.close()
            return not isinstance(error, BlockingIOError)  # else it is a file system without locks
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Presence(SignOfLife):
    """A worker's sign of life: a file that it holds a lock on and touches now and then."""

    def __init__(self, folder: SweepFolder) -> None:
        super().__init__()
        self._places = folder.path / "workers"
        self._places.mkdir(exist_ok=True)
        self._lock = FileLock(self._places / self.id)
        self._next = 0.0

    def __enter__(self) -> Presence:
        self._lock.acquire()
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._lock.path.unlink(missing_ok=True)

    def beat(self) -> bool:
        now = time.monotonic()
        in_time = now - self._next < LOST_SECONDS - BEAT_SECONDS or self._next == 0.0
        if now >= self._next:
            self._lock.path.touch()
            self._next = now + BEAT_SECONDS
        return in_time

    def _is_heard_of(self, worker: str) -> bool:
        path = self._places / worker
        try:
            seen = path.stat().st_mtime
        except FileNotFoundError:  # it left
            return False
        if host_of(worker) != host_of(self.id):
            # both times are the file server's, so that clocks need not agree
            return self._lock.path.stat().st_mtime - seen < LOST_SECONDS
        lock = FileLock(path)
        if not lock.acquire(wait=False):
            return True
        lock.release()
        path.unlink(missing_ok=True)
        return False
