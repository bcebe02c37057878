"""Prediction in bulk and for one text, beside fastText and model2vec.

    python benchmarks/prediction.py [--mirror DIR] [--vectors DIR] [--peer-python PYTHON]
        [--documents 25000] [--trained 25000] [--one 500] [--dim 100]

Each side is loaded in a process of its own and gets the same list of texts, IMDB's test split or made-up
ones: all at once, and then some of them one at a time, of which the median counts. Ours is experiment=imdb
(words, a mean, a linear layer) after one epoch, through ``textbed.load(folder).predict``. fastText, as wide,
gets texts that were prepared for it outside of its time (lower case, signs apart); ours and model2vec get
them as they are. model2vec has word pieces, 256 columns and a layer of 512, its defaults over --vectors.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import documents
import numpy as np
import pyarrow as pa
import trained
from fasttext_lines import fasttext_line
from measuring import FASTTEXT, MODEL2VEC, Missing, Results, apart, at_least_one, options, ours, peer, read


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--documents", type=at_least_one, default=25_000, help="texts to classify")
    parser.add_argument("--trained", type=at_least_one, default=25_000, help="texts to train on before")
    parser.add_argument("--one", type=at_least_one, default=500, help="texts that are given one at a time")
    parser.add_argument("--dim", type=at_least_one, default=100, help="columns of the table")
    given = read(parser, {"documents": 60, "trained": 80, "one": 5, "dim": 4})
    results = Results("prediction", given, ["pyarrow", "numpy"], [*FASTTEXT, *MODEL2VEC])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts, labels = documents.read(given.mirror, "imdb", "test", given.documents)
        train, classes = documents.read(given.mirror, "imdb", "train", given.trained)
        order = np.random.default_rng(0).permutation(len(train))  # the file may be sorted by class
        train, classes = train.take(pa.array(order)), classes[order]
        documents.write_table(folder / "train.parquet", train, classes)
        documents.write_json(folder / "texts.json", texts.to_pylist(), labels)
        documents.write_json(folder / "some.json", train[:500].to_pylist(), classes[:500])
        prepared = [fasttext_line(text) for text in texts.to_pylist()]
        documents.write_json(folder / "prepared.json", prepared, labels)
        with (folder / "train.txt").open("w", encoding="utf-8") as file:
            for text, label in zip(train.to_pylist(), classes, strict=True):
                file.write(f"{fasttext_line(text, label)}\n")
        overrides = ["experiment=imdb", "trainer.max_epochs=1", f"embedding.dim={given.dim}", "test=false"]
        cfg = trained.configured([*overrides, *trained.on(folder / "train.parquet")], folder)
        run, _ = apart(trained.train, cfg)
        peers = {
            "fasttext": ["predict_fasttext", folder / "train.txt", given.dim, folder / "prepared.json"],
            "model2vec": ["predict_model2vec", given.vectors, folder / "some.json", folder / "texts.json"],
        }
        try:
            peer(given, *peers["fasttext"], given.one)  # it is trained and saved
        except Missing as why:
            results.leave_out("fasttext", why)
        if given.vectors is None:
            results.leave_out("model2vec", "give --vectors, a table that it can begin with")
        for _ in range(given.repeats):
            sides = {"textbed": ours(given, "predict_textbed", run, folder / "texts.json", given.one)}
            for name, (script, *arguments) in peers.items():
                if name not in results.missing:
                    try:
                        sides[name] = peer(given, script, *arguments, given.one)
                    except Missing as why:
                        results.leave_out(name, why)
            for name, figures in sides.items():
                results.add("all at once", name, **figures["bulk"])
                results.add("one text", name, **figures["one"])
    for case in ("all at once", "one text"):
        for name in peers:
            aim = ">= 1" if case == "all at once" else None
            results.ratio(f"{case}: {name} / textbed", (case, name), (case, "textbed"), aim)
    results.aim("one text, milliseconds", results.median("one text", "textbed") * 1e3, "< 1")
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
