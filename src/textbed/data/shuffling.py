"""Documents whose tokens stand in a random order: what a model still gets right is not read from their order.

Nothing is drawn one after another. Every token's key is a hash of the seed, its document's row and its place,
so that a document's order is the same in any batch, on any machine and in any version of NumPy, and no order
has to be kept.
"""

from __future__ import annotations

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(32)  # bits of a token's key that decide; above them stands its document


def shuffle_key(seed: int, column: int) -> int:
    """The key of one text column, 64 bits: the orders of two columns have nothing to do with each other."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{column}".encode(), digest_size=8).digest(), "little")


def shuffled(tokens: np.ndarray, starts: np.ndarray, rows: np.ndarray, key: int) -> np.ndarray:
    """The same tokens (N,), those of each document in a random order.

    That order follows from ``key``, the document's row and how many tokens it has. 70,000 tokens take 5 ms.

    Args:
        starts: (B + 1,) int64, where each document begins.
        rows: (B,) the row of each in its split.
    """
    counts = np.diff(starts)
    documents = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    places = np.arange(len(tokens), dtype=np.uint64) - np.repeat(starts[:-1].astype(np.uint64), counts)
    streams = _mixed(rows.astype(np.uint64) * _STEP + np.uint64(key))
    keys = _mixed(streams[documents] + (places + np.uint64(1)) * _STEP)
    # Stable, so that two tokens with equal keys, one pair in 2^32, stand the same way round in every batch.
    return tokens.take(np.argsort((documents << _LOW) | (keys >> _LOW), kind="stable"))


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's function of 64 bits (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
