"""Two processes of one run: one folder, the curve of one, every document once, and the death of either."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from running import (
    Runs,
    assert_same_run,
    documents,
    figures,
    in_two_processes,
    on,
    predictions,
    record,
    write_csv,
)

from textbed import ranks
from textbed.data import encoding
from textbed.errors import UserError
from textbed.ranks import joined
from textbed.runs import registry
from textbed.runs.folder import LINK
from textbed.training import resume, train

SIZES = {"train": 61, "validation": 31, "test": 45}  # none can be halved
SHARED = ["trainer=ddp_sim", "data.batch_size=8"]
ALONE = ["data.batch_size=16"]
TWO: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "num_nodes": 1}


@pytest.fixture
def uneven(tmp_path: Path) -> list[str]:
    files = [
        f"{name}: '{write_csv(tmp_path / f'{name}.csv', documents(count, seed=count))}'"
        for name, count in SIZES.items()
    ]
    given = on(
        tmp_path, f"data.path={{{', '.join(files)}}}", "classifier.dropout=0", "data.eval_batch_size=7"
    )
    return [*given, "report.embedding=false", "trainer.log_every_n_steps=1"]


class Kill(Callback):
    """Kills the process of a rank in the second epoch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and (trainer.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def error_of(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.slow
def test_two_processes_are_one_run(
    runs: Runs, uneven: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Cut short by a death under ``srun`` too, and gone on with under ``torchrun``."""
    monkeypatch.setattr(ranks, "GRACE", 60.0)  # a busy machine is not a hanging process
    one = runs(*uneven, *ALONE, "name=alone", f"paths.cache='{runs.folder}/other'")
    filled: list[Path] = []
    publish = encoding._publish
    monkeypatch.setattr(encoding, "_publish", lambda *args: (filled.append(args[1]), publish(*args)))

    def begin(*overrides: str) -> tuple[Path | None, int]:
        return train(runs.config(*uneven, *SHARED, *overrides)), len(filled)

    (path, encoded), second = in_two_processes(lambda: begin("name=shared"))
    assert encoded == 3  # a column for each split
    assert second == (None, 0)
    (two,) = (run for run in runs.made() if run.name == "shared")
    assert path == two.path
    mine, theirs = record(one), record(two)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for ours, other in zip(mine, theirs, strict=True):
        assert ours == pytest.approx(other, rel=1e-5)
    assert (
        len([line for line in theirs if "train/loss" in line]) == 2 * 4
    )  # 61 documents: three steps of 16, one of 13
    for split in ("validation", "test"):
        said, alone = predictions(two, split), predictions(one, split)
        assert said["row"] == list(range(SIZES[split]))
        assert said["predicted"] == alone["predicted"]
        np.testing.assert_allclose(said["probability"], alone["probability"], atol=1e-6)
    assert figures(two) == pytest.approx(figures(one), rel=1e-5)
    kill = "+callbacks.kill={_target_: test_ranks.Kill, rank: 1}"
    said, dead = in_two_processes(lambda: error_of(lambda: begin("name=killed", kill)), "srun")
    (killed,) = (run for run in runs.made() if run.name == "killed")
    assert dead is None
    assert said.startswith("RankLost: process 1 of this run (pid ")
    assert said.endswith(f"was killed, or crashed; go on with: python train.py resume={killed.path}")
    assert registry.read(killed.path).status == "failed"
    assert killed.checkpoint_to_resume() == killed.last_checkpoint
    in_two_processes(lambda: resume(str(killed.path), ["callbacks.kill=null"]))
    assert_same_run(two, killed)


@pytest.mark.slow
def test_the_death_of_the_first_process(runs: Runs, uneven: list[str], capfd: Any) -> None:
    kill = "+callbacks.kill={_target_: test_ranks.Kill, rank: 0}"
    assert in_two_processes(lambda: runs(*uneven, *SHARED, kill), "srun") == [None, None]
    (run,) = runs.made()
    assert registry.read(run.path).status == "killed"
    line = (
        f"error: process 0 of this run was killed, or crashed; go on with: python train.py resume={run.path}"
    )
    assert [one for one in capfd.readouterr().err.splitlines() if "error" in one.lower()] == [line]
    assert run.checkpoint_to_resume() == run.last_checkpoint


def test_words_and_turns() -> None:
    def work() -> tuple[str, list[str]]:
        done = []
        with joined(TWO) as those:
            if those.first:
                time.sleep(0.2)
                those.tell(folder="here")
            with those.in_turn():
                done.append(f"{those.rank} began {time.monotonic()}")
                time.sleep(0.2)
                done.append(f"{those.rank} ended {time.monotonic()}")
            return those.hear("folder"), done

    (here, first), (heard, second) = in_two_processes(work)
    assert here == heard == "here"
    order = sorted([*first, *second], key=lambda line: float(line.split()[2]))
    assert [line.rpartition(" ")[0] for line in order] == ["0 began", "0 ended", "1 began", "1 ended"]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_rank_that_fails(hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Its error is that of the run, whether rank 0 hangs waiting for it or hears from the backend."""
    monkeypatch.setattr(ranks, "GRACE", 0.2 if hangs else 60.0)

    def work() -> None:
        with joined(TWO) as those, those.explained():
            those.give_up = (tmp_path / "given up").write_text
            if not those.first:
                raise ValueError("no such thing")
            with those._changed:
                those._changed.wait_for(lambda: those.lost is not None)
            if hangs:
                threading.Event().wait()
            raise RuntimeError("connection closed by peer")

    said, none = in_two_processes(lambda: error_of(work))
    assert none is None
    line = (tmp_path / "given up").read_text() if hangs else said
    assert "process 1 of this run (pid " in line
    assert line.endswith("failed: ValueError: no such thing")
    assert capfd.readouterr().err.count("ValueError: no such thing\n") == 1  # with its traceback


def test_a_mistake_is_said_once(runs: Runs, uneven: list[str], capfd: Any) -> None:
    wrong = [*uneven, *SHARED, "data.label=nothing"]
    said, none = in_two_processes(lambda: error_of(lambda: runs(*wrong)))
    assert said.startswith("UserError: data.label: no column 'nothing'")
    assert none is None
    assert not runs.made()
    assert "Error" not in capfd.readouterr().err


def test_a_mistake_is_said_once_to_those_who_come_late(capfd: Any) -> None:
    def work() -> None:
        if os.environ["RANK"] == "1":
            time.sleep(0.5)
        with joined(TWO) as those, those.explained():
            if those.first:
                raise UserError("no such column")
            those.hear("folder")

    assert in_two_processes(lambda: error_of(work)) == ["UserError: no such column", None]
    assert capfd.readouterr().err == ""


LAUNCHERS: dict[str, dict[str, str]] = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
    "srun": {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_more_processes_than_devices(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=r"trainer\.devices=1.*2"), joined(TWO | {"devices": 1}):
        pass
    # a trial of a sweep is a run of its own, whatever its worker was started by
    monkeypatch.setenv(LINK, "somewhere")
    with joined(TWO | {"devices": 1}) as those:
        assert those.first
        assert not LAUNCHERS[launcher].keys() & os.environ.keys() - {"SLURM_NTASKS_PER_NODE", "SLURM_LOCALID"}
    assert LAUNCHERS[launcher].items() <= os.environ.items()


def test_machines_that_do_not_know_of_each_other() -> None:
    with pytest.raises(UserError, match=r"trainer\.num_nodes=2.*MASTER_ADDR"), joined(TWO | {"num_nodes": 2}):
        pass


def test_two_machines_without_a_launcher() -> None:
    """The command is given on both, and Lightning is to start further processes on each."""

    def work() -> tuple[int, str, str]:
        for key in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
            os.environ.pop(key, None)
        os.environ["NODE_RANK"] = os.environ.pop("RANK")
        with joined(TWO | {"num_nodes": 2}) as those:
            if those.first:
                those.tell(folder="here")
            os.environ |= {"LOCAL_RANK": "1", "WORLD_SIZE": "4"}  # as Lightning does for those it starts
            with joined(TWO | {"num_nodes": 2}) as started:
                while those.first and len(those._others) < 3:
                    time.sleep(0.01)
                return those.rank, those.hear("folder"), f"{started.rank} {started.hear('folder')}"

    assert in_two_processes(work) == [(0, "here", "1 here"), (2, "here", "3 here")]
