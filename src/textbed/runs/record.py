"""The record of a run, and the loggers that mirror it.

metrics.jsonl is the record: one JSON line for each call of ``log``, handed to the system at once, so that
SIGKILL loses nothing (a wandb run that is killed keeps 7 bytes of its first 7 seconds: its file grows in
blocks of 32 KiB). Everything else, metrics.csv included, is derived from it or stands beside it.

A further logger is one config file with a ``_target_``; the placeholders of :meth:`RunFolder.fill` tell it
where the run lies.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import json
import logging
import math
import netrc
import os
import shlex
import shutil
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from textbed.errors import UserError, nearest
from textbed.runs.folder import RunFolder, is_rank_zero, plain, say, write_text, writing

Table = tuple[list[str], list[list[Any]]]
"""Names of columns, and rows."""
_PLACES = ("step", "epoch", "time")  # where and when, in every line; the rest are figures
_WANDB_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_PROBE_SECONDS = 5.0


# ------------------------------------------------------------------------------------------------------------
# The record
# ------------------------------------------------------------------------------------------------------------


class RecordLogger(Logger):
    """Writes metrics.jsonl as figures come, and metrics.csv from it after each epoch.

    A line is ``{"step": 3, "epoch": 0, "time": 1700000000.123, "train/loss": 0.69, ...}``; step and epoch
    count from 0, time is in seconds since 1970. NaN and infinities are null, so that every line is JSON;
    :func:`read_metrics` gives them back as NaN.

    Args:
        folder: the run folder.
        resume_step: for a resumed run, the number of steps its checkpoint has seen: lines of later steps are
        cut, since those steps are
            made again.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None) -> None:
        super().__init__()
        self._folder = RunFolder(folder)
        self._file: IO[bytes] | None = None
        self._epoch: int | None = None
        self._table_at = -math.inf
        self._table_cost = 0.0
        if resume_step is not None and is_rank_zero():
            self._cut(resume_step)

    # Lightning joins these to find a place for what callbacks write: the run folder itself.
    name = property(lambda self: "")
    version = property(lambda self: "")
    save_dir = property(lambda self: str(self._folder.path))
    root_dir = property(lambda self: str(self._folder.path))
    log_dir = property(lambda self: str(self._folder.path))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line.

        Raises:
            UserError: the disk is full or the place cannot be written to. The record then ends with the last
            whole line.
        """
        figures = {key: plain(value) for key, value in metrics.items()}
        epoch = figures.pop("epoch", None)
        epoch = None if epoch is None else int(epoch)
        figures.pop("step", None)
        if not figures:
            return
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **figures}
        if epoch is not None and epoch != self._epoch:
            if self._epoch is not None:
                self._write_table_sometimes()
            self._epoch = epoch
        with writing(self._folder.record_file):
            if self._file is None:
                self._file = open(self._folder.record_file, "ab", buffering=0)  # noqa: SIM115 - open for the whole run
            size = os.fstat(self._file.fileno()).st_size
            data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
            try:
                if self._file.write(data) != len(data):
                    raise OSError(28, os.strerror(28))
            except OSError:
                with contextlib.suppress(OSError):  # half a line in the middle would spoil what comes later
                    os.ftruncate(self._file.fileno(), size)
                raise

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config as config.yaml."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write metrics.csv; after a failure as far as that is possible."""
        # after a failure the failure itself is what the person has to see
        with contextlib.nullcontext() if status == "success" else contextlib.suppress(UserError):
            self._write_table()

    def _cut(self, step: int) -> None:
        if not self._folder.record_file.exists():
            return
        kept = [
            line
            for line in _lines(self._folder.record_file)
            if line.get("step") is not None and line["step"] < step
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_text(self._folder.record_file, text)
        self._write_table()

    def _write_table_sometimes(self) -> None:
        # Writing anew costs time in proportion to the record: at most a twentieth of the run goes into it.
        if time.perf_counter() - self._table_at > 20 * self._table_cost:
            self._write_table()

    def _write_table(self) -> None:
        if not self._folder.record_file.exists():
            return
        start = time.perf_counter()
        lines = list(_lines(self._folder.record_file))
        columns = [*_PLACES, *dict.fromkeys(key for line in lines for key in line if key not in _PLACES)]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(columns)
        for line in lines:
            table.writerow(
                "" if key not in line else "nan" if line[key] is None and key not in _PLACES else line[key]
                for key in columns
            )
        write_text(self._folder.table_file, text.getvalue())
        self._table_at = time.perf_counter()
        self._table_cost = self._table_at - start


def _lines(path: Path) -> Iterator[dict[str, Any]]:
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
        {key: math.nan if value is None and key not in _PLACES else value for key, value in line.items()}
        for line in _lines(path)
    ]


def by_epoch(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The last value of each figure in each epoch: epoch (from 0) -> name -> value."""
    epochs: dict[int, dict[str, float]] = {}
    for line in lines:
        if line.get("epoch") is not None:
            figures = {key: value for key, value in line.items() if key not in _PLACES}
            epochs.setdefault(int(line["epoch"]), {}).update(figures)
    return epochs


# ------------------------------------------------------------------------------------------------------------
# The loggers that mirror it
# ------------------------------------------------------------------------------------------------------------


def make_loggers(
    settings: Mapping[str, Any] | None, folder: RunFolder, resume_step: int | None = None
) -> list[Logger]:
    """Make the loggers of a run: always the record, then those of the config group ``logger``.

    Args:
        settings: the resolved group, name -> ``{_target_: ...}``; a null entry is left out.
        folder: the run folder; ``{folder}``, ``{id}``, ``{name}`` and ``{step}`` (``resume_step``) are filled
        into the settings. resume_step: steps that the checkpoint of a resumed run has seen; None for a new
        run.

    Raises:
        UserError: a logger needs a package that is not installed, or a setting it does not know.
    """
    loggers: list[Logger] = [RecordLogger(folder.path, resume_step)]
    for name, entry in (settings or {}).items():
        if entry is None:
            continue
        loggers.append(_make_logger(str(name), folder.fill(entry, step=resume_step)))
    return loggers


def _make_logger(name: str, entry: Mapping[str, Any]) -> Logger:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(entry), _convert_="all")
    except HydraException as error:
        causes = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from error
        for cause in causes:
            if isinstance(cause, ImportError):
                extras = importlib.metadata.metadata("textbed").get_all("Provides-Extra") or []
                mend = (
                    f"pip install -e '.[{name}]'" if name in extras else f"install what it asks for: {cause}"
                )
                raise UserError(f"logger={name}: a package is missing; {mend}") from error
        first = str(causes[-1]).splitlines()[0]
        raise UserError(f"logger.{name}: {first}") from error


def log_settings(loggers: Sequence[Logger], settings: Mapping[str, Any], new: bool) -> None:
    """Hand the configuration to the loggers beside the record, whose folder holds it as config.yaml.

    Args:
        settings: the resolved configuration.
        new: whether the run is not a resumed one: only wandb takes a value that has changed since.
    """
    for logger in loggers:
        if new or isinstance(logger, Wandb):
            logger.log_hyperparams(dict(settings))


def log_report(loggers: Sequence[Logger], pictures: Path, tables: Mapping[str, Table]) -> None:
    """Hand the pictures of a run and the tables of its report to the loggers that can take such things.

    Those are loggers with ``log_image(key, images)`` or ``log_table(key, columns, data)``, as Lightning's for
    wandb. One that fails is named and left, as in ``finish_loggers``.

    Args:
        pictures: the folder of PNG files; each goes under ``pictures/<name>``.
        tables: name -> columns and rows; each goes under ``embedding/<name>``.
    """
    for logger in loggers:
        try:
            if hasattr(logger, "log_image"):
                for path in sorted(pictures.glob("*.png")):
                    logger.log_image(key=f"pictures/{path.stem}", images=[str(path)])
            if hasattr(logger, "log_table"):
                for name, (columns, rows) in tables.items():
                    logger.log_table(key=f"embedding/{name}", columns=columns, data=rows)
        except Exception as error:  # each logger has its own
            say(f"{type(logger).__name__}: did not take the report ({_reason(error)}); the run folder has it")


def finish_loggers(
    loggers: Sequence[Logger], figures: Mapping[str, Any] | None = None, failed: bool = False
) -> list[str]:
    """Hand the final figures to the loggers and close them. Returns lines that the person should see (how to
    sync).

    A logger beside the record that cannot be closed, say because its server is gone, is named and left: the
    run stands without it, and after a failure the failure is what has to be seen.
    """
    lines: list[str] = []
    numbers = {
        key: float(value)
        for key, value in (figures or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for logger in loggers:
        if isinstance(logger, RecordLogger):
            logger.finalize("failed" if failed else "success")
            continue
        try:
            if isinstance(logger, Wandb):
                lines.extend(logger.close(numbers, failed))
                continue
            if numbers:
                logger.log_metrics(numbers)
            logger.finalize("failed" if failed else "success")
        except Exception as error:  # each logger has its own
            say(
                f"{type(logger).__name__}: could not be closed ({_reason(error)}); "
                "the run folder has every figure"
            )
    return lines


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Wandb(WandbLogger):
    """Weights & Biases without an account, a question or a wait.

    Offline by default, into the run folder. ``mode="online"`` falls back to offline, with one line, where
    there is no key or the server does not answer within 5 s. A resumed run goes on under the same id.

    Args:
        folder: the run folder; wandb writes into its folder ``wandb``.
        id: the id of the run, for good: the name of the run folder.
        mode: online, offline or disabled.
        project, name, entity, group, tags: as wandb shows them.
        step: steps that the checkpoint of a resumed run has seen; None for a new run.
    """

    def __init__(
        self,
        folder: str,
        id: str,
        mode: str = "offline",
        project: str = "textbed",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        step: int | None = None,
    ) -> None:
        if mode not in _WANDB_MODES:
            raise UserError(
                f"logger.wandb.mode={mode!r}: expected online, offline or disabled."
                f"{nearest(mode, _WANDB_MODES)}"
            )
        self._mode = _WANDB_MODES[mode]
        self._resumed = step is not None
        self._run_folder = RunFolder(folder)
        if self._mode == "online" and is_rank_zero():
            reason = _cannot_reach_wandb()
            if reason:
                say(f"wandb: {reason}; this run is logged offline")
                self._mode = "offline"
        super().__init__(
            name=name or id,
            save_dir=folder,
            id=id,
            project=project,
            mode=self._mode,
            entity=entity,
            group=group,
            tags=list(tags) if tags else None,
            # console off: the run has its own log.txt, and wrapping stdout costs time at every line; git off:
            # run.json has it
            settings={
                "silent": True,
                "console": "off",
                "disable_git": True,
                "save_code": False,
                "disable_job_creation": True,
                "init_timeout": 20,
            },
        )
        self._wandb_init.pop("anonymous", None)  # wandb warns about the mere presence of it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, begun at first use."""
        if self._experiment is not None:
            return self._experiment
        replay = self._mode == "offline" and self._resumed and self._drop_parts()
        try:
            run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        except ImportError as error:
            raise UserError(
                "logger=wandb: the package wandb is missing; pip install wandb, or logger=none"
            ) from error
        except Exception as error:
            # a logger is a mirror: whatever is wrong with it, the run goes on
            fallback = "offline" if self._mode == "online" else "disabled"
            say(f"wandb: cannot start {self._mode} ({_reason(error)}); this run's wandb logger is {fallback}")
            if self._mode == "disabled":
                raise
            self._mode = self._wandb_init["mode"] = fallback
            return self.experiment
        if replay:
            self._replay()
        return run

    def close(self, figures: Mapping[str, float], failed: bool = False) -> list[str]:
        """Put the final figures into the run's summary and end it. Returns the line that says how to sync."""
        if self._experiment is None or not is_rank_zero():
            return []
        run = self._experiment
        run.summary.update(dict(figures))
        run.finish(exit_code=1 if failed else 0)
        self._experiment = None
        if self._mode != "offline":
            return []
        parts = sorted(self._parts())
        return (
            [f"wandb: logged offline; to upload: wandb sync {shlex.join(map(str, parts))}"] if parts else []
        )

    def _parts(self) -> list[Path]:
        return list((self._run_folder.path / "wandb").glob(f"offline-run-*-{self._id}"))

    def _drop_parts(self) -> bool:
        # What a killed process left offline is incomplete (the last block of 32 KiB is missing, often that is
        # all) and holds steps that are made again. Unless a part was uploaded, the run is written anew from
        # the record.
        parts = self._parts()
        if not parts or any(any(part.glob("*.synced")) for part in parts):
            return False
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def _replay(self) -> None:
        if not self._run_folder.record_file.exists():
            return
        for line in read_metrics(self._run_folder.record_file):
            figures = {
                key: value for key, value in line.items() if key not in ("step", "time") and value is not None
            }
            self.log_metrics(figures, step=line["step"])


def _cannot_reach_wandb() -> str | None:
    """Why wandb cannot be used online, in a few words; None where it can."""
    url = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = url.hostname or "api.wandb.ai"
    if not _has_wandb_key(host):
        return "online was asked for, but there is no key (wandb login, or WANDB_API_KEY)"
    proxy = urllib.request.getproxies().get(url.scheme)
    where = url
    if proxy and not urllib.request.proxy_bypass(host):
        where = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = where.port or (80 if where.scheme == "http" else 443)
    if not _answers(where.hostname or host, port, _PROBE_SECONDS):
        return f"{where.hostname or host} does not answer within {_PROBE_SECONDS:g} s"
    return None


def _has_wandb_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(found and found[2])


def _answers(host: str, port: int, seconds: float) -> bool:
    # in a thread of its own: looking up a name has no time limit
    answered = threading.Event()

    def probe() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=seconds):
            answered.set()

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def mlflow_logger(
    folder: str,
    id: str,
    name: str | None = None,
    experiment: str = "textbed",
    tracking_uri: str | None = None,
) -> Logger:
    """Make an MLflow logger: by default on a database of its own in the run folder, without a server.

    A resumed run is found again by its id and goes on.

    Args:
        folder: the run folder.
        id: the id of the run, kept as the tag ``textbed.run``.
        name: the run's name as MLflow shows it; null is ``id``.
        experiment: the experiment it stands under.
        tracking_uri: null is ``sqlite:///<folder>/mlflow.db``; ``http://...`` for a server.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    for log in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
        # 40 lines about the tables of a new database
        logging.getLogger(log).setLevel(logging.ERROR)
    local = tracking_uri is None
    uri = tracking_uri or f"sqlite:///{folder}/mlflow.db"
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=name or id,
        tracking_uri=uri,
        tags={"textbed.run": id},
        artifact_location=Path(folder, "mlflow").as_uri() if local else None,
    )
    if is_rank_zero():
        known = logger._mlflow_client.get_experiment_by_name(experiment)
        if known is not None:
            runs = logger._mlflow_client.search_runs([known.experiment_id], f"tags.`textbed.run` = '{id}'")
            if runs:
                logger._run_id = runs[0].info.run_id
    return logger
