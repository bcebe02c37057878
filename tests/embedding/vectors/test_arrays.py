"""NumPy and safetensors tables, and their words."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from textbed.embedding import vectors
from textbed.embedding.vectors import files, open_vectors
from textbed.errors import UserError

TABLE = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
WORDS = [f"w{row}" for row in range(39)] + ["é"]
ASKED = ["é", "none", "w3"]


def check(path: Path, tolerance: float = 0) -> None:
    matrix, found = vectors.read(path, ASKED)
    assert matrix.dtype == np.float32
    assert found.tolist() == [True, False, True]
    np.testing.assert_allclose(matrix[[0, 2]], TABLE[[39, 3]], atol=tolerance)
    assert vectors.peek(path) == (40, 3)


@pytest.mark.parametrize("ending", [".txt", ".vocab", ".words"])
@pytest.mark.parametrize(
    ("table", "tolerance"),
    [
        (TABLE, 0),
        (TABLE.astype(np.float64), 0),
        (TABLE.astype(np.float16), 2e-3),
        (np.asfortranarray(TABLE), 0),
        (TABLE.astype(">f4"), 0),
    ],
)
def test_npy_with_words_beside(tmp_path, ending, table, tolerance):
    np.save(tmp_path / "glove.6B.npy", table)
    lines = [word + ("\t12" if row % 2 else "") for row, word in enumerate(WORDS)]
    (tmp_path / f"glove.6B{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    check(tmp_path / "glove.6B.npy", tolerance)
    packed = tmp_path / "glove.6B.npy.gz"
    packed.write_bytes(gzip.compress((tmp_path / "glove.6B.npy").read_bytes()))
    check(packed, tolerance)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 64)  # several blocks of rows
    save(tmp_path / "v.npz", words=np.array(WORDS), vectors=TABLE)
    check(tmp_path / "v.npz")
    save(tmp_path / "v.npz", words=np.array([word.encode() for word in WORDS]), vectors=TABLE)
    check(tmp_path / "v.npz")


@pytest.mark.parametrize("name", ["vectors", "embeddings", "weight", "embedding.weight", "anything"])
def test_safetensors_with_words_inside_or_beside(tmp_path, name):
    path = tmp_path / "v.safetensors"
    save_file({name: TABLE, "counts": np.arange(40)}, path, {"words": json.dumps(WORDS)})
    assert open_vectors(path).format == "safetensors"
    check(path)
    save_file({name: TABLE.astype(np.float16)}, path)
    (tmp_path / "v.txt").write_text("\n".join(WORDS), encoding="utf-8")
    check(path, 2e-3)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    table = TABLE.view(np.uint32) & 0xFFFF0000
    header = json.dumps({"vectors": {"dtype": "BF16", "shape": [40, 3], "data_offsets": [0, 240]}}).encode()
    path = tmp_path / "v.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + (table >> 16).astype("<u2").tobytes())
    (tmp_path / "v.txt").write_text("\n".join(WORDS), encoding="utf-8")
    np.testing.assert_array_equal(vectors.read(path, WORDS)[0], table.view(np.float32))


def bad_npy(folder: Path, table, words=WORDS, cut: int | None = None) -> Path:
    np.save(folder / "v.npy", table)
    if words is not None:
        text = "\n".join(words).encode() if isinstance(words, list) else words
        (folder / "v.txt").write_bytes(text)
    data = (folder / "v.npy").read_bytes()
    (folder / "v.npy").write_bytes(data[:cut])
    return folder / "v.npy"


def bad_npz(folder: Path, cut: int | None = None, **tables) -> Path:
    np.savez(folder / "v.npz", **tables)
    data = (folder / "v.npz").read_bytes()
    (folder / "v.npz").write_bytes(data[:cut])
    return folder / "v.npz"


def bad_tensors(folder: Path, words=WORDS, cut: int | None = None, **tables) -> Path:
    save_file(tables, folder / "v.safetensors", {"words": json.dumps(words)} if words else None)
    data = (folder / "v.safetensors").read_bytes()
    (folder / "v.safetensors").write_bytes(data[:cut])
    return folder / "v.safetensors"


def bad_header(folder: Path, header: bytes, size: int | None = None) -> Path:
    size = len(header) if size is None else size
    (folder / "v.safetensors").write_bytes(size.to_bytes(8, "little") + header + bytes(12))
    return folder / "v.safetensors"


def packed_npz(folder: Path) -> Path:
    path = bad_npz(folder, words=np.array(WORDS), vectors=TABLE)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def torch_file(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "v.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02")
    return folder / "v.pt"


holes = TABLE.copy()
holes[3, 1] = np.nan
OBJECTS = np.array([{"the": 1}, None], dtype=object)
BAD = {
    "no words": (lambda f: bad_npy(f, TABLE, None), "has 40 rows but no words; expected a word a line"),
    "few words": (lambda f: bad_npy(f, TABLE, WORDS[:-2]), "has 38 words for the 40 rows of v.npy"),
    "words not UTF-8": (lambda f: bad_npy(f, TABLE, b"a\ncaf\xe9\n"), "line 2 is not UTF-8"),
    "word twice": (lambda f: bad_npy(f, TABLE, ["w3", *WORDS[1:]]), "row 4 has 'w3' again, with other"),
    "cut npy": (lambda f: bad_npy(f, TABLE, cut=300), "promises 40 rows of 3, but is cut short; download or"),
    "cut npy header": (lambda f: bad_npy(f, TABLE, cut=30), "its NumPy header is damaged or cut short"),
    "three axes": (lambda f: bad_npy(f, TABLE[None]), "has the shape (1, 40, 3); expected rows and columns"),
    "whole numbers": (lambda f: bad_npy(f, np.ones((40, 3), int)), "holds int64; expected floating-point"),
    "pickle in npy": (lambda f: bad_npy(f, OBJECTS), "a pickle, which is never opened"),
    "nan": (lambda f: bad_npy(f, holes), "row 4 ('w3') has the value nan"),
    "npz without words": (lambda f: bad_npz(f, vectors=TABLE), "without arrays 'words' and 'vectors'"),
    "npz of few words": (
        lambda f: bad_npz(f, vectors=TABLE, words=np.array(WORDS[:5])),
        "its words have the shape (5,); expected (40,), one a row",
    ),
    "npz of numbers for words": (
        lambda f: bad_npz(f, vectors=TABLE, words=np.arange(40)),
        "its words are int64; expected text",
    ),
    "pickle in npz": (
        lambda f: bad_npz(f, vectors=TABLE, words=np.array(WORDS, object)),
        "a pickle, which is never opened",
    ),
    "nan in npz": (lambda f: bad_npz(f, vectors=holes, words=np.array(WORDS)), "row 4 ('w3') has the value"),
    "cut npz": (
        lambda f: bad_npz(f, 400, vectors=TABLE, words=np.array(WORDS)),
        "; download or make it again",
    ),
    "npz in gzip": (packed_npz, "is a packed zip archive; unpack it first"),
    "torch": (torch_file, "is a torch file, a Python pickle, which is never opened"),
    "cut safetensors": (lambda f: bad_tensors(f, cut=-9, vectors=TABLE), "beyond its end; download or"),
    "cut header": (lambda f: bad_tensors(f, cut=60, vectors=TABLE), "header is cut short or damaged"),
    "header of nonsense": (lambda f: bad_header(f, b"{nonsense}  "), "its safetensors header is damaged"),
    "header of no shape": (lambda f: bad_header(f, b'{"a": {"dtype": "F32"}}'), "header is damaged"),
    "size against shape": (
        lambda f: bad_header(f, b'{"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}}'),
        "the size of tensor a is not what its shape (2, 2) asks for",
    ),
    "several tables": (
        lambda f: bad_tensors(f, a=TABLE, b=TABLE),
        "expected one table, named vectors, embeddings or weight; its tables are a, b",
    ),
    "no table": (lambda f: bad_tensors(f, a=TABLE[0]), "its tables are none"),
    "words no list": (lambda f: bad_tensors(f, words=7, vectors=TABLE), "no JSON list of texts"),
    "safetensors without words": (lambda f: bad_tensors(f, None, vectors=TABLE), "has 40 rows but no words"),
    "nan in safetensors": (lambda f: bad_tensors(f, vectors=holes), "row 4 ('w3') has the value nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        vectors.read(path, WORDS)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path.with_suffix("")))
    assert "\n" not in str(error.value)
