"""Settings of the front end through the recipe: what acts on the vectors before training, and in it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Runs, assert_same_run, documents, figures, on, record, stopping, weights, write_csv

from textbed import training
from textbed.batch import TokenBatch
from textbed.classifier import TextClassifier
from textbed.data.datamodule import TextDataModule
from textbed.embedding.effects import Effects
from textbed.embedding.table import Table
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
    go_on = stopping(monkeypatch, epoch, batch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*settings, "name=parts")
    go_on()
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


# What acts on the rows


def test_what_is_off_leaves_the_table_alone(runs: Runs, topics: Path) -> None:
    model, _, _ = built(runs, *on(topics))
    assert type(model.embedding) is Table
    effects, _, _ = built(runs, *on(topics, "embedding.noise=0.1"))
    assert isinstance(effects.embedding, Effects)
    assert torch.equal(effects.embedding.inner.table.weight, model.embedding.table.weight)
    assert torch.equal(effects.linear.weight, model.linear.weight)


def texts_of(data: TextDataModule) -> list[list[int]]:
    """The ids of the training documents, as a batch of each alone has them."""
    documents = data.sets["train"]
    texts = []
    for row in range(len(documents)):
        batch = documents[row]
        texts += [part.tolist() for part in batch.ids.split(batch.lengths.tolist())]
    return texts


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_weights_come_from_the_training_documents(pairs: bool, runs: Runs, topics: Path) -> None:
    settings = on(topics, "tokenizer.vocabulary_size=30")
    if pairs:
        rows = documents(90)
        halves = [(text, other, topic) for (text, topic), (other, _) in itertools.pairwise(rows)]
        path = write_csv(runs.folder / "pairs.csv", halves, ("one", "two", "label"))
        settings = [*on(path, "tokenizer.vocabulary_size=30"), "data.text=[one,two]"]
    sif, _, data = built(runs, *settings, "embedding.token_weights=sif", "embedding.sif_a=0.01")
    idf, _, _ = built(runs, *settings, "embedding.token_weights=idf")
    texts = texts_of(data)
    tokens = [token for text in texts for token in text]
    size = len(data.tokenizer)
    assert len(texts) == len(data.splits["train"].rows) * (2 if pairs else 1)
    holding = [sum(token in text for text in texts) for token in range(size)]
    assert data.train_document_counts.tolist() == holding
    assert data.train_document_counts.dtype == np.int64
    for token in range(size):
        share = tokens.count(token) / len(tokens)
        assert sif.embedding.token_weights[token].item() == pytest.approx(0.01 / (0.01 + share), rel=1e-5)
        expected = math.log((1 + len(texts)) / (1 + holding[token])) + 1
        assert idf.embedding.token_weights[token].item() == pytest.approx(expected, rel=1e-5)
    assert sif.embedding.token_weights[0] == 1  # padding, which no document has
    assert holding[1] > 0  # the rarer words are one unknown word


def test_learned_weights_are_of_the_tables_group(runs: Runs, topics: Path, vectors: Path) -> None:
    learned = ["embedding.token_weights=learned", "embedding.lr=0.2", "embedding.weight_decay=0.1"]
    model, _, data = built(runs, *on(topics, *learned))
    table, rest = model.configure_optimizers()[0][0].param_groups
    assert [parameter.shape for parameter in table["params"]] == [
        (len(data.tokenizer),),
        (len(data.tokenizer), 8),
    ]
    assert (table["lr"], table["weight_decay"]) == (0.2, 0.1)
    assert (rest["lr"], rest["weight_decay"]) == (0.1, 0.0)
    # of a frozen table they are all that learns, and may have a rate of their own
    frozen = ["embedding=frozen", f"embedding.vectors='{vectors}'", "trainer.max_epochs=1"]
    run = runs(*on(topics, *learned, *frozen))
    after = weights(run)
    assert after["embedding.log_weights"].count_nonzero() > 20
    before, _, _ = built(runs, *on(topics, *learned, *frozen))
    assert torch.equal(after["embedding.inner.table.weight"], before.embedding.inner.table.weight)
    assert figures(run)["parameters_trainable/embedding"] == len(data.tokenizer)
    assert figures(run)["parameters/embedding"] == 9 * len(data.tokenizer)


def test_the_pull_is_of_rows_with_a_vector_and_in_the_loss_of_training_alone(
    runs: Runs, topics: Path, vectors: Path
) -> None:
    settings = on(topics, "embedding=finetuned", f"embedding.vectors='{vectors}'", "optimizer=sgd")
    model, _, data = built(runs, *settings, "embedding.pull=2.0")
    known = np.isin(data.tokenizer.tokens, WORDS)
    assert model.embedding.pulled.tolist() == known.tolist()
    assert torch.equal(model.embedding.initial, model.embedding.inner.table.weight)
    plain = runs(*settings, "name=plain", "optimizer.lr=0.5")
    pulled = runs(*settings, "name=pulled", "optimizer.lr=0.5", "embedding.pull=2.0")
    # With lr * pull = 1 a row that is touched again is back where it began, but for the last step's gradient.
    begin = model.embedding.initial
    far = (weights(plain)["embedding.table.weight"] - begin).norm(dim=1)
    near = (weights(pulled)["embedding.inner.table.weight"] - begin).norm(dim=1)
    common = torch.from_numpy((data.train_counts > 50) & known)
    assert common.sum() == 3
    assert (near[common] < 0.5 * far[common]).all()
    lines = record(pulled)
    steps = [line for line in lines if "train/loss" in line]
    assert steps
    assert all("train/penalty" in line for line in steps)
    assert not any("train/penalty" in line for line in record(plain))
    # validation's loss is that of the documents
    model.load_state_dict(weights(pulled))
    model.eval()
    validation = data.sets["validation"]
    with torch.no_grad():
        logits = model(validation.__getitems__(range(len(validation))))
        assert model.embedding.penalty(validation.__getitems__(range(len(validation)))) > 0
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels)).item()
    last = [line for line in lines if "val/loss" in line][-1]
    assert last["val/loss"] == pytest.approx(loss, abs=1e-5)


ALL = [
    "embedding.word_dropout=0.2", "embedding.row_dropout=0.1", "embedding.noise=0.05",
    "embedding.token_weights=learned", "embedding.pull=0.01", "embedding.max_norm=2.0", TABLES_OWN,
]  # fmt: skip


@pytest.mark.parametrize("head", [["head=mean_max"], ["head=gru", "head.hidden=4"]], ids=["mean_max", "gru"])
def test_an_interrupted_run_with_all_of_it_ends_as_one_that_was_not(
    head: list[str], runs: Runs, topics: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on(topics, "embedding=finetuned", f"embedding.vectors='{vectors}'", *ALL, *head)
    whole = runs(*settings, "name=whole")
    assert_same_run(whole, interrupted(monkeypatch, runs, settings, 1, 4))


# Gradients


def test_lazy_and_dense_updates_end_with_the_same_bits_where_nothing_moves_untouched_rows(
    runs: Runs, topics: Path
) -> None:
    settings = on(topics, "optimizer=adagrad", "optimizer.lr=0.1")
    dense, sparse, lazy = (
        runs(*settings, f"embedding.gradient={kind}") for kind in ("dense", "sparse", "lazy")
    )
    assert_same_run(dense, lazy)
    for mine, theirs in zip(weights(dense).values(), weights(sparse).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_rows_that_no_document_touches_move_under_dense_decay_alone(runs: Runs, topics: Path) -> None:
    settings = on(topics, "optimizer=adam", "optimizer.weight_decay=0.1", "data.train_fraction=0.2")
    model, _, data = built(runs, *settings)
    start = model.embedding.table.weight.detach().clone()
    counted = torch.from_numpy(data.train_counts) > 0
    pad = data.tokenizer.pad_id
    still = ~counted
    still[pad] = False
    assert still.any()  # the unknown token
    moved = {}
    for kind in ("dense", "lazy"):
        table = weights(runs(*settings, f"embedding.gradient={kind}"))["embedding.table.weight"]
        assert not table[pad].any()
        moved[kind] = (table != start).any(dim=1)
    assert moved["dense"][still].all()
    assert not moved["lazy"][still].any()
    assert moved["lazy"][counted].all()


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_lazy_run_that_is_resumed_ends_as_one_that_was_not_interrupted(
    runs: Runs, topics: Path, kind: str
) -> None:
    settings = on(topics, f"optimizer={kind}", "optimizer.lr=0.05", "embedding.gradient=lazy", "head=max")
    settings += ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5"]
    if kind == "sgd":
        settings.append("optimizer.momentum=0.9")
    whole = runs(*settings)
    cut = runs(*settings, "trainer.max_epochs=1")
    assert_same_run(whole, runs.resume(cut, "trainer.max_epochs=2"))


def test_auto_is_lazy_for_a_table_far_larger_than_a_step_and_says_so(
    runs: Runs, topics: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textbed.embedding.gradient.LARGE", 8 * 100_000)
    settings = on(topics, "embedding=ngrams", "embedding.dim=8", "trainer.max_epochs=1", "test=false")
    model, _, _ = built(runs, *settings, "embedding.buckets=100000")
    assert (model.embedding.ngrams.table.sparse, model.embedding.words.table.sparse) == (True, False)
    assert type(model.make_optimizer([torch.nn.Parameter(torch.zeros(1))])).__name__ == "RowwiseAdam"
    runs(*settings, "embedding.buckets=100000")
    said = " ".join(capsys.readouterr().err.split())
    assert "lazy updates: of the 100,000 rows of embedding.ngrams.table only those of the batch" in said
    model, _, _ = built(runs, *settings, "embedding.buckets=99000")
    assert not model.embedding.ngrams.table.sparse
    assert type(model.make_optimizer([torch.nn.Parameter(torch.zeros(1))])) is torch.optim.Adam
    with_gradients_by_frequency = ["embedding=random", "embedding.scale_grad_by_freq=true"]
    model, _, _ = built(runs, *on(topics, *with_gradients_by_frequency))
    assert not model.embedding.table.sparse
