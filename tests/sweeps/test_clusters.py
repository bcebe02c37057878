"""Workers by SLURM, submitit and Ray: each is run as far as one machine can, over trials of the stub."""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import ROOT
from sweeping import calls, choice, plan, rows

from textbed.sweeps.clusters import Worker, _minutes, joined
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.launch import begin

SCRIPT = str(ROOT / "scripts" / "sweep.py")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))


def made(tmp_path: Path, *, accelerator: str = "auto", **settings: Any) -> SweepFolder:
    """A sweep of six trials that nobody works on yet."""
    what = plan(tmp_path, choice("head", "a", "b"), choice("seed", 0, 1, 2), warm=False, **settings)
    sweep = SweepFolder.create(tmp_path / "a sweep", replace(what, accelerator=accelerator))
    begin(sweep)
    return sweep


def script(monkeypatch: pytest.MonkeyPatch, sweep: SweepFolder, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(sweep.path), *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert end.value.code == 0


def each_once(tmp_path: Path, sweep: SweepFolder) -> list[dict[str, Any]]:
    """The starts of the six trials, each of which has run once and to its end."""
    assert [row.status for row in rows(sweep)] == ["finished"] * 6
    began = calls(tmp_path)
    assert sorted(" ".join(one["given"][1:]) for one in began) == [
        f"head={head} seed={seed}" for head in "ab" for seed in range(3)
    ]
    return began


# -- SLURM ---------------------------------------------------------------------------------------------------


def slurm(monkeypatch: pytest.MonkeyPatch, capsys: Any, sweep: SweepFolder, *words: str) -> str:
    script(monkeypatch, sweep, *words)
    return str(capsys.readouterr().out)


def options(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return dict(found)


def test_an_array_script_asks_for_a_trials_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, devices_per_trial=2)
    text = slurm(
        monkeypatch, capsys, sweep, "--slurm", "8", "--partition", "long", "--time", "1-12", "--memory", "16"
    )
    assert options(text) == {
        "job-name": "a-sweep", "array": "0-7", "nodes": "1", "ntasks": "1", "gpus-per-node": "2",
        "mem": "16G", "time": "1-12", "partition": "long", "output": f"'{sweep.path}/slurm/%A_%a.log'",
        "open-mode": "append", "requeue": "", "signal": "B:TERM@120",
    }  # fmt: skip
    assert (sweep.path / "slurm").is_dir()  # where it is not, SLURM ends the job without a word
    more = slurm(monkeypatch, capsys, sweep, "--slurm", "1", "--gpus", "4", "--cpus", "3")
    assert {key: options(more)[key] for key in ("array", "gpus-per-node", "cpus-per-task")} == {
        "array": "0-0", "gpus-per-node": "4", "cpus-per-task": "3",
    }  # fmt: skip


def test_trials_on_the_cpu_ask_for_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gpu" not in slurm(monkeypatch, capsys, made(tmp_path, accelerator="cpu"), "--slurm", "2")


def test_the_body_of_an_array_script_works_on_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, devices=[5], at_once=1)  # those of another machine
    text = slurm(monkeypatch, capsys, sweep, "--slurm", "2")
    file = tmp_path / "job.sh"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    workers = [
        subprocess.Popen(
            ["bash", str(file)],
            cwd="/",
            env={
                **os.environ,
                "SLURM_ARRAY_TASK_ID": str(number),
                "SLURM_NTASKS": "1",
                "SLURM_PROCID": "0",
                "CUDA_VISIBLE_DEVICES": str(number),
            },
        )
        for number in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert {one["device"] for one in each_once(tmp_path, sweep)} <= {"0", "1"}


def test_slurms_signal_lets_a_worker_leave_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepFolder.create(
        tmp_path / "sweep",
        plan(tmp_path, choice("seed", 0), fixed=("epochs=600", "pause=0.1"), warm=False, at_once=1),
    )
    begin(sweep)
    text = slurm(monkeypatch, capsys, sweep, "--slurm", "1")
    worker = subprocess.Popen(["bash", "-c", text])  # the shell gives way: the signal reaches the worker
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "calls.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (folder,) = _until(lambda: list((tmp_path / "runs" / "stub").glob("*/metrics.jsonl")))
    worker.terminate()
    assert worker.wait(60) == 130
    assert json.loads((folder.parent / "run.json").read_text())["status"] == "interrupted"
    assert [row.status for row in rows(sweep)] == ["waiting"]


def _until(what: Any) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_trials_in_a_job_are_no_ranks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made(tmp_path, devices=["3"])
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert joined(sweep).plan.settings["devices"] == ["3"]
        assert signal.getsignal(signal.SIGUSR2) == before
        for key in ("SLURM_NTASKS", "SLURM_PROCID", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.setenv(key, "1")
        given = joined(sweep, threads=3).plan
        assert (given.settings["devices"], given.threads) == (None, 3)
        assert not [key for key in os.environ if key.startswith("SLURM_")]
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("8:00:00", 480), ("1:30:01", 91)]
    + [("2-0", 2880), ("1-2:03", 1563), ("1-0:0:59", 1441)]
    + [(text, 0) for text in ("", "soon", "1h", "1:2:3:4", "-1", "0")],
)  # fmt: skip
def test_times_are_slurms(text: str, minutes: int) -> None:
    assert _minutes(text) == minutes


# -- submitit ------------------------------------------------------------------------------------------------


def test_submitit_runs_workers_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    sweep = made(tmp_path, devices=[4, 6, 8], devices_per_trial=1)
    script(monkeypatch, sweep, "--submitit", "2", "--cluster", "local")
    began = each_once(tmp_path, sweep)
    assert {one["device"] for one in began} <= {"4", "6"}  # not all on the first
    assert "6 trials: 6 finished" in capfd.readouterr().out
    assert len(list((sweep.path / "submitit").glob("*_result.pkl"))) == 2


def test_submitit_asks_slurm_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs, as far as they take an order."""
    pytest.importorskip("submitit")
    sweep = made(tmp_path, devices_per_trial=2)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text("#!/bin/sh\n")
    (programs / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/job.sh\necho Submitted batch job 12\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    words = ["--partition", "long", "--time", "8:00:00", "--memory", "16", "--cpus", "3"]
    script(monkeypatch, sweep, "--submitit", "4", *words)
    asked = options((tmp_path / "job.sh").read_text())
    wanted = {
        "job-name": "a-sweep", "array": "0-3%4", "gpus-per-node": "2", "cpus-per-task": "3", "mem": "16GB",
        "time": "480", "partition": "long",
    }  # fmt: skip
    assert {key: asked[key] for key in wanted} == wanted
    (job,) = (sweep.path / "submitit").glob("12_0_submitted.pkl")
    worker = pickle.loads(job.read_bytes()).function  # our own
    assert worker.command == [sys.executable, SCRIPT, str(sweep.path), "--join"]


def test_a_job_that_has_to_make_room_is_queued_again(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    worker = Worker(["sleep", "60"], str(tmp_path))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker()))
    thread.start()
    _until(lambda: worker._process)
    again = pickle.loads(pickle.dumps(worker.checkpoint())).function
    thread.join(10)
    assert codes == [-signal.SIGTERM]
    assert (again.command, again.cwd) == (["sleep", "60"], str(tmp_path))


# -- Ray -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two nodes of two GPUs each, by name: nothing computes on them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path_factory.mktemp("r")))
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=2, num_gpus=2, object_store_memory=80 * 2**20, include_dashboard=False)
    yield nodes.address
    nodes.shutdown()


@pytest.mark.slow
def test_rays_tasks_have_the_devices_that_it_assigns(tmp_path: Path, cluster: str) -> None:
    sweep = made(tmp_path, devices=[7, 8], devices_per_trial=2)
    command = [sys.executable, SCRIPT, str(sweep.path), "--ray", cluster]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 workers, each with {'num_gpus': 2, 'num_cpus': 2}" in done.stderr
    assert {one["device"] for one in each_once(tmp_path, sweep)} == {"0,1"}  # those of each node
    assert "6 trials: 6 finished" in done.stdout


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--slurm", "0"], "--slurm 0: expected a whole number, at least 1."),
        (["--slurm", "many"], "--slurm many: expected a whole number, at least 1."),
        (["--slurm", "2", "--gpus", "1"], "--gpus 1: a trial has sweep.devices_per_trial=2."),
        (["--slurm", "2", "--memory", "16G"], "--memory 16G: expected a whole number, at least 1."),
        (["--slurm", "2", "--time", "1h"],
         "--time 1h: expected minutes, hours:minutes:seconds or days-hours, as in 90, 8:00:00 or 2-0."),
        (["--slurm", "2", "--partition", "a b"], "--partition a b: expected the name of a SLURM partition."),
        (["--slurm", "2", "--workers", "3"], "--workers goes with --ray."),
        (["--ray", "--time", "90"], "--time and --partition go with --slurm or --submitit: Ray has none."),
        (["--gpus", "2"], "--gpus goes with --slurm N, --submitit N or --ray."),
        (["--submitit", "1", "--cluster", "lsf"], "--cluster lsf: expected slurm, local or debug."),
        (["--submitit", "3", "--cluster", "local"],
         "--submitit 3: with 2 of the 4 GPUs here for each, there are 2 workers."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(mistake: Callable[..., None], words: list[str], line: str) -> None:
    if words[0] == "--submitit":
        pytest.importorskip("submitit")
    mistake(words, line)


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_missing_package_is_one_line(
    mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    words = [f"--{name}", *(["2"] if name == "submitit" else [])]
    mistake(words, f"--{name} needs {name}: pip install -e '.[{name}]'")


@pytest.fixture
def mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Runs the script with ``words`` on a sweep: it says that line alone, and nothing has begun."""

    def refused(words: list[str], line: str) -> None:
        sweep = made(tmp_path, devices=[0, 1, 2, 3], devices_per_trial=2)
        monkeypatch.setattr(sys, "argv", ["sweep.py", str(sweep.path), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(SCRIPT, run_name="__main__")
        assert end.value.code == 1
        assert capsys.readouterr().err == f"error: {line}\n"
        assert not (tmp_path / "runs" / "calls.txt").exists()

    return refused
