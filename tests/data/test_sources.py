from __future__ import annotations

import errno
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textbed.data import hub, parsing, records
from textbed.data.sources import from_datasets, load
from textbed.errors import UserError


@pytest.fixture
def put(tmp_path):
    """Write a file below the test's folder and return its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def read(tmp_path):
    """Load a data set with the test's own cache."""

    def read_(source: str, path=None, **settings):
        return load({"source": source, "path": path, **settings}, tmp_path / "cache")

    return read_


def texts(split, column=0):
    return [text for batch in split.texts(column) for text in batch.to_pylist()]


def write_parquet(path, columns, names=None):
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def refused(call, *parts):
    """The message of the UserError that ``call`` raises: one line, with all of ``parts`` in it."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# CSV


def test_csv_is_read_as_it_is_written(put, read):
    content = b'\xef\xbb\xbftext,label\r\n"a ""quoted"", one\r\nof two lines",10\r\n'
    content += b'NA,9\r\n,10\r\n"?!",9\r\n12.50,9\r\n'
    corpus = read("csv", put("a.csv", content))
    train = corpus.splits["train"]
    assert texts(train) == ['a "quoted", one\r\nof two lines', "NA", "", "?!", "12.50"]
    assert corpus.classes == ["9", "10"]  # by size, not as strings
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [1, 0, 1, 0, 0]
    assert train.text(1) == "NA"
    assert (corpus.columns, corpus.multilabel) == (1, False)
    assert list(corpus.splits) == ["train"]


@pytest.mark.parametrize("source", ["csv", "tsv"])
def test_a_folder_is_searched_for_splits_by_their_usual_names(put, read, source):
    sign = "," if source == "csv" else "\t"
    put(f"d/train.{source}", f"text{sign}label\na{sign}x\nb{sign}y\n")
    put(f"d/dev.{source}.gz", gzip.compress(f"text{sign}label\nc{sign}y\n".encode()))
    path = put(f"d/test.{source}", f"text{sign}label\nd{sign}x\n")
    corpus = read(source, str(Path(path).parent))
    assert {name: texts(split) for name, split in corpus.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
    }
    assert corpus.splits["validation"].labels.tolist() == [1]


def test_a_mapping_takes_files_patterns_and_lists(put, read, tmp_path):
    for name in "abc":
        put(f"{name}.csv", f"text,label\n{name},1\n{name}{name},2\n")
    paths = {"train": str(tmp_path / "[ab].csv"), "valid": [str(tmp_path / "c.csv")]}
    corpus = read("csv", paths)
    assert texts(corpus.splits["train"]) == ["a", "aa", "b", "bb"]
    assert texts(corpus.splits["validation"]) == ["c", "cc"]


def test_csv_without_header_delimiter_and_encoding_of_its_own(put, read):
    path = put("a.csv", "1;café; x\n2;thé;y\n".encode("latin-1"))
    settings = {"encoding": "latin-1", "delimiter": ";"}
    named = read("csv", path, header=["label", "text", "more"], **settings)
    counted = read("csv", path, header=False, text=["c1", "c2"], label="c0", **settings)
    assert texts(named.splits["train"]) == texts(counted.splits["train"]) == ["café", "thé"]
    assert texts(counted.splits["train"], 1) == [" x", "y"]
    assert counted.columns == 2


@pytest.mark.parametrize(
    ("content", "settings", "parts"),
    [
        (
            'text,label\n"two\nlines",1\na,2\nb,2,3\n',
            {},
            ["line 5: 3 values where the first row has 2", "b,2,3"],
        ),
        ("text,label\na,1\nb\n", {}, ["line 3: 1 values where the first row has 2"]),
        ("good,1\nbad,0\n", {}, ["'good', '1'", "data.header=false"]),
        ("good,1\nbad,0\n", {"label": "label", "text": "text"}, ["no column 'text'", "data.header=false"]),
        ("text;label\na;1\n", {}, ["'text;label'", "data.delimiter=';'"]),
        (
            b"text,label\nplain,0\ncaf\xe9,1\n",
            {},
            ["line 3: byte 0xe9 is not utf-8", "data.encoding=latin-1"],
        ),
        ("text,label\na,0\nb,1\n".encode("utf-16"), {}, ["line 1", "data.encoding=utf-16"]),
        ("text,label\na,0\n", {"encoding": "latin_one"}, ["no encoding 'latin_one'", "'latin-1'"]),
        ('label,text\n1,fine\n0,"open\n1,b\n', {}, ["line 3: a quote", "data.quote=null"]),
        ('text,label\nfine,1\n"open,1\nb,0\n', {}, ["line 3: a quote"]),
        ('label,text\n0,fine\n1,"open', {}, ["line 3: a quote"]),
        ('label,text\n1,"a\n2,"b"\n3,c\n', {}, ["line 2: a quote", "noticed on line 3"]),
        ("", {}, ["the file is empty"]),
        ("text,label\n", {}, ["the train split has no rows"]),
        ("text,text,label\na,b,1\n", {}, ["two columns are called 'text'"]),
        ("text,label\na,1\nb,2\n", {"label": "lable"}, ["no column 'lable'", "Did you mean 'label'?"]),
        (
            "title,body,comment,label\na,b,c,1\n",
            {},
            ["'body', 'comment' could all be the text", "data.text=[A,B]"],
        ),
        ("text,a,b\nx,1,2\n", {}, ["none of 'text', 'a', 'b' is plainly the label", "data.label=COLUMN"]),
        ("text,label\na,1\nb,\nc,2\nd, \n", {}, ["empty in 2 of 4 rows of train", "row 2 of"]),
        ("text,label\na,1\nb,1\n", {}, ["one class in train (only '1')"]),
        ("text,label\na,1\nb,2\n", {"label": "text", "text": "text"}, ["'text' is also data.text"]),
        ("text,label\na,1\n", {"delimiter": ",,"}, ["data.delimiter: ',,' is not one ASCII character"]),
    ],
)
def test_a_csv_that_cannot_be_right_is_refused_with_its_line(put, read, tmp_path, content, settings, parts):
    path = put("bad.csv", content)
    refused(lambda: read("csv", path, **settings), *parts)
    cache = tmp_path / "cache"
    assert not list(cache.rglob(".*"))  # nothing half-written


def test_quotes_may_be_ordinary_characters(put, read):
    path = put("a.tsv", 'text\tlabel\n"so\t1\n5" wide\t0\n')
    assert texts(read("tsv", path, quote=None).splits["train"]) == ['"so', '5" wide']
    # What was parsed with quotes is not what is read without.
    path = put("b.tsv", 'text\tlabel\n"so"\t1\nwide\t0\n')
    assert texts(read("tsv", path).splits["train"]) == ["so", "wide"]
    assert texts(read("tsv", path, quote=None).splits["train"]) == ['"so"', "wide"]


def test_an_unclosed_quote_is_found_in_a_file_of_many_blocks(put, read, monkeypatch):
    monkeypatch.setattr(parsing, "BLOCK_BYTES", 4096)
    path = put("a.csv", 'label,text\n1,ok\n0,"open\n' + "1,some more words\n" * 2000)
    refused(lambda: read("csv", path), "line 3: a quote", "noticed on line 2003")


def test_a_row_longer_than_a_block_is_read_after_all(put, read, monkeypatch):
    monkeypatch.setattr(parsing, "BLOCK_BYTES", 4096)
    path = put("a.csv", f"label,text\n1,short\n0,{'x' * 50_000}\n1,end\n")
    assert [len(text) for text in texts(read("csv", path).splits["train"])] == [5, 50_000, 3]


def test_a_compressed_file_that_is_cut_short_is_named(put, read):
    whole = gzip.compress(b"text,label\n" + b"".join(b"%d words,%d\n" % (i, i % 2) for i in range(20_000)))
    assert read("csv", put("a.csv.gz", whole)).splits["train"].num_rows == 20_000
    refused(lambda: read("csv", put("b.csv.gz", whole[:30_000])), "b.csv.gz", "cut short")


# Files and splits


def test_missing_files_are_named_with_the_nearest(put, read, tmp_path):
    put("train.csv", "text,label\na,1\n")
    refused(
        lambda: read("csv", str(tmp_path / "trian.csv")),
        "data.path",
        "trian.csv",
        "Did you mean 'train.csv'?",
    )
    refused(lambda: read("csv", {"trian": "x"}), "data.path.trian", "Did you mean 'train'?")
    refused(lambda: read("csv", {"train": str(tmp_path / "*.tsv")}), "data.path.train: no file matches")
    refused(lambda: read("parquet", str(tmp_path)), "holds no train.parquet", "train.csv")
    refused(lambda: read("json"), "data.path: missing")
    refused(lambda: read("cvs"), "data.source: no source 'cvs'", "Did you mean 'csv'?")
    refused(lambda: read("disk", str(tmp_path)), "was not written by save_to_disk")


def test_two_files_for_one_split_and_missing_shards_are_refused(put, read, tmp_path):
    for name in ("dev", "val", "train"):
        put(f"d/{name}.csv", "text,label\na,1\n")
    refused(lambda: read("csv", str(tmp_path / "d")), "val.csv and dev.csv", "validation")
    write_parquet(tmp_path / "s/data/train-00000-of-00002.parquet", {"text": ["a", "b"], "label": [0, 1]})
    refused(lambda: read("parquet", str(tmp_path / "s")), "1 of 2 files")
    write_parquet(tmp_path / "s/data/train-00001-of-00002.parquet", {"text": ["c"], "label": [1]})
    train = read("parquet", str(tmp_path / "s")).splits["train"]
    assert (texts(train), train.labels.tolist(), train.text(2)) == (["a", "b", "c"], [0, 1, 1], "c")


def test_splits_may_be_named(tmp_path, read):
    path = tmp_path / "d"
    for split, labels in {"train": [0, 1], "validation": [1, 1, 0], "test": [-1, -1]}.items():
        columns = {"text": [split] * len(labels), "label": labels}
        write_parquet(path / f"{split}.parquet", columns, ["neg", "pos"])
    refused(lambda: read("parquet", str(path)), "2 of 2 rows of test carry no label", "data.splits=")
    corpus = read("parquet", str(path), splits={"train": "train", "test": "validation"})
    assert {name: split.num_rows for name, split in corpus.splits.items()} == {"train": 2, "test": 3}
    assert corpus.classes == ["neg", "pos"]
    refused(lambda: read("parquet", str(path), splits={"train": "trian"}), "no split 'trian'", "'train'?")
    refused(lambda: read("parquet", str(path), splits={"test": "test"}), "no train split")


def test_several_splits_may_be_one(tmp_path, read):
    path = tmp_path / "d"
    names = ["neg", "pos"]
    write_parquet(path / "train.parquet", {"text": ["a", "b"], "label": pa.array([0, 1], pa.int64())}, names)
    # columns in another order, and narrower numbers
    write_parquet(path / "test.parquet", {"label": pa.array([1, 1, 0], pa.int32()), "text": [*"cde"]}, names)
    corpus = read("parquet", str(path), splits={"train": ["test", "train"]})
    whole = corpus.splits["train"]
    assert list(corpus.splits) == ["train"]
    assert (texts(whole), whole.labels.tolist()) == ([*"cdeab"], [1, 1, 0, 0, 1])
    assert [whole.text(row) for row in range(5)] == [*"cdeab"]
    assert whole.records.where(3).startswith("row 1 of ")
    assert whole.records.where(3).endswith("train.parquet")
    with pytest.raises(IndexError):
        whole.text(5)
    others = [read("parquet", str(path), splits={"train": given}) for given in (["train", "test"], "test")]
    prints = {one.splits["train"].fingerprint for one in (corpus, *others)}
    assert len(prints) == 3
    again = read("parquet", str(path), splits={"train": ["test", "train"]}).splits["train"]
    assert again.fingerprint == whole.fingerprint


def test_splits_that_cannot_be_one(tmp_path, read):
    path = tmp_path / "d"
    write_parquet(path / "train.parquet", {"text": ["a", "b"], "label": [0, 1]}, ["neg", "pos"])
    write_parquet(path / "test.parquet", {"text": ["c"], "label": [1]}, ["pos", "neg"])
    write_parquet(path / "validation.parquet", {"words": ["d"], "label": [1]}, ["neg", "pos"])

    def with_(*names):
        return lambda: read("parquet", str(path), splits={"train": list(names)})

    names = "class names of 'label' differ between train and test"
    refused(with_("train", "test"), "data.splits.train", names)
    refused(with_("train", "validation"), "data.splits", "columns are text, label and words, label")
    refused(with_("train", "tset"), "no split 'tset'", "'test'?")
    refused(with_("train", "train"), "data.splits.train", "different splits")
    refused(with_(), "data.splits.train", "different splits")


# Labels


def test_labels_of_every_kind(put, read):
    def classes_and_labels(*labels):
        lines = "\n".join(json.dumps({"text": "x", "label": label}) for label in labels)
        corpus = read("json", put("labels.jsonl", lines))
        assert corpus.multilabel == isinstance(labels[0], list)
        return corpus.classes, corpus.splits["train"].labels.tolist()

    assert classes_and_labels(3, -1, 3) == (["-1", "3"], [1, 0, 1])
    assert classes_and_labels(1.0, 0.0) == (["0", "1"], [1, 0])
    assert classes_and_labels(True, False) == (["false", "true"], [1, 0])
    assert classes_and_labels("b", "a", "ä") == (["a", "b", "ä"], [1, 0, 2])
    assert classes_and_labels(["b", "a"], [], ["b"]) == (["a", "b"], [[1, 1], [0, 0], [0, 1]])
    assert classes_and_labels([7], [5, 9]) == (["5", "7", "9"], [[0, 1, 0], [1, 0, 1]])


def test_multilabel_matrices_are_uint8(put, read):
    path = put("a.jsonl", '{"text": "x", "labels": [1, 2]}\n{"text": "y", "labels": [0]}\n')
    labels = read("json", path).splits["train"].labels
    assert labels.dtype == np.uint8
    assert labels.shape == (2, 3)


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (['{"text": "a", "label": 1}', '{"text": "b", "lab'], ["line 2: not JSON"]),
        (
            ['{"text": "a", "label": 1}', '{"text": "b", "label": "x"}'],
            ["line 2: 'label' is a string, but a number"],
        ),
        (['{"text": "a", "label": 1}', "3"], ["line 2: a number where one object a line"]),
        (['{"text": "a", "label": 0.5}', '{"text": "a", "label": 1}'], ["holds fractions, not classes"]),
        (['{"text": "a", "label": null}', '{"text": "b", "label": 1}'], ["empty in 1 of 2 rows", "row 1"]),
        (
            ['{"text": "a", "label": [0, 0, 1]}', '{"text": "b", "label": [1, 0, 0]}'],
            ["lists a class twice", "0/1"],
        ),
        (['{"text": 5, "label": 1}'], ["data.text", "none of 'text', 'label' is plainly the text"]),
        ([""], ["the file is empty"]),
        (['[{"text": "a", "label": 1}, 3]'], ["value 2 of the array is a number; expected objects"]),
        (['[{"text": "a"}, '], ["not readable as a JSON array"]),
    ],
)
def test_json_that_cannot_be_right_is_refused(put, read, lines, parts):
    refused(lambda: read("json", put("bad.jsonl", "\n".join(lines))), *parts)


def test_json_that_is_not_utf8_is_refused(put, read):
    refused(lambda: read("json", put("a.jsonl", b'{"text": "caf\xe9", "label": 1}\n')), "line 1: not UTF-8")


def test_json_keeps_texts_that_look_like_dates_and_takes_arrays(put, read):
    lines = '{"text": "2020-01-01", "label": 1}\n{"text": "2021-12-31", "label": 2}\n'
    assert texts(read("json", put("a.jsonl", lines)).splits["train"]) == ["2020-01-01", "2021-12-31"]
    array = '[{"text": null, "label": "x"}, {"text": "b", "label": "y"}]'
    assert texts(read("json", put("b.json", array)).splits["train"]) == ["", "b"]


def test_a_class_that_train_lacks_is_named_with_its_split(put, read, tmp_path):
    put("d/train.csv", "text,label\na,x\nb,y\n")
    put("d/test.csv", "text,label\na,x\nb,zebra\nc,zebra\nd,q\n")
    refused(
        lambda: read("csv", str(tmp_path / "d")),
        "class 'zebra' occurs in 2 rows of test",
        "never in train (and 1 more such class)",
    )
    # The same with class names in the schema, where train could have had the class.
    names = ["neg", "pos", "odd"]
    write_parquet(tmp_path / "p/train.parquet", {"text": ["a", "b"], "label": [0, 1]}, names)
    write_parquet(tmp_path / "p/test.parquet", {"text": ["a"], "label": [2]}, names)
    refused(lambda: read("parquet", str(tmp_path / "p")), "class 'odd' occurs in 1 row of test")


def test_class_names_in_another_order_are_refused(tmp_path, read):
    # The numbers would be read by train's names: every label of test the other way round.
    write_parquet(tmp_path / "train.parquet", {"text": ["a", "b"], "label": [0, 1]}, ["neg", "pos"])
    test = tmp_path / "test.parquet"
    write_parquet(test, {"text": ["a", "b"], "label": [0, 1]}, ["pos", "neg"])
    refused(
        lambda: read("parquet", str(tmp_path)),
        "differ between train and test: class 0 is 'neg' in train and 'pos' in test",
    )
    write_parquet(test, {"text": ["a"], "label": [1]}, ["neg", "pos"])
    assert read("parquet", str(tmp_path)).splits["test"].labels.tolist() == [1]
    write_parquet(test, {"text": ["a"], "label": [1]})  # numbers without names are taken for train's
    assert read("parquet", str(tmp_path)).splits["test"].labels.tolist() == [1]


def test_lists_without_a_class_in_train_and_labels_past_all_integers_are_refused(tmp_path, read):
    lists = pa.list_(pa.string())
    write_parquet(tmp_path / "train.parquet", {"text": ["a", "b"], "label": pa.array([[], []], lists)})
    write_parquet(tmp_path / "test.parquet", {"text": ["a", "b"], "label": pa.array([["x"], []], lists)})
    refused(lambda: read("parquet", str(tmp_path)), "class 'x' occurs in 1 row of test", "never in train")
    path = write_parquet(
        tmp_path / "u.parquet", {"text": ["a", "b"], "label": pa.array([2**63, 1], pa.uint64())}
    )
    refused(lambda: read("parquet", path), "'label' holds numbers of more than 63 bits")


# Parquet, folders of text


def test_parquet_files_of_one_split_may_differ_in_width_but_not_in_kind(tmp_path, read):
    first, second = tmp_path / "train-1.parquet", tmp_path / "train-2.parquet"
    write_parquet(first, {"text": ["a", "b"], "label": pa.array([7, 8], pa.int32())})
    write_parquet(second, {"text": pa.array(["c"], pa.large_string()), "label": pa.array([8], pa.int64())})
    train = read("parquet", str(tmp_path)).splits["train"]
    assert (texts(train), train.labels.tolist()) == (["a", "b", "c"], [0, 1, 1])
    write_parquet(second, {"text": ["c"], "label": ["8"]})
    refused(lambda: read("parquet", str(tmp_path)), "column 'label' differs in type between the files")


def test_parquet_is_streamed_in_batches_of_at_most_the_size_asked_for(tmp_path, read):
    columns = {
        "text": [f"{i} é" if i % 3 else None for i in range(1000)],
        "label": [i % 2 for i in range(1000)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=300)
    train = read("parquet", str(tmp_path / "a.parquet")).splits["train"]
    batches = list(train.texts(rows_per_batch=128))
    assert all(
        batch.type == pa.large_string() and len(batch) <= 128 and not batch.null_count for batch in batches
    )
    assert [text for batch in batches for text in batch.to_pylist()] == [
        text or "" for text in columns["text"]
    ]
    assert [train.text(row) for row in (0, 299, 300, 998)] == ["", "299 é", "", "998 é"]


def test_damaged_parquet_is_named(tmp_path, put, read):
    whole = Path(
        write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"] * 500, "label": [0, 1] * 500})
    ).read_bytes()
    refused(lambda: read("parquet", put("b.parquet", whole[:-20])), "b.parquet", "cut short")
    refused(lambda: read("parquet", put("c.parquet", "no")), "c.parquet", "not a Parquet file")
    refused(lambda: read("parquet", str(tmp_path / "a.parquet"), text="label", label="text"), "of type int64")
    write_parquet(
        tmp_path / "e.parquet", {"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}
    )
    refused(lambda: read("parquet", str(tmp_path / "e.parquet")), "no rows")


def test_folders_of_text_by_class(put, read, tmp_path):
    put("t/train/pos/2.txt", "good\r\n")
    put("t/train/neg/1.txt", b"\xef\xbb\xbfbad")
    put("t/train/unsup/1.txt", "?")
    put("t/test/pos/1.txt", "")
    corpus = read("text", str(tmp_path / "t"))
    assert corpus.classes == ["neg", "pos", "unsup"]
    assert texts(corpus.splits["train"]) == ["bad", "good\r\n", "?"]
    assert texts(corpus.splits["test"]) == [""]
    two = read("text", str(tmp_path / "t"), classes=["neg", "pos"])
    assert two.classes == ["neg", "pos"]
    assert two.splits["train"].num_rows == 2
    alone = read("text", str(tmp_path / "t/train"))
    assert list(alone.splits) == ["train"]
    refused(
        lambda: read("text", str(tmp_path / "t"), classes=["negg"]), "no folder 'negg'", "Did you mean 'neg'?"
    )
    put("t/train/pos/3.txt", b"caf\xe9")
    refused(lambda: read("text", str(tmp_path / "t")), "3.txt, line 1: byte 0xe9", "data.encoding=latin-1")
    assert texts(read("text", str(tmp_path / "t"), encoding="latin-1").splits["train"])[2] == "café"
    assert texts(read("text", str(tmp_path / "t"), encoding="cp1251").splits["train"])[2] == "cafй"


# Cache and fingerprints


def test_a_second_look_does_not_parse_and_a_changed_file_does(put, read, monkeypatch):
    path = put("a.csv", "text,label\na,1\nb,2\n")
    first = read("csv", path).splits["train"]
    with monkeypatch.context() as patch:
        patch.setattr(parsing, "_parse_csv", None)
        again = read("csv", path).splits["train"]
    assert (again.fingerprint, texts(again)) == (first.fingerprint, ["a", "b"])
    put("a.csv", "text,label\na,1\nc,2\n")  # the same size
    changed = read("csv", path).splits["train"]
    assert texts(changed) == ["a", "c"]
    assert changed.fingerprint != first.fingerprint
    # Nor is a copy missed that keeps the old file's time, as rsync and tar make it.
    for text in ("d", "e"):
        put("a.csv", f"text,label\na,1\n{text},2\n")
        os.utime(path, (1e9, 1e9))
        assert texts(read("csv", path).splits["train"]) == ["a", text]


def test_a_folder_of_texts_is_read_again_when_a_file_has_changed(put, read, tmp_path):
    for text in ("old", "new"):
        for name in ("neg", "pos"):
            os.utime(put(f"t/{name}/1.txt", f"{text} {name}"), (1e9, 1e9))
        assert texts(read("text", str(tmp_path / "t")).splits["train"]) == [f"{text} neg", f"{text} pos"]


def test_fingerprints_follow_content_and_settings_and_not_the_place(put, read, tmp_path):
    content = "text,more,label\na,x,1\nb,y,2\n"
    one = read("csv", put("a.csv", content)).splits["train"].fingerprint
    assert read("csv", put("else/b.csv", content)).splits["train"].fingerprint == one
    assert read("csv", put("a.csv", content), text="more").splits["train"].fingerprint != one
    assert read("csv", put("a.csv", content), encoding="latin-1").splits["train"].fingerprint != one
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, 1]})
    before = read("parquet", path).splits["train"].fingerprint
    write_parquet(path, {"text": ["a", "c"], "label": [0, 1]})
    assert read("parquet", path).splits["train"].fingerprint != before


def test_two_processes_may_start_together(put, tmp_path):
    path = put("a.csv", "text,label\n" + "".join(f"word{i},{i % 3}\n" for i in range(5000)))
    code = (
        "import sys; from textbed.data.sources import load;"
        f"c = load({{'source': 'csv', 'path': {path!r}}}, {str(tmp_path / 'cache')!r});"
        "print(c.splits['train'].fingerprint, sum(len(b) for b in c.splits['train'].texts()))"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = {job.communicate()[0] for job in jobs}
    assert len(said) == 1
    assert said.pop().split()[1] == "5000"
    assert len(list((tmp_path / "cache" / "parsed").iterdir())) == 1


def test_a_full_or_closed_disk_is_said_and_leaves_nothing(put, read, tmp_path, monkeypatch):
    path = put("a.csv", "text,label\na,1\nb,2\n")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", full)
        refused(lambda: read("csv", path), "no space left", "paths.cache")
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()]
    (tmp_path / "cache" / "parsed").rmdir()
    (tmp_path / "cache" / "parsed").write_text("in the way")
    refused(lambda: read("csv", path), "cannot write", "paths.cache")


def test_importing_and_reading_a_mirror_needs_neither_torch_nor_datasets(tmp_path):
    write_parquet(tmp_path / "m/films/train.parquet", {"text": ["a", "b"], "label": [0, 1]}, ["neg", "pos"])
    code = (
        "import sys; from textbed.data import splits; from textbed.data.sources import load;"
        f"settings = {{'source': 'hub', 'name': 'films', 'mirror': {str(tmp_path / 'm')!r}}};"
        f"load(settings, {str(tmp_path / 'c')!r});"
        "print([n for n in ('torch', 'datasets', 'lightning', 'wandb') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Hugging Face datasets


@pytest.fixture
def films():
    datasets = pytest.importorskip("datasets")
    names = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"text": [f"film {i}" for i in range(10)], "label": [i % 2 for i in range(10)]}
    whole = datasets.Dataset.from_dict(rows, names)
    return datasets.DatasetDict(train=whole.shuffle(seed=1), test=whole.select([3, 2]), unsupervised=whole)


def test_from_datasets_keeps_the_order_of_shuffled_and_selected_rows(films):
    corpus = from_datasets(films)
    assert list(corpus.splits) == ["train", "test"]
    assert corpus.classes == ["neg", "pos"]
    for name, split in corpus.splits.items():
        assert texts(split) == list(films[name]["text"])
        assert split.labels.tolist() == list(films[name]["label"])
    assert texts(corpus.splits["test"]) == ["film 3", "film 2"]
    single = from_datasets(films["unsupervised"], text="text", label="label")
    assert single.splits["train"].num_rows == 10


def test_fingerprints_of_datasets_follow_the_texts(films):
    datasets = pytest.importorskip("datasets")
    first = from_datasets(films).splits
    assert from_datasets(films).splits["train"].fingerprint == first["train"].fingerprint
    pieces = datasets.concatenate_datasets(
        [films["train"].select(range(4)), films["train"].select(range(4, 10))]
    )
    assert from_datasets(pieces).splits["train"].fingerprint == first["train"].fingerprint
    assert from_datasets(films["unsupervised"]).splits["train"].fingerprint != first["train"].fingerprint


def test_folders_of_save_to_disk(films, read, tmp_path):
    films.save_to_disk(tmp_path / "d")
    corpus = read("disk", str(tmp_path / "d"))
    assert texts(corpus.splits["test"]) == ["film 3", "film 2"]
    assert corpus.splits["train"].fingerprint == from_datasets(films).splits["train"].fingerprint
    parts = read("disk", {"train": str(tmp_path / "d/train"), "val": str(tmp_path / "d/test")})
    assert {name: split.num_rows for name, split in parts.splits.items()} == {"train": 10, "validation": 2}
    refused(lambda: read("disk", {"train": str(tmp_path / "d")}), "holds several splits")
    (tmp_path / "d/test/data-00000-of-00001.arrow").write_bytes(b"")
    refused(lambda: read("disk", str(tmp_path / "d")), "damaged or incomplete")


def test_lists_of_class_labels(tmp_path, read):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["x", "y"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[1, 0], []]}, kinds)
    rows.to_parquet(tmp_path / "a.parquet")
    for corpus in (from_datasets(rows), read("parquet", str(tmp_path / "a.parquet"))):
        assert corpus.multilabel
        assert corpus.classes == ["x", "y"]
        assert corpus.splits["train"].labels.tolist() == [[1, 1], [0, 0]]


# The hub and its mirror


def test_a_mirror_is_looked_at_by_name_and_hub_id(tmp_path, read):
    mirror = tmp_path / "mirror"
    write_parquet(mirror / "films/train.parquet", {"text": ["a", "b"], "label": [1, 0]}, ["neg", "pos"])
    write_parquet(mirror / "films/val-00000-of-00001.parquet", {"text": ["c"], "label": [1]}, ["neg", "pos"])
    write_parquet(mirror / "owner/set/mrpc/train.parquet", {"text": ["d", "e"], "label": [1, 0]})
    corpus = read("hub", name="films", mirror=str(mirror))
    assert list(corpus.splits) == ["train", "validation"]
    assert corpus.classes == ["neg", "pos"]
    assert read("hub", name="short", hub_id="films", mirror=str(mirror)).splits["train"].num_rows == 2
    assert texts(read("hub", name="owner/set", config="mrpc", mirror=str(mirror)).splits["train"]) == [
        "d",
        "e",
    ]
    refused(
        lambda: read("hub", name="films", mirror=str(tmp_path / "miror")),
        "data.mirror",
        "Did you mean 'mirror'?",
    )
    refused(
        lambda: read("hub", name="flims", hub_id="", mirror=str(mirror)),
        "has no 'flims' (it holds films).",
        "Did you mean 'films'?",
        "the hub does not have 'flims'",
    )


def test_an_unreachable_hub_says_how_to_mirror(tmp_path, read, monkeypatch):
    """At once: nothing is asked of a network, where each library would try again and again."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    write_parquet(tmp_path / "mirror/imdb/train.parquet", {"text": ["a", "b"], "label": [1, 0]})
    asked = []

    def connect(*address):
        asked.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    refused(
        lambda: read(
            "hub", name="idmb", hub_id="stanfordnlp/imdb", config="plain", mirror=str(tmp_path / "mirror")
        ),
        "has no 'idmb' with configuration 'plain' (it holds imdb). Did you mean 'imdb'?",
        "'stanfordnlp/imdb' cannot be fetched",
        "`python scripts/mirror.py stanfordnlp/imdb --config plain --to DIR`",
        "data.mirror=DIR",
        "TEXTBED_MIRROR",
    )
    assert asked == []
    assert not datasets.config.HF_HUB_OFFLINE  # as it was


def test_what_was_downloaded_before_is_found_offline(films, tmp_path, read, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    home = tmp_path / "home"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    films["train"].to_parquet(tmp_path / "films" / "train.parquet")
    datasets.load_dataset(str(tmp_path / "films"))
    # What a download from the hub would have left: the owner before the name.
    os.rename(home / "films", home / "owner___films")
    corpus = read("hub", name="owner/films")
    assert texts(corpus.splits["train"]) == list(films["train"]["text"])
    assert corpus.description == "hub owner/films (as downloaded before)"


def test_a_hub_that_accepts_and_says_nothing_counts_as_unreachable(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not hub.reachable(0.3)


def test_a_hub_that_answers_is_reachable(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.reachable(3)


class DatasetNotFoundError(FileNotFoundError):
    """Stands for the exception of that name."""


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
            ["no data set 'a/b'"],
        ),
        (
            DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            ["asks for a login", "hf auth login"],
        ),
        (
            DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'a/b'"),
            ["data.revision", "no revision 'v9'"],
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found b.py"),
            ["loading script", "refs/convert"],
        ),
        (
            ValueError("BuilderConfig 'mprc' not found. Available: ['cola', 'mrpc']"),
            ["data.config: 'a/b' has no configuration 'mprc'; it has cola, mrpc.", "Did you mean 'mrpc'?"],
        ),
        (OSError(errno.ENOSPC, "No space left on device"), ["no space left", "HF_HOME"]),
        (KeyError("odd\nand more"), ["cannot be loaded"]),
    ],
)
def test_what_the_hub_answers_is_explained(read, monkeypatch, error, parts):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    refused(lambda: read("hub", name="a/b", config="mprc", revision="v9"), *parts)


def test_the_shared_keys_of_the_configs_are_the_defaults_of_the_schema():
    schema = pytest.importorskip("textbed.schema")
    yaml = pytest.importorskip("yaml")
    folder = Path(__file__).resolve().parents[2] / "configs" / "data"
    defaults = {name: item.default for name, item in schema.DataConfig.__dataclass_fields__.items()}
    shown = yaml.safe_load((folder / "docstrings.yaml").read_text())
    shared = {name: value for name, value in shown.items() if name not in ("source", "size", "classes")}
    assert shared == {name: defaults[name] for name in shared}
    for path in folder.glob("*.yaml"):
        keys = set(yaml.safe_load(path.read_text())) - {"defaults"}
        assert keys <= set(defaults), path.name
        assert path.read_text().startswith("# "), path.name
