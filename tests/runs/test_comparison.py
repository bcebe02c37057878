"""Comparisons of made-up runs: groups, figures by hand, what is warned of, tests, tables and the script."""

from __future__ import annotations

import csv
import json
import math
import re
import runpy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from made_up import make_run, predict
from scipy import stats

from textbed.errors import UserError
from textbed.runs import answers, comparison_tables, registry, wandb_runs
from textbed.runs.comparison import Comparison, compare, figure, is_lower_better
from textbed.runs.folder import RunFolder

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"
GRU, MEAN = [0.84, 0.80, 0.85], [0.80, 0.78, 0.82]


def two_heads(root: Path, **more: Any) -> list[RunFolder]:
    return [
        make_run(root, accuracy, head=head, seed=seed, **more)
        for head, values in (("gru", GRU), ("mean", MEAN))
        for seed, accuracy in enumerate(values)
    ]


def test_groups_and_figures_by_hand(tmp_path: Path) -> None:
    two_heads(tmp_path)
    found = compare([tmp_path])
    assert (found.by, [group.name for group in found.groups]) == (["head"], ["gru", "mean"])
    one = found.groups[1].figures["test/accuracy"]
    assert (one.mean, one.spread, one.best, one.count) == (
        pytest.approx(0.8),
        pytest.approx(0.02),
        0.82,
        3,
    )
    reach = 4.3026527 * 0.02 / math.sqrt(3)  # t of 2 degrees at 97.5 %
    assert one.interval == pytest.approx((0.8 - reach, 0.8 + reach))
    assert found.warnings == []
    assert ("embedding", "random") in found.equal
    assert ("documents and splits", "0123") in found.equal
    assert ("code", "aaaaaaa") in found.equal
    assert not [name for name, _ in found.equal if name == "head"]

    (pair,) = found.pairs
    assert (pair.first, pair.second) == ("gru", "mean")
    # 0.04 0.02 0.03: of the eight ways to turn signs two are as far
    assert pair.repeats.difference == pytest.approx(0.03)
    assert (pair.repeats.p, pair.holm, pair.repeats.least_p) == (0.25, 0.25, 0.25)
    assert pair.repeats.effect == pytest.approx(3)
    assert "of 3 pairs no p is below 0.25" in found.notes[-1]


def test_lower_is_better() -> None:
    assert [
        is_lower_better(name) for name in ("val/loss", "test/calibration_error", "seconds/fit", "steps")
    ] == [True] * 4
    assert not any(map(is_lower_better, ("test/accuracy", "speed/tokens_per_second", "test/mcc")))
    assert figure([3, 1, 2], lower=True).best == 1
    alone = figure([3.0])
    assert (alone.spread, alone.interval, alone.best) == (None, None, 3)


def test_order_by_what_is_better(tmp_path: Path) -> None:
    make_run(tmp_path, {"test/loss": 0.5, "test/accuracy": 0.9}, head="gru")
    make_run(tmp_path, {"test/loss": 0.4, "test/accuracy": 0.8}, head="mean")

    def order(*metrics: str, lower: bool | None = None) -> list[str]:
        return [group.name for group in compare([tmp_path], metrics=metrics, lower=lower).groups]

    assert order("test/accuracy") == ["gru", "mean"]
    assert order("test/loss", "test/accuracy") == ["mean", "gru"]
    assert order("test/loss", lower=False) == ["gru", "mean"]


def test_what_differs_is_found(tmp_path: Path) -> None:
    def by(*runs: dict[str, Any], place: str) -> tuple[list[str], set[str]]:
        for run in runs:
            make_run(tmp_path / place, **run)
        found = compare([tmp_path / place])
        return found.by, {group.name for group in found.groups}

    assert by({}, {"seed": 1}, place="seeds") == ([], {"all"})
    assert by({}, {"head": "max"}, {"embedding": "frozen", "name": "b"}, place="groups") == (
        ["embedding", "head"],
        {"random, mean", "random, max", "frozen, mean"},
    )
    rates = [{"config": {"optimizer.lr": rate}} for rate in (0.01, 0.1)]
    assert by(*rates, place="rates") == (["optimizer.lr"], {"0.01", "0.1"})
    widths = [{"head": "gru", "config": {"head.hidden": 50}}, {"head": "gru"}, {"head": "mean"}]
    assert by(*widths, place="widths") == (["head"], {"gru hidden=50", "gru hidden=100", "mean"})
    # not on record what was chosen: what the configuration says
    old = [{"head": head, "chosen": False} for head in ("gru", "mean")]
    assert by(*old, place="old") == (["head"], {"Recurrent", "Pooling"})
    pools = [{"head": head, "chosen": False} for head in ("max", "mean")]
    assert by(*pools, place="pools") == (["head.modes"], {'["max"]', '["mean"]'})
    # a key that came later is as good as null
    keys = [{"config": {"data.limit": None, "classifier.activation": None}}, {}]
    assert by(*keys, place="keys") == ([], {"all"})
    # or as its default, which then is the name of the group
    shuffled = [{"config": {"data.shuffle_words": value}} for value in (False, True)]
    assert by({"seed": 1}, *shuffled, place="later") == (["data.shuffle_words"], {"false", "true"})


def warned(root: Path, by: list[str] | None = None) -> list[str]:
    return compare([root], by).warnings


def test_warned_of_what_was_not_asked_for(tmp_path: Path) -> None:
    def pair(place: str, one: dict[str, Any], two: dict[str, Any], by: str = "head") -> list[str]:
        make_run(tmp_path / place, head="gru", **one)
        make_run(tmp_path / place, head="mean", **two)
        return warned(tmp_path / place, [by])

    assert pair("same", {}, {}) == []
    assert pair("budget", {"config": {"trainer.max_epochs": 20}}, {}) == [
        "groups differ in trainer.max_epochs, their budget: 20 (gru); 10 (mean)"
    ]
    assert pair("split", {"config": {"data.validation_seed": 1}}, {}) == [
        "groups differ in data.validation_seed: 1 (gru); 0 (mean)"
    ]
    (line,) = pair("data", {"info": {"data": "4567"}}, {})
    assert "differ in their documents, labels or splits" in line
    assert pair("torch", {"info": {"versions": {"torch": "2.12.0"}}}, {}) == [
        "groups differ in the version of torch: 2.12.0 (gru); 2.13.0 (mean)"
    ]
    assert pair("code", {"info": {"git": {"revision": "b" * 40}}}, {}) == [
        "groups differ in code: bbbbbbb (gru); aaaaaaa (mean)"
    ]
    (line,) = pair("dirty", {"info": {"git": {"revision": "a" * 40, "dirty": True}}}, {})
    assert re.search(r"code: aaaaaaa\+[0-9a-f]{4} \(gru\); aaaaaaa \(mean\)", line)
    assert pair("host", {"info": {"host": "this"}}, {"info": {"host": "that"}}) == [
        "groups differ in host, so that seconds do not compare: this (gru); that (mean)"
    ]
    one, two = ({"info": {"device": "cpu, 1 threads", "threads": threads}} for threads in (1, None))
    assert pair("threads", one, two) == []  # asked for, or the environment's: it is one
    assert pair("more threads", one, {"info": {"device": "cpu, 2 threads"}}) == [
        "groups differ in device, so that seconds do not compare: cpu, 1 threads (gru); cpu, 2 threads (mean)"
    ]
    assert pair("asked", {"config": {"trainer.max_epochs": 20}}, {}, by="trainer.max_epochs") == [
        "groups differ in head: mean (10); gru (20)"
    ]


def test_folds_have_documents_of_their_own(tmp_path: Path) -> None:
    for head in ("gru", "mean"):
        for fold in range(3):
            make_run(
                tmp_path, 0.5 + fold / 10, head=head, config={"data.fold": fold}, info={"data": f"f{fold}"}
            )
    found = compare([tmp_path])
    assert found.warnings == []
    assert [group.figures["test/accuracy"].count for group in found.groups] == [3, 3]
    assert any("folds share" in note for note in found.notes)


def test_incomplete_groups_are_paired_where_they_can_be(tmp_path: Path) -> None:
    two_heads(tmp_path)
    make_run(tmp_path, 0.9, head="gru", seed=7)
    found = compare([tmp_path])
    assert found.warnings == ["mean lacks 1 of 4 runs that others have: seed=7 data.fold=0"]
    assert found.groups[0].figures["test/accuracy"].mean == pytest.approx((sum(GRU) + 0.9) / 4)
    (pair,) = found.pairs
    assert (pair.repeats.repeats, pair.repeats.paired) == (3, True)
    assert pair.repeats.difference == pytest.approx(0.03)  # of those that both have
    for group in found.groups:
        for (seed, _), run in group.runs.items():
            predict(run.folder, [0, 1], [1, 0] if seed == "7" else [0, 1])
    (pair,) = compare([tmp_path]).pairs
    assert pair.documents is not None
    assert pair.documents.difference == 0


def test_without_a_common_seed_the_groups_are_compared(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.8, 0.82, 0.84, 0.6, 0.62)):
        make_run(tmp_path, accuracy, head="gru" if number < 3 else "mean", seed=number)
    (pair,) = compare([tmp_path]).pairs
    assert (pair.repeats.paired, pair.repeats.repeats) == (False, 2)
    assert pair.repeats.difference == pytest.approx(0.21)
    assert pair.repeats.p == pytest.approx(2 / 10)  # one of ten divisions of five


def test_one_common_seed_makes_no_pairs(tmp_path: Path) -> None:
    for head, seeds, values in (("gru", (0, 1, 2), (0.6, 0.9, 0.9)), ("mean", (0, 3, 4), (0.7, 0.71, 0.69))):
        for seed, accuracy in zip(seeds, values, strict=True):
            # the seed that both have says the opposite of all the others
            said = [0, int((head == "gru" and seed > 0) or (head == "mean" and seed == 0))]
            predict(make_run(tmp_path, accuracy, head=head, seed=seed), [0, 1], said)
    found = compare([tmp_path])
    (pair,) = found.pairs
    assert (pair.first, pair.repeats.paired, pair.repeats.repeats) == ("gru", False, 3)
    assert pair.repeats.difference == pytest.approx(0.1)
    assert pair.documents is not None
    assert pair.documents.difference == pytest.approx((2 / 3 - 1 / 3) / 2)
    assert comparison_tables.tables(found)[1].rows[0][3] == "–"
    make_run(tmp_path, 0.6, head="mean", seed=1)
    found = compare([tmp_path])
    assert (found.pairs[0].repeats.paired, found.pairs[0].repeats.repeats) == (True, 2)
    assert found.pairs[0].repeats.difference == pytest.approx((-0.1 + 0.3) / 2)
    assert comparison_tables.tables(found)[1].rows[0][3] == "2"
    assert comparison_tables.records(found)[1]["pairs"] == 2


def test_what_few_repeats_can_show_is_said_of_one_pair(tmp_path: Path) -> None:
    for head, seeds in (("gru", (0, 1, 2)), ("mean", (7, 8)), ("max", (0, 1, 2, 3, 4))):
        for seed in seeds:
            accuracy = {"gru": 0.9, "mean": 0.8, "max": 0.7}[head] + seed / 1000
            make_run(tmp_path, accuracy, head=head, seed=seed)
    # gru and mean: 10 divisions of five; gru and max: 8 signs of three pairs; mean and max: 21 of seven
    found = compare([tmp_path], against="gru")
    assert [pair.repeats.least_p for pair in found.pairs] == pytest.approx([0.2, 0.25])
    assert found.notes[-1].startswith("of 2 runs no p is below 0.2, ")
    assert "it takes 4 runs of each" in found.notes[-1]
    for seed in (3, 4):  # the first pair shares no seed and is past 0.05; the second has five pairs
        make_run(tmp_path, 0.9, head="gru", seed=seed)
    make_run(tmp_path, 0.8, head="mean", seed=9)
    found = compare([tmp_path], against="max")
    assert [pair.repeats.least_p for pair in found.pairs] == pytest.approx([2 / 32, 2 / 56])
    assert found.notes[-1] == (
        "of 5 pairs no p is below 0.0625, whatever they show: it takes 6 pairs to get below 0.05, "
        "and more after Holm's correction"
    )
    found = compare([tmp_path / "trial"], against="mean")
    assert not any("no p is below" in note for note in found.notes)


def test_averaged_over_what_varies_inside(tmp_path: Path) -> None:
    for embedding, gain in (("frozen", 0.0), ("random", 0.1)):
        for head, accuracy in (("gru", 0.8), ("mean", 0.6)):
            for seed in (0, 1):
                value = accuracy + gain + seed / 100
                run = make_run(tmp_path, value, head=head, embedding=embedding, seed=seed)
                predict(run, [0, 1], [0, int(head == "gru" and embedding == "random")])
    found = compare([tmp_path], ["embedding"])
    assert [group.name for group in found.groups] == ["random", "frozen"]
    assert [group.figures["test/accuracy"].count for group in found.groups] == [4, 4]
    assert found.warnings == []
    assert "averaged over head" in found.notes
    (pair,) = found.pairs
    assert (pair.repeats.repeats, pair.repeats.difference) == (4, pytest.approx(0.1))
    assert pair.documents is not None
    assert pair.documents.documents == 2  # each once, though every head has seen it
    assert pair.documents.difference == pytest.approx(0.25)


def test_by_seed_the_rest_makes_the_pairs(tmp_path: Path) -> None:
    for head, accuracy in (("gru", 0.8), ("mean", 0.6), ("max", 0.7)):
        for seed, gain in ((0, 0.0), (1, 0.02)):
            make_run(tmp_path, accuracy + gain, head=head, seed=seed)
    found = compare([tmp_path], ["seed"])
    assert [group.name for group in found.groups] == ["1", "0"]
    assert found.warnings == []  # seed 1 lacks no run of seed 0
    (pair,) = found.pairs
    assert (pair.repeats.repeats, pair.repeats.paired) == (3, True)
    assert pair.repeats.difference == pytest.approx(0.02)


def test_a_key_within_a_group_that_is_averaged_over(tmp_path: Path) -> None:
    for data in ("mr", "trec"):
        for limit in (10, 20):
            config = {"data.name": data, "data.limit": limit}
            run = make_run(tmp_path, limit / 100, config=config, info={"choices": {"data": data}})
            predict(run, [0, 1], [0, int(limit == 20)])
    found = compare([tmp_path], ["data.limit"])
    assert [group.name for group in found.groups] == ["20", "10"]
    assert found.warnings == []
    assert "averaged over data" in found.notes
    (pair,) = found.pairs
    assert (pair.repeats.repeats, pair.repeats.paired) == (2, True)
    assert pair.documents is not None
    assert pair.documents.documents == 4  # row 0 of one data set is not row 0 of the other
    assert pair.documents.difference == pytest.approx(0.5)


def test_other_files_at_the_same_seed_are_no_repeat(tmp_path: Path) -> None:
    for head, gain in (("gru", 0.1), ("mean", 0.0)):
        for file, accuracy in (("a", 0.6), ("b", 0.8)):
            config = {"data.path": f"{file}.csv"}
            run = make_run(tmp_path, accuracy + gain, head=head, config=config, info={"data": file})
            predict(run, [0, 1], [0, int(head == "gru")])
    moved = make_run(tmp_path, 0.4, config={"data.path": "moved.csv"}, info={"data": "a"})  # which is one
    predict(moved, [0, 1], [0, 0])
    found = compare([tmp_path])
    assert [group.figures["test/accuracy"].mean for group in found.groups] == pytest.approx([0.8, 0.6])
    assert found.warnings == []
    assert "1 left out for a newer run of the same settings and seed" in found.notes
    assert "averaged over documents and splits" in found.notes
    (pair,) = found.pairs
    assert (pair.repeats.repeats, pair.repeats.difference) == (2, pytest.approx((0.3 + 0.1) / 2))
    assert pair.documents is not None
    assert pair.documents.documents == 4  # row 0 of one file is not row 0 of the other
    alone = compare([tmp_path], by=["data.source"])
    assert alone.groups[0].figures["test/accuracy"].count == 4


def test_what_stands_aside(tmp_path: Path) -> None:
    two_heads(tmp_path)
    make_run(tmp_path, 0.1, head="gru", seed=0)  # newer than the first of these
    make_run(tmp_path, None, head="gru", seed=3, status="failed")
    make_run(tmp_path, None, head="gru", seed=4, status="running")
    make_run(tmp_path, {"val/accuracy": 0.9}, head="gru", seed=5)
    spoilt = make_run(tmp_path, 0.9, head="gru", seed=6)
    spoilt.config_file.unlink()
    found = compare([tmp_path])
    assert found.groups[1].figures["test/accuracy"].mean == pytest.approx((0.1 + 0.80 + 0.85) / 3)
    assert f"left out: {spoilt.path}: not a whole run folder: config.yaml missing" in found.notes
    assert "left out: runs that are not finished (1 failed, 1 killed)" in found.notes
    assert "left out: 1 finished without test/accuracy" in found.notes
    assert "1 left out for a newer run of the same settings and seed" in found.notes


def test_a_comparison_of_moved_runs_is_the_same(tmp_path: Path) -> None:
    for run in two_heads(tmp_path / "here"):
        predict(run, [0, 1, 0, 1], [0, 1, 1, run.info()["seed"] % 2])
    before = comparison_tables.records(compare([tmp_path / "here"]))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert comparison_tables.records(compare([tmp_path / "there"])) == before
    assert before[1]["documents"] == 4


# Tests


LABELS = [0] * 20 + [1] * 20


def wrong(*rows: int) -> list[int]:
    return [1 - label if row in rows else label for row, label in enumerate(LABELS)]


def test_two_runs_by_their_documents(tmp_path: Path) -> None:
    better, worse = make_run(tmp_path, 0.95, head="gru"), make_run(tmp_path, 0.8, head="mean")
    predict(better, LABELS, wrong(0, 1))
    predict(worse, LABELS, wrong(1, *range(20, 27)))
    (pair,) = compare([tmp_path]).pairs
    assert pair.repeats.p is None
    documents = pair.documents
    assert documents is not None
    assert (documents.documents, documents.only_first, documents.only_second) == (40, 7, 1)
    assert documents.difference == pytest.approx(6 / 40)
    assert documents.mcnemar == pytest.approx(stats.binomtest(1, 8, 0.5).pvalue)
    low, high = documents.interval
    assert 0 < low < 0.15 < high


def test_documents_over_seeds_and_folds(tmp_path: Path) -> None:
    """Each document is in one of two folds, each fold trained with two seeds."""
    for head in ("gru", "mean"):
        for fold in (0, 1):
            for seed in (0, 1):
                run = make_run(tmp_path, 0.5, head=head, seed=seed, config={"data.fold": fold})
                labels = [0, 1, 1]
                # gru errs with seed 1 on row 3, mean always on rows 0 and 3
                said = [int(fold == 0 and head == "mean"), 1, 1]
                if fold == 1 and (head == "mean" or seed == 1):
                    said[0] = 1
                predict(run, labels, said, rows=range(3 * fold, 3 * fold + 3))
    found = compare([tmp_path])
    documents = found.pairs[0].documents
    assert documents is not None
    assert documents.documents == 6
    assert abs(documents.difference) == pytest.approx((1 + 0.5) / 6)
    assert documents.mcnemar is None
    table, apart = comparison_tables.of_disagreements(found, 5, ("gru", "mean"))
    assert [(one.row, one.label, one.first, one.second) for one in apart] == [
        (0, "no", 1, 0),
        (3, "no", 0.5, 0),
    ]
    assert [row[2:] for row in table.rows] == [["0", "100%", "0%"], ["3", "50%", "0%"]]
    assert "no texts" in table.title  # there is no such data set here


def test_other_documents_are_not_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path, 0.9, head="gru"), make_run(tmp_path, 0.8, head="mean")
    predict(one, [0, 1, 1], [0, 1, 1])
    predict(two, [1, 1, 1], [1, 1, 0])
    found = compare([tmp_path])
    assert found.pairs[0].documents is None
    assert "no comparison by documents: gru and mean predicted other documents" in found.notes
    with pytest.raises(UserError, match="gru and mean predicted other documents"):
        comparison_tables.of_disagreements(found, 3)
    predict(two, [0, 1], [1, 1], rows=[0, 2])
    found = compare([tmp_path])
    assert found.pairs[0].documents is not None
    assert found.pairs[0].documents.documents == 2
    assert "gru and mean are compared on the 2 documents that both have" in found.notes
    (two.predictions / "test.parquet").write_bytes(b"PAR1")
    found = compare([tmp_path])
    assert found.pairs[0].documents is None
    assert "no comparison by documents: no predictions on test from mean" in found.notes


def test_several_labels_count_in_parts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    labels, said = [[1, 0, 1], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]]
    run.write_predictions("test", [0, 1], labels, said, [[0.5] * 3] * 2, ["a", "b", "c"])
    found = answers.read_answers([(run, 0)], "test")
    assert found is not None
    assert found.right.tolist() == pytest.approx([1 / 3, 1])
    assert found.labels.tolist() == ["a, c", ""]


def test_disagreements_in_turn(tmp_path: Path) -> None:
    one, two = make_run(tmp_path, head="gru"), make_run(tmp_path, head="mean")
    predict(one, LABELS, wrong(5))
    predict(two, LABELS, wrong(1, 2, 3))
    first, second = (answers.read_answers([(run, 0)], "test") for run in (one, two))
    assert first is not None
    assert second is not None
    assert [one.row for one in answers.disagreements(first, second, 3)] == [1, 5, 2]
    assert [one.row for one in answers.disagreements(first, second, 9)] == [1, 5, 2, 3]


def test_texts_of_the_documents(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    with data.open("w") as file:
        csv.writer(file).writerows(
            [["text", "label"], *([f"text {i}", "no"] for i in range(10)), ["odd", "yes"]]
        )
    config = {
        "data.source": "csv", "data.name": None, "data.path": {"train": str(data), "test": str(data)},
        "paths.cache": str(tmp_path / "cache"),
    }  # fmt: skip
    run = make_run(tmp_path / "runs", config=config)
    assert answers.read_texts(run, "test", [10, 3], ["yes", "no"]) == ["odd", "text 3"]
    with pytest.raises(UserError, match="row 4 is not 'yes'"):
        answers.read_texts(run, "test", [4], ["yes"])
    with pytest.raises(UserError, match="row 11 is not there"):
        answers.read_texts(run, "test", [11], ["yes"])


def test_holm_over_all_pairs(tmp_path: Path) -> None:
    for head, base in (("gru", 0.8), ("max", 0.7), ("mean", 0.6)):
        for seed in range(6):
            make_run(tmp_path, base + seed / 1000 * (1 + base), head=head, seed=seed)
    found = compare([tmp_path])
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("gru", "max"), ("gru", "mean"), ("max", "mean"),
    ]  # fmt: skip
    assert [pair.repeats.p for pair in found.pairs] == [2 / 64] * 3
    assert [pair.holm for pair in found.pairs] == pytest.approx([6 / 64] * 3)
    against = compare([tmp_path], against="mean")
    assert [(pair.first, pair.second) for pair in against.pairs] == [("gru", "mean"), ("max", "mean")]
    assert [pair.holm for pair in against.pairs] == pytest.approx([4 / 64] * 2)


def mistake(*paths: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare(paths, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes(tmp_path: Path) -> None:
    two_heads(tmp_path)
    assert "Did you mean 'test/accuracy'?" in mistake(tmp_path, metrics=["test/acuracy"])
    assert "Did you mean 'test/accuracy'?" in mistake(tmp_path, metrics=["accuracy"])
    assert "Did you mean 'head'?" in mistake(tmp_path, by=["haed"])
    line = mistake(tmp_path, against="grru")
    assert "expected one of gru; mean. Did you mean 'gru'?" in line
    make_run(tmp_path / "late", 0.5, status="failed")
    assert "none of 1 runs is finished" in mistake(tmp_path / "late")
    with pytest.raises(UserError, match="no predictions on test"):
        comparison_tables.of_disagreements(compare([tmp_path]), 3)


# Tables


@pytest.fixture
def shown(tmp_path: Path) -> Comparison:
    costs = {"seconds/fit": 90.0, "memory/peak_bytes": 5 * 2**20, "parameters/all": 1234, "test/loss": 0.5}
    for head, accuracy in (("gru", 0.9), ("mean", 0.8)):
        for seed in (0, 1):
            run = make_run(tmp_path, {"test/accuracy": accuracy + seed / 100, **costs}, head=head, seed=seed)
            predict(run, LABELS, wrong(*range(4 if head == "gru" else 8)))
    return compare([tmp_path], metrics=["test/accuracy", "test/loss"])


def test_markdown(shown: Comparison) -> None:
    found = comparison_tables.markdown(comparison_tables.tables(shown), comparison_tables.lines(shown))
    rows = found.splitlines()
    assert rows[0] == "test/accuracy, %, more is better; means over runs:"
    assert rows[2:6] == [
        "| head | runs | test/accuracy, % | sd | 95 % of the mean | best | test/loss ± sd | training | MiB "
        "| parameters |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| gru | 2 | 90.50 | 0.71 | 84.15 … 96.85 | 91.00 | 0.5 ± 0 | 1 min 30 s | 5 | 1,234 |",
        "| mean | 2 | 80.50 | 0.71 | 74.15 … 86.85 | 81.00 | 0.5 ± 0 | 1 min 30 s | 5 | 1,234 |",
    ]
    (row,) = [row for row in rows if row.startswith("| gru − mean")]
    assert row.startswith("| gru − mean | +10.00 | +10.00 … +10.00 | 2 | 0.500 | – | – | 40 | ")
    assert "- equal in all: " in found


def test_latex(shown: Comparison) -> None:
    found = comparison_tables.latex(comparison_tables.tables(shown), ["100 % sure"])
    assert found.count(r"\begin{tabular}") == found.count(r"\end{tabular}") == 2
    assert (
        r"gru & 2 & 90.50 & 0.71 & 84.15 \ldots{} 96.85 & 91.00 & 0.5 $\pm$ 0 & 1 min 30 s & 5 & 1,234 \\"
        in found
    )
    assert r"head & runs & test/accuracy, \% & sd" in found
    assert "% 100 % sure" in found
    body = [line for line in found.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%#_]|[–−…±<>]", "\n".join(body))
    columns = re.findall(r"\{([lr]+)\}", found)
    rows = [line.count(" & ") + 1 for line in body if line.endswith(r"\\")]
    assert rows == [len(columns[0])] * 3 + [len(columns[1])] * 2


def test_csv_and_json(shown: Comparison) -> None:
    first, second = csv.DictReader(comparison_tables.as_csv(shown).splitlines())
    assert (first["head"], first["count"], first["compared_with"]) == ("gru", "2", "")
    assert float(second["mean"]) == pytest.approx(0.805)
    assert (second["compared_with"], second["documents"]) == ("gru", "40")
    assert float(second["difference"]) == pytest.approx(-0.1)
    assert float(second["documents_low"]) < -0.1 < float(second["documents_high"]) < 0
    content = json.loads(comparison_tables.as_json(shown))
    assert [len(group["runs"]) for group in content["groups"]] == [2, 2]
    assert content["pairs"][0]["repeats"]["difference"] == pytest.approx(0.1)
    assert content["equal"]["embedding"] == "random"


def test_text(shown: Comparison) -> None:
    found = comparison_tables.text(comparison_tables.tables(shown), ["a [note]"])
    assert re.search(
        r"^gru +2 +90\.50 +0\.71 +84\.15 … 96\.85 +91\.00", found.replace("\n ", "\n"), re.MULTILINE
    )
    assert found.endswith("a [note]")


@pytest.mark.parametrize(
    ("p", "said"), [(None, "–"), (0.0001, "< 0.0005"), (0.00312, "0.0031"), (0.0625, "0.062"), (1, "1.000")]
)
def test_p_values(p: float | None, said: str) -> None:
    assert comparison_tables.p_value(p) == said


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    for made in two_heads(tmp_path / "runs"):
        predict(
            made,
            LABELS,
            wrong(made.info()["seed"], 30 if made.read_metrics()["test/accuracy"] > 0.81 else 31),
        )
    for form, part in (
        ("text", "gru"),
        ("markdown", "| gru |"),
        ("latex", "gru &"),
        ("csv", "gru,3,"),
        ("json", "{"),
    ):
        code, out, _ = run(tmp_path / "runs", "--format", form)
        assert (code, part in out) == (0, True)
    target = tmp_path / "table.md"
    code, out, _ = run(tmp_path / "runs", "--format", "markdown", "--disagreements", 2, "--out", target)
    assert (code, out) == (0, "")
    assert "Documents on which gru and mean differ most" in target.read_text()
    code, out, err = run(tmp_path / "runs", "--metric", "test/acc")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: --metric test/acc: ")

    sent = []
    monkeypatch.setattr(wandb_runs, "read", lambda place: registry.find([tmp_path / place]))
    monkeypatch.setattr(wandb_runs, "send", lambda comparison, place: sent.append(place) or ["wandb: sent"])
    code, out, err = run("--wandb", "runs", "--format", "csv")  # of runs that lie there
    assert (code, "gru,3," in out, err) == (0, True, "wandb: sent\n")
    code, _, _ = run(tmp_path / "runs", "--wandb", "team/sst2")
    assert (code, sent) == (0, ["runs", "team/sst2"])
    code, _, err = run("--by", "head")
    assert (code, "give run folders, or --wandb PROJECT" in err) == (2, True)


def test_two_comparisons_at_once(tmp_path: Path) -> None:
    two_heads(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: comparison_tables.records(compare([tmp_path])), range(2)))
    assert found[0] == found[1]
    assert not list(tmp_path.rglob("*.tmp"))
