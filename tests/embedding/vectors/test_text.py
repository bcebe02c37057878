"""Vectors files: what is read, and what is refused with which line."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from textbed.embedding import vectors
from textbed.embedding.vectors import files
from textbed.errors import UserError

WORDS = ["<pad>", "<unk>", "the", "cat", "sat"]
ROWS = ["the 0.5 -1 2e-1", "dog 1 1 1", "sat 3 4 5"]


def write(folder: Path, text: str | bytes, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(*rows: str) -> str:
    return "".join(row + "\n" for row in rows)


def check(path: Path) -> None:
    """The rows of ROWS, and of no other words."""
    matrix, found = vectors.read(path, WORDS)
    assert matrix.dtype == np.float32
    expected = np.array([[0, 0, 0], [0, 0, 0], [0.5, -1, 0.2], [0, 0, 0], [3, 4, 5]], dtype=np.float32)
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(found, [False, False, True, False, True])


@pytest.mark.parametrize(
    ("text", "promised"),
    [
        (lines(*ROWS), None),
        (lines("3 3", *ROWS), 3),
        ("\n".join(ROWS), None),
        (lines(*ROWS).replace("\n", "\r\n"), None),
        (
            lines("3 3", *ROWS).replace("\n", " \n"),
            3,
        ),  # the blank that word2vec and fastText leave at each line's end
        (lines(*ROWS).replace(" ", "\t"), None),
        ("\ufeff" + lines(*ROWS), None),
        (lines(*ROWS, "", ""), None),
        (lines("3 3", *ROWS, ""), 3),
        (lines(ROWS[0].replace(" ", "  "), *ROWS[1:]), None),
    ],
    ids=[
        "glove",
        "word2vec",
        "no-last-end",
        "crlf",
        "blank-ends",
        "tabs",
        "bom",
        "empty-end",
        "header-end",
        "two-blanks",
    ],
)
def test_reads_each_way_of_writing(tmp_path, text, promised):
    path = write(tmp_path, text)
    assert vectors.peek(path) == (promised, 3)
    check(path)


def test_reads_gzip_whatever_its_name(tmp_path):
    path = write(tmp_path, gzip.compress(lines("3 3", *ROWS).encode()), "vectors.bin")
    assert vectors.peek(path) == (3, 3)
    check(path)


def test_takes_an_arrow_array(tmp_path):
    matrix, found = vectors.read(write(tmp_path, lines(*ROWS)), pa.array(WORDS, pa.large_string()))
    assert found.sum() == 2
    assert matrix[4].tolist() == [3, 4, 5]


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """Rows that straddle the end of a block are read like others, at every position of the cut."""
    path = write(tmp_path, lines("4 3", "é 1 2 3", *ROWS))
    for size in range(30, 60):
        monkeypatch.setattr(files, "BLOCK", size)
        check(path)


def test_agrees_with_a_plain_reader(tmp_path):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(500, 7)).astype(np.float32)
    text = "".join(f"w{i} {' '.join(map(str, row.tolist()))}\n" for i, row in enumerate(table))
    chosen = generator.permutation(500)[:100]
    matrix, found = vectors.read(write(tmp_path, text), [f"w{i}" for i in chosen])
    assert found.all()
    np.testing.assert_array_equal(matrix, table[chosen])


def test_words_with_spaces_are_read(tmp_path):
    """GloVe 840B has some; the numbers are the last fields."""
    path = write(tmp_path, lines("the 1 2 3", ". . . 4 5 6", "at name@domain.com 7 8 9", "at 0 0 1"))
    matrix, found = vectors.read(path, ["the", ". . .", "at", "at name@domain.com"])
    assert found.all()
    assert matrix.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 1], [7, 8, 9]]


def test_words_that_are_numbers_or_odd_blanks(tmp_path):
    path = write(tmp_path, lines("1 0.5 0.5", "\u00a0 1 2", "\u0085 3 4", "nan 5 6", "2 7 8"))
    matrix, found = vectors.read(path, ["1", "\u00a0", "\u0085", "nan", "2"])
    assert found.all()
    assert matrix.tolist() == [[0.5, 0.5], [1, 2], [3, 4], [5, 6], [7, 8]]


def test_rows_of_one_number_are_not_a_header(tmp_path):
    path = write(tmp_path, lines("12 4", "the 2", "cat 3"))
    assert vectors.peek(path) == (None, 1)
    assert vectors.read(path, ["12", "cat"])[0].tolist() == [[4], [3]]
    assert vectors.peek(write(tmp_path, lines("12 40", "the 2", "cat 3"))) == (None, 1)


def test_one_odd_row_does_not_set_the_width(tmp_path):
    path = write(tmp_path, lines("a b 1 2 3", *ROWS))
    assert vectors.peek(path) == (None, 3)
    check(path)


def test_a_row_twice_with_the_same_numbers_is_one_row(tmp_path):
    check(write(tmp_path, lines(*ROWS, ROWS[0])))


def test_rows_that_nobody_asks_for_are_not_parsed(tmp_path):
    check(write(tmp_path, lines(*ROWS, "fish nan x 1e999")))


def test_words_are_matched_as_written(tmp_path):
    path = write(tmp_path, lines("The 1 2", "é 3 4"))
    _, found = vectors.read(path, ["the", "The", "é", "e\u0301"])
    assert found.tolist() == [False, True, True, False]


BAD = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "narrow row": (
        lines(ROWS[0], "mat 1 2", *ROWS[1:]),
        "line 2 has 2 numbers where 3 are promised by the other rows; mend or remove the line",
    ),
    "narrow last row": (
        lines(*ROWS, "mat 1 2"),
        "line 4 has 2 numbers where 3 are promised by the other rows; is the file cut short? download or",
    ),
    "cut in the last row": (
        lines("3 3", *ROWS)[:-4],
        "line 4 has 1 numbers where 3 are promised in line 1; is the file",
    ),
    "wide row": (
        lines(*ROWS, "mat 1 2 3 4"),
        "line 4 has 4 numbers where 3 are promised by the other rows; "
        "has its word a space in it, or is its separator another? mend or remove the line",
    ),
    "header of another width": (lines("3 4", *ROWS), "line 2 has 3 numbers where 4 are promised in line 1"),
    "header of a great width": (
        lines("3 999999999", *ROWS),
        "line 1 promises rows of 999,999,999 numbers, but line 2 has fewer bytes than that; download",
    ),
    "too few rows": (
        lines("9 3", *ROWS),
        "line 1 promises 9 rows, but there are 3: the file is cut short; download",
    ),
    "too many rows": (lines("2 3", *ROWS), "line 1 promises 2 rows, but there are 3: the first line"),
    "header alone": (
        lines("9 3"),
        "line 1 promises 9 rows, but there are none: the file is cut short; download or make",
    ),
    "header of no rows": (
        lines("0 20"),
        "line 1 promises 0 rows, and there are none: the file is empty of rows",
    ),
    "empty row": (lines(ROWS[0], "", ROWS[1]), "line 2 is empty"),
    "nan": (
        lines(*ROWS, "cat 1 nan 2"),
        "line 4 ('cat') has the value nan; expected finite ones; remove the row, or make",
    ),
    "infinite": (lines(*ROWS, "cat 1 2 -inf"), "line 4 ('cat') has the value -inf"),
    "infinite in float32": (lines(*ROWS, "cat 1e39 2 2"), "line 4 ('cat') has the value 1e39"),
    "not a number": (
        lines(*ROWS, "cat 1 2 1,5"),
        "line 4 ('cat') has '1,5' where a number is expected, such as 0.5 or -1e-3; mend",
    ),
    "twice": (lines(*ROWS, "the 0 0 1"), "line 4 has 'the' again, with other numbers than line 1"),
    "not UTF-8": (
        lines(*ROWS).encode() + b"caf\xe9 1 2 3\n",
        "line 4 has the word b'caf\\xe9', which is not UTF-8",
    ),
    "no word known": (lines("le 1 2", "chat 3 4"), "none of the 5 words of the vocabulary"),
    "prose": (
        "# Vectors\n\nThey are elsewhere.\n",
        "line 1 begins '# Vectors'; expected a word and its numbers",
    ),
    "commas": (lines("the,1,2", "cat,3,4"), "line 1 begins 'the,1,2'; expected a word and its numbers"),
    "pickle": (pickle.dumps(ROWS), "is a Python pickle, which is never opened"),
    "zip": (b"PK\x03\x04" + bytes(50), "the zip archive is damaged"),
    "numpy": (b"\x93NUMPY" + bytes(50), "its NumPy header is damaged"),
    "fasttext": (b"\xba\x16\x4f\x2f" + bytes(50), "it is cut short"),
    "binary word2vec": (
        b"3 2\nthe " + np.zeros(2, np.float32).tobytes(),
        "the file ends in row 2: it is cut short",
    ),
    "binary": (bytes(range(50)), "is binary, not text"),
    "utf-16": (lines(*ROWS).encode("utf-16"), "is UTF-16 text (save it as UTF-8)"),
    "cut gzip": (gzip.compress(lines(*ROWS * 50).encode())[:-20], "it again"),
    "pickle in gzip": (gzip.compress(pickle.dumps(ROWS)), "is a Python pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    text, message = BAD[case]
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        vectors.read(path, WORDS)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_line_in_the_middle_is_no_sign_of_a_cut_wherever_blocks_end(tmp_path, monkeypatch):
    path = write(tmp_path, lines(*ROWS, "mat 1 2", *ROWS))
    for size in range(20, 90, 3):
        monkeypatch.setattr(files, "BLOCK", size)
        with pytest.raises(UserError, match=r"line 4 has 2 numbers where 3 are .*; mend or remove the line$"):
            vectors.read(path, WORDS)


def test_a_last_line_without_an_end_is_doubted(tmp_path, monkeypatch):
    """Whole but for its line end or cut inside its last number, the bytes do not say; counts do."""

    def said(text: str) -> list[str]:
        told: list[str] = []
        vectors.read(write(tmp_path, text), WORDS, tell=told.append)
        return told

    whole = lines("cat 0 0 0.125", *ROWS)
    for cut in (whole[:-1], whole.replace("sat 3 4 5", "sat 3 4 5.25")[:-2]):
        for size in (files.BLOCK, 30):
            monkeypatch.setattr(files, "BLOCK", size)
            assert said(cut) == [
                f"{tmp_path}/vectors.txt: line 4, the last, has no line end: if the file was cut short, its "
                "last number is wrong and more words are missing; if it is whole, add a line end"
            ]
    assert said(whole) == said(whole + "\n  ") == said(lines("4 3") + whole[:-1]) == []


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, lines(*ROWS), "glove.6B.100d.txt")
    with pytest.raises(UserError, match=r"no such vectors file. Did you mean 'glove.6B.100d.txt'\?"):
        vectors.peek(tmp_path / "glove.6B.10d.txt")
    with pytest.raises(UserError, match="no such vectors file"):
        vectors.peek(tmp_path / "nowhere" / "glove.txt")
    with pytest.raises(UserError, match=r"is a folder without model\.safetensors"):
        vectors.peek(tmp_path)


def test_a_line_without_end_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 100)
    with pytest.raises(UserError, match="has no line end in its first 100 bytes"):
        vectors.peek(write(tmp_path, "the " + "1 " * 500))
    with pytest.raises(UserError, match="has a line of more than 100 bytes"):
        vectors.read(write(tmp_path, lines(*ROWS) * 4 + "cat " + "1 " * 500), WORDS)


def test_imports_without_torch():
    heavy = "{'torch', 'lightning', 'datasets'}"
    code = f"import sys, textbed.embedding.vectors; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
