from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from made_up import make_run, predict

from textbed.errors import UserError
from textbed.runs import loggers, wandb_runs
from textbed.runs.comparison import compare
from textbed.runs.comparison_tables import records
from textbed.runs.folder import RunFolder
from textbed.runs.loggers import Wandb
from textbed.runs.registry import find
from textbed.runs.wandb_runs import read, send


def log_offline(folder: RunFolder) -> None:
    """What a run logs: its configuration and its final figures."""
    logger = Wandb(folder=str(folder.path), id=folder.id)
    logger.log_hyperparams(yaml.safe_load(folder.config_file.read_text()))
    logger.log_metrics({"val/loss": 0.5, "epoch": 0}, step=3)
    logger.close(folder.read_metrics())


def test_offline_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "before"
    for head, accuracy, said in (("mean", 0.5, [0, 1, 1, 0]), ("gru", 0.75, [0, 1, 1, 1])):
        folder = make_run(root, {"test/accuracy": accuracy, "seconds/fit": 2.5, "test/mcc": None}, head=head)
        predict(folder, [0, 1, 0, 1], said)
        log_offline(folder)
    broken = folder.path / "wandb" / "offline-run-20300101_000000-x" / "run-x.wandb"
    broken.parent.mkdir()
    broken.write_bytes(b":W&B\xff\xff\x00")  # what is left of a killed one
    root = root.rename(tmp_path / "after")

    found = read(str(root))
    known = find([root]).runs
    assert [run.path for run in found.runs] == [run.path for run in known]  # though they were moved
    assert found.left_out == [f"{root / broken.relative_to(tmp_path / 'before')}: not a whole run of wandb's"]
    for here, there in zip(known, found.runs, strict=True):
        assert there.config | {"logger": {}} == here.config  # wandb keeps nothing that is empty
        assert there.status == "finished"
        assert there.choice("head") == here.choice("head")
        figures = {name: value for name, value in here.metrics.items() if value is not None}
        assert there.metrics == figures | {"val/loss": 0.5}

    comparison = compare(found)
    assert records(comparison) == records(compare([root]))  # the test over documents too
    (line,) = send(comparison, str(root))
    (part,) = (root / "wandb").glob("offline-run-*-compare-*")
    assert line == f"wandb: logged offline; to upload: wandb sync {part}"
    tables = {
        path.name.partition("_")[0]: json.loads(path.read_text()) for path in part.rglob("*.table.json")
    }
    assert tables.keys() == {"groups", "differences", "notes"}
    groups = [dict(zip(tables["groups"]["columns"], row, strict=True)) for row in tables["groups"]["data"]]
    assert groups == records(comparison)
    (difference,) = tables["differences"]["data"]
    assert difference[:2] == ["gru − mean", "+25.00"]
    assert [run.path for run in read(str(root)).runs] == [
        run.path for run in found.runs
    ]  # itself it is no run
    assert capfd.readouterr().err == ""


def project(*runs: SimpleNamespace) -> Any:
    """As wandb's Api, for a project of these runs."""

    def of(path: str, lazy: bool) -> list[SimpleNamespace]:
        assert (path, lazy) == ("team/sst2", False)  # all of a page in one request
        return list(runs)

    return SimpleNamespace(runs=of)


def logged(folder: RunFolder, state: str = "finished", **summary: Any) -> SimpleNamespace:
    config = yaml.safe_load(folder.config_file.read_text())
    facts = {"run": {key: folder.info()[key] for key in ("choices", "versions", "data", "git")}}
    return SimpleNamespace(
        id=folder.id,
        name="a name",
        state=state,
        config=config | facts,
        summary={
            "_step": 5,
            "epoch": 2,
            "trainer/global_step": 9,
            "pictures/a": {"_type": "image-file"},
            **summary,
        },
    )


def test_runs_of_a_project(tmp_path: Path) -> None:
    figures = {("mean", 0): 0.5, ("mean", 1): 0.6, ("gru", 0): 0.7, ("gru", 1): 0.9}
    made = [make_run(tmp_path, value, head=head, seed=seed) for (head, seed), value in figures.items()]
    there = [logged(run, **run.read_metrics(), nan="NaN") for run in made]
    others = [
        SimpleNamespace(id="x", name="another's", state="finished", config={"lr": 1}, summary={}),
        SimpleNamespace(id="y", name="", state="finished", config={"comparison": {}}, summary={}),
        logged(make_run(tmp_path / "killed"), state="crashed"),
    ]
    found = wandb_runs._read_project("team/sst2", project(*there, *others))
    assert found.left_out == ["team/sst2, run another's: its configuration has no seed and no name"]
    assert sorted(run.status for run in found.runs) == ["finished"] * 4 + ["killed"]
    assert {tuple(run.metrics) for run in found.runs if run.status == "finished"} == {("test/accuracy",)}
    comparison = compare(found)
    mine, theirs = records(comparison), records(compare([tmp_path / "trial"]))
    assert mine == theirs
    assert "left out: runs that are not finished (1 killed)" in comparison.notes


def test_a_project_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ValueError("Could not find project team/sst2\nmore")

    with pytest.raises(
        UserError, match=r"^--wandb team/sst2: the project cannot be read \(Could not find project t"
    ):
        wandb_runs._read_project("team/sst2", SimpleNamespace(runs=missing))
    with pytest.raises(UserError, match=r"^--wandb team/sst2: there is no run in it"):
        wandb_runs._read_project("team/sst2", project())
    monkeypatch.setattr(loggers, "cannot_reach_wandb", lambda: "there is no key")
    with pytest.raises(
        UserError, match=r"^--wandb team/sst2: no such folder, and as a project it cannot be read: there"
    ):
        read("team/sst2")
    with pytest.raises(UserError, match="there is no run in it"):
        read(str(tmp_path))


def test_folds_of_a_run_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_run(tmp_path)
    fold = whole.fold(1)
    fold.path.parent.mkdir()
    make_run(tmp_path, name="other").path.rename(fold.path)
    assert fold.id == f"{whole.id}-1"
    (found,) = wandb_runs._read_project("team/sst2", project(logged(fold, **fold.read_metrics()))).runs
    assert found.path == tmp_path / "other" / fold.id  # nothing is there
    config = yaml.safe_load(fold.config_file.read_text()) | {"name": "trial"}
    fold.config_file.write_text(yaml.safe_dump(config))
    (found,) = wandb_runs._read_project("team/sst2", project(logged(fold, **fold.read_metrics()))).runs
    assert found.path == fold.path

    file = fold.path / "wandb" / f"offline-run-20300101_000000-{fold.id}" / "run.wandb"
    content = {"run_id": fold.id, "name": "", "state": "finished", "config": {}, "summary": {}}
    said = SimpleNamespace(stdout=json.dumps(content).encode())
    monkeypatch.setattr(wandb_runs.subprocess, "run", lambda *_, **__: said)
    assert wandb_runs._inspect(file).folder == fold.path


def test_parts_of_a_run_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, 0.5)
    config = yaml.safe_load(folder.config_file.read_text())
    parts = {
        "offline-run-20300101_000001-a": ("crashed", config, {"val/loss": 0.5, "val/accuracy": 0.25}),
        "offline-run-20300101_000002-a": ("finished", {}, {"val/loss": 0.125, "test/accuracy": 0.5}),
    }
    for part in parts:
        (folder.path / "wandb" / part).mkdir(parents=True)
        (folder.path / "wandb" / part / "run-a.wandb").touch()

    def inspect(file: Path) -> Any:
        return wandb_runs._Logged("a", "", *parts[file.parent.name])

    monkeypatch.setattr(wandb_runs, "_inspect", inspect)
    (run,) = read(str(tmp_path)).runs
    assert run.status == "finished"
    assert run.metrics == {"val/loss": 0.125, "val/accuracy": 0.25, "test/accuracy": 0.5}
    assert run.path.parts[-2:] == ("trial", "a")
