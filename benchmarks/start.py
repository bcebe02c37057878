"""How long a person waits for --help, and for the first training step.

    python benchmarks/start.py [--mirror DIR] [--documents 25000] [--repeats 5]

--help stands beside ``python -c 'import torch'``. The first step is that of experiment=imdb without a logger,
from the command to the end of its first optimizer step, where the process ends: once with an empty cache, for
which all documents are cut into words, and once with what that left. Beside it a bare script imports the same
packages, reads the same Parquet file and takes one step with 256 of its documents and as large a table. That
both imported the same is looked at: a package that only one has ends the benchmark. The exception is what
Lightning and torch's optimizers import by themselves and a run does without (textbed.imports): whoever writes
the bare script pays for it. "plain start" is the run from the cache that pays too (TEXTBED_PLAIN_START=1);
"modules" are those that a process had imported in the end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import documents
from measuring import HERE, ROOT, Ended, Results, at_least_one, command, options, read

# What a run imports on its way to the first step; the modules rather than the packages, since a package's
# parts cost as much. torch._dynamo comes with Lightning.
MODULES = [
    "hydra", "omegaconf", "yaml", "rich.table", "numpy", "pyarrow.compute", "pyarrow.parquet", "torch",
    "lightning.pytorch", "torchmetrics.classification",
]  # fmt: skip
# That take a tenth of a second and more.
HEAVY = {
    "datasets", "gensim", "hydra", "lightning", "matplotlib", "numpy", "omegaconf", "optuna", "pandas",
    "pyarrow", "rich", "safetensors", "scipy", "sklearn", "statsmodels", "sympy", "tensorboard", "tokenizers",
    "torch", "torchmetrics", "wandb",
}  # fmt: skip
LEFT_OUT = {"matplotlib", "sympy"}  # by the run alone
BATCH, DIM = 256, 100


def modules(done: Ended) -> list[str]:
    """What a process had imported when it ended."""
    return json.loads(done.out.rpartition("\n")[2])


def main() -> int:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--documents", type=at_least_one, default=25_000, help="made-up training documents")
    given = read(parser, {"documents": 300})
    results = Results("start", given, ["lightning", "hydra-core", "pyarrow"])
    environment = {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}
    if given.threads:
        environment["OMP_NUM_THREADS"] = str(given.threads)
    train = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        mirror = given.mirror
        if mirror is None:
            sizes = {"imdb": {"train": given.documents, "test": max(given.documents // 10, 10)}}
            mirror = documents.write_mirror(place / "mirror", sizes)
        run: list[Any] = [
            train, "experiment=imdb", f"data.mirror={mirror}", "logger=none", f"paths.runs={place / 'runs'}",
            f"data.batch_size={BATCH}", f"embedding.dim={DIM}", "trainer=cpu",
            "+callbacks.first_step._target_=first_step.LeaveAfterFirstStep",
        ]  # fmt: skip
        bare: list[Any] = [HERE / "sides" / "bare_step.py", given.clock, mirror / "imdb" / "train.parquet"]
        bare += [",".join(MODULES), BATCH, DIM]
        for repeat in range(given.repeats):
            cache = f"paths.cache={place / f'cache{repeat}'}"
            sides: dict[tuple[str, str], list[Any]] = {
                ("help", "train.py --help"): [train, "--help"],
                ("help", "import torch"): ["-c", "import torch"],
                ("first step", "cold cache"): [*run, cache],
                ("first step", "warm cache"): [*run, cache],
                ("first step", "plain start"): [*run, cache],
                ("first step", "bare script"): bare,
            }
            had = {}
            for (case, side), words in sides.items():
                plain = {"TEXTBED_PLAIN_START": "1"} if side == "plain start" else {}
                done = command([sys.executable, *words], environment | plain)
                figures = {"seconds": done.seconds(given.clock), "peak_mb": done.peak_mb}
                if case == "first step":
                    found = modules(done)
                    figures["modules"] = len(found)
                    had[side] = {name.partition(".")[0] for name in found} & HEAVY
                results.add(case, side, **figures)
            only = (had["cold cache"] - had["bare script"]) | (
                had["bare script"] - had["cold cache"] - LEFT_OUT
            )
            if only:
                raise SystemExit(f"only one of the run and the bare script imports {', '.join(sorted(only))}")
    results.ratio("help / import torch", ("help", "train.py --help"), ("help", "import torch"), "<= 0.5")
    for side, aim in (("cold cache", "<= 1.1"), ("warm cache", "<= 1.1"), ("plain start", None)):
        sides_of = ("first step", side), ("first step", "bare script")
        results.ratio(f"first step, {side} / bare script", *sides_of, aim)
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
