"""fastText's side of benchmarks/prediction.py: trained on a prepared file, it predicts prepared texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fasttext
from measuring import predicting

clock, train, dim, texts, singles = sys.argv[1:]
saved = Path(f"{train}.bin")
if not saved.exists():
    model = fasttext.train_supervised(
        input=train, epoch=5, lr=0.5, dim=int(dim), minCount=1, thread=1, verbose=0
    )
    model.save_model(str(saved))
    print("{}")
    sys.exit()
model = fasttext.load_model(str(saved))
strings, labels = json.loads(Path(texts).read_text())


def bulk(texts: list[str]) -> list[str]:
    return [found[0].removeprefix("__label__") for found in model.predict(texts)[0]]


def one(text: str) -> None:
    # what model.predict calls, which itself fails with NumPy 2
    model.f.predict(f"{text}\n", 1, 0.0, "strict")


print(json.dumps(predicting(clock, bulk, one, strings, labels, int(singles))))
