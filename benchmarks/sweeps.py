"""How busy a sweep keeps its devices, beside Hydra's joblib launcher and its Optuna sweeper; and whether any
trial is lost where trials and workers are killed.

    python benchmarks/sweeps.py [--jobs 24] [--seconds 4 30] [--workers 2] [--peer-python PYTHON]
        [--trials 200] [--only forked,killed]

Jobs import what a run imports, and then keep a device for 4 to 30 s (sleeping, so that a busy machine
matters less; imports do suffer). "busy" is the share of the devices' time in which a job had one, from the
beginning of the first job to the end of the last; "possible" is what it would be if every job began the
moment that the one before it ended: the last to end leaves the other device idle. "while there was work" is
the share up to the beginning of the last. The first start-up counts for none of them. "between" are the
seconds from the end of a job to the beginning of the next on its device, in the median and at the most.
PYTHON is that of an environment of its own, since the Optuna sweeper needs an Optuna before version 3:
`pip install -e .`, then `pip install "hydra-core<1.4" hydra-joblib-launcher hydra-optuna-sweeper`. Then
--trials trials of a few ms on four workers, a tenth of them killed (SIGKILL) the first time they run, one
worker killed on the way. All of it is on the clock on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Missing, Results, at_least_one, options, read
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
PEER_PACKAGES = ["hydra-core", "hydra-joblib-launcher", "hydra-optuna-sweeper", "optuna", "joblib"]
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


def main() -> int:
    parser = options(__doc__, repeats=1)
    parser.add_argument("--jobs", type=at_least_one, default=24)
    parser.add_argument("--seconds", type=float, nargs=2, default=[4.0, 30.0], metavar=("LEAST", "MOST"))
    parser.add_argument("--workers", type=at_least_one, default=2)
    parser.add_argument("--trials", type=at_least_one, default=200)
    parser.add_argument(
        "--only", metavar="NAME,...", help="of forked, spare, plain, joblib, optuna sweeper, killed"
    )
    parser.add_argument("--worker", type=Path, metavar="SWEEP", help=argparse.SUPPRESS)
    tiny = {"jobs": 3, "seconds": [0.01, 0.02], "workers": 1, "trials": 20, "only": "forked,joblib,killed"}
    given = read(parser, tiny)
    if given.worker:
        with WarmStarter({}, ["hydra"]) as start:
            Worker(SweepFolder.open(given.worker), slots(1), Quiet(), start).run()
        return 0
    results = Results("sweeps", given, ["hydra-core", "optuna"], PEER_PACKAGES)
    modules = [["hydra"]] if given.tiny else []
    measured: dict[str, Callable[[Path], dict[str, Any]]] = {
        "forked": functools.partial(ours, given, WarmStarter(IMPORTING, *modules)),
        "spare": functools.partial(ours, given, SpareStarter(IMPORTING, most=given.workers)),
        "plain": functools.partial(ours, given, start_plainly),
        **{name: functools.partial(peer, given, words) for name, words in PEERS.items()},
        "killed": lambda place: killed(place, given.trials),
    }
    names = given.only.split(",") if given.only else [*measured]
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as place:
            for name in names:
                case, side = ("killed", "textbed") if name == "killed" else ("jobs", name)
                try:
                    results.add(case, side, **measured[name](Path(place) / name))
                except Missing as why:
                    results.leave_out(side, why)
    if "forked" in names:
        share = results.median("jobs", "forked", "busy while there was work")
        results.aim("forked: busy while there was work", share, ">= 0.95")
    if "killed" in names:
        for figure in ("lost", "ended twice"):
            results.aim(f"killed: {figure}", results.median("killed", "textbed", figure), "<= 0")
    results.show()
    return 0


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


def work(given: argparse.Namespace) -> list[str]:
    """What a job is to do; a tiny one imports nothing, since that takes all of its time."""
    seconds = f"seconds={given.seconds}".replace(" ", "")
    return [f"imports={str(not given.tiny).lower()}", seconds]


def ours(given: argparse.Namespace, start: Starter, folder: Path) -> dict[str, Any]:
    made, began = sweep(folder, given.jobs, *work(given)), time.perf_counter()
    with start if isinstance(start, WarmStarter | SpareStarter) else contextlib.nullcontext():
        Worker(made, slots(given.workers), Quiet(), start).run()
    return busy(folder / "out", given, time.perf_counter() - began)


def peer(given: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    numbers = ",".join(map(str, range(given.jobs)))
    filled = [word.format(workers=given.workers, jobs=given.jobs, numbers=numbers) for word in words]
    python = os.path.abspath(shutil.which(given.peer_python) or given.peer_python)  # seen from another folder
    command = [python, str(JOB), "-m", f"out={folder}/out", *work(given), *filled]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Missing(lines[-1] if lines else f"exit code {done.returncode}")
    return busy(folder / "out", given, time.perf_counter() - began)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def busy(out: Path, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Shares of the devices' time, from what the jobs wrote."""
    begun = {line["number"]: line["time"] for line in lines(out) if line["what"] == "begin"}
    ended = {line["number"]: line["time"] for line in lines(out) if line["what"] == "end"}
    first, last_begin, last_end = min(begun.values()), max(begun.values()), max(ended.values())
    workers = given.workers
    free = [0.0] * workers  # when each device would be, if nothing came between
    for number in sorted(begun):
        heapq.heapreplace(free, free[0] + seconds_of(number, *given.seconds))
    total = sum(seconds_of(number, *given.seconds) for number in begun)
    # the jobs that follow one another on a device, whichever it is: a beginning takes the end before it
    ends = sorted(ended.values())
    between = [begin - end for begin, end in zip(sorted(begun.values())[workers:], ends, strict=False)]

    def share(until: float) -> float:
        taken = sum(min(ended[number], until) - begun[number] for number in begun)
        return taken / (workers * (until - first))

    return {
        "busy": share(last_end),
        "possible": total / (workers * max(free)),
        "busy while there was work": share(last_begin),
        "between": statistics.median(between),
        "between, at the most": max(between),
        "seconds": seconds,
        "least possible": max(free),
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
        "workers that failed": sum(code != 0 for code in codes[1:]),
        "seconds": seconds,
    }


if __name__ == "__main__":
    raise SystemExit(main())
