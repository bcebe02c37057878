"""Configurations are composed here as on the command line: by Hydra, from the files in ``configs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import textbed.schema  # noqa: F401  the schema must be registered before anything is composed

ROOT = Path(__file__).parent.parent


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Compose ``configs/train.yaml`` with overrides as they stand on the command line."""

    def build(*overrides: str, configs: Path = ROOT / "configs") -> DictConfig:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return compose("train", list(overrides))

    return build
