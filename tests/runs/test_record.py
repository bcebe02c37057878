from __future__ import annotations

import csv
import errno
import json
import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from textbed.errors import UserError
from textbed.runs.folder import RunFolder
from textbed.runs.lines import by_epoch, read_metrics
from textbed.runs.record import RecordLogger


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "trial")
    run.start("seed: 0\n", [], seed=0)
    return run


def test_lines(run: RunFolder) -> None:
    logger = RecordLogger(run.path)
    before = time.time()
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    logger.log_metrics(
        {"val/loss": torch.tensor(0.25), "val/f1": float("nan"), "x": float("inf"), "epoch": 0}, step=9
    )
    logger.log_metrics({"epoch": 1}, step=10)  # nothing but the place: no line
    first, second = run.record_file.read_text().splitlines()
    assert list(json.loads(first)) == ["step", "epoch", "time", "train/loss"]
    assert before - 1 < json.loads(first)["time"] < time.time() + 1
    content = json.loads(second)
    del content["time"]
    assert content == {"step": 9, "epoch": 0, "val/loss": 0.25, "val/f1": None, "x": None}
    figures = read_metrics(run.path)
    assert figures[1]["val/loss"] == 0.25
    assert math.isnan(figures[1]["val/f1"])
    assert by_epoch(figures)[0]["train/loss"] == 0.5


def test_table(run: RunFolder) -> None:
    logger = RecordLogger(run.path)
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    assert not run.table_file.exists()
    logger.log_metrics({"val/loss": float("nan"), "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 0.25, "epoch": 1}, step=2)  # a new epoch: the old one is in the table
    rows = list(csv.DictReader(run.table_file.open()))
    assert [row["step"] for row in rows] == ["0", "1"]
    logger.finalize("success")
    rows = list(csv.DictReader(run.table_file.open()))
    assert list(rows[0]) == ["step", "epoch", "time", "train/loss", "val/loss"]
    assert [row["train/loss"] for row in rows] == ["0.5", "", "0.25"]
    assert [row["val/loss"] for row in rows] == ["", "nan", ""]
    assert [row["epoch"] for row in rows] == ["0", "0", "1"]


def log_without_end(path: Path, count: Any) -> None:
    logger = RecordLogger(path)
    for step in range(10**9):
        logger.log_metrics({"train/loss": 0.5 * step, "epoch": step // 100}, step=step)
        count.value = step + 1


def test_sigkill_loses_nothing(run: RunFolder) -> None:
    context = multiprocessing.get_context("fork")  # a fresh process would spend seconds on its imports
    count = context.Value("i", 0)
    process = context.Process(target=log_without_end, args=(run.path, count), daemon=True)
    process.start()
    while count.value < 1000:
        time.sleep(0.001)
    process.kill()
    process.join()
    lines = read_metrics(run.path)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert all(line["train/loss"] == 0.5 * line["step"] for line in lines)
    assert len(lines) >= count.value >= 1000


def test_half_a_last_line_and_resume(run: RunFolder) -> None:
    logger = RecordLogger(run.path)
    for step in range(10):
        logger.log_metrics({"train/loss": float(step), "epoch": step // 4}, step=step)
    with run.record_file.open("ab") as file:
        file.write(b'{"step": 10, "epoch": 2, "train/lo')
    assert [line["step"] for line in read_metrics(run.path)] == list(range(10))
    resumed = RecordLogger(run.path, resume_step=8)  # the checkpoint has seen steps 0 to 7
    resumed.log_metrics({"train/loss": 80.0, "epoch": 2}, step=8)
    resumed.finalize("success")
    lines = read_metrics(run.path)
    assert [line["step"] for line in lines] == list(range(9))
    assert lines[-1]["train/loss"] == 80.0
    assert len(list(csv.DictReader(run.table_file.open()))) == 9


def test_damage_in_the_middle_is_named(run: RunFolder) -> None:
    run.record_file.write_text('{"step": 0, "a": 1}\nrubbish\n{"step": 1, "a": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(run.path)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(run.path / "other.jsonl")


def test_full_disk(run: RunFolder) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def fileno(self) -> int:
            return self.file.fileno()

        def write(self, data: bytes) -> int:
            self.file.write(data[:5])  # as a disk does: a part, then the error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = RecordLogger(run.path)
    logger.log_metrics({"a": 1.0}, step=0)
    good = logger._file
    logger._file = Full(good)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"no space left while writing .*metrics\.jsonl"):
        logger.log_metrics({"a": 2.0}, step=1)
    logger._file = good
    logger.log_metrics({"a": 3.0}, step=2)
    assert [line["a"] for line in read_metrics(run.path)] == [1.0, 3.0]
