from __future__ import annotations

import io
import math

import pytest

from textbed.runs.summary import (
    Overview,
    PartSummary,
    SplitSummary,
    describe_classes,
    duration,
    number,
    share,
    show_overview,
    show_result,
    size,
)


def test_overview() -> None:
    overview = Overview(
        name="imdb [gru]",
        data="mirror of imdb",
        splits={
            "train": SplitSummary(documents=22500, tokens=5_175_000, unknown=0, empty=3),
            "validation": SplitSummary(documents=2500, tokens=575_000, unknown=57_500),
            "test": SplitSummary(documents=0, tokens=0, unknown=0),
        },
        class_counts={"neg": 7500, "pos": 15000},
        tokenizer="words",
        vocabulary=80_001,
        parts={"embedding": PartSummary(8_000_100, 0), "classifier": PartSummary(202, 202, 200.0)},
        device="cpu",
        precision="32-true",
        steps_per_epoch=352,
        epochs=10,
        vectors="glove.txt: 89.0 % of the words",
        notes=["goes on after epoch 3"],
    )
    screen = io.StringIO()
    show_overview(overview, screen)
    text = screen.getvalue()
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["train"][1:] == ["22,500", "5,175,000", "230.0", "0", "%", "3"]
    assert rows["validation"][1:] == ["2,500", "575,000", "230.0", "10.0", "%", "0"]
    assert rows["test"][1:] == ["0", "0", "-", "-", "0"]
    assert rows["embedding"][1:] == ["8,000,100", "0", "-"]
    assert rows["classifier"][1:] == ["202", "202", "200"]
    assert rows["all"][1:] == ["8,000,302", "202", "-"]
    assert "imdb [gru]" in text
    assert "80,001 rows" in text
    assert "2; largest 'pos' 66.7 %, smallest 'neg' 33.3 %" in text
    assert "352 batches an epoch, 10 epochs at the most" in text
    assert "goes on after epoch 3" in text
    assert "\x1b" not in text


def test_result() -> None:
    figures = {
        "val/loss": 0.25,
        "val/accuracy": 0.9,
        "test/loss": 0.5,
        "test/calibration_error": float("nan"),
        "test/accuracy": 0.875,
        "test/f1_macro": 0.8125,
        "seconds/data": 2.75,
        "seconds/fit": 125.0,
        "speed/tokens_per_second": 640_000.4,
        "memory/peak_bytes": 3 * 2**29,
        "parameters/embedding": 5,
    }
    screen = io.StringIO()
    folder = "/runs/" + "long/" * 40 + "20300101-000000-abcdef"
    show_result(figures, folder, screen, notes=["best: epoch 3 [of 5]", "table: [all] moved"])
    lines = [line.strip() for line in screen.getvalue().splitlines() if line.strip()]
    table = [line.split() for line in lines]
    assert table[1] == ["test", "best", "validation"]
    order = [row[0] for row in table if row[0] in ("accuracy", "f1_macro", "calibration_error", "loss")]
    assert order == ["accuracy", "f1_macro", "calibration_error", "loss"]
    assert ["accuracy", "0.8750", "0.9000"] in table
    assert ["f1_macro", "0.8125", "-"] in table
    assert ["calibration_error", "-", "-"] in table
    assert ["loss", "0.5000", "0.2500"] in table
    assert ["time,", "fit", "2", "min", "05", "s"] in table
    assert ["time,", "all", "2", "min", "08", "s"] in table
    assert ["tokens", "a", "second", "640,000"] in table
    assert ["memory", "at", "the", "peak", "1.50", "GiB"] in table
    assert lines[-3:-1] == ["best: epoch 3 [of 5]", "table: [all] moved"]
    assert lines[-1] == f"run folder  {folder}"  # in one piece


def test_result_of_another_split() -> None:
    screen = io.StringIO()
    by_class = [{"class": "a", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 3}]
    show_result({"test/accuracy": 0.5}, "/runs/a", screen, per_class=by_class, split="validation")
    lines = [line.split() for line in screen.getvalue().splitlines()]
    assert ["Validation,", "by", "class"] in lines
    assert ["validation"] in lines
    assert "test" not in screen.getvalue().lower()


def test_result_without_test() -> None:
    screen = io.StringIO()
    show_result({"val/accuracy": 0.5}, "/runs/a", screen)
    assert "best validation" in screen.getvalue()
    assert "0.5000" in screen.getvalue()
    show_result({}, "/runs/a", screen)


def test_classes() -> None:
    assert describe_classes({}) == "none"
    assert describe_classes({"a": 5, "b": 5}) == "2, 50.0 % each"
    assert describe_classes({"a": 1, "b": 99_999}) == "2; largest 'b' 100.0 %, smallest 'a' < 0.01 %"
    assert describe_classes({"a": 3, "b": 1}, multilabel=True).startswith(
        "2 labels, any number a document; largest"
    )


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 5, "0 %"),
        (1, 0, "-"),
        (1, 1000, "0.10 %"),
        (1, 10**6, "< 0.01 %"),
        (5, 5, "100.0 %"),
        (1, 8, "12.5 %"),
    ],
)
def test_share(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (12.34, "12.3 s"),
        (59.98, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_number_and_size() -> None:
    assert [number(value) for value in (None, math.nan, 3, 0.5, 12345)] == ["-", "-", "3", "0.5000", "12,345"]
    assert [size(value) for value in (2**20, 1023.4 * 2**20, 2**30)] == ["1 MiB", "1,023 MiB", "1.00 GiB"]
