"""The recipe of one run: configuration -> data -> model -> fit -> test -> run folder. Reads top to bottom."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from textbed import command, config
from textbed.callbacks import AtomicCheckpointIO, Checkpoints, Timing, make_callbacks
from textbed.classifier import Predictions, Schedule, TextClassifier, balanced_weights, optimizer_from_config
from textbed.data.datamodule import TextDataModule
from textbed.data.encoding import load_tokenizer
from textbed.embedding import vectors
from textbed.embedding.effects import Effects, idf_weights, sif_weights
from textbed.embedding.gradient import set_gradient
from textbed.embedding.report import coverage
from textbed.embedding.sharding import whole_size
from textbed.embedding.table import FrontEnd, Table
from textbed.embedding.vectors import shaping
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.heads.budget import widest
from textbed.network import Design, make_head, seeded
from textbed.pooled import can_be_reused, mebibytes
from textbed.ranks import RankLost, Ranks, joined
from textbed.runs import embedding_report, pictures
from textbed.runs.embedding_report import TableReport
from textbed.runs.folder import RunFolder, is_rank_zero, peak_memory, say, write_json, write_text
from textbed.runs.folds import SPREAD, gather
from textbed.runs.lines import read_metrics
from textbed.runs.loggers import (
    finish_loggers,
    log_report,
    log_settings,
    make_loggers,
    prediction_table,
)
from textbed.runs.summary import Overview, PartSummary, SplitSummary, share, show_overview, show_result
from textbed.schema import GLOBAL_GROUPS, PASSED_ON, RECIPE_KEYS, HeadConfig, defaults
from textbed.targets import read_arguments

# What a resumed run may change. Everything else decides the figures, and would make one record of two runs.
RESUME_MAY_CHANGE = (
    "trainer.", "callbacks.", "report.", "data.mirror", "data.path", "data.workers", "classifier.reuse_mib",
    "threads", "test",
)  # fmt: skip
# What alters no figure: of several folds some may have ended already.
FOLDS_MAY_CHANGE = ("data.mirror", "data.path", "data.workers", "classifier.reuse_mib", "threads")

FOLDS_ALONE = (
    "cross_validate=true: folds follow one another in one process; give trainer.devices=1, or run each fold "
    "by itself: data.fold=NUMBER"
)


def train(
    cfg: DictConfig, overrides: Sequence[str] = (), choices: Mapping[str, Any] | None = None
) -> Path | None:
    """Train, test and record one run.

    Args:
        cfg: the configuration, checked and complete.
        overrides: what was typed to change it, for the record.
        choices: the option taken in each config group, for the record.

    Returns:
        The run folder; None in a process that is not the first of a distributed run.

    Raises:
        UserError: a mistake in the configuration or the data. If it shows before training, nothing is left
            behind.
    """
    with joined(cfg.trainer) as ranks:
        if ranks.first:
            folder = RunFolder.create(cfg.paths.runs, cfg.name)
        else:
            folder = RunFolder(ranks.hear("folder"))
        with _recording(folder, ranks, new=True):
            taken = {
                group: option
                for group, option in (choices or {}).items()
                if group in cfg or group in GLOBAL_GROUPS
            }
            folder.start(OmegaConf.to_yaml(cfg), overrides, cfg.seed, cfg.threads, choices=taken)
            if cfg.cross_validate:
                _run_folds(cfg, folder, ranks, overrides, taken)
            else:
                _run(cfg, folder, ranks)
    return folder.path if ranks.first else None


def resume(path: str, overrides: Sequence[str]) -> Path | None:
    """Go on with the run in the folder ``path`` from its last checkpoint, in the same folder and logger runs.

    Args:
        path: the run folder.
        overrides: what is to change, such as ``trainer.max_epochs=20``; only keys of ``RESUME_MAY_CHANGE``.

    Returns:
        As :func:`train`.

    Raises:
        UserError: there is no such run, it is finished or still going on, or its checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    if folder.whole is not None:
        raise UserError(f"{path}: this is a fold; go on with its run: resume={folder.whole}")
    cfg = OmegaConf.load(folder.config_file)
    assert isinstance(cfg, DictConfig)
    may_change = FOLDS_MAY_CHANGE if cfg.get("cross_validate") else RESUME_MAY_CHANGE
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.key_or_group.startswith(may_change):
            raise UserError(
                f"{override.input_line}: a resumed run keeps its configuration; of it, only what begins with "
                f"{', '.join(may_change)} may change. For anything else start a new run."
            )
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    cfg = config.check(cfg)
    if folder.info().get("status") == "finished" and (cfg.cross_validate or not overrides):
        train_on = "" if cfg.cross_validate else "; to train on, give trainer.max_epochs=NUMBER as well"
        raise UserError(f"{path}: this run is finished{train_on}.")
    with joined(cfg.trainer) as ranks:
        if cfg.cross_validate:
            folder.resume(overrides)
            with _recording(folder, ranks, new=False):
                choices = folder.info().get("choices") or {}
                _run_folds(cfg, folder, ranks, folder.overrides(), choices, changed=overrides)
        else:
            _go_on(cfg, folder, ranks, overrides)
    return folder.path if ranks.first else None


def _go_on(cfg: DictConfig, folder: RunFolder, ranks: Ranks, overrides: Sequence[str]) -> None:
    checkpoint = folder.checkpoint_to_resume()
    if checkpoint and _is_between_steps(checkpoint, cfg.trainer.get("accumulate_grad_batches", 1)):
        say(f"{checkpoint.name} was written between two optimizer steps: the run starts anew")
        checkpoint = None
    folder.resume(overrides)
    with _recording(folder, ranks, new=False):
        _run(cfg, folder, ranks, checkpoint, resumed=True)


def _run_folds(
    cfg: DictConfig,
    folder: RunFolder,
    ranks: Ranks,
    overrides: Sequence[str],
    choices: Mapping[str, Any],
    changed: Sequence[str] = (),
) -> None:
    """Every fold as a run in a folder of its own, those that have ended aside, and then what all gave.

    Args:
        overrides: what was typed when the run began.
        changed: what was typed to change it now.
    """
    if not ranks.first:
        raise UserError(FOLDS_ALONE)
    typed = [one for one in overrides if one.lstrip("+~").partition("=")[0] != "cross_validate"]
    if len(typed) == len(overrides):  # a file asked for the folds
        typed.append("cross_validate=false")
    for number in range(cfg.data.folds):
        own = copy.deepcopy(cfg)
        own.cross_validate, own.data.fold = False, number
        fold = folder.fold(number)
        try:
            if _is_begun(fold):
                if fold.info()["status"] != "finished":
                    say(f"fold {number} of {cfg.data.folds} (counted from 0), gone on with")
                    _go_on(own, fold, ranks, changed)
                continue
            say(f"fold {number} of {cfg.data.folds} (counted from 0)")
            fold = folder.create_fold(number)
            with _recording(fold, ranks, new=True):
                text = OmegaConf.to_yaml(own)
                fold.start(text, [*typed, f"data.fold={number}"], cfg.seed, cfg.threads, choices=choices)
                _run(own, fold, ranks)
        except UserError as error:
            raise UserError(f"fold {number}: {error}") from error
        except Exception as error:
            error.add_note(f"fold {number}")
            raise
    figures = gather(folder, cfg.data.folds)
    if is_rank_zero():
        spread = [
            f"{name.removeprefix(SPREAD)} {figures[name.removeprefix(SPREAD)]:.4f} ± {figures[name]:.4f}"
            for name in (f"{SPREAD}test/accuracy", f"{SPREAD}val/accuracy")
            if name in figures
        ]
        lines = [f"means over {cfg.data.folds} folds, standard deviation behind ±: {', '.join(spread)}"]
        show_result(figures, folder.path, notes=lines if spread else [])


def _is_begun(fold: RunFolder) -> bool:
    """Whether a fold's folder says what it is: a process killed at once may leave less."""
    return fold.info_file.is_file() and fold.config_file.is_file() and fold.overrides_file.is_file()


@contextlib.contextmanager
def _recording(folder: RunFolder, ranks: Ranks, new: bool) -> Any:
    """Keep a log of the block, and write down how it ended."""

    def give_up(line: str) -> None:
        folder.finish("failed", line)
        print(f"error: {line}", file=sys.stderr)

    ranks.give_up = give_up
    if ranks.first:
        ranks.tell(folder=str(folder.path))
    try:
        with folder.logging(), ranks.explained():
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C and SIGTERM into an exit of its own.
        folder.finish("interrupted")
        if folder.whole is None:
            say(f"interrupted; go on with: python train.py resume={folder.path}")
        raise KeyboardInterrupt from error
    except BaseException as error:
        mistake = command.explain(error)
        early = new and folder.info().get("phase") == "setup"
        if early and mistake is not None and not isinstance(error, RankLost):
            folder.discard()  # it showed before anything was computed
        else:
            folder.finish("failed", mistake or error)
        raise
    folder.finish()


def _for_the_screen(record: logging.LogRecord) -> bool:
    # What a profiler found is logged as information too, and is what was asked for.
    return record.levelno >= logging.WARNING or "profilers" in record.name


_usual_warning = warnings.formatwarning


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings speak to the user: the place in our code and the line there say nothing to them."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return _usual_warning(message, category, filename, lineno, line)


def quieten() -> None:
    """Lightning's notes go to log.txt; on the screen only what a person has to act on."""
    for name in (None, "lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.addFilter(_for_the_screen)
    warnings.formatwarning = _warning_line
    # Lightning's own, about itself: nothing that a user of this template could change.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # torch's own Adagrad makes such a tensor of a gradient that was right before.
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    # Both harmless: the mean loss of every epoch is logged all the same, and no validation split is a choice.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")


def _run(
    cfg: DictConfig, folder: RunFolder, ranks: Ranks, checkpoint: Path | None = None, resumed: bool = False
) -> None:
    quieten()
    config.check_targets(cfg)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    callbacks = make_callbacks(cfg.callbacks, folder)
    # Not before the trainer has set everything up: what is wrong until then leaves no folder behind.
    callbacks.append(LambdaCallback(on_train_start=lambda *_: folder.update(phase="fit")))
    timing = next((callback for callback in callbacks if isinstance(callback, Timing)), None) or Timing()

    with ranks.in_turn():
        with timing.phase("data"):
            data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
            data.setup()
            if cfg.test and "test" not in data.sets:
                raise UserError(
                    "test=true: there is no test split, and data.test=0 sets none aside; give test=false, or "
                    "a share such as data.test=0.2."
                )
            for key, node in (("scheduler", cfg.scheduler), ("embedding.scheduler", cfg.embedding.scheduler)):
                if node is not None and node.get("monitor") and "validation" not in data.sets:
                    raise UserError(
                        f"{key}.monitor={node.monitor}: there is no validation split to look at; give a "
                        "share such as data.validation=0.1, or another scheduler."
                    )
        with timing.phase("model"):
            model, covered = build_model(cfg, data)

    with timing.phase("model"):
        work = multiply_adds(model, data)
        _keep_data(folder, data, resumed)
        if is_rank_zero():
            write_text(folder.model_file, describe(cfg, data, model).dump())
        loggers = make_loggers(cfg.logger, folder, _steps_seen(checkpoint) if resumed else None)
        # Without our checkpoints there are to be none, not Lightning's own.
        kept = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer: pl.Trainer = instantiate(
            cfg.trainer,
            **({} if kept else {"enable_checkpointing": False}),
            **_determinism(cfg),
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=str(folder.path),
            plugins=[AtomicCheckpointIO()],
        )
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            # Its own watch kills all processes within five seconds of a loss, this one too, before it can say
            # what happened; unless there is none left to look at.
            ranks.on_loss = lambda: launcher.procs.clear()
        if folder.whole is not None and trainer.world_size > 1:
            raise UserError(FOLDS_ALONE)
        data.trainer = trainer  # which knows how many processes share the documents
        divided = _divide_tables(data, model, trainer) if cfg.embedding.sharded else None
        reused = _reuse_pooled(cfg, data, model, trainer)
        folder.update(device=_device(trainer))
        if resumed and is_rank_zero():
            write_text(folder.config_file, OmegaConf.to_yaml(cfg))  # with what changed, for the next resume
    if is_rank_zero():
        notes = [divided, reused, f"going on from {checkpoint}" if checkpoint else None]
        show_overview(_overview(cfg, data, model, trainer, work, covered, notes))

    try:
        log_settings(loggers, OmegaConf.to_container(cfg), new=not resumed)  # type: ignore[arg-type]
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        best = _best(trainer)
        validated = None
        if cfg.test:
            folder.update(phase="test")
            validated = _predict_validation(data, model, trainer, best) if "validation" in data.sets else None
            trainer.test(model, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
        memory = peak_memory()  # of training and test: what looks at them comes after
        figures = _figures(folder, model, trainer, best) | {
            f"multiply_adds/{part}": number for part, number in work.items()
        }
        folder.write_metrics(figures | timing.figures() | memory)  # whatever becomes of what follows
        with timing.phase("report"):
            _write_predictions(folder, data, "validation", validated)
            _write_predictions(folder, data, "test", model.predictions)
            table = _report(cfg, folder, data, model, best, loggers)
        figures |= timing.figures() | memory
        folder.write_metrics(figures)
    except BaseException:
        finish_loggers(loggers, failed=True)
        raise
    for line in finish_loggers(loggers, figures):
        say(line)
    if is_rank_zero():
        lines = []
        if best and "best_epoch" in figures:
            lines.append(f"{best.name} is of epoch {figures['best_epoch']}")
        if table:
            lines.append(f"{table.summary()}; see {folder.embedding_file.name}")
        show_result(figures, folder.path, notes=lines, per_class=model.per_class if cfg.test else ())


# The parts, in the order of the recipe


def _determinism(cfg: DictConfig) -> dict[str, None]:
    """What is so already need not be said: torch imports its compiler to be told, which takes a second."""
    said = cfg.trainer.get("deterministic") is False
    return {"deterministic": None} if said and not torch.are_deterministic_algorithms_enabled() else {}


def _keep_data(folder: RunFolder, data: TextDataModule, resumed: bool) -> None:
    """Write down the tokenizer and what the data was; for a resumed run make sure that both are the same."""
    if resumed and (folder.tokenizer / "tokenizer.json").exists():
        tokens = load_tokenizer(folder.tokenizer).tokens
        for same, what, cause in (
            (
                folder.info().get("data") == data.fingerprint,
                "the documents, labels or splits are",
                "the data has",
            ),
            (tokens == data.tokenizer.tokens, "the vocabulary is", "the data or the file of vectors has"),
        ):
            if not same:
                raise UserError(
                    f"{folder.path}: {what} not what the run began with: {cause} changed since. "
                    "Restore it, or start a new run."
                )
    elif is_rank_zero():
        folder.update(data=data.fingerprint)
        data.tokenizer.save(folder.tokenizer)


def build_model(cfg: DictConfig, data: TextDataModule) -> tuple[TextClassifier, str | None]:
    """The classifier that ``cfg`` describes, over the vocabulary and classes of ``data``.

    Each part is built from a seed of its own, so that changing one leaves the initial weights of the others
    alone.

    Returns:
        The model, and one line on how much of the training text the pretrained vectors cover; None without
        any.
    """
    if cfg.embedding.vectors == "corpus" and is_rank_zero():
        say("embedding.vectors=corpus: vectors of the training split, trained once and then kept")
    embedding, found = build_embedding(cfg, data)
    rowwise = _set_gradient(cfg, data, embedding)
    head = build_head(cfg.head, embedding.dim, len(data.corpus.classes), cfg.seed)

    weights = cfg.classifier.class_weights
    multilabel, classes = data.corpus.multilabel, data.corpus.classes
    if weights == "balanced":
        weights = balanced_weights(data.train_labels, len(classes), multilabel)
    elif weights is not None:
        weights = torch.tensor(list(weights), dtype=torch.float32)
    model = TextClassifier(
        embedding,
        head,
        len(classes),
        multilabel=multilabel,
        pairs=data.corpus.columns == 2,
        activation=cfg.classifier.activation,
        dropout=cfg.classifier.dropout,
        max_norm=cfg.classifier.max_norm,
        label_smoothing=cfg.classifier.label_smoothing,
        class_weights=weights,
        optimizer=optimizer_from_config(cfg.optimizer, rowwise),
        schedule=Schedule.from_config(cfg.scheduler),
        table_lr=cfg.embedding.lr,
        table_weight_decay=cfg.embedding.weight_decay,
        table_schedule=Schedule.from_config(cfg.embedding.scheduler, "embedding.scheduler"),
        class_names=classes,
        seed=cfg.seed,
    )
    if cfg.compile:
        model.compile(dynamic=True)
    if found is None:
        return model, None
    train = coverage(*data.type_counts("train"), found=found)
    assert train.vectors is not None
    types = share(train.vectors.types, train.all.types)
    tokens = share(train.vectors.tokens, train.all.tokens)
    kind = cfg.tokenizer.kind
    line = f"{cfg.embedding.vectors}: {types} of the distinct {kind} of the training text, {tokens} of all"
    shaped = shaping.describe(**_shaping(cfg))
    return model, f"{line}; {shaped}" if shaped else line


def build_embedding(cfg: DictConfig, data: TextDataModule) -> tuple[FrontEnd, np.ndarray | None]:
    """The front end that ``cfg`` describes, as it is before training: the same rows at every call.

    Words that only the evaluation text has and that have a pretrained vector join the vocabulary of ``data``
    (``embedding.unseen``).

    Returns:
        The front end, and which tokens of the vocabulary have a pretrained vector, (V,) bool; None without
        any.
    """
    data.add_words([])  # whatever was built over this data before
    own = _front_end_settings(cfg, data)
    takes = read_arguments(cfg.embedding._target_)
    given: dict[str, Any] = {}
    found = None
    if cfg.embedding.vectors is not None:
        matrix, found = _vectors(cfg, data)
        matrix = shaping.shape(matrix, found, appended=data.added_words, **_shaping(cfg))
        given |= {"vectors": torch.from_numpy(matrix), "found": torch.from_numpy(found)}
    given["num_embeddings"] = len(data.tokenizer)
    if "tokens" in takes.names:
        given["tokens"] = data.tokenizer.tokens
    if "counts" in takes.names:
        given["counts"] = torch.from_numpy(data.train_counts)
    if "appended" in takes.names:
        given["appended"] = data.added_words
    with seeded(cfg.seed, "embedding"):
        # Not through OmegaConf, which looks at each of 10,000 tokens for seconds.
        embedding = instantiate(own, _partial_=True)(**given)
    return _with_effects(embedding, cfg, data, found), found


def _front_end_settings(cfg: DictConfig, data: TextDataModule) -> dict[str, Any]:
    """The front end's own arguments, without those that come from the vectors and the data."""
    # Those that are not the recipe's to read.
    own = {key: value for key, value in cfg.embedding.items() if key not in RECIPE_KEYS or key in PASSED_ON}
    takes = read_arguments(cfg.embedding._target_)
    if "trainable" not in takes.names and not takes.open:  # it always learns; see config
        own.pop("trainable", None)
    if own.get("padding_idx") == "auto":
        own["padding_idx"] = data.tokenizer.pad_id
    return {str(key): value for key, value in own.items()}


def _with_effects(
    embedding: FrontEnd, cfg: DictConfig, data: TextDataModule, found: np.ndarray | None
) -> FrontEnd:
    """The front end inside what is to act on its rows; itself where nothing is."""
    own = {key: cfg.embedding[key] for key in ("word_dropout", "row_dropout", "noise", "pull")}
    kind = cfg.embedding.token_weights
    if kind is None and not any(own.values()):
        return embedding
    weights = None
    if kind == "sif":
        weights = sif_weights(torch.from_numpy(data.train_counts), cfg.embedding.sif_a)
    elif kind == "idf":
        documents = len(data.splits["train"].rows) * data.corpus.columns
        weights = idf_weights(torch.from_numpy(data.train_document_counts), documents)
    return Effects(
        embedding,
        len(data.tokenizer),
        weights=weights,
        learn_weights=kind == "learned",
        pulled=None if found is None else torch.from_numpy(found),
        **own,
    )


def build_head(node: Mapping[str, Any], dim: int, num_classes: int, seed: int) -> Head:
    """The head that ``node`` describes, with its layers, at most ``node.parameters`` parameters where given.

    Raises:
        UserError: as :func:`sized_head`.
    """
    sized = sized_head(node, dim, num_classes, seed)
    head = make_head(sized, dim, num_classes, seed, instantiate)
    most, width = node.get("parameters"), _width_of(sized)
    if most is not None and is_rank_zero():
        say(f"head.parameters={most}: head.{width}={sized[width]} gives {_size(head).all:,}")
    return head


def sized_head(node: Mapping[str, Any], dim: int, num_classes: int, seed: int) -> dict[str, Any]:
    """The head's node with all keys of its layers, and as wide as ``node.parameters`` allows where given.

    Raises:
        UserError: even the narrowest has more parameters, or the head has no width to change.
    """
    own: dict[str, Any] = defaults(HeadConfig) | _plain(node)
    most, key = own.pop("parameters"), _width_of(own)
    if most is None:
        return own
    if key == "dense" and own["dense"] is None:
        raise UserError(
            f"head.parameters={most}: {own['_target_']} has no width to change; "
            "choose another head, or layers above this one, such as +head.dense=[300]."
        )

    def of_width(width: int) -> dict[str, Any]:
        return own | {key: width if key != "dense" else [width] * len(own["dense"])}

    def count(width: int) -> int:
        with torch.device("meta"):  # sizes without numbers: no memory, no time
            return _size(make_head(of_width(width), dim, num_classes, seed, instantiate)).all

    width = widest(count, most)
    if width is None:
        raise UserError(
            f"head.parameters={most}: with head.{key}=1 the head has {count(1):,} parameters already; "
            "give at least so many, or a smaller embedding.dim."
        )
    return of_width(width)


def _width_of(node: Mapping[str, Any]) -> str:
    """The key that makes a head wider: the class's own, else that of the layers above."""
    return getattr(get_class(node["_target_"]), "width", None) or "dense"


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node of the configuration as plain values."""
    return OmegaConf.to_container(node) if isinstance(node, DictConfig) else dict(node)  # type: ignore


def describe(cfg: DictConfig, data: TextDataModule, model: TextClassifier) -> Design:
    """What the model is made of, for who makes it again without the data and the file of vectors."""
    front_end, effects = model.embedding, None
    if isinstance(front_end, Effects):
        learnt = front_end.log_weights is not None
        effects = {"weighted": front_end.token_weights is not None, "learn_weights": learnt}
        front_end = front_end.inner
    own = _plain(OmegaConf.create(_front_end_settings(cfg, data)))
    # The width of the table, which may be that of the vectors; that of the rows may be another.
    tables = [part for part in front_end.modules() if isinstance(part, Table)]
    own["dim"] = own["dim"] or (tables[0].table.embedding_dim if tables else front_end.dim)
    weights: Any = model.class_weights
    return Design(
        classes=model.class_names,
        multilabel=model.multilabel,
        pairs=model.pairs,
        text=list(data.corpus.splits["train"].columns),
        embedding=own,
        effects=effects,
        head=sized_head(cfg.head, model.embedding.dim, model.num_classes, cfg.seed),
        activation=cfg.classifier.activation,
        class_weights=None if weights is None else weights.tolist(),
        label_smoothing=model.label_smoothing,
    )


def multiply_adds(model: TextClassifier, data: TextDataModule) -> dict[str, float]:
    """Multiply-adds of each part in a forward pass over a training document, on average; for pairs over both.

    What is counted stands at ``Head.multiply_adds`` and ``FrontEnd.multiply_adds``; the classifier's are its
    product of matrices. Documents are as they are read from the split, with nothing dropped in training and
    nothing reused. A part whose class does not say is left out, and ``all`` with it.
    """
    train = data.splits["train"]
    lengths = np.concatenate([column.lengths[train.rows] for column in data.encoded[train.split]])
    distinct, often = np.unique(lengths[lengths > 0], return_counts=True)
    repeated = list(zip(distinct.tolist(), often.tolist(), strict=True))
    counts = torch.from_numpy(data.train_counts)
    none, pools = torch.zeros_like(counts), model.head.pools
    # Sums over documents and tokens: a document of each length does for all, however many there are.
    parts: dict[str, Callable[[], int]] = {
        "embedding": lambda: (
            sum(n * model.embedding.multiply_adds([length], none, pools) for length, n in repeated)
            + model.embedding.multiply_adds([], counts, pools)
        ),
        "head": lambda: sum(n * model.head.multiply_adds([length]) for length, n in repeated),
        "classifier": lambda: len(train.rows) * model.linear.weight.numel(),
    }
    work = {}
    for name, total in parts.items():
        with contextlib.suppress(NotImplementedError):
            work[name] = total() / len(train.rows)
    return work | {"all": sum(work.values())} if len(work) == len(parts) else work


def _set_gradient(cfg: DictConfig, data: TextDataModule, embedding: FrontEnd) -> bool:
    """Make the tables give the gradients that ``embedding.gradient`` says.

    Returns:
        Whether the optimizer is to be the row-wise one, which passes dense gradients on to torch's.
    """
    gradient = cfg.embedding.gradient
    if gradient == "auto" and (
        config.no_sparse_gradient(cfg, "lazy") is not None or _is_apple_gpu(cfg.trainer.get("accelerator"))
    ):
        gradient = "dense"
    tables = set_gradient(embedding, gradient, _tokens_per_step(cfg, data), config.is_alike(cfg))
    return gradient != "sparse" and bool(tables)


def _is_apple_gpu(accelerator: str | None) -> bool:
    return accelerator in ("auto", "gpu", None) and torch.backends.mps.is_available()


def _tokens_per_step(cfg: DictConfig, data: TextDataModule) -> float:
    """Mean number of tokens of an optimizer step of one process."""
    mean = float(data.sets["train"].lengths.mean())
    tokens = cfg.data.batch_tokens or min(cfg.data.batch_size, len(data.sets["train"])) * mean
    return tokens * cfg.trainer.get("accumulate_grad_batches", 1)


def _sparse_tables(cfg: DictConfig, embedding: FrontEnd) -> list[str]:
    """A line for each table whose gradient is sparse, for the summary before training."""
    kind = "sparse" if cfg.embedding.gradient == "sparse" else "lazy"
    return [
        f"{kind} updates: of the {table.num_embeddings:,} rows of embedding.{name} only those of the batch"
        for name, table in embedding.named_modules()
        if isinstance(table, torch.nn.Embedding) and table.sparse and table.weight.requires_grad
    ]


def _shaping(cfg: DictConfig) -> dict[str, Any]:
    """What is to be done to the pretrained rows: the arguments of ``shaping.shape``."""
    return {key: cfg.embedding[key] for key in ("dim", "reduce", "remove_components")}


def _vectors(cfg: DictConfig, data: TextDataModule) -> tuple[np.ndarray, np.ndarray]:
    """The pretrained rows (V, D) of the vocabulary, and which there are, (V,) bool.

    Words of the evaluation text alone that have a row join the vocabulary, unless the user wants none.
    """
    cache = Path(cfg.paths.cache)
    if cfg.embedding.vectors != "corpus":
        unseen = data.unseen_words if cfg.embedding.unseen == "keep" else []
        matrix, found = vectors.read(
            cfg.embedding.vectors,
            data.tokenizer.tokens,
            more=unseen,
            special=(data.tokenizer.pad_id, data.tokenizer.unk_id),
            case=cfg.embedding.case,
            pieces=cfg.tokenizer.kind == "subwords",
            cache=cache,
            tell=say,
        )
        if not unseen:
            return matrix, found
        kept = found.copy()
        kept[: len(data.tokenizer)] = True
        data.add_words(list(itertools.compress(unseen, kept[len(data.tokenizer) :])))
        return matrix[kept], found[kept]
    from textbed.embedding.vectors.corpus import vectors_of

    return vectors_of(
        data.train_documents, data.train_fingerprint, len(data.tokenizer), cfg.embedding.dim, cache
    )


def _divide_tables(data: TextDataModule, model: TextClassifier, trainer: pl.Trainer) -> str | None:
    """Leave each process but its share of the tables' rows; the overview's line on it. Alone it keeps all."""
    size = trainer.world_size
    if size == 1:
        return None
    if not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            "embedding.sharded=true: the processes have to hold all else alike; give trainer=ddp."
        )
    for split, documents in data.sets.items():
        if len(documents) < size:  # a process without a document would not take part in a lookup
            raise UserError(
                f"embedding.sharded=true: the {split} split has {len(documents)} documents for {size} "
                f"processes; set trainer.devices to {len(documents)} or fewer."
            )
    names = []
    for name, table in model.named_modules():
        if isinstance(table, Table):
            table.divide(trainer.global_rank, size)
            names.append(f"{name}.table.weight")
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return f"the rows of the table are divided among {size} processes"


def _reuse_pooled(
    cfg: DictConfig, data: TextDataModule, model: TextClassifier, trainer: pl.Trainer
) -> str | None:
    """Have documents pooled once where they always come out the same; the overview's line on it."""
    limit = cfg.classifier.reuse_mib
    # A few batches of a debugging run are sooner pooled than all documents; and other strategies than these
    # may not have a whole table at hand.
    whole = isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches == 1
    plain = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    width = model.head.fixed_dim
    if not (limit and whole and plain and width and can_be_reused(model.embedding, model.head)):
        return None
    splits = [name for name in ("train", "validation") if name in data.sets]
    needed = mebibytes((data.sets[name] for name in splits), width)
    if needed > limit:
        return (
            f"documents are pooled anew in every epoch: kept, they would take {needed:,.0f} MiB, more than "
            f"classifier.reuse_mib={limit}"
        )
    data.without_tokens = splits
    return f"documents are pooled once and kept in {needed:,.1f} MiB"


def _overview(
    cfg: DictConfig,
    data: TextDataModule,
    model: TextClassifier,
    trainer: pl.Trainer,
    work: Mapping[str, float],
    covered: str | None,
    notes: Sequence[str | None],
) -> Overview:
    splits = {}
    for name, rows in data.splits.items():
        columns = [column.statistics(rows.rows) for column in data.encoded[rows.split]]
        splits[name] = SplitSummary(
            documents=len(rows.rows),
            tokens=sum(column.tokens for column in columns),
            unknown=sum(column.unknown for column in columns),
            empty=int((data.sets[name].lengths == 0).sum()),
        )
    labels = data.train_labels
    counts = labels.sum(axis=0) if data.corpus.multilabel else np.bincount(labels, minlength=data.num_classes)
    parts = {"embedding": model.embedding, "head": model.head, "classifier": model.linear}
    return Overview(
        name=cfg.name,
        data=data.corpus.description,
        splits=splits,
        class_counts={name: int(count) for name, count in zip(data.corpus.classes, counts, strict=True)},
        tokenizer=cfg.tokenizer.kind,
        vocabulary=len(data.tokenizer),
        parts={
            name: dataclasses.replace(_size(part), multiply_adds=work.get(name))
            for name, part in parts.items()
        },
        device=_device(trainer),
        precision=str(trainer.precision),
        steps_per_epoch=len(data.train_dataloader()),
        epochs=trainer.max_epochs,
        multilabel=data.corpus.multilabel,
        vectors=covered,
        notes=[
            *data.notes,
            *_sparse_tables(cfg, model.embedding),
            *_thaw_notes(model, trainer, len(data.train_dataloader())),
            *(note for note in notes if note is not None),
        ],
    )


def _thaw_notes(model: TextClassifier, trainer: pl.Trainer, batches: int) -> list[str]:
    """When tables that begin frozen begin to learn: one line for each."""
    epoch = -(-batches // trainer.accumulate_grad_batches)  # in optimizer steps
    epochs = trainer.max_epochs
    end = min(
        trainer.max_steps if trainer.max_steps >= 0 else math.inf,
        epochs * epoch if epochs is not None and epochs >= 0 else math.inf,
    )
    notes = []
    for table in model.thawing:
        first = max(table.frozen_epochs * epoch, table.frozen_steps)
        if first >= end:
            notes.append(
                f"the table never thaws: it is frozen for {first:,} steps, and the run ends after {end:,}; "
                "lower embedding.frozen_epochs or embedding.frozen_steps"
            )
        else:
            notes.append(
                f"the table is frozen for the first {first:,} steps, and learns from epoch "
                f"{first // epoch + 1} on"
            )
    return notes


def _size(part: torch.nn.Module) -> PartSummary:
    sizes = [(whole_size(parameter), parameter.requires_grad) for parameter in part.parameters()]
    return PartSummary(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        name += f", {torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name


def _is_between_steps(checkpoint: Path, accumulated: int) -> bool:
    """Whether batches had been accumulated whose gradients a checkpoint does not hold: only best.ckpt can."""
    progress = AtomicCheckpointIO().peek(checkpoint)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress["current"]["ready"] % accumulated != 0 and not progress["is_last_batch"]


def _steps_seen(checkpoint: Path | None) -> int:
    return AtomicCheckpointIO().peek(checkpoint)["global_step"] if checkpoint else 0


def _best(trainer: pl.Trainer) -> Path | None:
    """The checkpoint to test: the best by validation, else the last; None where none was kept."""
    kept = trainer.checkpoint_callback
    path = (kept.best_model_path or kept.last_model_path) if isinstance(kept, Checkpoints) else None
    return Path(path) if path else None


def _monitor(trainer: pl.Trainer) -> str:
    kept = trainer.checkpoint_callback
    return kept.monitor if isinstance(kept, Checkpoints) and kept.monitor else "val/accuracy"


def _figures(
    folder: RunFolder, model: TextClassifier, trainer: pl.Trainer, best: Path | None
) -> dict[str, Any]:
    """The final figures by name: the test's, and those that validation gave to the tested checkpoint."""
    figures: dict[str, Any] = dict(model.figures) if trainer.state.fn == "test" else {}
    for entry in model.per_class if trainer.state.fn == "test" else []:
        for key in ("precision", "recall", "f1", "support"):
            figures[f"test/{key}/{entry['class']}"] = entry[key]
    if best:
        checkpoint = AtomicCheckpointIO().peek(best)
        figures |= {**checkpoint["figures"], "best_epoch": checkpoint["epoch"] + 1}
    elif folder.record_file.exists():  # the last weights are what was tested
        for line in read_metrics(folder.record_file):
            figures |= {key: value for key, value in line.items() if key.startswith("val/")}
    parts = {"embedding": model.embedding, "head": model.head, "classifier": model.linear, "all": model}
    for name, part in parts.items():
        size = _size(part)
        figures[f"parameters/{name}"] = size.all
        figures[f"parameters_trainable/{name}"] = size.trainable
    return figures | {"epochs": trainer.current_epoch, "steps": trainer.global_step}


def _predict_validation(
    data: TextDataModule, model: TextClassifier, trainer: pl.Trainer, best: Path | None
) -> Predictions | None:
    """What the checkpoint to be tested says of the validation documents; costs a pass over them.

    Its figures are on record since it was made, so that none is logged again.
    """
    loggers, trainer.loggers = trainer.loggers, []
    try:
        trainer.validate(model, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    finally:
        trainer.loggers = loggers
    said, model.predictions = model.predictions, None
    return said


def _write_predictions(folder: RunFolder, data: TextDataModule, split: str, said: Predictions | None) -> None:
    if said is not None:
        predicted = said.probabilities > 0.5 if data.corpus.multilabel else said.probabilities.argmax(axis=1)
        folder.write_predictions(
            split, said.rows, said.labels, predicted, said.probabilities, data.corpus.classes
        )


def _draw(cfg: DictConfig, folder: RunFolder, model: TextClassifier) -> None:
    if not is_rank_zero():
        return
    if folder.record_file.exists():
        pictures.draw_learning_curves(
            read_metrics(folder.record_file),
            folder.pictures / "learning_curves.png",
            figure=_monitor(model.trainer),
            title=cfg.name,
        )
    if model.confusion is not None and not model.multilabel and model.predictions is not None:
        path = folder.pictures / "confusion_matrix.png"
        pictures.draw_confusion(model.confusion, model.class_names, path, title=f"{cfg.name}: test")


def _report(
    cfg: DictConfig,
    folder: RunFolder,
    data: TextDataModule,
    model: TextClassifier,
    best: Path | None,
    loggers: Sequence[Logger],
) -> TableReport | None:
    """What a person looks at: pictures, and what training did to the table. A run does not fail for it."""
    table = None
    try:
        if cfg.report.pictures:
            _draw(cfg, folder, model)
        table = _report_on_table(cfg, folder, data, model, best) if is_rank_zero() else None
        tables = {f"embedding/{name}": rows for name, rows in table.tables().items()} if table else {}
        confusion = None
        # The record and the progress take none of this; reading a hundred texts may take a second.
        wanted = any(hasattr(logger, "log_table") for logger in loggers)
        if wanted and model.predictions is not None and is_rank_zero():
            said, source = model.predictions, data.corpus.splits[data.splits["test"].split]
            tables["test/predictions"] = prediction_table(
                said.rows,
                said.labels,
                said.probabilities,
                data.corpus.classes,
                lambda row: " || ".join(source.text(row, column) for column in range(data.corpus.columns)),
            )
            confusion = None if model.multilabel else model.confusion
        log_report(loggers, folder.pictures, tables, confusion, model.class_names)
    except Exception as error:  # of memory, disk or drawing: figures and checkpoints are there
        reason = " ".join(str(error).split())
        say(f"the report is not whole: {type(error).__name__}{f': {reason}' if reason else ''}")
    return table


def _report_on_table(
    cfg: DictConfig, folder: RunFolder, data: TextDataModule, model: TextClassifier, best: Path | None
) -> TableReport | None:
    """What training did to the table, in embedding.json and a page of pictures; None where it is not wanted.

    The rows before training are built again from the seed: keeping a copy of them all along would cost as
    much memory as the table. Those after are of the checkpoint that was tested.
    """
    if not (cfg.test if cfg.report.embedding is None else cfg.report.embedding):
        return None
    try:
        front_end, found = build_embedding(cfg, data)
    except UserError as error:  # the file of vectors is gone, say: a run that is done does not fail for it
        say(f"no report on the table: {error}")
        return None
    if best:
        weights = AtomicCheckpointIO().peek(best)["state_dict"]
    else:  # not state_dict(): of a table that lies in parts, it would wait for the other processes
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    trained = {name: weights.get(f"embedding.{name}") for name in front_end.state_dict()}
    for name, value in front_end.state_dict().items():
        if trained[name] is None or trained[name].shape != value.shape:
            say(
                f"no report on the table: built again it is not as large as in {best.name}: the file of "
                "vectors has changed since the run began"
                if best
                else "no report on the table: it lies in parts, and there is no checkpoint of the whole"
            )
            return None
    report = embedding_report.make_report(
        front_end,
        {name: value.detach().cpu() for name, value in trained.items()},
        data.tokenizer.tokens,
        data.train_counts,
        texts={split: data.type_counts(split) for split in data.splits},
        found=found,
        pad_id=data.tokenizer.pad_id,
        unk_id=data.tokenizer.unk_id,
        words=cfg.report.words,
        neighbours=cfg.report.neighbours,
        projected=cfg.report.projected,
    )
    for word in report.content["neighbours"]:
        if not word["in_vocabulary"]:
            say(f"report.words: '{word['word']}' is not in the vocabulary")
    write_json(folder.embedding_file, {"checkpoint": best.name if best else None, **report.content})
    if cfg.report.pictures:
        pictures.draw_table(report, folder.pictures / "embedding.png", title=f"{cfg.name}: the table")
    return report
