"""Subwords: trained here and pretrained."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from test_encoding import ODD, FakeSplit
from tokenizers import models, normalizers, pre_tokenizers, processors

from textbed.data.encoding import encode, load_tokenizer
from textbed.data.subwords import SubwordSettings, SubwordTokenizer
from textbed.errors import UserError

TEXTS = [*ODD, *["a lovely little film about the lovely sea", "nothing works, not even the 😀 sea"] * 5]
SIZES = {"bpe": 300, "wordpiece": 120, "unigram": 80}


def documents(ids: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in pairwise(starts)]


@pytest.mark.parametrize("algorithm", SIZES)
@pytest.mark.parametrize(
    "more", [{}, {"max_tokens": 5, "keep": "both", "lowercase": False, "normalize": "NFKC"}]
)
def test_same_ids_at_training_and_afterwards(algorithm, more, tmp_path) -> None:
    given = {"kind": "subwords", "algorithm": algorithm, "vocabulary_size": SIZES[algorithm], **more}
    split = FakeSplit(TEXTS)
    rows = np.arange(len(TEXTS))
    tokenizer, columns = encode(given, {"a": split}, 1, ("a", rows), tmp_path / "cache")
    assert tokenizer.tokens[:2] == ["<pad>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
    assert len(tokenizer) == len(tokenizer.tokens) <= SIZES[algorithm]
    expected = documents(*columns["a"][0].gather(rows))
    # Empty texts are empty; a special token that is written out is text.
    assert expected[1] == expected[2] == []
    assert 0 not in expected[8]
    assert max(map(len, expected)) <= more.get("max_tokens", 10**6)
    tokenizer.save(tmp_path / "run")
    for reader in (tokenizer, load_tokenizer(tmp_path / "run")):
        assert documents(*reader.encode(TEXTS)) == expected
        assert [reader.encode([text])[0].tolist() for text in TEXTS] == expected
    figures = columns["a"][0].statistics(rows)
    assert figures.tokens == sum(map(len, expected))
    assert figures.unknown == sum(document.count(1) for document in expected)
    assert figures.distinct == len({row for document in expected for row in document})
    # The second time nothing is read.
    reads = split.reads
    again, _ = encode(given, {"a": split}, 1, ("a", rows), tmp_path / "cache")
    assert split.reads == reads
    assert again.tokens == tokenizer.tokens


def test_bpe_knows_every_text(tmp_path) -> None:
    given = {"kind": "subwords", "vocabulary_size": 270}
    tokenizer, _ = encode(given, {"a": FakeSplit(TEXTS)}, 1, ("a", np.arange(len(TEXTS))), tmp_path)
    ids, _ = tokenizer.encode(["žluťoučký 🐎 \x00"])
    assert not (ids == tokenizer.unk_id).any()


def test_trained_on_the_training_rows_alone(tmp_path) -> None:
    texts = ["aaaa bbbb aaaa bbbb"] * 4 + ["zzzz zzzz zzzz"] * 9
    given = {"kind": "subwords", "algorithm": "wordpiece", "vocabulary_size": 40}
    split = FakeSplit(texts)
    part, columns = encode(given, {"a": split}, 1, ("a", np.arange(4)), tmp_path)
    assert not any("z" in token for token in part.tokens)
    assert documents(*columns["a"][0].gather(np.array([4]))) == [[1, 1, 1]]
    whole, _ = encode(given, {"a": split}, 1, ("a", np.arange(13)), tmp_path)
    assert "zzzz" in whole.tokens
    # The order of the rows is none of its business.
    reads = split.reads
    encode(given, {"a": split}, 1, ("a", np.arange(4)[::-1]), tmp_path)
    assert split.reads == reads


TRAIN = """
import sys, tempfile
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_subwords import FakeSplit, TEXTS, SIZES
from textbed.data.encoding import encode
for algorithm, size in SIZES.items():
    given = dict(kind="subwords", algorithm=algorithm, vocabulary_size=size)
    with tempfile.TemporaryDirectory() as cache:
        tokenizer, _ = encode(given, dict(a=FakeSplit(TEXTS)), 1, ("a", np.arange(len(TEXTS))), Path(cache))
        print(tokenizer.tokens)
"""


def test_training_gives_the_same_rows_in_every_process() -> None:
    code = TRAIN.format(tests=str(__file__).rpartition("/")[0])
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in "ab"
    ]
    assert runs[0].count("<pad>") == 3
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("algorithm", "size"), [("bpe", 200), ("wordpiece", 5), ("unigram", 5)])
def test_a_vocabulary_smaller_than_the_alphabet(algorithm, size, tmp_path) -> None:
    given = {"kind": "subwords", "algorithm": algorithm, "vocabulary_size": size}
    with pytest.raises(UserError, match=f"tokenizer.vocabulary_size={size}"):
        encode(given, {"a": FakeSplit(TEXTS)}, 1, ("a", np.arange(20)), tmp_path)


@pytest.mark.parametrize("algorithm", SIZES)
def test_training_rows_without_a_token(algorithm, tmp_path) -> None:
    given = {"kind": "subwords", "algorithm": algorithm, "vocabulary_size": 300}
    with pytest.raises(UserError, match="hold not one token"):
        encode(given, {"a": FakeSplit(["", None, "full"])}, 1, ("a", np.arange(2)), tmp_path)


def pretrained() -> tokenizers.Tokenizer:
    words = ["[UNK]", "[CLS]", "the", "sea", "##s", ",", "film", "[PAD]"]
    inner = tokenizers.Tokenizer(
        models.WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $0", special_tokens=[("[CLS]", 1)])
    inner.add_special_tokens(["[CLS]", "[PAD]", "[UNK]"])
    inner.enable_padding(pad_id=7, pad_token="[PAD]", length=9)
    inner.enable_truncation(2)
    return inner


@pytest.mark.parametrize("folder", [True, False])
def test_a_pretrained_file_is_taken_bare(folder, tmp_path) -> None:
    pretrained().save(str(tmp_path / "tokenizer.json"))
    file = tmp_path if folder else tmp_path / "tokenizer.json"
    given = {"kind": "subwords", "file": str(file)}
    split = FakeSplit(["The seas,<br/>the film", "", "film [PAD] x"])
    tokenizer, columns = encode(given, {"a": split}, 1, ("a", np.arange(3)), tmp_path / "cache")
    assert (tokenizer.pad_id, tokenizer.unk_id, len(tokenizer)) == (7, 0, 8)
    # No [CLS], no padding, no cut; a written-out [PAD] is "[", "PAD", "]", unknown all three.
    assert documents(*columns["a"][0].gather(np.arange(3))) == [[2, 3, 4, 5, 2, 6], [], [6, 0, 0, 0, 0]]
    tokenizer.save(tmp_path / "run")
    (tmp_path / "tokenizer.json").unlink()
    loaded = load_tokenizer(tmp_path / "run")
    assert loaded.encode(["The seas"])[0].tolist() == [2, 3, 4]
    assert (loaded.pad_id, loaded.unk_id, loaded.tokens) == (7, 0, tokenizer.tokens)


def test_a_file_without_special_rows_gets_them(tmp_path) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = SubwordTokenizer.pretrained(SubwordSettings(file=str(tmp_path)))
    assert tokenizer.tokens == ["a", "", "", "b", "<pad>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.unk_id) == (4, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        ("not json", "is no JSON"),
        ("{}", "not a tokenizer.json"),
        ("[1]", "not a tokenizer.json"),
    ],
)
def test_a_file_that_is_no_tokenizer(content, message, tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        SubwordTokenizer.pretrained(SubwordSettings(file=str(path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_file_reads_no_stale_cache(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    given = {"kind": "subwords", "file": str(path)}
    split = FakeSplit(["The seas"])
    for swap, expected in ((False, [[2, 3, 4]]), (True, [[3, 0]])):
        pretrained().save(str(path))
        if swap:
            model = json.loads(path.read_text())
            model["model"]["vocab"] |= {"the": 3, "sea": 2}
            del model["model"]["vocab"]["##s"]
            path.write_text(json.dumps(model))
        _, columns = encode(given, {"a": split}, 1, ("a", np.arange(1)), tmp_path / "cache")
        assert documents(*columns["a"][0].gather(np.arange(1))) == expected
