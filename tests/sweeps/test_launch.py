"""From a command line to a sweep: what every trial is given, what is refused, what the command prints."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict
from running import ROOT
from sweeping import STUB, calls, choice, plan, rows

from textbed import command
from textbed.errors import UserError
from textbed.sweeps import launch as launching
from textbed.sweeps.devices import Slot
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.trial import Starter
from textbed.sweeps.warm import SpareStarter, WarmStarter

Typed = Callable[..., tuple[DictConfig, list[str]]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Typed]:
    """What Hydra makes of a command line before it calls the sweeper."""
    monkeypatch.setattr(sys, "argv", [str(STUB)])
    monkeypatch.setattr(command, "_failed_jobs", [])
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):

        def composed(*words: str) -> tuple[DictConfig, list[str]]:
            (tmp_path / "runs").mkdir(exist_ok=True)
            settled = [one for one in words if "," not in one or "[" in one]
            cfg = compose("train", settled, return_hydra_config=True)
            with open_dict(cfg):
                cfg.hydra.runtime.config_sources = []
            return cfg, list(words)

        yield composed


def planned(typed: Typed, *words: str, **params: object) -> Plan:
    cfg, given = typed(*words)
    return launching.plan_of(cfg, params, given, GlobalHydra.instance().config_loader())


def test_a_trial_is_given_what_was_typed_without_what_is_the_sweeps(typed: Typed) -> None:
    plan = planned(
        typed, "experiment=sst2", "sweep=tpe", "sweep.trials=9", "head=mean,gru", "threads=2", "name='a b'"
    )
    assert plan.program == [sys.executable, str(STUB)]
    assert plan.fixed == ["experiment=sst2", "threads=2", "name='a b'"]
    assert [one.key for one in plan.space] == ["head"]
    assert (plan.threads, plan.accelerator, plan.objectives) == (2, "auto", ["val/accuracy"])
    assert (plan.grid, plan.search, plan.settings["refit"]) == (False, True, 3)
    assert Plan.from_plain(plan.plain()) == plan
    assert plan.imports == ["wandb"]
    assert launching.trial_overrides(plan)[-1] == "test=false"
    plan = planned(typed, "seed=0,1", "trainer=cpu", "callbacks.checkpoints.monitor=val/loss", "sweep.dir=x")
    assert (plan.grid, plan.search, plan.accelerator, plan.objectives) == (True, False, "cpu", ["val/loss"])
    assert launching.trial_overrides(plan) == ["trainer=cpu", "callbacks.checkpoints.monitor=val/loss"]
    assert planned(typed, "trainer=cpu,gpu", "threads=1,2").accelerator == "auto"
    assert planned(typed, "seed=0,1", "logger=none").imports == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=tpe", "head=mean,gru"], "sweep.trials=NUMBER"),
        (["sweep=tpe", "sweep.trials=3"], "nothing to draw from"),
        (["sweep=tpe", "sweep.trials=3", "head=mean,gru", "test=true"], "a search looks at validation alone"),
        (["seed=0,1", "sweep.refit=2", "test=true"], "a search looks at validation alone"),
        (["sweep=tpe,random", "head=mean,gru"], "the same for all of its trials"),
        (["sweep.retries=0,1", "head=mean,gru"], "the same for all of its trials"),
        (["resume=runs/x", "head=mean,gru"], "sweep.dir=FOLDER"),
    ],
)
def test_mistakes(typed: Typed, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(typed, *words)
    assert said in str(caught.value)


def test_the_command_prints_its_runs_in_order_and_fails_where_a_trial_did(
    typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"paths.runs={tmp_path}/runs",
        "+do=fine,mistake",
        "seed=0,1",
        "sweep.devices=[4,5]",
        "sweep.warm=false",
    ]
    cfg, given = typed(*words)
    loader = GlobalHydra.instance().config_loader()
    launching.launch(cfg, {"name": "stub"}, given, loader)
    (place,) = (tmp_path / "runs" / "sweeps").iterdir()
    sweep = SweepFolder.open(place)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(sweep.link("trials", number).resolve()) for number in (0, 1)]
    assert command._failed_jobs == ["+do=mistake seed=0", "+do=mistake seed=1"]
    lines = shown.err.splitlines()
    assert lines[0] == f"sweep: {place}"
    assert "2 at once: gpu 4, gpu 5" in shown.err
    assert sum("failed after" in line and line.endswith("x=: expected a number.") for line in lines) == 2
    assert sum("finished after" in line and "val/accuracy 1.0" in line for line in lines) == 2
    assert sorted(one["given"][-2:] for one in calls(tmp_path)) == [
        [f"+do={do}", f"seed={seed}"] for do in ("fine", "mistake") for seed in (0, 1)
    ]
    assert {one["device"] for one in calls(tmp_path)} == {"4", "5"}


def test_a_sweep_that_is_for_others_is_put_in_and_not_begun(
    typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, given = typed("seed=0,1,2", f"sweep.dir={tmp_path}/sweep", "sweep.here=false")
    launching.launch(cfg, {}, given, GlobalHydra.instance().config_loader())
    assert capsys.readouterr().out == f"{tmp_path}/sweep\n"
    sweep = SweepFolder.open(tmp_path / "sweep")
    assert [row.status for row in rows(sweep)] == ["waiting"] * 3
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_key_of_the_config_with_a_condition_gives_way_to_the_command_line(typed: Typed) -> None:
    cfg, _ = typed("head=gru")
    with open_dict(cfg):
        cfg.hydra.sweeper.params = {
            "head": "mean,gru",
            "head.hidden": {"values": "8,16", "when": "head=gru"},
            "seed": "0,1",
        }
        cfg.hydra.overrides.task = ["seed=5"]
    command.Sweep().on_multirun_start(cfg)
    assert list(cfg.hydra.sweeper.params) == ["head", "head.hidden"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_trials_are_forked_on_the_cpu_and_stood_by_for_on_gpus_unless_told_otherwise(tmp_path: Path) -> None:
    cpu, gpu = [Slot("cpu 0", 1, {})], [Slot("gpu 0", 1, {"CUDA_VISIBLE_DEVICES": "0"})]
    for warm, places, program, kind in (
        (None, cpu, ["python", "train.py"], WarmStarter),
        (None, gpu, ["python", "train.py"], SpareStarter),
        (True, gpu, ["python", "train.py"], WarmStarter),
        (False, cpu, ["python", "train.py"], Starter),
        (None, cpu, ["python", "-S", "train.py"], Starter),  # options of Python's own cannot be given later
    ):
        what = dataclasses.replace(plan(tmp_path, choice("x", 1), warm=warm), program=program)
        with launching.starter(what, places) as start:
            assert type(start) is kind
