"""Words against a plain Python reference, on texts made to be awkward."""

import re
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textbed.data import words as module
from textbed.data.vocabulary import Vocabulary, as_texts, chunks
from textbed.data.words import ASCII_SPACE, PUNCTUATION, WIDE_SPACE, WordSettings, WordSplitter, WordTokenizer
from textbed.errors import UserError

AWKWARD = [*"aBz.-'<br/ >R\t\n\x0c\x1c\0é\u0301Éﬁﬂ“”…»·ßΣ中文😀🏳\ufe0f\u200b\ufeff", *WIDE_SPACE]
texts_of = st.lists(
    st.lists(st.sampled_from([*AWKWARD, "<br />", "<BR>", "don't", "e\u0301", " "]), max_size=12).map(
        "".join
    ),
    max_size=6,
)


def reference(text: str | None, given: WordSettings) -> list[str]:
    text = text or ""
    if given.html_breaks:
        text = re.sub("<br ?/?>", " ", text, flags=re.IGNORECASE | re.ASCII)
    if given.normalize:
        text = unicodedata.normalize(given.normalize, text)
    if given.lowercase:
        # "Σ".lower() at the end of a word is "ς" by rule of language; each character by itself it is "σ".
        text = "".join(char.lower() for char in text)
    text = "".join(char for char in text if char not in given.drop or char.isspace())
    text = "".join(f" {char} " if char in given.split_off else char for char in text)
    tokens = text.split()
    limit = given.max_tokens
    if limit is None or len(tokens) <= limit:
        return tokens
    if given.keep == "head":
        return tokens[:limit]
    if given.keep == "tail":
        return tokens[-limit:]
    return tokens[: limit - limit // 2] + (tokens[-(limit // 2) :] if limit > 1 else [])


def split(texts: list[str | None], given: WordSettings) -> list[list[str]]:
    found = WordSplitter(given)(as_texts(texts))
    flat = [found.distinct[token].as_py() for token in found.tokens.tolist()]
    ends = np.cumsum(found.counts).tolist()
    assert len(flat) == (ends[-1] if ends else 0)
    return [flat[end - count : end] for end, count in zip(ends, found.counts.tolist(), strict=True)]


def test_space_is_pythons_space() -> None:
    space = {chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace()}
    assert set(ASCII_SPACE + WIDE_SPACE) == space


@settings(max_examples=300, deadline=None)
@given(
    texts_of,
    st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", PUNCTUATION, ".“😀 \u2003"]),
    st.sampled_from(["", "-", "z»中\u200b", "\u0301 \x85"]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from(["head", "tail", "both"]),
)
def test_splits_as_the_reference(
    texts, normalize, lowercase, html_breaks, split_off, drop, limit, keep
) -> None:
    given = WordSettings(
        normalize=normalize,
        lowercase=lowercase,
        html_breaks=html_breaks,
        split_off=split_off,
        drop=drop,
        max_tokens=limit,
        keep=keep,
    )
    assert split(texts, given) == [reference(text, given) for text in texts]


def test_a_written_out_case() -> None:
    given = WordSettings(drop="-", max_tokens=None)
    text = "It's a WELL-known “caf\u00e9”…<br /><BR>Great!\u0085fin"
    assert split([text, None, "", "?!"], given) == [
        ["it", "'", "s", "a", "wellknown", "“", "café", "”", "…", "great", "!", "fin"],
        [],
        [],
        ["?", "!"],
    ]


def test_a_break_does_not_reach_over_the_end_of_a_document() -> None:
    given = WordSettings(split_off="")
    assert split(["a<br", "/>b", "<b", "r>"], given) == [["a<br"], ["/>b"], ["<b"], ["r>"]]


def test_wide_space_before_another_wide_character() -> None:
    # The bytes of the next character must not be taken for the first one's.
    assert split(["a\x85éb\u2003中\xa0“é"], WordSettings()) == [["a", "éb", "中", "“", "é"]]


@settings(max_examples=50, deadline=None)
@given(texts_of, st.sampled_from(["keep", "drop"]))
def test_encode_gives_the_rows_of_the_words(texts, unknown) -> None:
    vocabulary = Vocabulary(pa.array(["a", ".", "é", "<pad>", "中文"], pa.large_string()))
    given = WordSettings(unknown=unknown, split_off=".")
    tokenizer = WordTokenizer(given, vocabulary)
    rows = {"a": 2, ".": 3, "é": 4, "<pad>": 5, "中文": 6}
    expected = [[rows.get(word, 1) for word in reference(text, given)] for text in texts]
    if unknown == "drop":
        expected = [[row for row in document if row != 1] for document in expected]
    ids, starts = tokenizer.encode(texts)
    assert ids.dtype == np.int32
    assert starts.dtype == np.int64
    assert [ids[a:b].tolist() for a, b in pairwise(starts)] == expected


ASCII = [chr(point) for point in range(128)]
short_texts = st.lists(
    st.none()
    | st.lists(st.sampled_from([*ASCII, "<br />", "<BR>", "a", "B", " "]), max_size=20).map("".join),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(
    short_texts,
    st.sampled_from([None, "NFC", "NFKD"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", PUNCTUATION, "]^-\\", ".“é \t", "aB"]),
    st.sampled_from(["", "-", "<b\n", "é]z"]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from(["head", "tail", "both"]),
    st.sampled_from(["keep", "drop"]),
)
def test_short_texts_are_cut_as_long_ones(
    texts, normalize, lowercase, html_breaks, split_off, drop, limit, keep, unknown
) -> None:
    given = WordSettings(normalize, lowercase, html_breaks, split_off, drop, limit, keep, unknown=unknown)
    words = sorted({word for text in texts for word in reference(text, given)})
    vocabulary = Vocabulary(pa.array(words[::2], pa.large_string()))
    short, plain = WordTokenizer(given, vocabulary), WordTokenizer(given, vocabulary)
    plain.short = 0
    ids, starts = short.encode(texts)
    expected_ids, expected_starts = plain.encode(texts)
    assert (ids.tolist(), starts.tolist()) == (expected_ids.tolist(), expected_starts.tolist())
    assert (ids.dtype, starts.dtype) == (np.int32, np.int64)


def test_which_texts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = WordTokenizer(WordSettings(), Vocabulary(pa.array(["a"], pa.large_string())))
    cut = []
    monkeypatch.setattr(tokenizer, "_split_short", lambda text: cut.append(text) or ["a"])
    for texts in (["a" * 4095], ["a", None], ["a" * 4096], ["\u00e9"], ["a", "\u00e9"], pa.array(["a"])):
        tokenizer.encode(texts)
    assert cut == ["a" * 4095, "a", ""]


def test_any_chunks_and_threads_give_the_same(monkeypatch) -> None:
    texts = as_texts([f"Word{i % 7} and “more” é<br />{i % 5}" * (i % 4) for i in range(200)])
    vocabulary = Vocabulary(pa.array(["word1", "and", "“", "é"], pa.large_string()))
    tokenizer = WordTokenizer(WordSettings(max_tokens=5, keep="both"), vocabulary)
    ids, starts = tokenizer.encode(texts, threads=1)
    for size in (1, 100, 5000):
        monkeypatch.setattr(module, "chunks", lambda given, size=size: chunks(given, size))
        for threads in (1, 3):
            again, starts_again = tokenizer.encode(texts, threads)
            assert (ids == again).all()
            assert (starts == starts_again).all()


def test_one_text_takes_any_form() -> None:
    tokenizer = WordTokenizer(WordSettings(), Vocabulary(pa.array(["a", "b"], pa.large_string())))
    for texts in (["A b", None], pa.array(["A b", None]), pa.chunked_array([["A b"], [None]])):
        ids, starts = tokenizer.encode(texts)
        assert ids.tolist() == [2, 3]
        assert starts.tolist() == [0, 2, 2]
    ids, starts = tokenizer.encode([])
    assert (ids.tolist(), starts.tolist()) == ([], [0])
    # A slice of an array starts in the middle of its buffer.
    ids, starts = tokenizer.encode(pa.array(["zzz", "b", "a b"], pa.large_string()).slice(1))
    assert (ids.tolist(), starts.tolist()) == ([3, 2, 3], [0, 1, 3])


def test_half_a_surrogate_pair_is_the_users_to_mend() -> None:
    tokenizer = WordTokenizer(WordSettings(), Vocabulary(pa.array(["a"], pa.large_string())))
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode(["\ud83d"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"normalize": "NFX"}, "expected one of NFC"),
        ({"keep": "heads"}, "Did you mean 'head'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"vocabulary_size": 2}, "from 3 on"),
        ({"min_count": 0}, "min_count=0"),
    ],
)
def test_wrong_settings(wrong, message) -> None:
    with pytest.raises(UserError, match=message):
        WordSettings(**wrong)
