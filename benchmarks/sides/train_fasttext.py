"""fastText's side of benchmarks/imdb.py: from raw texts in Parquet files to the accuracy on the test texts.

Prepared as its own examples do it for IMDB: HTML breaks dropped, signs apart, lower case. The training lines
are shuffled, since it reads them in their order and the file is sorted by label.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fasttext
import pyarrow.parquet as pq
from fasttext_lines import fasttext_line

_, mirror, folder, threads, settings = sys.argv[1:]

start = time.perf_counter(), time.process_time()
for split in ("train", "test"):
    table = pq.read_table(Path(mirror) / "imdb" / f"{split}.parquet", columns=["text", "label"])
    documents = zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True)
    lines = [f"{fasttext_line(text, label)}\n" for text, label in documents]
    if split == "train":
        random.Random(0).shuffle(lines)
    (Path(folder) / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
prepared = time.perf_counter() - start[0], time.process_time() - start[1]
model = fasttext.train_supervised(
    f"{folder}/train.txt", epoch=5, lr=0.5, thread=int(threads), verbose=0, **json.loads(settings)
)
_, accuracy, _ = model.test(f"{folder}/test.txt")
print(json.dumps({"accuracy": 100 * accuracy, "wall_prepared": prepared[0], "cpu_prepared": prepared[1]}))
