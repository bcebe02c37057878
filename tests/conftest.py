"""Configurations are composed here as on the command line: by Hydra, from the files in ``configs``."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from running import Runs, documents, on, write_csv

import textbed.schema  # noqa: F401  the schema must be registered before anything is composed
from textbed.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent

# The same examples each time; others with --hypothesis-profile=default --hypothesis-seed=NUMBER.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws hangs neither on the tests before it nor on chance."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Compose ``configs/train.yaml`` with overrides as they stand on the command line."""

    def build(*overrides: str, configs: Path = ROOT / "configs") -> DictConfig:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return compose("train", list(overrides))

    return build


@pytest.fixture
def runs(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs in the test's own folder, without pictures: they take longer than all the rest of a small run."""
    without_pictures(monkeypatch)
    return Runs(tmp_path)


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    from textbed.runs import pictures

    for name in ("draw_learning_curves", "draw_confusion", "draw_table"):
        patch.setattr(pictures, name, lambda *args, **kwargs: None)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror, logger or key of the person who runs the tests."""
    for name in ("TEXTBED_MIRROR", "TEXTBED_CACHE", "WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 150 documents in three classes."""
    return write_csv(tmp_path_factory.mktemp("topics") / "topics.csv", documents(150))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """Finished runs to look at, not to change, made when first asked for: ``words`` is a plain one,
    ``pairs`` reads pairs of texts in subwords, ``multilabel`` has several classes a document, in characters.
    """
    folder = tmp_path_factory.mktemp("trained")
    made: dict[str, RunFolder] = {}

    def run(name: str) -> RunFolder:
        if name not in made:
            rows = documents(150)
            if name == "words":
                given = on(write_csv(folder / "words.csv", rows), "data.eval_batch_size=8")
            elif name == "pairs":
                pairs = [(one, two, label) for (one, label), (two, _) in itertools.pairwise(rows)]
                path = write_csv(folder / "pairs.csv", pairs, ("first", "second", "label"))
                small = ["tokenizer=subwords", "tokenizer.vocabulary_size=300"]
                given = [*on(path, "data.text=[first,second]"), *small]
            else:
                path = folder / "multilabel.jsonl"
                lines = [
                    {"text": f"{one} {two}", "label": sorted({label, other})}
                    for (one, label), (two, other) in zip(rows, rows[5:], strict=False)
                ]
                path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
                given = [*on(path, "data=json"), "tokenizer=characters"]
            with pytest.MonkeyPatch.context() as patch:
                for key in ("TEXTBED_MIRROR", "TEXTBED_CACHE"):
                    patch.delenv(key, raising=False)
                without_pictures(patch)
                made[name] = Runs(folder)(*given, "report.embedding=false", "trainer.max_epochs=1")
        return made[name]

    return run
