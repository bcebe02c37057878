"""word2vec's binary format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from textbed.embedding import vectors
from textbed.embedding.vectors import files, open_vectors
from textbed.errors import UserError

TABLE = np.random.default_rng(0).normal(size=(60, 5)).astype("<f4")
WORDS = [f"w{row}" for row in range(58)] + ["é", "日本"]


def packed(words=WORDS, table=TABLE, end: bytes = b"", header: str | None = None) -> bytes:
    start = header or f"{len(words)} {table.shape[1]}"
    rows = (word.encode() + b" " + row.tobytes() + end for word, row in zip(words, table, strict=True))
    return start.encode() + b"\n" + b"".join(rows)


def write(folder: Path, data: bytes) -> Path:
    (folder / "vectors").write_bytes(data)
    return folder / "vectors"


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reads_rows_with_and_without_line_ends(tmp_path, end, pack):
    path = write(tmp_path, pack(packed(end=end)))
    assert open_vectors(path).format == "word2vec binary"
    assert vectors.peek(path) == (60, 5)
    matrix, found = vectors.read(path, ["日本", "none", "w3", "é"])
    assert found.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(matrix[[0, 2, 3]], TABLE[[59, 3, 58]])


def test_blocks_do_not_show(tmp_path, monkeypatch):
    path = write(tmp_path, packed(end=b"\n"))
    for size in range(50, 120, 7):
        monkeypatch.setattr(files, "BLOCK", size)
        matrix, found = vectors.read(path, WORDS)
        assert found.all()
        np.testing.assert_array_equal(matrix, TABLE)


def test_a_file_of_few_rows_is_not_taken_for_text(tmp_path):
    for seed in range(200):
        table = np.random.default_rng(seed).normal(size=(1, 4)).astype("<f4")
        path = write(tmp_path, packed(["the"], table))
        assert open_vectors(path).format == "word2vec binary", seed
        np.testing.assert_array_equal(vectors.read(path, ["the"])[0], table)


def test_agrees_with_gensim(tmp_path):
    import gensim

    keyed = gensim.models.KeyedVectors(5)
    keyed.add_vectors(WORDS, TABLE)
    path = tmp_path / "vectors.bin"
    keyed.save_word2vec_format(str(path), binary=True)
    np.testing.assert_array_equal(vectors.read(path, WORDS)[0], TABLE)


BAD = {
    "cut in a row": (packed()[:-3], "promises 60 rows of 5, but the file ends in row 60: it is cut short"),
    "cut between rows": (packed(WORDS[:9], TABLE[:9], header="60 5"), "ends in row 10: it is cut short"),
    "more rows": (packed(header="20 5"), "promises 20 rows of 5, but the file goes on after them"),
    "no rows": (
        b"0 5\nthe " + TABLE[0].tobytes(),
        "line 1 is '0 5'; expected the number of rows and their width",
    ),
    "too wide": (
        packed(header="60 9"),
        " if it is none, the width in line 1, 9, does not fit the rows",
    ),
    "too narrow": (
        packed(header="60 3"),
        "row 2 begins in the middle of numbers; the width in line 1, 3, does",
    ),
    "very wide": (
        packed(header="4000 999999999"),
        "promises 4,000 rows of 999,999,999, but the file has 1,447 bytes, fewer than a row; download",
    ),
    "nan": (
        packed(table=np.where(np.arange(300).reshape(60, 5) == 12, np.nan, TABLE).astype("<f4")),
        "row 3 ('w2') has the value nan",
    ),
    "infinite": (
        packed(table=np.where(np.arange(300).reshape(60, 5) == 12, -np.inf, TABLE).astype("<f4")),
        "row 3 ('w2') has the value -inf",
    ),
    "twice": (packed(["w2", *WORDS[1:]]), "row 3 has 'w2' again, with other numbers than row 1"),
    "not UTF-8": (
        packed().replace("é".encode(), b"\xe9"),
        "row 59 has the word b'\\xe9', which is not UTF-8; if it is a word, save the file anew",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    data, message = BAD[case]
    path = write(tmp_path, data)
    with pytest.raises(UserError) as error:
        vectors.read(path, WORDS)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert "iconv" not in str(error.value)


def test_no_blank_for_long_is_a_wrong_width(tmp_path):
    path = write(tmp_path, b"2 2\nthe " + TABLE[0, :2].tobytes() + b"x" * 30_000)
    with pytest.raises(UserError, match="row 2 has no word; the width in line 1, 2, does not fit"):
        vectors.read(path, ["the"])
