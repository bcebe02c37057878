"""From the start of the process to the accuracy on IMDB's test texts, beside fastText.

    python benchmarks/imdb.py [--mirror DIR] [--fraction 0.1] [--repeats 3] [--clock cpu] [--threads 2]
        [--peer-python PYTHON]

Both read the same raw texts from the same files. Ours is ``python train.py experiment=imdb_fast`` (words), or
``experiment=imdb_bigrams_fast``, as anyone types it: once with an empty cache, and once with what that left,
with another seed. fastText's is a Python script that prepares the texts, trains and tests, 5 epochs at a rate
of 0.5: words that occur twice in 50 columns; bigrams in 2,000,000 buckets of 10 columns. ``--threads`` is
fastText's; ours takes what its experiment says.

Beside the seconds on the clock that was asked for stand those on both clocks. ``prepared`` of fastText's are
the part of its Python preparation, which a second run of its could do without. Accuracies are in per cent;
without ``--mirror`` they are those of made-up documents, and no aim counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import documents
import pyarrow.parquet as pq
from measuring import (
    FASTTEXT,
    ROOT,
    Ended,
    Missing,
    Results,
    at_least_one,
    command,
    options,
    peer_process,
    read,
)

CASES: dict[str, dict[str, Any]] = {
    "imdb_unigrams": {
        "experiment": "imdb_fast",
        "fasttext": {"dim": 50, "minCount": 2, "wordNgrams": 1},
        "aims": {"cold": "<= 0.7", "warm": "<= 0.4", "accuracy": ">= 88.5"},
    },
    "imdb_bigrams": {
        "experiment": "imdb_bigrams_fast",
        "fasttext": {"dim": 10, "wordNgrams": 2, "bucket": 2_000_000},
        "aims": {"cold": "<= 1", "warm": "<= 0.6", "accuracy": ">= 90"},
    },
}


def part(mirror: Path, fraction: float, folder: Path) -> Path:
    """A mirror with that share of the documents, evenly from the files."""
    for split in ("train", "test"):
        table = pq.read_table(mirror / "imdb" / f"{split}.parquet")
        rows = [int(row / fraction) for row in range(int(len(table) * fraction))]
        (folder / "imdb").mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(rows), folder / "imdb" / f"{split}.parquet")
    return folder


def ours(experiment: str, mirror: Path, place: Path, seed: int, more: list[str]) -> tuple[Ended, float]:
    words = [
        sys.executable, ROOT / "train.py", f"experiment={experiment}", f"data.mirror='{mirror}'",
        f"seed={seed}", f"paths.runs='{place / 'runs'}'", f"paths.cache='{place / 'cache'}'", *more,
    ]  # fmt: skip
    done = command(words)
    figures = json.loads((Path(done.out.rpartition("\n")[2]) / "metrics.json").read_text())
    return done, 100 * figures["test/accuracy"]


def figures(done: Ended, clock: str, accuracy: float, **more: float) -> dict[str, float]:
    both = {"wall": done.wall, "cpu": done.cpu}
    return {"seconds": done.seconds(clock), **both, "peak_mb": done.peak_mb, "accuracy": accuracy, **more}


def main() -> int:
    parser = options(__doc__)
    parser.set_defaults(threads=2)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the documents to take")
    parser.add_argument("--documents", type=at_least_one, default=25_000, help="made-up ones of each split")
    given = read(parser, {"documents": 600})
    results = Results("imdb", given, ["lightning", "hydra-core", "pyarrow"], FASTTEXT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mirror = given.mirror
        if mirror is None:
            sizes = {"imdb": {"train": given.documents, "test": given.documents}}
            mirror = documents.write_mirror(folder / "made_up", sizes)
        if given.fraction < 1:
            mirror = part(mirror, given.fraction, folder / "part")
        for repeat in range(given.repeats):
            for case, one in CASES.items():
                place = folder / f"{case}{repeat}"
                place.mkdir()
                for side, seed in (("cold", 2 * repeat), ("warm", 2 * repeat + 1)):
                    more = ["trainer.max_epochs=1"] if given.tiny else []
                    done, accuracy = ours(one["experiment"], mirror, place, seed, more)
                    results.add(case, side, **figures(done, given.clock, accuracy))
                try:
                    done = peer_process(
                        given, "train_fasttext", mirror, place, given.threads, json.dumps(one["fasttext"])
                    )
                except Missing as why:
                    results.leave_out("fasttext", why)
                    continue
                said = json.loads(done.out.rpartition("\n")[2])
                prepared = said[f"{given.clock}_prepared"]
                shown = figures(done, given.clock, said["accuracy"], prepared=prepared)
                results.add(case, "fasttext", **shown)
    for case, one in CASES.items():
        for side in ("cold", "warm"):
            aim = one["aims"][side] if given.mirror and given.fraction == 1 else None
            results.ratio(f"{case}: {side} / fasttext", (case, side), (case, "fasttext"), aim)
            for clock in ("wall", "cpu"):
                name = f"{case}: {side} / fasttext, {clock}"
                results.ratio(name, (case, side), (case, "fasttext"), figure=clock)
        if given.mirror and given.fraction == 1:
            found = [x for side in ("cold", "warm") for x in results.cases[case][side]["accuracy"]]
            results.aim(f"{case}: accuracy", statistics.mean(found), one["aims"]["accuracy"])
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
