"""Whole runs: what they leave behind, what they can be asked for, and how they fail."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from running import (
    ROOT,
    Runs,
    accuracy,
    assert_same_run,
    documents,
    f1_macro,
    figures,
    on,
    predictions,
    record,
    weights,
    write_csv,
)

from textbed import config, training
from textbed.classifier import TextClassifier
from textbed.data.datamodule import TextDataModule
from textbed.data.encoding import load_tokenizer
from textbed.errors import UserError
from textbed.runs.folder import RunFolder
from textbed.runs.summary import share

SETTINGS = ("seed=7", "name=kept")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("there"))


@pytest.fixture(scope="module")
def kept(there: Runs, topics: Path) -> RunFolder:
    """One finished run, to look at."""
    return there(*on(topics, *SETTINGS))


@pytest.fixture(scope="module")
def data(kept: RunFolder) -> TextDataModule:
    """The documents of that run, from its configuration."""
    return data_of(kept)


def data_of(folder: RunFolder) -> TextDataModule:
    cfg = OmegaConf.load(folder.config_file)
    module = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    module.setup()
    return module


def model_of(folder: RunFolder, data: TextDataModule, which: str = "best") -> TextClassifier:
    """The model of a run, from its configuration and a checkpoint."""
    cfg = OmegaConf.load(folder.config_file)
    model, _ = training.build_model(cfg, data)
    model.load_state_dict(weights(folder, which))
    return model.eval()


# The folder


def test_a_run_leaves_these_files(kept: RunFolder) -> None:
    files = {str(path.relative_to(kept.path)) for path in kept.path.rglob("*") if path.is_file()}
    assert files - {"git.diff"} == {  # only where something differs from the revision
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "embedding.json",
        "log.txt",
        "metrics.csv",
        "metrics.json",
        "metrics.jsonl",
        "model.yaml",
        "overrides.yaml",
        "pictures/confusion_matrix.png",
        "pictures/embedding.png",
        "pictures/learning_curves.png",
        "predictions/test.parquet",
        "predictions/validation.parquet",
        "run.json",
        "tokenizer/tokenizer.json",
    }
    assert kept.path.parent.name == "kept"


def test_the_configuration_reads_back_as_it_was(kept: RunFolder, there: Runs, topics: Path) -> None:
    read = OmegaConf.load(kept.config_file)
    assert read == there.config(*on(topics, *SETTINGS))
    assert config.check(read) == read
    assert yaml.safe_load(kept.overrides_file.read_text()) == [*there.usual, *on(topics, *SETTINGS)]


def test_run_json(kept: RunFolder) -> None:
    info = kept.info()
    assert (info["status"], info["phase"], info["seed"], info["error"]) == ("finished", "done", 7, None)
    assert info["versions"]["torch"] == torch.__version__
    assert info["device"] == "cpu, 1 threads"
    assert info["started"] <= info["ended"]
    assert info["pid"] == os.getpid()


def test_test_figures_are_those_of_the_predictions(kept: RunFolder, data: TextDataModule) -> None:
    said, given = predictions(kept), figures(kept)
    assert said["row"] == data.splits["test"].rows.tolist()
    assert said["label"] == data.sets["test"].labels.tolist()
    assert said["label_name"] == [data.corpus.classes[label] for label in said["label"]]
    assert said["predicted_name"] == [data.corpus.classes[label] for label in said["predicted"]]
    chances = np.array(said["probability"])
    assert chances.argmax(axis=1).tolist() == said["predicted"]
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    right = accuracy(said["label"], said["predicted"])
    assert 0.4 < right < 1  # something was learnt, and something is left to get wrong
    assert given["test/accuracy"] == pytest.approx(right, abs=1e-6)
    assert given["test/f1_macro"] == pytest.approx(f1_macro(said["label"], said["predicted"], 3), abs=1e-6)
    loss = -np.log(chances[np.arange(len(chances)), said["label"]]).mean()
    assert given["test/loss"] == pytest.approx(loss, abs=1e-5)
    for number, name in enumerate(data.corpus.classes):
        assert given[f"test/support/{name}"] == said["label"].count(number) == 10
        hits = sum(a == b == number for a, b in zip(said["label"], said["predicted"], strict=True))
        assert given[f"test/recall/{name}"] == pytest.approx(hits / 10, abs=1e-6)
    classes = json.loads(pq.read_schema(kept.predictions / "test.parquet").metadata[b"classes"])
    assert classes == data.corpus.classes == ["birds", "boats", "bread"]


def test_validation_is_predicted_by_what_is_tested(kept: RunFolder, data: TextDataModule) -> None:
    said, given = predictions(kept, "validation"), figures(kept)
    assert said["row"] == data.splits["validation"].rows.tolist()
    assert said["label"] == data.sets["validation"].labels.tolist()
    assert given["val/accuracy"] == pytest.approx(accuracy(said["label"], said["predicted"]), abs=1e-6)
    loss = -np.log(
        [chances[label] for chances, label in zip(said["probability"], said["label"], strict=True)]
    )
    assert given["val/loss"] == pytest.approx(loss.mean(), abs=1e-5)
    # what is logged is the validation of each epoch, and nothing again
    assert sum("val/loss" in line for line in record(kept)) == 2


def test_other_final_figures(kept: RunFolder, data: TextDataModule) -> None:
    given = figures(kept, costs=True)
    # 150 documents, of them 30 to test and 12 to validate; 108 in batches of 16 are 7 steps an epoch
    assert (len(data.sets["train"]), len(data.sets["validation"]), given["steps"]) == (108, 12, 14)
    assert given["epochs"] == 2
    assert given["parameters/embedding"] == len(data.tokenizer) * 8
    assert given["parameters/classifier"] == 8 * 3 + 3
    assert given["parameters/all"] == given["parameters/embedding"] + given["parameters/classifier"]
    names = ("data", "model", "warmup", "fit", "validation", "test", "report")
    phases = {f"seconds/{name}" for name in names}
    assert phases == {name for name in given if name.startswith("seconds/")}
    assert given["memory/peak_bytes"] > 1e8


def test_the_record_holds_every_epoch(kept: RunFolder) -> None:
    lines = record(kept)
    steps = [(line["epoch"], line["step"]) for line in lines if "train/loss" in line]
    assert steps == [(0, 1), (0, 3), (0, 5), (1, 7), (1, 9), (1, 11), (1, 13)]  # every 2 of 7 + 7
    validations = [line for line in lines if "val/accuracy" in line]
    assert [(line["epoch"], line["step"]) for line in validations] == [(0, 6), (1, 13)]
    assert [line["epoch"] for line in lines if "train/loss_epoch" in line] == [0, 1]
    # validation figures at the end are those of the epoch whose weights were tested
    best = max(validations, key=lambda line: line["val/accuracy"])
    given = figures(kept)
    assert {name: value for name, value in given.items() if name.startswith("val/")} == {
        name: value for name, value in best.items() if name.startswith("val/")
    }
    assert given["best_epoch"] == best["epoch"] + 1
    with kept.table_file.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [
        {name: float(value) for name, value in row.items() if value != "" and name != "time"} for row in table
    ] == lines


def test_validation_figures_are_those_of_the_best_checkpoint(runs: Runs, topics: Path) -> None:
    # validation that comes between two optimizer steps, where the record's steps cannot tell which it was
    run = runs(*on(topics, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"))
    validations = [line for line in record(run) if "val/accuracy" in line]
    assert len(validations) == 4
    best = max(validations, key=lambda line: line["val/accuracy"])
    assert best["val/accuracy"] > validations[0]["val/accuracy"]
    given = figures(run)
    for name in best:
        if name.startswith("val/"):
            assert given[name] == best[name], name
    assert given["best_epoch"] == best["epoch"] + 1


def test_the_tokenizer_reads_a_string_as_training_did(kept: RunFolder, data: TextDataModule) -> None:
    tokenizer = load_tokenizer(kept.tokenizer)
    for position in (0, 17, len(data.sets["test"]) - 1):
        row = int(data.splits["test"].rows[position])
        batch = data.sets["test"][position]
        ids, offsets = tokenizer.encode([data.corpus.splits["train"].text(row)])
        assert ids.tolist() == batch.ids.tolist()
        assert offsets.tolist() == [0, len(batch.ids)]
        assert len(ids) > 0


def test_the_best_checkpoint_gives_the_predictions_again(kept: RunFolder, data: TextDataModule) -> None:
    model = model_of(kept, data)
    with torch.no_grad():
        batch = data.sets["test"].__getitems__(range(len(data.sets["test"])))
        again = model.probabilities(model(batch))
    torch.testing.assert_close(again, torch.tensor(predictions(kept)["probability"]), atol=1e-6, rtol=0)
    assert (kept.checkpoints / "last.ckpt").exists()
    last = torch.load(kept.last_checkpoint, weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 14)


def test_pictures_are_pictures(kept: RunFolder) -> None:
    for path in kept.pictures.iterdir():
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
        assert width > 300
        assert height > 200


def test_what_is_said_is_kept(kept: RunFolder) -> None:
    log = kept.log_file.read_text()
    assert "epoch 1/2  train loss" in log
    assert "epoch 2/2  train loss" in log


def command_line(
    runs: Runs, *overrides: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python train.py`` in a process of its own, in the folder of ``runs``, with nobody at the keyboard."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TEXTBED"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=runs.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        env={**mine, "HOME": str(runs.folder / "home"), **(env or {})},
    )


@pytest.mark.slow
def test_the_command_with_the_usual_logger(runs: Runs, topics: Path) -> None:
    typed = on(topics, "trainer=cpu", "threads=1", "trainer.max_epochs=1", "paths.cache=cache")
    done = command_line(runs, *typed)
    assert done.returncode == 0, done.stderr
    (run,) = runs.made()
    assert done.stdout == f"{run.path}\n"  # the folder, and nothing else
    assert run.info()["status"] == "finished"
    assert yaml.safe_load(run.overrides_file.read_text()) == typed
    chosen = run.info()["choices"]
    assert (chosen["data"], chosen["head"], chosen["experiment"]) == ("csv", "mean", None)
    assert not [group for group in chosen if group.startswith("hydra")]
    (part,) = (run.path / "wandb").glob(f"offline-run-*-{run.id}")
    assert f"wandb: logged offline; to upload: wandb sync {part}" in done.stderr
    assert part.stat().st_mode & 0o040000
    logged = (part / f"run-{run.id}.wandb").read_bytes()
    assert b"textbed.heads.pooling.Pooling" in logged  # the configuration
    assert b"memory/peak_bytes" in logged  # and all final figures
    # nothing lies about where the command was given
    assert {path.name for path in runs.folder.iterdir()} - {"home"} == {"runs", "cache"}
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_fails(runs: Runs, topics: Path) -> None:
    overrides = on(topics, *runs.usual, "trainer.max_epochs=1")
    done = command_line(runs, "-m", *overrides, "seed=-1,1")
    assert done.returncode == 1
    (made,) = runs.made()
    assert done.stdout == f"{made.path}\n"
    assert made.info()["status"] == "finished"
    assert "seed=1" in yaml.safe_load(made.overrides_file.read_text())
    lines = [line for line in done.stderr.splitlines() if "failed" in line]
    # as it happens, what came of the sweep, and the table of failures
    assert re.search(r"trial 0 \(seed=-1\) failed .*: seed=-1: expected", lines[0])
    assert "1 failed" in lines[1]
    assert "Traceback" not in done.stderr
    assert {path.name for path in runs.folder.glob("runs/*")} == {"scratch", "sweeps"}
    # a sweep's job is the run that the same settings give by themselves
    alone = runs(*on(topics, "trainer.max_epochs=1", "seed=1"))
    assert_same_run(made, alone)


# What a run can be asked for


def rows_of(folder: RunFolder) -> dict[str, set[int]]:
    return {name: set(rows.rows.tolist()) for name, rows in data_of(folder).splits.items()}


def test_several_labels_a_document(runs: Runs) -> None:
    lines = [
        {"text": text, "labels": [topic] + (["long"] if len(text) > 40 else []) if number % 10 else []}
        for number, (text, topic) in enumerate(documents(90))
    ]
    path = runs.folder / "several.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = ["data=json", "data.label=labels", "classifier.class_weights=balanced"]
    run = runs(*on(path, *wanted, "classifier.label_smoothing=0.1"))
    said, given = predictions(run), figures(run)
    assert len(said["row"]) == 18  # 20 % of 90
    assert [sorted(names) for names in said["label_name"]] == [
        sorted(lines[row]["labels"]) for row in said["row"]
    ]
    assert any(len(names) == 0 for names in said["label_name"])
    classes = ["birds", "boats", "bread", "long"]
    truth = np.array([[name in names for name in classes] for names in said["label_name"]])
    guess = np.array(said["probability"]) > 0.5
    assert [np.flatnonzero(row).tolist() for row in guess] == said["predicted"]
    assert given["test/accuracy"] == pytest.approx((truth == guess).mean(), abs=1e-6)
    assert given["test/exact_match"] == pytest.approx((truth == guess).all(axis=1).mean(), abs=1e-6)
    assert given["test/f1_micro"] == pytest.approx(
        2 * (truth & guess).sum() / (truth.sum() + guess.sum()), abs=1e-6
    )
    assert given["test/support/long"] == truth[:, 3].sum()


def test_pairs_of_texts(runs: Runs) -> None:
    texts = documents(80)
    others = [*texts[40:], *texts[:39], texts[0]]
    pairs = [
        (a, b, "same" if (one == other) == (number % 5 > 0) else "other")
        for number, ((a, one), (b, other)) in enumerate(zip(texts, others, strict=True))
    ]
    path = write_csv(runs.folder / "pairs.csv", pairs, ("first", "second", "label"))
    run = runs(*on(path, "data.text=[first,second]", "head=gru", "head.hidden=4"))
    said = predictions(run)
    assert len(said["row"]) == 16
    assert figures(run)["test/accuracy"] == pytest.approx(accuracy(said["label"], said["predicted"]))
    assert figures(run)["parameters/classifier"] == (4 * 4) * 2 + 2  # u, v, |u - v|, u * v
    # the order of the two texts counts
    batch = data_of(run).sets["test"][0]
    first = load_tokenizer(run.tokenizer).encode([pairs[said["row"][0]][0]])[0]
    assert batch.ids[: batch.offsets[1]].tolist() == first.tolist()


def test_vectors_trained_on_the_training_split(runs: Runs, topics: Path) -> None:
    """They need no file, are the same each time, and come from the training documents alone."""
    wanted = on(topics, "embedding=frozen", "embedding.dim=8", "test=false")
    tables, taken = [], []
    for more in ([], [], ["data.train_fraction=0.5"]):
        run = runs(*wanted, *more)
        weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
        tables.append(weights["embedding.table.weight"])
        taken.append(len(list((runs.folder / "cache" / "vectors").glob("corpus-*.rows"))))
    assert tables[0].shape[1] == 8
    assert torch.equal(tables[0], tables[1])
    assert taken == [1, 1, 2]


def test_special_rows_of_a_file_are_no_coverage(runs: Runs, topics: Path) -> None:
    file = runs.folder / "vectors.txt"
    file.write_text("<pad> 0 0 0\n<unk> 1 2 3\n")
    with pytest.raises(UserError, match="has a vector for none of the"):
        runs(*on(topics, "embedding=frozen", f"embedding.vectors='{file}'", "embedding.dim=null"))


def test_spellings_reach_the_vectors(runs: Runs, topics: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = runs.folder / "vectors.txt"
    file.write_text("Owl 1 2 3\nnest 4 5 6\n")
    for case, row in (("[exact]", None), ("[exact,title]", [1.0, 2.0, 3.0])):
        wanted = on(
            topics,
            "embedding=frozen",
            f"embedding.vectors='{file}'",
            f"embedding.case={case}",
            "embedding.dim=null",
        )
        run = runs(*wanted, "test=false")
        table = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]["embedding.table.weight"]
        tokens = load_tokenizer(run.tokenizer).tokens
        assert table[tokens.index("nest")].tolist() == [4, 5, 6]
        assert (table[tokens.index("owl")].tolist() == row) == (row is not None)
        data = data_of(run)
        texts = [data.corpus.splits["train"].text(int(place)) for place in data.splits["train"].rows]
        words = " ".join(texts).split()
        have = [word for word in words if word == "nest" or (word == "owl" and row is not None)]
        shown = " ".join(capfd.readouterr().err.split())
        types, tokens = share(len(set(have)), len(set(words))), share(len(have), len(words))
        assert f": {types} of the distinct words of the training text, {tokens} of all" in shown


def test_weights_by_class_and_smoothing_reach_the_loss(runs: Runs, topics: Path) -> None:
    rows = [row for number, row in enumerate(documents(120)) if row[1] != "bread" or number % 4 == 0]
    path = write_csv(runs.folder / "uneven.csv", rows)
    run = runs(
        *on(path, "classifier.class_weights=balanced", "classifier.label_smoothing=0.2", "data.test=0.4")
    )
    train = data_of(run).sets["train"].labels
    counts = np.bincount(train)
    assert counts.min() < counts.max() / 2
    by_class = len(train) / (3 * counts)
    said = predictions(run)
    labels, logs = np.array(said["label"]), np.log(np.array(said["probability"]))
    target = np.eye(3)[labels] * 0.8 + 0.2 / 3
    # torch weighs each class's part of the smoothed target by the weight of that class
    losses = -(target * logs * by_class).sum(axis=1)
    assert figures(run)["test/loss"] == pytest.approx(losses.sum() / by_class[labels].sum(), rel=1e-5)


def test_two_folds_part_the_documents(runs: Runs, topics: Path) -> None:
    folds = [
        runs(*on(topics, "trainer.max_epochs=1", "data.folds=2", f"data.fold={fold}")) for fold in (0, 1)
    ]
    tested = [set(predictions(run)["row"]) for run in folds]
    assert tested[0] | tested[1] == set(range(150))
    assert tested[0] & tested[1] == set()
    for run, rows in zip(folds, tested, strict=True):
        split = rows_of(run)
        assert split["train"] | split["validation"] == set(range(150)) - rows


def test_a_smaller_share_is_part_of_a_larger(runs: Runs, topics: Path) -> None:
    quick = ("trainer.max_epochs=1", "test=false")
    shares = {share: runs(*on(topics, *quick, f"data.train_fraction={share}")) for share in (0.25, 0.5, 1.0)}
    rows = {share: rows_of(run) for share, run in shares.items()}
    assert [len(rows[share]["train"]) for share in (0.25, 0.5, 1.0)] == [27, 54, 108]
    assert rows[0.25]["train"] < rows[0.5]["train"] < rows[1.0]["train"]
    for name in ("validation", "test"):
        assert rows[0.25][name] == rows[0.5][name] == rows[1.0][name]
    # what is not trained on does not teach words either
    assert len(load_tokenizer(shares[0.25].tokenizer)) < len(load_tokenizer(shares[1.0].tokenizer))


def test_without_validation_the_last_epoch_is_tested(runs: Runs, topics: Path, capfd: Any) -> None:
    run = runs(*on(topics, "data.validation=0"))
    assert "no validation split: the last epoch is tested" in capfd.readouterr().err
    assert rows_of(run).keys() == {"train", "test"}
    assert [path.name for path in run.checkpoints.iterdir()] == ["last.ckpt"]
    given = figures(run)
    assert not [name for name in given if name.startswith("val/")]
    with torch.no_grad():
        data = data_of(run)
        model = model_of(run, data, "last")
        again = model.probabilities(model(data.sets["test"].__getitems__(range(len(data.sets["test"])))))
    torch.testing.assert_close(again, torch.tensor(predictions(run)["probability"]), atol=1e-6, rtol=0)


def test_without_checkpoints_the_last_weights_are_tested(runs: Runs, topics: Path) -> None:
    run = runs(*on(topics, "callbacks.checkpoints=null", "callbacks.early_stopping=null"))
    assert list(run.path.rglob("*.ckpt")) == []
    last = [line for line in record(run) if "val/accuracy" in line][-1]
    given = figures(run)
    assert {name: value for name, value in given.items() if name.startswith("val/")} == {
        name: value for name, value in last.items() if name.startswith("val/")
    }
    assert len(predictions(run)["row"]) == 30


def test_without_a_test_split(runs: Runs, topics: Path) -> None:
    line = runs.mistake(*on(topics, "data.test=0"))
    assert "test=false" in line
    assert runs.made() == []
    run = runs(*on(topics, "data.test=0", "test=false"))
    assert run.info()["status"] == "finished"
    assert not run.predictions.exists()
    assert not [name for name in figures(run) if name.startswith("test/")]
    assert figures(run)["val/accuracy"] > 0


def test_not_testing_leaves_the_test_split_alone(runs: Runs, topics: Path) -> None:
    run = runs(*on(topics, "test=false"))
    assert not run.predictions.exists()
    assert not [name for name in figures(run) if name.startswith("test/")]


BATCHES = {
    "a budget in tokens": ["data.batch_tokens=120"],
    "documents of like length together": ["data.batching=bucketed", "head=lstm", "head.hidden=4"],
    "both": ["data.batching=bucketed", "data.batch_tokens=120"],
}


@pytest.mark.parametrize("wanted", BATCHES.values(), ids=BATCHES)
def test_ways_to_batch(wanted: list[str], runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    step = TextClassifier.training_step

    def watched(self: TextClassifier, batch: Any, batch_idx: int) -> Any:
        seen.append((self.current_epoch, batch))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TextClassifier, "training_step", watched)
    run = runs(*on(topics, *wanted))
    rows = rows_of(run)
    for epoch in (0, 1):
        batches = [batch for when, batch in seen if when == epoch]
        assert sorted(row for batch in batches for row in batch.rows.tolist()) == sorted(rows["train"])
        for batch in batches:
            assert len(batch) <= 16 or "data.batch_tokens=120" in wanted
            assert len(batch.ids) <= 120 or "data.batch_tokens=120" not in wanted
    assert figures(run)["steps"] == len(seen)
    assert set(predictions(run)["row"]) == rows["test"]


@pytest.mark.parametrize(
    "wanted",
    [["tokenizer=characters"], ["tokenizer=subwords", "tokenizer.vocabulary_size=300"]],
    ids=["characters", "subwords"],
)
def test_other_tokenizers(wanted: list[str], runs: Runs, topics: Path) -> None:
    run = runs(*on(topics, *wanted))
    data = data_of(run)
    assert len(predictions(run)["row"]) == 30
    tokenizer = load_tokenizer(run.tokenizer)
    text = data.corpus.splits["train"].text(int(data.splits["test"].rows[3]))
    ids = tokenizer.encode([text])[0]
    assert ids.tolist() == data.sets["test"][3].ids.tolist()
    if wanted == ["tokenizer=characters"]:
        assert [tokenizer.tokens[number] for number in ids] == list(text)
    assert weights(run)["embedding.table.weight"].shape == (len(tokenizer), 8)


def test_documents_without_words_count(runs: Runs) -> None:
    train = write_csv(runs.folder / "train.csv", documents(60))
    texts = ["", "   ", "...!?", "zzz unseen", "<br />", *(text for text, _ in documents(7, seed=1))]
    test = write_csv(runs.folder / "test.csv", [(text, "boats") for text in texts])
    drop = ["tokenizer.split_off=''", "tokenizer.drop='.!?'", "tokenizer.unknown=drop"]
    run = runs(
        *on(train, f"data.path={{train: '{train}', test: '{test}'}}", *drop, "head=bigru", "head.hidden=3")
    )
    said = predictions(run)
    assert said["row"] == list(range(12))
    assert data_of(run).sets["test"].lengths[:5].tolist() == [0] * 5
    # all of them get what the classifier says of nothing
    nothing = said["probability"][0]
    assert np.isfinite(nothing).all()
    for other in said["probability"][1:5]:
        np.testing.assert_allclose(other, nothing, rtol=1e-6)
    assert figures(run)["test/accuracy"] == pytest.approx(said["predicted"].count(1) / 12)


def test_null_texts_count(runs: Runs) -> None:
    lines = [{"text": text, "label": topic} for text, topic in documents(60)]
    for number in range(0, 60, 5):
        lines[number]["text"] = None  # type: ignore[assignment]
    path = runs.folder / "nulls.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = runs(*on(path, "data=json"))
    said, empty = predictions(run), data_of(run).sets["test"].lengths == 0
    assert len(said["row"]) == 12
    assert [row % 5 == 0 for row in said["row"]] == empty.tolist()


# Bad input


def is_left(runs: Runs) -> list[str]:
    """What a run that could not be made has left, caches apart."""
    return [str(path.relative_to(runs.folder)) for path in (runs.folder / "runs").rglob("*")]


BAD_FILES = {
    "ragged": ("text,label\na,b\nc,d,e\n", ["line 3", "2"]),
    "quotes that never close": ('text,label\n"fine,good\nbad,worse\n', ["line 2", "quote"]),
    "one class": ("text,label\n" + "fine,good\n" * 40, ["data.label", "one class", "good"]),
    "no rows": ("text,label\n", ["no row"]),
    "nothing": ("", ["empty"]),
    "no label column": (
        "text,tag,mark\n" + "fine,good,1\nbad,worse,2\n" * 20,
        ["data.label", "'tag', 'mark'"],
    ),
    "labels left out": ("text,label\n" + "fine,good\nbad,\n" * 20, ["label", "empty"]),
    "too few documents": ("text,label\nfine,good\nbad,worse\n", []),
}


@pytest.mark.parametrize(("content", "named"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_read(content: str, named: list[str], runs: Runs) -> None:
    path = runs.folder / "bad.csv"
    path.write_text(content)
    line = runs.mistake(*on(path))
    assert all(word in line for word in named), line
    assert is_left(runs) == []


def test_a_class_that_only_the_test_split_has(runs: Runs) -> None:
    train = write_csv(runs.folder / "train.csv", documents(60))
    test = write_csv(runs.folder / "test.csv", [*documents(6), ("cut short", "boots")])
    line = runs.mistake(*on(train, f"data.path={{train: '{train}', test: '{test}'}}"))
    assert "boots" in line
    assert "test" in line
    assert is_left(runs) == []


MISTAKES = {
    "a wrong number of class weights": (["classifier.class_weights=[1,2]"], ["class_weights", "3 classes"]),
    "a class that is not there": (["head._target_=torch.nn.Lineer"], ["torch.nn.Lineer"]),
    "an argument of elsewhere": (["+trainer.max_epoch=1"], ["trainer.max_epoch"]),
    "a callback of elsewhere": (["+callbacks.mine._target_=nowhere.Mine"], ["nowhere.Mine"]),
    "a value that the trainer refuses": (["+trainer.limit_train_batches=-5"], ["limit_train_batches"]),
    "a strategy that is not there": (["trainer.strategy=dpp"], ["dpp"]),
    "a plateau of nothing": (["scheduler=plateau", "data.validation=0"], ["val/loss", "data.validation"]),
    "no end for a schedule": (
        ["scheduler=cosine", "trainer.max_epochs=-1"],
        ["scheduler.T_max", "max_epochs"],
    ),
}


@pytest.mark.parametrize(("wanted", "named"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_found_by_the_recipe(wanted: list[str], named: list[str], runs: Runs, topics: Path) -> None:
    line = runs.mistake(*on(topics, *wanted))
    assert all(word in line for word in named), line
    assert is_left(runs) == []


def test_a_figure_that_is_not_there(runs: Runs, topics: Path) -> None:
    # which figures there are is known after the first validation
    line = runs.mistake(*on(topics, "callbacks.checkpoints.monitor=val/acuracy"))
    assert "'val/acuracy'" in line
    assert "Did you mean 'val/accuracy'?" in line
    (run,) = runs.made()
    assert (run.info()["status"], run.info()["phase"]) == ("failed", "fit")


def test_nan_keeps_the_last_good_checkpoint(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TextClassifier.training_step

    def poisoned(self: TextClassifier, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        return loss * math.nan if (self.current_epoch, batch_idx) == (1, 3) else loss

    monkeypatch.setattr(TextClassifier, "training_step", poisoned)
    line = runs.mistake(*on(topics, "data.batch_size=3"))
    (run,) = runs.made()
    assert "became NaN in epoch 2, batch 4 (rows " in line
    assert str(run.last_checkpoint) in line
    info = run.info()
    assert (info["status"], info["phase"]) == ("failed", "fit")
    assert info["error"] in line
    last = torch.load(run.last_checkpoint, weights_only=True)
    assert last["epoch"] == 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    # the resume that the message proposes goes on
    monkeypatch.setattr(TextClassifier, "training_step", step)
    assert f"resume={run.path} trainer.gradient_clip_val=1" in line
    runs.resume(run, "trainer.gradient_clip_val=1")
    assert run.info()["status"] == "finished"
    assert figures(run)["epochs"] == 2


def test_a_learning_rate_far_too_large(runs: Runs, topics: Path) -> None:
    line = runs.mistake(*on(topics, "optimizer=sgd", "optimizer.lr=1e30"))
    assert "the training loss became" in line
    assert "No epoch had ended before" in line
    (run,) = runs.made()
    assert run.info()["status"] == "failed"
    assert not run.metrics_file.exists()
    assert list(run.checkpoints.glob("*")) == []


def test_no_checkpoint_of_broken_weights(runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # after the last step of an epoch, so that no loss of that epoch shows it
    step = TextClassifier.optimizer_step

    def too_far(self: TextClassifier, epoch: int, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        step(self, epoch, batch_idx, *args, **kwargs)
        if (epoch, batch_idx) == (1, 6):
            self.linear.weight.data[2, 3] = math.inf

    monkeypatch.setattr(TextClassifier, "optimizer_step", too_far)
    line = runs.mistake(*on(topics))
    (run,) = runs.made()
    assert "the weights became NaN or infinite in epoch 2" in line
    assert f"resume={run.path}" in line
    assert run.info()["status"] == "failed"
    for which in ("best", "last"):
        assert all(value.isfinite().all() for value in weights(run, which).values())
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 0


def test_a_folder_that_cannot_be_written(runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    (runs.folder / "runs" / "scratch").mkdir(parents=True)
    monkeypatch.setattr("textbed.runs.folder.os.mkdir", refuse)
    line = runs.mistake(*on(topics))
    assert str(runs.folder / "runs" / "scratch") in line
    assert "paths.runs" in line


def test_a_file_where_the_runs_should_be(runs: Runs, topics: Path) -> None:
    (runs.folder / "runs").write_text("a file")
    line = runs.mistake(*on(topics))
    assert "paths.runs" in line
    assert (runs.folder / "runs").read_text() == "a file"


def test_a_disk_that_fills_up(runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = torch.save, []

    def fill(content: Any, file: Any) -> None:
        saved.append(file)
        if len(saved) == 2:
            file.write(b"PK half of a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    reference = runs(*on(topics, "name=reference", "classifier.dropout=0.5"))
    monkeypatch.setattr(torch, "save", fill)
    line = runs.mistake(*on(topics, "name=full", "classifier.dropout=0.5"))
    monkeypatch.setattr(torch, "save", save)
    assert "no space left" in line
    assert ".ckpt" in line
    assert "resume" in line
    (run,) = (run for run in runs.made() if run.name == "full")
    assert run.info()["status"] == "failed"
    assert "no space left" in run.info()["error"]
    assert {path.name for path in run.checkpoints.iterdir()} <= {"best.ckpt", "last.ckpt"}  # no half of one
    runs.resume(run)
    assert_same_run(run, reference)


def test_loggers_are_closed_where_the_report_fails(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(training, "finish_loggers", lambda loggers, *args, **how: closed.append(how))

    def full(*args: Any) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(RunFolder, "write_predictions", full)
    assert runs.mistake(*on(topics)) == "no space left"
    assert closed == [{"failed": True}]


@pytest.mark.parametrize(
    ("owner", "name"),
    [("embedding_report", "make_report"), (None, "log_report"), ("pictures", "draw_confusion")],
)
def test_a_report_that_fails_fails_no_run(
    owner: str | None,
    name: str,
    runs: Runs,
    topics: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = []

    def full(*args: Any, **more: Any) -> None:
        (run,) = runs.made()
        before.append(run.read_metrics())
        raise MemoryError("Unable to allocate\n9 GiB")

    monkeypatch.setattr(getattr(training, owner) if owner else training, name, full)
    run = runs(*on(topics))
    assert run.info()["status"] == "finished"
    figures = run.read_metrics()
    assert "seconds/report" in figures
    assert "seconds/report" not in before[0]
    assert before[0]["test/accuracy"] == figures["test/accuracy"]
    assert "the report is not whole: MemoryError: Unable to allocate 9 GiB\n" in capfd.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(TextClassifier, "training_step", broken)
    with pytest.raises(ZeroDivisionError):
        runs(*on(topics))
    (run,) = runs.made()
    assert (run.info()["status"], run.info()["error"]) == ("failed", "ours")


def test_there_is_no_such_run(runs: Runs, topics: Path) -> None:
    run = runs(*on(topics, "trainer.max_epochs=1", "test=false"))
    with pytest.raises(UserError, match="does not exist"):
        training.resume(str(run.path) + "x", [])
    with pytest.raises(UserError, match=rf"is no run folder.*the latest is {run.path}"):
        training.resume(str(run.path.parent), [])
