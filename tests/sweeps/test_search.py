"""Searches: what is drawn, what is pruned, who wins, and what alone sees the test set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from sweeping import calls, choice, plan, rows, run

from textbed.sweeps.folder import Presence, SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.queue import FINISHED, PRUNED, Ending
from textbed.sweeps.space import Dimension
from textbed.sweeps.worker import queues

X = Dimension("x", (), 0.0, 1.0)


def drawn(folder: Path, count: int, **settings: Any) -> list[float]:
    folder.mkdir()
    sweep, _ = run(plan(folder, X, sampler="random", **settings), folder, count)
    return [float(row.point["x"]) for row in rows(sweep)]


def test_a_trial_is_the_same_whichever_worker_draws_it(tmp_path: Path) -> None:
    alone = drawn(tmp_path / "a", 1, trials=4)
    assert len(set(alone)) == 4
    assert drawn(tmp_path / "b", 3, trials=4) == alone
    assert drawn(tmp_path / "c", 2, trials=4, seed=1) != alone


def test_tpe_learns_from_what_trials_gave(tmp_path: Path) -> None:
    """The best is at 0.3: half of 40 draws at random are further than 0.25 from it."""
    sweep, _ = run(plan(tmp_path, X, sampler="tpe", trials=40, startup_trials=10), tmp_path, 4)
    found = rows(sweep)
    assert [row.status for row in found] == ["finished"] * 40
    assert [row.values[0] for row in found] == pytest.approx(
        [1 - (float(row.point["x"]) - 0.3) ** 2 for row in found]
    )
    far = [abs(float(row.point["x"]) - 0.3) > 0.25 for row in found]
    assert sum(far[20:]) <= 5
    best = next(queues(sweep)).best()
    assert best is not None
    assert abs(float(best.point["x"]) - 0.3) < 0.05


def test_cmaes_draws_close_to_the_best(tmp_path: Path) -> None:
    y = Dimension("+y", (), 0.0, 1.0)  # it wants two intervals
    sweep, _ = run(plan(tmp_path, X, y, sampler="cmaes", trials=30, startup_trials=1), tmp_path, 2)
    places = [abs(float(row.point["x"]) - 0.3) for row in rows(sweep)]
    assert sum(places[-10:]) / 10 < 0.2


def test_a_point_is_not_run_twice_and_a_finite_space_ends(tmp_path: Path) -> None:
    space = (choice("x", 0, 0.3), choice("head", "a", "b"))
    sweep, _ = run(plan(tmp_path, *space, sampler="random", hours=1), tmp_path, 1)
    found = rows(sweep)
    ran = [row for row in found if row.same_as is None]
    assert len(ran) == len({row.name for row in ran}) == 4
    assert len(calls(tmp_path)) == 4
    for row in found:
        if row.same_as is not None:
            assert (row.point, row.values) == (found[row.same_as].point, found[row.same_as].values)


def test_only_the_winner_sees_the_test_set_over_fresh_seeds(tmp_path: Path) -> None:
    space = (choice("x", 0.1, 0.2, 0.3, 0.9), choice("seed", 0, 2))
    sweep, _ = run(plan(tmp_path, *space, fixed=("name=s",), refit=3), tmp_path)
    tried, refitted = list(queues(sweep))
    assert len(tried.rows()) == 8
    again = refitted.rows()
    assert [row.name for row in again] == ["seed=1", "seed=3", "seed=4"]  # none that was seen
    given = [one["given"] for one in calls(tmp_path)]
    assert all("test=false" in one for one in given[:8])
    assert [one[1:] for one in sorted(given[8:])] == [
        ["name=s", "x=0.3", f"seed={seed}"] for seed in (1, 3, 4)
    ]
    for row in again:
        metrics = json.loads((sweep.link("refit", row.number) / "metrics.json").read_text())
        assert "test/accuracy" in metrics
    assert "test/accuracy" not in json.loads((sweep.link("trials", 0) / "metrics.json").read_text())


def test_the_last_figures_of_a_trial_are_told_however_fast_they_came(tmp_path: Path) -> None:
    fixed = ("epochs=5", "pause=0.01")  # all of them between two looks at its record
    sweep, _ = run(plan(tmp_path, choice("x", 0.3), pruner="median", fixed=fixed), tmp_path, 1)
    (trial,) = next(queues(sweep)).study.get_trials()
    assert trial.intermediate_values == pytest.approx({step: step / 5 for step in range(1, 6)})


def test_what_falls_behind_is_pruned_and_can_be_resumed_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others end between two looks at them, and are what it is measured against all the same."""
    monkeypatch.setattr("textbed.sweeps.trial._WATCH_SECONDS", 0.02)
    monkeypatch.setattr("textbed.sweeps.worker._LOOK_SECONDS", 0.02)
    settings = {"sampler": "grid", "pruner": "median", "startup_trials": 2}
    fixed = ("epochs=10", "holds=x=1.0")
    sweep, heard = run(plan(tmp_path, choice("x", 0.3, 0.4, 1.0, 0.35), fixed=fixed, **settings), tmp_path, 1)
    found = rows(sweep)
    assert [row.status for row in found] == ["finished", "finished", "pruned", "finished"]
    assert (found[2].values, found[2].last_lines) == ((), "")
    link = sweep.link("trials", 2)
    assert json.loads((link / "run.json").read_text())["status"] == "interrupted"
    assert 1 <= len((link / "metrics.jsonl").read_text().splitlines()) <= 4
    for trial, x in zip(next(queues(sweep)).study.get_trials(), (0.3, 0.4, None, 0.35), strict=True):
        if x is not None:
            best = 1 - (x - 0.3) ** 2
            expected = {epoch: best * epoch / 10 for epoch in range(1, 11)}
            assert trial.intermediate_values == pytest.approx(expected)
    assert heard.lines[5] == "2 pruned"


@pytest.mark.parametrize(
    "pruner",
    [
        pytest.param(optuna.pruners.MedianPruner(n_startup_trials=2), id="median"),
        pytest.param(optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3), id="asha"),
        pytest.param(optuna.pruners.HyperbandPruner(), id="hyperband"),
    ],
)
def test_who_is_pruned_does_not_hang_on_when_it_was_looked_at(
    tmp_path: Path, pruner: optuna.pruners.BasePruner, request: pytest.FixtureRequest
) -> None:
    """Nine validations seen all at once, beside a study that is asked after each, as Optuna means it."""
    name = request.node.callspec.id
    sweep = SweepFolder.create(
        tmp_path / "sweep", plan(tmp_path, X, sampler="random", pruner=name, startup_trials=2)
    )
    begin(sweep)
    queue = next(queues(sweep))
    plain = optuna.create_study(study_name="trials", direction="maximize", pruner=pruner)
    found, expected, draw = [], [], random.Random(0)
    with Presence(sweep) as worker:
        for _ in range(12):
            first, last = draw.random(), draw.random()  # so that some fall behind late, or would catch up
            figures = [(step, first + (last - first) * (step - 1) / 8) for step in range(1, 10)]
            job = queue.claim(worker, "gpu 0")
            assert job is not None
            found.append(queue.report(job, figures))
            queue.end(job, Ending(PRUNED if found[-1] else FINISHED, [] if found[-1] else [last]), 1.0)
            trial = plain.ask()
            expected.append(False)
            for step, value in figures:
                trial.report(value, step)
                if trial.should_prune():
                    expected[-1] = True
                    break
            if expected[-1]:
                plain.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                plain.tell(trial, last)
    assert found == expected
    assert 2 <= sum(found) <= 10
    for one, other in zip(queue.study.trials, plain.trials, strict=True):
        assert one.system_attrs == other.system_attrs  # the rungs
        assert len(one.intermediate_values) == 9


def test_several_objectives(tmp_path: Path) -> None:
    """More accuracy, less time: x up to 0.3 is a matter of taste, beyond it both are worse."""
    objectives = ["val/accuracy", "seconds/fit"]
    space = choice("x", 0.1, 0.3, 0.5)
    sweep, _ = run(plan(tmp_path, space, objectives=objectives, refit=1), tmp_path)
    tried, refitted = list(queues(sweep))
    assert [row.values for row in tried.rows()] == [
        pytest.approx((1 - (x - 0.3) ** 2, x)) for x in (0.1, 0.3, 0.5)
    ]
    assert [trial.number for trial in tried.study.best_trials] == [0, 1]
    assert refitted.rows()[0].start["attempt"] == 1
    assert "x=0.3" in refitted.fixed  # the first objective picks
