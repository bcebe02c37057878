from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import ROOT, accuracy, documents, threads_restored, write_csv

from textbed.data.datamodule import TextDataModule
from textbed.errors import UserError
from textbed.runs import evaluation as module
from textbed.runs.evaluation import evaluate
from textbed.runs.folder import RunFolder
from textbed.runs.model import load, read_network

Trained = Callable[[str], RunFolder]


@pytest.fixture(autouse=True)
def threads():
    with threads_restored():
        yield


@pytest.mark.parametrize("name", ["words", "pairs", "multilabel"])
def test_its_own_splits_give_the_same_to_the_last_bit(trained: Trained, name: str) -> None:
    run = trained(name)
    figures, by_class, file = evaluate(str(run.path))
    kept = run.read_metrics()
    assert len(figures) > 5
    assert {key: kept[key] for key in figures} == figures
    for entry in by_class:
        assert entry["f1"] == kept[f"test/f1/{entry['class']}"]
    assert file is not None
    written = json.loads(file.read_text())
    assert (written["figures"], written["split"], written["own_data"]) == (figures, "test", True)
    assert written["documents"] == sum(entry["support"] for entry in by_class) or name == "multilabel"
    if name == "words":
        figures, _, other = evaluate(str(run.path), "validation")
        assert other != file
        assert {key: kept[key] for key in figures} == figures
        assert all(key.startswith("val/") for key in figures)


def test_other_data(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    rows = [(text, label) for text, label in documents(40, seed=5) if label != "boats"]
    path = write_csv(tmp_path / "other.csv", rows)
    figures, by_class, _ = evaluate(str(run.path), None, ["data=csv", f"data.path='{path}'"])
    said = load(run.path).predict([text for text, _ in rows], as_list=True)
    classes = ["birds", "boats", "bread"]
    expected = accuracy([classes.index(label) for _, label in rows], [classes.index(name) for name in said])
    assert figures["test/accuracy"] == pytest.approx(expected)
    assert [entry["support"] for entry in by_class] == [14, 0, 13]


def test_words_in_a_random_order(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    design, tokenizer, _ = read_network(run.path)
    path = write_csv(tmp_path / "other.csv", documents(40, seed=5))
    changes = ["data=csv", f"data.path='{path}'", "data.shuffle_words=true", "data.shuffle_seed=3"]

    def words(*overrides: str) -> list[list[str]]:
        cfg, own = module._configuration(run, overrides)
        assert not own
        dataset = module._other_loader(cfg, tokenizer, design, "train")[0].dataset
        texts = [dataset.columns[0].gather(np.array([row]))[0] for row in range(40)]
        return [[tokenizer.tokens[one] for one in ids] for ids in texts]

    plain, mixed = words(*changes[:2]), words(*changes)
    assert mixed != plain
    assert [sorted(one) for one in mixed] == [sorted(one) for one in plain]
    # the order is that of a run on these documents
    cfg, _ = module._configuration(run, [*changes, "data.test=0", "data.validation=0"])
    data = TextDataModule(cfg.data, cfg.tokenizer, tmp_path / "cache")
    data.setup()
    for row, expected in enumerate(mixed):
        ids, _ = data.encoded["train"][0].gather(np.array([row]))
        there = [data.tokenizer.tokens[one] for one in ids]
        assert [word if word in tokenizer.tokens else "<unk>" for word in there] == expected
    # the run's own documents are the same in any order
    assert module._configuration(run, changes[2:])[1]


def test_a_folder_that_cannot_be_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(shutil.copytree(trained("words").path, tmp_path / "copy"))
    shutil.rmtree(run.evaluations, ignore_errors=True)
    run.evaluations.write_text("a file in the folder's place, which refuses root too")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run.path)])
    capsys.readouterr()  # what the training said
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (0, "")
    assert "nothing was kept: evaluations/ of the run cannot be written" in told.err
    assert "GPU available" not in told.err
    (shown,) = [line for line in told.err.splitlines() if line.split()[:1] == ["accuracy"]]
    assert f"{run.read_metrics()['test/accuracy']:.4f}" in shown


def test_what_cannot_be_evaluated(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")

    def refusal(*overrides: str, split: str | None = None, path: Path = run.path) -> str:
        with pytest.raises(UserError) as caught:
            evaluate(str(path), split, overrides)
        return str(caught.value)

    path = write_csv(tmp_path / "other.csv", [("an owl", "bird"), ("a", "horses")])
    said = refusal("data=csv", f"data.path='{path}'")
    assert "class 'bird' (and 1 more) of train (column 'label') is none that the model knows" in said
    assert "Did you mean 'birds'" in said
    assert "split=tset" in refusal(split="tset")
    assert "head=gru: only data, trainer" in refusal("head=gru")
    path = write_csv(tmp_path / "good.csv", [("an owl", "birds")])
    said = refusal("data=csv", f"data.path='{path}'", split="validation")
    assert said == "split=validation: the data has none; there are train"
    moved = RunFolder(shutil.copytree(run.path, tmp_path / "moved"))
    moved.update(data="another")
    assert "the data has changed since the run" in refusal(path=moved.path)
