from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import ROOT

from textbed.errors import UserError
from textbed.runs import prediction
from textbed.runs.folder import RunFolder
from textbed.runs.model import Model, load
from textbed.runs.prediction import Wanted, predict_file, predict_texts

Trained = Callable[[str], RunFolder]
TEXTS = ["an owl sat in its nest", "", "a mast with a sail, and rope", "crust of\nrye"] * 3


@pytest.fixture
def model(trained: Trained) -> Model:
    return load(trained("words").path)


def write(path: Path, texts: list[str]) -> Path:
    """The texts with a number beside each, in the format of the ending."""
    rows = [{"number": number, "text": text} for number, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif path.suffix == ".txt":
        path.write_bytes("\n".join(text.replace("\n", " ") for text in texts).encode())
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writerows([("number", "text"), *(row.values() for row in rows)])
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("given", ["in.csv", "in.tsv", "in.jsonl.gz", "in.parquet", "in.txt"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_every_row_is_said_with_its_columns(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, ending: str
) -> None:
    monkeypatch.setattr(prediction, "ROWS", 5)  # so that pieces end inside the file
    out = tmp_path / f"out{ending}"
    count = predict_file(
        model, write(tmp_path / given, TEXTS), out, wanted=Wanted(2, probabilities=True), batch_size=3
    )
    rows = read(out)
    assert count == len(rows) == len(TEXTS)
    chances = model.predict_proba(TEXTS)
    for number, (row, chance) in enumerate(zip(rows, chances, strict=True)):
        if given != "in.txt":
            assert int(row["number"]) == number
            assert row["text"] == TEXTS[number]
        best = np.argsort(-chance, kind="stable")
        assert [row["predicted"], row["predicted_2"]] == [model.classes[i] for i in best[:2]]
        assert float(row["probability"]) == pytest.approx(chance.max(), abs=1e-5)
        assert float(row["probability_2"]) == pytest.approx(chance[best[1]], abs=1e-5)
        told = [float(row[f"probability_of_{name}"]) for name in model.classes]
        assert told == pytest.approx(chance.tolist(), abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([given, out.name])


def test_pairs_and_several_labels(trained: Trained, tmp_path: Path) -> None:
    pairs, several = load(trained("pairs").path), load(trained("multilabel").path)
    table = pa.table({"id": [1, 2], "second": ["a sail", None], "first": ["an owl", "rye"]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    predict_file(pairs, tmp_path / "pairs.parquet", tmp_path / "out.jsonl", wanted=Wanted())
    expected = pairs.predict([("an owl", "a sail"), ("rye", "")], as_list=True)
    assert [row["predicted"] for row in read(tmp_path / "out.jsonl")] == expected
    # named the other way round, the texts change places
    wanted = Wanted(probabilities=True, prefix="x_")
    predict_file(
        pairs, tmp_path / "pairs.parquet", tmp_path / "o.parquet", wanted=wanted, text=["second", "first"]
    )
    swapped = pairs.predict_proba([("a sail", "an owl"), ("", "rye")])
    told = [
        [row[f"x_probability_of_{name}"] for name in pairs.classes] for row in read(tmp_path / "o.parquet")
    ]
    np.testing.assert_allclose(told, swapped, atol=1e-6)

    path = write(tmp_path / "in.csv", TEXTS)
    hits = several.predict(TEXTS, as_list=True)
    for ending, join in ((".parquet", list), (".csv", "|".join)):
        predict_file(several, path, tmp_path / f"several{ending}", wanted=Wanted())
        assert [row["predicted"] for row in read(tmp_path / f"several{ending}")] == list(map(join, hits))


def test_texts_on_the_command_line(trained: Trained, model: Model) -> None:
    lines = predict_texts(model, ["an owl", "a\nmast"], wanted=Wanted(3))
    chances = model.predict_proba(["an owl", "a mast"])
    for line, chance, text in zip(lines, chances, ["an owl", "a mast"], strict=True):
        cells = line.split("\t")
        best = np.argsort(-chance)
        assert cells[0:6:2] == [model.classes[i] for i in best]
        assert cells[1:6:2] == [f"{chance[i]:.4f}" for i in best]
        assert cells[6] == text
    pairs = load(trained("pairs").path)
    (line,) = predict_texts(pairs, ["a", "b"], wanted=Wanted())
    assert line.startswith(pairs.predict([("a", "b")])[0])
    assert line.endswith("\ta ||| b")
    with pytest.raises(UserError, match="3 texts: the model classifies pairs"):
        predict_texts(pairs, ["a", "b", "c"], wanted=Wanted())


@pytest.mark.parametrize(
    ("name", "content", "more", "expected"),
    [
        ("in.csv", b"", {}, r"in\.csv: the file is empty"),
        ("in.txt", b"", {}, r"in\.txt has no rows"),
        ("in.csv", b"text\n", {}, r"in\.csv has no rows"),
        ("in.csv", b"a,b\n1,2\n", {}, "--text: none of 'a', 'b' is plainly the text; name it, --text COLUMN"),
        ("in.csv", b"a,b\n1,2\n", {}, "if the file has no header, set --no-header"),
        ("in.csv", b"a;b\n1;2\n", {}, "separated by ';', set --delimiter ';'"),
        ("in.csv", b"a,text\n1,2\n", {"text": ["txt"]}, r"--text: no column 'txt'; .* Did you mean 'text'"),
        ("in.csv", b"a,text\n1,2\n", {"text": ["a", "text"]}, "2 columns are named; the model reads 1"),
        ("in.csv", b"a,text\n1,2\n3\n", {}, r"in\.csv, line 3: 1 values where the first row has 2"),
        (
            "in.csv",
            b"text,b\n\xe9,2\n",
            {},
            r"in\.csv, line 2: byte 0xe9 is not utf-8; .* --encoding latin-1",
        ),
        ("in.txt", b"ok\n\xe9\n", {}, r"in\.txt, line 2: byte 0xe9 is not utf-8; .*--encoding latin-1"),
        ("in.jsonl", b'{"text": "a"}\n{"text": 3}\n', {}, r"in\.jsonl, line 2: 'text' is a number"),
        ("in.jsonl", b'{"text": 3}\n', {}, r"--text: column 'text' is of type int64; expected text"),
        ("in.parquet", b"PAR1", {}, r"in\.parquet: not a Parquet file"),
        ("in.csv", b"text,predicted\na,b\n", {}, r"has a column 'predicted' already; .* --prefix model_"),
        ("in.xls", b"x", {}, r"in\.xls: the ending does not say what it is; expected one of \.csv"),
        ("in.csv", b"a,text\n1,2\n", {"wanted": Wanted(4)}, "--top 4: expected 1 to 3"),
    ],
    ids=str,
)
def test_files_that_cannot_be_read(
    model: Model, tmp_path: Path, name: str, content: bytes, more: dict[str, Any], expected: str
) -> None:
    path, out = tmp_path / name, tmp_path / "out.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        predict_file(model, path, out, **{"wanted": Wanted()} | more)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]  # nothing half-written


def test_places_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl.gz", TEXTS)
    with pytest.raises(UserError, match=r"--out: .*out\.xlsx: expected a name that ends in \.parquet"):
        predict_file(model, path, tmp_path / "out.xlsx", wanted=Wanted())
    with pytest.raises(UserError, match=r"--file: no file or folder .*in\.json.*Did you mean 'in\.jsonl"):
        predict_file(model, tmp_path / "in.json", None, wanted=Wanted())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"--out: .*folder\.csv is a folder; expected the name of a file"):
        predict_file(model, path, tmp_path / "folder.csv", wanted=Wanted())
    table = pa.table({"text": ["a"], "list": [[1, 2]]})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"--out: column 'list' holds list<.*for which \.csv has no place"):
        predict_file(model, tmp_path / "in.parquet", tmp_path / "out.csv", wanted=Wanted())
    with pytest.raises(UserError, match="is the file that is read"):
        predict_file(model, tmp_path / "in.parquet", tmp_path / "in.parquet", wanted=Wanted())


def test_a_folder_in_which_nothing_can_be_made(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, mode: int = 0o777) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    path = write(tmp_path / "in.csv", TEXTS)
    monkeypatch.setattr(os, "mkdir", refuse)
    for out in (tmp_path / "out.csv", tmp_path / "no" / "such" / "out.csv"):
        with pytest.raises(UserError, match=r"cannot write .*out\.csv: nothing can be made in") as caught:
            predict_file(model, path, out, wanted=Wanted())
        assert str(caught.value).endswith(
            f"in {tmp_path} (No such file or directory): choose another place (--out)"
        )
    with pytest.raises(UserError, match=r"no place for temporary files .*: set TMPDIR"):
        predict_file(model, path, None, wanted=Wanted())


def test_the_script(
    trained: Trained, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "predict.py"), run_name="__main__")
        told = capsys.readouterr()
        assert bool(ended.value.code) == bool(told.err.startswith(("error", "usage"))), told.err
        return told.out, told.err

    path = tmp_path / "in.csv"
    path.write_text("an owl;1\nsail;2\n")
    folder = str(trained("words").path)
    out, _ = run(folder, "--file", str(path), "--delimiter", ";", "--no-header", "--text", "c0")
    assert [json.loads(line)["predicted"] for line in out.splitlines()] == [
        *model.predict(["an owl", "sail"])
    ]
    assert run(folder, "an owl")[0].split("\t")[0] == model.predict(["an owl"])[0]
    assert run(f"{folder}x", "an owl")[1].startswith("error: run folder")
    assert "give texts, or a file of them" in run(folder)[1]
    for option, value in (("--threads", "0"), ("--threads", "-3"), ("--batch-size", "0")):
        said = run(folder, "a", option, value)[1]
        assert f"{option}: {value}: expected a whole number of at least 1" in said
