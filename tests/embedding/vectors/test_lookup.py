"""Finding formats, unpacking, spellings, and what is remembered."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from textbed.embedding import vectors
from textbed.embedding.vectors import files, lookup, models
from textbed.errors import UserError

TEXT = b"the 1 2\nCat 3 4\ndog 5 6\n"


def test_packed_files_are_read_whatever_they_are_called(tmp_path):
    zstd = pa.compress(TEXT, codec="zstd", asbytes=True)
    for number, data in enumerate((TEXT, gzip.compress(TEXT), bz2.compress(TEXT), zstd)):
        path = tmp_path / f"vectors{number}.bin"
        path.write_bytes(data)
        matrix, found = vectors.read(path, ["dog", "cow", "the"])
        assert matrix.tolist() == [[5, 6], [0, 0], [1, 2]]
        assert found.tolist() == [True, False, True]


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd"])
def test_packed_files_cut_short_are_refused(tmp_path, codec):
    text = b"".join(b"w%d %f %f\n" % (row, row / 7, row / 3) for row in range(20_000))
    packed = bz2.compress(text) if codec == "bz2" else pa.compress(text, codec=codec, asbytes=True)
    path = tmp_path / "vectors.txt"
    path.write_bytes(packed)
    assert vectors.read(path, ["w19999"])[1].all()
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=f"the {codec} file is damaged or cut short") as error:
        vectors.read(path, ["w0"])
    assert "\n" not in str(error.value)


def test_two_packed_files_in_one_are_both_read(tmp_path):
    (tmp_path / "v.gz").write_bytes(gzip.compress(TEXT) + gzip.compress(b"end 7 8\n"))
    assert vectors.read(tmp_path / "v.gz", ["the", "end"])[0].tolist() == [[1, 2], [7, 8]]


def test_a_file_packed_in_many_parts_is_read_like_one(tmp_path):
    lines = [b"%d 3\n" % 500, *(b"w%d %d 2 3\n" % (row, row) for row in range(500))]
    (tmp_path / "v.gz").write_bytes(
        b"".join(gzip.compress(line[:3]) + gzip.compress(line[3:]) for line in lines)
    )
    assert vectors.peek(tmp_path / "v.gz") == (500, 3)
    assert vectors.read(tmp_path / "v.gz", ["w499", "w7"])[0].tolist() == [[499, 2, 3], [7, 2, 3]]


def test_spellings_in_the_order_asked_for(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"the 1 1\nThe 2 2\ncat 3 3\nParis 4 4\n")
    words = ["The", "Cat", "paris", "the"]

    def rows(*case):
        matrix, found = vectors.read(path, words, case=case)
        assert np.array_equal(matrix.any(axis=1), found)
        return matrix[:, 0].tolist()

    assert rows("exact") == [2, 0, 0, 1]
    assert rows("exact", "lower") == [2, 3, 0, 1]
    assert rows("exact", "lower", "title") == [2, 3, 4, 1]
    assert rows("lower") == [1, 3, 0, 1]
    assert rows("title", "lower") == [2, 3, 4, 2]


def test_words_may_repeat(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(TEXT)
    assert vectors.read(path, ["dog", "", "", "dog"])[0].tolist() == [[5, 6], [0, 0], [0, 0], [5, 6]]


def test_what_was_read_is_remembered_by_content(tmp_path, monkeypatch):
    path, cache = tmp_path / "v.txt", tmp_path / "cache"
    path.write_bytes(TEXT)
    words = ["dog", "the", "cow"]
    first = vectors.read(path, words, cache=cache)
    looked_up = []
    plain = lookup._look_up
    monkeypatch.setattr(lookup, "_look_up", lambda *a: looked_up.append(a) or plain(*a))

    def read(path=path, words=words, **more):
        del looked_up[:]
        result = vectors.read(path, words, cache=cache, **more)
        return result, len(looked_up)

    again, looks = read()
    assert looks == 0
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    assert read(words=[*words, "Cat"])[1] == 1
    assert read(words=words[::-1])[1] == 1
    assert read(case=("exact", "lower"))[1] == 1
    # The same bytes elsewhere are the same vectors, once their hash is known; other bytes are not.
    copy = tmp_path / "copy.txt"
    copy.write_bytes(TEXT)
    lookup.content_hash(copy, cache)
    assert read(copy)[1] == 0
    path.write_bytes(TEXT.replace(b"5", b"9"))
    (matrix, _), looks = read()
    assert (looks, matrix[0].tolist()) == (1, [9, 6])


def test_a_damaged_memory_is_read_anew(tmp_path):
    path, cache = tmp_path / "v.txt", tmp_path / "cache"
    path.write_bytes(TEXT)
    expected = vectors.read(path, ["dog", "cow"], cache=cache)[0]
    (kept,) = (cache / "vectors").iterdir()
    whole = kept.read_bytes()
    for data in (whole[:-20], whole[:-3], whole[:100], b"", pickle.dumps([1])):
        kept.write_bytes(data)
        np.testing.assert_array_equal(vectors.read(path, ["dog", "cow"], cache=cache)[0], expected)
        assert kept.read_bytes() == whole
    assert [file.name for file in (cache / "vectors").iterdir()] == [kept.name]  # nothing half-written


def test_no_coverage_is_an_error_and_not_remembered(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(TEXT)
    for _ in range(2):
        with pytest.raises(UserError, match="has a vector for none of the 2 words"):
            vectors.read(path, ["le", "chat"], cache=tmp_path / "cache")


def test_special_rows_are_no_coverage(tmp_path):
    """A file's own rows for padding and the unknown are no words, nor are they shown as such."""
    path, cache = tmp_path / "v.txt", tmp_path / "cache"
    path.write_bytes(b"<pad> 0 0\n<unk> 3 4\ndog 5 6\n")
    tokens = ["le", "<pad>", "<unk>", "chat"]
    vectors.read(path, tokens, cache=cache)  # what is remembered of other special rows is no way past it
    for place in (None, cache):
        with pytest.raises(UserError, match="has a vector for none of the 2 words") as error:
            vectors.read(path, tokens, special=(1, 2), cache=place)
        assert "which begins with 'le', 'chat';" in str(error.value)
    matrix, found = vectors.read(path, ["<pad>", "<unk>", "dog"], special=(0, 1))
    assert found.tolist() == [True, True, True]
    assert matrix.tolist() == [[0, 0], [3, 4], [5, 6]]


def test_words_beside_the_vocabulary_are_read_with_it(tmp_path):
    path, cache = tmp_path / "v.txt", tmp_path / "cache"
    path.write_bytes(TEXT)
    for _ in range(2):
        matrix, found = vectors.read(path, ["dog", "le"], more=["chat", "the"], cache=cache)
        np.testing.assert_array_equal(matrix, vectors.read(path, ["dog", "le", "chat", "the"])[0])
        assert found.tolist() == [True, False, False, True]
    # They are no reason to train on a vocabulary without a vector.
    vectors.read(path, ["le", "dog"], cache=cache)
    with pytest.raises(UserError, match="has a vector for none of the 1 words"):
        vectors.read(path, ["le"], more=["dog"], cache=cache)
    # Without a vocabulary there is nothing to cover.
    assert vectors.read(path, [], more=["le"])[1].tolist() == [False]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(TEXT)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*paths.cache"):
        vectors.read(path, ["dog"], cache=tmp_path / "cache")


def test_processes_at_once_agree(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"".join(b"w%d %f %f\n" % (row, row / 7, row / 3) for row in range(2000)))
    code = (
        "import sys; from pathlib import Path; from textbed.embedding import vectors;"
        "m, f = vectors.read(sys.argv[1], [f'w{i}' for i in range(0, 2000, 3)], cache=Path(sys.argv[2]));"
        "print(f.all(), round(float(m.sum())))"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in running}
    assert said == {f"True {round(sum(w / 7 + w / 3 for w in range(0, 2000, 3)))}\n"}
    assert len(list((tmp_path / "cache" / "vectors").iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"PAR1" + bytes(20), "is a Parquet file"),
        (b"\xfd7zXZ\x00" + bytes(20), "is an xz file"),
        (pickle.dumps({"the": [1, 2]}), "is a Python pickle, which is never opened"),
        (gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_what_is_not_vectors_is_named(tmp_path, data, message):
    path = tmp_path / "vectors.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        vectors.peek(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_ids_of_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vectors.is_hub_id("minishlab/potion-base-8M")
    assert vectors.is_hub_id("sentence-transformers/all-MiniLM-L6-v2")
    assert not vectors.is_hub_id("vectors/glove.6B.100d.txt")
    assert not vectors.is_hub_id("glove.txt")
    assert not vectors.is_hub_id("/vectors/glove")
    assert not vectors.is_hub_id("a/b/c")
    os.mkdir("vectors")
    assert not vectors.is_hub_id("vectors/glove")  # a file that is not there, in a folder that is


def test_the_hub_out_of_reach_is_said_at_once(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as error:
        vectors.peek("someone/no-such-model")
    assert str(error.value).startswith("someone/no-such-model: there is no such file or folder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("textbed.data.hub.reachable", lambda: False)
    with pytest.raises(UserError, match="does not answer"):
        vectors.peek("someone/no-such-model")


def test_a_model_downloaded_before_needs_no_hub(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    asked = []

    def download(name, allow_patterns, local_files_only):
        asked.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert models.hub_folder("someone/model") == folder
    assert asked == [("someone/model", True)]


def test_a_bar_shows_on_a_terminal_only(tmp_path, monkeypatch):
    path = tmp_path / "v.txt"
    path.write_bytes(TEXT)
    monkeypatch.setattr(files, "SHOW_PROGRESS_FROM", 1)
    wrapped = []
    import rich.progress

    plain = rich.progress.wrap_file
    monkeypatch.setattr(rich.progress, "wrap_file", lambda *a, **k: wrapped.append(a) or plain(*a, **k))
    vectors.read(path, ["dog"])
    assert not wrapped
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert vectors.read(path, ["dog"])[0].tolist() == [[5, 6]]
    assert len(wrapped) == 1
    assert Path(wrapped[0][0].name) == path
