"""A list of a thousand runs, without a server or an index: scripts/runs.py beside reading every file whole.

    python benchmarks/list_runs.py [--runs 1000] [--repeats 5]

The folders are made up, in the manner of a sweep: the configuration of experiment=sst2 with another head,
rate and seed in each, figures and run.json as a run leaves them. Both sides read them in a fresh process, in
turn, and only from the first folder to the last value is timed: ours finds, reads and prints, the plain one
reads the same three files of each with json and libyaml. Files are in the system's cache. The command's own
time, with the start of Python and its imports, stands beside. "processor" is the time of this process alone:
other work on the machine is not in it. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from machine import processor
from omegaconf import OmegaConf

from textbed import config
from textbed.runs.folder import RunFolder, now, versions, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
HEADS = ("mean", "max", "cnn", "gru", "bilstm")

OURS = """
import io, sys, time
from textbed.runs import registry
from textbed import schema
start, busy = time.perf_counter(), time.process_time()
found = registry.find([sys.argv[1]])
registry.show(found.runs, file=io.StringIO())
print(time.perf_counter() - start, time.process_time() - busy, len(found.runs))
"""
PLAIN = """
import json, sys, time, yaml
from pathlib import Path
start, busy = time.perf_counter(), time.process_time()
count = 0
for path in Path(sys.argv[1]).rglob("run.json"):
    run = json.loads(path.read_text()), json.loads((path.parent / "metrics.json").read_text())
    yaml.load((path.parent / "config.yaml").read_text(), yaml.CSafeLoader)
    count += 1
print(time.perf_counter() - start, time.process_time() - busy, count)
"""


def make(root: Path, count: int) -> None:
    """Run folders with what is read of one, and the other files as empty ones."""
    configs = {}
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for head in HEADS:
            composed = config.check(compose("train", ["experiment=sst2", f"head={head}"]))
            configs[head] = yaml.safe_load(OmegaConf.to_yaml(composed))
    packages = versions()
    for number in range(count):
        head = HEADS[number % len(HEADS)]
        settings = configs[head]
        settings["seed"] = number // len(HEADS)
        settings["optimizer"]["lr"] = (1 + number % 7) / 1000
        folder = RunFolder(root / "sst2" / f"20300101-{number:06d}-abcdef")
        for name in ("checkpoints", "tokenizer", "predictions", "pictures"):
            (folder.path / name).mkdir(parents=True)
        for file in (folder.record_file, folder.table_file, folder.log_file, folder.model_file):
            file.touch()
        write_text(folder.config_file, yaml.safe_dump(settings, sort_keys=False))
        write_json(
            folder.info_file,
            {
                "format": 1,
                "status": "finished",
                "phase": "done",
                "started": now(),
                "command": f"python train.py experiment=sst2 head={head} seed={settings['seed']}",
                "choices": {"data": "sst2", "embedding": "random", "head": head},
                "versions": packages,
                "git": {"revision": "0" * 40, "branch": "main", "dirty": False, "changed": []},
                "seed": settings["seed"],
                "ended": now(),
            },
        )
        figures = {f"test/figure{i}": number / (i + 1) for i in range(60)}
        write_json(folder.metrics_file, {"test/accuracy": 0.8, "seconds/fit": 9.5, **figures})


def measure(code: str, root: Path) -> tuple[float, float, int]:
    """Seconds on the clock and of the processor, and how many runs were read."""
    said = subprocess.run(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True, check=True
    )
    wall, busy, count = said.stdout.split()
    return float(wall), float(busy), int(count)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=1000, help="how many run folders")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side reads them, in turn")
    given = parser.parse_args()
    if given.runs < 1 or given.repeats < 1:
        print("--runs and --repeats must be at least 1", file=sys.stderr)
        return 2
    seconds: dict[str, list[tuple[float, float]]] = {"textbed": [], "plain": []}
    command = []
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.runs)
        measure(PLAIN, Path(folder))  # so that the first side does not wait for the disk
        for repeat in range(given.repeats):
            for name, code in (("textbed", OURS), ("plain", PLAIN)):
                wall, busy, count = measure(code, Path(folder))
                assert count == given.runs
                seconds[name].append((wall, busy))
            start = time.perf_counter()
            script = [sys.executable, str(ROOT / "scripts" / "runs.py"), folder]
            subprocess.run(script, stdout=subprocess.DEVNULL, check=True)
            command.append(time.perf_counter() - start)
            shown = {name: round(done[-1][0], 2) for name, done in seconds.items()}
            print(f"repeat {repeat + 1}: seconds {shown}, the command {command[-1]:.2f}", flush=True)
    result: dict[str, object] = {"benchmark": "list_runs", "runs": given.runs, "repeats": given.repeats}
    for name, done in seconds.items():
        result[name] = {
            "seconds": round(statistics.median(wall for wall, _ in done), 3),
            "least": round(min(wall for wall, _ in done), 3),
            "processor_seconds": round(statistics.median(busy for _, busy in done), 3),
        }
    result["command_seconds"] = round(statistics.median(command), 3)
    # of the processor's seconds: other work on the machine is not in them
    ratio = statistics.median(b for _, b in seconds["plain"]) / statistics.median(
        b for _, b in seconds["textbed"]
    )
    result["ratio"] = round(ratio, 2)
    result["machine"] = {
        "cores": os.cpu_count(),
        "processor": processor(),
        "load": round(os.getloadavg()[0], 1),
    }
    result["versions"] = {"python": platform.python_version(), "pyyaml": yaml.__version__}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
