"""The run folder: everything a run leaves, in one place.

``runs/<name>/<time>-<six hex digits>/`` holds

=========================  ===================================================================================
config.yaml                the resolved config
overrides.yaml             what was typed on the command line
run.json                   status, phase, command, versions, git revision, machine, seed, times
git.diff                   what differed from that revision (only where something did)
metrics.json               final figures by name, flat
metrics.jsonl              every logged figure, one JSON line each, written as it happens: the record
metrics.csv                the same as a table, derived from the record
log.txt                    what was said
model.yaml                 what the model is made of, apart from its weights and vocabulary
tokenizer/                 the tokenizer with its vocabulary
checkpoints/               best.ckpt (by validation) and last.ckpt (to go on from)
folds/                     of a run with cross_validate=true: a run folder for each fold, 0, 1, ...; then only
                           configuration, figures, log and predictions/test.parquet lie beside it
predictions/               validation.parquet and test.parquet, one row for each document
evaluations/               figures of the model on other data or splits, where asked for later
embedding.json             what the table covers, and how training moved its rows
pictures/                  learning curves, confusion matrix, a page on the table
=========================  ===================================================================================

Every file is written beside its place and then renamed, so that a reader never sees half of one, and a
process that is killed never leaves half of one. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from textbed.errors import UserError, nearest

PACKAGES = [
    "textbed",
    "torch",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "datasets",
    "pyarrow",
    "numpy",
    "tokenizers",
    "wandb",
]
PHASES = ("setup", "fit", "test", "done")
STATUSES = ("running", "finished", "failed", "interrupted")
FORMAT = 1
"""Number of this layout of a run folder, in run.json; to be raised when an older reader would go wrong."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
LINK = "TEXTBED_RUN_LINK"
"""Variable of the environment: a new run makes a link to its folder there, for who started it to find it."""
# A diff beyond this is cut: generated files under version control should not fill a run folder.
_MAX_DIFF_BYTES = 2_000_000
_MAX_NEW_FILES = 100
_CODE = ("*.py", "*.yaml", "*.yml", "*.toml")  # a new file of data does not belong into every run folder

_screen: ContextVar[IO[str] | None] = ContextVar("screen", default=None)

progress_log = logging.getLogger("textbed.progress")
progress_log.propagate = False  # shown by whoever prints it; this logger only carries the line to log.txt
progress_log.setLevel(logging.INFO)


# ------------------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], elsewhere: str | None = None) -> Iterator[None]:
    """Turn "disk full", "read-only" and "not allowed" inside the block into a :class:`UserError` that names
    ``path``.

    Args:
        elsewhere: the option that names another place, such as ``--out``; None is of a run, ``paths.runs``.

    Other errors pass unchanged: they are ours, and keep their traceback.
    """
    another = f"({elsewhere})" if elsewhere else "with paths.runs=FOLDER"
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NO_SPACE:
            lost = "" if elsewhere else "nothing already computed is lost: "
            resume = "" if elsewhere else " and go on with resume=RUN_FOLDER"
            raise UserError(
                f"no space left while writing {path} ({reason}); {lost}free some space{resume}, or choose "
                f"another disk {another}"
            ) from error
        if error.errno in _NOT_ALLOWED or _has_no_folder(path, error):
            raise UserError(
                f"cannot write {path} ({reason}): choose a folder you may write in {another}"
            ) from error
        if error.errno == errno.EISDIR and elsewhere:
            raise UserError(f"cannot write {path}: it is a folder; expected the name of a file") from error
        if error.errno in _NOT_A_FOLDER:
            raise UserError(
                f"cannot write {path}: a file stands where a folder is needed ({error.filename}); "
                f"remove it, or choose another place {another}"
            ) from error
        raise


def _has_no_folder(path: str | os.PathLike[str], error: OSError) -> bool:
    """Whether the folder of ``path`` cannot be made, or was removed meanwhile; not that of any other file."""
    if error.errno != errno.ENOENT or not isinstance(error.filename, str):
        return False
    return Path(error.filename).absolute().parent in Path(path).absolute().parents


@contextlib.contextmanager
def replacing(path: Path, elsewhere: str | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, it takes the place of ``path`` in one
    step.

    Whoever reads ``path`` sees the old content or the new, never a mixture, also when the process is killed
    inside the block (a temporary file then stays; :meth:`RunFolder.resume` sweeps it). There is no fsync:
    after a power cut the file may be damaged, which the reader of a checkpoint notices; syncing would cost up
    to seconds an epoch.

    Args:
        elsewhere: see :func:`writing`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    with writing(path, elsewhere):
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path  # a device or a pipe, such as /dev/null, is written to: root could replace it for all
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, elsewhere: str | None = None) -> None:
    """Write ``text`` (UTF-8) to ``path`` in one step."""
    with replacing(path, elsewhere) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: NumPy and torch scalars as numbers, NaN and infinities as
    null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays alike
        return plain(value.tolist())
    return str(value)


def screen() -> IO[str]:
    """Where a person is shown how a run goes: stderr, since stdout belongs to the run folder's path."""
    return _screen.get() or sys.stderr


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Show nothing of how a run goes inside the block; warnings are shown, and log.txt has all the same."""
    with open(os.devnull, "w") as nowhere:
        before = _screen.set(nowhere)
        try:
            yield
        finally:
            _screen.reset(before)


def say(line: str) -> None:
    """Show one line to the person, and keep it in log.txt."""
    if is_rank_zero():
        print(line, file=screen(), flush=True)
        progress_log.info(line)


def is_rank_zero() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    if rank is None:
        rank = next(
            (os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if os.environ.get(key)), 0
        )
    return int(rank) == 0


# ------------------------------------------------------------------------------------------------------------
# What is written about the place a run was made in
# ------------------------------------------------------------------------------------------------------------


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Versions of the packages that can change a result; null for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(folder: Path | None = None) -> tuple[dict[str, Any] | None, str]:
    """Return (revision, branch and changed files, the diff against it) of the checkout ``folder`` lies in.

    By default that of this code. The diff has new files of code and settings too, of those that git does not
    ignore. (None, "") where git is missing, answers with an error or takes longer than 10 s.
    """
    folder = folder or Path(__file__).resolve().parent

    def git(*arguments: str, check: bool = True) -> str:
        # no optional locks: fifty runs that start together must not fight over the index
        command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=10, check=check, stdin=subprocess.DEVNULL)
        return done.stdout.decode("utf-8", errors="replace")

    try:
        revision = git("rev-parse", "HEAD").strip()
        branch = git("rev-parse", "--abbrev-ref", "HEAD").strip()
        changed = git("status", "--porcelain").splitlines()
        diff = git("diff", "HEAD", "--no-color", "--no-ext-diff") if changed else ""
        if any(line.startswith("??") for line in changed):
            folder = Path(git("rev-parse", "--show-toplevel").strip())
            new = git("ls-files", "-z", "--others", "--exclude-standard", "--", *_CODE).split("\0")[:-1]
            for name in new[:_MAX_NEW_FILES]:  # exit status 1 says that there is a difference
                diff += git("diff", "--no-color", "--no-index", "--", os.devnull, name, check=False)
    except (OSError, subprocess.SubprocessError):
        return None, ""
    if len(diff.encode()) > _MAX_DIFF_BYTES:
        diff = (
            diff.encode()[:_MAX_DIFF_BYTES].decode("utf-8", errors="ignore")
            + "\n# cut here: the diff is longer\n"
        )
    state = {"revision": revision, "branch": branch, "dirty": bool(changed), "changed": changed[:100]}
    return state, diff


def peak_memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes.

    ``memory/peak_bytes`` is resident memory; ``memory/gpu_peak_bytes`` (only where CUDA was used) is what
    torch allocated on the current device at the most.
    """
    figures: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # getrusage would also count what the parent held when it started this process
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        figures["memory/peak_bytes"] = int(line.split()[1]) * 1024
    if not figures:
        with contextlib.suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others KiB
            figures["memory/peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        figures["memory/gpu_peak_bytes"] = int(torch.cuda.max_memory_allocated())
    return figures


# ------------------------------------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """A name that tells the time; six hex digits tell those of one second apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


class RunFolder:
    """A run folder, new (:meth:`create`) or one that is there (:meth:`open`).

    In a run of several processes only rank 0 writes; the methods that write do nothing elsewhere.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._lock: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_lock": None}  # a lock stays with the process that took it

    # -- making and finding ----------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str) -> RunFolder:
        """Make ``root/name/<YYYYmmdd-HHMMSS>-<6 hex digits>`` and mark it as running.

        The folder is made exclusively, so any number of runs may start in the same second.

        Raises:
            UserError: the place cannot be written to, or ``name`` is no relative folder name.
        """
        parts = Path(name).parts if name else ()
        if not parts or Path(name).is_absolute() or ".." in parts or name.strip() != name:
            raise UserError(
                f"name={name!r}: expected a folder name to stand under paths.runs, such as name=imdb-gru"
            )
        parent = Path(root).expanduser() / name
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                path = parent / new_id()
                try:
                    os.mkdir(path)
                    break
                except FileExistsError:
                    continue
        folder = cls(path)
        if os.environ.get(LINK):
            with replacing(Path(os.environ[LINK])) as temporary:
                temporary.symlink_to(folder.path, target_is_directory=True)
        folder._begin()
        return folder

    def create_fold(self, number: int) -> RunFolder:
        """Make the folder of a fold and mark it as running; what lay there is removed."""
        fold = self.fold(number)
        with writing(fold.path):
            shutil.rmtree(fold.path, ignore_errors=True)
            fold.path.mkdir(parents=True)
        fold._begin()
        return fold

    def _begin(self) -> None:
        self._take_lock()
        started = {"status": "running", "phase": "setup", "started": now(), "pid": os.getpid()}
        write_json(self.info_file, {"format": FORMAT, **started})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return the run folder at ``path``.

        Raises:
            UserError: there is none; the message says what is missing, and where one is.
        """
        given = Path(path).expanduser()
        folder = cls(given)
        if not given.is_dir():
            siblings = (
                sorted(p.name for p in given.parent.iterdir() if p.is_dir()) if given.parent.is_dir() else []
            )
            what = "is a file, not a run folder" if given.exists() else "does not exist"
            raise UserError(f"run folder {given} {what}.{nearest(given.name, siblings)}")
        missing = [file.name for file in (folder.info_file, folder.config_file) if not file.is_file()]
        if missing:
            inside = sorted(
                p.parent for pattern in ("*/run.json", "*/*/run.json") for p in given.glob(pattern)
            )
            hint = f" It holds run folders; the latest is {inside[-1]}" if inside else ""
            raise UserError(f"{given} is no run folder: {' and '.join(missing)} missing.{hint}")
        folder.info()
        return folder

    @property
    def id(self) -> str:
        """The folder's own name, unique within the run's name: also the id that loggers get. A fold has its
        run's, and its number."""
        return self.path.name if self.whole is None else f"{self.whole.id}-{self.path.name}"

    @property
    def name(self) -> str:
        return self.path.parent.name if self.whole is None else self.whole.name

    @property
    def whole(self) -> RunFolder | None:
        """The run that this is a fold of; None for any other."""
        above = self.path.parent
        return RunFolder(above.parent) if above.name == "folds" and self.path.name.isdecimal() else None

    def fold(self, number: int) -> RunFolder:
        """The folder of a fold of this run, which may not be there."""
        return RunFolder(self.path / "folds" / str(number))

    def check_one_model(self) -> None:
        """Raise a :class:`UserError` for a run of several folds, each of which has a model of its own."""
        if (self.path / "folds").is_dir():
            raise UserError(
                f"{self.path} is a run of several folds, each with a model of its own: name one of them, "
                f"such as {self.fold(0).path}"
            )

    # -- its files -------------------------------------------------------------------------------------------

    config_file = property(lambda self: self.path / "config.yaml")
    overrides_file = property(lambda self: self.path / "overrides.yaml")
    info_file = property(lambda self: self.path / "run.json")
    metrics_file = property(lambda self: self.path / "metrics.json")
    record_file = property(lambda self: self.path / "metrics.jsonl")
    table_file = property(lambda self: self.path / "metrics.csv")
    log_file = property(lambda self: self.path / "log.txt")
    model_file = property(lambda self: self.path / "model.yaml")
    tokenizer = property(lambda self: self.path / "tokenizer")
    checkpoints = property(lambda self: self.path / "checkpoints")
    best_checkpoint = property(lambda self: self.path / "checkpoints" / "best.ckpt")
    last_checkpoint = property(lambda self: self.path / "checkpoints" / "last.ckpt")
    evaluations = property(lambda self: self.path / "evaluations")
    predictions = property(lambda self: self.path / "predictions")
    embedding_file = property(lambda self: self.path / "embedding.json")
    pictures = property(lambda self: self.path / "pictures")

    # -- the course of a run ---------------------------------------------------------------------------------

    def start(
        self,
        config: str,
        overrides: Sequence[str],
        seed: int,
        threads: int | None = None,
        device: str | None = None,
        command: Sequence[str] | None = None,
        choices: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what is known before anything was computed: config, overrides, versions, git, machine.

        Args:
            config: the resolved config as YAML text.
            overrides: what was typed, such as ``["head=gru", "seed=1"]``.
            command: the words of the command line; by default those of this process.
            choices: the option taken in each config group, such as ``{"head": "gru"}``.
        """
        if not is_rank_zero():
            return
        write_text(self.config_file, config)
        # a JSON string is a YAML string
        write_text(self.overrides_file, "".join(f"- {json.dumps(item)}\n" for item in overrides) or "[]\n")
        git, diff = git_state()
        if diff:
            write_text(self.path / "git.diff", diff)
        self.update(
            command=shlex.join(command or [Path(sys.executable).name, *sys.argv]),
            choices=dict(choices or {}),
            versions=versions(),
            python=platform.python_version(),
            git=git,
            host=socket.gethostname(),
            platform=platform.platform(),
            device=device,
            threads=threads,
            seed=seed,
        )

    def resume(self, overrides: Sequence[str] = ()) -> None:
        """Take over a run that ended or was killed: lock it, sweep what a killed process left, mark it as
        running.

        Args:
            overrides: what was typed to change it, for the record.

        Raises:
            UserError: the run is still going on.
        """
        if not is_rank_zero():
            return
        self._take_lock()
        for place in (self.path, self.checkpoints, self.tokenizer, self.predictions, self.pictures):
            for leftover in place.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()
        resumed = [*self.info().get("resumed", []), {"time": now(), "overrides": list(overrides)}]
        self.update(status="running", phase="setup", error=None, ended=None, pid=os.getpid(), resumed=resumed)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json; a mapping is merged into the one that is there, anything else replaces.

        The phase of a fold is also that of its run.
        """
        if not is_rank_zero():
            return
        if "phase" in fields and self.whole is not None:
            self.whole.update(phase=f"fold {self.path.name}: {fields['phase']}")
        info = self.info()
        for key, value in fields.items():
            if isinstance(value, Mapping) and isinstance(info.get(key), dict):
                info[key] = {**info[key], **value}
            else:
                info[key] = value
        write_json(self.info_file, info)

    def finish(self, status: str = "finished", error: object = None) -> None:
        """Say how the run ended, and let go of its lock.

        A failure that cannot be written down (a full disk is the usual reason for one) does not hide the
        failure itself.
        """
        assert status in STATUSES
        done = {"phase": "done"} if status == "finished" else {}
        line = str(error).strip().splitlines()[0] if error is not None and str(error).strip() else None
        if line and (notes := getattr(error, "__notes__", None)):
            line = f"{', '.join(notes)}: {line}"
        try:
            self.update(
                status=status, error=line or (type(error).__name__ if error else None), ended=now(), **done
            )
        except UserError:
            if status == "finished":
                raise
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def discard(self) -> None:
        """Remove the folder of a run that computed nothing, and its parent if that is empty now."""
        if not is_rank_zero():
            return
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def info(self) -> dict[str, Any]:
        """Read run.json."""
        return _read_json(self.info_file)

    def overrides(self) -> list[str]:
        """What was typed to change the configuration; nothing where the file is gone."""
        if not self.overrides_file.is_file():
            return []
        lines = self.overrides_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line.removeprefix("- ")) for line in lines if line.startswith("- ")]

    def _take_lock(self) -> None:
        # The system lets go of the lock when the process dies, however it dies; a pid in a file would go
        # stale.
        try:
            import fcntl
        except ImportError:  # Windows: two resumes of one run at a time are then the user's to avoid
            return
        with writing(self.log_file):
            file = open(self.log_file, "ab")  # noqa: SIM115 - held for as long as the run
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # perhaps someone who only looks whether it is taken
                time.sleep(0.1)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            pid = self.info().get("pid")
            raise UserError(
                f"the run in {self.path} is still going on (process {pid}): wait for its end, or stop it, "
                "before resuming it"
            ) from error
        except OSError:  # a file system without locks
            file.close()
            return
        self._lock = file

    def is_locked(self) -> bool:
        """Whether a process is at work on this run, as far as this machine can tell."""
        try:
            import fcntl

            with open(self.log_file, "rb") as file:
                # released as the file is closed: nothing is kept from a run that wants to begin
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except FileNotFoundError:  # every run has had this file from its beginning
            return False
        except (ImportError, OSError):  # no locks: the process is all there is to look for
            return _is_process(self.info().get("pid"))

    # -- what a run leaves -----------------------------------------------------------------------------------

    def write_metrics(self, figures: Mapping[str, Any]) -> None:
        """Write the final figures by name (``test/accuracy``, ``seconds/fit``, ...), flat; NaN becomes
        null."""
        if is_rank_zero():
            write_json(self.metrics_file, dict(figures))

    def read_metrics(self) -> dict[str, Any]:
        """Read the final figures.

        Raises:
            UserError: the run has none yet.
        """
        if not self.metrics_file.is_file():
            status = self.info().get("status")
            raise UserError(f"{self.path} has no metrics.json: the run is {status}, and not at its end")
        return _read_json(self.metrics_file)

    def write_predictions(
        self,
        split: str,
        rows: Sequence[int] | Any,
        labels: Any,
        predicted: Any,
        probabilities: Any,
        classes: Sequence[str],
    ) -> Path:
        """Write predictions/<split>.parquet: one row for each document, in the order of ``rows``.

        Args:
            rows: (documents,) row of each document in its split.
            labels: (documents,) class ids, or (documents, C) of 0 and 1 for multi-label.
            predicted: shaped as ``labels``.
            probabilities: (documents, C).
            classes: the C names.

        The columns are ``row``, ``label``, ``predicted`` (class ids; lists of them for multi-label),
        ``label_name``,
        ``predicted_name`` and ``probability`` (C numbers); the names in order are also in the metadata, key
        ``classes``.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        path: Path = self.predictions / f"{split}.parquet"
        names = pa.array([str(name) for name in classes], pa.string())

        def columns(values: Any) -> tuple[pa.Array, pa.Array]:
            values = np.asarray(values)
            if values.ndim == 1:
                ids = pa.array(values.astype(np.int64))
                return ids, pa.DictionaryArray.from_arrays(ids.cast(pa.int32()), names)
            hits = values.astype(bool)
            offsets = pa.array(np.concatenate([[0], np.cumsum(hits.sum(axis=1))]).astype(np.int32))
            ids = pa.array(np.nonzero(hits)[1].astype(np.int64))
            return pa.ListArray.from_arrays(offsets, ids), pa.ListArray.from_arrays(offsets, names.take(ids))

        label, label_name = columns(labels)
        guess, guess_name = columns(predicted)
        flat = np.ascontiguousarray(probabilities, dtype=np.float32).reshape(-1)
        table = pa.table(
            {
                "row": pa.array(np.asarray(rows).astype(np.int64)),
                "label": label,
                "predicted": guess,
                "label_name": label_name,
                "predicted_name": guess_name,
                "probability": pa.FixedSizeListArray.from_arrays(pa.array(flat), len(classes)),
            }
        ).replace_schema_metadata(
            {"classes": json.dumps([str(name) for name in classes], ensure_ascii=False)}
        )
        if is_rank_zero():
            with replacing(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        return path

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint to go on from: last.ckpt; best.ckpt where there is no last; None where there is
        neither.

        None means that the run was killed before its first epoch ended, and starts anew.

        Raises:
            UserError: the file is cut short or damaged; the message says what else is there.
        """
        for path, other in ((self.last_checkpoint, self.best_checkpoint), (self.best_checkpoint, None)):
            if not path.exists():
                continue
            if is_whole(path):
                return path
            hint = "no other is usable, so the run has to start anew without resume="
            if other is not None and other.exists() and is_whole(other):
                hint = f"{other.name} beside it is whole: delete {path.name} to go on from there"
            raise UserError(
                f"checkpoint {path} is cut short or damaged ({path.stat().st_size:,} bytes); {hint}"
            )
        return None

    def fill(self, settings: Any, **more: Any) -> Any:
        """Return ``settings`` with placeholders in its texts filled in.

        ``{folder}`` is this folder's path, ``{id}`` its name, ``{name}`` the run's name; ``more`` adds
        others. A text that is nothing but a placeholder becomes the value itself, with its type. So a logger
        or callback that has to know the folder is still just a config file, and a run folder that is moved
        stays right.
        """
        values = {"folder": str(self.path), "id": self.id, "name": self.name, **more}
        return _fill(settings, values)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Copy what is logged (from INFO up) and warned about inside the block to log.txt."""
        if not is_rank_zero():
            yield
            return
        handler = _QuietFileHandler(self.log_file, mode="a", encoding="utf-8", delay=True)
        handler.setLevel(logging.INFO)
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        targets = [logging.getLogger(), progress_log]
        for target in targets:
            target.addHandler(handler)
        try:
            yield
        finally:
            for target in targets:
                target.removeHandler(handler)
            handler.close()


class _QuietFileHandler(logging.FileHandler):
    """A log that cannot be written (the disk is full) must not bury the run under tracebacks: the record
    reports it."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _is_process(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    if os.name == "nt":  # there this call would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: torch's files are zip archives, whose directory comes last.
    Milliseconds."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            return bool(archive.infolist()) and all(
                entry.header_offset + entry.compress_size <= size for entry in archive.infolist()
            )
    except (zipfile.BadZipFile, OSError, io.UnsupportedOperation):
        return False


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(item, values) for item in value]
    if isinstance(value, str):
        for key, filling in values.items():
            if value == f"{{{key}}}":
                return filling
            value = value.replace(f"{{{key}}}", str(filling))
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read: expected a JSON object")
    return content
