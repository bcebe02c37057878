"""Where trials run: a slot for each trial at a time, with its device, its CPU threads, its environment.

Nothing here imports torch, which would keep a part of every GPU for the worker.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textbed.errors import UserError


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time."""

    name: str
    """As shown: ``gpu 0``, ``gpu 0,1``, ``cpu 1``."""
    threads: int
    environment: Mapping[str, str]
    """What a trial's process is given to keep it there."""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("cpu")


def slots(settings: Mapping[str, Any], accelerator: str = "auto", threads: int | None = None) -> list[Slot]:
    """The slots of this machine.

    Args:
        settings: the ``sweep`` node: devices, devices_per_trial, trials_per_device, at_once, memory_gib.
        accelerator: the trainer's.
        threads: CPU threads of a trial; None divides the cores among the slots.

    Raises:
        UserError: fewer devices than a trial is to have.
    """
    cores, at_once = usable_cores(), settings["at_once"]
    given = settings["devices"]
    devices = [str(one) for one in given] if given is not None else gpus() if accelerator != "cpu" else []
    if accelerator == "mps" or (not devices and accelerator != "cpu" and _is_apple()):
        at_once = at_once or 1  # one GPU, which cannot be divided
    if devices:
        each = settings["devices_per_trial"]
        groups = [devices[start : start + each] for start in range(0, len(devices) - each + 1, each)]
        if not groups:
            raise UserError(
                f"sweep.devices_per_trial={each}: there {'is' if len(devices) == 1 else 'are'} "
                f"{len(devices)} here ({', '.join(devices)})."
            )
        # device by device first, so that a few trials have one each
        places = groups * settings["trials_per_device"]
        names = [f"gpu {','.join(group)}" for group in places][:at_once]
        pinned = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in places]
    else:
        fitting = int(available_gib() // settings["memory_gib"])
        count = at_once or max(1, min(cores // (threads or 1), fitting))
        names = [f"cpu {number}" for number in range(count)]
        # where there are GPUs that are not to be used, no trial may find one
        pinned = [{"CUDA_VISIBLE_DEVICES": ""} if accelerator == "cpu" else {} for _ in names]
    share = threads or max(1, cores // len(names))
    return [
        Slot(name, share, {**place, "OMP_NUM_THREADS": str(share)})
        for name, place in zip(names, pinned, strict=False)
    ]


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name: those that it names now, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one.strip() for one in visible.split(",") if one.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = [tool, "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()
    return []


def usable_cores() -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # a container may have a share of them
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def available_gib() -> float:
    """Memory that can be had without swapping, in GiB; infinite where the system does not say."""
    found: list[float] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) / 2**20)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            found.append((int(limit) - used + _reclaimable(group)) / 2**30)
    return min(found, default=float("inf"))


def _reclaimable(group: Path) -> int:
    """Pages of files, which a group's use counts and the system gives up first."""
    lines = (group / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def killed_for_memory() -> int:
    """How often the system has killed a process of this container for want of memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _is_apple() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def shown(places: Sequence[Slot]) -> str:
    """One line on the slots, such as ``2 at once: cpu 0, cpu 1, 1 thread each``."""
    names = ", ".join(dict.fromkeys(slot.name for slot in places))
    threads = places[0].threads
    return f"{len(places)} at once: {names}; {threads} CPU thread{'s' if threads > 1 else ''} each"
