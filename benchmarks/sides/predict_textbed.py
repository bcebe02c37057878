"""Our side of benchmarks/prediction.py: a run folder over texts, all at once and one at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import predicting

import textbed

clock, folder, texts, singles = sys.argv[1:]
model = textbed.load(folder)
strings, labels = json.loads(Path(texts).read_text())


def one(text: str) -> None:
    model.predict([text])


print(json.dumps(predicting(clock, model.predict, one, strings, labels, int(singles))))
