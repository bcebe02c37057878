"""From the command line to an exit code: a user's mistake is one line, only ours keeps its traceback."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    CompactHydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from textbed.config import PRETRAINED, expected, keys_of, shown, unknown_key
from textbed.errors import UserError, nearest
from textbed.imports import is_plain
from textbed.schema import GLOBAL_GROUPS, TrainConfig

FULL_ERROR = "HYDRA_FULL_ERROR"
# Set by whoever starts the command: then every error keeps its traceback.
WANTED = os.environ.get(FULL_ERROR) == "1"

# What reading a composed configuration can raise. The check leaves nothing of the kind behind; any other of
# OmegaConf's errors comes from our own code, and keeps its traceback.
BEFORE_THE_CHECK = (InterpolationResolutionError, GrammarParseError, MissingMandatoryValue)

# Keys that hold further keys, and those of them that may be null.
KEYED = ("data", "classifier", "report", "paths", "tokenizer", "embedding", "head", "optimizer", "trainer")
KEYED_OR_NULL = ("scheduler", "callbacks", "logger")

RUN = "hydra.mode=RUN"

_failed_jobs: list[str] = []

# Hydra copies this singleton, which it never changes, for each of the hundred groups that the help page
# lists: half of its 1.5 s. What it holds is still copied whenever it is given out.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def run(main: Callable[[], Any], configs: Path) -> None:
    """Run a ``hydra.main`` function, whose config files lie in ``configs``, and leave with its exit code.

    1 after a user's mistake, 130 after an interruption. Hydra prints its own errors over several lines,
    unless HYDRA_FULL_ERROR asks it to let them through: they are let through, and put into words here.
    """
    os.environ[FULL_ERROR] = "1"
    with one_line_errors(configs), _composed_once():
        main()
    sys.exit(1 if _failed_jobs else 0)


@contextmanager
def _composed_once() -> Iterator[None]:
    """What Hydra composes to see whether it is to sweep is what it runs with, where it is not.

    By itself it composes all of that again, 0.15 s, as with ``TEXTBED_PLAIN_START=1`` in the environment.
    """
    if is_plain() or {"-m", "--multirun"} & {*sys.argv}:
        yield
        return
    load, get_mode = ConfigLoaderImpl.load_configuration, Hydra.get_mode
    kept: dict[tuple[str | None, tuple[str, ...]], DictConfig] = {}

    def load_kept(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        *how: Any,
        **named: Any,
    ) -> DictConfig:
        cfg = kept.pop((config_name, tuple(overrides)), None) if run_mode == RunMode.RUN else None
        return load(self, config_name, overrides, run_mode, *how, **named) if cfg is None else cfg

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        try:
            cfg = self.compose_config(config_name, overrides, RunMode.RUN)
        except Exception:  # of a sweep, or a mistake: Hydra's own way says so in its time
            return get_mode(self, config_name, overrides)
        found = cfg.hydra.mode
        if found is None:  # Hydra goes on with one override more
            cfg.hydra.mode = RunMode.RUN
            cfg.hydra.overrides.hydra.append(RUN)
            kept[config_name, (*overrides, RUN)] = cfg
        return found

    ConfigLoaderImpl.load_configuration, Hydra.get_mode = load_kept, mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration, Hydra.get_mode = load, get_mode  # type: ignore[method-assign]


@contextmanager
def one_line_errors(configs: Path = Path("configs")) -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and exit code 1, an interruption into exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        if WANTED:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = None if WANTED else explain(error, configs)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def job() -> Iterator[None]:
    """One job of a Hydra program: a mistake in it fails this job alone, so that a sweep goes on to the next.

    While it runs, the environment is the user's own, for the processes that training may start.
    """
    if not WANTED:
        os.environ.pop(FULL_ERROR, None)
    try:
        yield
    except Exception as error:
        line = None if WANTED else explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        note_failure(" ".join(task_overrides()))
    finally:
        os.environ[FULL_ERROR] = "1"


def note_failure(overrides: str) -> None:
    """A job failed that has been reported: the command is to leave with 1 when all are done."""
    _failed_jobs.append(overrides)


class Sweep(Callback):
    """What is done before the first job of a sweep; Hydra calls it, see ``configs/hydra/default.yaml``.

    An experiment may say itself what it sweeps over (``hydra.sweeper.params``). Hydra's sweeper makes every
    combination of that and the command line, with the same key in both too: ``data=trec`` would then be run
    once for each data set of the experiment. Here the command line takes the experiment's place.

    A sweep that needs pretrained vectors and has none ends here, in one line instead of one for each job.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with one_line_errors():  # Hydra would turn an exception into a warning, and go on
            typed = _swept(config.hydra.overrides.task)
            own = config.hydra.sweeper.get("params") or {}
            texts = {
                key: value["values"] if OmegaConf.is_dict(value) else value for key, value in own.items()
            }
            params = {key: _swept([f"{key}={text}"]) for key, text in texts.items()}
            with flag_override(config, ["readonly", "struct"], [False, False]):
                for key, swept in params.items():
                    if swept.keys() & typed.keys():
                        del own[key]
                    else:
                        typed |= swept
            _check_vectors(config, typed)


def _swept(overrides: Iterable[str]) -> dict[str, list[Any]]:
    """The values that each key or group is to have, one job after the other."""

    def values(override: Override) -> list[Any]:
        if not override.is_sweep_override():
            return [override.value()]
        return [*override.sweep_iterator()] if override.is_discrete_sweep() else []  # an interval has no list

    # A glob is looked up among the options of its group.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(list(overrides))
    return {override.key_or_group: values(override) for override in parsed}


def _check_vectors(config: DictConfig, swept: dict[str, list[Any]]) -> None:
    """An experiment that is about vectors from elsewhere sets embedding.vectors to null, where the options
    would train some on the training split."""
    given = swept.get("embedding.vectors", [])
    if given and None not in given:
        return
    options = swept.get("embedding", [config.hydra.runtime.choices.get("embedding")])
    experiment = config.hydra.runtime.choices.get("experiment")
    chosen = [f"experiment={experiment}"] if isinstance(experiment, str) else []
    needy = [
        option
        for option in options
        if option in PRETRAINED
        and (given or compose("train", [*chosen, f"embedding={option}"]).embedding.vectors is None)
    ]
    if needy:
        raise UserError(
            f"embedding.vectors: this sweep is over pretrained vectors (embedding={','.join(needy)}), and no "
            "file of them is given; give embedding.vectors=FILE, or embedding=random for what needs none."
        )


def add_import(parser: argparse.ArgumentParser) -> None:
    """Give a script the option ``--import``; :func:`import_own` does what it says."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, which defines a front end or head of your own; may be repeated",
    )


def at_least_one(text: str) -> int:
    """A whole number of at least 1, as the type of a script's option."""
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def import_own(modules: Iterable[str]) -> None:
    """Import modules that hold parts of a model, from the current folder too.

    A run folder names its parts, but names alone import nothing: the folder may be a stranger's, and what is
    imported runs. The current folder comes last on the path, so that no file in it takes a package's place.

    Raises:
        UserError: there is no such module.
    """
    for name in modules:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # of something that the module itself imports
            raise UserError(
                f"--import {name}: there is no such module, neither installed nor in {here}"
            ) from None


def task_overrides(without: str | None = None) -> list[str]:
    """What the command line (and the sweep) changed, as given; ``without`` leaves out one key."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(given, list)
    return [str(one) for one in given if str(one).lstrip("+~").partition("=")[0] != without]


def chosen_options() -> dict[str, Any]:
    """The option chosen in each config group."""
    choices = OmegaConf.to_container(HydraConfig.get().runtime.choices)
    assert isinstance(choices, dict)
    return {str(group): option for group, option in choices.items()}


def explain(error: BaseException, configs: Path = Path("configs")) -> str | None:
    """One line for a mistake in the input: key, value, what was expected. None where it is no such thing."""
    if isinstance(error, UserError):
        return _one_line(str(error))
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, InstantiationException):
        return _not_made(error)
    if isinstance(error, CompactHydraException):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OmegaConfBaseException):
            return _not_merged(error, cause, configs)
        if isinstance(cause, yaml.YAMLError):
            return _unreadable_file(cause)
        return _composition(str(error), configs)
    if isinstance(error, yaml.YAMLError):
        return _unreadable_file(error)
    if isinstance(error, BEFORE_THE_CHECK):
        return _one_line(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}")
    if isinstance(error, ValueError) and "Config group override must be a string" in str(error):
        return _no_option(sys.argv[1:])
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _groups() -> list[str]:
    return [*GLOBAL_GROUPS, *(item.name for item in fields(TrainConfig))]


def _missing_file(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _one_line(str(error))
    options = sorted(str(one) for one in error.options or ())
    if not options:
        return f"{shown(group, option)}: there is no such config group.{nearest(group, _groups())}"
    return f"{shown(group, option)}: expected one of {', '.join(options)}.{nearest(option, options)}"


def _no_option(arguments: list[str]) -> str:
    """A group without an option, such as ``data=null``: Hydra does not say which."""
    given = next((one for one in arguments if one.endswith("=null")), "GROUP=null")
    group = given.removesuffix("=null")
    return f"{given}: expected the name of an option; --help lists them. To leave a group out, give ~{group}."


def _unreadable(error: OverrideParseException) -> str:
    reason = error.message.splitlines()[0]
    reason = "" if "LexerNoViableAlt" in reason else f" ({reason})"
    if error.override in _groups():
        return f"{error.override}: expected a value, as in {error.override}=VALUE; --help lists the choices."
    if "=" not in error.override:
        return f"{error.override}: expected KEY=VALUE or GROUP=OPTION.{nearest(error.override, _groups())}"
    return _one_line(
        f"{error.override}: this cannot be read{reason}; a value with spaces or any of ~,=()[]{{}}: in it "
        "needs quotes within quotes, as in 'name=\"a, b\"'."
    )


def _not_made(error: InstantiationException) -> str:
    """A constructor that refused its arguments."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        return _one_line(str(cause))
    place = re.search(r"full_key: (\S+)", str(error))
    reason = f"{type(cause).__name__}: {cause}" if cause else str(error).splitlines()[0]
    target = re.search(r"target '([^']+)'", str(error))
    if type(cause).__name__ == "MisconfigurationException":  # Lightning's own words to a user
        return _one_line(f"{place[1] if place else 'trainer'}: {cause}")
    return _one_line(
        f"{place[1] if place else 'configuration'}: {target[1] if target else 'the class'} refuses its "
        f"arguments: {reason} ({FULL_ERROR}=1 shows where)"
    )


def _not_merged(error: Exception, cause: OmegaConfBaseException, configs: Path) -> str:
    """A key or value that the schema, or the file chosen, does not have a place for."""
    file = re.match(r"In '([^']+)'", str(error))
    override = re.search(r"(?:use \+|Error merging override )(.*)", str(error))
    given: Any = override[1].partition("=")[2] if override else None
    where = ""
    if file:
        path = configs / f"{file[1]}.yaml"
        content = _content(path)
        where = f"{path}: "
        given = OmegaConf.select(content, cause.full_key) if cause.full_key else None
        for name in (*KEYED, *KEYED_OR_NULL):
            null = name in KEYED_OR_NULL and content.get(name) is None
            if name in content and not null and not OmegaConf.is_dict(content[name]):
                return _one_line(f"{where}{shown(name, content[name])}: expected keys and their values.")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return where + _no_such_key(cause, given)
    if isinstance(cause, ValidationError) and cause.full_key:
        wanted = expected(cause.full_key)
        reason = f"expected {wanted}." if wanted else str(cause).splitlines()[0]
        return _one_line(f"{where}{shown(cause.full_key, cause.value)}: {reason}")
    line = str(cause).splitlines()[0]
    return _one_line(f"{where}{override[1] + ': ' if override else ''}{line}")


def _content(path: Path) -> DictConfig:
    """A config file as it stands; nothing where it lies elsewhere (``--config-dir``)."""
    try:
        content = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        return OmegaConf.create()
    return content if isinstance(content, DictConfig) else OmegaConf.create()


def _no_such_key(cause: OmegaConfBaseException, given: Any) -> str:
    full_key = str(cause.full_key)
    place, _, name = full_key.rpartition(".")
    value = given if isinstance(given, str | int | float | bool) else "..."
    node = OmegaConf.to_container(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else {}
    assert isinstance(node, dict)
    known = keys_of(place, {str(one): value for one, value in node.items()})
    if name in known:
        add = f"add it with +{full_key}=VALUE"
        return f"{shown(full_key, value)}: the chosen file of {place} does not list it; {add}."
    names = {*(str(one) for one in node if one != "hydra"), *known, *([] if place else _groups())}
    return unknown_key(place, name, value, names)


def _composition(text: str, configs: Path) -> str:
    """Hydra's other complaints, which come over several lines."""
    file = re.match(r"In '([^']+)': ", text)
    where = f"{configs / file[1]}.yaml: " if file else ""
    group = re.search(r"Could not override '([^']+)'", text)
    if group:
        name = group[1].lstrip("/")
        known = _groups()
        return f"{where}{name}: there is no such config group.{nearest(name, known)}"
    twice = re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+: (\S+)'", text)
    if twice:
        name, option = twice.groups()
        return f"+{name}={option}: the group has a choice already; change it with {name}={option}."
    sweep = re.match(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        name, _, value = sweep[1].partition("=")
        hint = f"to run one after the other add -m, to give a list write {name}=[{value}]"
        return f"{sweep[1]}: several values; {hint}."
    return _one_line(text)


def _unreadable_file(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return _one_line(f"a config file is not valid YAML: {error}")
    reason = getattr(error, "problem", None) or "not valid YAML"
    return _one_line(f"{mark.name}, line {mark.line + 1}: not valid YAML: {reason}")
