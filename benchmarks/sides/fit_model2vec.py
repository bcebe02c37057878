"""model2vec's side of benchmarks/small_sets.py: its own training of a static table, all else its defaults."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import CLOCKS, accuracy, peak_mb
from model2vec.train import StaticModelForClassification
from static_table import static_table

clock, table, train, test, seed = sys.argv[1:]
texts, labels = json.loads(Path(train).read_text())
tests, truth = json.loads(Path(test).read_text())
start = CLOCKS[clock]()
model = StaticModelForClassification.from_static_model(model=static_table(table))
model.fit(texts, labels, random_seed=int(seed))
seconds = CLOCKS[clock]() - start
found = accuracy(model.predict(tests), truth)
print(json.dumps({"seconds": seconds, "accuracy": found, "peak_mb": peak_mb()}))
