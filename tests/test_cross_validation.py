"""A run of all folds: what it gives, that it goes on where it was stopped, and how other parts take it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Runs, assert_same_run, documents, figures, on, predictions, write_csv

from textbed.classifier import TextClassifier
from textbed.data.encoding import load_tokenizer
from textbed.errors import UserError
from textbed.runs import registry
from textbed.runs.comparison import compare
from textbed.runs.evaluation import evaluate
from textbed.runs.folder import RunFolder
from textbed.runs.folds import figures_of
from textbed.runs.model import load
from textbed.training import resume

FOLDS = 3


@pytest.fixture
def given(tmp_path: Path, runs: Runs) -> list[str]:
    """Overrides of a run over 90 documents, each of which has a word of its own, in three folds."""
    rows = [(f"{text} only{number}", label) for number, (text, label) in enumerate(documents(90))]
    more = [f"data.folds={FOLDS}", "trainer.max_epochs=1", "report.embedding=false"]
    return [*on(write_csv(tmp_path / "folds.csv", rows)), *more]


def folds_of(run: RunFolder) -> list[RunFolder]:
    return [RunFolder.open(run.fold(number).path) for number in range(FOLDS)]


def stopping(monkeypatch: pytest.MonkeyPatch, fold: int, error: BaseException) -> Callable[[], None]:
    """Raise ``error`` at the third batch of a fold, until the function that is returned is called."""
    step = TextClassifier.training_step

    def stops(self: TextClassifier, batch: Any, batch_idx: int) -> Any:
        if Path(self.trainer.default_root_dir).name == str(fold) and batch_idx == 2:
            raise error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TextClassifier, "training_step", stops)
    return lambda: monkeypatch.setattr(TextClassifier, "training_step", step)


def test_one_run_holds_what_its_folds_gave(runs: Runs, given: list[str]) -> None:
    run = runs(*given, "cross_validate=true")
    folds = folds_of(run)
    alone = runs(*given, "data.fold=1")
    assert_same_run(folds[1], alone)
    whole, each = run.read_metrics(), [fold.read_metrics() for fold in folds]
    for name in ("test/accuracy", "test/f1_macro", "val/loss"):
        values = [one[name] for one in each]
        assert whole[name] == statistics.fmean(values)
        assert whole[f"sd/{name}"] == statistics.stdev(values)
    assert whole["seconds/fit"] == sum(one["seconds/fit"] for one in each)
    assert whole["folds"] == FOLDS
    said = predictions(run)
    assert said["row"] == list(range(90))
    parts = [predictions(fold) for fold in folds]
    by_row = {row: fold["probability"][at] for fold in parts for at, row in enumerate(fold["row"])}
    assert said["probability"] == [by_row[row] for row in range(90)]
    assert (run.info()["status"], run.info()["phase"]) == ("finished", "done")
    # the words of a fold's own documents are in no vocabulary but those of the others
    for fold, part in zip(folds, parts, strict=True):
        known = set(load_tokenizer(fold.tokenizer).tokens)
        assert not known & {f"only{row}" for row in part["row"]}
        assert (
            len(known & {f"only{row}" for row in range(90)}) == 90 - 30 - 6
        )  # test, and a tenth to validate
    assert folds[2].overrides() == [*runs.usual, *given, "data.fold=2"]
    assert (folds[2].id, folds[2].name) == (f"{run.id}-2", "scratch")

    # one run to the registry, three to statistics
    (listed,) = registry.find([run.path]).runs
    assert listed.get("test/accuracy") == whole["test/accuracy"]
    (group,) = compare([run.path]).groups
    assert [one.path for one in group.runs.values()] == [fold.path for fold in folds]
    assert group.figures["test/accuracy"].spread == whole["sd/test/accuracy"]
    other = runs(*given, "cross_validate=true", "head=max")
    comparison = compare([run.path, other.path])
    assert (comparison.by, [len(one.runs) for one in comparison.groups]) == (["head.modes"], [FOLDS, FOLDS])
    (pair,) = comparison.pairs
    assert (pair.repeats.repeats, pair.repeats.paired) == (FOLDS, True)
    assert pair.documents is not None
    assert pair.documents.documents == 90

    with pytest.raises(UserError, match=r"is a run of several folds, each .* such as .*folds/0$"):
        load(run.path)
    with pytest.raises(UserError, match="is a run of several folds"):
        evaluate(str(run.path))
    assert load(folds[0].path).predict(["an owl"]).shape == (1,)
    again, _, _ = evaluate(str(folds[0].path))
    assert again["test/accuracy"] == each[0]["test/accuracy"]
    with pytest.raises(UserError, match="this run is finished"):
        resume(str(run.path), [])
    with pytest.raises(UserError, match=r"this is a fold; go on with its run: resume="):
        resume(str(folds[0].path), ["trainer.max_epochs=2"])
    folds[1].metrics_file.unlink()
    assert "metrics.json is missing" in str(compare([run.path, other.path]).notes)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("power cut"), "failed")]
)
def test_it_goes_on_with_the_fold_it_stopped_in(
    runs: Runs, given: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    given = [*given, "cross_validate=true", "trainer.max_epochs=2"]
    through = runs(*given)
    go_on = stopping(monkeypatch, 1, error)
    with pytest.raises(type(error)):
        runs(*given)
    stopped = next(run for run in map(RunFolder, (through.path.parent).iterdir()) if run.path != through.path)
    assert stopped.info()["status"] == status
    assert stopped.info()["phase"] == "fold 1: fit"
    assert stopped.info()["error"] == (None if status == "interrupted" else "fold 1: power cut")
    assert [fold.is_dir() for fold in (stopped.fold(n).path for n in range(3))] == [True, True, False]
    done = {path: path.stat().st_mtime_ns for path in stopped.fold(0).path.rglob("*")}
    assert [run.status for run in registry.find([stopped.path]).runs] == [status]
    with pytest.raises(UserError, match=r"trainer.max_epochs=3: a resumed run keeps its configuration"):
        resume(str(stopped.path), ["trainer.max_epochs=3"])
    go_on()
    runs.resume(stopped)
    assert {path: path.stat().st_mtime_ns for path in stopped.fold(0).path.rglob("*")} == done
    for one, other in zip(folds_of(through), folds_of(stopped), strict=True):
        assert_same_run(one, other)
    assert predictions(through) == predictions(stopped)
    assert figures(through) == figures(stopped)
    assert (stopped.info()["status"], stopped.info()["error"]) == ("finished", None)
    assert len(stopped.info()["resumed"]) == 1


def test_mistakes(runs: Runs, given: list[str]) -> None:
    without = [one for one in given if not one.startswith("data.folds")]
    assert "cross_validate=true: there are no folds" in runs.mistake(*without, "cross_validate=true")
    assert "data.fold=1: cross_validate=true runs all" in runs.mistake(
        *given, "cross_validate=true", "data.fold=1"
    )
    line = runs.mistake(*given, "cross_validate=true", "data.label=nothing")
    assert line.startswith("fold 0: data.label: no column 'nothing'")
    assert runs.made() == []  # it showed before anything was computed


def test_figures_over_folds() -> None:
    folds = [
        {"test/accuracy": 0.5, "test/f1/rare": None, "seconds/fit": 1.5, "memory/peak_bytes": 7, "steps": 4},
        {"test/accuracy": 0.75, "test/f1/rare": 0.5, "seconds/fit": 2.0, "memory/peak_bytes": 9, "steps": 4},
    ]
    assert figures_of(folds) == {
        "test/accuracy": 0.625,
        "sd/test/accuracy": pytest.approx(0.125 * 2**0.5),
        "test/f1/rare": 0.5,
        "seconds/fit": 3.5,
        "memory/peak_bytes": 9,
        "steps": 4,
        "folds": 2,
    }


def test_a_fold_whose_loss_is_no_number_leaves_the_run_without_one() -> None:
    figures = figures_of(
        [{"test/loss": None, "test/accuracy": 0.5}, {"test/loss": 0.25, "test/accuracy": 0.5}]
    )
    assert figures["test/loss"] is None
    assert "sd/test/loss" not in figures
    assert figures["test/accuracy"] == 0.5
