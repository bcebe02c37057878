"""Every experiment and every debug config runs: on a mirror of a few made-up documents, for one step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from running import ROOT, Runs, documents, figures, on, predictions, record

from textbed.runs.folder import RunFolder

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
DEBUG = sorted(path.stem for path in (ROOT / "configs" / "debug").glob("*.yaml"))
# Splits of the data sets that have not just the two.
SPLITS = {"sst2": ("train", "validation", "test"), "subj": ("train",)}


def write_split(path: Path, count: int, seed: int) -> None:
    """A Parquet file as the hub has it: numbers for labels, their names in the metadata."""
    rows = documents(count, seed)
    names = sorted({topic for _, topic in rows})
    value = {"dtype": "string", "_type": "Value"}
    features = {"text": value, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [[text for text, _ in rows], [names.index(topic) for _, topic in rows]]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path)


def of_file(group: str, name: str) -> Any:
    return OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_is(name: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    head = text[: text.index("\ndefaults:")].split("\n")
    assert head[0] == "# @package _global_"
    assert all(line.startswith("# ") for line in head if line)
    assert re.search(rf"^# Command: python train\.py experiment={name}\b", text, re.MULTILINE)
    assert re.search(r"^# Cost and score: \S", text, re.MULTILINE)
    assert of_file("experiment", name).name == name  # its runs lie under its own name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name: str, runs: Runs) -> None:
    settings = runs.config(f"experiment={name}").data
    if settings.source == "docstrings":
        given = ["data.size=240", "data.classes=[networkx,torchmetrics]"]
    else:
        for seed, split in enumerate(SPLITS.get(name, ("train", "test"))):
            write_split(runs.folder / "mirror" / settings.name / f"{split}.parquet", 60, seed)
        given = [f"data.mirror='{runs.folder}/mirror'"]
    run = runs(f"experiment={name}", "debug=step", *given)
    done = figures(run)
    assert (done["epochs"], done["steps"]) == (1, 1)
    cfg: Any = OmegaConf.load(run.config_file)
    assert cfg.name == "debug"
    # what the experiment's file says is what was run, where debug=step does not say otherwise
    for group, values in of_file("experiment", name).items():
        if group not in ("name", "defaults", "trainer"):
            assert {key: cfg[group][key] for key in values} == values
    if settings.source != "docstrings":
        assert len(predictions(run)["row"]) == (6 if settings.folds else 60)  # one of ten folds, or the split
        classes = json.loads(pq.read_schema(run.predictions / "test.parquet").metadata[b"classes"])
        assert classes == ["birds", "boats", "bread"]
    else:
        assert set(predictions(run)["label_name"]) == {"networkx", "torchmetrics"}


def test_these_are_the_debug_configs() -> None:
    assert DEBUG == ["hundred", "overfit", "profiler", "step"]


def debugged(runs: Runs, topics: Path, name: str, *more: str) -> RunFolder:
    """A run on a file with the debug config's own number of epochs and the usual batches."""
    own = ("trainer.max_epochs", "data.batch_size", "classifier.dropout")
    left = [one for one in on(topics) if not one.startswith(own)]
    run = runs(*left, f"debug={name}", *more)
    assert run.path.parent.name == "debug"
    assert run.info()["status"] == "finished"
    return run


def test_debug_step(runs: Runs, topics: Path) -> None:
    run = debugged(runs, topics, "step", "data.batch_size=16", "data.eval_batch_size=8")
    assert (figures(run)["epochs"], figures(run)["steps"]) == (1, 1)
    assert len(predictions(run)["row"]) == 8


def test_debug_overfit(runs: Runs, topics: Path) -> None:
    run = debugged(runs, topics, "overfit", "trainer.max_epochs=40")
    done = figures(run)
    assert (done["epochs"], done["steps"]) == (40, 40)
    losses = [line["train/loss_epoch"] for line in record(run) if "train/loss_epoch" in line]
    assert len(losses) == 40
    assert losses[0] > 1
    assert losses[-1] < 0.05
    assert of_file("debug", "overfit").trainer.max_epochs == 100
    assert not run.predictions.exists()


def test_debug_hundred(runs: Runs, topics: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = debugged(runs, topics, "hundred", "trainer.max_epochs=1", "data.limit=20")
    assert figures(run)["steps"] == 1
    assert len(predictions(run)["row"]) == 20
    assert re.search(r"train +20 ", capfd.readouterr().err)
    assert of_file("debug", "hundred").data.limit == 100


def test_debug_profiler(runs: Runs, topics: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = debugged(runs, topics, "profiler", "data.batch_size=1")
    assert figures(run)["steps"] == 100
    shown = capfd.readouterr()
    assert "run_training_batch" in shown.out + shown.err + run.log_file.read_text()
