"""What a benchmark says of the machine it runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def memory_gb() -> float | None:
    """Memory of the machine in GB, where the system tells."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError):
        return None


def machine() -> dict[str, Any]:
    """Cores, those of them that this process may use, memory, processor, and how busy it is now: the mean
    number of processes that wanted a core in the last minute.
    """
    cores = os.cpu_count()
    return {
        "cores": cores,
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        "memory_gb": memory_gb(),
        "processor": processor(),
        "load": round(os.getloadavg()[0], 1),
    }
