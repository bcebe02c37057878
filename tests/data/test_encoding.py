"""Encoded columns: what is stored, what is gathered, and what the cache survives."""

import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textbed.data import encoding, vocabulary
from textbed.data.encoding import encode, load_tokenizer
from textbed.data.vocabulary import as_texts
from textbed.errors import UserError

ODD = [
    "The film is good, isn't it?",
    None,
    "",
    " \t\u0085\u2003",
    "?!...",
    "“Caf\u00e9”—cafe\u0301<br /><BR>NA\u00cfVE ﬁn",
    "a\u0085b\u00a0c\u2028d\x1ce",
    "😀👍🏽 中文 the the",
    "<pad> <unk> [PAD] <pad>",
    "good good film " * 20,
]


class FakeSplit:
    """A split in memory: its texts by column, streamed in arrays of ``batch`` rows."""

    def __init__(self, *columns: list[str | None], fingerprint: str = "f", batch: int = 3) -> None:
        self.columns, self.fingerprint, self.batch = columns, fingerprint, batch
        self.num_rows = len(columns[0])
        self.reads = 0

    def texts(self, column: int = 0):
        self.reads += 1
        for begin in range(0, self.num_rows, self.batch):
            yield as_texts(self.columns[column][begin : begin + self.batch])


def documents(encoded, rows) -> list[list[int]]:
    ids, starts = encoded.gather(np.asarray(rows, np.int64))
    assert ids.dtype == np.int32
    assert starts.dtype == np.int64
    assert starts[0] == 0
    assert starts[-1] == len(ids)
    return [ids[a:b].tolist() for a, b in pairwise(starts)]


def spelled(tokenizer, encoded, rows) -> list[list[str]]:
    return [[tokenizer.tokens[i] for i in document] for document in documents(encoded, rows)]


SETTINGS = [
    {"kind": "words"},
    {"kind": "words", "min_count": 2, "unknown": "drop"},
    {"kind": "words", "split_off": "", "lowercase": False, "max_tokens": 4, "keep": "both"},
    {"kind": "words", "vocabulary_size": 6, "normalize": "NFKD", "html_breaks": False, "drop": ".?"},
    {"kind": "characters"},
    {
        "kind": "characters",
        "min_count": 3,
        "unknown": "drop",
        "lowercase": True,
        "max_tokens": 7,
        "keep": "tail",
    },
]


@pytest.mark.parametrize("given", SETTINGS)
def test_a_text_has_the_same_ids_at_training_and_afterwards(given, tmp_path) -> None:
    train, test = FakeSplit(ODD), FakeSplit(["A film unlike the others.", *ODD[::-1]], fingerprint="g")
    tokenizer, columns = encode(
        given, {"train": train, "test": test}, 1, ("train", np.arange(8)), tmp_path / "cache"
    )
    tokenizer.save(tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    assert loaded.tokens == tokenizer.tokens
    assert (len(loaded), loaded.pad_id, loaded.unk_id) == (len(tokenizer), 0, 1)
    for name, split in (("train", train), ("test", test)):
        encoded = columns[name][0]
        everything = encoded.gather(np.arange(split.num_rows))
        assert (encoded.lengths == np.diff(everything[1])).all()
        for reader in (tokenizer, loaded):
            ids, starts = reader.encode(split.columns[0])
            assert (ids == everything[0]).all()
            assert (starts == everything[1]).all()
            alone = [reader.encode([text])[0].tolist() for text in split.columns[0]]
            assert alone == documents(encoded, range(split.num_rows))
        assert not (everything[0] == tokenizer.pad_id).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from(["keep", "drop"]))
def test_gather_takes_any_rows(tmp_path_factory, rows, unknown) -> None:
    given = {"kind": "words", "min_count": 2, "unknown": unknown}
    _, columns = encode(
        given,
        {"train": FakeSplit(ODD)},
        1,
        ("train", np.arange(10)),
        tmp_path_factory.getbasetemp() / "shared",
    )
    encoded = columns["train"][0]
    one_by_one = [documents(encoded, [row])[0] for row in range(10)]
    assert documents(encoded, rows) == [one_by_one[row] for row in rows]
    assert encoded.lengths[rows].tolist() == [len(one_by_one[row]) for row in rows]


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_is_not_there(row, tmp_path) -> None:
    _, columns = encode({"kind": "words"}, {"train": FakeSplit(ODD)}, 1, ("train", np.arange(10)), tmp_path)
    with pytest.raises(IndexError, match=str(row)):
        columns["train"][0].gather(np.array([3, row]))


def test_the_vocabulary_is_of_the_training_rows_alone(tmp_path) -> None:
    train = FakeSplit(["a a b", "b c", "d d d"])
    splits = {"train": train, "test": FakeSplit(["d e a"], fingerprint="g")}
    tokenizer, columns = encode(
        {"kind": "words", "min_count": 1}, splits, 1, ("train", np.array([0, 1])), tmp_path
    )
    assert tokenizer.tokens == ["<pad>", "<unk>", "a", "b", "c"]
    assert spelled(tokenizer, columns["train"][0], [2]) == [["<unk>"] * 3]
    assert spelled(tokenizer, columns["test"][0], [0]) == [["<unk>", "<unk>", "a"]]
    figures = columns["train"][0].statistics(np.array([2, 0]))
    assert (figures.documents, figures.empty, figures.tokens, figures.distinct, figures.unknown) == (
        2,
        0,
        6,
        3,
        3,
    )
    assert figures.unknown_share == 0.5
    # Another fold, another minimum: the same tokenization serves.
    assert train.reads == 1
    other, _ = encode({"kind": "words", "min_count": 2}, splits, 1, ("train", np.array([1, 2, 0])), tmp_path)
    assert other.tokens == ["<pad>", "<unk>", "d", "a", "b"]
    assert train.reads == 1


@pytest.mark.parametrize("unknown", ["keep", "drop"])
def test_words_that_no_training_row_has(unknown, tmp_path) -> None:
    """Row 2 of the split is not trained on; ``b`` is, and too rare for the vocabulary."""
    splits = {
        "train": FakeSplit(["a a b", "c c a", "z z y b d"], ["c", "", "e"]),
        "test": FakeSplit(["d d z a", "b y"], ["d", "e q"], fingerprint="g"),
    }
    given = {"kind": "words", "min_count": 2, "unknown": unknown}
    train = ("train", np.array([0, 1]))
    tokenizer, columns = encode(given, splits, 2, train, tmp_path)
    assert tokenizer.tokens[2:] == ["a", "c"]
    validation, test = ("train", np.array([2])), ("test", np.array([0, 1]))
    unseen = encoding.unseen_words(columns, train, [validation, test])
    assert unseen.to_pylist() == ["d", "z", "e", "y", "q"]  # 4, 3, 2, 2 and 1 times
    assert encoding.unseen_words(columns, train, [("test", np.array([1]))]).to_pylist() == ["e", "q", "y"]
    assert encoding.unseen_words(columns, train, []).to_pylist() == []

    more, known = encoding.with_words(tokenizer, columns, ["z", "q"])
    assert more.tokens == [*tokenizer.tokens, "z", "q"]
    assert [documents(column, [0, 1]) for column in known["train"]] == [
        documents(column, [0, 1]) for column in columns["train"]
    ]
    expected = [[["<unk>", "<unk>", "z", "a"], ["<unk>", "<unk>"]], [["<unk>"], ["<unk>", "q"]]]
    if unknown == "drop":
        expected = [[["z", "a"], []], [[], ["q"]]]
    assert [spelled(more, column, [0, 1]) for column in known["test"]] == expected
    assert [column.lengths.tolist() for column in known["test"]] == [
        list(map(len, part)) for part in expected
    ]
    assert load_tokenizer(more.save(tmp_path).parent).encode(["z q d"])[0].tolist() == (
        [4, 5, 1] if unknown == "keep" else [4, 5]
    )
    assert splits["train"].reads == 2  # once a column


def test_pairs_share_one_vocabulary(tmp_path) -> None:
    pairs = FakeSplit(["a b", "b"], ["b c", ""])
    tokenizer, columns = encode({"kind": "words"}, {"train": pairs}, 2, ("train", np.arange(2)), tmp_path)
    assert tokenizer.tokens[2:] == ["b", "a", "c"]
    assert [documents(column, [0, 1]) for column in columns["train"]] == [[[3, 2], [2]], [[2, 4], []]]


def test_dropped_words_count_as_unknown_in_the_figures(tmp_path) -> None:
    given = {"kind": "words", "min_count": 2, "unknown": "drop"}
    _, columns = encode(given, {"train": FakeSplit(["a a b", "c", ""])}, 1, ("train", np.arange(3)), tmp_path)
    encoded = columns["train"][0]
    assert documents(encoded, range(3)) == [[2, 2], [], []]
    assert encoded.lengths.tolist() == [2, 0, 0]
    figures = encoded.statistics(np.arange(3))
    assert (figures.tokens, figures.unknown, figures.empty, figures.distinct) == (4, 2, 1, 3)


@pytest.mark.parametrize("unknown", ["keep", "drop"])
def test_types_outside_the_vocabulary_are_one_in_both_texts_of_a_pair(unknown, tmp_path) -> None:
    pairs = FakeSplit(["a b a", "b x y"], ["b c", "x z a x"])
    settings = {"kind": "words", "unknown": unknown}
    tokenizer, columns = encode(settings, {"train": pairs}, 2, ("train", np.arange(1)), tmp_path)
    known, outside = encoding.type_counts(columns["train"], np.arange(1), len(tokenizer))
    assert dict(zip(tokenizer.tokens, known.tolist(), strict=True)) == {
        "<pad>": 0, "<unk>": 0, "a": 2, "b": 2, "c": 1,
    }  # fmt: skip
    assert outside.tolist() == []
    known, outside = encoding.type_counts(columns["train"], np.array([1]), len(tokenizer))
    assert known.tolist() == [0, 0, 1, 1, 0]
    assert sorted(outside.tolist()) == [1, 1, 3]  # y, z, and x of both texts


def test_types_of_characters_and_subwords(tmp_path) -> None:
    split = FakeSplit(["abab", "abcabcdd"], ["b", "de"])
    tokenizer, columns = encode(
        {"kind": "characters"}, {"train": split}, 2, ("train", np.arange(1)), tmp_path
    )
    known, outside = encoding.type_counts(columns["train"], np.array([1]), len(tokenizer))
    assert tokenizer.tokens[2:] == ["b", "a"]
    assert known.tolist() == [0, 0, 2, 2]
    assert sorted(outside.tolist()) == [1, 2, 3]  # e, c, and d of both texts
    settings = {"kind": "subwords", "vocabulary_size": 60, "algorithm": "wordpiece"}
    tokenizer, columns = encode(settings, {"train": split}, 1, ("train", np.arange(1)), tmp_path)
    ids, _ = columns["train"][0].gather(np.arange(2))
    known, outside = encoding.type_counts(columns["train"], np.arange(2), len(tokenizer))
    counts = np.bincount(ids, minlength=len(tokenizer))
    assert outside.tolist() == [counts[tokenizer.unk_id]] == [1]
    counts[tokenizer.unk_id] = 0
    assert known.tolist() == counts.tolist()


def stored_files(cache) -> dict[str, bytes]:
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in cache.rglob("*") if path.is_file()
    }


def test_threads_chunks_and_merges_leave_the_same_files(tmp_path, monkeypatch) -> None:
    texts = [f"word{i % 17} “x{i % 5}” É <br/> {i}" for i in range(300)]
    found = []
    for number, (threads, chunk, merge, batch) in enumerate(
        [(1, 1 << 20, 10**7, 300), (3, 64, 10, 300), (2, 1, 10**7, 7), (2, 500, 1, 50)]
    ):
        cache = tmp_path / str(number)
        monkeypatch.setattr(encoding, "MERGE_TOKENS", merge)
        monkeypatch.setattr(encoding, "BLOCK_TOKENS", max(merge, 1000))
        monkeypatch.setattr(encoding, "chunks", lambda given, size=chunk: vocabulary.chunks(given, size))
        for kind in ("words", "characters"):
            split = FakeSplit(texts, batch=batch)
            encode({"kind": kind}, {"train": split}, 1, ("train", np.arange(300)), cache, threads)
        found.append(stored_files(cache))
    assert len(found[0]) == 7  # two columns of three files, and the words
    assert all(files == found[0] for files in found[1:])


COMMON = [{"normalize": None}, {"html_breaks": False}, {"max_tokens": 2}, {"max_tokens": 2, "keep": "tail"}]
CHANGES = {
    "words": [{"lowercase": False}, {"split_off": ""}, {"drop": "é"}],
    "characters": [{"lowercase": True}],
    "subwords": [
        {"lowercase": False},
        {"vocabulary_size": 262},
        {"min_count": 9},
        {"algorithm": "wordpiece"},
    ],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_setting_reads_no_stale_cache(kind, tmp_path) -> None:
    text = ["One, two<br/>CAFE\u0301 caf\u00e9!"]
    given = [{"kind": kind, **change} for change in [{}, *COMMON, *CHANGES[kind]]]
    fresh = []
    for number, setting in enumerate(given):
        tokenizer, columns = encode(
            setting, {"a": FakeSplit(text)}, 1, ("a", np.arange(1)), tmp_path / str(number)
        )
        fresh.append(spelled(tokenizer, columns["a"][0], [0])[0])
    assert len({tuple(tokens) for tokens in fresh}) == len(given)
    for setting, expected in zip(given * 2, fresh * 2, strict=True):
        tokenizer, columns = encode(
            setting, {"a": FakeSplit(text)}, 1, ("a", np.arange(1)), tmp_path / "shared"
        )
        assert spelled(tokenizer, columns["a"][0], [0])[0] == expected
    # Other texts, other key.
    tokenizer, columns = encode(
        given[0], {"a": FakeSplit(["new"], fingerprint="other")}, 1, ("a", np.arange(1)), tmp_path / "shared"
    )
    assert "".join(spelled(tokenizer, columns["a"][0], [0])[0]).removeprefix("Ġ") == "new"


def only_folder(cache):
    (folder,) = (cache / "tokens").iterdir()
    return folder


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "words.arrow", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_folder_is_built_anew(name, damage, tmp_path) -> None:
    split = FakeSplit(ODD)
    first = encode({"kind": "words"}, {"a": split}, 1, ("a", np.arange(10)), tmp_path)[1]["a"][0]
    expected = documents(first, range(10))
    path = only_folder(tmp_path) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    again = encode({"kind": "words"}, {"a": split}, 1, ("a", np.arange(10)), tmp_path)[1]["a"][0]
    assert split.reads == 2
    assert documents(again, range(10)) == expected
    assert sorted(os.listdir(only_folder(tmp_path))) == [
        "meta.json",
        "offsets.npy",
        "tokens.npy",
        "words.arrow",
    ]


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "words.arrow", "meta.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(name, number, tmp_path, monkeypatch) -> None:
    real_open, real_write = open, encoding.Path.write_text

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __getattr__(self, attribute):
            return getattr(self.file, attribute)

        def write(self, data) -> None:
            raise OSError(number, os.strerror(number))

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

    def full_open(path, mode="r", **rest):
        file = real_open(path, mode, **rest)
        return Full(file) if str(path).endswith(name) and "w" in mode else file

    def full_write(path, *rest, **more):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real_write(path, *rest, **more)

    monkeypatch.setattr(encoding, "open", full_open, raising=False)
    monkeypatch.setattr(encoding.Path, "write_text", full_write)
    with pytest.raises(UserError, match=r"paths\.cache \(or TEXTBED_CACHE\)") as caught:
        encode({"kind": "words"}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(10)), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_cache_that_is_a_file(tmp_path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="a part of that path is a file"):
        encode({"kind": "words"}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(10)), tmp_path / "cache")


def test_an_error_in_the_source_is_not_blamed_on_the_cache(tmp_path) -> None:
    class Broken(FakeSplit):
        def texts(self, column: int = 0):
            yield as_texts(["a"])
            raise UserError("row 2 is broken")

    with pytest.raises(UserError, match="row 2 is broken"):
        encode({"kind": "words"}, {"a": Broken(ODD)}, 1, ("a", np.arange(10)), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_what_a_killed_process_left_is_cleared_in_time(tmp_path) -> None:
    parent = tmp_path / "tokens"
    for name, age in (("x.tmp-old", 7 * 3600), ("x.tmp-new", 60)):
        (parent / name).mkdir(parents=True)
        (parent / name / "tokens.npy").write_bytes(b"half")
        for path in (parent / name / "tokens.npy", parent / name):
            os.utime(path, (time.time() - age,) * 2)
    encode({"kind": "words"}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(10)), tmp_path)
    left = sorted(path.name for path in parent.iterdir() if ".tmp-" in path.name)
    assert left == ["x.tmp-new"]


def race(folder: Path, name: str, to) -> None:
    class Slow(FakeSplit):
        def texts(self, column: int = 0):
            (folder / name).touch()
            while not all((folder / each).exists() for each in "ab"):
                time.sleep(0.005)
            yield from super().texts(column)

    rows, texts = np.arange(50), [f"a{i % 7} b" for i in range(50)]
    tokenizer, columns = encode({"kind": "words"}, {"x": Slow(texts)}, 1, ("x", rows), folder / "c")
    to.send((tokenizer.tokens, columns["x"][0].gather(rows)[0].tolist()))


def test_two_processes_that_start_together(tmp_path) -> None:
    fork = multiprocessing.get_context("fork")
    ends = [fork.Pipe(duplex=False) for _ in "ab"]
    racers = [
        fork.Process(target=race, args=(tmp_path, name, given))
        for name, (_, given) in zip("ab", ends, strict=True)
    ]
    for racer in racers:
        racer.start()
    assert all(taken.poll(300) for taken, _ in ends), "a process hangs"
    one, other = (taken.recv() for taken, _ in ends)
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert one == other
    assert len(one[1]) == 100
    only_folder(tmp_path / "c")


def test_a_pickled_column_maps_the_same_file(tmp_path) -> None:
    texts = ["many words here " * 50] * 100
    _, columns = encode({"kind": "words"}, {"a": FakeSplit(texts)}, 1, ("a", np.arange(100)), tmp_path)
    pickled = pickle.dumps(columns["a"][0])
    assert len(pickled) < 2000
    assert documents(pickle.loads(pickled), [7, 3]) == documents(columns["a"][0], [7, 3])


def test_gathered_ids_can_be_written_to(tmp_path) -> None:
    _, columns = encode({"kind": "words"}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(10)), tmp_path)
    for rows in ([0, 1, 2], [2, 0]):
        ids, _ = columns["a"][0].gather(np.array(rows))
        assert ids.flags.writeable


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_training_rows_without_a_token(kind, tmp_path) -> None:
    split = FakeSplit(["", None, "full"])
    with pytest.raises(UserError, match=r"2 training documents .split a. hold not one token"):
        encode({"kind": kind}, {"a": split}, 1, ("a", np.array([0, 1])), tmp_path)
    with pytest.raises(UserError, match="min_count=9"):
        encode({"kind": kind, "min_count": 9}, {"a": split}, 1, ("a", np.arange(3)), tmp_path)


def test_a_split_without_rows(tmp_path) -> None:
    splits = {"a": FakeSplit(["x y"]), "b": FakeSplit([], fingerprint="g")}
    for kind in ("words", "characters"):
        _, columns = encode({"kind": kind}, splits, 1, ("a", np.arange(1)), tmp_path)
        empty = columns["b"][0]
        assert (empty.num_rows, len(empty.lengths)) == (0, 0)
        ids, starts = empty.gather(np.zeros(0, np.int64))
        assert (ids.tolist(), starts.tolist()) == ([], [0])
        assert empty.statistics(np.zeros(0, np.int64)).unknown_share == 0.0


def test_wrong_kind_and_wrong_key(tmp_path) -> None:
    with pytest.raises(UserError, match="Did you mean 'words'"):
        encode({"kind": "word"}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(1)), tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.split_of: .* Did you mean 'split_off'"):
        encode({"kind": "words", "split_of": "."}, {"a": FakeSplit(ODD)}, 1, ("a", np.arange(1)), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[1]",
        '{"kind": "characters", "settings": {}, "code_points": [1114112]}',
        '{"kind": "word"}',
        '{"kind": "words"}',
        '{"kind": "words", "wo',
    ],
)
def test_a_damaged_tokenizer_file(content, tmp_path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_the_saved_file_is_json_and_replaces_the_old_one(tmp_path) -> None:
    for text in ("old words", "new words"):
        tokenizer, _ = encode(
            {"kind": "words"},
            {"a": FakeSplit([text], fingerprint=text)},
            1,
            ("a", np.arange(1)),
            tmp_path / "c",
        )
        tokenizer.save(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["tokenizer.json"]
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())["words"] == ["new", "words"]


def test_importing_stays_light() -> None:
    heavy = {"torch", "lightning", "tokenizers", "datasets", "wandb"}
    code = f"import sys, textbed.data.encoding; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
