"""Run folders that no run made: what is read of one, with the values that a test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from textbed.runs.folder import RunFolder, write_json

HEADS = {
    "mean": {"_target_": "textbed.heads.pooling.Pooling", "modes": ["mean"]},
    "max": {"_target_": "textbed.heads.pooling.Pooling", "modes": ["max"]},
    "gru": {"_target_": "textbed.heads.recurrent.Recurrent", "hidden": 100},
}


def make_run(
    root: Path,
    metrics: Mapping[str, Any] | float | None = 0.5,
    *,
    name: str = "trial",
    head: str = "mean",
    embedding: str = "random",
    seed: int = 0,
    status: str = "finished",
    info: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    chosen: bool = True,
) -> RunFolder:
    """A run folder; ``metrics`` may be the test accuracy alone. ``config`` sets dotted keys."""
    number = len(list(root.glob("*/*")))
    folder = RunFolder(root / name / f"20300101-{number:06d}-abcdef")
    folder.path.mkdir(parents=True)
    content: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "data": {
            "source": "csv",
            "path": "missing.csv",
            "name": "sst2",
            "folds": None,
            "fold": 0,
            "limit": None,
        },
        "embedding": {"_target_": "textbed.embedding.table.Table", "trainable": embedding != "frozen"},
        "head": dict(HEADS[head]),
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "trainer": {"max_epochs": 10},
        "callbacks": {"seeds": {"seed": seed}},
        "logger": {},
        "paths": {"runs": str(root), "cache": str(root / "cache")},
    }
    for key, value in (config or {}).items():
        *above, last = key.split(".")
        place = content
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    folder.config_file.write_text(yaml.safe_dump(content, sort_keys=False))
    write_json(
        folder.info_file,
        {
            "format": 1,
            "status": status,
            "data": "0123",
            "seed": seed,
            "versions": {"torch": "2.13.0"},
            "git": {"revision": "a" * 40, "dirty": False},
            "choices": {"head": head, "embedding": embedding, "data": "sst2"} if chosen else {},
            **(info or {}),
        },
    )
    if metrics is not None:
        folder.write_metrics(metrics if isinstance(metrics, Mapping) else {"test/accuracy": metrics})
    return folder


def predict(
    folder: RunFolder, labels: Sequence[int], predicted: Sequence[int], rows: Sequence[int] | None = None
) -> None:
    """Predictions on the test split; the class said has 0.8 of the probability."""
    said = np.asarray(predicted)
    classes = ["no", "yes", "maybe"][: max(*labels, *predicted, 1) + 1]
    probabilities = np.full((len(said), len(classes)), 0.2 / (len(classes) - 1))
    probabilities[np.arange(len(said)), said] = 0.8
    folder.write_predictions(
        "test", range(len(labels)) if rows is None else rows, labels, said, probabilities, classes
    )
