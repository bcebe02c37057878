"""The bare script of benchmarks/start.py: imports, a Parquet file, one step of a mean-pooled table.

Words are cut and numbered for the documents of the step alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

clock, path, modules, documents, dim = sys.argv[1:]
for name in modules.split(","):
    importlib.import_module(name)

import pyarrow.parquet as pq  # noqa: E402  what is measured comes first
import torch  # noqa: E402
from torch import nn  # noqa: E402

table = pq.read_table(path, columns=["text", "label"])
order = torch.randperm(len(table))[: int(documents)].tolist()
rows: dict[str, int] = {}
ids, offsets = [], [0]
for text in table["text"].take(order).to_pylist():
    ids += [rows.setdefault(word, len(rows)) for word in text.lower().split()]
    offsets.append(len(ids))
labels = torch.tensor(table["label"].take(order).to_pylist())
# as many rows as the run's vocabulary has, within a few per cent
embedding = nn.EmbeddingBag(50_000, int(dim), mode="mean", include_last_offset=True)
linear = nn.Linear(int(dim), 2)
optimizer = torch.optim.Adam([*embedding.parameters(), *linear.parameters()])
loss = nn.functional.cross_entropy(linear(embedding(torch.tensor(ids), torch.tensor(offsets))), labels)
loss.backward()
optimizer.step()
os.write(1, json.dumps(sorted(sys.modules)).encode() + b"\n")
os._exit(0)
