"""Training a static table on small sets, beside model2vec's own training of the same table.

    python benchmarks/small_sets.py --mirror DIR --vectors DIR --peer-python PYTHON
        [--sets subj sst2 mr trec r8] [--repeats 3] [--clock cpu] [--threads N]

Both sides get the same training documents, take a tenth of them to choose by, and are tested on the same test
documents; of subj, which has no test split, a fifth drawn by a seed. Each fit runs in a process of its own,
with another seed in each repeat; imports are not of its time, reading the table is. model2vec trains with its
defaults. Ours is a whole run, from a configuration to the run folder with its checkpoints, without pictures,
with the settings in OURS, which were chosen on validation documents of seed 0; seconds_with_composing has
Hydra's composing of the configuration besides. Without --mirror and --vectors, sets and table are made up,
and accuracy has no aim.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import documents
import numpy as np
import pyarrow as pa
from measuring import MODEL2VEC, Missing, Results, at_least_one, options, ours, peer, read

SETS = ["subj", "sst2", "mr", "trec", "r8"]
OURS = [
    "experiment=front_ends", "embedding=ngrams", "embedding.ngram_dim=32", "embedding.buckets=50000",
    "optimizer.lr=0.005", "trainer.max_epochs=12", "callbacks.early_stopping.patience=1",
]  # fmt: skip


def splits(given: Any, name: str) -> dict[str, tuple[pa.Array, np.ndarray]]:
    """Training and test documents of a set."""
    mirror, most = given.mirror, given.documents
    if mirror is None:
        return {split: documents.read(None, name, split, most or 2000) for split in ("train", "test")}
    found = {"train": documents.read(mirror, name, "train", sys.maxsize)}
    if (mirror / name / "test.parquet").is_file():
        found["test"] = documents.read(mirror, name, "test", sys.maxsize)
    texts, labels = found["train"]
    order = np.random.default_rng(0).permutation(len(texts))  # files may be sorted by class
    parts = {"train": order}
    if "test" not in found:
        parts = {"train": order[len(order) // 5 :], "test": order[: len(order) // 5]}
    return found | {split: (texts.take(pa.array(rows)), labels[rows]) for split, rows in parts.items()}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="some of these")
    parser.add_argument("--documents", type=at_least_one, help="of a set that is made up")
    parser.add_argument("--settings", nargs="*", default=OURS, help="overrides of our side")
    given = read(parser, {"sets": ["trec"], "documents": 60})
    results = Results("small_sets", given, ["lightning", "tokenizers"], MODEL2VEC)
    if given.vectors is None:
        results.leave_out("model2vec", "give --vectors, a table that it can begin with")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = given.vectors or documents.write_vectors(folder / "vectors.txt", 2000, 16)
        for name in given.sets:
            paths = {split: folder / f"{name}.{split}.json" for split in ("train", "test")}
            for split, (texts, labels) in splits(given, name).items():
                documents.write_json(paths[split], texts.to_pylist(), labels)
                documents.write_table(folder / f"{name}.{split}.parquet", texts, labels)
            for seed in range(given.repeats):
                words = [*given.settings, f"embedding.vectors={table}", f"seed={seed}"]
                if given.threads:
                    words.append(f"threads={given.threads}")
                train = folder / f"{name}.train.parquet"
                results.add(name, "textbed", **ours(given, "fit_textbed", train, paths["test"], *words))
                if "model2vec" in results.missing:
                    continue
                try:
                    figures = peer(given, "fit_model2vec", table, paths["train"], paths["test"], seed)
                    results.add(name, "model2vec", **figures)
                except Missing as why:
                    results.leave_out("model2vec", why)
    for name in given.sets:
        sides = (name, "model2vec"), (name, "textbed")
        results.ratio(f"{name}: model2vec / textbed", *sides, aim=">= 10")
        # documents that are made up are no measure of how well anything learns
        if given.mirror and "model2vec" in results.cases[name]:
            means = [statistics.mean(results.cases[name][side]["accuracy"]) for _, side in reversed(sides)]
            results.aim(f"{name}: accuracy above model2vec", means[0] - means[1], ">= 0")
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
