"""Configurations are composed here as on the command line: by Hydra, from the files in ``configs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from running import Runs, documents, write_csv

import textbed.schema  # noqa: F401  the schema must be registered before anything is composed

ROOT = Path(__file__).parent.parent


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
    from textbed.runs import pictures

    for name in ("draw_learning_curves", "draw_confusion", "draw_table"):
        monkeypatch.setattr(pictures, name, lambda *args, **kwargs: None)
    return Runs(tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror, logger or key of the person who runs the tests."""
    for name in ("TEXTBED_MIRROR", "TEXTBED_CACHE", "WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 150 documents in three classes."""
    return write_csv(tmp_path_factory.mktemp("topics") / "topics.csv", documents(150))
