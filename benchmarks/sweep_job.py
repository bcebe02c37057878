"""A job of known length for benchmarks/sweeps.py: imports what a run imports, then keeps its device.

    python benchmarks/sweep_job.py number=3 out=/tmp/jobs.jsonl [imports=true] [seconds=[4,30]] [dies=[3,7]]

How long goes by ``number``, between the two of ``seconds``. Every beginning and end is a line in ``out``.
Started by a sweep of ours it leaves a run folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

KEYS = {"number": 0, "out": "???", "imports": False, "dies": [], "seconds": [0.5, 4.0]}
ConfigStore.instance().store(name="job", node=KEYS)
LINK = "TEXTBED_RUN_LINK"


def seconds_of(number: int, shortest: float, longest: float) -> float:
    """How long a job takes, the same for a number wherever it runs."""
    return random.Random(number).uniform(shortest, longest)


@hydra.main(version_base="1.3", config_path=None, config_name="job")
def main(cfg: DictConfig) -> float:
    if cfg.imports:
        import textbed.training  # noqa: F401

    def note(what: str) -> None:
        with open(cfg.out, "a") as file:
            file.write(json.dumps({"number": cfg.number, "what": what, "time": time.time()}) + "\n")

    note("begin")
    mark = Path(f"{cfg.out}.{cfg.number}.died")
    if cfg.number in cfg.dies and not mark.exists():  # the first time
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds_of(cfg.number, *cfg.seconds))
    if LINK in os.environ:
        run = Path(f"{cfg.out}.runs") / f"{cfg.number}-{os.getpid()}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"name: job\nseed: 0\nnumber: {cfg.number}\n")
        (run / "metrics.json").write_text(json.dumps({"val/accuracy": 1.0}))
        (run / "run.json").write_text(json.dumps({"status": "finished"}))
        os.symlink(run, f"{os.environ[LINK]}.new")
        os.replace(f"{os.environ[LINK]}.new", os.environ[LINK])
    note("end")
    return 0.0


if __name__ == "__main__":
    main()
