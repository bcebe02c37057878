"""Characters against Python's own."""

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textbed.data.characters import CharacterSettings, CharacterTokenizer, split_characters
from textbed.data.vocabulary import as_texts
from textbed.errors import UserError

texts_of = st.lists(
    st.lists(st.sampled_from([*"aBé\u0301ﬁ\x85\0 😀中", "<br />", "<BR>"]), max_size=8).map("".join),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(texts_of, st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]), st.booleans(), st.booleans())
def test_code_points_as_the_reference(texts, normalize, lowercase, html_breaks) -> None:
    given = CharacterSettings(normalize=normalize, lowercase=lowercase, html_breaks=html_breaks)
    expected = []
    for text in texts:
        if html_breaks:
            text = re.sub("<br ?/?>", " ", text, flags=re.IGNORECASE)
        if normalize:
            text = unicodedata.normalize(normalize, text)
        expected.append(text.lower() if lowercase else text)
    points, counts = split_characters(given, as_texts(texts))
    assert points.tolist() == [ord(char) for text in expected for char in text]
    assert counts.tolist() == [len(text) for text in expected]


def test_vocabulary_and_ids() -> None:
    counts = np.zeros(0x110000, np.int64)
    for char, count in {"b": 2, "a": 2, "😀": 5, "z": 1}.items():
        counts[ord(char)] = count
    tokenizer = CharacterTokenizer.count(CharacterSettings(min_count=2, lowercase=True), [counts])
    assert tokenizer.tokens == ["<pad>", "<unk>", "😀", "a", "b"]
    ids, starts = tokenizer.encode(["A😀z", None, "", "é"])
    assert ids.tolist() == [3, 2, 1, 1]
    assert starts.tolist() == [0, 3, 3, 3, 4]
    assert CharacterTokenizer.count(CharacterSettings(vocabulary_size=3), [counts]).tokens[2:] == ["😀"]
    # Counts of two columns add up.
    assert CharacterTokenizer.count(CharacterSettings(min_count=10), [counts, counts]).tokens[2:] == ["😀"]


def test_limit_counts_characters() -> None:
    points, counts = split_characters(
        CharacterSettings(max_tokens=3, keep="tail"), pa.array(["abcd", "é"], "large_string")
    )
    assert "".join(map(chr, points)) == "bcdé"
    assert counts.tolist() == [3, 1]


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="unknown=dropp"):
        CharacterSettings(unknown="dropp")
