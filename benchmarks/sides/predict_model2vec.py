"""model2vec's side of benchmarks/prediction.py: a classifier over a static table, after one epoch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import predicting
from model2vec.train import StaticModelForClassification
from static_table import static_table

clock, table, train, texts, singles = sys.argv[1:]
model = StaticModelForClassification.from_static_model(model=static_table(table))
model.fit(*json.loads(Path(train).read_text()), max_epochs=1)
strings, labels = json.loads(Path(texts).read_text())


def one(text: str) -> None:
    model.predict([text])


print(json.dumps(predicting(clock, model.predict, one, strings, labels, int(singles))))
