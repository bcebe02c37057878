"""Runs for the benchmarks: as ``python train.py`` makes them, inside a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT
from omegaconf import DictConfig


def on(path: Path) -> list[str]:
    """Overrides for a Parquet file with the columns ``text`` and ``label``."""
    return ["data=parquet", f"data.path='{path}'", "data.text=[text]", "data.label=label"]


def configured(overrides: Sequence[str], folder: Path) -> DictConfig:
    """The configuration of a run below ``folder``, without a logger and what is shown at the end."""
    from hydra import compose, initialize_config_dir

    import textbed.schema  # noqa: F401  the schema must be registered before anything is composed
    from textbed import config

    usual = [
        f"paths.runs='{folder / 'runs'}'", f"paths.cache='{folder / 'cache'}'", "trainer=cpu", "logger=none",
        "report.embedding=false", "report.pictures=false",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return config.check(compose("train", [*usual, *overrides]))


def train(cfg: DictConfig) -> Path:
    """Make the run without a word, and return its folder."""
    from textbed.training import train

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        made = train(cfg)
    assert made is not None
    return made
