"""Lightning's training loop over batches with its usual case written out.

Lightning takes about a millisecond for a step of its own: every hook of every callback is looked up and
called in a profiler's context, whether anybody overrides it or not, and the optimizer is reached through four
wrappers. A step of a small model takes less. Here what one batch needs stands in one method: the same calls
in the same order, counters and logs included, so that the rest (validation, schedulers, checkpoints,
resuming, limits) is Lightning's own and meets the same state. Where a run is not the usual case, and for the
batch after a resume, Lightning's own method is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.classifier import TextClassifier

# Hooks around a step, in the order in which they come.
HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
# Methods of a module whose overriding makes it a case for Lightning itself.
OWN = ("backward", "optimizer_zero_grad", "on_before_batch_transfer", "on_after_batch_transfer")


class QuickLoop(Callback):
    """Has the trainer go through its batches by :class:`QuickEpochLoop`. Without it Lightning's loop does.

    The weights, figures, logs and checkpoints of a run are the same either way, to the last bit.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        loop = trainer.fit_loop.epoch_loop
        if stage == "fit" and type(loop) is _TrainingEpochLoop:
            loop.__class__ = QuickEpochLoop  # the same object: the trainer has filled it already


class QuickEpochLoop(_TrainingEpochLoop):
    """One epoch of training: on one device, in full precision, without accumulation or a profiler."""

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        module: Any = trainer.lightning_module
        self._usual = (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) is Precision
            and type(trainer.profiler) is PassThroughProfiler
            and trainer.accumulate_grad_batches == 1
            and getattr(type(module), "training_step", None) is TextClassifier.training_step  # returns a loss
            and module.automatic_optimization
            and trainer.log_every_n_steps > 0
            and not trainer.fast_dev_run
            and len(trainer.optimizers) == 1
            and not any(_is_overridden(module, name) for name in OWN)
            and trainer.strategy.model is module
        )
        # A module looks at each value for parameters before it keeps it as an attribute.
        self._state = vars(module)
        self._hooks = {name: self._calls_of(name) for name in HOOKS}
        self._schedulers = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
        # Whether nothing comes between two batches of an epoch but what is logged.
        self._undivided = (
            trainer.val_check_batch == trainer.num_training_batches
            and trainer.check_val_every_n_epoch is not None
            and trainer._val_check_time_interval is None
            and not any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        )

    def _calls_of(self, name: str) -> list[Callable[..., Any]]:
        """Those who override a hook, ready to be called: callbacks first, then the module."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        calls: list[Callable[..., Any]] = []
        for callback in trainer.callbacks:
            if _is_overridden(callback, name):
                method = getattr(callback, name)
                calls.append(lambda *given, method=method: method(trainer, module, *given))
        return [*calls, getattr(module, name)] if _is_overridden(module, name) else calls

    def _call(self, name: str, *given: Any) -> Any:
        """Call a hook; what the last one says, which is the module's where it has one."""
        said = None
        calls = self._hooks[name]
        if calls:
            before = self._state["_current_fx_name"]
            self._state["_current_fx_name"] = name  # for what is logged in it
            for call in calls:
                said = call(*given)
            self._state["_current_fx_name"] = before
        return said

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting or not self._usual:
            super().advance(data_fetcher)
            return
        trainer: Any = self.trainer
        module, progress = trainer.lightning_module, self.batch_progress
        logs = trainer._logger_connector
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        if not isinstance(batch, TokenBatch) or batch.ids.device != trainer.strategy.root_device:
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        logs.on_batch_start(batch)
        logs._current_fx = None
        if self._call("on_train_batch_start", batch, batch_idx) == -1:
            progress.increment_by(0, is_last_batch=True)
            skipped, output = True, None
        else:
            progress.increment_started()
            skipped, output = False, {"loss": self._optimize(module, batch, batch_idx)}
        progress.increment_processed()
        if self._schedulers:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skipped:
            raise StopIteration
        self._call("on_train_batch_end", output, batch, batch_idx)
        if logs._current_fx is not None:  # something has been logged since the batch began
            logs.on_batch_end()
        progress.increment_completed()
        if (self._batches_that_stepped + 1) % trainer.log_every_n_steps == 0 or trainer.should_stop:
            logs.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: Any) -> None:
        trainer = self.trainer
        between = self._usual and self._undivided and not self._num_ready_batches_reached()
        if between and not (trainer.should_stop or trainer.received_sigterm or self._skip_next_val):
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)

    def _optimize(self, module: pl.LightningModule, batch: Any, batch_idx: int) -> Tensor:
        """A step of the optimizer; the loss before it, detached."""
        trainer = self.trainer
        optimizer = trainer.optimizers[0]
        done = self.automatic_optimization.optim_progress.optimizer
        losses = []

        def closure() -> Tensor:
            with torch.enable_grad():
                self._state["_current_fx_name"] = "training_step"
                loss: Any = module.training_step(batch, batch_idx)
                self._state["_current_fx_name"] = None
                done.zero_grad.increment_ready()
                self._call("on_before_zero_grad", optimizer)
                done.zero_grad.increment_started()
                optimizer.zero_grad()
                done.zero_grad.increment_completed()
                self._call("on_before_backward", loss)
                loss.backward()
                self._call("on_after_backward")
            self._call("on_before_optimizer_step", optimizer)
            module.configure_gradient_clipping(
                optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
            losses.append(loss.detach())
            return losses[0]

        done.step.increment_ready()
        module.optimizer_step(trainer.current_epoch, batch_idx, optimizer, closure)
        done.step.increment_completed()
        return losses[0]


def _is_overridden(owner: Any, name: str) -> bool:
    base: Any = Callback if isinstance(owner, Callback) else pl.LightningModule
    return getattr(type(owner), name, None) is not getattr(base, name) or name in vars(owner)
