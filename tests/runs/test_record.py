from __future__ import annotations

import csv
import errno
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from textbed.errors import UserError
from textbed.runs import record as module
from textbed.runs.folder import RunFolder
from textbed.runs.record import (
    RecordLogger,
    Wandb,
    by_epoch,
    finish_loggers,
    log_report,
    log_settings,
    make_loggers,
    read_metrics,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "logger"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "trial")
    run.start("seed: 0\n", [], seed=0)
    return run


def entries(name: str, **changes: Any) -> dict[str, Any]:
    """The config group logger=name, as the code sees it."""
    config = OmegaConf.merge(
        {"name": "trial", "logger": OmegaConf.load(CONFIGS / f"{name}.yaml")}, {"logger": changes}
    )
    group = OmegaConf.to_container(config, resolve=True)
    assert isinstance(group, dict)
    return group["logger"]


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


def test_record_is_always_there(run: RunFolder) -> None:
    assert [type(logger) for logger in make_loggers(entries("none"), run)] == [RecordLogger]
    assert [type(logger) for logger in make_loggers({"wandb": None}, run)] == [RecordLogger]
    assert [type(logger) for logger in make_loggers(None, run)] == [RecordLogger]


def test_a_wrong_setting_is_named(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"logger\.tensorboard: .*versio"):
        make_loggers({"tensorboard": {"_target_": "textbed.runs.record.Wandb", "versio": 1}}, run)
    with pytest.raises(UserError, match=r"logger\.wandb\.mode='onlin'.*Did you mean 'online'"):
        make_loggers(entries("wandb", wandb={"mode": "onlin"}), run)


def test_missing_package_is_one_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(module, "mlflow_logger", missing)
    with pytest.raises(
        UserError, match=r"^logger=mlflow: a package is missing; pip install -e \'\.\[mlflow\]\'$"
    ):
        make_loggers(entries("mlflow"), run)


def inspect(part: Path) -> dict[str, Any]:
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(part),
    ]
    return json.loads(subprocess.check_output(command, text=True))


def test_wandb_offline_and_resumed(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    loggers = make_loggers(entries("wandb", wandb={"tags": ["a"]}), run)
    for logger in loggers:
        logger.log_hyperparams({"head": {"kind": "mean"}})
        logger.log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=3)
        logger.log_metrics({"val/accuracy": 0.625, "epoch": 1}, step=7)
    lines = finish_loggers(loggers, {"test/accuracy": 0.75, "seconds/fit": 2})
    (part,) = (run.path / "wandb").glob("offline-run-*")
    assert lines == [f"wandb: logged offline; to upload: wandb sync {part}"]
    seen = inspect(part)
    assert (seen["run_id"], seen["project"], seen["state"]) == (run.id, "textbed", "finished")
    assert seen["config"]["head"]["kind"] == "mean"
    assert seen["tags"] == ["a"]
    for key, value in {
        "val/accuracy": 0.625,
        "test/accuracy": 0.75,
        "seconds/fit": 2,
        "trainer/global_step": 7,
    }.items():
        assert seen["summary"][key] == value
    assert "wandb" not in "".join(capfd.readouterr())

    # Resumed from the checkpoint of step 4: the same run id, in it the steps before from the record, and the
    # new ones.
    loggers = make_loggers(entries("wandb"), run, resume_step=4)
    for logger in loggers:
        logger.log_metrics({"val/accuracy": 0.875, "epoch": 1}, step=7)
    finish_loggers(loggers, failed=True)
    (part,) = (run.path / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(part)]
    records = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    history = json.dumps([record for record in records if record.get("type") == "history"])
    assert part.name.endswith(f"-{run.id}")
    assert "0.875" in history
    assert "0.5" in history
    assert "0.625" not in history
    assert [line["val/accuracy"] for line in read_metrics(run.path)] == [0.5, 0.875]


def test_wandb_without_a_key(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", str(run.path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    (_, logger) = make_loggers(entries("wandb"), run)
    assert isinstance(logger, Wandb)
    assert logger._wandb_init["mode"] == "offline"
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "there is no key" in error


def test_wandb_unreachable(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for key in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as taken:  # bound, not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        start = time.perf_counter()
        (_, logger) = make_loggers(entries("wandb", wandb={"mode": "online"}), run)
        assert time.perf_counter() - start < 3
    assert isinstance(logger, Wandb)
    assert logger._wandb_init["mode"] == "offline"
    assert "127.0.0.1 does not answer" in capfd.readouterr().err
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert module._cannot_reach_wandb() is None


def test_wandb_key_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert module._has_wandb_key("api.wandb.ai")
    assert not module._has_wandb_key("elsewhere.example")


def test_wandb_that_cannot_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    real = wandb.init

    def broken(**settings: Any) -> Any:
        if settings["mode"] == "offline":
            raise wandb.errors.CommError("no service\nmore")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", broken)
    loggers = make_loggers(entries("wandb"), run)
    for logger in loggers:
        logger.log_metrics({"a": 1.0}, step=0)
    assert finish_loggers(loggers, {"a": 1.0}) == []
    assert (
        "wandb: cannot start offline (no service); this run's wandb logger is disabled\n"
        in capfd.readouterr().err
    )
    assert read_metrics(run.path)[0]["a"] == 1.0


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard(run: RunFolder) -> None:
    loggers = make_loggers(entries("tensorboard"), run)
    for logger in loggers:
        logger.log_hyperparams({"seed": 0})
        for step in range(8):
            logger.log_metrics({"train/loss": 1.0 - step / 8, "epoch": step // 4}, step=step)
    finish_loggers(loggers, {"test/accuracy": 0.75})
    assert events(run.path / "tensorboard")["train/loss"] == [(step, 1.0 - step / 8) for step in range(8)]
    assert [value for _, value in events(run.path / "tensorboard")["test/accuracy"]] == [0.75]
    loggers = make_loggers(entries("tensorboard"), run, resume_step=4)
    for logger in loggers:
        for step in range(4, 6):
            logger.log_metrics({"train/loss": 2.0, "epoch": 1}, step=step)
    finish_loggers(loggers)
    expected = [(step, 1.0 - step / 8) for step in range(4)] + [(4, 2.0), (5, 2.0)]
    assert events(run.path / "tensorboard")["train/loss"] == expected


def test_a_logger_that_cannot_be_closed_fails_nothing(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    class Gone(CSVLogger):
        def finalize(self, status: str) -> None:
            raise ConnectionError("the server is gone\nfor good")

    loggers = [*make_loggers({}, run), Gone(run.path, "", "")]
    loggers[0].log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=3)
    for failed in (False, True):
        assert finish_loggers(loggers, failed=failed) == []
        assert "Gone: could not be closed (the server is gone); the run folder" in capfd.readouterr().err
    assert run.table_file.exists()


def test_pictures_and_tables_go_where_they_are_taken(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    class Takes(CSVLogger):
        def __init__(self) -> None:
            super().__init__(run.path, "", "")
            self.taken: list[Any] = []

        def log_image(self, key: str, images: list[Any]) -> None:
            self.taken.append((key, images))

        def log_table(self, key: str, columns: list[str], data: list[Any]) -> None:
            self.taken.append((key, columns, data))

    class Refuses(Takes):
        def log_image(self, key: str, images: list[Any]) -> None:
            raise ConnectionError("the server is gone\nfor good")

    run.pictures.mkdir()
    for name in ("b.png", "a.png", "notes.txt"):
        (run.pictures / name).touch()
    takes = Takes()
    loggers = [*make_loggers({}, run), Refuses(), CSVLogger(run.path, "", ""), takes]
    log_report(loggers, run.pictures, {"norms": (["word"], [["owl"]])})
    assert takes.taken == [
        ("pictures/a", [str(run.pictures / "a.png")]),
        ("pictures/b", [str(run.pictures / "b.png")]),
        ("embedding/norms", ["word"], [["owl"]]),
    ]
    line = "Refuses: did not take the report (the server is gone); the run folder has it\n"
    assert capfd.readouterr().err == line


def test_settings_of_a_resumed_run_go_to_wandb_alone(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(CSVLogger, "log_hyperparams", lambda self, settings: given.append(settings))
    log_settings([CSVLogger(run.path, "", "")], {"seed": 1}, new=True)
    log_settings([CSVLogger(run.path, "", "")], {"seed": 2}, new=False)
    assert given == [{"seed": 1}]
