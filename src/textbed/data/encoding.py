"""Encoded columns: texts tokenized once, kept in memory-mapped files, and gathered as flat ids.

What costs time, cutting texts into tokens, does not depend on the vocabulary. So for words and characters
each text column of each split is stored once with *provisional* ids (the place of a word in the column's own
list of distinct words; the code point of a character). The vocabulary is counted from the provisional ids of
the training rows, and ``remap`` (provisional id -> row of the table) is applied as rows are gathered. Folds,
fractions, seeds, sizes of the vocabulary and minimum counts therefore all share one tokenization, and none
can see another's vocabulary.

A folder of the cache is named by a hash of all that its content depends on, is built under another name and
then renamed, and is used only if its files have the sizes that its ``meta.json`` lists. It can be deleted at
any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textbed.data import subwords
from textbed.data.characters import CODE_POINTS, CharacterSettings, CharacterTokenizer, split_characters
from textbed.data.shuffling import shuffled
from textbed.data.subwords import SubwordSettings, SubwordTokenizer
from textbed.data.vocabulary import (
    Tokenizer,
    Vocabulary,
    as_texts,
    chunks,
    in_order,
    read_settings,
    starts_of,
    take_runs,
    without,
)
from textbed.data.words import Words, WordSettings, WordSplitter, WordTokenizer
from textbed.errors import UserError, nearest

# Part of every key: raise it whenever the same settings would give other tokens or other files.
VERSION = 1
KINDS = ("words", "characters", "subwords")
# Tokens held in memory before the distinct words of the chunks so far are merged, and in a block of a count.
MERGE_TOKENS = 16_000_000
BLOCK_TOKENS = 4_000_000
# A folder that is being built is written to all the time; one left by a killed process is cleared after this
# long.
STALE_SECONDS = 6 * 3600
META = "meta.json"
WORDS = "words.arrow"


class TextSplit(Protocol):
    """What is asked of a split: its size, a hash of its texts, and the texts themselves as a stream."""

    num_rows: int
    fingerprint: str

    def texts(self, column: int = 0) -> Iterator[pa.Array]: ...


@dataclass(frozen=True)
class TextStatistics:
    """Figures of some rows of an encoded column."""

    documents: int
    empty: int  # documents without a token, before unknown ones are dropped
    tokens: int  # before unknown ones are dropped
    distinct: int  # words (characters, subwords) that occur, known or not
    unknown: int  # tokens without a row of their own

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that are unknown, 0 to 1."""
        return self.unknown / self.tokens if self.tokens else 0.0


class Column:
    """One text column of one split with provisional ids, memory-mapped from a folder of the cache.

    Pickles as its folder's path, so that worker processes map the same file instead of copying it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Plain arrays over the mapped files: the memmap class itself slows small reads.
        self.tokens: np.ndarray = np.load(folder / "tokens.npy", mmap_mode="r").view(np.ndarray)
        self.offsets: np.ndarray = np.load(folder / "offsets.npy", mmap_mode="r").view(np.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Column, (self.folder,))

    @property
    def words(self) -> pa.Array:
        """The distinct words, large_string, in order of first appearance (columns of words only)."""
        with pa.memory_map(str(self.folder / WORDS)) as source:
            words = pa.ipc.open_file(source).read_all()["word"]
        return pa.concat_arrays([pa.array([], pa.large_string()), *words.chunks])

    def names(self, ids: np.ndarray) -> pa.Array:
        """What provisional ids stand for, the same in every column: words, else the ids themselves."""
        return self.words.take(pa.array(ids)) if (self.folder / WORDS).is_file() else pa.array(ids)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the provisional ids of B rows end to end, (N,) int32, and their starts, (B + 1,) int64."""
        if not len(rows):
            return np.zeros(0, np.int32), np.zeros(1, np.int64)
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self.offsets) - 1:
            raise IndexError(f"row {low if low < 0 else high} of a column with {len(self.offsets) - 1} rows")
        if high - low + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
            starts = self.offsets[low : high + 2]
            return self.tokens[starts[0] : starts[-1]], starts - starts[0]
        begins = self.offsets.take(rows)
        counts = self.offsets.take(rows + 1) - begins
        return take_runs(self.tokens, begins, counts), starts_of(counts)

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Cut ``rows`` so that each block holds a bounded number of tokens."""
        ends = np.cumsum(self.offsets.take(rows + 1) - self.offsets.take(rows))
        begin = 0
        while begin < len(rows):
            before = ends[begin - 1] if begin else 0
            end = max(int(np.searchsorted(ends, before + BLOCK_TOKENS, "right")), begin + 1)
            yield rows[begin:end]
            begin = end

    def count(self, rows: np.ndarray, size: int) -> np.ndarray:
        """How often each provisional id occurs in ``rows``, (size,) int64."""
        counts = np.zeros(size, np.int64)
        for block in self.blocks(rows):
            counts += np.bincount(self.take(block)[0], minlength=size)
        return counts


class EncodedTexts:
    """One text column of one split as ids of the table's rows."""

    def __init__(
        self,
        column: Column,
        remap: np.ndarray | None,
        unk_id: int,
        drop_unknown: bool = False,
        shuffle: int | None = None,
    ) -> None:
        """``remap`` maps provisional ids to rows, int32; None where the stored ids are the rows already.

        ``shuffle`` is the key of the random order in which each document's tokens stand, see ``shuffling``;
        None leaves them as they are.
        """
        self.column = column
        self.remap = remap
        self.unk_id = unk_id
        self.drop_unknown = drop_unknown
        self.shuffle = shuffle

    def shuffled(self, key: int) -> EncodedTexts:
        """The same texts, the tokens of each in the random order of ``key``. Nothing is read or copied."""
        return EncodedTexts(self.column, self.remap, self.unk_id, self.drop_unknown, key)

    @property
    def num_rows(self) -> int:
        return len(self.column.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row as ``gather`` returns them, (rows,) int64. Reads all where unknown ones drop."""
        if not self.drop_unknown:
            return np.diff(self.column.offsets)
        blocks = self.column.blocks(np.arange(self.num_rows))
        counts = (np.diff(self._ids(*self.column.take(block))[1]) for block in blocks)
        return np.concatenate([np.zeros(0, np.int64), *counts])

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of B rows end to end, (N,) int32, and where each row starts, (B + 1,) int64.

        Rows may come in any order and more than once. Raises IndexError for a row that is not there.
        """
        rows = np.asarray(rows, np.int64)
        tokens, starts = self.column.take(rows)
        if self.shuffle is not None:  # before any is dropped: those left then stand the same way round
            tokens = shuffled(tokens, starts, rows, self.shuffle)
        return self._ids(tokens, starts)

    def _ids(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(tokens) if self.remap is None else self.remap.take(tokens)
        return without(ids, starts, self.unk_id) if self.drop_unknown else (ids, starts)

    def count(self, rows: np.ndarray, size: int) -> np.ndarray:
        """How often each of ``size`` ids occurs in ``rows``, (size,) int64. Reads their tokens once."""
        if self.remap is None:
            return self.column.count(np.asarray(rows, np.int64), size)
        counts = self.column.count(np.asarray(rows, np.int64), len(self.remap))
        total = np.zeros(size, np.int64)
        np.add.at(total, self.remap, counts)
        if self.drop_unknown:
            total[self.unk_id] = 0
        return total

    def statistics(self, rows: np.ndarray) -> TextStatistics:
        """Count documents, tokens, distinct words and unknown tokens of ``rows``. Reads their tokens once."""
        rows = np.asarray(rows, np.int64)
        size = (
            len(self.remap)
            if self.remap is not None
            else int(self.column.tokens.max(initial=self.unk_id)) + 1
        )
        counts = self.column.count(rows, size)
        unknown = counts[self.unk_id] if self.remap is None else counts[self.remap == self.unk_id].sum()
        lengths = self.column.offsets.take(rows + 1) - self.column.offsets.take(rows)
        return TextStatistics(
            documents=len(rows),
            empty=int((lengths == 0).sum()),
            tokens=int(lengths.sum()),
            distinct=int(np.count_nonzero(counts)),
            unknown=int(unknown),
        )


def type_counts(
    columns: Sequence[EncodedTexts], rows: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each distinct token occurs in ``rows`` of all columns, before unknown ones are dropped.

    Returns the counts of the vocabulary's tokens, (size,) int64, 0 for the unknown one; and those of the
    distinct tokens outside it, int64. Subwords keep no text of what is unknown: there all of it is one.
    """
    rows = np.asarray(rows, np.int64)
    known = np.zeros(size, np.int64)
    names, unknown = [], []
    for column in columns:
        remap = np.arange(size) if column.remap is None else column.remap
        counts = column.column.count(rows, len(remap))
        np.add.at(known, remap, counts)
        outside = np.flatnonzero((remap == column.unk_id) & (counts > 0))
        names.append(column.column.names(outside))
        unknown.append(counts[outside])
        known[column.unk_id] = 0
    # Two columns of words number them each in its own way; they are one word where they are spelt alike.
    merged = pa.concat_arrays(names).dictionary_encode()
    total = np.zeros(len(merged.dictionary), np.int64)
    np.add.at(total, merged.indices.to_numpy(), np.concatenate(unknown))
    return known, total


Encoded = tuple[Tokenizer, dict[str, list[EncodedTexts]]]
Train = tuple[str, np.ndarray]


def encode(
    settings: object,
    splits: Mapping[str, TextSplit],
    columns: int,
    train: tuple[str, np.ndarray],
    cache: Path,
    threads: int | None = None,
) -> tuple[Tokenizer, dict[str, list[EncodedTexts]]]:
    """Tokenize every text column of every split, and count the vocabulary from the training rows alone.

    ``settings`` is the ``tokenizer`` group; ``train`` names a split and its training rows; ``threads`` is the
    number of cores where it is None, and has no bearing on the result. Returns the tokenizer and, by split,
    one EncodedTexts per text column. Raises UserError for a setting out of range, training rows without a
    single token, and a cache that cannot be written.
    """
    kind = (
        settings.get("kind", "words") if isinstance(settings, Mapping) else getattr(settings, "kind", "words")
    )
    if kind not in KINDS:
        raise UserError(f"tokenizer.kind={kind}: expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    encoder = {"words": _encode_words, "characters": _encode_characters, "subwords": _encode_subwords}[kind]
    name, rows = train[0], np.asarray(train[1], np.int64)
    return encoder(settings, splits, columns, (name, rows), Path(cache), threads)


def unseen_words(
    encoded: Mapping[str, Sequence[EncodedTexts]], train: Train, others: Iterable[Train]
) -> pa.Array:
    """The words that occur in other rows and in no training row, the most frequent first, large_string.

    Each of ``train`` and ``others`` names a source split and its rows. None where the texts are not encoded
    as words. Words of the training rows that the vocabulary leaves out are not among them.
    """

    def counted(name: str, rows: np.ndarray) -> list[tuple[pa.Array, np.ndarray]]:
        columns = [(texts.column.words, texts.column) for texts in encoded[name]]
        return [(words, column.count(rows, len(words))) for words, column in columns]

    none = pa.array([], pa.large_string())
    seen = pa.concat_arrays(
        [none, *(words.filter(pa.array(counts > 0)) for words, counts in counted(*train))]
    )
    told = [pair for other in others for pair in counted(*other)]
    words = Vocabulary.count([(none, np.zeros(0, np.int64)), *told], 1, None).words
    return words.filter(pc.invert(pc.is_in(words, value_set=seen)))


def with_words(
    tokenizer: WordTokenizer, encoded: Mapping[str, Sequence[EncodedTexts]], words: Sequence[str]
) -> Encoded:
    """A tokenizer with more words after its own, and columns that know them; ids that were there stay."""
    more = pa.concat_arrays([tokenizer.vocabulary.words, pa.array(words, pa.large_string())])
    tokenizer = WordTokenizer(tokenizer.settings, Vocabulary(more))
    stored = {name: [texts.column for texts in split] for name, split in encoded.items()}
    return tokenizer, _numbered(tokenizer, stored)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what ``Tokenizer.save`` wrote into ``folder``. Raises UserError if it is missing or damaged."""
    path = Path(folder) / "tokenizer.json"
    makers: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {
        "words": WordTokenizer.from_state,
        "characters": CharacterTokenizer.from_state,
        "subwords": SubwordTokenizer.from_state,
    }
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        return makers[state["kind"]](state)
    except FileNotFoundError:
        raise UserError(f"{folder}: no tokenizer.json in it, so it is no finished run") from None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer of a run, or damaged: {error!r}") from None


def _encode_words(
    given: object,
    splits: Mapping[str, TextSplit],
    columns: int,
    train: Train,
    cache: Path,
    threads: int | None,
) -> Encoded:
    settings = read_settings(WordSettings, given)
    splitter = WordSplitter(settings)

    def build(split: TextSplit, column: int) -> Callable[[Path], None]:
        return lambda folder: _write_words(folder, split, column, splitter, threads)

    stored = _columns(splits, columns, cache, ["words", settings.before_vocabulary(), pa.__version__], build)
    name, rows = train
    counted = [(column.words, column) for column in stored[name]]
    counts = [(words, column.count(rows, len(words))) for words, column in counted]
    _check_tokens(sum(int(count.sum()) for _, count in counts), name, rows)
    vocabulary = Vocabulary.count(counts, settings.min_count, settings.vocabulary_size)
    if not len(vocabulary.words):
        raise UserError(
            f"tokenizer.min_count={settings.min_count}: no word of the {len(rows)} training documents "
            "occurs so often"
        )
    tokenizer = WordTokenizer(settings, vocabulary)
    return tokenizer, _numbered(tokenizer, stored)


def _numbered(
    tokenizer: WordTokenizer, stored: Mapping[str, Sequence[Column]]
) -> dict[str, list[EncodedTexts]]:
    """Columns of words by the tokenizer's vocabulary."""
    drop, ids = tokenizer.settings.unknown == "drop", tokenizer.vocabulary.ids
    return {
        name: [EncodedTexts(column, ids(column.words), tokenizer.unk_id, drop) for column in split]
        for name, split in stored.items()
    }


def _encode_characters(
    given: object,
    splits: Mapping[str, TextSplit],
    columns: int,
    train: Train,
    cache: Path,
    threads: int | None,
) -> Encoded:
    settings = read_settings(CharacterSettings, given)

    def build(split: TextSplit, column: int) -> Callable[[Path], None]:
        def cut(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
            return split_characters(settings, texts)

        return lambda folder: _write_tokens(folder, in_order(cut, _chunks(split, column), threads))

    stored = _columns(
        splits, columns, cache, ["characters", settings.before_vocabulary(), pa.__version__], build
    )
    name, rows = train
    counts = [column.count(rows, CODE_POINTS) for column in stored[name]]
    _check_tokens(sum(int(count.sum()) for count in counts), name, rows)
    tokenizer = CharacterTokenizer.count(settings, counts)
    if len(tokenizer) == len(tokenizer.tokens[:2]):
        raise UserError(
            f"tokenizer.min_count={settings.min_count}: no character of the {len(rows)} training documents "
            "occurs so often"
        )
    drop = settings.unknown == "drop"
    return tokenizer, {
        name: [EncodedTexts(column, tokenizer.remap, tokenizer.unk_id, drop) for column in split]
        for name, split in stored.items()
    }


def _encode_subwords(
    given: object,
    splits: Mapping[str, TextSplit],
    columns: int,
    train: Train,
    cache: Path,
    threads: int | None,
) -> Encoded:
    from importlib.metadata import version

    settings = read_settings(SubwordSettings, given)
    name, rows = train
    if settings.file is not None:
        tokenizer = SubwordTokenizer.pretrained(settings)
    else:
        content = hashlib.sha256(np.sort(rows).tobytes()).hexdigest()
        key = [
            "trained",
            splits[name].fingerprint,
            columns,
            content,
            settings.training(),
            version("tokenizers"),
        ]

        def build_tokenizer(folder: Path) -> None:
            def texts() -> Iterator[list[str]]:
                for column in range(columns):
                    yield from _training_texts(splits[name], column, rows, settings)

            if not any(text for batch in texts() for text in batch):
                _check_tokens(0, name, rows)
            (folder / "tokenizer.json").write_text(subwords.train(settings, texts), encoding="utf-8")

        folder = _stored(cache, "subwords", key, build_tokenizer)
        tokenizer = SubwordTokenizer(settings, (folder / "tokenizer.json").read_text(encoding="utf-8"))

    def build(split: TextSplit, column: int) -> Callable[[Path], None]:
        # One chunk at a time: the library spreads it over its own threads.
        return lambda folder: _write_tokens(folder, map(tokenizer.encode_chunk, _chunks(split, column)))

    key = ["subwords", tokenizer.identity, version("tokenizers"), pa.__version__]
    stored = _columns(splits, columns, cache, key, build)
    trained = [np.asarray(column.offsets[rows + 1] - column.offsets[rows]) for column in stored[name]]
    _check_tokens(sum(int(lengths.sum()) for lengths in trained), name, rows)
    return tokenizer, {
        name: [EncodedTexts(column, None, tokenizer.unk_id) for column in split]
        for name, split in stored.items()
    }


def _check_tokens(tokens: int, name: str, rows: np.ndarray) -> None:
    if not tokens:
        raise UserError(
            f"the {len(rows)} training documents (split {name}) hold not one token: they are empty, or all "
            "is dropped; check data.text and the tokenizer's settings"
        )


def _training_texts(
    split: TextSplit, column: int, rows: np.ndarray, settings: SubwordSettings
) -> Iterator[list[str]]:
    wanted = np.zeros(split.num_rows, bool)
    wanted[rows] = True
    begin = 0
    for batch in split.texts(column):
        texts = as_texts(batch)
        for chunk in chunks(texts.filter(pa.array(wanted[begin : begin + len(texts)]))):
            yield settings.clean(chunk).to_pylist()
        begin += len(texts)


def _chunks(split: TextSplit, column: int) -> Iterator[pa.Array]:
    for batch in split.texts(column):
        yield from chunks(as_texts(batch))


def _columns(
    splits: Mapping[str, TextSplit],
    columns: int,
    cache: Path,
    key: list[Any],
    build: Callable[[TextSplit, int], Callable[[Path], None]],
) -> dict[str, list[Column]]:
    """Open every column of every split from the cache, and build those that are not there."""
    return {
        name: [
            Column(
                _stored(
                    cache, "tokens", [*key, split.fingerprint, column], build(split, column), split.num_rows
                )
            )
            for column in range(columns)
        ]
        for name, split in splits.items()
    }


# Writing


class _NpyFile:
    """A one-dimensional .npy file written piece by piece; its length goes into the header at the end."""

    HEADER = 128

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 -- closed by __exit__
        self._file.write(b"\0" * self.HEADER)

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        self._file.write(values.data)
        self.count += len(values)

    def __enter__(self) -> _NpyFile:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None:
                described = (
                    f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({self.count},), }}"
                )
                start = b"\x93NUMPY\x01\x00" + (self.HEADER - 10).to_bytes(2, "little")
                self._file.seek(0)
                self._file.write(start + described.encode().ljust(self.HEADER - 11) + b"\n")
        finally:
            self._file.close()


def _write_tokens(folder: Path, pieces: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write (tokens end to end, tokens of each document) piece by piece."""
    with _NpyFile(folder / "tokens.npy", "<i4") as tokens, _NpyFile(folder / "offsets.npy", "<i8") as offsets:
        offsets.append(np.zeros(1, np.int64))
        for values, counts in pieces:
            offsets.append(np.cumsum(counts) + tokens.count)
            tokens.append(values)


def _write_words(
    folder: Path, split: TextSplit, column: int, splitter: WordSplitter, threads: int | None
) -> None:
    """Write a column of words. Memory is bounded by the distinct words and MERGE_TOKENS."""
    distinct = pa.array([], pa.large_string())

    def merged() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal distinct
        waiting: list[Words] = []
        size = 0
        for words in in_order(splitter, _chunks(split, column), threads):
            waiting.append(words)
            size += len(words.tokens)
            if size >= MERGE_TOKENS:
                distinct, pieces = _merge(distinct, waiting)
                yield from pieces
                waiting, size = [], 0
        distinct, pieces = _merge(distinct, waiting)
        yield from pieces

    _write_tokens(folder, merged())
    with open(folder / WORDS, "wb") as file:
        table = pa.table({"word": distinct})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def _merge(distinct: pa.Array, waiting: list[Words]) -> tuple[pa.Array, list[tuple[np.ndarray, np.ndarray]]]:
    """Number the words of chunks by one list: those so far, then new ones in order of appearance."""
    every = pa.concat_arrays([distinct, *(words.distinct for words in waiting)]).dictionary_encode()
    places = every.indices.to_numpy()
    begin = len(distinct)
    pieces = []
    for words in waiting:
        end = begin + len(words.distinct)
        pieces.append((places[begin:end].take(words.tokens), words.counts))
        begin = end
    return every.dictionary, pieces


# The cache


def _stored(
    cache: Path, group: str, key: list[Any], build: Callable[[Path], None], rows: int | None = None
) -> Path:
    """Return the folder of the cache that holds what ``build`` makes for ``key``, building it if need be.

    Two processes may come here together: each builds its own, the first to finish wins, the other takes the
    winner's. Raises UserError where the cache cannot be written, and leaves nothing half-written.
    """
    text = json.dumps([VERSION, group, *key], sort_keys=True)
    final = cache / group / hashlib.sha256(text.encode()).hexdigest()[:32]
    if _intact(final):
        return final
    temporary = final.with_name(
        f"{final.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    try:
        temporary.mkdir(parents=True)
        _clear_stale(final.parent)
        build(temporary)
        if rows is not None:
            built = len(np.load(temporary / "offsets.npy", mmap_mode="r")) - 1
            if built != rows:
                raise RuntimeError(f"a split of {rows} rows gave {built} texts")
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / META).write_text(json.dumps({"files": sizes, "key": json.loads(text)}), encoding="utf-8")
        _publish(temporary, final)
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "it is read-only",
            errno.EACCES: "it may not be written to",
            errno.EPERM: "it may not be written to",
            errno.ENOTDIR: "a part of that path is a file",
            errno.EEXIST: "a part of that path is a file",
        }
        # Only what concerns this folder is its user's to mend here: a missing data file is reported by its
        # source.
        if error.errno not in reasons or (error.filename is not None and not _inside(error.filename, cache)):
            raise
        raise UserError(
            f"cannot write tokenized texts to the cache {cache}: {reasons[error.errno]}; make room there, "
            "or set paths.cache (or TEXTBED_CACHE) to another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _inside(path: Any, cache: Path) -> bool:
    path = Path(os.fsdecode(path)).absolute()
    cache = cache.absolute()
    return path.is_relative_to(cache) or cache.is_relative_to(path)


def _intact(folder: Path) -> bool:
    """Whether the folder is there with every file at the size it was written with."""
    try:
        sizes = json.loads((folder / META).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _publish(temporary: Path, final: Path) -> None:
    while True:
        try:
            os.rename(temporary, final)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) or not final.exists():
                raise
        if _intact(final):
            return
        # Damaged: out of the way under a name that nobody reads, then gone.
        aside = final.with_name(f"{final.name}.tmp-damaged-{uuid.uuid4().hex[:8]}")
        try:
            os.rename(final, aside)
        except FileNotFoundError:
            continue
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _clear_stale(parent: Path) -> None:
    """Remove what killed processes left behind."""
    for folder in parent.glob("*.tmp-*"):
        try:
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        except OSError:
            continue
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
