"""Tables of models: whose rows a word gets, and what is not a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from textbed.embedding import vectors
from textbed.embedding.vectors import open_vectors
from textbed.errors import UserError

PIECES = ["[PAD]", "[UNK]", "film", "##s", "great", "##er", "un", "##known"]
TABLE = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def tokenizer() -> Tokenizer:
    inner = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(["[PAD]", "[UNK]"])
    inner.enable_truncation(2)
    inner.enable_padding(length=4)
    return inner


def folder(path: Path, place: str = "", table=TABLE, name: str = "embeddings", **more) -> Path:
    (path / place).mkdir(parents=True, exist_ok=True)
    save_file({name: table, **more}, path / place / "model.safetensors")
    tokenizer().save(str(path / place / "tokenizer.json"))
    return path


def test_a_word_is_the_mean_of_its_pieces(tmp_path):
    path = folder(tmp_path)
    assert open_vectors(path).format == "model2vec folder"
    assert vectors.peek(path) == (8, 4)
    words = ["<pad>", "<unk>", "film", "Films", "unknowns", "zebra", "[UNK]", "films"]
    matrix, found = vectors.read(path, words)
    assert found.tolist() == [False, False, True, True, True, False, False, True]
    np.testing.assert_array_equal(matrix[2], TABLE[2])
    np.testing.assert_allclose(matrix[3], TABLE[[2, 3]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(matrix[4], TABLE[[6, 7, 3]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(matrix[7], matrix[3])
    assert not matrix[[0, 1, 5, 6]].any()
    # The table's file stands for its folder.
    np.testing.assert_array_equal(vectors.read(path / "model.safetensors", words)[0], matrix)


def test_pieces_take_rows_of_their_own_spelling(tmp_path):
    matrix, found = vectors.read(folder(tmp_path), ["##s", "film", "[PAD]", "films"], pieces=True)
    assert found.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(matrix[:3], TABLE[[3, 2, 0]])


def test_shared_rows_and_weights_of_model2vec(tmp_path):
    mapping = np.array([0, 0, 1, 2, 1, 2, 2, 1])
    weights = np.linspace(0.5, 2, 8)
    path = folder(tmp_path, table=TABLE[:3], mapping=mapping, weights=weights)
    assert vectors.peek(path) == (8, 4)
    matrix, _ = vectors.read(path, ["films", "great"])
    rows = TABLE[mapping] * weights[:, None]
    np.testing.assert_allclose(matrix, [rows[[2, 3]].mean(axis=0), rows[4]], rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "bert.embeddings.word_embeddings.weight",
        "wte.weight",
        "model.embed_tokens.weight",
        "shared.weight",
        "embedding.weight",
    ],
)
def test_the_input_table_of_a_transformer(tmp_path, name):
    other = {
        "embeddings.position_embeddings.weight": np.zeros((16, 4), np.float32),
        "encoder.weight": np.zeros((4, 4), np.float32),
    }
    # Models round the rows of their table up.
    path = folder(tmp_path, table=np.vstack([TABLE, np.zeros((2, 4), np.float32)]), name=name, **other)
    assert open_vectors(path).format == f"input table of a transformer ({name})"
    np.testing.assert_array_equal(vectors.read(path, ["great"])[0], TABLE[[4]])


@pytest.mark.parametrize("place", ["0_StaticEmbedding", "0_Transformer"])
def test_models_in_a_folder_of_their_own(tmp_path, place):
    np.testing.assert_array_equal(vectors.read(folder(tmp_path, place), ["great"])[0], TABLE[[4]])


def test_weights_in_several_files(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    save_file({"lm_head.weight": TABLE * 0}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"model.embed_tokens.weight": TABLE}, tmp_path / "model-00002-of-00002.safetensors")
    index = {
        "weight_map": {
            "lm_head.weight": "model-00001-of-00002.safetensors",
            "model.embed_tokens.weight": "model-00002-of-00002.safetensors",
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(vectors.read(tmp_path, ["great"])[0], TABLE[[4]])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="the index names this file, but it is not there"):
        vectors.peek(tmp_path)


def test_byte_level_pieces_are_those_inside_a_text(tmp_path):
    inner = Tokenizer(models.BPE({"f": 0, "i": 1, "fi": 2, "Ġ": 3, "Ġfi": 4}, [("f", "i"), ("Ġ", "fi")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    save_file({"wte.weight": TABLE[:5]}, tmp_path / "model.safetensors")
    inner.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(vectors.read(tmp_path, ["fi"])[0], TABLE[[4]])
    np.testing.assert_array_equal(vectors.read(tmp_path, ["fi"], pieces=True)[0], TABLE[[2]])


def test_every_row_can_be_walked_through(tmp_path):
    (batch,) = open_vectors(folder(tmp_path)).stream(None)
    assert batch.words == [piece.encode() for piece in PIECES]
    np.testing.assert_array_equal(batch.vectors, TABLE)


def lacks(path: Path, name: str) -> Path:
    folder(path)
    (path / name).unlink()
    return path


def pickled(path: Path) -> Path:
    lacks(path, "model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"PK")
    return path


def no_tokenizer_json(path: Path) -> Path:
    folder(path)
    (path / "tokenizer.json").write_text('{"model": 1}')
    return path


holes = TABLE.copy()
holes[4, 1] = np.inf
BAD = {
    "empty": (lambda p: p, "is a folder without model.safetensors"),
    "no tokenizer": (lambda p: lacks(p, "tokenizer.json"), "is a folder without tokenizer.json"),
    "pickle": (pickled, "a pickle, which is never opened"),
    "not a tokenizer": (no_tokenizer_json, "not a tokenizer.json of Hugging Face tokenizers"),
    "two models": (lambda p: folder(p, table=TABLE[:5]), "its tokenizer has 8 tokens, but its table 5 rows"),
    "no table": (lambda p: folder(p, name="encoder.weight"), "none of its tensors is known as a table"),
    "infinite": (lambda p: folder(p, table=holes), "row 5 ('a piece') has the value inf"),
    "mapping": (
        lambda p: folder(p, mapping=np.array([0, 1, 2, 3, 4, 5, 6, 8])),
        "its mapping names rows that are not in its table",
    ),
    "weights": (lambda p: folder(p, weights=np.ones(3)), "has 3 weights for 8 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_in_one_line(tmp_path, case):
    make, message = BAD[case]
    with pytest.raises(UserError) as error:
        vectors.read(make(tmp_path), ["great", "film"])
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)
