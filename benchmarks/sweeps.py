"""How busy a sweep keeps its devices, beside Hydra's joblib launcher and its Optuna sweeper; and whether any
trial is lost where trials and workers are killed.

    python benchmarks/sweeps.py [--jobs 24] [--workers 2] [--peers PYTHON] [--trials 200] [--only killed]

Jobs import what a run imports, and then keep a device for 0.5 to 4 s (sleeping, so that a busy machine
matters less; imports do suffer). "busy" is the share of the devices' time in which a job had one, from the
beginning of the first job to the end of the last; "while there was work" is the same up to the beginning of
the last. The first start-up counts for neither. PYTHON is an interpreter that has hydra-joblib-launcher and
hydra-optuna-sweeper as well as textbed's packages: the sweeper needs an Optuna before version 3, so it wants
an environment of its own. Then --trials trials of a few ms on four workers, a tenth of them killed (SIGKILL)
the first time they run, one worker killed on the way. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import processor
from sweep_job import seconds_of

from textbed.schema import SweepConfig, defaults
from textbed.sweeps.devices import Slot
from textbed.sweeps.folder import Plan, SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.queue import Ending
from textbed.sweeps.space import Dimension
from textbed.sweeps.trial import Trial, start_plainly
from textbed.sweeps.warm import WarmStarter
from textbed.sweeps.worker import Worker, stages

JOB = Path(__file__).parent / "sweep_job.py"
PEERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs={workers}", "number={numbers}"],
    "optuna sweeper": [
        "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs={workers}", "hydra.sweeper.n_jobs={workers}", "hydra.sweeper.n_trials={jobs}",
        "number=choice({numbers})",
    ],
}  # fmt: skip


class Quiet:
    def began(self, trial: Trial) -> None: ...
    def ended(self, trial: Trial, ending: Ending, again: bool) -> None: ...
    def said(self, line: str) -> None: ...
    def tick(self, worker: Worker) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", metavar="NAME,...", help="of warm, plain, joblib, optuna sweeper, killed")
    parser.add_argument("--worker", type=Path, metavar="SWEEP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        with WarmStarter({}, ["hydra"]) as start:
            Worker(SweepFolder.open(arguments.worker), slots(1), Quiet(), start).run()
        return
    result: dict[str, Any] = {"benchmark": "sweep", "jobs": arguments.jobs, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measured: dict[str, Callable[[Path], dict[str, Any]]] = {
            "warm": lambda place: ours(place, arguments.jobs, arguments.workers, warm=True),
            "plain": lambda place: ours(place, arguments.jobs, arguments.workers, warm=False),
            **{name: functools.partial(peer, words, arguments) for name, words in PEERS.items()},
            "killed": lambda place: killed(place, arguments.trials),
        }
        for name in arguments.only.split(",") if arguments.only else measured:
            result[name] = measured[name](folder / name)
            print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    result |= {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps(result))


def slots(count: int) -> list[Slot]:
    return [Slot(f"gpu {number}", 1, {"OMP_NUM_THREADS": "1"}) for number in range(count)]


def sweep(folder: Path, count: int, *fixed: str, **settings: Any) -> SweepFolder:
    folder.mkdir(parents=True)
    plan = Plan(
        name="benchmark",
        program=[sys.executable, str(JOB)],
        cwd=str(folder),
        fixed=[f"out={folder}/out", *fixed],
        space=(Dimension("number", tuple(map(str, range(count)))),),
        objectives=["val/accuracy"],
        seed=0,
        settings={**defaults(SweepConfig), **settings},
    )
    made = SweepFolder.create(folder / "sweep", plan)
    begin(made)
    return made


def ours(folder: Path, jobs: int, workers: int, warm: bool) -> dict[str, Any]:
    made, began = sweep(folder, jobs, "imports=true"), time.perf_counter()
    if warm:
        with WarmStarter({"OMP_NUM_THREADS": "1"}) as start:
            Worker(made, slots(workers), Quiet(), start).run()
    else:
        Worker(made, slots(workers), Quiet(), start_plainly).run()
    return busy(folder / "out", workers, time.perf_counter() - began)


def peer(words: list[str], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if arguments.peers is None:
        return {"missing": "--peers PYTHON"}
    folder.mkdir(parents=True)
    numbers = ",".join(map(str, range(arguments.jobs)))
    filled = [word.format(workers=arguments.workers, jobs=arguments.jobs, numbers=numbers) for word in words]
    command = [str(arguments.peers), str(JOB), "-m", f"out={folder}/out", "imports=true", *filled]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"missing": lines[-1] if lines else f"exit code {done.returncode}"}
    return busy(folder / "out", arguments.workers, time.perf_counter() - began)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def busy(out: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Shares of the devices' time, from what the jobs wrote."""
    begun = {line["number"]: line["time"] for line in lines(out) if line["what"] == "begin"}
    ended = {line["number"]: line["time"] for line in lines(out) if line["what"] == "end"}
    first, last_begin, last_end = min(begun.values()), max(begun.values()), max(ended.values())

    def share(until: float) -> float:
        taken = sum(min(ended[number], until) - begun[number] for number in begun)
        return round(taken / (workers * (until - first)), 3)

    return {
        "busy": share(last_end),
        "busy while there was work": share(last_begin),
        "seconds": round(seconds, 1),
        "least possible": round(sum(map(seconds_of, begun)) / workers, 1),
    }


def killed(folder: Path, trials: int) -> dict[str, Any]:
    dying = sorted(random.Random(0).sample(range(trials), trials // 10))
    made = sweep(folder, trials, f"dies={json.dumps(dying).replace(' ', '')}", "scale=0.005", retries=1)
    began = time.perf_counter()
    command = [sys.executable, __file__, "--worker", str(made.path)]
    workers = [subprocess.Popen(command) for _ in range(4)]
    out = folder / "out"
    while not out.exists() or len(lines(out)) < trials // 2:
        time.sleep(0.1)
    workers[0].kill()
    codes = [worker.wait() for worker in workers]
    seconds = time.perf_counter() - began
    ended = Counter(line["number"] for line in lines(out) if line["what"] == "end")
    begun = Counter(line["number"] for line in lines(out) if line["what"] == "begin")
    (queue,) = stages(made)
    rows = queue.rows()
    return {
        "trials": trials,
        "finished": sum(row.status == "finished" for row in rows),
        "killed once and tried again": sum(len(row.failures) == 1 for row in rows),
        "taken up from the worker that was killed": sum(row.start.get("lost", 0) for row in rows),
        "begun": sum(begun.values()),
        "lost": sum(ended[number] == 0 for number in range(trials)),
        "ended twice": sum(count > 1 for count in ended.values()),
        "workers' exit codes": codes,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
