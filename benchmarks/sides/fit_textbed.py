"""Our side of benchmarks/small_sets.py: a whole run without its test."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch._dynamo  # noqa: F401  imports are not of the time, nor the one of torch's first optimizer
import trained
from measuring import CLOCKS, accuracy, peak_mb

import textbed.training  # noqa: F401  the run's
from textbed.runs.model import load

clock, train, test, *overrides = sys.argv[1:]
with tempfile.TemporaryDirectory() as place:
    begin = CLOCKS[clock]()
    given = [*trained.on(Path(train)), *overrides, "data.test=0", "test=false"]
    cfg = trained.configured(given, Path(place))
    start = CLOCKS[clock]()
    run = trained.train(cfg)
    end = CLOCKS[clock]()
    tests, truth = json.loads(Path(test).read_text())
    found = accuracy(load(run).predict(tests), truth)
    figures = json.loads((run / "metrics.json").read_text())
print(
    json.dumps(
        {
            "seconds": end - start,
            "seconds_with_composing": end - begin,
            "accuracy": found,
            "validation": 100 * figures["val/accuracy"],
            "epochs": figures["epochs"],
            "peak_mb": peak_mb(),
        }
    )
)
