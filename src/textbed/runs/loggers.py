"""The loggers that mirror the record: Weights & Biases, TensorBoard, MLflow, and what a config file names.

A further one is one config file with a ``_target_``; the placeholders of :func:`make_loggers` tell it where
the run lies and what it is called. None of them asks anything, none waits longer than 5 s for a server, and
whatever becomes of one, the run goes on: the record is complete without them.
"""

from __future__ import annotations

import base64
import csv
import importlib.metadata
import io
import logging
import os
import shlex
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from textbed.errors import UserError, nearest
from textbed.runs.folder import RunFolder, is_rank_zero, say
from textbed.runs.lines import read_metrics
from textbed.runs.record import RecordLogger
from textbed.runs.registry import ASIDE, REPEATS, flat

Table = tuple[list[str], list[list[Any]]]
"""Names of columns, and rows."""
OPTIONS = ("data", "tokenizer", "embedding", "head")
"""Config groups whose option is a label of the run."""
_WANDB_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
WAIT_SECONDS = 5.0
_MOST_NAME = 100  # characters; wandb takes 128 for names and groups
_MOST_TAG = 64  # what wandb takes
_MOST_CLASSES = 100  # of more, a confusion matrix is no table that one looks at
_MOST_TEXT = 1000  # characters of a document
# What run.json knows beyond the configuration: with it, a project can be compared as run folders are.
_FACTS = ("choices", "versions", "python", "git", "command", "host", "device", "threads", "data")
# Figures that TensorBoard's table of hyperparameters has a column for.
_TENSORBOARD_FIGURES = ("test/accuracy", "test/f1_macro", "test/loss", "best/val/accuracy", "best/val/loss")


# What a run is called


def what_differs(overrides: Sequence[str], repeats: bool = True) -> str:
    """What was typed to change the experiment, in a few words: ``head=gru seed=1``; empty for nothing.

    Left out is what alters no figure (paths, loggers, ...), and of a value that is a path all but its end.

    Args:
        overrides: as on the command line.
        repeats: whether seed and fold belong to it.
    """
    aside = ("experiment", "hydra", *ASIDE, *(() if repeats else REPEATS))
    words = []
    for override in overrides:
        key, equals, value = override.partition("=")
        name = key.lstrip("+~").partition("@")[0]
        if name in aside or name.startswith(tuple(f"{one}." for one in aside)):
            continue
        words.append(f"{key}{equals}{value if '{' in value else value.rpartition('/')[2]}")
    return " ".join(words)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _placeholders(folder: RunFolder) -> dict[str, Any]:
    overrides = folder.overrides()
    setting = f"{folder.name} {what_differs(overrides, repeats=False)}".strip()
    chosen = folder.info().get("choices") or {}
    return {
        "label": _clipped(what_differs(overrides) or folder.name, _MOST_NAME),
        "setting": _clipped(setting, _MOST_NAME),
        "options": {group: str(chosen[group]) for group in OPTIONS if chosen.get(group) is not None},
    }


# Making and closing them


def make_loggers(
    settings: Mapping[str, Any] | None, folder: RunFolder, resume_step: int | None = None
) -> list[Logger]:
    """Make the loggers of a run: always the record, then those of the config group ``logger``.

    Args:
        settings: the resolved group, name -> ``{_target_: ...}``; a null entry is left out. Filled in are
            ``{folder}``, ``{id}`` and ``{name}`` of the run folder, ``{step}`` (``resume_step``), ``{label}``
            (what was typed to change the experiment), ``{setting}`` (the same without seed and fold, after
            the run's name) and ``{options}`` (config group -> option).
        folder: the run folder, started.
        resume_step: steps that the checkpoint of a resumed run has seen; None for a new run.

    Raises:
        UserError: a logger needs a package that is not installed, or a setting it does not know.
    """
    loggers: list[Logger] = [RecordLogger(folder.path, resume_step)]
    entries = {str(name): entry for name, entry in (settings or {}).items() if entry is not None}
    filling = _placeholders(folder) if entries else {}
    for name, entry in entries.items():
        loggers.append(_make_logger(name, folder.fill(entry, step=resume_step, **filling)))
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
        new: whether the run is not a resumed one: only some take a value that has changed since.
    """
    for logger in loggers:
        if new or isinstance(logger, Wandb | TensorBoard):
            logger.log_hyperparams(dict(settings))


def log_report(
    loggers: Sequence[Logger],
    pictures: Path,
    tables: Mapping[str, Table],
    confusion: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Hand pictures, tables and the confusion matrix of a run to the loggers that can take such things.

    Those are loggers with ``log_image(key, images)`` or ``log_table(key, columns, data)``, as Lightning's for
    wandb. One that fails is named and left, as in ``finish_loggers``.

    Args:
        pictures: the folder of PNG files; each goes under ``pictures/<name>``.
        tables: name -> columns and rows.
        confusion: (C, C) documents by their class and the class predicted; goes under
            ``test/confusion_matrix``, to wandb as its chart, elsewhere as a table.
        classes: the C names.
    """
    if confusion is not None and len(classes) > _MOST_CLASSES:
        confusion = None
    for logger in loggers:
        try:
            if hasattr(logger, "log_image"):
                for path in sorted(pictures.glob("*.png")):
                    logger.log_image(key=f"pictures/{path.stem}", images=[str(path)])
            if hasattr(logger, "log_table"):
                for name, (columns, rows) in tables.items():
                    logger.log_table(key=name, columns=columns, data=rows)
                if confusion is not None and isinstance(logger, Wandb):
                    logger.log_confusion("test/confusion_matrix", confusion, classes)
                elif confusion is not None:
                    rows = [[name, *row] for name, row in zip(classes, confusion.tolist(), strict=True)]
                    logger.log_table(
                        key="test/confusion_matrix", columns=["class / predicted", *classes], data=rows
                    )
        except Exception as error:  # each logger has its own
            say(f"{type(logger).__name__}: did not take the report ({_reason(error)}); the run folder has it")


def prediction_table(
    rows: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    text_of: Callable[[int], str],
    most: int = 100,
) -> Table:
    """The documents that were predicted worst: those whose classes got the least probability, worst first.

    Args:
        rows: (n,) the documents' rows in their split.
        labels: (n,) class ids, or (n, C) of 0 and 1 for multi-label.
        probabilities: (n, C).
        classes: the C names.
        text_of: row -> text.
        most: how many documents.
    """
    names = np.array([str(name) for name in classes])
    if labels.ndim == 2:
        right = 1 - np.abs(probabilities - labels).max(axis=1)  # of the class that is furthest off
        true, said = ([", ".join(names[hits]) for hits in one] for one in (labels > 0, probabilities > 0.5))
    else:
        right = probabilities[np.arange(len(labels)), labels]
        true, said = (names[ids].tolist() for ids in (labels, probabilities.argmax(axis=1)))
    worst = np.argsort(right, kind="stable")[:most].tolist()
    return ["row", "text", "class", "predicted", "probability of the class"], [
        [int(rows[i]), _clipped(text_of(int(rows[i])), _MOST_TEXT), true[i], said[i], float(right[i])]
        for i in worst
    ]


def finish_loggers(
    loggers: Sequence[Logger], figures: Mapping[str, Any] | None = None, failed: bool = False
) -> list[str]:
    """Hand the final figures to the loggers and close them. Returns lines that the person should see (how to
    sync).

    A logger beside the record that cannot be closed, say because its server is gone, is named and left: the
    run stands without it, and after a failure the failure is what has to be seen.

    What validation gave to the tested checkpoint goes to loggers of curves as ``best/val/...``: under its own
    name it would be one more point of its curve.
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
                logger.log_metrics(
                    {
                        f"best/{key}" if key.startswith("val/") else key: value
                        for key, value in numbers.items()
                    },
                    step=int(numbers.get("steps", 0)),
                )
            logger.finalize("failed" if failed else "success")
        except Exception as error:  # each logger has its own
            say(
                f"{type(logger).__name__}: could not be closed ({_reason(error)}); "
                "the run folder has every figure"
            )
    return lines


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Weights & Biases


class Wandb(WandbLogger):
    """Weights & Biases without an account, a question or a wait.

    Offline by default, into the run folder. ``mode="online"`` falls back to offline, with one line, where
    there is no key or the server does not answer within 5 s. A resumed run goes on under the same id.

    Args:
        folder: the run folder; wandb writes into its folder ``wandb``.
        id: the id of the run, for good: the name of the run folder.
        mode: online, offline or disabled.
        project, name, entity, group, job_type, tags: as wandb shows them.
        options: config group -> option; each is a tag too, such as ``head=gru``.
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
        job_type: str | None = None,
        tags: Sequence[str] | None = None,
        options: Mapping[str, str] | None = None,
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
        begin = time.perf_counter()
        if self._mode == "online" and is_rank_zero():
            reason = cannot_reach_wandb()
            if reason:
                say(f"wandb: {reason}; this run is logged offline")
                self._mode = "offline"
        labels = [f"{group}={option}" for group, option in (options or {}).items()]
        super().__init__(
            name=name or id,
            save_dir=folder,
            id=id,
            project=project,
            mode=self._mode,
            entity=entity,
            group=group,
            job_type=job_type,
            tags=[_clipped(tag, _MOST_TAG) for tag in (*labels, *(tags or ()))] or None,
            settings=_OFFLINE_SETTINGS if self._mode != "online" else _online_settings(begin),
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
            import wandb

            wandb.teardown()  # its process holds the id of the run that could not start
            self._mode = self._wandb_init["mode"] = fallback
            self._wandb_init["settings"] = _OFFLINE_SETTINGS
            return self.experiment
        if replay:
            self._replay()
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The configuration, and under ``run`` what run.json knows: versions, revision, machine, data."""
        info = self._run_folder.info() if self._run_folder.info_file.exists() else {}
        facts = {key: info[key] for key in _FACTS if info.get(key) is not None}
        super().log_hyperparams({**params, **({"run": facts} if facts else {})})

    @rank_zero_only
    def log_confusion(self, key: str, matrix: np.ndarray, classes: Sequence[str]) -> None:
        """Log a (C, C) confusion matrix as wandb's own chart of one."""
        import wandb

        rows = [
            [true, said, count]
            for true, counts in zip(classes, matrix.tolist(), strict=True)
            for said, count in zip(classes, counts, strict=True)
        ]
        columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]  # as the chart calls them
        chart = wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=columns, data=rows),
            fields={str(name): str(name) for name in columns},
            string_fields={"title": key},
        )
        self.log_metrics({key: chart})  # type: ignore[dict-item]

    def close(self, figures: Mapping[str, float], failed: bool = False) -> list[str]:
        """Put the final figures into the run's summary and end it. Returns the line that says how to sync."""
        if self._experiment is None or not is_rank_zero():
            return []
        run = self._experiment
        run.summary.update(dict(figures))
        try:
            run.finish(exit_code=1 if failed else 0)
            said = "logged offline; to upload" if self._mode == "offline" else None
        except TimeoutError:
            said = f"the server did not take all within {WAIT_SECONDS:g} s; to upload the rest"
        self._experiment = None
        parts = sorted(self._parts())
        return [f"wandb: {said}: wandb sync {shlex.join(map(str, parts))}"] if said and parts else []

    def _parts(self) -> list[Path]:
        kind = "offline-run" if self._mode == "offline" else "run"
        return list((self._run_folder.path / "wandb").glob(f"{kind}-*-{self._id}"))

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


# console off: the run has its own log.txt, and wrapping stdout costs time at every line; git off: run.json
# has it. Where nothing is waited for but wandb's own process, a busy machine may need a while to start that.
_OFFLINE_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "disable_job_creation": True,
    "init_timeout": 20,
}


def _online_settings(begin: float) -> dict[str, Any]:
    """Those of a run that is sent while it goes on: to start, it has what is left of the 5 s since ``begin``;
    at its end, what has not been sent within 5 s stays on disk."""
    left = max(1.0, WAIT_SECONDS - (time.perf_counter() - begin))
    return {
        **_OFFLINE_SETTINGS,
        "init_timeout": left,
        "finish_timeout": WAIT_SECONDS,
        "finish_timeout_raises": True,
    }


def cannot_reach_wandb() -> str | None:
    """Why wandb cannot be used online, in a few words; None where it can. At most 5 s."""
    import wandb

    # quiet from the start, also while it reads the key; where its server is, `wandb login --host` wrote down
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    url = (os.environ.get("WANDB_BASE_URL") or settings.base_url).rstrip("/")
    headers = {"Content-Type": "application/json"}
    if not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        key = os.environ.get("WANDB_API_KEY") or settings.api_key or _key_in_netrc(url)
        if not key:
            return "online was asked for, but there is no key (wandb login, or WANDB_API_KEY)"
        headers["Authorization"] = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    return cannot_reach(f"{url}/graphql", headers, b'{"query": "query { viewer { id } }"}')


def _key_in_netrc(url: str) -> str | None:
    # wandb's own reading: the same server has had several names, and a key of one is good for the other
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    try:
        return read_netrc_auth(host=url)
    except AuthenticationError:  # what stands there has not the form of a key
        return None


def cannot_reach(url: str, headers: Mapping[str, str] | None = None, data: bytes | None = None) -> str | None:
    """Why a server does not answer, in a few words; None where it does, whatever its answer. At most 5 s.

    A server that takes the connection and stays silent does not answer; nor does one that refuses the key in
    ``headers``. Where there is none, its client may know one.
    """
    host = urllib.parse.urlsplit(url).hostname or url
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, data, dict(headers or {}))
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS):
                reasons.append(None)
        except urllib.error.HTTPError as error:
            refused = error.code in (401, 403) and "Authorization" in (headers or {})
            reasons.append(f"{host} does not accept the key (HTTP {error.code})" if refused else None)
        except TimeoutError:
            pass
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, ssl.SSLError):  # it answered; which certificates are good, its client knows
                reasons.append(None)
            elif not isinstance(cause, TimeoutError):
                reasons.append(f"{host} cannot be reached ({_reason(cause)})")

    # in a thread of its own: looking up a name has no time limit
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    return reasons[0] if reasons else f"{host} does not answer within {WAIT_SECONDS:g} s"


# TensorBoard


class TensorBoard(TensorBoardLogger):
    """TensorBoard event files, with hyperparameters, pictures and tables."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration by dotted keys, for the table of hyperparameters.

        Lightning's own writes it only together with figures, which are not known yet.
        """
        from torch.utils.tensorboard.summary import hparams

        self.hparams.update(params)
        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flat(params).items()
        }
        experiment, session, _ = hparams(values, dict.fromkeys(_TENSORBOARD_FIGURES, 0.0))
        writer = self.experiment._get_file_writer()
        writer.add_summary(experiment)
        writer.add_summary(session)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        """Log PNG files."""
        from matplotlib.image import imread

        for path in images:
            pixels = (imread(path)[:, :, :3] * 255).round().astype(np.uint8)
            self.experiment.add_image(key, pixels, dataformats="HWC")

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> None:
        """Log a table as a text in Markdown."""
        from textbed.runs import comparison_tables as shown

        rows = [[shown.NONE if cell is None else str(cell) for cell in row] for row in data]
        self.experiment.add_text(key, shown.markdown([shown.Table(key, list(columns), rows)], []))


# MLflow


class MLflow(MLFlowLogger):
    """MLflow: by default in a database of its own in the run folder, without a server.

    Where a server does not answer within 5 s, or refuses, the run is logged into that database, with one
    line. A resumed run is found again by its id and goes on.

    Args:
        folder: the run folder.
        id: the id of the run, kept as the tag ``textbed.run``.
        name: the run's name as MLflow shows it; null is ``id``.
        experiment: the experiment it stands under.
        tracking_uri: null is ``sqlite:///<folder>/mlflow.db``; ``http://...`` for a server.
        setting: what runs have in common that differ in seed and fold alone, kept as the tag
            ``textbed.setting``.
        options: config group -> option, kept as tags.
    """

    def __init__(
        self,
        folder: str,
        id: str,
        name: str | None = None,
        experiment: str = "textbed",
        tracking_uri: str | None = None,
        setting: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        for log in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
            # 40 lines about the tables of a new database
            logging.getLogger(log).setLevel(logging.ERROR)
        # of its own accord it would try for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{WAIT_SECONDS:.0f}")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        self._gone = False
        tags = {"textbed.run": id, **({"textbed.setting": setting} if setting else {}), **(options or {})}

        def begin(uri: str | None) -> None:
            super(MLflow, self).__init__(
                experiment_name=experiment,
                run_name=name or id,
                tracking_uri=uri or f"sqlite:///{folder}/mlflow.db",
                tags=tags,
                artifact_location=Path(folder, "mlflow").as_uri() if uri is None else None,
            )
            if is_rank_zero():
                self._take_up(experiment, id)

        if tracking_uri is None or not tracking_uri.startswith("http") or not is_rank_zero():
            begin(tracking_uri)
            return
        reason = cannot_reach(tracking_uri)
        if reason is None:
            try:
                begin(tracking_uri)
            except ImportError:
                raise
            except Exception as error:  # MLflow's own: it refuses the key, or is no server of MLflow's
                reason = _reason(error)
        if reason is not None:
            say(f"mlflow: {reason}; this run is logged into mlflow.db in its folder")
            begin(None)

    def _take_up(self, experiment: str, id: str) -> None:
        """Go on with the run of this id, where there is one."""
        known = self._mlflow_client.get_experiment_by_name(experiment)
        runs = known and self._mlflow_client.search_runs(
            [known.experiment_id], f"tags.`textbed.run` = '{id}'"
        )
        if runs:
            self._run_id = runs[0].info.run_id
            self._mlflow_client.update_run(self._run_id, status="RUNNING")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures; from the first that the server does not take on, none."""
        if self._gone:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # a logger is a mirror: the run goes on
            self._gone = True
            say(f"mlflow: takes no more figures ({_reason(error)}); the run folder has them")

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        """Keep files as artifacts."""
        for path in images:
            self.experiment.log_artifact(self.run_id, path, str(Path(key).parent))

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> None:
        """Keep a table as an artifact in CSV, which MLflow shows as a table."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *data])
        self.experiment.log_text(self.run_id, text.getvalue(), f"{key}.csv")
