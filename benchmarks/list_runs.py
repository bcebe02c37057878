"""A list of a thousand runs, without a server or an index: scripts/runs.py beside reading every file whole.

    python benchmarks/list_runs.py [--runs 1000] [--repeats 5]

The folders are made up, in the manner of a sweep: the configuration of experiment=sst2 with another head,
rate and seed in each, figures and run.json as a run leaves them. Both sides read them in a fresh process, in
turn, and only from the first folder to the last value is timed: ours finds, reads and prints, the plain one
reads the same three files of each with json and libyaml. Files are in the system's cache. The command's own
time, with the start of Python and its imports, stands beside.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from measuring import CLOCKS, ROOT, Results, at_least_one, command, options, read
from omegaconf import OmegaConf

from textbed import config
from textbed.runs.folder import RunFolder, now, versions, write_json, write_text

HEADS = ("mean", "max", "cnn", "gru", "bilstm")

OURS = """
import io, sys, time
from textbed.runs import registry
from textbed import schema
clock = getattr(time, sys.argv[2])
start = clock()
found = registry.find([sys.argv[1]])
registry.show(found.runs, file=io.StringIO())
print(clock() - start, len(found.runs))
"""
PLAIN = """
import json, sys, time, yaml
from pathlib import Path
clock = getattr(time, sys.argv[2])
start = clock()
count = 0
for path in Path(sys.argv[1]).rglob("run.json"):
    run = json.loads(path.read_text()), json.loads((path.parent / "metrics.json").read_text())
    yaml.load((path.parent / "config.yaml").read_text(), yaml.CSafeLoader)
    count += 1
print(clock() - start, count)
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


def measure(code: str, root: Path, clock: str) -> tuple[float, float, int]:
    """Seconds, megabytes, and how many runs were read."""
    done = command([sys.executable, "-c", code, root, CLOCKS[clock].__name__])
    seconds, count = done.out.split()
    return float(seconds), done.peak_mb, int(count)


def main() -> int:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--runs", type=at_least_one, default=1000, help="how many run folders")
    given = read(parser, {"runs": 5})
    results = Results("list_runs", given, ["pyyaml"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.runs)
        measure(PLAIN, folder, given.clock)  # so that the first side does not wait for the disk
        for _ in range(given.repeats):
            for side, code in (("textbed", OURS), ("plain", PLAIN)):
                seconds, peak, count = measure(code, folder, given.clock)
                assert count == given.runs
                results.add("runs", side, seconds=seconds, peak_mb=peak)
            whole = command([sys.executable, ROOT / "scripts" / "runs.py", folder])
            results.add("runs", "the command", seconds=whole.seconds(given.clock), peak_mb=whole.peak_mb)
    results.ratio("plain / textbed", ("runs", "plain"), ("runs", "textbed"))
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
