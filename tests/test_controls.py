"""Controls through the recipe: words in a random order, shares of the training documents, sizes by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from running import Runs, assert_same_run, figures, on, predictions

SHUFFLED = "data.shuffle_words=true"
FIGURES = ("test/accuracy", "test/f1_macro", "val/accuracy", "val/f1_macro", "test/mcc")


def test_a_maximum_does_not_see_the_order(runs: Runs, topics: Path, capfd: Any) -> None:
    """To the last bit; under bucketed batches too, since lengths stay."""
    for more in ([], ["data.batching=bucketed", "data.batch_tokens=200"]):
        settings = on(topics, "head=max", *more)
        plain = runs(*settings)
        assert "random order" not in capfd.readouterr().err
        shuffled = runs(*settings, SHUFFLED)
        assert "the tokens of every document stand in a random order" in capfd.readouterr().err
        assert_same_run(plain, shuffled)


@pytest.mark.parametrize("head", ["mean", "dan", "attention"])
def test_sums_see_nothing_of_the_order_but_its_rounding(head: str, runs: Runs, topics: Path) -> None:
    plain, shuffled = runs(*on(topics, f"head={head}")), runs(*on(topics, f"head={head}", SHUFFLED))
    for name in FIGURES:
        assert figures(plain)[name] == figures(shuffled)[name]
    assert figures(plain)["test/loss"] == pytest.approx(figures(shuffled)["test/loss"], rel=1e-4)
    said = [predictions(run)["probability"] for run in (plain, shuffled)]
    for one, other in zip(*said, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("settings", [["head=gru", "head.hidden=4"], ["embedding=ngrams"]], ids=str)
def test_what_reads_in_order_sees_it(settings: list[str], runs: Runs, topics: Path) -> None:
    plain, shuffled = runs(*on(topics, *settings)), runs(*on(topics, *settings, SHUFFLED))
    assert abs(figures(plain)["test/loss"] - figures(shuffled)["test/loss"]) > 1e-3
    assert figures(plain)["steps"] == figures(shuffled)["steps"]
    # and again: a run with shuffled words is as repeatable as any
    assert_same_run(shuffled, runs(*on(topics, *settings, SHUFFLED)))


def test_a_learning_curve_on_one_command_line(runs: Runs, topics: Path) -> None:
    """``-m data.train_fraction=0.01,0.1,1``: each share is part of the next, with all classes."""
    sweep = on(topics, "trainer.max_epochs=1", "data.train_fraction=0.01,0.1,1")
    (jobs,) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(sweep), max_batch_size=None
    )
    made = [runs(*job) for job in jobs]
    rows = [row_numbers(runs, *job) for job in jobs]
    assert [len(part) for part in rows] == [3, 11, 108]
    assert rows[0] < rows[1] < rows[2]
    tested = [(predictions(run)["row"], predictions(run)["label"]) for run in made]
    assert tested[0] == tested[1] == tested[2]
    assert row_numbers(runs, *jobs[1], "data.fraction_seed=1") != rows[1]
    assert row_numbers(runs, *jobs[1], "seed=1") == rows[1]


def row_numbers(runs: Runs, *overrides: str) -> set[int]:
    """Rows of the training documents."""
    from textbed.data.datamodule import TextDataModule

    cfg = runs.config(*overrides)
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    data.setup()
    return set(data.splits["train"].rows.tolist())
