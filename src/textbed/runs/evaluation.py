"""What ``scripts/evaluate.py`` does: the figures of a run's model again, on its own data or on other."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from textbed import config
from textbed.classifier import TextClassifier
from textbed.data import sources
from textbed.data.datamodule import TextDataModule
from textbed.data.loading import OrderedBatches, TokenDataset, make_loader
from textbed.data.shuffling import shuffle_key, shuffled
from textbed.data.vocabulary import Tokenizer
from textbed.errors import UserError
from textbed.network import Design
from textbed.runs.folder import RunFolder, now, write_json
from textbed.runs.model import best_checkpoint, read_network

SPLITS = ("train", "validation", "test")
PREFIX = {"train": "train", "validation": "val", "test": "test"}  # of figures, as training names them
# What may change without other data being meant: where the same documents lie, how they are put into batches,
# and in which order their words stand.
SAME_DATA = (
    "data.mirror", "data.workers", "data.eval_batch_size", "data.batch_tokens", "data.shuffle_words",
    "data.shuffle_seed",
)  # fmt: skip


def evaluate(
    path: str, split: str | None = None, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]], Path | None]:
    """Test the best checkpoint of a run, and write what it gave into ``evaluations/`` of the run folder.

    On the CPU the figures of the run's own test split are those of ``metrics.json`` to the last bit.

    Args:
        path: the run folder.
        split: train, validation or test; None is test, and of other data without one all documents.
        overrides: of the configuration: ``data=...`` and ``data.KEY=...`` choose other data, ``trainer...``
            and ``threads`` how it is done.

    Returns:
        Figures by name, those of each class, and the file they were written to: None where the run folder
        cannot be written.

    Raises:
        UserError: no such run, data that is not what it was, a class the model does not know.
    """
    folder = RunFolder.open(path)
    folder.check_one_model()
    if split is not None and split not in SPLITS:
        raise UserError(f"split={split}: expected one of {', '.join(SPLITS)}")
    cfg, own = _configuration(folder, overrides)
    design = Design.load(folder.model_file)
    weights = None if design.class_weights is None else torch.tensor(design.class_weights)
    make: Any = functools.partial(
        TextClassifier,
        class_weights=weights,
        label_smoothing=design.label_smoothing,
        class_names=design.classes,
    )
    _, tokenizer, model = read_network(folder.path, make)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if own:
        split = split or "test"
        loader, about = _own_loader(folder, cfg, tokenizer, split)
    else:
        loader, about, split = _other_loader(cfg, tokenizer, design, split)
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=[],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert isinstance(model, TextClassifier)
    trainer.test(model, dataloaders=loader, verbose=False)
    prefix = PREFIX[split] if own else "test"
    figures = {f"{prefix}/{name.partition('/')[2]}": value for name, value in model.figures.items()}
    file = folder.evaluations / f"{time.strftime('%Y%m%d-%H%M%S')}-{split}.json"
    for number in itertools.count(2):
        if not file.exists():
            break
        file = file.with_name(f"{file.stem.split('~')[0]}~{number}.json")
    content = {
        "time": now(),
        "checkpoint": best_checkpoint(folder).name,
        "data": about,
        "own_data": own,
        "split": split,
        "overrides": list(overrides),
        "documents": len(loader.dataset),  # type: ignore[arg-type]
        "figures": figures,
        "by_class": model.per_class,
    }
    try:
        write_json(file, content)
    except (OSError, UserError):  # the folder may be another's: the figures stand all the same
        return figures, model.per_class, None
    return figures, model.per_class, file


def _configuration(folder: RunFolder, overrides: Sequence[str]) -> tuple[DictConfig, bool]:
    """The run's configuration, changed, and whether its data is still the run's own."""
    cfg = OmegaConf.load(folder.config_file)
    assert isinstance(cfg, DictConfig)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for one in parsed:
        if not (one.key_or_group + ".").startswith(("data.", "trainer.", "threads.", "paths.cache.")):
            raise UserError(f"{one.input_line}: only data, trainer, threads and paths.cache can change here")
    other = [one for one in parsed if (one.key_or_group + ".").startswith("data.")]
    own = all(one.key_or_group in SAME_DATA for one in other)
    groups = {one.key_or_group for one in parsed} & {"data", "trainer"}
    if groups:
        chosen = [str(one.input_line) for one in parsed if one.key_or_group.partition(".")[0] in groups]
        configs = Path(__file__).resolve().parents[3] / "configs"
        with initialize_config_dir(str(configs), version_base="1.3"):
            composed = config.check(compose("train", ["embedding=random", *chosen]))
        for name in groups:
            cfg[name] = composed[name]
    for one in parsed:
        if one.key_or_group not in ("data", "trainer"):
            OmegaConf.update(cfg, one.key_or_group, one.value(), merge=False, force_add=True)
    return config.check(cfg), own


def _own_loader(
    folder: RunFolder, cfg: DictConfig, tokenizer: Tokenizer, split: str
) -> tuple[DataLoader, str]:
    """The split as the run had it."""
    data = own_data(folder, tokenizer, cfg)
    if split not in data.sets:
        raise UserError(f"split={split}: the run had none; there are {', '.join(data.sets)}")
    return data._evaluation_loader(split), data.corpus.description


def own_data(folder: RunFolder, tokenizer: Tokenizer, cfg: DictConfig | None = None) -> TextDataModule:
    """The documents as the run had them, in ids of its vocabulary.

    Args:
        cfg: the run's configuration; None reads it from the folder.

    Raises:
        UserError: they cannot be read, or are not what they were.
    """
    cfg = cfg or _configuration(folder, ())[0]
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    data.setup()
    known, tokens = data.tokenizer.tokens, tokenizer.tokens
    if data.fingerprint != folder.info().get("data") or tokens[: len(known)] != known:
        raise UserError(
            f"{folder}: the data has changed since the run: its documents, labels or splits are not what "
            "they were; restore it, or name other data, such as data=csv data.path=FILE"
        )
    data.add_words(tokens[len(known) :])
    return data


class _Encoded:
    """A column of texts as ids, in memory.

    Args:
        shuffle: the key of the random order in which the tokens of each text are to stand; None leaves them.
    """

    def __init__(self, tokenizer: Tokenizer, split: sources.Split, column: int, shuffle: int | None) -> None:
        parts, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for texts in split.texts(column):
            ids, starts = tokenizer.encode(texts)
            parts.append(ids)
            lengths.append(np.diff(starts))
        self.ids, self.lengths = np.concatenate(parts), np.concatenate(lengths)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        if shuffle is not None:
            self.ids = shuffled(self.ids, self.starts, np.arange(len(self.lengths)), shuffle)

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [self.ids[self.starts[row] : self.starts[row + 1]] for row in rows]
        starts = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        return np.concatenate([np.zeros(0, np.int32), *parts]), starts


def _other_loader(
    cfg: DictConfig, tokenizer: Tokenizer, design: Design, split: str | None
) -> tuple[DataLoader, str, str]:
    """A split of other data: the one that is asked for, else its test split, else its only one."""
    corpus = sources.load_labelled(cfg.data, Path(cfg.paths.cache), design.classes, design.multilabel)
    if corpus.columns != 1 + design.pairs:
        kind = "pairs of texts" if design.pairs else "single texts"
        raise UserError(f"data.text: {corpus.columns} columns of text were found; the model reads {kind}")
    if split is None:
        split = "test" if "test" in corpus.splits else next(iter(corpus.splits))
    if split not in corpus.splits:
        raise UserError(f"split={split}: the data has none; there are {', '.join(corpus.splits)}")
    part = corpus.splits[split]
    in_disorder = cfg.data.shuffle_words
    columns: list[Any] = [
        _Encoded(tokenizer, part, column, shuffle_key(cfg.data.shuffle_seed, column) if in_disorder else None)
        for column in range(corpus.columns)
    ]
    dataset = TokenDataset(columns, part.labels, np.arange(part.num_rows), design.multilabel)
    size, tokens = cfg.data.eval_batch_size, cfg.data.batch_tokens
    batches = OrderedBatches(np.asarray(dataset.lengths), batch_size=size, batch_tokens=tokens)
    return make_loader(dataset, batches), corpus.description, split
