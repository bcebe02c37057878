"""From ``python train.py -m`` to a sweep: its plan, its folder, a worker on this machine, what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from textbed import command, config
from textbed.errors import UserError
from textbed.runs import comparison_tables
from textbed.runs.folder import new_id
from textbed.sweeps import space
from textbed.sweeps.devices import Slot, shown, slots, usable_cores
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.queue import FINISHED, Queue
from textbed.sweeps.report import make_report
from textbed.sweeps.show import Screen
from textbed.sweeps.trial import Starter, start_plainly
from textbed.sweeps.warm import MODULES, SpareStarter, WarmStarter
from textbed.sweeps.worker import Worker, stages, trial_overrides

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

# Hydra's own overrides that are about the sweep, not about its trials.
_OF_THE_SWEEP = (
    "hydra/sweeper",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra.launcher",
    "hydra.sweep",
    "hydra.mode",
)

# What loggers import, by their name in the configuration.
_LOGGERS = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}


def launch(cfg: DictConfig, params: Mapping[str, Any], typed: list[str], loader: ConfigLoader) -> None:
    """Run a sweep to its end, and print the folders of its runs on standard output, in order.

    Args:
        cfg: what Hydra composed from the command line without what is swept over.
        params: what the config sweeps over (``hydra.sweeper.params``).
        typed: the command line's overrides.

    Raises:
        UserError: a mistake in what was asked for.
        KeyboardInterrupt: it was stopped, and can be gone on with.
    """
    plan = plan_of(cfg, params, typed, loader)
    place = plan.settings["dir"] or _new_place(cfg)
    folder = SweepFolder.create(Path(place), plan)
    with folder.errors():
        begin(folder)
        if not plan.settings["here"]:
            print(folder.path)
            return
        work(folder, f"go on with the same command and sweep.dir={folder.path}")
        report = make_report(folder)
        comparison_tables.show(report.tables, report.lines, sys.stderr)
        finish(folder)


def work(folder: SweepFolder, how_to_go_on: str, at_once: int | None = None) -> None:
    """Work on a sweep with the devices of this machine until it is over, and tell of it on stderr.

    Raises:
        KeyboardInterrupt: it was stopped; all trials have ended.
    """
    plan = folder.plan
    settings = {**plan.settings, "at_once": at_once or plan.settings["at_once"]}
    places = slots(settings, plan.accelerator, plan.threads)
    with Screen(folder) as screen:
        screen.said(shown(places))
        try:
            with starter(plan, places) as start:
                Worker(folder, places, screen, start).run()
        except KeyboardInterrupt:
            screen.said(how_to_go_on)
            raise


@contextmanager
def starter(plan: Plan, places: Sequence[Slot]) -> Iterator[Starter]:
    """What starts trials: on the CPU, or where that is asked for, by forking; on GPUs processes that stand
    by; plainly where that is asked for, or nothing else works."""
    warm = plan.settings["warm"]
    script = plan.program[1:2]
    if warm is False or sys.platform != "linux" or not script or script[0].startswith("-"):
        yield start_plainly
        return
    environment = {"OMP_NUM_THREADS": str(places[0].threads)}
    modules = [*MODULES, *plan.imports]
    start = (
        WarmStarter(environment, modules)
        if warm or places[0].is_cpu
        else SpareStarter(environment, modules, most=min(len(places), usable_cores()))
    )
    with start:
        yield start


def begin(folder: SweepFolder) -> None:
    """Put in the trials, or those that are missing or are to be tried again, and let the clock of the time
    limit run."""
    plan = folder.plan
    trials = Queue(folder, "trials", trial_overrides(plan), plan.space, draws=not plan.grid)
    folder.keep_plan()
    trials.limit_hours(plan.settings["hours"])
    if plan.grid:
        trials.fill()
    for queue in stages(folder):
        queue.put_back_failed()


def finish(folder: SweepFolder) -> None:
    """Print what the sweep left, and have the command fail where a trial did."""
    for queue in stages(folder):
        for row in queue.rows():
            link = folder.link(queue.name, row.number)
            if row.status == FINISHED and row.same_as is None and link.exists():
                print(link.resolve(), flush=True)
            elif row.failed:
                command.note_failure(row.name)


def plan_of(cfg: DictConfig, params: Mapping[str, Any], typed: list[str], loader: ConfigLoader) -> Plan:
    """What the command line asks for.

    Raises:
        UserError: it cannot be.
    """
    settings = config.check_sweep(cfg)
    parser = OverridesParser.create(config_loader=loader)
    own = OmegaConf.to_container(params) if isinstance(params, DictConfig) else dict(params)
    assert isinstance(own, dict)
    own = {str(key): value for key, value in own.items()}
    fixed, dimensions = space.read(own, typed, parser, grid=settings["sampler"] == "grid")
    for dimension in dimensions:
        if _is_of_sweep(dimension.key):
            raise UserError(f"{dimension.key}: how a sweep is run is the same for all of its trials.")
    given = {text.partition("=")[0].lstrip("+~"): text for text in fixed}
    if "resume" in given or any(one.key == "resume" for one in dimensions):
        raise UserError("resume: a sweep makes runs of its own; to go on with a sweep give sweep.dir=FOLDER.")
    monitor = OmegaConf.select(cfg, "callbacks.checkpoints.monitor") or "val/accuracy"
    plan = Plan(
        name=str(cfg.name),
        program=_program(cfg),
        cwd=str(Path.cwd()),
        fixed=[*_hydras(cfg), *(text for key, text in given.items() if not _is_of_sweep(key))],
        space=dimensions,
        objectives=settings["objectives"] or [str(monitor)],
        seed=int(cfg.seed),
        settings=settings,
        accelerator=_same(cfg, dimensions, "trainer", "accelerator") or "auto",
        threads=_same(cfg, dimensions, "threads"),
        imports=[_LOGGERS[name] for name in (_same(cfg, dimensions, "logger") or {}) if name in _LOGGERS],
    )
    if plan.search and ("test" in given or any(one.key == "test" for one in dimensions)):
        raise UserError(
            f"{given.get('test', 'test')}: a search looks at validation alone; its winner is tested, over as "
            "many seeds as sweep.refit says. Leave test out."
        )
    if not plan.grid and not plan.space:
        raise UserError(
            f"sweep={settings['sampler']}: there is nothing to draw from; give a key several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))' or head=mean,gru."
        )
    return plan


def _is_of_sweep(key: str) -> bool:
    return key.lstrip("+~").partition(".")[0].partition("@")[0] == "sweep"


def _same(cfg: DictConfig, dimensions: space.Space, *path: str) -> Any:
    """A setting, where it is the same for all trials; else None."""
    name = ".".join(path)
    varied = any(one.key.lstrip("+") in (path[0], name) for one in dimensions)
    return None if varied else OmegaConf.select(cfg, name)


def _program(cfg: DictConfig) -> list[str]:
    """The words before the overrides."""
    words = [sys.executable, str(Path(sys.argv[0]).absolute())]
    name = cfg.hydra.job.config_name
    if name not in (None, "train"):
        words.append(f"--config-name={name}")
    for source in cfg.hydra.runtime.config_sources:
        if source.provider == "command-line":
            words.append(f"--config-dir={source.path}")
    return words


def _hydras(cfg: DictConfig) -> list[str]:
    """Hydra's own overrides that a trial needs too, such as ``hydra.searchpath``."""
    return [
        str(one) for one in cfg.hydra.overrides.hydra if not str(one).lstrip("+~").startswith(_OF_THE_SWEEP)
    ]


def _new_place(cfg: DictConfig) -> str:
    return str(Path(cfg.paths.runs).expanduser() / "sweeps" / f"{cfg.name}-{new_id()}")
