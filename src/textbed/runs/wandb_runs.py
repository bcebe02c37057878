"""Runs that lie at Weights & Biases, in a project or in a folder of offline runs, for a comparison; and the
comparison sent there.

What a run of ours has logged there is all that is needed: the configuration, under ``run`` what run.json
knows, and the final figures as its summary. Predictions by document are read from the run folder, where that
is still at its place. Nothing here imports torch before something is sent.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textbed.errors import UserError
from textbed.runs import comparison_tables as shown
from textbed.runs.comparison import Comparison
from textbed.runs.folder import RunFolder, new_id
from textbed.runs.registry import KILLED, Found, Run, flat

# What wandb calls how a run stands, and what run.json does.
_STATUSES = {"crashed": KILLED, "preempted": KILLED, "preempting": "running", "pending": "running"}
_COMPARISON = "comparison"  # the key of the configuration by which runs that send() made are known
_PLACES = ("epoch", "trainer/global_step")


@dataclass
class _Logged:
    """What is kept of a run there."""

    id: str
    name: str
    state: str
    config: dict[str, Any]
    summary: dict[str, Any]
    folder: Path | None = None
    """The run folder, where that is certain."""


def read(place: str) -> Found:
    """The runs of a project, or of the offline runs below a folder.

    Args:
        place: a folder, else ``PROJECT`` or ``ENTITY/PROJECT``.

    Raises:
        UserError: there is no such project or no run, no key, or the server does not answer within 5 s.
    """
    return _read_folder(Path(place)) if Path(place).is_dir() else _read_project(place)


def _read_project(name: str, api: Any = None) -> Found:
    if api is None:
        api = _api(name)
    try:
        runs = [
            _Logged(run.id, str(run.name), run.state, dict(run.config), dict(run.summary))
            for run in api.runs(name, lazy=False)
        ]
    except Exception as error:  # wandb's own errors, and those of what it speaks with the server by
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--wandb {name}: the project cannot be read ({reason}).") from error
    return _found(name, runs)


def _api(name: str) -> Any:
    from textbed.runs.loggers import WAIT_SECONDS, cannot_reach_wandb

    reason = cannot_reach_wandb()
    if reason:
        raise UserError(f"--wandb {name}: no such folder, and as a project it cannot be read: {reason}.")
    import wandb

    return wandb.Api(timeout=int(WAIT_SECONDS))


def _read_folder(folder: Path) -> Found:
    merged: dict[str, _Logged] = {}
    broken = []
    # a run that was uploaded and then resumed lies in several parts, whose names begin with the time
    for file in sorted(folder.rglob("run-*.wandb"), key=lambda file: file.parent.name):
        try:
            part = _inspect(file)
        except UserError as error:
            broken.append(str(error))
            continue
        before = merged.get(part.id)
        if before is not None:
            part.config, part.summary = before.config | part.config, before.summary | part.summary
        merged[part.id] = part
    return _found(str(folder), list(merged.values()), broken)


def _inspect(file: Path) -> _Logged:
    """What wandb's own tool reads in an offline run.

    Raises:
        UserError: it cannot read it, such as what a killed process left.
    """
    from wandb.util import get_core_path

    # `wandb leet` would do the same, after a second of imports for each run
    flags = ["--no-observability", "--summary", "--json"]
    command = [get_core_path(), "leet", "inspect", *flags, "--run-file", str(file)]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    try:
        content = json.loads(done.stdout)
        run = _Logged(*(content[key] for key in ("run_id", "name", "state", "config", "summary")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a whole run of wandb's") from error
    if RunFolder(file.parents[2]).id == run.id:  # RUN/wandb/offline-run-<time>-<id>/, wherever it was moved
        run.folder = file.parents[2]
    return run


def _place_of(above: Path, id: str) -> Path:
    """Where the folder of a run should be; the id of a fold is that of its run and its number."""
    whole, _, number = id.rpartition("-")
    fold = above / whole / "folds" / number
    return fold if fold.is_dir() else above / id


def _found(place: str, runs: Sequence[_Logged], broken: Sequence[str] = ()) -> Found:
    found, left_out = [], [*broken]
    for run in runs:
        if _COMPARISON in run.config:
            continue
        config = flat({key: value for key, value in run.config.items() if key != "run"})
        lacking = [key for key in ("seed", "name") if key not in config]
        if lacking:
            which = f"{place}, run {run.name or run.id}"
            left_out.append(f"{which}: its configuration has no {' and no '.join(lacking)}")
            continue
        metrics = {
            key: value
            for key, value in run.summary.items()
            if not key.startswith("_") and key not in _PLACES and _is_finite(value)
        }
        folder = run.folder or _place_of(
            Path(str(config.get("paths.runs", place)), str(config["name"])), run.id
        )
        status = _STATUSES.get(run.state, run.state)
        found.append(Run(RunFolder(folder), status, run.config.get("run") or {}, config, metrics))
    if not found and not left_out:
        raise UserError(f"--wandb {place}: there is no run in it.")
    return Found(sorted(found, key=lambda run: run.folder.id), sorted(left_out))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def send(comparison: Comparison, place: str) -> list[str]:
    """Send the tables of a comparison, as a run of the kind ``compare``: to the project, or offline into the
    folder.

    Without a key or a server it is kept offline in the current folder, as a run is.

    Returns:
        Lines that the person should see: where it lies, how to upload it.
    """
    from textbed.runs.loggers import Wandb

    local = Path(place).is_dir()
    entity, _, project = ("", "", "textbed") if local else place.rpartition("/")
    by, metric = ", ".join(comparison.by) or "all", comparison.metrics[0]
    logger = Wandb(
        folder=str(Path(place if local else ".").absolute()),
        id=f"compare-{new_id()}",
        mode="offline" if local else "online",
        project=project,
        entity=entity or None,
        name=f"{metric} by {by}",
        job_type="compare",
        tags=["compare"],
    )
    logger.log_hyperparams({_COMPARISON: {"by": list(comparison.by), "metrics": list(comparison.metrics)}})
    records = shown.records(comparison)
    logger.log_table("compare/groups", list(records[0]), [list(record.values()) for record in records])
    for table in shown.tables(comparison)[1:]:
        logger.log_table("compare/differences", _distinct(table.header), table.rows)
    logger.log_table("compare/notes", ["note"], [[line] for line in shown.lines(comparison)])
    run = logger.experiment
    where = [] if run.offline else [f"wandb: {run.url}"]
    return [*where, *logger.close({})]


def _distinct(header: Iterable[str]) -> list[str]:
    """Names of columns, of which a terminal may have two alike and wandb may not."""
    names: list[str] = []
    for name in header:
        name = name or "difference"
        names.append(f"{name}, documents" if name in names else name)
    return names
