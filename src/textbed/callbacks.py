"""What happens around training: checkpoints, early stopping, seeds, a watch for NaN, times, and what the
person sees."""

from __future__ import annotations

import contextlib
import math
import os
import random
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor
from tqdm import tqdm

from textbed.errors import UserError, nearest
from textbed.runs.folder import RunFolder, is_rank_zero, progress_log, replacing, say, screen
from textbed.runs.weights import read_checkpoint

BEST, LAST = "best", "last"


def make_callbacks(settings: Mapping[str, Any] | None, folder: RunFolder) -> list[Callback]:
    """Make the callbacks of the config group ``callbacks``: name -> ``{_target_: ...}``; a null entry is left
    out.

    ``{folder}``, ``{id}`` and ``{name}`` in the settings are filled in from the run folder.
    """
    from hydra.utils import instantiate

    entries = folder.fill(dict(settings or {}))
    return [instantiate(dict(entry), _convert_="all") for entry in entries.values() if entry is not None]


# ------------------------------------------------------------------------------------------------------------
# Checkpoints
# ------------------------------------------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill or a full disk leaves the previous one whole, and reads none that
    could run code.

    Lightning's own writes to the system's temporary folder and moves the file from there, which is a copy
    where that is another file system, and holds all of it in memory once more. Give it to the trainer:
    ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path`` in one step.

        Raises:
            UserError: the disk is full, or the place cannot be written to.
        """
        with replacing(Path(path)) as temporary:
            try:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch reports a failed write as its own error, with the system's behind it
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values only, whatever ``weights_only`` says.

        Raises:
            UserError: it is missing, cut short, or holds anything else.
        """
        return read_checkpoint(path, map_location=map_location or "cpu")

    def peek(self, path: Any) -> dict[str, Any]:
        """The same for a look at its plain values: tensors stay on the disk until they are used.

        Raises:
            UserError: as ``load_checkpoint``.
        """
        return read_checkpoint(path, map_location="cpu", mmap=True)


class Checkpoints(ModelCheckpoint):
    """Keeps best.ckpt, by a figure of validation, and last.ckpt, of the last epoch that ended.

    Lightning's own ``save_last`` writes only in epochs that improved; going on from there would repeat the
    ones since. Where the last epoch is also the best, the two names are links to one file, so that it is
    written once. The folder may be moved between two runs.

    Args:
        dirpath: where they lie.
        monitor: the figure that decides which is the best.
        mode: max where more of it is better, min where less is.
    """

    def __init__(self, dirpath: str, monitor: str = "val/accuracy", mode: str = "max") -> None:
        super().__init__(
            dirpath=dirpath,
            filename=BEST,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        with warnings.catch_warnings():
            # a resumed run goes on in its own folder: that there is something in it is no surprise
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Without this, a run folder that was moved would lose its best figure, and overwrite best.ckpt with a
        # worse one.
        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        state = dict(state_dict, dirpath=self.dirpath)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            _check_monitor(self, trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        before = self.best_model_score
        with warnings.catch_warnings():
            # an epoch without validation has no figure to go by; last.ckpt is written all the same
            warnings.filterwarnings("ignore", message=".*could not find the monitored key")
            super().on_train_epoch_end(trainer, pl_module)
        improved = self.best_model_score is not before
        assert self.dirpath is not None
        last = Path(self.dirpath) / f"{LAST}{self.FILE_EXTENSION}"
        best = Path(self.best_model_path)
        self.last_model_path = str(last)
        if not trainer.strategy.broadcast(improved and best.is_file() and _link(best, last)):
            trainer.save_checkpoint(last)


def _link(source: Path, target: Path) -> bool:
    # Both are only ever replaced as a whole, so writing one later leaves the other as it is.
    if not is_rank_zero():
        return True
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:  # a file system without links
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def _check_monitor(callback: Checkpoints | StopEarly, trainer: pl.Trainer) -> None:
    known = sorted(str(key) for key in trainer.callback_metrics if key.startswith("val/"))
    if callback.monitor not in trainer.callback_metrics and known:
        raise UserError(
            f"callbacks: monitor={callback.monitor!r} of {type(callback).__name__} is no figure of this run; "
            f"expected one of {', '.join(known)}.{nearest(callback.monitor, known)}"
        )


class StopEarly(EarlyStopping):
    """Stops when a figure of validation has not improved for a while.

    A run that had stopped and is resumed does not train on, unless it is given more patience: then that
    counts, not the patience of the checkpoint.

    Args:
        monitor: the figure.
        mode: max where more of it is better, min where less is.
        patience: validations without improvement after which training stops.
        min_delta: the least change that counts as an improvement.
    """

    def __init__(
        self, monitor: str = "val/accuracy", mode: str = "max", patience: int = 3, min_delta: float = 0.0
    ) -> None:
        # not strict: without validation there is nothing to stop by; a misspelt figure is found by
        # _check_monitor
        super().__init__(monitor, mode=mode, patience=patience, min_delta=min_delta, strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        diverged = self.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC
        if diverged or self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True
            say(f"early stopping had ended this run: {self.monitor} had not improved {self.wait_count} times")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            _check_monitor(self, trainer)
        super().on_validation_end(trainer, pl_module)


# ------------------------------------------------------------------------------------------------------------
# Seeds
# ------------------------------------------------------------------------------------------------------------


class SeedSteps(Callback):
    """Seeds every training step from (seed, epoch, batch, process) alone.

    A resumed run then draws the same dropout masks as one that was never interrupted, wherever it goes on. 2
    to 3 µs a step on the CPU. NumPy's and Python's generators are seeded once an epoch.

    Args:
        seed: the run's seed; 0 counts as any other.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the start of the epoch: an iterator over batches draws a random number when it is made, which
        # a resumed run does earlier than one that came there by itself.
        from textbed.network import part_seed

        seed = part_seed(self.seed, f"step {trainer.current_epoch}/{batch_idx}/{trainer.global_rank}")
        # torch.manual_seed would do the same over every backend there is, and take ten times as long
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(seed)
        if batch_idx == 0:
            np.random.seed(seed % 2**32)
            random.seed(seed)


# ------------------------------------------------------------------------------------------------------------
# NaN
# ------------------------------------------------------------------------------------------------------------


class NonFiniteLoss(UserError):
    """The training loss, or a weight, became NaN or infinite.

    Attributes:
        epoch, batch_idx: where, both from 0.
        rows: rows of the batch's documents in the training split; empty where the batch does not carry them,
            or it was a weight.
    """

    def __init__(self, message: str, epoch: int, batch_idx: int, rows: list[int]) -> None:
        super().__init__(message)
        self.epoch, self.batch_idx, self.rows = epoch, batch_idx, rows


class StopOnNaN(Callback):
    """Stops the run when the training loss is NaN or infinite, before any checkpoint is written with it.
    A checkpoint's weights are looked at too, which reads them once.

    On the CPU every step is looked at; that costs a microsecond. Elsewhere that would make the CPU wait for
    the device at each step; there the losses since the last look are looked at every ``log_every_n_steps``
    steps, and before each validation and each checkpoint.

    Args:
        every_step: look at every step: true, false, or null for "on the CPU". Several processes never do:
        they have to
            stop together.

    Raises:
        NonFiniteLoss: names epoch, batch and rows, and the checkpoint to go on from.
    """

    def __init__(self, every_step: bool | None = None) -> None:
        self.every_step = every_step
        self._window: list[tuple[int, Tensor, Tensor | None]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._window.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        rows = getattr(batch, "rows", None)
        every_step = loss.device.type == "cpu" if self.every_step is None else self.every_step
        if every_step and trainer.world_size == 1:
            if not math.isfinite(loss.item()):
                self._stop(trainer, batch_idx, float(loss), rows)
            return
        self._window.append((batch_idx, loss.detach(), rows))
        if len(self._window) >= max(getattr(trainer, "log_every_n_steps", 50), 1):
            self._look(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer)  # comes before anything is written
        # The step after a finite loss may have gone too far, and the next loss would show it too late.
        bad = not all(bool(weight.isfinite().all()) for weight in pl_module.parameters())
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            epoch = trainer.current_epoch
            raise NonFiniteLoss(
                f"the weights became NaN or infinite in epoch {epoch + 1}, after a finite loss: a smaller "
                f"optimizer.lr or trainer.gradient_clip_val=1 may help. {_where_to_go_on(trainer)}",
                epoch,
                trainer.fit_loop.batch_idx,
                [],
            )

    def _look(self, trainer: pl.Trainer) -> None:
        if not self._window:
            return
        window, self._window = self._window, []
        bad = torch.stack([loss.float() for _, loss, _ in window]).isfinite().logical_not().cpu()
        # All processes stop together: one that stopped alone would leave the others waiting for it.
        if not trainer.strategy.reduce_boolean_decision(bool(bad.any()), all=False):
            return
        found = None
        if bad.any():
            batch_idx, loss, rows = window[int(bad.int().argmax())]
            found = (batch_idx, float(loss), None if rows is None else rows.cpu())
        if trainer.world_size > 1:  # the process that speaks may not be the one whose loss it is
            everywhere: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everywhere, found)
            found = min((one for one in everywhere if one is not None), key=lambda one: one[0])
        assert found is not None
        self._stop(trainer, *found)

    def _stop(self, trainer: pl.Trainer, batch_idx: int, loss: float, rows: Tensor | None) -> None:
        epoch = trainer.current_epoch
        documents = [] if rows is None else [int(row) for row in rows]
        shown = ", ".join(map(str, documents[:10])) + (", ..." if len(documents) > 10 else "")
        where = f" (rows {shown} of the training split)" if documents else ""
        raise NonFiniteLoss(
            f"the training loss became {'NaN' if math.isnan(loss) else 'infinite'} in epoch {epoch + 1}, "
            f"batch {batch_idx + 1}{where}: a smaller optimizer.lr or trainer.gradient_clip_val=1 may help. "
            f"{_where_to_go_on(trainer)}",
            epoch,
            batch_idx,
            documents,
        )


def _where_to_go_on(trainer: pl.Trainer) -> str:
    kept = getattr(trainer.checkpoint_callback, "last_model_path", "") or ""
    if not kept or not Path(kept).exists():
        return "No epoch had ended before, so there is no checkpoint to go on from."
    return (
        f"The last good checkpoint is kept, {kept}; go on from it with: python train.py "
        f"resume={Path(kept).parent.parent} trainer.gradient_clip_val=1"
    )


# ------------------------------------------------------------------------------------------------------------
# Times
# ------------------------------------------------------------------------------------------------------------


class Timing(Callback):
    """Measures where the time goes, and the speed of training without its warm-up.

    ``seconds/fit`` is training alone, with what is written after an epoch. What comes before the end of the
    first ``warmup`` steps of a process is ``seconds/warmup``, unless it was all; validation during training
    is ``seconds/validation``. They go on counting in a resumed run. Speeds are taken between the end of the
    first ``warmup`` steps and the end of training in each epoch, with the device waited for at both ends, and
    are those of all processes together; where there were no more steps than that, there are none.

    Args:
        warmup: steps at the start of a process that do not count: they compile, allocate and fill caches.
    """

    def __init__(self, warmup: int = 5) -> None:
        self.warmup = warmup
        self.seconds: dict[str, float] = {}
        self.steps = self.documents = self.tokens = 0
        self.measured = 0.0
        self._window_counts = [0, 0]
        self._seen = 0
        self._fit_before = 0.0
        self._stage = "fit"
        self._window: float | None = None
        self._starts: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``seconds/<name>``: for what happens outside the trainer (data, setup,
        ...)."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - start)

    def figures(self) -> dict[str, float]:
        """Seconds by phase, and steps, documents and tokens per second of training."""
        found = {f"seconds/{name}": round(seconds, 3) for name, seconds in self.seconds.items()}
        if self.measured > 0:
            found["speed/steps_per_second"] = self.steps / self.measured
            if self.documents:
                found["speed/documents_per_second"] = self.documents / self.measured
            if self.tokens:  # none where documents are pooled once
                found["speed/tokens_per_second"] = self.tokens / self.measured
        return found

    def state_dict(self) -> dict[str, Any]:
        seconds = {
            name: self.seconds[name] for name in ("warmup", "fit", "validation") if name in self.seconds
        }
        if "fit" in self._starts:
            seconds["fit"] = seconds.get("fit", 0.0) + time.perf_counter() - self._starts["fit"]
        counts = {"steps": self.steps, "documents": self.documents, "tokens": self.tokens}
        return {"seconds": seconds, "measured": self.measured, **counts}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stage = stage

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A test loads the callbacks' states with its checkpoint, and they are of an earlier epoch.
        if self._stage != "fit":
            return
        self.seconds.update(state_dict["seconds"])
        self.measured = state_dict["measured"]
        self.steps, self.documents, self.tokens = (
            state_dict[key] for key in ("steps", "documents", "tokens")
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._starts["fit"] = time.perf_counter()
        self._fit_before = self.seconds.get("fit", 0.0)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end("fit")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._starts["test"] = time.perf_counter()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end("test")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        for name in list(self._starts):
            self._end(name)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open_window(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._seen == self.warmup:
            self._end_warmup(pl_module)
        if self._window is None:
            if self._seen >= self.warmup:
                self._open_window(pl_module)
            return
        self.steps += 1
        if hasattr(batch, "offsets"):
            self._window_counts[0] += len(batch) if batch.rows is None else batch.rows.shape[0]
            self._window_counts[1] += batch.ids.shape[0]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_window(trainer, pl_module)
        if trainer.state.fn == "fit" and "fit" in self._starts:
            self._end("fit")
            self._starts["validation"] = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "validation" in self._starts:
            self._end("validation")
            self._starts["fit"] = time.perf_counter()
            self._open_window(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close_window(trainer, pl_module)

    def _end_warmup(self, pl_module: pl.LightningModule) -> None:
        _wait_for(pl_module.device)
        self._end("fit")
        self._add("warmup", self.seconds["fit"] - self._fit_before)
        self.seconds["fit"] = self._fit_before
        self._starts["fit"] = time.perf_counter()

    def _open_window(self, pl_module: pl.LightningModule) -> None:
        if self._seen >= self.warmup:
            _wait_for(pl_module.device)
            self._window = time.perf_counter()

    def _close_window(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._window is None:
            return
        _wait_for(pl_module.device)
        self.measured += time.perf_counter() - self._window
        self._window = None
        counts, self._window_counts = self._window_counts, [0, 0]
        if trainer.world_size > 1:
            everywhere = torch.tensor(counts, device=pl_module.device)
            counts = trainer.strategy.reduce(everywhere, reduce_op="sum").tolist()
        self.documents += counts[0]
        self.tokens += counts[1]

    def _end(self, name: str) -> None:
        start = self._starts.pop(name, None)
        if start is not None:
            self._add(name, time.perf_counter() - start)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# ------------------------------------------------------------------------------------------------------------
# What the person sees
# ------------------------------------------------------------------------------------------------------------


class _Bar(tqdm):
    monitor_interval = 0  # no thread beside the run


class Progress(ProgressBar):
    """A line for each epoch, and on a terminal a bar with the loss and the validation figure while it lasts.

    All on stderr. The bar is drawn by time, not by steps, so that it costs the same however fast a step is.

    Args:
        bar: true or false; null is true where stderr is a terminal.
        refresh_seconds: time between two drawings of the bar. Each waits for the device, to read the loss.
    """

    def __init__(self, bar: bool | None = None, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self._wanted = screen().isatty() if bar is None else bar
        self._refresh_seconds = refresh_seconds
        self._enabled = True
        self._bar: _Bar | None = None
        self._next = 0.0
        self._shown: dict[str, str] = {}
        self._pending: int | None = None
        self._best_before: Any = None
        self._validated = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        self._say(sep.join(map(str, args)))

    # -- training --------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer)
        self._best_before = getattr(trainer.checkpoint_callback, "best_model_score", None)
        self._open(f"epoch {_epoch(trainer, trainer.current_epoch)}", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or time.perf_counter() < self._next:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._shown["loss"] = f"{loss.item():.3f}"
        self._draw(batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The line waits until the module has logged the epoch's loss and the checkpoint has been written.
        self._close()
        self._pending = trainer.current_epoch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()
        self._pending = None

    # -- evaluation ------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._open("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None and time.perf_counter() >= self._next:
            self._draw(batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._close()
        self._validated = True
        name = _figure(trainer)
        if name in trainer.callback_metrics:
            self._shown[name.replace("/", " ")] = f"{float(trainer.callback_metrics[name]):.3f}"

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown.clear()
        self._open("test", sum(trainer.num_test_batches))

    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    # -- drawing ---------------------------------------------------------------------------------------------

    def _open(self, title: str, total: float) -> None:
        self._close()
        if self._wanted and self._enabled:
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            if math.isinf(total):
                form = "{desc}: {n_fmt} [{elapsed}{postfix}]"
            self._bar = _Bar(
                desc=title,
                total=None if math.isinf(total) else int(total),
                file=screen(),
                leave=False,
                dynamic_ncols=True,
                bar_format=form,
                mininterval=0,
            )
            self._next = time.perf_counter() + self._refresh_seconds

    def _draw(self, done: int) -> None:
        assert self._bar is not None
        self._bar.n = done
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.refresh()
        self._next = time.perf_counter() + self._refresh_seconds

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tell(self, trainer: pl.Trainer) -> None:
        """Show the line of the epoch that ended."""
        if self._pending is None:
            return
        epoch, self._pending = self._pending, None
        figures = trainer.callback_metrics
        line = [f"epoch {_epoch(trainer, epoch)}"]
        train = next((figures[key] for key in ("train/loss_epoch", "train/loss") if key in figures), None)
        if train is not None:
            line.append(f"train loss {_short(float(train))}")
        if self._validated:
            self._validated = False
            shown = dict.fromkeys(key for key in ("val/loss", _figure(trainer)) if key in figures)
            line.extend(f"{key.replace('/', ' ')} {_short(float(figures[key]))}" for key in shown)
            if getattr(trainer.checkpoint_callback, "best_model_score", None) is not self._best_before:
                line.append("(best)")
        self._say("  ".join(line))

    def _say(self, line: str) -> None:
        if not self._enabled:
            return
        tqdm.write(line, file=screen())  # above the bar, where there is one
        screen().flush()
        progress_log.info(line)


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"


def _epoch(trainer: pl.Trainer, epoch: int) -> str:
    limit = trainer.max_epochs
    return f"{epoch + 1}/{limit}" if limit is not None and limit > 0 else str(epoch + 1)


def _figure(trainer: pl.Trainer) -> str:
    """The figure of validation that this run goes by."""
    return getattr(trainer.checkpoint_callback, "monitor", None) or "val/accuracy"
