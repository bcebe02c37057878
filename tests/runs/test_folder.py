from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from textbed.errors import UserError
from textbed.runs import folder as module
from textbed.runs.folder import (
    RunFolder,
    git_state,
    peak_memory,
    plain,
    replacing,
    write_json,
    write_text,
    writing,
)


def started(tmp_path: Path, name: str = "trial") -> RunFolder:
    run = RunFolder.create(tmp_path / "runs", name)
    run.start(
        "seed: 0\n", ["seed=0", 'name="a b"'], seed=0, threads=2, device="cpu", command=["python", "train.py"]
    )
    return run


def test_import_is_light() -> None:
    code = (
        "import sys, textbed.runs.folder;"
        "print([m for m in ('torch', 'lightning', 'numpy', 'pyarrow', 'wandb', 'hydra') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_fifty_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All in one second, and with four possible suffixes only for the first tries: names must collide, and be
    # retried.
    monkeypatch.setattr(module.time, "strftime", lambda _: "20300101-000000")
    draws = iter(["aaaaaa", "bbbbbb", "cccccc", "dddddd"] * 25 + [f"{i:06x}" for i in range(1000)])
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: next(draws))
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: RunFolder.create(tmp_path, "trial"), range(50)))
    assert len({run.path for run in runs}) == 50
    assert sorted(p.name for p in (tmp_path / "trial").iterdir()) == sorted(run.id for run in runs)
    assert all(run.info()["status"] == "running" for run in runs)
    assert (tmp_path / "trial" / "20300101-000000-aaaaaa").is_dir()


def test_name_of_the_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "imdb/gru")
    assert run.path.parent == tmp_path / "imdb" / "gru"
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run.id)
    for bad in ("", "/tmp/x", "../x", " x"):
        with pytest.raises(UserError, match="name="):
            RunFolder.create(tmp_path, bad)


def test_what_is_written(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.update(phase="fit", seconds={"data": 1.5})
    run.update(seconds={"fit": np.float32(2.5)})
    info = json.loads(run.info_file.read_text())
    assert info["status"] == "running"
    assert info["phase"] == "fit"
    assert info["seconds"] == {"data": 1.5, "fit": 2.5}
    assert info["command"] == "python train.py"
    assert info["seed"] == 0
    assert info["threads"] == 2
    assert info["pid"] == os.getpid()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", info["started"])
    assert set(info["versions"]) == set(module.PACKAGES)
    assert info["versions"]["torch"].startswith("2.")
    import yaml

    assert yaml.safe_load(run.overrides_file.read_text()) == ["seed=0", 'name="a b"']
    assert run.config_file.read_text() == "seed: 0\n"
    run.finish()
    info = run.info()
    assert (info["status"], info["phase"], info["error"]) == ("finished", "done", None)
    assert info["ended"] >= info["started"]


def test_failure_is_one_line(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.update(phase="fit")
    run.finish("failed", ValueError("first line\nsecond line"))
    assert (run.info()["status"], run.info()["phase"], run.info()["error"]) == ("failed", "fit", "first line")


def test_git(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, "")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    git("init", "-q", "-b", "trunk")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    clean, diff = git_state(tmp_path)
    assert clean == {"revision": git("rev-parse", "HEAD"), "branch": "trunk", "dirty": False, "changed": []}
    assert diff == ""
    (tmp_path / "code.py").write_text("a = 2\n")
    dirty, diff = git_state(tmp_path)
    assert dirty is not None
    assert dirty["dirty"]
    assert dirty["changed"] == [" M code.py"]
    assert "-a = 1\n+a = 2\n" in diff
    new = {"heads/mine.py": "b = 1\nc = 2", "configs/mine.yaml": "a: 1\n"}
    for name, text in {**new, "reviews.csv": "text,label\n", "ignored.py": "d = 1\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    _, diff = git_state(tmp_path / "heads")  # wherever in the checkout
    again = tmp_path / "again"
    git("worktree", "add", "-q", str(again))
    subprocess.run(["git", "-C", str(again), "apply", "-"], input=diff, text=True, check=True)
    there = {
        str(path.relative_to(again)): path.read_text() for path in again.rglob("*.[py]*") if path.is_file()
    }
    assert there == {"code.py": "a = 2\n", **new}


def test_git_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == (None, "")


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert RunFolder.open(run.path).info()["seed"] == 0
    with pytest.raises(UserError, match=rf"does not exist\. Did you mean '{run.id}'\?"):
        RunFolder.open(run.path.with_name(run.id[:-1] + "x"))
    with pytest.raises(UserError, match=rf"run.json and config.yaml missing.*latest is .*{run.id}"):
        RunFolder.open(tmp_path / "runs")
    run.config_file.unlink()
    with pytest.raises(UserError, match=r"is no run folder: config.yaml missing"):
        RunFolder.open(run.path)
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(run.info_file)


@pytest.mark.parametrize(("code", "text"), [(errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")])
def test_place_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, text: str
) -> None:
    def refuse(path: object, mode: int = 0o777) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(module.os, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"cannot write .*trial.*{text}.*paths\.runs="):
        RunFolder.create(tmp_path, "trial")
    assert list(tmp_path.iterdir()) == []


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*a file stands where a folder is needed.*paths\.runs="
    ):
        RunFolder.create(tmp_path / "runs", "trial")


def test_disk_full_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})

    def fill_the_disk() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"no space left while writing .*metrics\.json.*nothing .* is lost"):
        fill_the_disk()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_other_errors_keep_their_kind(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), writing(tmp_path):
        tmp_path.open("w")


def test_a_folder_that_is_gone_or_cannot_be_made(tmp_path: Path) -> None:
    run = started(tmp_path)

    def write() -> None:
        with replacing(run.metrics_file) as temporary:
            shutil.rmtree(run.path)  # somebody tidies up
            temporary.write_text("{}")

    with pytest.raises(UserError, match=r"cannot write .*metrics\.json .*No such file.*with paths\.runs="):
        write()
    with pytest.raises(FileNotFoundError), writing(run.metrics_file):
        (tmp_path / "other" / "file").read_text()  # is ours
    with pytest.raises(UserError, match=r"cannot write .* \(No such file or directory\): .* \(--out\)"):
        write_text(Path("/proc/none/table.tex"), "", "--out")
    with pytest.raises(UserError, match=r"it is a folder; expected the name of a file"):
        write_text(tmp_path, "", "--out")


def test_full_disk_does_not_hide_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module.os, "replace", full)
    run.finish("failed", UserError("the disk is full"))
    with pytest.raises(UserError, match="no space left"):
        run.finish("finished")


def test_lock_and_resume(tmp_path: Path) -> None:
    run = started(tmp_path)
    other = RunFolder.open(run.path)
    with pytest.raises(UserError, match=rf"still going on \(process {os.getpid()}\)"):
        other.resume()
    run.finish("failed", UserError("stop"))
    (run.path / ".run.json.1.abcdef.tmp").write_text("half")
    other.resume(["trainer.max_epochs=3"])
    info = other.info()
    assert (info["status"], info["error"], info["ended"]) == ("running", None, None)
    assert [one["overrides"] for one in info["resumed"]] == [["trainer.max_epochs=3"]]
    assert not list(run.path.glob(".*.tmp"))
    other.finish()


def test_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from textbed.runs.folder import RunFolder;"
        f"r = RunFolder.create({str(tmp_path)!r}, 'trial'); r.start('a: 1', [], 0);"
        "print(r.path, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run = RunFolder.open(process.stdout.readline().strip())
    with pytest.raises(UserError, match="still going on"):
        run.resume()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run.resume()
    assert run.info()["pid"] == os.getpid()
    run.finish()


def test_atomic_under_sigkill(tmp_path: Path) -> None:
    # A process rewrites a file of 2 MB without end and is killed at random moments: what is there is always
    # whole.
    path = tmp_path / "metrics.json"
    code = (
        "from pathlib import Path; from textbed.runs.folder import write_json; i = 0\n"
        f"while True: i += 1; write_json(Path({str(path)!r}), dict(i=i, pad='x' * 2_000_000, end=i))"
    )
    for delay in (0.05, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.wait()
        content = json.loads(path.read_text())
        assert content["i"] == content["end"] >= 1


def test_plain_json() -> None:
    import torch

    value = {
        "a": np.int64(3),
        "b": np.float32(0.5),
        "c": float("nan"),
        "d": [float("inf"), torch.tensor(2)],
        "e": torch.tensor([1.0, float("nan")]),
        "f": True,
        "g": Path("x"),
        4: None,
    }
    expected = {"a": 3, "b": 0.5, "c": None, "d": [None, 2], "e": [1.0, None], "f": True, "g": "x", "4": None}
    assert plain(value) == expected


def test_metrics(tmp_path: Path) -> None:
    run = started(tmp_path)
    with pytest.raises(UserError, match=r"no metrics\.json: the run is running"):
        run.read_metrics()
    run.write_metrics(
        {"test/accuracy": np.float64(0.75), "parameters/embedding": 10, "val/loss": float("nan")}
    )
    assert run.read_metrics() == {"test/accuracy": 0.75, "parameters/embedding": 10, "val/loss": None}


def test_predictions(tmp_path: Path) -> None:
    run = started(tmp_path)
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    path = run.write_predictions("test", [7, 2], [0, 1], [0, 2], probabilities, ["neg", "mid", "pos"])
    table = pq.read_table(path)
    assert path == run.path / "predictions" / "test.parquet"
    assert table.column_names == ["row", "label", "predicted", "label_name", "predicted_name", "probability"]
    assert table["row"].to_pylist() == [7, 2]
    assert table["label"].to_pylist() == [0, 1]
    assert table["label_name"].to_pylist() == ["neg", "mid"]
    assert table["predicted_name"].to_pylist() == ["neg", "pos"]
    np.testing.assert_allclose(table["probability"].to_pylist(), probabilities, atol=1e-7)
    assert json.loads(table.schema.metadata[b"classes"]) == ["neg", "mid", "pos"]


def test_predictions_multilabel(tmp_path: Path) -> None:
    run = started(tmp_path)
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    path = run.write_predictions("test", [0, 1], labels, labels[::-1], np.full((2, 3), 0.5), ["a", "b", "c"])
    table = pq.read_table(path)
    assert table["label"].to_pylist() == [[0, 2], []]
    assert table["label_name"].to_pylist() == [["a", "c"], []]
    assert table["predicted_name"].to_pylist() == [[], ["a", "c"]]


def test_checkpoint_to_resume(tmp_path: Path) -> None:
    import torch

    run = started(tmp_path)
    assert run.checkpoint_to_resume() is None
    run.checkpoints.mkdir()
    torch.save({"w": torch.ones(1000)}, run.best_checkpoint)
    assert run.checkpoint_to_resume() == run.best_checkpoint
    whole = run.best_checkpoint.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        run.last_checkpoint.write_bytes(whole[:size])
        with pytest.raises(
            UserError, match=r"last\.ckpt is cut short or damaged .*best\.ckpt beside it is whole"
        ):
            run.checkpoint_to_resume()
    run.best_checkpoint.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"last\.ckpt is cut short.*no other is usable"):
        run.checkpoint_to_resume()
    run.last_checkpoint.write_bytes(whole)
    assert run.checkpoint_to_resume() == run.last_checkpoint


def test_fill(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "imdb" / "20300101-000000-abcdef")
    settings = {
        "dir": "{folder}/x",
        "list": ["{id}", 3],
        "step": "{step}",
        "filename": "{epoch}",
        "deep": {"n": "{name}"},
    }
    assert run.fill(settings, step=None) == {
        "dir": f"{run.path}/x",
        "list": ["20300101-000000-abcdef", 3],
        "step": None,
        "filename": "{epoch}",
        "deep": {"n": "imdb"},
    }
    assert run.fill("{step}", step=7) == 7


def test_log(tmp_path: Path) -> None:
    run = started(tmp_path)
    with run.logging():
        logging.getLogger("somewhere").warning("a warning")
        module.say("a line")
    logging.getLogger("somewhere").warning("later")
    text = run.log_file.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING somewhere: a warning$", text, re.M)
    assert text.count("a line") == 1
    assert "later" not in text


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path)
    monkeypatch.setattr(module, "is_rank_zero", lambda: False)
    run.write_metrics({"a": 1})
    run.update(phase="fit")
    assert not run.metrics_file.exists()
    assert run.info()["phase"] == "setup"
    assert len(list((tmp_path / "runs" / "trial").iterdir())) == 1


def test_peak_memory() -> None:
    before = peak_memory()["memory/peak_bytes"]
    block = np.ones(20_000_000)  # 160 MB
    after = peak_memory()["memory/peak_bytes"]
    assert 10_000_000 < before < 100_000_000_000
    assert after >= before
    assert after >= block.nbytes


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "a line\n")
    assert os.read(reader, 100) == b"a line\n"
    os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
