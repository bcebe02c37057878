"""Words on Arrow columns, without one Python string per document.

The steps, always in this order:

1. HTML breaks (``<br>``, ``<br/>``, ``<br />``, any case) become white space;
2. Unicode normal form;
3. lower case, each character by itself;
4. the characters of ``drop`` vanish, even if ``split_off`` names them too (``well-known``: ``wellknown``);
5. each character of ``split_off`` becomes a token of its own;
6. what stands between white space (all of Unicode's, as ``str.split()`` has it) is a word;
7. the length limit counts the tokens that came out.

Steps 2 and 3 are Arrow's; steps 4 to 6 mark, over the bytes of a whole chunk of documents at once, where a
token starts. The tokens then lie end to end as an Arrow string array without being copied, white space still
hanging on their ends; dictionary encoding finds the few distinct ones, and only those are trimmed. Replacing
and splitting by Arrow's own string functions gives the same words in about twice the time.

All that costs a third of a millisecond before it has seen a byte. A few short texts in ASCII, such as one at
prediction, are cut by a regular expression instead, with the same result; not with
``TEXTBED_PLAIN_KERNELS=1`` in the environment.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed import kernels
from textbed.data.vocabulary import (
    HTML_BREAK,
    KEEP,
    NORMAL_FORMS,
    SPECIAL,
    UNK,
    UNKNOWN,
    Texts,
    Tokenizer,
    Vocabulary,
    as_texts,
    check_choice,
    check_whole,
    chunks,
    from_bytes,
    in_order,
    limited,
    normalized,
    starts_of,
    text_bytes,
    without,
)

# Every character for which str.isspace() is true.
ASCII_SPACE = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "
WIDE_SPACE = "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# ASCII punctuation and the typographic signs that stand for it; the apostrophe too, so "it's" is it ' s.
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "‘’“”„«»–—…·•"

# What a byte is. A byte starts a token where it is MARK, or WORD without a WORD before it.
_NONE, _WORD, _MARK, _DROP, _LEAD = range(5)


@dataclass(frozen=True)
class WordSettings:
    """The keys of ``tokenizer=words``; configs/tokenizer/words.yaml says what each does."""

    normalize: str | None = "NFC"
    lowercase: bool = True
    html_breaks: bool = True
    split_off: str = PUNCTUATION
    drop: str = ""
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
        object.__setattr__(self, "split_off", self.split_off or "")
        object.__setattr__(self, "drop", self.drop or "")

    def before_vocabulary(self) -> dict[str, Any]:
        """The settings that a column's words depend on, before any vocabulary is counted."""
        names = ("normalize", "lowercase", "html_breaks", "max_tokens", "keep")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.max_tokens is None:
            settings["keep"] = None
        space = set(ASCII_SPACE + WIDE_SPACE)
        settings["split_off"] = "".join(sorted(set(self.split_off) - set(self.drop) - space))
        settings["drop"] = "".join(sorted(set(self.drop) - space))
        return settings


class Words(NamedTuple):
    """The words of B documents."""

    tokens: np.ndarray  # (N,) int32: index into ``distinct``
    counts: np.ndarray  # (B,) int64: tokens of each document
    distinct: pa.Array  # large_string, in order of first appearance


class WordSplitter:
    """Steps 1 to 7 of the module's docstring, compiled for one setting."""

    def __init__(self, settings: WordSettings) -> None:
        self.settings = settings
        # White space always separates: in split_off or drop it means nothing, so a list may be spaced out.
        kinds = dict.fromkeys(settings.split_off, _MARK) | dict.fromkeys(settings.drop, _DROP)
        kinds |= dict.fromkeys(ASCII_SPACE + WIDE_SPACE, _NONE)
        table = bytearray([_WORD] * 256)
        wide = {}
        for char, kind in kinds.items():
            encoded = char.encode()
            if len(encoded) == 1:
                table[encoded[0]] = kind
            else:
                table[encoded[0]] = _LEAD
                wide[int.from_bytes(encoded.ljust(4, b"\0"), "big")] = kind
        self._table = bytes(table)
        self._wide_keys = np.array(sorted(wide), np.uint32)
        self._wide_kinds = np.array([wide[key] for key in sorted(wide)], np.uint8)

    def __call__(self, texts: pa.Array) -> Words:
        """Split a large_string array without nulls."""
        if self.settings.html_breaks:
            texts = blank_breaks(texts)
        texts = normalized(texts, self.settings.normalize, self.settings.lowercase)
        data, starts = text_bytes(texts)
        if not len(data):
            return Words(
                np.zeros(0, np.int32), np.zeros(len(texts), np.int64), pa.array([], pa.large_string())
            )
        # bytes.translate holds the interpreter's lock, but takes 1 ns a byte: a 25th of the whole.
        kinds = np.frombuffer(bytearray(data).translate(self._table), np.uint8)
        leads = np.flatnonzero(kinds == _LEAD)
        if len(leads):
            data = self._mark_wide(data, kinds, leads)
        dropped = np.flatnonzero(kinds == _DROP) if self.settings.drop else ()
        if len(dropped):
            starts = starts - np.searchsorted(dropped, starts)
            kept = kinds != _DROP
            data, kinds = data[kept], kinds[kept]
        begins = np.empty(len(data), bool)
        # MARK (2) beats both values at its left, WORD (1) only what is no word, NONE (0) nothing.
        np.greater(kinds[1:], kinds[:-1] == _WORD, out=begins[1:])
        first = starts[:-1][starts[:-1] < len(data)]
        begins[first] = kinds[first] > _NONE
        positions = np.flatnonzero(begins)
        counts = np.diff(np.searchsorted(positions, starts))
        # Each token runs up to the next one, so white space hangs on its end until the distinct ones are
        # trimmed.
        hanging = from_bytes(data, np.append(positions, len(data))).dictionary_encode()
        distinct = pc.ascii_rtrim(hanging.dictionary, characters=ASCII_SPACE).dictionary_encode()
        tokens = distinct.indices.to_numpy().take(hanging.indices.to_numpy())
        tokens, counts = limited(tokens, counts, self.settings.max_tokens, self.settings.keep)
        return Words(tokens, counts, distinct.dictionary)

    def _mark_wide(self, data: np.ndarray, kinds: np.ndarray, leads: np.ndarray) -> np.ndarray:
        """Settle characters of several bytes that may be special; returns data with wide spaces blanked."""
        end = len(data) - 1
        keys = np.zeros(len(leads), np.uint32)
        sizes = 2 + (data[leads] >= 0xE0).astype(np.int64) + (data[leads] >= 0xF0)
        for place in range(4):
            # Past its end, a character's key has zeros; what lies there belongs to the next one.
            byte = np.where(place < sizes, data[np.minimum(leads + place, end)], 0).astype(np.uint32)
            keys |= byte << np.uint32(8 * (3 - place))
        found = np.searchsorted(self._wide_keys, keys).clip(max=len(self._wide_keys) - 1)
        hit = self._wide_keys[found] == keys
        kinds[leads[~hit]] = _WORD
        leads, sizes, special = leads[hit], sizes[hit], self._wide_kinds[found[hit]]
        data = data.copy()
        for place in range(4):
            here = sizes > place
            at, kind = leads[here] + place, special[here]
            # The bytes that follow a MARK start nothing and end the word before what comes after them.
            kinds[at] = np.where((kind == _MARK) & (place > 0), _NONE, kind)
            data[at[kind == _NONE]] = 0x20
        return data


def blank_breaks(texts: pa.Array) -> pa.Array:
    """Overwrite HTML breaks with spaces, byte for byte."""
    data, starts = text_bytes(texts)
    at = np.flatnonzero(data == ord("<"))
    at = at[at + 4 <= len(data)]
    if len(at):
        at = at[((data[at + 1] | 0x20) == ord("b")) & ((data[at + 2] | 0x20) == ord("r"))]
    if not len(at):
        return texts
    # A break may end with the bytes themselves: six zeros are room to look ahead.
    data = np.concatenate([data, np.zeros(6, np.uint8)])
    last = at + 3
    last += data[last] == ord(" ")
    last += data[last] == ord("/")
    # Not across the end of a document.
    whole = (data[last] == ord(">")) & (last < starts[np.searchsorted(starts, at, "right")])
    at, last = at[whole], last[whole]
    for place in range(6):
        data[np.minimum(at + place, last)] = 0x20
    return from_bytes(data, starts)


class ShortSplitter:
    """Steps 1 to 6 of the module's docstring for one text in ASCII, as Python strings.

    There a normal form changes nothing, and lower case is the same for the whole as for each character.
    """

    def __init__(self, settings: WordSettings) -> None:
        self._breaks = re.compile(HTML_BREAK) if settings.html_breaks else None
        self._lowercase = settings.lowercase
        dropped = set(settings.drop) - set(ASCII_SPACE)
        self._dropped = str.maketrans("", "", "".join(dropped)) if dropped else None
        marks = {char for char in set(settings.split_off) - dropped - set(ASCII_SPACE) if char.isascii()}
        apart = re.escape("".join(sorted(marks)))
        word = rf"[^{re.escape(ASCII_SPACE)}{apart}]+"
        self._find = re.compile(rf"[{apart}]|{word}" if apart else word).findall

    def __call__(self, text: str) -> list[str]:
        if self._breaks is not None and "<" in text:
            text = self._breaks.sub(" ", text)
        if self._lowercase:
            text = text.lower()
        if self._dropped is not None:
            text = text.translate(self._dropped)
        return self._find(text)


class WordTokenizer(Tokenizer):
    """Words, then their rows in a vocabulary counted from the training rows.

    Attributes:
        short: characters up to which texts in ASCII, all together, are cut as Python strings; 0 for none, as
            with ``TEXTBED_PLAIN_KERNELS=1`` when the tokenizer is made.
    """

    kind = "words"
    pad_id = 0
    unk_id = SPECIAL.index(UNK)

    def __init__(self, settings: WordSettings, vocabulary: Vocabulary) -> None:
        self.short = 0 if kernels.plain else 4096
        self.settings = settings
        self.vocabulary = vocabulary
        self._split = WordSplitter(settings)
        self._split_short = ShortSplitter(settings)

    @property
    def tokens(self) -> list[str]:
        return self.vocabulary.tokens

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, texts: Texts, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, list) and self._are_short(texts):
            ids, starts = self._encode_short(texts)
        else:
            parts, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
            for words in in_order(self._split, chunks(as_texts(texts)), threads):
                parts.append(self.vocabulary.ids(words.distinct).take(words.tokens))
                counts.append(words.counts)
            ids, starts = np.concatenate(parts), starts_of(np.concatenate(counts))
        return without(ids, starts, self.unk_id) if self.settings.unknown == "drop" else (ids, starts)

    def _are_short(self, texts: list[str | None]) -> bool:
        left = self.short
        for text in texts:
            left -= len(text or "") + 1
            if left < 0 or not (text or "").isascii():
                return False
        return True

    def _encode_short(self, texts: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        known, found = self.vocabulary.numbered, list[int]()
        counts = np.zeros(len(texts), np.int64)
        for number, text in enumerate(texts):
            words = self._split_short(text or "")
            counts[number] = len(words)
            found += [known.get(word, self.unk_id) for word in words]
        ids, counts = limited(np.array(found, np.int32), counts, self.settings.max_tokens, self.settings.keep)
        return ids, starts_of(counts)

    def state(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "words": self.vocabulary.words.to_pylist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordTokenizer:
        words = pa.array(state["words"], pa.large_string())
        return cls(WordSettings(**state["settings"]), Vocabulary(words))
