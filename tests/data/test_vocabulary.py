"""The vocabulary's order and cuts, ragged cuts, chunks, and the ordered thread pool."""

import json
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from textbed.data.vocabulary import (
    Vocabulary,
    as_texts,
    chunks,
    cleaned,
    in_order,
    limited,
    read_settings,
    take_runs,
    text_bytes,
    without,
)
from textbed.data.words import WordSettings, blank_breaks
from textbed.errors import UserError


def strings(words: list[str]) -> pa.Array:
    return pa.array(words, pa.large_string())


def test_order_is_by_count_then_word() -> None:
    columns = [
        (strings(["b", "a", "é", "rare", "never"]), np.array([3, 2, 2, 1, 0])),
        (strings(["z", "a"]), np.array([4, 1])),
    ]
    vocabulary = Vocabulary.count(columns, min_count=1, vocabulary_size=None)
    assert vocabulary.tokens == ["<pad>", "<unk>", "z", "a", "b", "é", "rare"]
    assert Vocabulary.count(columns, 2, None).tokens == ["<pad>", "<unk>", "z", "a", "b", "é"]
    # The size is that of the table: the two special rows count.
    assert Vocabulary.count(columns, 2, 4).tokens == ["<pad>", "<unk>", "z", "a"]


def test_few_and_many_words_find_the_same_ids() -> None:
    vocabulary = Vocabulary(strings([f"w{i}" for i in range(5000)]))
    words = strings([f"w{i}" for i in range(4990, 5010)] + ["<pad>", "<unk>"])
    few = vocabulary.ids(words)
    many = vocabulary.ids(pa.concat_arrays([words, strings([""] * 5000)]))
    assert few.tolist() == [*range(4992, 5002), *[1] * 12]
    assert many[: len(words)].tolist() == few.tolist()
    assert few.dtype == many.dtype == np.int32


def test_a_written_out_special_token_is_a_word() -> None:
    vocabulary = Vocabulary.count([(strings(["<pad>", "<unk>", "a"]), np.array([3, 2, 1]))], 1, None)
    assert vocabulary.ids(strings(["<pad>", "<unk>", "a"])).tolist() == [2, 3, 4]
    assert len(vocabulary) == 5


@pytest.mark.parametrize(
    ("keep", "limit", "expected"),
    [
        ("head", 3, [0, 1, 2, 5, 6]),
        ("tail", 3, [2, 3, 4, 5, 6]),
        ("both", 3, [0, 1, 4, 5, 6]),
        ("both", 2, [0, 4, 5, 6]),
        ("both", 1, [0, 5]),
        ("both", 5, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_length_limit(keep, limit, expected) -> None:
    tokens, counts = limited(np.arange(7), np.array([5, 0, 2]), limit, keep)
    assert tokens.tolist() == expected
    assert counts.tolist() == [min(5, limit), 0, min(2, limit)]


def test_runs_and_removal() -> None:
    tokens = np.array([7, 1, 8, 1, 9])
    assert take_runs(tokens, np.array([3, 0, 2]), np.array([2, 0, 1])).tolist() == [1, 9, 8]
    ids, starts = without(tokens, np.array([0, 2, 2, 4, 5]), 1)
    assert ids.tolist() == [7, 8, 9]
    assert starts.tolist() == [0, 1, 1, 2, 3]


def test_chunks_lose_nothing() -> None:
    texts = as_texts(["", "ab", "é" * 40, None, "", "c", "d" * 5] * 9).slice(3, 50)
    for size in (1, 16, 64, 10**6):
        parts = list(chunks(texts, size))
        assert pa.concat_arrays(parts).to_pylist() == texts.to_pylist()
        assert all(len(text_bytes(part)[0]) <= max(size, 80) for part in parts)
    assert list(chunks(as_texts([]))) == []


def test_both_ways_of_finding_breaks_agree() -> None:
    pieces = [
        "<br>",
        "<BR/>",
        "<Br />",
        "<br >",
        "<br  />",
        "<br / >",
        "<b",
        "r>",
        "<",
        "<brx>",
        ">",
        "</br>",
        "é",
    ]
    texts = as_texts([a + b + c for a in pieces for b in pieces for c in ("", "<", "x")])
    slow = [text.split() for text in cleaned(texts, True, None, False).to_pylist()]
    assert [text.split() for text in blank_breaks(texts).to_pylist()] == slow


def test_in_order_bounds_what_is_in_flight() -> None:
    taken, lock = [], threading.Lock()

    def source():
        for item in range(40):
            with lock:
                taken.append(item)
            yield item

    def slow(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    for count, value in enumerate(in_order(slow, source(), 3)):
        assert value == count * count
        assert len(taken) - count <= 3 + 3
    assert len(taken) == 40


def test_in_order_hands_on_errors() -> None:
    def fails(item: int) -> int:
        if item == 5:
            raise UserError("row 5")
        return item

    for threads in (1, 2):
        with pytest.raises(UserError, match="row 5"):
            list(in_order(fails, range(100), threads))


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"tokenizer.lowercas: .* Did you mean 'lowercase'"):
        read_settings(WordSettings, {"kind": "words", "lowercas": True})


def test_settings_survive_json() -> None:
    given = WordSettings(drop="\x85“", max_tokens=3)
    assert WordSettings(**json.loads(json.dumps(given.__dict__))) == given
