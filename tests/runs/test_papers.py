"""A paper's table: which runs belong to which cell, means and differences worked by hand, and its script."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT

from textbed.errors import UserError
from textbed.runs import papers
from textbed.runs.folder import write_json

CNN = {"_target_": "textbed.heads.convolutional.Convolutional", "dense": None}
TABLE = "textbed.embedding.table.Table"


def run(
    folder: Path,
    accuracy: float | None,
    *,
    data: str = "trec",
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
    status: str = "finished",
    name: str = "kim2014",
    vectors: str | None = None,
    head: dict[str, Any] | None = None,
    number: int | None = None,
    **more: Any,
) -> Path:
    """A run folder with what is read of one; ``number`` orders them in time."""
    number = 10 + len(list(folder.glob("*/*"))) if number is None else number
    place = folder / name / f"20300101-{number:06d}-abcdef"
    place.mkdir(parents=True)
    config = {
        "name": name,
        "seed": seed,
        "data": {"name": data, "folds": folds, "fold": fold, "mirror": f"/here/{number}"},
        "embedding": {"_target_": TABLE, "vectors": vectors, "trainable": True},
        "head": head or CNN,
        "optimizer": {"lr": 1.0},
        **more,
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(place / "run.json", {"status": status})
    if accuracy is not None:
        write_json(place / "metrics.json", {"test/accuracy": accuracy, "test/loss": 1.0})
    return place


def cell(replication: papers.Replication, row: str, data: str) -> papers.Cell:
    (found,) = [one for one in replication.cells if (one.row, one.data) == (row, data)]
    return found


def test_mean_spread_and_difference_by_hand(tmp_path: Path) -> None:
    for fold, accuracy in enumerate((0.74, 0.76, 0.81)):
        run(tmp_path, accuracy, data="mr", folds=10, fold=fold, seed=fold)
    run(tmp_path, 0.9, vectors="GoogleNews.bin")
    replication = papers.replicate([tmp_path])
    folds = cell(replication, "CNN-rand", "MR")
    assert folds.accuracies == pytest.approx([74, 76, 81])
    assert folds.mean == pytest.approx(77)
    assert folds.spread == pytest.approx((26 / 2) ** 0.5)  # 9 + 1 + 16 over n - 1
    assert folds.difference == pytest.approx(77 - 76.1)
    alone = cell(replication, "CNN-non-static", "TREC")
    assert (alone.mean, alone.spread) == (pytest.approx(90), None)
    assert alone.difference == pytest.approx(90 - 93.6)
    missing = cell(replication, "CNN-rand", "TREC")
    assert (missing.published, missing.mean, missing.difference) == (91.2, None, None)
    assert len(replication.cells) == 16
    assert replication.notes == []

    lines = papers.markdown(replication).splitlines()
    assert "doi:10.3115/v1/D14-1181" in lines[0]
    assert lines[2:5] == [
        "| row | data | paper | ours | difference | runs |",
        "|---|---|--:|--:|--:|--:|",
        "| CNN-rand | MR | 76.1 | 77.0 ± 3.6 | +0.9 | 3 |",
    ]
    assert "|  | TREC | 91.2 | – | – | 0 |" in lines
    assert "|  | TREC | 93.6 | 90.0 | −3.6 | 1 |" in lines
    shown = io.StringIO()
    papers.show(replication, shown)
    words = [line.split() for line in shown.getvalue().splitlines()]
    assert ["CNN-rand", "MR", "76.1", "77.0", "±", "3.6", "+0.9", "3"] in words
    assert ["TREC", "93.6", "90.0", "−3.6", "1"] in words


def test_another_file_is_no_repeat(tmp_path: Path) -> None:
    for number, (accuracy, data) in enumerate(((0.7, "a"), (0.8, "b"), (0.9, "b"))):
        path = run(tmp_path, accuracy, number=number)
        write_json(path / "run.json", {"status": "finished", "data": data})
    replication = papers.replicate([tmp_path])
    assert cell(replication, "CNN-rand", "TREC").accuracies == pytest.approx([70, 90])
    assert replication.notes == [
        "CNN-rand on TREC: its runs have read different documents or splits",
        "1 run left out for a newer one of the same fold and seed",
    ]


def test_what_stands_aside_is_said(tmp_path: Path) -> None:
    run(tmp_path, 0.5, seed=0, number=1)
    run(tmp_path, 0.9, seed=0, number=2)  # the same again: the newer counts
    run(tmp_path, 0.8, seed=1, optimizer={"lr": 0.5})
    run(tmp_path, None, seed=2, status="running")
    run(tmp_path, 0.1, seed=3, status="failed")
    run(tmp_path, 0.1, seed=4, head={"_target_": "textbed.heads.pooling.Pooling", "modes": ["mean"]})
    run(tmp_path, 0.1, data="mr")  # not in folds
    run(tmp_path, 0.7, seed=5, trainer={"limit_train_batches": 1})
    replication = papers.replicate([tmp_path / "kim2014"])
    assert cell(replication, "CNN-rand", "TREC").accuracies == pytest.approx([90, 80, 70])
    assert replication.notes == [
        "CNN-rand on TREC: its runs differ in optimizer.lr, trainer.limit_train_batches as well",
        "1 run trained on a part of the documents only",
        "2 runs of none of the table's rows or data sets",
        "2 runs not finished, or not tested",
        "1 run left out for a newer one of the same fold and seed",
    ]
    assert all(f"- {note}" in papers.markdown(replication) for note in replication.notes)


def test_rows_that_only_we_have(tmp_path: Path) -> None:
    pooling = {"_target_": "textbed.heads.pooling.Pooling", "modes": ["max"], "dense": [300]}
    run(tmp_path, 0.8, name="swem", head=pooling)
    run(tmp_path, 0.9, name="swem", head=pooling | {"modes": ["mean", "max"]}, vectors="glove.txt")
    replication = papers.replicate([tmp_path])
    ours = cell(replication, "SWEM-max, random rows", "TREC")
    assert (ours.published, ours.mean, ours.difference) == (None, pytest.approx(80), None)
    assert cell(replication, "SWEM-concat", "TREC").difference == pytest.approx(90 - 91.8)
    rows = [one.row for one in replication.cells]
    assert "SWEM-aver" in rows  # the paper has it
    assert "SWEM-aver, random rows" not in rows  # neither has
    assert "| SWEM-max, random rows | MR | – | – | – | 0 |" in papers.markdown(replication)


def test_a_figure_that_was_not_compared_with_its_paper_says_so(tmp_path: Path) -> None:
    pooling = {"_target_": "textbed.heads.pooling.Pooling", "modes": ["max"], "dense": [300]}
    run(tmp_path, 0.8, name="swem", head=pooling, vectors="glove.txt")
    replication = papers.replicate([tmp_path])
    doubted = [(one.row, one.data) for one in replication.cells if not one.confirmed]
    assert {("SWEM-max", "TREC"), ("SWEM-aver", "MR")} < set(doubted)
    assert ("SWEM-concat", "MR") not in doubted
    text = papers.markdown(replication)
    assert "|  | TREC | 89.0? | 80.0 | −9.0 | 1 |" in text
    assert "| SWEM-concat | MR | 78.2 | – | – | 0 |" in text
    assert f"- {len(doubted)} published figures, with a question mark, were not compared with" in text
    sound = papers.replicate([run(tmp_path, 0.9)])
    assert sound.notes == []
    assert "?" not in papers.markdown(sound)


@pytest.mark.parametrize(("points", "shown"), [(0.44, "+0.4"), (-1.25, "−1.2"), (-0.04, "0.0"), (0.0, "0.0")])
def test_signs(points: float, shown: str) -> None:
    assert papers.signed(points) == shown


def test_the_published_tables_are_whole() -> None:
    for name, table in papers.published().items():
        assert (ROOT / "configs/experiment/paper" / f"{name}.yaml").is_file()
        assert "arXiv:" in table["source"] or "doi:" in table["source"]
        for about in table["rows"].values():
            assert set(about) <= {"runs", "accuracy", "unconfirmed"}
            assert set(about.get("unconfirmed", [])) <= set(about.get("accuracy", {}))
            assert set(about.get("accuracy", {})) <= set(table["sets"])
            assert all(50 < figure < 100 for figure in about.get("accuracy", {}).values())
    assert {path.stem for path in (ROOT / "configs/experiment/paper").glob("*.yaml")} == set(
        papers.published()
    )


def mistake(*paths: Path, paper: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        papers.replicate(paths, paper)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'nowhere'}: there is no such folder" in mistake(tmp_path / "nowhere")
    assert f"{tmp_path / 'empty'}: there is no run folder in it" in mistake(tmp_path / "empty")
    place = run(tmp_path, 0.9)
    line = mistake(place, paper="kim2015")
    assert "--paper kim2015" in line
    assert "Did you mean 'kim2014'?" in line
    line = mistake(place, paper="textgcn")
    assert "none of the 1 runs (kim2014) belongs to a row of textgcn" in line
    assert "experiment=paper/textgcn" in line
    other = run(tmp_path / "other", 0.9, name="quickstart", data="x")
    assert "runs are of quickstart; say whose table is meant" in mistake(other)
    assert "runs are of kim2014, quickstart" in mistake(place, other)
    late = run(tmp_path / "late", None, status="running")
    assert "of 1 runs none is finished and tested" in mistake(late)
    (late / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read as YAML" in mistake(late)


def script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/paper.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = run(tmp_path, 0.9, name="mine")
    assert script(monkeypatch, tmp_path) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: these runs are of mine;")
    assert script(monkeypatch, place, "--paper", "kim2014") == 0
    assert "CNN-rand" in capsys.readouterr().out
    assert script(monkeypatch, place, "--paper", "kim2014", "--markdown") == 0
    assert "|  | TREC | 91.2 | 90.0 | −1.2 | 1 |\n" in capsys.readouterr().out
