"""The verbs of scripts/vectors.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import ROOT, documents, write_csv
from safetensors import safe_open

from textbed import vector_tools
from textbed.embedding import vectors
from textbed.errors import UserError

SCRIPT = ROOT / "scripts" / "vectors.py"
TABLE = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
WORDS = [f"w{row}" for row in range(29)] + ["é"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "v.npz", words=np.array(WORDS), vectors=TABLE)
    return tmp_path / "v.npz"


@pytest.mark.parametrize("ending", [".txt", ".vec", ".npz", ".safetensors"])
def test_a_converted_file_holds_the_same_rows_to_the_last_bit(file, tmp_path, ending):
    to = tmp_path / f"out{ending}"
    assert vector_tools.convert(str(file), to) == [f"{to}: 30 rows of 4 numbers, from NumPy .npz"]
    matrix, found = vectors.read(to, WORDS)
    assert found.all()
    np.testing.assert_array_equal(matrix, TABLE)
    assert vectors.peek(to) == (30, 4)


def test_others_read_what_is_written(file, tmp_path):
    vector_tools.convert(str(file), tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", "numpy") as tensors:
        np.testing.assert_array_equal(tensors.get_tensor("vectors"), TABLE)
        assert json.loads(tensors.metadata()["words"]) == WORDS
    import gensim

    vector_tools.convert(str(file), tmp_path / "v.txt")
    keyed = gensim.models.KeyedVectors.load_word2vec_format(str(tmp_path / "v.txt"))
    assert keyed.index_to_key == WORDS
    np.testing.assert_array_equal(keyed.vectors, TABLE)


def test_of_a_word_twice_the_first_row_is_kept(tmp_path):
    (tmp_path / "v.txt").write_text("a 1 2\nb 3 4\na 5 6\n")
    said = vector_tools.convert(str(tmp_path / "v.txt"), tmp_path / "out.npz")
    assert said[1] == "1 rows of words that came before were left out"
    assert vectors.read(tmp_path / "out.npz", ["a", "b"])[0].tolist() == [[1, 2], [3, 4]]


def test_a_word_with_white_space_does_not_fit_into_text(tmp_path):
    (tmp_path / "v.txt").write_text("a 1 2\nb c 3 4\nd 5 6\n")
    with pytest.raises(UserError, match=r"row 2 is of the word 'b c'.*write .npz or .safetensors"):
        vector_tools.convert(str(tmp_path / "v.txt"), tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_info(file):
    norms = np.linalg.norm(TABLE, axis=1)
    assert vector_tools.info(str(file), first=2) == [
        f"file     {file}",
        "format   NumPy .npz",
        "rows     30 of 4 numbers",
        "words    w0, w1, …",
        f"norms    {norms.min():.3g} to {norms.max():.3g}, median {np.median(norms):.3g}",
    ]


def test_info_without_words_has_no_line_of_them(file):
    assert [line.split()[0] for line in vector_tools.info(str(file), first=0)] == [
        "file",
        "format",
        "rows",
        "norms",
    ]
    with pytest.raises(UserError, match="--first -1: expected a whole number of at least 0"):
        vector_tools.info(str(file), first=-1)


def test_info_names_words_that_come_twice(tmp_path, monkeypatch):
    from textbed.embedding.vectors import files

    def said(text):
        (tmp_path / "v.txt").write_text(text)
        return [line for line in vector_tools.info(str(tmp_path / "v.txt")) if line.startswith("twice")]

    assert said("a 1 2\nb 3 4\n") == []
    same = (
        "twice    1 word comes more than once, with the same numbers each time, such as 'a' in lines 1 and 3"
    )
    for size in (files.BLOCK, 16):
        monkeypatch.setattr(files, "BLOCK", size)
        assert said("a 1 2\nb 3 4\na 1 2\n") == [same]
        assert said("a 1 2\nb 3 4\na 1 2\nb 3 5\nb 3 6\n") == [
            "twice    2 words come more than once, 1 with other numbers than before, "
            "such as 'b' in lines 2 and 4; a training run that looks it up is refused: "
            "remove one line, or keep the first of each with convert"
        ]


def test_a_last_line_without_an_end_is_doubted_once(tmp_path, capsys):
    (tmp_path / "v.txt").write_text("the 1 2\nowl 3 4")
    for verb, more in (("info", ()), ("neighbours", (["owl"],)), ("convert", (tmp_path / "out.npz",))):
        getattr(vector_tools, verb)(str(tmp_path / "v.txt"), *more)
        assert capsys.readouterr().err.count("v.txt: line 2, the last, has no line end") == 1
    data = write_csv(tmp_path / "d.csv", documents(60))
    overrides = ["data=csv", f"data.path='{data}'", f"paths.cache='{tmp_path}/cache'"]
    vector_tools.info(str(tmp_path / "v.txt"), data=overrides)
    assert capsys.readouterr().err.count("has no line end") == 1


def test_what_cannot_be_written_is_named_beside_what_can(file, tmp_path):
    with pytest.raises(UserError) as error:
        vector_tools.convert(str(file), tmp_path / "c.bin")
    assert str(error.value) == (
        f"--to {tmp_path}/c.bin: .bin, word2vec's or fastText's binary format, cannot be written; "
        "expected a file that ends in .txt, .vec, .npz, .safetensors"
    )


def test_info_says_how_much_of_a_data_set_is_covered(tmp_path):
    data = write_csv(tmp_path / "d.csv", documents(60))
    (tmp_path / "v.txt").write_text("Owl 1 2\nnest 3 4\n")
    overrides = ["data=csv", f"data.path='{data}'", f"paths.cache='{tmp_path}/cache'"]

    def tokens(case):
        lines = vector_tools.info(str(tmp_path / "v.txt"), data=overrides, case=case)
        assert lines[-1].startswith(("tokens", "without"))
        (line,) = [line for line in lines if line.endswith("of train have one")]
        return float(line.split()[1].rstrip("%"))

    text = [word for text, _ in documents(60) for word in text.lower().split()]
    assert 0 < tokens(["exact"]) < tokens(["exact", "title"])
    whole = 100 * sum(word in ("owl", "nest") for word in text) / len(text)
    assert tokens(["exact", "title"]) == pytest.approx(whole, abs=3)  # of all documents, not train alone


def test_info_takes_special_rows_for_no_coverage(tmp_path):
    data = write_csv(tmp_path / "d.csv", documents(60))
    (tmp_path / "v.txt").write_text("<pad> 0 0\n<unk> 1 2\nchat 3 4\n")
    overrides = ["data=csv", f"data.path='{data}'", f"paths.cache='{tmp_path}/cache'"]
    with pytest.raises(UserError, match="has a vector for none of the") as error:
        vector_tools.info(str(tmp_path / "v.txt"), data=overrides)
    assert "<" not in str(error.value)


def test_neighbours_are_those_of_the_largest_cosine(file, monkeypatch):
    from textbed.embedding.vectors import files

    monkeypatch.setattr(files, "BLOCK", 48)  # several blocks
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    for word in ("w3", "é"):
        cosines = unit @ unit[WORDS.index(word)]
        order = [row for row in np.argsort(-cosines) if WORDS[row] != word][:4]
        expected = [word, *(f"  {cosines[row]:.3f}  {WORDS[row]}" for row in order)]
        assert vector_tools.neighbours(str(file), [word], 4) == expected
    with pytest.raises(UserError, match="has no vector for 'zzz'"):
        vector_tools.neighbours(str(file), ["w3", "zzz"])


def test_words_without_neighbours_are_named_with_what_is_near(tmp_path):
    (tmp_path / "v.txt").write_text("castle 1 2\nCart 3 4\nhat 5 6\n")

    def said(*words):
        with pytest.raises(UserError) as error:
            vector_tools.neighbours(str(tmp_path / "v.txt"), words)
        return str(error.value).removeprefix(f"{tmp_path}/v.txt: ")

    assert said("cassle") == "has no vector for 'cassle'. Did you mean 'castle'?"
    assert said("CART") == "has no vector for 'CART'. Did you mean 'Cart'?"  # no letter but one is the same
    assert said("hat", "cart", "zzz") == "has no vector for 'cart', 'zzz'. Did you mean 'Cart'?"


@pytest.mark.parametrize("method", ["word2vec", "fasttext"])
def test_train_on_text_and_on_a_data_set(tmp_path, method):
    (tmp_path / "a.txt").write_text("The cat sat.\nA cat, the cat!\n" * 20)
    said = vector_tools.train([tmp_path / "a.txt"], tmp_path / "v.npz", method=method, dim=6, epochs=1)
    assert said == [f"{tmp_path}/v.npz: 7 words of 6 numbers, {method}"]
    assert vectors.read(tmp_path / "v.npz", ["the", "cat", "sat", "a", ".", ",", "!"])[1].all()
    data = write_csv(tmp_path / "d.csv", documents(60))
    overrides = ["data=csv", f"data.path='{data}'", f"paths.cache='{tmp_path}/cache'"]
    vector_tools.train([], tmp_path / "d.txt", overrides, method, dim=6, epochs=1)
    assert vectors.read(tmp_path / "d.txt", ["owl", "nest"])[1].all()


def test_fasttext_keeps_its_subwords_in_bin(tmp_path):
    (tmp_path / "a.txt").write_text("the cats and the dogs\n" * 20)
    vector_tools.train([tmp_path / "a.txt"], tmp_path / "v.bin", method="fasttext", dim=4, epochs=1)
    assert vectors.open_vectors(tmp_path / "v.bin").format == "fastText binary"
    assert vectors.read(tmp_path / "v.bin", ["cats", "unseen"])[1].all()


@pytest.mark.parametrize(
    ("texts", "to", "more", "message"),
    [
        ([], "v.npz", {}, "give text files, or a data set"),
        (["gone.txt"], "v.npz", {}, "gone.txt: there is no such text file"),
        (["a.txt"], "v.pkl", {}, "expected a file that ends in .txt, .vec, .npz, .safetensors"),
        (["a.txt"], "v.bin", {}, "only --method fasttext writes .bin"),
        (["a.txt"], "v.npz", {"min_count": 99}, "no word of the text occurs 99 times"),
        (["bad.txt"], "v.npz", {}, "bad.txt: is not UTF-8 text"),
        (["a.txt"], "v.npz", {"dim": 0}, "--dim 0: expected a whole number of at least 1"),
        (["a.txt"], "v.npz", {"min_count": 0}, "--min-count 0: expected a whole number of at least 1"),
        (["a.txt"], "v.npz", {"epochs": 0}, "--epochs 0: expected a whole number of at least 1"),
        (["a.txt"], "v.npz", {"window": -2}, "--window -2: expected a whole number of at least 1"),
        (["a.txt"], "v.npz", {"seed": -1}, "--seed -1: expected a whole number of at least 0"),
    ],
)
def test_train_refuses_in_one_line(tmp_path, monkeypatch, texts, to, more, message):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a text of words\n")
    Path("bad.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError) as error:
        vector_tools.train([Path(text) for text in texts], Path(to), **more)
    assert message in str(error.value)
    assert not Path(to).exists()


def test_distill_makes_its_environment_once(tmp_path, monkeypatch, file):
    commands = []

    def run(command, what):
        commands.append([str(part) for part in command])
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        if command[1] == "-c":
            folder = Path(command[-2])
            folder.mkdir()
            (folder / "model").write_text("")

    monkeypatch.setattr(vector_tools, "_run", run)
    monkeypatch.setattr(vector_tools, "open_vectors", lambda path: vectors.open_vectors(file))
    place = tmp_path / "environment"
    said = vector_tools.distill("owner/model", tmp_path / "a", 8, place)
    assert said == [f"{tmp_path}/a: 30 rows of 4 numbers; use it with embedding.vectors={tmp_path}/a"]
    assert commands[0][1:3] == ["-m", "venv"]
    assert commands[1] == [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        *vector_tools.PACKAGES,
    ]
    assert commands[2][3] == "owner/model"
    assert commands[2][-1] == "8"
    vector_tools.distill("owner/model", tmp_path / "b", 8, place)
    assert len(commands) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "environment", "v.npz"]
    with pytest.raises(UserError, match="is there already"):
        vector_tools.distill("owner/model", tmp_path / "a", 8, place)


def test_a_command_that_fails_is_one_line():
    with pytest.raises(UserError) as error:
        vector_tools._run([sys.executable, "-c", "raise ValueError('no such model')"], "distilling x")
    assert str(error.value) == "distilling x failed: ValueError: no such model"


def test_the_script(file, tmp_path):
    def run(*arguments):
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = run("info", file)
    assert done.returncode == 0
    assert "format   NumPy .npz" in done.stdout
    done = run("convert", file, "--to", "out.vec")
    assert (done.stdout, done.returncode) == ("out.vec: 30 rows of 4 numbers, from NumPy .npz\n", 0)
    done = run("neighbours", "gone.npz", "cat")
    assert (done.returncode, done.stderr) == (
        1,
        "error: gone.npz: there is no such vectors file. Did you mean 'v.npz'?\n",
    )
    assert run("--help").stdout.count("python scripts/vectors.py") == 5
