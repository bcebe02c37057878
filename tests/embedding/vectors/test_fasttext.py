"""fastText's .bin: words, character n-grams, and what is refused. gensim writes the reference."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from textbed.embedding import vectors
from textbed.embedding.ngram_hash import ngram_rows
from textbed.embedding.vectors import open_vectors
from textbed.errors import UserError

WORDS = [b"</s>", b"the", b"caf\xc3\xa9", b"of"]
WIDTH, BUCKET, SHORTEST, LONGEST = 4, 50, 2, 4
MATRIX = np.random.default_rng(0).normal(size=(len(WORDS) + BUCKET, WIDTH)).astype("<f4")


def model(
    words=WORDS,
    matrix=MATRIX,
    labels=(),
    version=12,
    kind=2,
    longest=LONGEST,
    pruned=-1,
    quantised=0,
    width=None,
) -> bytes:
    """A model as fastText writes it: settings, dictionary, input matrix, output matrix."""
    settings = (WIDTH, 5, 5, 1, 5, 1, 2, kind, BUCKET, SHORTEST if longest else 0, longest, 100)
    data = struct.pack("<ii12id", 793712314, version, *settings, 1e-4)
    data += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 1000, pruned)
    for word in words:
        data += word + b"\0" + struct.pack("<qb", 10, 0)
    for label in labels:
        data += label + b"\0" + struct.pack("<qb", 10, 1)
    data += struct.pack("<bqq", quantised, len(matrix), width or WIDTH) + matrix.tobytes()
    return data + struct.pack("<bqq", 0, 1, WIDTH) + bytes(4 * WIDTH)


def write(folder: Path, data: bytes) -> Path:
    (folder / "model").write_bytes(data)
    return folder / "model"


def plain_ngrams(word: str, shortest: int, longest: int, bucket: int) -> list[int]:
    """The definition, a character at a time."""
    marked = f"<{word}>"
    rows = []
    for begin in range(len(marked)):
        for end in range(begin + shortest, min(begin + longest, len(marked)) + 1):
            if end - begin == 1 and (begin == 0 or end == len(marked)):
                continue
            value = 2166136261
            for byte in marked[begin:end].encode():
                signed = byte - 256 if byte > 127 else byte
                value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
            rows.append(value % bucket)
    return rows


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (2, 4), (3, 6), (4, 4), (5, 3), (0, 0)])
def test_ngrams_follow_the_definition(shortest, longest):
    words = ["the", "café", "日本語", "a", "", "é", "naïveté", "x" * 12]
    owner, rows = ngram_rows([word.encode() for word in words], shortest, longest, 2_000_000)
    for place, word in enumerate(words):
        expected = plain_ngrams(word, max(shortest, 1), longest, 2_000_000) if longest else []
        assert sorted(rows[owner == place].tolist()) == sorted(expected), word


def mean(word: str, own: int | None) -> np.ndarray:
    rows = [len(WORDS) + row for row in plain_ngrams(word, SHORTEST, LONGEST, BUCKET)]
    rows += [] if own is None else [own]
    return MATRIX[rows].astype(np.float64).mean(axis=0)


def test_words_are_means_of_their_row_and_ngrams(tmp_path):
    path = write(tmp_path, model())
    assert open_vectors(path).format == "fastText binary"
    assert vectors.peek(path) == (4, WIDTH)
    matrix, found = vectors.read(path, ["<pad>", "<unk>", "café", "the", "</s>", "theatre", "日本"])
    assert found.tolist() == [False, False, True, True, True, True, True]
    expected = [mean("café", 2), mean("the", 1), MATRIX[0], mean("theatre", None), mean("日本", None)]
    np.testing.assert_allclose(matrix[2:], expected, rtol=1e-5, atol=1e-6)


def test_pieces_and_models_without_subwords_are_not_composed(tmp_path):
    path = write(tmp_path, model())
    assert vectors.read(path, ["the", "theatre"], pieces=True)[1].tolist() == [True, False]
    path = write(tmp_path, model(longest=0, labels=[b"__label__a"], kind=3))
    matrix, found = vectors.read(path, ["the", "theatre", "__label__a"])
    assert found.tolist() == [True, False, False]
    np.testing.assert_array_equal(matrix[0], MATRIX[1])


def test_a_word_of_the_file_in_another_case_goes_before_its_ngrams(tmp_path):
    path = write(tmp_path, model())
    matrix, _ = vectors.read(path, ["The", "OF", "Cat"], case=("exact", "lower"))
    np.testing.assert_allclose(matrix[0], mean("the", 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix[1], mean("of", 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix[2], mean("Cat", None), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_agrees_with_gensim(tmp_path):
    from gensim.models import FastText
    from gensim.models.fasttext import load_facebook_vectors, save_facebook_model

    texts = [["the", "café", "naïve", "cat", "日本語"], ["cats", "the", "sat", "mat", "ł"]] * 5
    trained = FastText(texts, vector_size=8, min_count=1, min_n=2, max_n=5, bucket=300, epochs=2, seed=1)
    path = tmp_path / "model.bin"
    save_facebook_model(trained, str(path))
    theirs = load_facebook_vectors(str(path))
    words = ["the", "café", "日本語", "ł", "unseen", "cafés", "語", "Cat"]
    matrix, found = vectors.read(path, words)
    assert found.all()
    np.testing.assert_allclose(matrix, np.stack([theirs[word] for word in words]), rtol=1e-4, atol=1e-6)


infinite = MATRIX.copy()
infinite[1, 2] = np.inf
BAD = {
    "head": (model()[:40], "it is cut short"),
    "dictionary": (model()[:110], "it is cut short"),
    "matrix": (model()[:400], "it is cut short"),
    "version": (model(version=9), "is a fastText model of version 9; expected 11 or 12"),
    "quantised": (model(quantised=1), "is a quantised fastText model (.ftz)"),
    "pruned": (model(pruned=0), "is a quantised fastText model (.ftz)"),
    "width": (model(width=5), "promises rows of 4, but they are 5 wide"),
    "few rows": (model(matrix=MATRIX[:20]), "has 20 rows for 4 words and 50 buckets"),
    "infinite": (model(matrix=infinite), "row 2 ('the') has the value inf"),
    "not UTF-8": (model(words=[b"</s>", b"the", b"caf\xe9", b"of"]), "is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    data, message = BAD[case]
    path = write(tmp_path, data)
    with pytest.raises(UserError) as error:
        list(open_vectors(path).stream(None))
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
