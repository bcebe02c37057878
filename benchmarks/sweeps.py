"""How busy a sweep keeps its devices, beside Hydra's joblib launcher and its Optuna sweeper; and whether any
trial is lost where trials and workers are killed.

    python benchmarks/sweeps.py [--jobs 24] [--seconds 4 30] [--workers 2] [--peers PYTHON] [--trials 200]
                                [--only forked,killed]

Jobs import what a run imports, and then keep a device for 4 to 30 s (sleeping, so that a busy machine
matters less; imports do suffer). "busy" is the share of the devices' time in which a job had one, from the
beginning of the first job to the end of the last; "possible" is what it would be if every job began the
moment that the one before it ended: the last to end leaves the other device idle. "while there was work" is
the share up to the beginning of the last. The first start-up counts for none of them. "between" are the
seconds from the end of a job to the beginning of the next on its device, in the median and at the most.
PYTHON is an interpreter that has hydra-joblib-launcher and
hydra-optuna-sweeper as well as textbed's packages: the sweeper needs an Optuna before version 3, so it wants
an environment of its own. Then --trials trials of a few ms on four workers, a tenth of them killed (SIGKILL)
the first time they run, one worker killed on the way. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import json
import os
import platform
import random
import statistics
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
from textbed.sweeps.trial import Starter, Trial, start_plainly
from textbed.sweeps.warm import SpareStarter, WarmStarter
from textbed.sweeps.worker import Worker, stages

IMPORTING = {"OMP_NUM_THREADS": "1"}
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
    parser.add_argument("--seconds", type=float, nargs=2, default=[4.0, 30.0], metavar=("LEAST", "MOST"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument(
        "--only", metavar="NAME,...", help="of forked, spare, plain, joblib, optuna sweeper, killed"
    )
    parser.add_argument("--worker", type=Path, metavar="SWEEP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        with WarmStarter({}, ["hydra"]) as start:
            Worker(SweepFolder.open(arguments.worker), slots(1), Quiet(), start).run()
        return
    result: dict[str, Any] = {
        "benchmark": "sweep",
        "jobs": arguments.jobs,
        "job seconds": arguments.seconds,
        "workers": arguments.workers,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measured: dict[str, Callable[[Path], dict[str, Any]]] = {
            "forked": functools.partial(ours, arguments, WarmStarter(IMPORTING)),
            "spare": functools.partial(ours, arguments, SpareStarter(IMPORTING, most=arguments.workers)),
            "plain": functools.partial(ours, arguments, start_plainly),
            **{name: functools.partial(peer, arguments, words) for name, words in PEERS.items()},
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


def ours(arguments: argparse.Namespace, start: Starter, folder: Path) -> dict[str, Any]:
    seconds = f"seconds={arguments.seconds}".replace(" ", "")
    made, began = sweep(folder, arguments.jobs, "imports=true", seconds), time.perf_counter()
    with start if isinstance(start, WarmStarter | SpareStarter) else contextlib.nullcontext():
        Worker(made, slots(arguments.workers), Quiet(), start).run()
    return busy(folder / "out", arguments, time.perf_counter() - began)


def peer(arguments: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    if arguments.peers is None:
        return {"missing": "--peers PYTHON"}
    folder.mkdir(parents=True)
    numbers = ",".join(map(str, range(arguments.jobs)))
    filled = [word.format(workers=arguments.workers, jobs=arguments.jobs, numbers=numbers) for word in words]
    seconds = f"seconds={arguments.seconds}".replace(" ", "")
    command = [str(arguments.peers), str(JOB), "-m", f"out={folder}/out", "imports=true", seconds, *filled]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"missing": lines[-1] if lines else f"exit code {done.returncode}"}
    return busy(folder / "out", arguments, time.perf_counter() - began)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def busy(out: Path, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Shares of the devices' time, from what the jobs wrote."""
    begun = {line["number"]: line["time"] for line in lines(out) if line["what"] == "begin"}
    ended = {line["number"]: line["time"] for line in lines(out) if line["what"] == "end"}
    first, last_begin, last_end = min(begun.values()), max(begun.values()), max(ended.values())
    workers = arguments.workers
    free = [0.0] * workers  # when each device would be, if nothing came between
    for number in sorted(begun):
        heapq.heapreplace(free, free[0] + seconds_of(number, *arguments.seconds))
    total = sum(seconds_of(number, *arguments.seconds) for number in begun)
    # the jobs that follow one another on a device, whichever it is: a beginning takes the end before it
    ends = sorted(ended.values())
    between = [begin - end for begin, end in zip(sorted(begun.values())[workers:], ends, strict=False)]

    def share(until: float) -> float:
        taken = sum(min(ended[number], until) - begun[number] for number in begun)
        return round(taken / (workers * (until - first)), 3)

    return {
        "busy": share(last_end),
        "possible": round(total / (workers * max(free)), 3),
        "busy while there was work": share(last_begin),
        "between": [round(statistics.median(between), 2), round(max(between), 2)],
        "seconds": round(seconds, 1),
        "least possible": round(max(free), 1),
    }


def killed(folder: Path, trials: int) -> dict[str, Any]:
    dying = sorted(random.Random(0).sample(range(trials), trials // 10))
    made = sweep(
        folder, trials, f"dies={json.dumps(dying).replace(' ', '')}", "seconds=[0.0025,0.02]", retries=1
    )
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
