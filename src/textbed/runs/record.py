"""The record of a run.

metrics.jsonl is the record: one JSON line for each call of ``log``, handed to the system at once, so that
SIGKILL loses nothing (a wandb run that is killed keeps 7 bytes of its first 7 seconds: its file grows in
blocks of 32 KiB). Everything else, metrics.csv included, is derived from it or stands beside it, as the
loggers of loggers.py do.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import time
from collections.abc import Mapping
from typing import IO, Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from textbed.errors import UserError
from textbed.runs.folder import RunFolder, is_rank_zero, plain, write_text, writing
from textbed.runs.lines import PLACES, read_lines


class RecordLogger(Logger):
    """Writes metrics.jsonl as figures come, and metrics.csv from it after each epoch.

    A line is ``{"step": 3, "epoch": 0, "time": 1700000000.123, "train/loss": 0.69, ...}``; step and epoch
    count from 0, time is in seconds since 1970. NaN and infinities are null, so that every line is JSON;
    :func:`textbed.runs.lines.read_metrics` gives them back as NaN.

    Args:
        folder: the run folder.
        resume_step: for a resumed run, the number of steps its checkpoint has seen: lines of later steps are
        cut, since those steps are
            made again.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None) -> None:
        super().__init__()
        self._folder = RunFolder(folder)
        self._file: IO[bytes] | None = None
        self._epoch: int | None = None
        self._table_at = -math.inf
        self._table_cost = 0.0
        if resume_step is not None and is_rank_zero():
            self._cut(resume_step)

    # Lightning joins these to find a place for what callbacks write: the run folder itself.
    name = property(lambda self: "")
    version = property(lambda self: "")
    save_dir = property(lambda self: str(self._folder.path))
    root_dir = property(lambda self: str(self._folder.path))
    log_dir = property(lambda self: str(self._folder.path))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line.

        Raises:
            UserError: the disk is full or the place cannot be written to. The record then ends with the last
            whole line.
        """
        figures = {key: plain(value) for key, value in metrics.items()}
        epoch = figures.pop("epoch", None)
        epoch = None if epoch is None else int(epoch)
        figures.pop("step", None)
        if not figures:
            return
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **figures}
        if epoch is not None and epoch != self._epoch:
            if self._epoch is not None:
                self._write_table_sometimes()
            self._epoch = epoch
        with writing(self._folder.record_file):
            if self._file is None:
                self._file = open(self._folder.record_file, "ab", buffering=0)  # noqa: SIM115 - open for the whole run
            size = os.fstat(self._file.fileno()).st_size
            data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
            try:
                if self._file.write(data) != len(data):
                    raise OSError(28, os.strerror(28))
            except OSError:
                with contextlib.suppress(OSError):  # half a line in the middle would spoil what comes later
                    os.ftruncate(self._file.fileno(), size)
                raise

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config as config.yaml."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write metrics.csv; after a failure as far as that is possible."""
        # after a failure the failure itself is what the person has to see
        with contextlib.nullcontext() if status == "success" else contextlib.suppress(UserError):
            self._write_table()

    def _cut(self, step: int) -> None:
        if not self._folder.record_file.exists():
            return
        kept = [
            line
            for line in read_lines(self._folder.record_file)
            if line.get("step") is not None and line["step"] < step
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_text(self._folder.record_file, text)
        self._write_table()

    def _write_table_sometimes(self) -> None:
        # Writing anew costs time in proportion to the record: at most a twentieth of the run goes into it.
        if time.perf_counter() - self._table_at > 20 * self._table_cost:
            self._write_table()

    def _write_table(self) -> None:
        if not self._folder.record_file.exists():
            return
        start = time.perf_counter()
        lines = list(read_lines(self._folder.record_file))
        columns = [*PLACES, *dict.fromkeys(key for line in lines for key in line if key not in PLACES)]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(columns)
        for line in lines:
            table.writerow(
                "" if key not in line else "nan" if line[key] is None and key not in PLACES else line[key]
                for key in columns
            )
        write_text(self._folder.table_file, text.getvalue())
        self._table_at = time.perf_counter()
        self._table_cost = self._table_at - start
