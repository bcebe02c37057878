"""Tokenizing while the rest is imported: a copy of the process fills the cache of encoded texts meanwhile.

Texts that were never tokenized take about as long to tokenize as torch and Lightning to import, and neither
needs the other. The copy is made before either is there, does what ``TextDataModule.setup`` begins with, and
leaves; the run then finds everything in the cache, and looks at it as ever. What goes wrong in the copy goes
wrong in the run again, which reports it. ``TEXTBED_PLAIN_START=1`` in the environment: no copy is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from textbed.imports import is_plain

LAUNCHERS = ("WORLD_SIZE", "LOCAL_RANK", "RANK", "SLURM_PROCID")  # one process of several: the first fills it


def _marker(cfg: DictConfig) -> Path:
    """A file in the cache that says: this was tokenized. A mistake in it costs time alone."""
    settings = OmegaConf.to_yaml(OmegaConf.create([cfg.data, cfg.tokenizer]), resolve=True)
    name = hashlib.sha256(settings.encode()).hexdigest()[:32]
    return Path(cfg.paths.cache).expanduser() / "ahead" / name


def _pays(cfg: DictConfig) -> bool:
    """Whether there is something to do, on the disk, and a process can be copied (Linux, no threads)."""
    wanted = not is_plain() and not any(name in os.environ for name in LAUNCHERS)
    there = cfg.data.source != "disk" and (cfg.data.source != "hub" or cfg.data.mirror is not None)
    fresh = "torch" not in sys.modules  # else nothing is left to import
    copied = sys.platform == "linux" and threading.active_count() == 1
    return wanted and there and fresh and copied and not _marker(cfg).exists()


def _fill_cache(cfg: DictConfig) -> None:
    from textbed.data.preparation import prepare

    prepare(cfg.data, cfg.tokenizer, Path(cfg.paths.cache))
    _marker(cfg).parent.mkdir(parents=True, exist_ok=True)
    _marker(cfg).touch()


@contextlib.contextmanager
def tokenizing(cfg: DictConfig) -> Iterator[None]:
    """Fill the cache for a run of ``cfg`` during the block, which is to import the rest."""
    if not _pays(cfg):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            _fill_cache(cfg)
            code = 0
        finally:
            os._exit(code)  # nothing of the run is to be cleared up twice
    try:
        yield
        import pandas  # noqa: F401  pyarrow will, at its first array from Python: 0.2 s, and here there is time
    finally:
        os.waitpid(child, 0)
