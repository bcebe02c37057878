"""What a benchmark says of the machine it ran on."""

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


def machine() -> dict[str, Any]:
    """Cores, processor, and how busy it is: the mean number of processes that wanted a core."""
    return {"cores": os.cpu_count(), "processor": processor(), "load": round(os.getloadavg()[0], 1)}
