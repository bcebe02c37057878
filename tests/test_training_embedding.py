"""Settings of the front end through the recipe: what acts on the vectors before training, and in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from running import Runs, on

from textbed import training
from textbed.classifier import TextClassifier
from textbed.data.datamodule import TextDataModule
from textbed.embedding.vectors.shaping import shape

WORDS = ["a", "b", "of", "the", "owl", "nest", "mast", "keel", "loaf", "unseen"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of 8 numbers for some words of the topics, and for one that no document has."""
    rows = np.random.default_rng(0).normal(size=(len(WORDS), 8)).round(4)
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    path.write_text(
        "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, rows, strict=True))
    )
    return path


def built(runs: Runs, *overrides: str) -> tuple[TextClassifier, str | None, TextDataModule]:
    """The model that a run with these overrides begins with."""
    cfg = runs.config(*overrides)
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    data.setup()
    return *training.build_model(cfg, data), data


# Vectors that are changed on the way


def test_vectors_are_shaped_on_the_way_to_the_table(runs: Runs, topics: Path, vectors: Path) -> None:
    settings = on(topics, "embedding=frozen", f"embedding.vectors='{vectors}'")
    plain, coverage, data = built(runs, *settings, "embedding.init=zeros")
    own = ["embedding.dim=3", "embedding.reduce=pca", "embedding.remove_components=1", "embedding.init=zeros"]
    model, shaped, _ = built(runs, *settings, *own)
    assert shaped == f"{coverage}; brought to 3 columns by PCA, without their mean and first component"
    found = np.isin(data.tokenizer.tokens, WORDS)
    before = plain.embedding.table.weight.numpy()
    assert before.shape[1] == 8
    expected = shape(before, found, dim=3, reduce="pca", remove_components=1)
    np.testing.assert_array_equal(model.embedding.table.weight.numpy(), expected)
    assert torch.count_nonzero(model.embedding.table.weight) > 0
    assert model.head.out_dim == 3
    whole = runs.config(*settings, "embedding.reduce=pca")  # as wide as the vectors: nothing to be done
    assert (whole.embedding.dim, whole.embedding.reduce) == (8, None)
