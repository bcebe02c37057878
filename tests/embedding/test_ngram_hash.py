"""Hashes of words against published values and the definition; those of n-grams are in test_fasttext.py."""

from __future__ import annotations

import random

import numpy as np

from textbed.embedding.ngram_hash import word_hashes


def plain_hash(word: bytes) -> int:
    """The definition, a byte at a time."""
    value = 2166136261
    for byte in word:
        signed = byte - 256 if byte > 127 else byte
        value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
    return value


def test_published_values():
    """Of FNV-1a, 32 bits: http://www.isthe.com/chongo/tech/comp/fnv/; it takes bytes as they are."""
    assert word_hashes([b"", b"a", b"b", b"foo", b"foobar"]).tolist() == [
        0x811C9DC5,
        0xE40C292C,
        0xE70C2DE5,
        0xA9F37ED7,
        0xBF9CF968,
    ]


def test_words_of_every_length_follow_the_definition():
    draw = random.Random(0)
    words = [draw.randbytes(draw.choice([0, 1, 2, 3, 5, 8, 40, 1000])) for _ in range(300)]
    assert word_hashes(words).tolist() == [plain_hash(word) for word in words]
    assert word_hashes(["日本".encode()]).tolist() == [plain_hash("日本".encode())]
    assert word_hashes([]).dtype == np.uint32
    assert word_hashes([b"", b""]).tolist() == [2166136261] * 2


def test_a_hash_is_of_the_word_alone():
    """Neither its place nor its neighbours matter."""
    words = [b"the", b"longer", b"a", b"the"]
    together = word_hashes(words).tolist()
    assert together == [int(word_hashes([word])[0]) for word in words]
