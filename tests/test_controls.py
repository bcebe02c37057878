"""Controls through the recipe: words in a random order, shares of the training documents, sizes by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from running import Runs, assert_same_run, documents, figures, on, predictions, write_csv

from textbed.heads.base import Head
from textbed.heads.pooling import Pooling

SHUFFLED = "data.shuffle_words=true"
FIGURES = ("test/accuracy", "test/f1_macro", "val/accuracy", "val/f1_macro", "test/mcc")


def test_a_maximum_does_not_see_the_order(runs: Runs, topics: Path, capfd: Any) -> None:
    """To the last bit; in batches by length, too, since lengths stay."""
    settings = on(topics, "head=max", "data.batching=bucketed", "data.batch_tokens=200")
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


@pytest.mark.parametrize(
    "settings", [["head=gru", "head.hidden=4"], ["embedding=ngrams", "embedding.buckets=99"]], ids=str
)
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


def test_multiply_adds_are_figures_of_the_run(runs: Runs, topics: Path, capfd: Any) -> None:
    """A mean of a projected table of 8 columns, layers of 5 and 4, by hand."""
    words = [text.split() for text, _ in documents(150)]
    vectors = runs.folder / "vectors.txt"
    vectors.write_text("".join(f"{word} {' 0.5' * 8}\n" for word in ("owl", "nest", "a", "b")))
    wanted = on(
        topics, "embedding=projected", f"embedding.vectors='{vectors}'", "embedding.out_dim=6",
        "+head.dense=[5,4]", "trainer.max_epochs=1", "test=false",
    )  # fmt: skip
    given = figures(runs(*wanted))
    tokens = sum(len(words[row]) for row in row_numbers(runs, *wanted)) / 108
    expected = {"embedding": 8 * 6, "head": tokens * 6 + 6 * 5 + 5 * 4, "classifier": 4 * 3}
    for part, number in expected.items():
        assert given[f"multiply_adds/{part}"] == pytest.approx(number, rel=1e-12)
    assert given["multiply_adds/all"] == pytest.approx(sum(expected.values()), rel=1e-12)
    lines = {line.split()[0]: line.split() for line in capfd.readouterr().err.splitlines() if line.strip()}
    assert lines["part"][-3:] == ["multiply-adds", "a", "document"]
    assert lines["embedding"][-1] == "48"
    assert lines["all"][-1] == f"{sum(expected.values()):,.0f}"


def test_multiply_adds_of_pairs_are_of_both_texts(runs: Runs) -> None:
    texts = documents(40)
    rows = [(a, b, one) for (a, one), (b, _) in zip(texts, [*texts[1:], ("", "")], strict=True)]
    path = write_csv(runs.folder / "pairs.csv", rows, ("first", "second", "label"))
    wanted = on(path, "data.text=[first,second]", "head=lstm", "head.hidden=3", "trainer.max_epochs=1")
    given = figures(runs(*wanted))
    trained = row_numbers(runs, *wanted)
    tokens = sum(len(rows[row][i].split()) for row in trained for i in (0, 1)) / len(trained)
    assert given["multiply_adds/embedding"] == 0
    assert given["multiply_adds/head"] == pytest.approx(tokens * 4 * 3 * (8 + 3))
    assert given["multiply_adds/classifier"] == 4 * 3 * 3


def test_a_head_that_does_not_say_what_it_costs_trains_all_the_same(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(Pooling, "multiply_adds", Head.multiply_adds)
    given = figures(runs(*on(topics, "trainer.max_epochs=1")))
    assert {name for name in given if name.startswith("multiply_adds")} == {
        "multiply_adds/embedding",
        "multiply_adds/classifier",
    }
    lines = {line.split()[0]: line.split() for line in capfd.readouterr().err.splitlines() if line.strip()}
    assert lines["head"] == ["head", "0", "0", "-"]
    assert lines["all"][-1] == "-"
