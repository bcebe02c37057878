"""Vectors with no file and no download: word2vec or fastText, trained by gensim on a text of one's own.

gensim is used with one thread: with several the same text gives other vectors each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textbed.data.records import hash_of
from textbed.embedding.vectors.lookup import keep, recall
from textbed.errors import UserError

METHODS = ("word2vec", "fasttext")
DIM = 100
"""Width where none is given."""
LONGEST_SENTENCE = 10_000
"""Words: gensim silently drops what follows in a longer one."""


class Corpus:
    """Documents as lists of words, for as many passes as gensim asks for.

    Args:
        documents: starts a pass.
    """

    def __init__(self, documents: Callable[[], Iterable[Sequence[str]]]) -> None:
        self._documents = documents

    def __iter__(self) -> Iterator[Sequence[str]]:
        for words in self._documents():
            for begin in range(0, len(words), LONGEST_SENTENCE):
                yield words[begin : begin + LONGEST_SENTENCE]


def train(
    documents: Callable[[], Iterable[Sequence[str]]],
    *,
    method: str = "word2vec",
    dim: int = DIM,
    min_count: int = 2,
    epochs: int = 5,
    window: int = 5,
    seed: int = 0,
) -> Any:
    """Train skip-gram vectors with negative sampling (Mikolov et al. 2013, Bojanowski et al. 2017).

    Takes about a minute for each 5 million words and 5 epochs at 100 columns.

    Returns:
        gensim's model; its ``wv`` holds the words and their vectors.

    Raises:
        UserError: no word occurs ``min_count`` times.
    """
    import gensim

    kind = {"word2vec": gensim.models.Word2Vec, "fasttext": gensim.models.FastText}[method]
    corpus = Corpus(documents)
    model = kind(
        vector_size=dim,
        sg=1,
        negative=5,
        window=window,
        min_count=min_count,
        epochs=epochs,
        seed=seed,
        workers=1,
    )
    model.build_vocab(corpus)
    if not len(model.wv):
        raise UserError(f"training {method} vectors: no word of the text occurs {min_count} times")
    model.train(corpus, total_examples=model.corpus_count, epochs=epochs)
    return model


def vectors_of(
    documents: Callable[[], Iterable[np.ndarray]], identity: str, size: int, dim: int, cache: Path
) -> tuple[np.ndarray, np.ndarray]:
    """word2vec vectors of token ids, trained on documents of ids and kept in the cache.

    Args:
        documents: starts a pass; each document is the ids of its tokens.
        identity: a hash of the documents' content.
        size: V, rows of the table.
        dim: D.
        cache: folder that keeps the vectors.

    Returns:
        a matrix (V, D) float32, and found (V,) bool: the tokens that occur twice.

    Raises:
        UserError: as ``train``.
    """
    from importlib.metadata import version

    key = hash_of("word2vec", identity, size, dim, version("gensim"))
    path = cache / "vectors" / f"corpus-{key}.rows"
    kept = recall(path, (size, dim))
    if kept is not None:
        return kept
    names = [str(row) for row in range(size)]
    model = train(lambda: ([names[row] for row in ids.tolist()] for ids in documents()), dim=dim)
    matrix, found = np.zeros((size, dim), np.float32), np.zeros(size, bool)
    rows = np.array([int(name) for name in model.wv.index_to_key])
    matrix[rows], found[rows] = model.wv.vectors, True
    keep(path, matrix, found)
    return matrix, found
