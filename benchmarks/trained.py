"""Runs for the benchmarks: as ``python train.py`` makes them, inside a process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT


def on(path: Path) -> list[str]:
    """Overrides for a Parquet file with the columns ``text`` and ``label``."""
    return ["data=parquet", f"data.path='{path}'", "data.text=[text]", "data.label=label"]


def train(overrides: Sequence[str], folder: Path) -> Path:
    """Make a run below ``folder``, without a logger and a report, and say nothing; return its folder."""
    from hydra import compose, initialize_config_dir

    import textbed.schema  # noqa: F401  the schema must be registered before anything is composed
    from textbed import config
    from textbed.training import train

    usual = [
        f"paths.runs='{folder / 'runs'}'", f"paths.cache='{folder / 'cache'}'", "trainer=cpu", "logger=none",
        "report.embedding=false",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = config.check(compose("train", [*usual, *overrides]))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        made = train(cfg, [*usual, *overrides])
    assert made is not None
    print(made, file=sys.stderr)
    return made
