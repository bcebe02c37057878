"""What is said of a sweep: while it goes on, and when it is over."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from running import ROOT
from sweeping import Quiet, choice, plan, run, slots

from textbed.errors import UserError
from textbed.runs.comparison_tables import text
from textbed.sweeps import pictures
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.report import make_report
from textbed.sweeps.show import Screen
from textbed.sweeps.space import Dimension
from textbed.sweeps.worker import Worker, queues, stages


def test_a_grid_is_compared_by_what_it_is_over_and_names_the_best(tmp_path: Path) -> None:
    sweep, _ = run(plan(tmp_path, choice("x", 0.1, 0.3), choice("seed", 0, 1, 2)), tmp_path)
    report = make_report(sweep)
    best, groups, tests = report.tables
    assert [row[:2] for row in best.rows[:3]] == [[str(n), f"x=0.3 seed={n - 3}"] for n in (5, 4, 3)]
    assert [row[:3] for row in groups.rows] == [["0.3", "3", "90.10"], ["0.1", "3", "86.10"]]  # test/accuracy
    assert tests.rows[0][:4] == ["0.3 − 0.1", "+4.00", "+4.00 … +4.00", "3"]
    lines = report.lines
    assert "6 trials: 6 finished" in lines
    assert "best: x=0.3: val/accuracy 1.0010, the mean over 3 runs" in lines
    (again,) = (line.removeprefix("train it again: ") for line in lines if line.startswith("train it"))
    assert shlex.split(again)[-2:] == [f"paths.runs={tmp_path}/runs", "x=0.3"]
    assert (sweep.pictures / "slices.png").stat().st_size > 10_000
    assert (sweep.pictures / "importances.png").stat().st_size > 5_000
    assert sweep.comparison_file.read_text() == report.markdown()


def test_a_search_shows_its_front_and_what_its_winner_gave_over_fresh_seeds(tmp_path: Path) -> None:
    settings = {"objectives": ["val/accuracy", "seconds/fit"], "refit": 2}
    sweep, _ = run(plan(tmp_path, choice("x", 0.1, 0.5, 0.3, 0.6), **settings), tmp_path)
    report = make_report(sweep)
    # 0.5 is as far from 0.3 as 0.1 is, and takes longer; 0.6 is worse in both
    assert [(row[1], row[-1]) for row in report.tables[0].rows] == [
        ("x=0.3", "yes"), ("x=0.1", "yes"), ("x=0.5", ""), ("x=0.6", ""),
    ]  # fmt: skip
    assert report.tables[1].title.startswith("the winner over fresh seeds: test/accuracy")
    assert "tested over 2 fresh seeds: test/accuracy 0.9015 ± 0.0007" in report.lines
    assert "val/accuracy" in text(report.tables, report.lines)


def test_failures_are_listed_with_why(tmp_path: Path) -> None:
    sweep, _ = run(plan(tmp_path, choice("do", "raise", "mistake")), tmp_path)
    report = make_report(sweep)
    (failures,) = report.tables
    assert failures.rows == [
        ["0", "do=raise", "failed", "RuntimeError: no luck"],
        ["1", "do=mistake", "failed", "x=: expected a number."],
    ]
    assert report.lines == ["2 trials: 2 failed"]
    assert not sweep.pictures.exists()


def test_a_look_at_a_sweep_that_goes_on_puts_nothing_in(tmp_path: Path) -> None:
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("x", 0.1, 0.3), refit=2))
    with pytest.raises(UserError, match="has not begun"):
        make_report(sweep)
    begin(sweep)
    assert make_report(sweep).lines == ["2 trials: 2 waiting"]
    assert [queue.name for queue in stages(sweep)] == ["trials"]


def test_the_key_that_matters_has_the_largest_share(tmp_path: Path) -> None:
    space = (Dimension("x", (), 0.0, 1.0), Dimension("+y", (), 0.0, 1.0))
    sweep, _ = run(plan(tmp_path, *space, sampler="random", trials=20), tmp_path)
    shares = pictures.importances(next(queues(sweep)).study)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["x"] > 0.6


def test_of_several_objectives_the_first_decides_what_matters() -> None:
    """Optuna itself looks at low values where it is told which objective: here the worse half."""
    shares = []
    for directions in (["maximize"], ["maximize", "minimize"]):
        study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(21):
            trial = study.ask()
            x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            study.tell(trial, [min(x, 0.4) - 0.1 * y, x][: len(directions)])
        shares.append(pictures.importances(study))
    assert shares[0] == pytest.approx(shares[1])
    assert shares[0]["x"] > 0.6


def test_the_live_table(tmp_path: Path) -> None:
    """On a terminal: what ended, what runs and where, how many are to come."""
    what = plan(tmp_path, choice("x", 0.3, 0.2, 0.1), choice("do", "fine", "raise"), fixed=("pause=0.3",))
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    frames: list[str] = []

    class Recording(Screen):
        def tick(self, worker: Worker) -> None:
            super().tick(worker)
            if worker.queue is not None:
                out = io.StringIO()
                Console(file=out, width=120).print(self._table(worker, worker.queue))
                frames.append(out.getvalue())

    terminal = io.StringIO()
    with Recording(sweep) as screen:
        screen._out = Console(file=terminal, force_terminal=True, width=120)
        Worker(sweep, slots(), screen).run()
    first = next(frame for frame in frames if "2 running" in frame)
    assert re.search(r"^ 0 +x=0.3 do=fine +gpu 0 +– +running ", first, re.MULTILINE)
    assert re.search(r"^ 1 +x=0.3 do=raise +gpu 1 +– +running ", first, re.MULTILINE)
    assert "trials: 2 running, 0 finished, 6 to go" in first
    last = " ".join(frames[-1].split())
    assert "0 running, 3 finished, 3 failed, 0 to go, best 1.0000 (x=0.3 do=fine)" in last
    assert re.search(r"^ 4 +x=0.1 do=fine +gpu [01] +0.9600 +finished +[\d.]+ s", frames[-1], re.MULTILINE)
    halfway = next(frame for frame in frames if "3 to go" in frame)
    assert re.search(r"about [\d.]+ s left", " ".join(halfway.split()))


def test_the_script_shows_and_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("x", 0.1, 0.3)))
    begin(sweep)

    def script(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sweep.py", str(sweep.path), *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
        assert not ended.value.code
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "2 trials: 2 waiting" in script()
    joined = script("--join", "--at-once", "1")
    assert "1 at once: gpu 3;" in joined
    assert "trial 1 (x=0.3) finished after" in joined
    assert "best: x=0.3: val/accuracy 1.0000" in script()
    _, heard = run(sweep.plan, tmp_path)
    assert heard.lines == Quiet().lines
