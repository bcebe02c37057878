"""Settings of the front end through the recipe: what acts on the vectors before training, and in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Runs, assert_same_run, on

from textbed import training
from textbed.batch import TokenBatch
from textbed.classifier import TextClassifier
from textbed.data.datamodule import TextDataModule
from textbed.embedding.vectors.shaping import shape
from textbed.runs.folder import RunFolder

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


# A schedule of the table's own


def interrupted(
    monkeypatch: pytest.MonkeyPatch, runs: Runs, settings: list[str], epoch: int, batch: int
) -> RunFolder:
    """The folder of a run that is stopped at that batch, counted from 0, and then goes on."""
    step = TextClassifier.training_step

    def stopping(self: TextClassifier, given: TokenBatch, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        return step(self, given, batch_idx)

    monkeypatch.setattr(TextClassifier, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        runs(*settings, "name=parts")
    monkeypatch.setattr(TextClassifier, "training_step", step)
    (run,) = (run for run in runs.made() if run.name == "parts")
    return runs.resume(run)


TABLES_OWN = (
    "embedding.scheduler={_target_: torch.optim.lr_scheduler.ExponentialLR, interval: epoch, gamma: 0.5}"
)
PLATEAU = (
    "embedding.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, monitor: val/loss, "
    "threshold: 0.9, patience: 0}"
)


@pytest.mark.parametrize("own", [TABLES_OWN, PLATEAU], ids=["exponential", "plateau"])
def test_the_table_follows_its_schedule_and_the_rest_another(
    own: str, runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[float]] = {}
    step = TextClassifier.training_step

    def noting(self: TextClassifier, given: TokenBatch, batch_idx: int) -> Any:
        seen[self.global_step] = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        return step(self, given, batch_idx)

    monkeypatch.setattr(TextClassifier, "training_step", noting)
    settings = on(
        topics, "scheduler=linear", own, "embedding.lr=0.02", "trainer.max_epochs=3", "data.batch_size=32"
    )
    whole = runs(*settings, "name=whole")
    steps = len(seen)
    assert steps == 12  # 108 documents in batches of 32, three times
    # Nothing gets ten times better: the plateau falls after every validation but the first, the best.
    by_epoch = [0.02, 0.01, 0.005] if own is TABLES_OWN else [0.02, 0.02, 0.002]
    expected = [[by_epoch[done // 4], 0.1 * (1 - done / steps)] for done in range(steps)]
    np.testing.assert_allclose([seen[done] for done in range(steps)], expected, rtol=1e-9)
    run = interrupted(monkeypatch, runs, settings, 2, 1)
    assert_same_run(whole, run)


def test_a_plateau_without_validation_is_named(runs: Runs, topics: Path) -> None:
    line = runs.mistake(*on(topics, PLATEAU, "data.validation=0", "callbacks.early_stopping=null"))
    assert "embedding.scheduler.monitor=val/loss: there is no validation split" in line


def test_a_figure_that_is_not_there_is_named(runs: Runs, topics: Path) -> None:
    line = runs.mistake(*on(topics, PLATEAU.replace("val/loss", "val/lose")))
    assert "embedding.scheduler.monitor=val/lose: this is no figure of this run" in line
    assert "Did you mean 'val/loss'?" in line
