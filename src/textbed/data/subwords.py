"""Subwords by Hugging Face ``tokenizers``: trained on the training rows, or read from a ``tokenizer.json``.

Trained here, the text is cleaned first (HTML breaks to a space, Unicode normal form, lower case), then cut:

- ``bpe`` over bytes (Radford et al. 2019), so no text is unknown;
- ``wordpiece`` within words and signs (Schuster and Nakajima 2012), ``##`` before a piece that goes on;
- ``unigram`` (Kudo 2018), ``▁`` before a piece that begins a word.

A pretrained file brings its own cleaning: of the settings only ``html_breaks``, ``max_tokens`` and ``keep``
count. Its truncation, padding and the special tokens it would add to a text ([CLS] and the like) are left
out. Its padding and unknown rows are used where it has them, else rows of that name are appended to the
table.

A special token written out in a text is text: it never becomes the special row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from textbed.data.vocabulary import (
    KEEP,
    NORMAL_FORMS,
    PAD,
    SPECIAL,
    UNK,
    Texts,
    Tokenizer,
    as_texts,
    check_choice,
    check_whole,
    chunks,
    cleaned,
    limited,
    starts_of,
)
from textbed.errors import UserError

if TYPE_CHECKING:
    import tokenizers

ALGORITHMS = ("bpe", "wordpiece", "unigram")
# Names that published tokenizers give to the two rows.
PAD_NAMES = ("[PAD]", "<pad>", "<PAD>", "[pad]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
UNK_NAMES = ("[UNK]", "<unk>", "<UNK>", "[unk]", "<|unk|>", "<|unknown|>")


@dataclass(frozen=True)
class SubwordSettings:
    """The keys of ``tokenizer=subwords``; configs/tokenizer/subwords.yaml says what each does."""

    algorithm: str = "bpe"
    vocabulary_size: int = 16000
    min_count: int = 2
    normalize: str | None = "NFC"
    lowercase: bool = True
    html_breaks: bool = True
    max_tokens: int | None = None
    keep: str = "head"
    file: str | None = None

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        check_choice("normalize", self.normalize, NORMAL_FORMS, none=True)
        check_choice("keep", self.keep, KEEP)
        check_whole("max_tokens", self.max_tokens, 1, none=True)
        check_whole("vocabulary_size", self.vocabulary_size, len(SPECIAL) + 1)
        check_whole("min_count", self.min_count, 1)

    def clean(self, texts: pa.Array) -> pa.Array:
        """What happens to texts before they reach the subword model."""
        if self.file is not None:
            return cleaned(texts, self.html_breaks, None, False)
        return cleaned(texts, self.html_breaks, self.normalize, self.lowercase)

    def training(self) -> dict[str, Any]:
        """The settings that a tokenizer trained here depends on."""
        settings = asdict(self)
        return {name: settings[name] for name in settings if name not in ("max_tokens", "keep", "file")}


class SubwordTokenizer(Tokenizer):
    """A ``tokenizers`` model that writes flat ids."""

    kind = "subwords"

    def __init__(self, settings: SubwordSettings, model: str) -> None:
        """``model`` is the text of a ``tokenizer.json``. Raises UserError if it is none."""
        self.settings = settings
        self.model = model
        self._inner = _load(model, settings.file or "the trained tokenizer")
        names = {row: token for token, row in self._inner.get_vocab(with_added_tokens=True).items()}
        self._tokens = [names.get(row, "") for row in range(max(names, default=-1) + 1)]
        pad_id, unk_id = _special_rows(self._inner, json.loads(model))
        if pad_id is None:
            pad_id = len(self._tokens)
            self._tokens.append(PAD)
        if unk_id is None or unk_id == pad_id:
            unk_id = len(self._tokens)
            self._tokens.append(UNK)
        self.pad_id, self.unk_id = pad_id, unk_id

    @property
    def tokens(self) -> list[str]:
        return self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def identity(self) -> str:
        """A hash of all that the ids of a text depend on."""
        settings = asdict(self.settings)
        settings["file"] = self.settings.file is not None
        return hashlib.sha256((json.dumps(settings, sort_keys=True) + self.model).encode()).hexdigest()

    def encode_chunk(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return ids end to end, (N,) int32, and how many each text has, (B,) int64."""
        strings = self.settings.clean(texts).to_pylist()
        encodings = self._inner.encode_batch_fast(strings, add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        counts = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(chain.from_iterable(lists), np.int32, int(counts.sum()))
        # Only a file that lists its padding as an ordinary word can come to this.
        ids[ids == self.pad_id] = self.unk_id
        return limited(ids, counts, self.settings.max_tokens, self.settings.keep)

    def encode(self, texts: Texts, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        # The library has threads of its own, so ``threads`` has no bearing here.
        parts, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for chunk in chunks(as_texts(texts)):
            ids, lengths = self.encode_chunk(chunk)
            parts.append(ids)
            counts.append(lengths)
        return np.concatenate(parts), starts_of(np.concatenate(counts))

    def state(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "model": json.loads(self.model)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SubwordTokenizer:
        return cls(SubwordSettings(**state["settings"]), json.dumps(state["model"], ensure_ascii=False))

    @classmethod
    def pretrained(cls, settings: SubwordSettings) -> SubwordTokenizer:
        """Read ``settings.file``: a ``tokenizer.json`` or a folder with one. Raises UserError otherwise."""
        assert settings.file is not None
        path = Path(settings.file).expanduser()
        if path.is_dir():
            path = path / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            json.loads(text)
        except FileNotFoundError:
            raise UserError(
                f"tokenizer.file={settings.file}: no file {path}; give a tokenizer.json or a folder with one"
            ) from None
        except OSError as error:
            raise UserError(f"tokenizer.file={settings.file}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"tokenizer.file={settings.file}: {path} is no JSON: {error}") from None
        return cls(settings, text)


def _library() -> Any:
    # Encoding happens before any worker process is forked and the workers only gather, so threads are safe;
    # left unset, the library would warn at the first fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


def _load(model: str, source: str) -> tokenizers.Tokenizer:
    try:
        inner = _library().Tokenizer.from_str(model)
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"tokenizer.file={source}: not a tokenizer.json of Hugging Face tokenizers: {error}"
        ) from None
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner


def _special_rows(inner: tokenizers.Tokenizer, model: dict[str, Any]) -> tuple[int | None, int | None]:
    """The padding and the unknown row that a ``tokenizer.json`` names."""
    added = {token["content"]: token["id"] for token in model.get("added_tokens") or ()}

    def first(candidates: list[str]) -> int | None:
        rows = (inner.token_to_id(name) for name in candidates)
        return next((row for row in rows if row is not None), None)

    padding = model.get("padding") or {}
    pad = first([name for name in (padding.get("pad_token"),) if name] + [n for n in PAD_NAMES if n in added])
    unk = model["model"].get("unk_id")
    if unk is None:
        named = model["model"].get("unk_token")
        unk = first([name for name in (named,) if name] + [n for n in UNK_NAMES if n in added])
    return pad, unk


def train(settings: SubwordSettings, texts: Callable[[], Iterator[list[str]]]) -> str:
    """Train a tokenizer and return its ``tokenizer.json``.

    ``texts`` starts a fresh pass over the cleaned training texts, in lists of bounded size.
    ``vocabulary_size`` counts ``<pad>`` and ``<unk>``, which are rows 0 and 1. Raises UserError where it is
    too small for the texts' alphabet.

    BPE and WordPiece come out the same every time. Unigram's entries and their order do too, but the library
    adds up its scores in an order that changes from process to process: they are rounded to 3 decimals, and
    can still differ in the last. The cache keeps the tokenizer that was trained first.
    """
    library = _library()
    special = list(SPECIAL)
    common = {"vocab_size": settings.vocabulary_size, "show_progress": False}
    if settings.algorithm == "bpe":
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        _check_alphabet(settings, len(alphabet) + len(special))
        inner = library.Tokenizer(library.models.BPE())
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = library.trainers.BpeTrainer(
            min_frequency=settings.min_count, special_tokens=special, initial_alphabet=alphabet, **common
        )
        inner.train_from_iterator(texts(), trainer)
        return inner.to_str()
    if settings.algorithm == "wordpiece":

        def fresh() -> tokenizers.Tokenizer:
            # Trained again, a tokenizer would take the special tokens it already has for words of the texts.
            inner = library.Tokenizer(library.models.WordPiece(unk_token=UNK))
            inner.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
            return inner

        # The trainer numbers the ## characters in the order of a hash table that differs in each process, and
        # breaks ties by number. So a first pass finds them, without merges, and a second is told them in
        # order. It costs a third more time.
        nothing = library.trainers.WordPieceTrainer(vocab_size=0, special_tokens=special, show_progress=False)
        inner = fresh()
        inner.train_from_iterator(texts(), nothing)
        found = inner.get_vocab()
        _check_alphabet(settings, len(found))
        inside = sorted(token for token in found if token.startswith("##") and len(token) == 3)
        trainer = library.trainers.WordPieceTrainer(
            min_frequency=settings.min_count, special_tokens=special + inside, **common
        )
        inner = fresh()
        inner.train_from_iterator(texts(), trainer)
        model = json.loads(inner.to_str())
        model["added_tokens"] = [token for token in model["added_tokens"] if token["content"] in SPECIAL]
        return json.dumps(model, ensure_ascii=False)
    inner = library.Tokenizer(library.models.Unigram())
    inner.pre_tokenizer = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Metaspace(), library.pre_tokenizers.Punctuation()]
    )
    trainer = library.trainers.UnigramTrainer(special_tokens=special, unk_token=UNK, **common)
    try:
        inner.train_from_iterator(texts(), trainer)
    except Exception as error:
        if "not large enough" not in str(error):
            raise
        raise UserError(
            f"tokenizer.vocabulary_size={settings.vocabulary_size}: too small to hold each character of the "
            "training texts; raise it"
        ) from None
    model = json.loads(inner.to_str())
    pieces = model["model"]["vocab"]
    model["model"]["vocab"] = pieces[: len(special)] + sorted(
        [piece, round(score, 3)] for piece, score in pieces[len(special) :]
    )
    return json.dumps(model, ensure_ascii=False)


def _check_alphabet(settings: SubwordSettings, least: int) -> None:
    if settings.vocabulary_size <= least:
        raise UserError(
            f"tokenizer.vocabulary_size={settings.vocabulary_size}: {settings.algorithm} needs more than "
            f"{least} here, the special tokens and the alphabet"
        )
