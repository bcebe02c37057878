"""A static table as model2vec has it, from ``model.safetensors`` and ``tokenizer.json`` alone."""

from __future__ import annotations

from pathlib import Path

from model2vec import StaticModel
from safetensors.numpy import load_file
from tokenizers import Tokenizer


def static_table(folder: str) -> StaticModel:
    """Its rows in float32, which training needs; documents are brought to length 1, as distilled ones are."""
    rows = load_file(Path(folder) / "model.safetensors")["embeddings"].astype("float32")
    return StaticModel(rows, Tokenizer.from_file(str(Path(folder) / "tokenizer.json")), normalize=True)
