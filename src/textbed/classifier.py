"""The LightningModule: front end -> head -> dropout -> linear, with loss, figures and optimizer.

Shape letters: B documents in the batch, P pairs (then B = 2P), H width of what the head returns, C classes, n
documents of a whole split.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import hydra.utils
import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics.classification as tm
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

from textbed.batch import TokenBatch
from textbed.data.loading import TokenLoader
from textbed.embedding import optimizers
from textbed.embedding.sharding import Shard
from textbed.embedding.table import FrontEnd, Table
from textbed.errors import UserError, nearest
from textbed.heads.base import Head
from textbed.network import Network
from textbed.pooled import PooledDocuments
from textbed.scheduling import GroupScheduler

CALIBRATION_BINS = 15
_FLUSH = 1 << 24
"""Probabilities that wait for the metrics on the device before they are worked in: 64 MiB."""


def balanced_weights(labels: np.ndarray, num_classes: int, multilabel: bool = False) -> Tensor:
    """Weights (C,) under which every class pulls alike.

    One label a document: n / (C * documents of the class), as scikit-learn's "balanced". Multi-label: for
    each class the weight of its positive documents, negatives / positives. A class without a training
    document counts as having one.
    """
    if multilabel:
        positives = np.maximum(labels.sum(axis=0, dtype=np.int64), 1)
        weights = np.maximum(len(labels) - positives, 1) / positives
    else:
        counts = np.bincount(labels, minlength=num_classes)
        weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes on."""

    make: Callable[..., Any]
    """Takes an optimizer and ``arguments``; returns a scheduler of torch."""
    arguments: Mapping[str, Any]
    """The value ``auto`` stands for the scheduler's steps in the whole run: optimizer steps, or epochs."""
    interval: str = "step"
    """After which of ``step`` and ``epoch`` the scheduler is asked."""
    monitor: str | None = None
    """The figure that a plateau scheduler looks at, after every validation; it has no ``interval``."""
    key: str = "scheduler"
    """Where it stands in the configuration, for messages."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, key: str = "scheduler") -> Schedule | None:
        """From the ``scheduler`` group: ``_target_``, ``interval``, ``monitor``, its own arguments."""
        if config is None:
            return None
        own = _plain(config)
        target, interval, monitor = own.pop("_target_"), own.pop("interval", "step"), own.pop("monitor", None)
        if interval not in ("step", "epoch"):
            raise UserError(
                f"{key}.interval={interval}: expected step or epoch.{nearest(interval, ('step', 'epoch'))}"
            )
        return cls(_class(target, key), own, interval, monitor, key)


def optimizer_from_config(config: Mapping[str, Any], rowwise: bool = False) -> Callable[[Any], Optimizer]:
    """From the ``optimizer`` group, ``_target_`` and arguments, a function of the parameters.

    ``rowwise`` takes the twin of torch's class that updates only touched rows where the gradient is sparse.
    """
    own = _plain(config)
    kind = _class(own.pop("_target_"), "optimizer")
    return functools.partial(optimizers.TWINS[kind] if rowwise else kind, **own)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    # An optimizer keeps its arguments, and a checkpoint may hold plain things only, not omegaconf's lists.
    if isinstance(config, DictConfig):
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return dict(config)


def _class(target: str, group: str) -> Any:
    try:
        return hydra.utils.get_class(target)
    except Exception as error:
        module, _, name = target.rpartition(".")
        near = nearest(name, dir(torch.optim if group == "optimizer" else torch.optim.lr_scheduler))
        raise UserError(
            f"{group}._target_={target}: there is no class of that name in {module or 'Python'}.{near}"
        ) from error


def _build(group: str, make: Callable[..., Any], first: Any, arguments: Mapping[str, Any]) -> Any:
    """Call ``make`` with a user's arguments, and say which of them it does not take."""
    known = inspect.signature(make).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for key in arguments:
            if key not in known:
                name = getattr(make, "__name__", str(make))
                raise UserError(f"{group}.{key}: {name} has no such argument.{nearest(key, known)}")
    try:
        return make(first, **arguments)
    except (TypeError, ValueError) as error:
        settings = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UserError(f"{group} ({settings}): {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the model said about each document of a split, in the order of rows."""

    rows: np.ndarray
    """(n,) int64: the documents' rows in their split."""
    labels: np.ndarray
    """(n,) int64, or (n, C) zeros and ones for multi-label."""
    probabilities: np.ndarray
    """(n, C) float32: softmax, or a sigmoid for each class for multi-label."""


class TextClassifier(Network, pl.LightningModule):
    """A text classifier of any front end and any head: a network and its training.

    Args:
        embedding: the front end, token ids to vectors.
        head: vectors of a batch to (B, H), with ``out_dim`` = H.
        num_classes: C.
        multilabel: a document may have any number of classes: sigmoid and binary cross-entropy instead of
            softmax and cross-entropy.
        pairs: batches hold pairs of texts (u, v), classified by (u, v, |u - v|, u * v): Conneau et al. 2017,
            arXiv:1705.02364.
        activation: on the head's outputs, before they are dropped: relu, tanh, gelu, or None.
        dropout: share of the head's outputs that are dropped in training.
        max_norm: largest L2 norm of the linear layer's weights for one class: after each step longer ones are
            shortened to it (Kim 2014, doi:10.3115/v1/D14-1181; Hinton et al. 2012, arXiv:1207.0580).
        label_smoothing: share of a target that is spread over all classes (multi-label: moved towards one
            half).
        class_weights: (C,) weights of the classes in the loss; for multi-label of each class's positive
            documents.
        optimizer: parameter groups to an optimizer, a ``functools.partial``; Adam at its defaults where None.
        schedule: of the learning rate; constant where None.
        table_lr, table_weight_decay: for the front end, where they are to differ from the optimizer's.
        table_schedule: of the front end's learning rate; then ``schedule`` is that of all else.
        class_names: for the figures by class; numbers where None.
        seed: decides the initial weights of the linear layer, whatever was built before it.

    The loss of a batch is its documents' mean, with class weights the weighted mean. ``train/loss_epoch``,
    ``val/loss`` and ``test/loss`` are that mean over all documents, smoothing and weights included, not a
    mean over batches. What the front end and the head add to the loss of training (a pull towards the first
    rows, a price for queries that overlap) is in none of them: it is logged apart, as ``train/penalty``.

    Figures are worked out over all documents at the end of an epoch and logged as ``val/...`` and
    ``test/...``: ``loss``, ``accuracy``, ``f1_macro``, ``f1_weighted``, ``mcc``, ``calibration_error`` (15
    bins, L1: Guo et al. 2017, arXiv:1706.04599); for multi-label also ``f1_micro`` and ``exact_match``,
    accuracy and MCC being over all pairs of document and class, at a threshold of one half. They are exact
    with any number of processes.

    After validation or test the module holds ``figures``, ``per_class``, ``confusion``, and, unless it was
    the validation inside a fit, ``predictions``. Every process holds them all.
    """

    def __init__(
        self,
        embedding: FrontEnd,
        head: Head,
        num_classes: int,
        *,
        multilabel: bool = False,
        pairs: bool = False,
        activation: str | None = None,
        dropout: float = 0.0,
        max_norm: float | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        optimizer: Callable[[Any], Optimizer] | None = None,
        schedule: Schedule | None = None,
        table_lr: float | None = None,
        table_weight_decay: float | None = None,
        table_schedule: Schedule | None = None,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise UserError(
                f"classifier.class_weights has {class_weights.numel()} numbers: expected one for each of the"
                f" {num_classes} classes."
            )
        if class_weights is not None and not bool(
            (class_weights >= 0).all() & class_weights.isfinite().all()
        ):
            raise UserError(
                f"classifier.class_weights={class_weights.tolist()}: expected numbers of at least 0."
            )
        super().__init__(
            embedding,
            head,
            num_classes,
            multilabel=multilabel,
            pairs=pairs,
            activation=activation,
            dropout=dropout,
            seed=seed,
        )
        # A process may have no document of a small split, and must take part in the sums all the same.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.label_smoothing = label_smoothing
        self.make_optimizer = optimizer or torch.optim.Adam
        self.schedule = schedule
        self.table_lr = table_lr
        self.table_weight_decay = table_weight_decay
        self.table_schedule = table_schedule
        self.thawing = [part for part in embedding.modules() if isinstance(part, Table) and part.thaws]
        self.class_names = [str(name) for name in class_names or range(num_classes)]
        self.max_norm = max_norm
        # Not saved: the configuration says them, and a checkpoint then fits a model without weights too.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.metrics = _metrics(num_classes, multilabel)

        self.figures: dict[str, float] = {}
        """The last validation's or test's figures by their logged names."""
        self.per_class: list[dict[str, Any]] = []
        """For each class its name (``class``), ``precision``, ``recall``, ``f1`` and ``support``, a count."""
        self.confusion: np.ndarray | None = None
        """(C, C) documents by true and predicted class; for multi-label (C, 2, 2), a table for each class."""
        self.predictions: Predictions | None = None
        self._loss_sum: Tensor | float = 0.0
        self._weight_sum: Tensor | float = 0.0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pooled: dict[str, PooledDocuments] = {}

    # ---- the model

    def _filled(self, batch: TokenBatch, split: str) -> TokenBatch:
        """The batch, with the fixed part of its documents where the data module left the tokens out.

        The first batch of a split has all its documents pooled: inside a step, so that precision and strategy
        are those of the steps.
        """
        if batch.pooled is None:
            return batch
        assert batch.rows is not None
        if split not in self._pooled:
            dataset = cast(Any, self.trainer).datamodule.sets[split]
            self._pooled[split] = PooledDocuments(dataset, self.embedding, self.head, self.device)
        return dataclasses.replace(batch, pooled=self._pooled[split][batch.rows])

    def loss_parts(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | float]:
        """Sum of the documents' losses, and the sum of their weights: the loss is the one by the other.

        In two parts because a mean over a split is the sums of both over its batches, not a mean of means.
        """
        logits = logits.float()
        weights: Any = self.class_weights
        if self.multilabel:  # labels come in half precision under some settings, which smoothing would round
            targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
            return losses / self.num_classes, float(labels.shape[0])
        losses = F.cross_entropy(
            logits, labels, weight=weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        # A batch may hold nothing but documents of weight 0; its loss is 0 then, not 0 / 0.
        return losses, float(labels.shape[0]) if weights is None else weights[labels].sum().clamp_min(1e-12)

    # ---- training

    def on_train_start(self) -> None:
        # An epoch that was cut off by an interruption goes on after the batches it has had.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        loader = self.trainer.train_dataloader
        if 0 < done < self.trainer.num_training_batches and isinstance(loader, TokenLoader):
            loader.skip(done)

    def on_train_epoch_start(self) -> None:
        self._loss_sum = self._weight_sum = 0.0

    def on_train_batch_start(self, batch: TokenBatch, batch_idx: int) -> None:
        # The trainer's clock alone decides what is frozen, so that a resumed run goes on as it was.
        for table in self.thawing:
            was_frozen = table.frozen
            table.set_clock(self.current_epoch, self.global_step)
            if was_frozen and not table.frozen:
                rank_zero_info(f"the table thaws: epoch {self.current_epoch + 1}, step {self.global_step:,}")

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        assert batch.labels is not None
        loss_sum, weight_sum = self.loss_parts(self(self._filled(batch, "train")), batch.labels)
        self._add(loss_sum, weight_sum)
        loss = loss_sum / weight_sum
        shown = loss.detach()
        trainer = self.trainer
        if trainer.world_size > 1:
            # Processes may have different numbers of documents: those left over at the end of an epoch, or as
            # many as a budget in tokens gives. DDP takes the mean of their gradients, which is that of one
            # process over all documents if each has its share of the sum. Costs the sending of two numbers.
            sums = torch.stack([loss_sum.detach(), torch.as_tensor(weight_sum).to(loss_sum)])
            torch.distributed.all_reduce(sums)
            shown = sums[0] / sums[1]
            loss = loss_sum * (trainer.world_size / sums[1])
            # DDP waits for a gradient of every parameter, and would never share that of one which began
            # without. So a frozen table gets zeros, at the price of a real gradient, and
            # on_before_optimizer_step takes them away.
            loss = sum((table.touch() for table in self.thawing if table.frozen), start=loss)
        penalties = [
            part for part in (self.embedding.penalty(batch), self.head.penalty()) if part is not None
        ]
        penalty = torch.stack(penalties).sum() if penalties else None
        # Lightning's log costs about a millisecond, as much as a small step: call it when it will be written.
        if trainer._logger_connector.should_update_logs:
            self.log("train/loss", shown, batch_size=1)
            if penalty is not None:
                self.log("train/penalty", penalty.detach(), batch_size=1)
        return loss if penalty is None else loss + penalty

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for table in self.thawing:
            if table.frozen:  # without a gradient there is no step, no decay and no state
                table.table.weight.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.max_norm is not None:  # here, so that no checkpoint comes between a step and this
            with torch.no_grad():
                self.linear.weight.renorm_(p=2, dim=0, maxnorm=self.max_norm)

    def on_train_end(self) -> None:
        if any(table.frozen for table in self.thawing):
            rank_zero_warn(
                "training ended before the table thawed; lower embedding.frozen_epochs or "
                "embedding.frozen_steps, or train longer (trainer.max_epochs, "
                "callbacks.early_stopping.patience)"
            )

    def on_train_epoch_end(self) -> None:
        self._log({"train/loss_epoch": self._mean_loss()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # For a checkpoint in the middle of an epoch, whose mean is to be of the whole epoch after a resume.
        checkpoint["train_loss_sums"] = self._sums().tolist()
        checkpoint["figures"] = {name: value for name, value in self.figures.items() if name[:4] == "val/"}
        self._change_state(checkpoint, lambda shard, part: shard.gather(part))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._pooled.clear()  # by other weights, and of splits that are not needed any more
        self._change_state(checkpoint, lambda shard, whole: whole[shard.kept])
        sums = checkpoint.get("train_loss_sums", [0.0, 0.0]) if self.global_rank == 0 else [0.0, 0.0]
        self._loss_sum, self._weight_sum = sums

    def _change_state(self, checkpoint: dict[str, Any], change: Callable[[Shard, Tensor], Tensor]) -> None:
        """Change the optimizer's state of tables that lie in parts; a checkpoint has it whole."""
        shards = {
            id(part.table.weight): part.shard for part in self.embedding.modules() if isinstance(part, Table)
        }
        for states in checkpoint.get("optimizer_states", []):
            for number, parameter in enumerate(self._table_parameters()):
                shard, state = shards.get(id(parameter)), states["state"].get(number)
                if shard is not None and state is not None:
                    states["state"][number] = {
                        name: change(shard, value) if torch.is_tensor(value) and value.ndim else value
                        for name, value in state.items()
                    }

    # ---- evaluation

    def on_validation_epoch_start(self) -> None:
        self._training_sums = (self._loss_sum, self._weight_sum)
        self._begin()

    def on_test_epoch_start(self) -> None:
        self._begin()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self._evaluate(self._filled(batch, "validation"))

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        self._ask_plateau()
        # Validation may come in the middle of a training epoch, whose sums are still needed.
        self._loss_sum, self._weight_sum = self._training_sums

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> dict[str, Tensor | None]:
        """Rows and probabilities (B, C) of a batch; it needs no labels."""
        return {"rows": batch.rows, "probabilities": self.probabilities(self(batch))}

    def _begin(self) -> None:
        self.metrics.reset()
        self._waiting, self._kept = [], []
        self._loss_sum = self._weight_sum = 0.0

    def _evaluate(self, batch: TokenBatch) -> None:
        assert batch.labels is not None
        assert batch.rows is not None
        if len(batch.rows) == 0:  # a process without a document; see OrderedBatches
            return
        logits = self(batch)  # (B, C)
        self._add(*self.loss_parts(logits, batch.labels))
        self._waiting.append((batch.rows, batch.labels, self.probabilities(logits)))
        if sum(len(rows) for rows, _, _ in self._waiting) * self.num_classes > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """Work the waiting documents into the metrics: many batches at once, an update costs about 1 ms."""
        if not self._waiting:
            return
        rows, labels, probabilities = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        self.metrics.update(probabilities, labels.long())
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._kept.append((rows.cpu(), labels.long().cpu(), probabilities.cpu()))

    def _finish(self, stage: str) -> None:
        self._flush()
        values = self.metrics.compute()
        confusion = values.pop("confusion")
        by_class = {name: values.pop(name).tolist() for name in ("precision", "recall", "f1")}
        self.confusion = confusion.cpu().numpy()
        support = confusion[:, 1].sum(dim=-1) if self.multilabel else confusion.sum(dim=1)
        self.per_class = [
            {
                "class": name,
                **{key: column[i] for key, column in by_class.items()},
                "support": int(support[i]),
            }
            for i, name in enumerate(self.class_names)
        ]
        figures = {f"{stage}/loss": self._mean_loss()}
        figures |= {f"{stage}/{name}": value for name, value in values.items()}
        self.figures = {name: float(value) for name, value in figures.items()}
        self._log(figures)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.predictions = self._gather()
        self.metrics.reset()

    def _gather(self) -> Predictions:
        """The predictions of all processes, put in the order of rows."""
        if self._kept:
            mine = [torch.cat(parts) for parts in zip(*self._kept, strict=True)]
        else:
            none = torch.empty(0, dtype=torch.int64)
            chances = torch.empty(0, self.num_classes, dtype=torch.float32)
            mine = [none, chances.long() if self.multilabel else none, chances]
        self._kept = []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mine = [torch.cat(gather_all_tensors(part.to(self.device))).cpu() for part in mine]
        arrays = [part.numpy() for part in mine]
        order = np.argsort(arrays[0], kind="stable")
        return Predictions(*(array[order] for array in arrays))

    # ---- sums and logging

    def _add(self, loss_sum: Tensor, weight_sum: Tensor | float) -> None:
        """Add to the epoch's sums without waiting for the device; in float64 where it has that."""
        wide = torch.float32 if loss_sum.device.type == "mps" else torch.float64
        more = weight_sum.to(wide) if isinstance(weight_sum, Tensor) else weight_sum
        state = vars(self)  # a module looks at each value for parameters before it keeps it as an attribute
        state["_loss_sum"] = self._loss_sum + loss_sum.detach().to(wide)
        state["_weight_sum"] = self._weight_sum + more

    def _sums(self) -> Tensor:
        """(2,) sums of losses and of weights, over all processes."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        mine = torch.stack(
            [
                torch.as_tensor(part, dtype=wide, device=self.device)
                for part in (self._loss_sum, self._weight_sum)
            ]
        )
        return self.trainer.strategy.reduce(mine, reduce_op="sum")

    def _mean_loss(self) -> Tensor:
        loss_sum, weight_sum = self._sums()
        return loss_sum / weight_sum

    def _log(self, figures: Mapping[str, Tensor]) -> None:
        # The values are the same on every process already; sync_dist keeps Lightning from warning that they
        # may not be.
        for name, value in figures.items():
            self.log(name, value.float(), on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    # ---- optimizer

    def configure_optimizers(self) -> Any:
        """One optimizer over two parameter groups, ``table`` (all that the front end learns) and ``rest``.

        Frozen parameters are in neither, so they hold no optimizer state.
        """
        optimizer = self._optimizer()
        schedules: list[tuple[Schedule | None, str | None]] = [(self.schedule, None)]
        if self.table_schedule is not None:
            if all(group["name"] != "table" for group in optimizer.param_groups):
                raise UserError(
                    f"{self.table_schedule.key}: the front end has nothing that learns; give "
                    f"{self.table_schedule.key}=null."
                )
            schedules = [(self.schedule, "rest"), (self.table_schedule, "table")]
        return [optimizer], [
            {
                "scheduler": self._scheduler(schedule, optimizer, group),
                "interval": schedule.interval,
                "monitor": schedule.monitor or "val/loss",
                "reduce_on_plateau": False,  # see _ask_plateau
                "name": schedule.key,
            }
            for schedule, group in schedules
            if schedule is not None
        ]

    def _scheduler(self, schedule: Schedule, optimizer: Optimizer, group: str | None) -> Any:
        arguments = {
            key: self._total(schedule, key) if value == "auto" else value
            for key, value in schedule.arguments.items()
        }

        def make(optimizer: Optimizer) -> Any:
            return _build(schedule.key, schedule.make, optimizer, arguments)

        return make(optimizer) if group is None else GroupScheduler(make, optimizer, group)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not _is_plateau(scheduler):
            scheduler.step()

    def _ask_plateau(self) -> None:
        """Show a plateau scheduler the validation's figure.

        Lightning would after the epoch's checkpoint has been written, and a run that is resumed from there
        would go on as if that epoch had not been looked at.
        """
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if _is_plateau(scheduler):
                if config.monitor not in self.figures:
                    raise UserError(
                        f"{config.name}.monitor={config.monitor}: this is no figure of this run; expected "
                        f"one of {', '.join(sorted(self.figures))}.{nearest(config.monitor, self.figures)}"
                    )
                scheduler.step(self.figures[config.monitor])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; it has no way to for sparse gradients."""
        if not gradient_clip_val:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
            optimizers.clip(parameters, gradient_clip_val, gradient_clip_algorithm == "value")
            return
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _total(self, schedule: Schedule, key: str) -> int:
        by_step = schedule.interval == "step"
        total = self.trainer.estimated_stepping_batches if by_step else self.trainer.max_epochs
        if total is None or not 0 < total < float("inf"):
            raise UserError(
                f"{schedule.key}.{key}=auto needs an end to the run: set trainer.max_epochs or "
                "trainer.max_steps."
            )
        return int(total)

    def _table_parameters(self) -> list[nn.Parameter]:
        """All that the front end learns: the first group of the optimizer's."""
        return [parameter for parameter in self.embedding.parameters() if parameter.requires_grad]

    def _optimizer(self) -> Optimizer:
        table = self._table_parameters()
        in_table = {id(parameter) for parameter in table}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        own = {"lr": self.table_lr, "weight_decay": self.table_weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": table, "name": "table"}
            | {key: value for key, value in own.items() if value is not None},
            {"params": [parameter for parameter in trained if id(parameter) not in in_table], "name": "rest"},
        ]
        make: Any = self.make_optimizer
        arguments: dict[str, Any] = {}
        if isinstance(make, functools.partial):
            make, arguments = make.func, make.keywords
        return _build("optimizer", make, [group for group in groups if group["params"]], arguments)


def _is_plateau(scheduler: Any) -> bool:
    inner = scheduler.scheduler if isinstance(scheduler, GroupScheduler) else scheduler
    return isinstance(inner, ReduceLROnPlateau)


def _metrics(num_classes: int, multilabel: bool) -> MetricCollection:
    """Figures over all documents. Those in one group share their state, so it is kept and sent once."""
    counts = ["f1_macro", "f1_weighted", "precision", "recall", "f1"]
    kind: dict[str, Any]
    if multilabel:
        kind = {"num_labels": num_classes, "validate_args": False}
        return MetricCollection(
            {
                "accuracy": tm.MultilabelAccuracy(average="micro", **kind),
                "exact_match": tm.MultilabelExactMatch(**kind),
                "f1_micro": tm.MultilabelF1Score(average="micro", **kind),
                "f1_macro": tm.MultilabelF1Score(average="macro", **kind),
                "f1_weighted": tm.MultilabelF1Score(average="weighted", **kind),
                "mcc": tm.MultilabelMatthewsCorrCoef(**kind),
                "calibration_error": tm.BinaryCalibrationError(
                    n_bins=CALIBRATION_BINS, norm="l1", validate_args=False
                ),
                "precision": tm.MultilabelPrecision(average="none", **kind),
                "recall": tm.MultilabelRecall(average="none", **kind),
                "f1": tm.MultilabelF1Score(average="none", **kind),
                "confusion": tm.MultilabelConfusionMatrix(**kind),
            },
            compute_groups=[
                ["accuracy", "f1_micro"],
                ["exact_match"],
                counts,
                ["mcc", "confusion"],
                ["calibration_error"],
            ],
        )
    kind = {"num_classes": num_classes, "validate_args": False}
    return MetricCollection(
        {
            "accuracy": tm.MulticlassAccuracy(average="micro", **kind),
            "f1_macro": tm.MulticlassF1Score(average="macro", **kind),
            "f1_weighted": tm.MulticlassF1Score(average="weighted", **kind),
            "mcc": tm.MulticlassMatthewsCorrCoef(**kind),
            "calibration_error": tm.MulticlassCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", **kind),
            "precision": tm.MulticlassPrecision(average="none", **kind),
            "recall": tm.MulticlassRecall(average="none", **kind),
            "f1": tm.MulticlassF1Score(average="none", **kind),
            "confusion": tm.MulticlassConfusionMatrix(**kind),
        },
        compute_groups=[["accuracy"], counts, ["mcc", "confusion"], ["calibration_error"]],
    )
