"""Finds runs by their folders, without a server: which there are, how they stand, what they gave.

Nothing is kept between calls and nothing is written: what is found is what lies there now, so that folders
may be moved, copied and deleted at will. Nothing here imports torch.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from rich.cells import cell_len

from textbed.errors import UserError, nearest
from textbed.runs.folder import FORMAT, RunFolder
from textbed.runs.summary import duration

KILLED = "killed"
"""Status of a run that says it is running while its process is gone."""
REPEATS = ("seed", "data.fold")
"""In these the runs differ that a mean is taken over."""
# These differ without altering a figure, or say again what another key says.
ASIDE = (
    "callbacks.seeds.seed", "callbacks.progress", "classifier.reuse_mib", "data.eval_batch_size",
    "data.mirror", "data.path", "data.workers", "paths", "logger", "threads", "report", "name", "resume",
)  # fmt: skip
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_MARKS = frozenset({"run.json", "config.yaml"})
_DEPTH = 5  # folders below a given one: paths.runs, the parts of a name, the run
# libyaml reads a configuration ten times as fast as PyYAML's own code
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A block begins where a line does without indentation; lines of other kinds belong to the one above.
_BLOCK = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
_INDENT = re.compile(r"^  ", re.MULTILINE)
_HEADING = re.compile(r"([A-Za-z_]\w*):")
_NUMBER = re.compile(r"([A-Za-z_]\w*): (-?(?:0|[1-9]\d*)(\.\d+)?)\n?")


@dataclass(frozen=True)
class Run:
    """What comparing needs of a run."""

    folder: RunFolder
    status: str
    """``running``, ``finished``, ``failed``, ``interrupted`` or ``killed``."""
    info: Mapping[str, Any]
    """What run.json holds."""
    config: Mapping[str, Any]
    """The configuration by dotted keys; lists are values."""
    metrics: Mapping[str, Any]
    """The final figures by name; empty where the run has none yet."""

    @property
    def path(self) -> Path:
        return self.folder.path

    def choice(self, group: str) -> str | None:
        """The option taken in a config group: what was chosen, or where that is not on record what it made.

        None for a group that the run does not have.
        """
        chosen = self.info.get("choices") or {}
        if chosen.get(group) is not None:
            return str(chosen[group])
        for key in ("name", "kind", "_target_", "source"):
            value = self.config.get(f"{group}.{key}")
            if value is not None and not (key == "name" and group != "data"):
                return str(value).rpartition(".")[2] if key == "_target_" else str(value)
        return None

    def get(self, name: str) -> Any:
        """A value by name: of the configuration, the figures, run.json (dotted), or a group's option."""
        if name == "status":
            return self.status
        for values in (self.config, self.metrics):
            if name in values:
                return values[name]
        inside: Any = self.choice(name)
        if inside is None:
            inside = self.info
            for part in name.split("."):
                inside = inside.get(part) if isinstance(inside, Mapping) else None
        return inside

    def names(self) -> set[str]:
        """What :meth:`get` knows a value for."""
        groups = {key.partition(".")[0] for key in self.config}
        return {"status", *flat(self.info), *self.config, *self.metrics} | {
            group for group in groups if self.choice(group) is not None
        }


@dataclass(frozen=True)
class Found:
    """Runs, the oldest first, and a line on each folder that looks like one and is left out."""

    runs: list[Run]
    left_out: list[str]


def find(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """The runs among ``paths``, each once: run folders, folders that hold some, or patterns such as
    ``runs/mr*``.

    Raises:
        UserError: a path that is not there, is a file, or holds no run folder.
    """
    found: dict[str, Run | str] = {}
    for given in (os.fspath(path) for path in paths):
        places = [place for path in _existing(given) for place in _run_folders(path)]
        if not places:
            raise UserError(
                f"{given}: there is no run folder in it; expected one, or a folder of them such as runs/NAME."
            )
        for place in places:
            key = os.path.realpath(place)
            if key not in found:
                try:  # a link, as sweeps have them, is another name for a run: its own says when it began
                    found[key] = read(key if os.path.islink(place) else place)
                except UserError as error:
                    found[key] = str(error)
    runs = [one for one in found.values() if isinstance(one, Run)]
    return Found(
        sorted(runs, key=lambda run: (run.folder.id, str(run.path))),
        sorted(one for one in found.values() if isinstance(one, str)),
    )


def with_folds(runs: Iterable[Run], left_out: list[str]) -> list[Run]:
    """The runs, and in the place of each finished one of several folds these, which are what can be tested.

    Args:
        left_out: gets a line on each that has not all of its folds.
    """
    result: list[Run] = []
    for run in runs:
        if run.status != "finished" or not run.config.get("cross_validate"):
            result.append(run)
            continue
        try:
            result += [read(run.folder.fold(number).path) for number in range(run.config["data.folds"])]
        except UserError as error:
            left_out.append(str(error))
    return result


def whole(found: Found) -> list[Run]:
    """The runs found.

    Raises:
        UserError: there is none; the message is the first reason why.
    """
    if not found.runs:
        raise UserError(found.left_out[0])
    return found.runs


def read(path: str | os.PathLike[str]) -> Run:
    """Read one run folder.

    Raises:
        UserError: it is not whole, or of a format that is not known here.
    """
    folder = RunFolder(path)
    missing = [file.name for file in (folder.info_file, folder.config_file) if not file.is_file()]
    if missing:
        raise UserError(f"{folder.path}: not a whole run folder: {' and '.join(missing)} missing")
    info = folder.info()
    written = info.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(
            f"{folder.path}: written by a newer version (format {written}, of which this one knows {FORMAT})"
        )
    config = read_config(folder.config_file)
    lacking = [key for key in ("seed", "name") if key not in config]
    if lacking or "status" not in info:
        raise UserError(
            f"{folder.path}: of a format that is not known here: "
            + (f"config.yaml has no {' and no '.join(lacking)}" if lacking else "run.json has no status")
        )
    status = str(info["status"])
    if status == "running" and not _is_alive(folder, info):
        status = KILLED
    metrics: Mapping[str, Any] = {}
    if folder.metrics_file.is_file():
        metrics = folder.read_metrics()
    elif status == "finished":
        raise UserError(f"{folder.path}: the run is finished, but its metrics.json is missing")
    return Run(folder, status, info, config, metrics)


# Folders


def _existing(given: str) -> list[str]:
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        return [path]
    if os.path.exists(path):
        raise UserError(f"{given} is a file: expected a run folder, or a folder of them.")
    matched = sorted(place for place in glob.glob(path, recursive=True) if os.path.isdir(place))
    if not matched:
        parent = Path(path).parent
        beside = [place.name for place in parent.iterdir() if place.is_dir()] if parent.is_dir() else []
        raise UserError(f"{given}: there is no such folder.{nearest(Path(path).name, beside)}")
    return matched


def _run_folders(path: str, depth: int = _DEPTH) -> Iterator[str]:
    try:
        with os.scandir(path) as scan:
            entries = list(scan)
    except OSError:  # vanished meanwhile, or not ours to read
        return
    if _ID.fullmatch(os.path.basename(os.path.abspath(path))) or any(e.name in _MARKS for e in entries):
        yield path
    elif depth:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _run_folders(entry.path, depth - 1)


def _is_alive(folder: RunFolder, info: Mapping[str, Any]) -> bool:
    """Whether a run that says it is running is.

    A running one holds a lock on its log, which the system takes back however the process ends. Of a run on
    another host only what it says is known: locks need not reach from one to the other.
    """
    if info.get("host", socket.gethostname()) != socket.gethostname():
        return True
    return folder.is_locked()


# Configurations


def flat(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted keys; lists and empty mappings stay whole."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{place}{key}"
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{name}.")
        else:
            values[name] = value
    return values


def read_config(path: Path) -> dict[str, Any]:
    """The values of a configuration file by dotted keys.

    Runs have nearly all of their configuration in common, and reading YAML is slow: the file is read in
    blocks, those of a key within those of the key above, and a block that was read before is not read again.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            return _read_blocks(text)
        except yaml.YAMLError:  # a file written by hand need not fall into blocks
            return _read_whole(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error


def _read_blocks(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for block in _BLOCK.split(text):
        values |= _read_block(block)
    return values


@functools.lru_cache(maxsize=1 << 14)
def _read_block(text: str) -> dict[str, Any]:
    first, _, rest = text.partition("\n")
    heading = _HEADING.fullmatch(first)
    if heading and rest.startswith("  ") and not rest.startswith("  -"):
        key = heading[1]
        return {f"{key}.{name}": value for name, value in _read_blocks(_INDENT.sub("", rest)).items()}
    number = _NUMBER.fullmatch(text)  # what differs most from run to run, and is read without YAML
    if number:
        return {number[1]: float(number[2]) if number[3] else int(number[2])}
    return _read_whole(text)


def _read_whole(text: str) -> dict[str, Any]:
    content = yaml.load(text, _LOADER)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise yaml.YAMLError("expected keys and their values")
    return flat(content)


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of the keys that it lacks, those that came after the run was made.

    Args:
        config: values by dotted keys.
    """
    return {**_defaults(config.get("tokenizer.kind")), **config}


@functools.cache
def _defaults(tokenizer: str | None) -> dict[str, Any]:
    from textbed import schema  # Hydra, which takes a while to import

    parts: dict[str, type] = {
        "": schema.TrainConfig,
        "data.": schema.DataConfig,
        "embedding.": schema.EmbeddingConfig,
        "head.": schema.HeadConfig,
        "classifier.": schema.ClassifierConfig,
    }
    if tokenizer in schema.TOKENIZERS:
        parts["tokenizer."] = schema.TOKENIZERS[tokenizer]
    return {
        f"{place}{name}": list(value) if isinstance(value, tuple) else value  # as YAML has it
        for place, part in parts.items()
        for name, value in schema.defaults(part).items()
    }


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which configurations differ, without those that are repeats and those that alter no figure.

    A key that one of them lacks has its default there, or is null where the schema does not know it.
    """
    whole = [completed(config) for config in configs]
    aside = tuple(f"{part}." for part in ASIDE)
    return sorted(
        key
        for key in {key for values in whole for key in values} - {*REPEATS, *ASIDE}
        if not key.startswith(aside) and any(values.get(key) != whole[0].get(key) for values in whole[1:])
    )


# Choosing


def select(runs: Sequence[Run], conditions: Iterable[str]) -> list[Run]:
    """The runs for which all of ``conditions`` hold, each ``KEY=VALUE``; a text may be a pattern (``gru*``).

    Raises:
        UserError: no run knows the key.
    """
    chosen = list(runs)
    for condition in conditions:
        key, _, text = condition.partition("=")
        check_name(runs, key)
        chosen = [run for run in chosen if _matches(run.get(key), text)]
    return chosen


def _matches(value: Any, text: str) -> bool:
    try:
        if value == yaml.safe_load(text):
            return True
    except yaml.YAMLError:
        pass
    if isinstance(value, int | float):
        try:
            return value == float(text)  # 1e-3, which is a text to YAML
        except ValueError:
            return False
    return isinstance(value, str) and fnmatch.fnmatchcase(value, text)


def check_name(runs: Sequence[Run], name: str) -> None:
    """Raise a :class:`UserError` where no run knows a value of this name (see :meth:`Run.get`)."""
    if runs and not any(
        name in run.config or name in run.metrics or run.get(name) is not None for run in runs
    ):
        known = set().union(*(run.names() for run in runs))
        raise UserError(
            f"{name}: no run has a key or figure of this name; expected one such as seed, head, "
            f"optimizer.lr, status or test/accuracy.{nearest(name, known)}"
        )


def in_order(runs: Sequence[Run], name: str, descending: bool = False) -> list[Run]:
    """The runs by the value that they have for ``name``; those without one last."""
    check_name(runs, name)
    having = [run for run in runs if run.get(name) is not None]
    lacking = [run for run in runs if run.get(name) is None]
    numbers = all(isinstance(run.get(name), int | float) for run in having)

    def place(run: Run) -> Any:
        return run.get(name) if numbers else str(run.get(name))

    return sorted(having, key=place, reverse=descending) + lacking


def shown(value: Any) -> str:
    """A value in a table: figures with four places, what is not there as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


_ALWAYS = ("status", "seed", "data", "embedding", "head")


def show(runs: Sequence[Run], columns: Iterable[str] = (), file: IO[str] | None = None) -> None:
    """Print the list, on standard output by default: folders, status, options, figures.

    Args:
        columns: names of further values; see :meth:`Run.get`.
    """
    figures = [name for name in ("test/accuracy", "val/accuracy") if any(name in r.metrics for r in runs)]
    names = list(dict.fromkeys([*_ALWAYS, *columns, *figures[:1]]))
    rows = [["run", *names, "time"]]
    for run in runs:
        # the last two parts of a path say which run it is, wherever the command was given
        place = "/".join(run.path.parts[-2:])
        seconds = [value for name, value in run.metrics.items() if name.startswith("seconds/")]
        time = duration(sum(seconds)) if seconds else "–"
        rows.append([place, *(shown(run.get(name)) for name in names), time])
    # by hand: a thousand rows of a table of rich's take 1.5 s
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join(
            # names begin at the left, numbers end at the right
            text + gap if at == 0 else gap + text
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
            for gap in [" " * (width - cell_len(text))]
        )
        for row in rows
    ]
    lines.insert(1, "─" * (sum(widths) + 3 * len(names) + 3))
    counts = {
        status: sum(run.status == status for run in runs) for status in sorted({r.status for r in runs})
    }
    stands = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines += ["", f"{len(runs)} run{'s' if len(runs) != 1 else ''}" + (f": {stands}" if stands else "")]
    print("\n".join(lines), file=file or sys.stdout)
