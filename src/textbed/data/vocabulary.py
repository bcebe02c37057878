"""What every tokenizer stands on: vocabulary, cleaning of texts, chunks of documents in parallel.

Row 0 of every vocabulary made here is ``<pad>`` and row 1 is ``<unk>``; the words of the training rows
follow, the most frequent first. The two special rows can never be reached by a text that happens to contain
``<pad>`` or ``<unk>``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed.errors import UserError, nearest

PAD, UNK = "<pad>", "<unk>"
SPECIAL = (PAD, UNK)
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
KEEP = ("head", "tail", "both")
UNKNOWN = ("keep", "drop")
# The breaks that HTML leaves in scraped reviews: <br>, <br/>, <br />, <br >, in any case.
HTML_BREAK = r"(?i:<br ?/?>)"
# Chunks of this many bytes keep a chunk's words in the processor's cache and leave enough chunks to share
# among threads.
CHUNK_BYTES = 2 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")
Settings = TypeVar("Settings")
Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str | None]


class Tokenizer(ABC):
    """Text to ids: the same object serves training, evaluation and a single string at prediction.

    ``tokens[i]`` is the text of row i of the table, so ``len(tokenizer)`` is V. ``pad_id`` is a row that no
    text produces; ``unk_id`` stands for what the training rows did not hold.
    """

    kind: ClassVar[str]
    pad_id: int
    unk_id: int

    @property
    @abstractmethod
    def tokens(self) -> list[str]:
        """The text of each row of the table, (V,)."""

    @abstractmethod
    def __len__(self) -> int:
        """V, the number of rows of the table."""

    @abstractmethod
    def encode(self, texts: Texts, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of B documents end to end, (N,) int32, and where each starts, (B + 1,) int64.

        A null counts as an empty text; an empty text has no tokens. Raises UserError for a text with lone
        surrogates.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What ``load_tokenizer`` needs to make this tokenizer again, as plain JSON."""

    def save(self, folder: Path) -> Path:
        """Write ``tokenizer.json`` into ``folder`` in one step: a reader sees no half of it."""
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"kind": self.kind, **self.state()}, file, ensure_ascii=False)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


class Vocabulary:
    """The distinct words of the training rows in rank order; word k has id k + 2, after the special rows."""

    def __init__(self, words: pa.Array) -> None:
        self.words = words
        self._ids: dict[str, int] | None = None
        self._tokens: list[str] | None = None

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.words)

    @property
    def tokens(self) -> list[str]:
        if self._tokens is None:
            self._tokens = [*SPECIAL, *self.words.to_pylist()]
        return self._tokens

    @property
    def numbered(self) -> dict[str, int]:
        """The id of each word."""
        if self._ids is None:
            self._ids = {word: row for row, word in enumerate(self.words.to_pylist(), len(SPECIAL))}
        return self._ids

    def ids(self, words: pa.Array) -> np.ndarray:
        """Return the id of each of ``words``, int32; 1 where the vocabulary lacks it."""
        # Arrow builds its hash table anew at every call, which costs milliseconds: fine for a chunk, not for
        # one text.
        if len(words) < 4096:
            known, unknown = self.numbered, SPECIAL.index(UNK)
            return np.array([known.get(word, unknown) for word in words.to_pylist()], np.int32)
        found = pc.fill_null(pc.index_in(words, value_set=self.words), -1).to_numpy()
        return np.where(found < 0, SPECIAL.index(UNK), found + len(SPECIAL)).astype(np.int32)

    @classmethod
    def count(
        cls, columns: Iterable[tuple[pa.Array, np.ndarray]], min_count: int, vocabulary_size: int | None
    ) -> Vocabulary:
        """Merge (distinct words, their counts) of one or more columns and cut the result.

        Order is by falling count, then by the word's bytes, so equal counts always fall the same way.
        ``vocabulary_size`` is V: it counts the two special rows.
        """
        pairs = list(columns)
        merged = pa.concat_arrays([words for words, _ in pairs]).dictionary_encode()
        counts = np.zeros(len(merged.dictionary), np.int64)
        np.add.at(counts, merged.indices.to_numpy(), np.concatenate([counts for _, counts in pairs]))
        kept = np.flatnonzero(counts >= min_count)
        table = pa.table({"word": merged.dictionary.take(pa.array(kept)), "count": counts[kept]})
        order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("word", "ascending")])
        if vocabulary_size is not None:
            order = order.slice(0, vocabulary_size - len(SPECIAL))
        words = table["word"].take(order)
        return cls(pa.concat_arrays([pa.array([], pa.large_string()), *words.chunks]))


# Settings


def read_settings(cls: type[Settings], given: object) -> Settings:
    """Make a tokenizer's settings from the ``tokenizer`` group of the config (a mapping or a dataclass)."""
    items: Mapping[str, Any]
    if isinstance(given, Mapping):
        items = given
    elif dataclasses.is_dataclass(given) and not isinstance(given, type):
        items = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    else:
        raise TypeError(
            f"settings of a tokenizer must be a mapping or a dataclass, not {type(given).__name__}"
        )
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in items:
        if key not in (*names, "kind"):
            raise UserError(
                f"tokenizer.{key}: no such key for tokenizer.kind={items.get('kind')}.{nearest(key, names)}"
            )
    return cls(**{name: items[name] for name in names if name in items})


def check_choice(key: str, value: object, choices: Sequence[str], none: bool = False) -> None:
    """Raise UserError unless ``value`` is one of ``choices`` (or null, where ``none`` allows it)."""
    if value not in choices and not (none and value is None):
        listed = ", ".join([*choices, *(["null"] if none else [])])
        raise UserError(f"tokenizer.{key}={value}: expected one of {listed}.{nearest(value, choices)}")


def check_whole(key: str, value: object, least: int, none: bool = False) -> None:
    """Raise UserError unless ``value`` is a whole number from ``least`` on (or null, if ``none``)."""
    if none and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"tokenizer.{key}={value}: expected a whole number from {least} on{' or null' if none else ''}"
        )


# Texts


def as_texts(texts: Texts) -> pa.Array:
    """Return texts as one large_string array without nulls (a null becomes an empty text)."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays([pa.array([], texts.type), *texts.chunks])
    if not isinstance(texts, pa.Array):
        try:
            texts = pa.array(texts, pa.large_string())
        except UnicodeEncodeError as error:
            raise UserError(
                f"a text holds half of a surrogate pair, which is no character: {error}"
            ) from None
    if texts.type != pa.large_string():
        texts = texts.cast(pa.large_string())
    return texts.fill_null("") if texts.null_count else texts


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the UTF-8 bytes of a large_string array, uint8, and where each text starts, (B + 1,) int64.

    No copy is made of the bytes.
    """
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[starts[0] : starts[-1]], starts - starts[0]


def from_bytes(data: np.ndarray, starts: np.ndarray) -> pa.Array:
    """Return the large_string array over bytes and starts, the inverse of ``text_bytes``. No copy is made."""
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(starts) - 1, buffers)


def normalized(texts: pa.Array, form: str | None, lowercase: bool) -> pa.Array:
    """Put texts into a Unicode normal form, then into lower case, each character by itself."""
    if form is None and not lowercase:
        return texts
    data, _ = text_bytes(texts)
    low = pc.ascii_lower(texts) if lowercase else texts
    if not len(data) or data.max() < 0x80:
        return low
    # ASCII texts are their own normal form in all four; only the others go through the slow functions.
    wide = pc.invert(pc.string_is_ascii(texts))
    part = texts.filter(wide)
    if form is not None:
        part = pc.utf8_normalize(part, form)
    if lowercase:
        part = pc.utf8_lower(part)
    return pc.replace_with_mask(low, wide, part)


def cleaned(texts: pa.Array, html_breaks: bool, form: str | None, lowercase: bool) -> pa.Array:
    """Turn HTML breaks into a space each, then normal form, then lower case."""
    if html_breaks:
        texts = pc.replace_substring_regex(texts, HTML_BREAK, " ")
    return normalized(texts, form, lowercase)


# Ragged columns


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Return where each of B runs of ``counts`` tokens starts, and the end: (B + 1,) int64."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def take_runs(tokens: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return tokens[s : s + c] of each start s and count c, end to end."""
    ends = np.cumsum(counts)
    index = np.arange(ends[-1] if len(ends) else 0)
    index += np.repeat(starts - (ends - counts), counts)
    # take() is 2 to 3 times faster than fancy indexing here.
    return tokens.take(index)


def limited(
    tokens: np.ndarray, counts: np.ndarray, max_tokens: int | None, keep: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cut each document to ``max_tokens``: its head, its tail, or its first and its last half (``both``)."""
    if max_tokens is None or not len(counts) or counts.max() <= max_tokens:
        return tokens, counts
    ends = np.cumsum(counts)
    starts = ends - counts
    short = np.minimum(counts, max_tokens)
    if keep == "head":
        return take_runs(tokens, starts, short), short
    if keep == "tail":
        return take_runs(tokens, ends - short, short), short
    # Where the limit is odd, the head has one more.
    head = np.where(counts > max_tokens, (max_tokens + 1) // 2, counts)
    tail = short - head
    runs = take_runs(tokens, np.stack([starts, ends - tail], 1).ravel(), np.stack([head, tail], 1).ravel())
    return runs, short


def without(tokens: np.ndarray, starts: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove one id from ids (N,) and starts (B + 1,)."""
    kept = tokens != token
    if kept.all():
        return tokens, starts
    return tokens[kept], starts_of(kept)[starts]


# Chunks in parallel


def thread_count(threads: int | None) -> int:
    """Return ``threads``, or as many as there are cores for this process."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunks(texts: pa.Array, size: int = CHUNK_BYTES) -> Iterator[pa.Array]:
    """Cut an array of texts into slices of about ``size`` bytes (a longer text is a slice of its own)."""
    _, starts = text_bytes(texts)
    begin = 0
    while begin < len(texts):
        end = int(np.searchsorted(starts, starts[begin] + size, "right")) - 1
        # Empty texts take no bytes but do take rows: they are bounded too.
        end = min(max(end, begin + 1), begin + size // 16 + 1, len(texts))
        yield texts.slice(begin, end - begin)
        begin = end


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None
) -> Iterator[Result]:
    """Yield function(item) for each item, in order, from threads, with few more in flight than threads.

    Arrow and NumPy let go of the interpreter's lock, so threads are real workers here.
    """
    source = iter(items)
    head = next(source, None)
    if head is None:
        return
    second = next(source, None)
    workers = thread_count(threads)
    if second is None or workers == 1:
        # One chunk, as a single text at prediction has, is not worth a thread.
        yield function(head)
        if second is not None:
            yield function(second)
            yield from map(function, source)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        waiting: deque[Future[Result]] = deque([pool.submit(function, head), pool.submit(function, second)])
        try:
            for item in source:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
