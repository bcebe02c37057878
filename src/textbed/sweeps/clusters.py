"""Workers of a sweep on a cluster: a SLURM array script, jobs through submitit, tasks of Ray.

Each worker is the command that a person would give there, ``python scripts/sweep.py SWEEP --join``, with the
devices that the scheduler assigned (``CUDA_VISIBLE_DEVICES``); all of them see the same paths. Nothing here
imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textbed.errors import UserError

if TYPE_CHECKING:
    from textbed.sweeps.folder import SweepFolder

_STOP_SECONDS = 120
"""What a worker has before its time is over, to end its trials: they are given half a minute."""
_SUBMITIT_MINUTES = 24 * 60
"""submitit gives every job a limit, its own of minutes."""
_POLL_SECONDS = 0.2

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d{1,2}){0,2})")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give ``scripts/sweep.py`` the options that :func:`start` reads."""
    group = parser.add_argument_group("workers on a cluster")
    way = group.add_mutually_exclusive_group()
    way.add_argument("--slurm", metavar="N", help="print a SLURM array script of N workers, for sbatch")
    way.add_argument("--submitit", metavar="N", help="start N workers through submitit")
    way.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="run workers on a Ray cluster, or one here"
    )
    group.add_argument("--cluster", metavar="C", help="of submitit: slurm, local or debug; else found out")
    group.add_argument("--workers", metavar="N", help="of Ray; else as many as the cluster bears")
    group.add_argument("--gpus", metavar="N", help="GPUs of a worker; else those of a trial")
    group.add_argument("--cpus", metavar="N", help="CPU cores of a worker")
    group.add_argument("--memory", metavar="GIB", help="memory of a worker, in GiB")
    group.add_argument(
        "--time", metavar="T", help="its time limit, as SLURM reads it: 90 (minutes), 8:00:00, 2-0"
    )
    group.add_argument("--partition", metavar="P", help="SLURM's")


def start(folder: SweepFolder, given: argparse.Namespace, command: Sequence[str]) -> bool:
    """Start workers as the options say.

    Args:
        command: the words that join the sweep.

    Returns:
        Whether they have worked to the end, and there is something to report.

    Raises:
        UserError: a mistake in an option, a package that is missing, or a cluster that is not there.
    """
    wanted = Wanted.of(folder, given)
    if given.slurm is not None:
        print(slurm_script(folder, _count("--slurm", given.slurm), wanted, command), end="")
        return False
    if given.submitit is not None:
        return submitit_jobs(folder, _count("--submitit", given.submitit), wanted, command, given.cluster)
    ray_tasks(folder, given.ray, given.workers and _count("--workers", given.workers), wanted, command)
    return True


def is_asked(given: argparse.Namespace) -> bool:
    """Whether workers are to be started; options of these alone are refused."""
    if given.slurm is not None or given.submitit is not None or given.ray is not None:
        return True
    for name in ("cluster", "workers", "gpus", "cpus", "memory", "time", "partition"):
        if getattr(given, name) is not None:
            raise UserError(f"--{name} goes with --slurm N, --submitit N or --ray.")
    return False


def joined(folder: SweepFolder, threads: int | None = None) -> SweepFolder:
    """The sweep as a worker sees it that a scheduler, or a person, gave its devices.

    ``sweep.devices`` are those of the machine where the sweep began: ``CUDA_VISIBLE_DEVICES`` goes before. A
    worker is one task of SLURM, but its trials are none, and must not be taken for ranks of its job: they
    get nothing of ``SLURM_*``, and submitit's signal, which SLURM sends to every process, is none to them.
    """
    plan = folder.plan
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        plan = dataclasses.replace(plan, settings={**plan.settings, "devices": None})
    slurm = [key for key in os.environ if key.startswith("SLURM_")]
    for key in slurm:
        del os.environ[key]
    if slurm:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return type(folder)(folder.path, dataclasses.replace(plan, threads=threads or plan.threads))


@dataclass(frozen=True)
class Wanted:
    """What a worker is to have; None leaves it to the cluster."""

    gpus: int | None = None
    cpus: int | None = None
    memory: int | None = None
    """GiB."""
    time: str | None = None
    partition: str | None = None

    @classmethod
    def of(cls, folder: SweepFolder, given: argparse.Namespace) -> Wanted:
        """The options, checked.

        Raises:
            UserError: one that cannot be.
        """
        gpus = None if given.gpus is None else _count("--gpus", given.gpus, least=0)
        each = folder.plan.settings["devices_per_trial"]
        if gpus and gpus < each:
            raise UserError(f"--gpus {gpus}: a trial has sweep.devices_per_trial={each}.")
        if given.time is not None and not _minutes(given.time):
            raise UserError(
                f"--time {given.time}: expected minutes, hours:minutes:seconds or days-hours, as in 90, "
                "8:00:00 or 2-0."
            )
        if given.partition is not None and not re.fullmatch(r"[\w.,-]+", given.partition):
            raise UserError(f"--partition {given.partition}: expected the name of a SLURM partition.")
        if given.ray is not None and (given.time or given.partition):
            raise UserError("--time and --partition go with --slurm or --submitit: Ray has none.")
        if given.workers is not None and given.ray is None:
            raise UserError("--workers goes with --ray.")
        if given.cluster is not None and given.submitit is None:
            raise UserError("--cluster goes with --submitit N.")
        return cls(
            gpus,
            None if given.cpus is None else _count("--cpus", given.cpus),
            None if given.memory is None else _count("--memory", given.memory),
            given.time,
            given.partition,
        )

    def gpus_of(self, folder: SweepFolder) -> int:
        """GPUs to ask for: those of a trial, where nothing is said and trials may use some."""
        if self.gpus is not None:
            return self.gpus
        return 0 if folder.plan.accelerator in ("cpu", "mps") else folder.plan.settings["devices_per_trial"]


# -- SLURM ---------------------------------------------------------------------------------------------------


def slurm_script(folder: SweepFolder, count: int, wanted: Wanted, command: Sequence[str]) -> str:
    """An array script for ``sbatch``: ``count`` jobs, each a worker that leaves its trials in time."""
    gpus = wanted.gpus_of(folder)
    logs = folder.path / "slurm"
    _make(logs)
    options = {
        "job-name": _job_name(folder),
        "array": f"0-{count - 1}",
        "nodes": 1,
        "ntasks": 1,
        "gpus-per-node": gpus or None,
        "cpus-per-task": wanted.cpus,
        "mem": wanted.memory and f"{wanted.memory}G",
        "time": wanted.time,
        "partition": wanted.partition,
        "output": f"{str(logs).replace('%', '%%')}/%A_%a.log",
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:TERM@{_STOP_SECONDS}",
    }
    lines = [
        f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for key, value in options.items()
        if value is not None
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {count} worker{'s' if count > 1 else ''} of the sweep {folder.path.name}.",
            *lines,
            "",
            f"cd {shlex.quote(folder.plan.cwd)} || exit",
            "# in the shell's place: SLURM sends the signal to it alone",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


# -- submitit ------------------------------------------------------------------------------------------------


class Worker:
    """A worker as a job: what is pickled, and called in the job.

    Args:
        environment: what it is given beside what is there.
    """

    def __init__(
        self, command: Sequence[str], cwd: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command, self.cwd, self.environment = list(command), cwd, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Its exit code, when the sweep is over."""
        self._process = subprocess.Popen(
            self.command, cwd=self.cwd, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL
        )
        try:
            while self._process.poll() is None:
                time.sleep(_POLL_SECONDS)  # not in wait(), which Ray's way to interrupt would not end
        finally:
            self._stop()
        return self._process.returncode

    def _stop(self) -> None:
        """Let its trials end, and wait for another worker."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def checkpoint(self) -> Any:
        """submitit asks for it when the job's time is over or it has to make room: it is queued again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(Worker(self.command, self.cwd, self.environment))


def submitit_jobs(
    folder: SweepFolder, count: int, wanted: Wanted, command: Sequence[str], cluster: str | None
) -> bool:
    """Start ``count`` workers through submitit; on this machine, wait for their end.

    Returns:
        Whether they have ended.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError("--submitit needs submitit: pip install -e '.[submitit]'") from error
    if cluster not in (None, "slurm", "local", "debug"):
        raise UserError(f"--cluster {cluster}: expected slurm, local or debug.")
    logs = folder.path / "submitit"
    _make(logs)
    try:
        executor = submitit.AutoExecutor(folder=str(logs).replace("%", "%%"), cluster=cluster)
    except RuntimeError as error:
        raise UserError(
            f"--submitit: no SLURM is here ({error}); --cluster local runs the workers on this machine."
        ) from error
    gpus, minutes = wanted.gpus_of(folder), _minutes(wanted.time) if wanted.time else _SUBMITIT_MINUTES
    asked: dict[str, Any] = {"name": _job_name(folder), "timeout_min": minutes}
    if executor.cluster == "slurm":
        workers = [Worker(command, folder.plan.cwd)] * count
        asked |= {
            "gpus_per_node": gpus or None,
            "cpus_per_task": wanted.cpus,
            "mem_gb": wanted.memory,
            "slurm_partition": wanted.partition,
        }
    elif executor.cluster == "local":
        workers = _on_this_machine(folder, count, gpus, command)
    else:  # debug: in this process, one after the other
        workers = [Worker(command, folder.plan.cwd)] * count
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    with executor.batch():
        jobs = [executor.submit(worker) for worker in workers]
    print(f"{len(jobs)} workers: {', '.join(job.job_id for job in jobs)}; logs: {logs}", file=sys.stderr)
    if executor.cluster == "slurm":
        return False
    _check([_result(job) for job in jobs])
    return True


def _on_this_machine(folder: SweepFolder, count: int, gpus: int, command: Sequence[str]) -> list[Worker]:
    """Workers that divide this machine: submitit would give each of them the first GPU, and all cores."""
    from textbed.sweeps import devices

    plan = folder.plan
    given = plan.settings["devices"]
    there = (devices.gpus() if given is None else [str(one) for one in given]) if gpus else []
    threads = plan.threads or max(1, devices.usable_cores() // count)
    if not there:
        return [Worker([*command, "--at-once=1", f"--threads={threads}"], plan.cwd)] * count
    groups = [there[start : start + gpus] for start in range(0, len(there) - gpus + 1, gpus)]
    if len(groups) < count:
        raise UserError(
            f"--submitit {count}: with {gpus} of the {len(there)} GPUs here for each, there "
            f"{'is one worker' if len(groups) == 1 else f'are {len(groups)} workers'}."
        )
    return [
        Worker([*command, f"--threads={threads}"], plan.cwd, {"CUDA_VISIBLE_DEVICES": ",".join(group)})
        for group in groups[:count]
    ]


def _result(job: Any) -> int:
    import submitit

    try:
        return int(job.result())
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
        return 1


# -- Ray -----------------------------------------------------------------------------------------------------


def ray_tasks(
    folder: SweepFolder, address: str, count: int | None, wanted: Wanted, command: Sequence[str]
) -> None:
    """Run workers as Ray's tasks, which assigns their devices, and wait for their end.

    Args:
        address: of the cluster; ``local`` starts one on this machine, for as long as it takes.

    Raises:
        KeyboardInterrupt: it was stopped; all trials have ended.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs ray: pip install -e '.[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray {address}: {str(error).splitlines()[0]}") from error
    try:
        each, fitting = _share(folder, wanted, [one["Resources"] for one in ray.nodes() if one["Alive"]])
        if not count and not fitting:
            raise UserError(
                f"--ray: no node of the cluster has {each}; give other --gpus, --cpus or --memory."
            )
        words = [*command, f"--threads={folder.plan.threads or each['num_cpus']}"]
        words += [] if each["num_gpus"] else ["--at-once=1"]
        task = ray.remote(**each)(_task)
        tasks = [task.remote(Worker(words, folder.plan.cwd)) for _ in range(count or fitting)]
        print(f"{len(tasks)} workers, each with {each}", file=sys.stderr)
        try:
            codes = ray.get(tasks)
        except KeyboardInterrupt:
            for one in tasks:
                ray.cancel(one)
            ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_SECONDS)
            raise
    finally:
        ray.shutdown()
    _check(codes)


def _task(worker: Worker) -> int:
    return worker()


def _share(
    folder: SweepFolder, wanted: Wanted, nodes: Sequence[Mapping[str, float]]
) -> tuple[dict[str, Any], int]:
    """What Ray is to give each worker, and how many of these its nodes bear.

    A GPU comes with its share of the cores. Without GPUs a worker is one trial at a time, with its threads
    and memory.
    """
    gpus = wanted.gpus_of(folder)
    if wanted.gpus is None and not any(node.get("GPU", 0) for node in nodes):
        gpus = 0
    cpus, memory = wanted.cpus, None if wanted.memory is None else wanted.memory * 2**30
    if gpus:
        shares = [node.get("CPU", 0) // (node["GPU"] // gpus) for node in nodes if node.get("GPU", 0) >= gpus]
        cpus = cpus or max(1, int(min(shares, default=1)))
    else:
        cpus = cpus or folder.plan.threads or 1
        memory = memory or math.ceil(folder.plan.settings["memory_gib"] * 2**30)
    each: dict[str, Any] = {"num_gpus": gpus, "num_cpus": cpus}
    asked = {"GPU": gpus, "CPU": cpus}
    if memory is not None:
        each["memory"] = asked["memory"] = memory
    fitting = [min(node.get(key, 0) // value for key, value in asked.items() if value) for node in nodes]
    return each, int(sum(fitting))


# -- all of them ---------------------------------------------------------------------------------------------


def _count(option: str, text: str, least: int = 1) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < least:
        raise UserError(f"{option} {text}: expected a whole number, at least {least}.")
    return int(text)


def _minutes(text: str) -> int:
    """A time limit in SLURM's forms, in whole minutes; 0 where it is none."""
    found = _TIME.fullmatch(text)
    if found is None:
        return 0
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:  # days-hours:minutes:seconds
        hours, minutes, seconds = [*parts, 0, 0][:3]
        hours += 24 * int(found["days"])
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes:seconds
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return hours * 60 + minutes + math.ceil(seconds / 60)


def _job_name(folder: SweepFolder) -> str:
    return re.sub(r"[^\w.-]+", "-", folder.path.name)


def _make(logs: Any) -> None:
    from textbed.runs.folder import writing

    with writing(logs):
        logs.mkdir(exist_ok=True)


def _check(codes: Sequence[int]) -> None:
    failed = sum(code != 0 for code in codes)
    if failed:
        raise UserError(f"{failed} of {len(codes)} workers ended with an error; their logs tell of it.")
