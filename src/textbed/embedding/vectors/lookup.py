"""From a path to the rows of a vocabulary: find the format, look the words up, remember what was read."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from textbed.data.records import content_hash, hash_of, remembered_hash, written_atomically
from textbed.data.vocabulary import SPECIAL
from textbed.embedding.vectors import arrays, binary, fasttext, files, models
from textbed.embedding.vectors.files import SUPPORTED, Source, codec_of, reading
from textbed.embedding.vectors.text import TextVectors
from textbed.errors import UserError, nearest

CASES = ("exact", "lower", "title")
# Part of every key of the cache: raise it whenever the same file would give other rows.
VERSION = 1

_REFUSED = (
    (b"\xfd7zXZ\x00", "an xz file (unpack it first)"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\xff\xfe", "UTF-16 text (save it as UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (save it as UTF-8)"),
    *(
        (
            b"\x80" + bytes([protocol]),
            "a Python pickle, which is never opened (gensim: save_word2vec_format writes a file that is)",
        )
        for protocol in range(2, 6)
    ),
)
# Endings of files, to tell a path that is not there from the id of a model on the hub.
_ENDINGS = (
    ".txt",
    ".vec",
    ".bin",
    ".ftz",
    ".gz",
    ".bz2",
    ".zst",
    ".zip",
    ".npy",
    ".npz",
    ".safetensors",
    ".pt",
)


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path here may be the id of a model on the hub, OWNER/NAME."""
    path = Path(name)
    return (
        re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None
        and not path.exists()
        and not path.parent.is_dir()
        and path.suffix.lower() not in _ENDINGS
    )


def open_vectors(path: str | Path) -> Source:
    """Open a file or folder of vectors, or a model of the hub, of whatever format it is.

    Raises:
        UserError: it is missing, unreadable, empty, damaged, or of a kind that is not supported.
    """
    if is_hub_id(str(path)):
        return models.ModelVectors(models.hub_folder(str(path)))
    path = Path(path)
    with reading(path):
        if not path.exists():
            siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"{path}: there is no such vectors file.{nearest(path.name, siblings)}")
        if path.is_dir():
            return models.ModelVectors(path)
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty; expected a word and its numbers on each line")
    return _format_of(path, files.head_of(path))


def _format_of(path: Path, head: bytes) -> Source:
    for signature, what in _REFUSED:
        if head.startswith(signature):
            raise UserError(f"{path}: is {what}; {SUPPORTED}")
    if head.startswith(b"PK\x03\x04"):
        if codec_of(path) is None and _is_torch(path):
            raise UserError(f"{path}: is a torch file, a Python pickle, which is never opened; {SUPPORTED}")
        return arrays.open_npz(path)
    if head.startswith(b"\x93NUMPY"):
        return arrays.open_npy(path)
    if head.startswith(fasttext.MAGIC):
        return fasttext.FastTextVectors(path, head)
    if arrays.looks_like_safetensors(head):
        if path.name == "model.safetensors" and (path.parent / "tokenizer.json").is_file():
            return models.ModelVectors(path.parent)
        return arrays.open_safetensors(path)
    if binary.is_binary(head):
        return binary.BinaryVectors(path, head)
    if b"\0" in head:
        raise UserError(f"{path}: is binary, not text; {SUPPORTED}")
    return TextVectors(path, head)


def _is_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def peek(path: str | Path) -> tuple[int | None, int]:
    """How many rows a vectors file holds (None where it does not say) and their width, from its start.

    Raises:
        UserError: what ``open_vectors`` raises.
    """
    return open_vectors(path).peek()


def read(
    path: str | Path,
    words: Iterable[str],
    *,
    more: Sequence[str] = (),
    special: Sequence[int] = (),
    case: Sequence[str] = ("exact",),
    pieces: bool = False,
    cache: Path | None = None,
    tell: Callable[[str], object] = warnings.warn,
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of ``words``.

    Args:
        path: a file or folder of vectors, or OWNER/NAME of a model on the hub.
        words: V words, a list or an Arrow array.
        more: K words beside the vocabulary, whose rows follow; it is no error if none of these has any.
        special: which of the V are no words but rows for padding and the unknown: that a file has them too
            says nothing of what it covers.
        case: spellings under which a word is looked up, in this order: ``exact``, ``lower``, ``title``. Rows
            that the file holds come first; only then are rows composed, where the format can.
        pieces: whether the words are pieces of a subword tokenizer: nothing is then composed for them.
        cache: folder that keeps what was read, by content; None keeps nothing.
        tell: is given what is in doubt about the file, in one line, when it is read and not when its rows are
            remembered.

    Returns:
        a matrix (V + K, D) float32, zeros where a word has no vector, and found (V + K,) bool.

    Raises:
        UserError: what ``open_vectors`` raises; and, with line or row, what is wrong with the rows that are
            read: of another width, not numbers or not finite, a word that comes twice with different vectors
            or is not UTF-8, fewer or more rows than the file promises;
            or a file that has none of the V words, where there are any.
    """
    words = words.to_pylist() if hasattr(words, "to_pylist") else list(words)
    vocabulary, words = len(words), [*words, *more]
    source = open_vectors(path)
    _, width = source.peek()
    shape = (len(words), width)
    if cache is None:
        matrix, found = _look_up(source, words, width, case, pieces)
    else:
        settings = [VERSION, hash_of(words), vocabulary, list(case), pieces]

        def entry(hashes: list[str]) -> Path:
            return cache / "vectors" / f"{hash_of(hashes, settings)}.rows"

        remembered = [remembered_hash(file, cache) for file in source.files()]
        hashes = [value for value in remembered if value is not None]
        kept = recall(entry(hashes), shape) if len(hashes) == len(remembered) else None
        if kept is not None:
            _check_covered(path, words[:vocabulary], kept[1], special)
            return kept
        # Hashing takes as long as reading, but another core, and only at the first look at a file.
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(lambda: [content_hash(file, cache) for file in source.files()])
            matrix, found = _look_up(source, words, width, case, pieces)
            kept_as = entry(hashing.result())
    _check_covered(path, words[:vocabulary], found, special)
    if source.doubt is not None:
        tell(source.doubt)
    if cache is not None:
        keep(kept_as, matrix, found)
    return matrix, found


def _check_covered(
    path: str | Path, vocabulary: Sequence[str], found: np.ndarray, special: Sequence[int]
) -> None:
    own = np.delete(np.arange(len(vocabulary)), list(special))
    if len(own) and not found[own].any():
        some = ", ".join(repr(vocabulary[row]) for row in own[:5])
        raise UserError(
            f"{path}: has a vector for none of the {len(own):,} words of the vocabulary, which begins with "
            f"{some}; is it of another language, case or tokenizer?"
        )


def _look_up(
    source: Source, words: list[str], width: int, case: Sequence[str], pieces: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that the file holds, under the first spelling that it has; then composed ones."""
    spellings = [[_spelt(word, kind) for word in words] for kind in case]
    keys: dict[bytes, int] = {}
    places = np.array(
        [[keys.setdefault(word.encode(), len(keys)) for word in column] for column in spellings], np.int64
    ).reshape(len(case), len(words))
    matrix = np.zeros((len(keys), width), np.float32)
    have = np.zeros(len(keys), bool)
    # A piece that is spelt like a word need not stand for it: " the" is not "the".
    if pieces or not source.pieces:
        _fill(source, keys, matrix, have)
    found: np.ndarray = np.any(have[places], axis=0)
    if len(case) > 1 or len(keys) != len(words):
        first = have[places].argmax(axis=0)
        matrix = matrix[places[first, np.arange(len(words))]]
        matrix[~found] = 0
    if source.composes and not pieces:
        for column in spellings:
            missing = np.array([row for row in np.flatnonzero(~found) if words[row] not in SPECIAL], np.int64)
            if len(missing):
                vectors, made = source.compose([column[row] for row in missing])
                matrix[missing[made]] = vectors[made]
                found[missing[made]] = True
    return matrix, found


def _spelt(word: str, case: str) -> str:
    return word.lower() if case == "lower" else word.title() if case == "title" else word


def _fill(source: Source, keys: dict[bytes, int], matrix: np.ndarray, have: np.ndarray) -> None:
    """Put the vector of each key into its row of ``matrix``, and mark it."""
    number_of = np.zeros(len(keys), np.int64)
    for batch in source.stream(keys):
        rows = np.fromiter((keys[word] for word in batch.words), np.int64, len(batch.words))
        if not have[rows].any() and len(np.unique(rows)) == len(rows):
            matrix[rows] = batch.vectors
            have[rows] = True
            number_of[rows] = batch.numbers
            continue
        for row, word, number, vector in zip(rows, *batch, strict=True):
            if have[row] and not np.array_equal(matrix[row], vector):
                raise source.error(
                    number,
                    f"has '{word.decode()}' again, with other numbers than {source.unit} "
                    f"{number_of[row]:,}; remove one",
                )
            if not have[row]:
                matrix[row], have[row], number_of[row] = vector, True, number


# What was read before


def recall(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """What ``keep`` wrote; None where there is nothing, or nothing whole."""
    try:
        with path.open("rb") as file:
            matrix = np.load(file, allow_pickle=False)
            found = np.load(file, allow_pickle=False)
            whole = json.loads(file.readline() or b"null") == "whole"
    except (OSError, ValueError, EOFError):
        return None
    return (matrix, found) if whole and matrix.shape == shape and found.shape == shape[:1] else None


def keep(path: Path, matrix: np.ndarray, found: np.ndarray) -> None:
    """Write what was read, whole or not at all."""
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, matrix, allow_pickle=False)
        np.save(file, found, allow_pickle=False)
        file.write(b'"whole"\n')
