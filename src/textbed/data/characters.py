"""Characters (Unicode code points) on Arrow columns, without one Python string per document.

The steps, in this order: HTML breaks become one space, Unicode normal form, lower case. White space is a
character like any other. A character's provisional id is its code point, so a column needs no list of
distinct characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed.data.vocabulary import (
    KEEP,
    NORMAL_FORMS,
    SPECIAL,
    UNK,
    UNKNOWN,
    Texts,
    Tokenizer,
    as_texts,
    check_choice,
    check_whole,
    chunks,
    cleaned,
    in_order,
    limited,
    starts_of,
    text_bytes,
    without,
)

CODE_POINTS = 0x110000


@dataclass(frozen=True)
class CharacterSettings:
    """The keys of ``tokenizer=characters``; configs/tokenizer/characters.yaml says what each does."""

    normalize: str | None = "NFC"
    lowercase: bool = False
    html_breaks: bool = True
    max_tokens: int | None = None
    keep: str = "head"
    vocabulary_size: int | None = None
    min_count: int = 1
    unknown: str = "keep"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMAL_FORMS, none=True)
        check_choice("keep", self.keep, KEEP)
        check_choice("unknown", self.unknown, UNKNOWN)
        check_whole("max_tokens", self.max_tokens, 1, none=True)
        check_whole("vocabulary_size", self.vocabulary_size, len(SPECIAL) + 1, none=True)
        check_whole("min_count", self.min_count, 1)

    def before_vocabulary(self) -> dict[str, Any]:
        """The settings that a column's characters depend on, before any vocabulary is counted."""
        names = ("normalize", "lowercase", "html_breaks", "max_tokens", "keep")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.max_tokens is None:
            settings["keep"] = None
        return settings


def split_characters(settings: CharacterSettings, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points of B texts end to end, (N,) int32, and how many each has, (B,) int64."""
    texts = cleaned(texts, settings.html_breaks, settings.normalize, settings.lowercase)
    data, starts = text_bytes(texts)
    if len(data) and data.max() >= 0x80:
        # One Python string for the whole chunk; its UTF-32 form is the array of code points.
        points = np.frombuffer(data.tobytes().decode().encode("utf-32-le"), "<u4").astype(np.int32)
        counts = pc.utf8_length(texts).to_numpy().astype(np.int64)
    else:
        points, counts = data.astype(np.int32), np.diff(starts)
    return limited(points, counts, settings.max_tokens, settings.keep)


class CharacterTokenizer(Tokenizer):
    """Characters, then their rows in a vocabulary counted from the training rows."""

    kind = "characters"
    pad_id = 0
    unk_id = SPECIAL.index(UNK)

    def __init__(self, settings: CharacterSettings, points: np.ndarray) -> None:
        self.settings = settings
        self.points = np.asarray(points, np.int64)  # (V - 2,) code points in rank order
        self.remap = np.full(CODE_POINTS, self.unk_id, np.int32)  # code point -> id
        self.remap[self.points] = np.arange(len(SPECIAL), len(self))
        self._tokens = [*SPECIAL, *map(chr, self.points.tolist())]

    @property
    def tokens(self) -> list[str]:
        return self._tokens

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.points)

    def encode(self, texts: Texts, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        parts, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for points, lengths in in_order(
            lambda chunk: split_characters(self.settings, chunk), chunks(as_texts(texts)), threads
        ):
            parts.append(self.remap.take(points))
            counts.append(lengths)
        ids, starts = np.concatenate(parts), starts_of(np.concatenate(counts))
        return without(ids, starts, self.unk_id) if self.settings.unknown == "drop" else (ids, starts)

    @classmethod
    def count(cls, settings: CharacterSettings, columns: Iterable[np.ndarray]) -> CharacterTokenizer:
        """Make the vocabulary from counts by code point, (0x110000,) each: by falling count, then point."""
        counts = np.sum(list(columns), axis=0)
        kept = np.flatnonzero(counts >= settings.min_count)
        order = kept[np.argsort(-counts[kept], kind="stable")]
        if settings.vocabulary_size is not None:
            order = order[: settings.vocabulary_size - len(SPECIAL)]
        return cls(settings, order)

    def state(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "code_points": self.points.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> CharacterTokenizer:
        return cls(CharacterSettings(**state["settings"]), np.array(state["code_points"], np.int64))
