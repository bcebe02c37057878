"""The LightningDataModule: source -> splits -> tokenizer -> encoded columns -> batches."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from textbed.data import encoding
from textbed.data.loading import (
    BucketedBatches,
    OrderedBatches,
    ShuffledBatches,
    TokenDataset,
    WithoutTokens,
    make_loader,
)
from textbed.data.preparation import prepare
from textbed.data.shuffling import shuffle_key
from textbed.data.words import WordTokenizer


class TextDataModule(pl.LightningDataModule):
    """Everything between a data set and the batches of token ids that a model sees.

    Args:
        data: the ``data`` group of the configuration (source, columns, splits, batches).
        tokenizer: the ``tokenizer`` group of the configuration.
        cache: folder for encoded columns; shared by runs, safe for several processes.
        seed: decides the order of the training documents; independent of the seeds that decide the splits.

    ``setup`` may be called often and does its work once. After it, ``corpus``, ``splits``,
    ``tokenizer``, ``encoded`` (columns by source split) and ``sets`` (by split) are there. Raises
    :class:`~textbed.errors.UserError` for data that cannot be read as asked.
    """

    def __init__(self, data: Any, tokenizer: Any, cache: Path, seed: int = 0) -> None:
        super().__init__()
        self.data = data
        self.tokenizer_settings = tokenizer
        self.cache = Path(cache)
        self.seed = seed
        self.sets: dict[str, TokenDataset] = {}
        self.added_words = 0
        """How many words at the end of the vocabulary no training document has; see ``add_words``."""
        self.without_tokens: Collection[str] = ()
        """Splits whose loaders leave the tokens out, for a model that pools the documents once itself."""

    def setup(self, stage: str | None = None) -> None:
        """Read, split, tokenize and encode; what has been encoded before comes from the cache."""
        if self.sets:
            return
        self.corpus, self.splits, self._of_training = prepare(self.data, self.tokenizer_settings, self.cache)
        self._use(self._of_training)

    def _use(self, encoded: encoding.Encoded) -> None:
        self.tokenizer, self.encoded = encoded
        if self.data.shuffle_words:
            self.encoded = {
                name: [
                    texts.shuffled(shuffle_key(self.data.shuffle_seed, number))
                    for number, texts in enumerate(columns)
                ]
                for name, columns in self.encoded.items()
            }
        for counts in ("train_counts", "train_document_counts"):  # of another vocabulary
            self.__dict__.pop(counts, None)
        self.sets = {
            name: TokenDataset(
                self.encoded[rows.split],
                self.corpus.splits[rows.split].labels[rows.rows],
                rows.rows,
                self.corpus.multilabel,
            )
            for name, rows in self.splits.items()
        }

    @cached_property
    def unseen_words(self) -> list[str]:
        """Words of the validation and test documents that no training document has, the most frequent first.

        Empty for characters and subwords, which spell any word.
        """
        tokenizer, encoded = self._of_training
        if not isinstance(tokenizer, WordTokenizer):
            return []
        parts = {name: (rows.split, rows.rows) for name, rows in self.splits.items()}
        return encoding.unseen_words(encoded, parts.pop("train"), parts.values()).to_pylist()

    def add_words(self, words: Sequence[str]) -> None:
        """Give ``words``, some of ``unseen_words``, ids after those of the training vocabulary, which stay.

        Training documents hold none of them and stay as they are. Called again it forgets what was added
        before; loaders made before go on as they were.
        """
        tokenizer, encoded = self._of_training
        if words:
            assert isinstance(tokenizer, WordTokenizer)
            self._use(encoding.with_words(tokenizer, encoded, words))
        elif self.added_words:
            self._use(self._of_training)
        self.added_words = len(words)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the splits and the vocabulary, a line each."""
        notes = []
        if self.data.folds is not None:
            notes.append(f"fold {self.data.fold} of {self.data.folds} (counted from 0) is the test split")
        elif "test" not in self.sets:
            notes.append("no test split: the source has none, and none was set aside")
        elif "test" not in self.corpus.splits:
            notes.append(f"the source has no test split: {self.data.test:.0%} of it was set aside as one")
        if "validation" in self.sets and self.splits["validation"].split != "validation":
            notes.append(f"validation is cut from the training documents: {self.data.validation:.0%} of them")
        if "validation" not in self.sets:
            notes.append("no validation split: the last epoch is tested, not the best")
        if self.data.shuffle_words:
            notes.append(
                "the tokens of every document stand in a random order, the same in every run "
                f"(data.shuffle_seed={self.data.shuffle_seed})"
            )
        if self.added_words:
            notes.append(
                f"+{self.added_words:,} words with a vector that only the validation or test text has"
            )
        return notes

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever a document, its label or its split does; the same on every machine.

        Shuffled tokens do not change it: they are the same documents, and runs with and without compare.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, part in self.splits.items():
            source = self.corpus.splits[part.split]
            for content in (name, source.fingerprint, *self.corpus.classes):
                digest.update(content.encode() + b"\0")
            digest.update(part.rows.astype("<i8").tobytes())
            digest.update(source.labels[part.rows].tobytes())  # of several labels, a byte each: (rows, C)
        return digest.hexdigest()

    @property
    def num_classes(self) -> int:
        return len(self.corpus.classes)

    @property
    def train_labels(self) -> np.ndarray:
        """Labels of the training documents: (B,) int64, or (B, C) for multi-label."""
        labels = self.sets["train"].labels
        assert labels is not None
        return labels

    @cached_property
    def train_counts(self) -> np.ndarray:
        """How often each token occurs in the training documents, (V,) int64."""
        train, size = self.splits["train"], len(self.tokenizer)
        return np.sum([column.count(train.rows, size) for column in self.encoded[train.split]], axis=0)

    def type_counts(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """How often each token of the vocabulary occurs in a split, and each one outside it."""
        rows = self.splits[split]
        return encoding.type_counts(self.encoded[rows.split], rows.rows, len(self.tokenizer))

    @cached_property
    def train_document_counts(self) -> np.ndarray:
        """In how many training documents each token occurs, (V,) int64; of a pair each text is a document."""
        size = len(self.tokenizer)
        counts = np.zeros(size, np.int64)
        for ids, starts in self._train_blocks():
            documents = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            counts += np.bincount(np.unique(documents * size + ids) % size, minlength=size)
        return counts

    def train_documents(self) -> Iterator[np.ndarray]:
        """The ids of the tokens of each training document; of pairs all first texts, then all second."""
        for ids, starts in self._train_blocks():
            yield from np.split(ids, starts[1:-1])

    def _train_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        train = self.splits["train"]
        for column in self.encoded[train.split]:
            for begin in range(0, len(train.rows), 1024):
                yield column.gather(train.rows[begin : begin + 1024])

    @property
    def train_fingerprint(self) -> str:
        """A hash of ``train_documents``."""
        digest = hashlib.blake2b(digest_size=16)
        for ids in self.train_documents():
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.astype("<i4").tobytes())
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader:
        sampler = {"shuffled": ShuffledBatches, "bucketed": BucketedBatches}[self.data.batching]
        # Lightning's overfit_batches means the same few batches in every epoch.
        same = bool(getattr(self.trainer, "overfit_batches", 0))
        return self._loader(
            "train", sampler, batch_size=self.data.batch_size, seed=self.seed, reshuffle=not same
        )

    def val_dataloader(self) -> DataLoader | list:
        # Without a validation split Lightning takes an empty list as "nothing to validate".
        return self._evaluation_loader("validation") if "validation" in self.sets else []

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # A copy from pinned memory need not be waited for; an Apple GPU might read what is free again.
        return batch.to(device, non_blocking=device.type == "cuda")

    def _evaluation_loader(self, split: str) -> DataLoader:
        return self._loader(split, OrderedBatches, batch_size=self.data.eval_batch_size)

    def _loader(self, split: str, sampler: Any, **settings: Any) -> DataLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        documents = self.sets[split]
        batches = sampler(
            documents.lengths,
            batch_tokens=self.data.batch_tokens,
            rank=rank,
            world_size=world_size,
            **settings,
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        given = WithoutTokens(documents) if split in self.without_tokens else documents
        return make_loader(given, batches, workers=self.data.workers, pin_memory=on_gpu)
