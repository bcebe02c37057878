"""The LightningModule: losses by hand, figures against scikit-learn, equal ground, resuming, optimizers."""

from __future__ import annotations

import copy
import csv
import math
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import FSDPPrecision
from omegaconf import OmegaConf
from running import front_end, in_two_processes
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from textbed.batch import TokenBatch
from textbed.classifier import (
    Schedule,
    TextClassifier,
    balanced_weights,
    optimizer_from_config,
)
from textbed.data.loading import OrderedBatches, ShuffledBatches, TokenDataset, make_loader
from textbed.embedding.optimizers import RowwiseAdagrad, RowwiseAdam, RowwiseSGD
from textbed.embedding.table import Table
from textbed.errors import UserError
from textbed.heads.attention import Attention
from textbed.heads.pooling import Pooling
from textbed.heads.recurrent import Recurrent
from textbed.network import part_seed, seeded

CONFIGS = Path(__file__).parents[1] / "configs"
PLAIN = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]


class Column:
    """An encoded column in memory."""

    def __init__(self, texts):
        self.texts = texts
        self.lengths = np.array([len(text) for text in texts], dtype=np.int64)

    def gather(self, rows):
        ids = np.concatenate([*(self.texts[row] for row in rows), np.zeros(0)]).astype(np.int32)
        return ids, np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)


def dataset(count=40, classes=3, vocabulary=20, seed=0, multilabel=False):
    random = np.random.default_rng(seed)
    texts = [random.integers(0, vocabulary, random.integers(0, 9)) for _ in range(count)]
    labels = random.integers(0, 2, (count, classes)) if multilabel else random.integers(0, classes, count)
    return TokenDataset([Column(texts)], labels, np.arange(count), multilabel)


def batches(data, kind=OrderedBatches, size=7, **arguments):
    return make_loader(data, kind(data.lengths, batch_size=size, **arguments))


def classifier(classes=3, dim=4, vocabulary=20, dropout=0.0, seed=0, **arguments):
    with seeded(seed, "embedding"):
        table = Table(vocabulary, dim)
    return TextClassifier(table, Pooling(dim, ["mean"]), classes, dropout=dropout, seed=seed, **arguments)


def fixed(logits, **arguments):
    """A model that gives document i of one token i exactly these logits, and its data set's texts."""
    count, classes = logits.shape
    table = Table(count, classes, vectors=torch.as_tensor(logits, dtype=torch.float32))
    module = TextClassifier(table, Pooling(classes, ["mean"]), classes, **arguments)
    nn.init.eye_(module.linear.weight)
    nn.init.zeros_(module.linear.bias)
    return module, Column([np.array([i]) for i in range(count)])


def one_batch(*texts, labels=None):
    offsets = np.cumsum([0, *(len(text) for text in texts)])
    return TokenBatch(
        torch.tensor([token for text in texts for token in text], dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
        labels,
    )


# ---- losses


def loss(module, logits, labels):
    total, weight = module.loss_parts(torch.as_tensor(logits), torch.as_tensor(labels))
    return float(total / weight)


def test_zero_logits_cost_the_logarithm_of_the_number_of_classes():
    assert loss(classifier(5), torch.zeros(4, 5), [0, 1, 2, 4]) == pytest.approx(math.log(5))
    # Smoothing moves the target, and zero logits are equally wrong about every target.
    assert loss(classifier(5, label_smoothing=0.3), torch.zeros(4, 5), [0, 1, 2, 4]) == pytest.approx(
        math.log(5)
    )
    multi = classifier(5, multilabel=True)
    assert loss(multi, torch.zeros(2, 5), torch.ones(2, 5)) == pytest.approx(math.log(2))


def test_class_weights_and_smoothing_by_hand():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], dtype=np.float32)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = np.array([1.0, 2.0, 5.0])
    module = classifier(class_weights=torch.tensor(weights, dtype=torch.float32))
    expected = -(1 * log_p[0, 0] + 5 * log_p[1, 2]) / (1 + 5)
    assert loss(module, logits, [0, 2]) == pytest.approx(expected, rel=1e-6)

    module = classifier(label_smoothing=0.3)
    targets = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    assert loss(module, logits, [0, 2]) == pytest.approx(-(targets * log_p).sum() / 2, rel=1e-6)


def test_multilabel_weights_and_smoothing_by_hand():
    logits = np.array([[2.0, -1.0]], dtype=np.float32)
    p = 1 / (1 + np.exp(-logits[0]))
    module = classifier(2, multilabel=True, label_smoothing=0.2, class_weights=torch.tensor([3.0, 4.0]))
    expected = -(
        3 * 0.9 * np.log(p[0]) + 0.1 * np.log(1 - p[0]) + 4 * 0.1 * np.log(p[1]) + 0.9 * np.log(1 - p[1])
    )
    assert loss(module, logits, [[1.0, 0.0]]) == pytest.approx(expected / 2, rel=1e-6)


def test_a_batch_of_weight_zero_costs_nothing():
    module = classifier(class_weights=torch.tensor([0.0, 1.0, 1.0]))
    assert loss(module, torch.randn(2, 3), [0, 0]) == 0


def test_balanced_weights():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3), expected, rtol=1e-6)
    assert balanced_weights(labels, 4)[3] == 10 / 4  # a class that training lacks
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], dtype=np.uint8)
    assert balanced_weights(labels, 2, multilabel=True).tolist() == pytest.approx([1 / 3, 3.0])


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0]])
def test_impossible_class_weights(weights):
    with pytest.raises(UserError, match=r"classifier\.class_weights"):
        classifier(class_weights=torch.tensor(weights))


# ---- the model


def test_parts_are_seeded_by_name():
    assert part_seed(0, "head") == 644485331064736306  # a figure that must never change
    assert part_seed(0, "head") != part_seed(1, "head")
    assert part_seed(0, "head") != part_seed(0, "linear")
    assert 0 <= part_seed(12, "head") < 2**63


def test_equal_ground_the_linear_layer_does_not_see_what_was_built_before():
    first = classifier()
    torch.randn(100)
    state = torch.get_rng_state()
    second = TextClassifier(Table(50, 4), Pooling(4, ["max"]), 3)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.linear.bias, second.linear.bias)
    assert not torch.equal(first.linear.weight, classifier(seed=1).linear.weight)
    torch.set_rng_state(state)
    with seeded(0, "head"):
        torch.randn(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_by_hand():
    module, _ = fixed(np.array([[1.0, 2.0], [4.0, -1.0], [0.5, 0.5]]))
    pairs = TextClassifier(module.embedding, module.head, 3, pairs=True)
    features = pairs.features(one_batch([0], [2], [1], [0]))  # pairs (0, 1) and (2, 0)
    assert features.tolist() == [[1, 2, 4, -1, 3, 3, 4, -2], [0.5, 0.5, 1, 2, 0.5, 1.5, 0.5, 1]]
    assert pairs(one_batch([0], [2], [1], [0])).shape == (2, 3)


def test_predict_needs_no_labels():
    module, column = fixed(np.log([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]))
    data = TokenDataset([column], None, np.arange(3))
    parts = pl.Trainer(**PLAIN).predict(module, batches(data, size=2))
    rows = torch.cat([part["rows"] for part in parts])
    probabilities = torch.cat([part["probabilities"] for part in parts])
    np.testing.assert_allclose(probabilities[rows.argsort()], [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], rtol=1e-6)


# ---- figures


def calibration(confidence, right, bins=15):
    """Expected calibration error as in Guo et al. 2017."""
    inside = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    parts = [(inside == b) for b in range(bins)]
    return sum(abs(right[p].mean() - confidence[p].mean()) * p.mean() for p in parts if p.any())


def test_figures_are_over_all_documents():
    random = np.random.default_rng(0)
    count, classes = 101, 4
    labels = random.choice(classes, count, p=[0.6, 0.25, 0.1, 0.05])
    logits = random.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    module, column = fixed(logits, class_weights=weights, class_names=["a", "b", "c", "d"])
    rows = random.permutation(count)
    data = TokenDataset([column], labels[rows], rows)
    # Batches of 16, the last of 5: a mean of means would be off.
    (logged,) = pl.Trainer(**PLAIN).test(module, batches(data, size=16), verbose=False)

    predicted = logits.argmax(axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {
        "test/loss": np.average(-np.log(probabilities[np.arange(count), labels]), weights=weights[labels]),
        "test/accuracy": sk.accuracy_score(labels, predicted),
        "test/f1_macro": sk.f1_score(labels, predicted, average="macro"),
        "test/f1_weighted": sk.f1_score(labels, predicted, average="weighted"),
        "test/mcc": sk.matthews_corrcoef(labels, predicted),
        "test/calibration_error": calibration(probabilities.max(axis=1), predicted == labels),
    }
    assert logged == pytest.approx(expected, rel=1e-5)
    assert module.figures == pytest.approx(expected, rel=1e-5)
    assert module.confusion.tolist() == sk.confusion_matrix(labels, predicted).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for i, row in enumerate(module.per_class):
        assert row.pop("class") == "abcd"[i]
        expected = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "support": support[i]}
        assert row == pytest.approx(expected, rel=1e-5)
    assert module.predictions.rows.tolist() == list(range(count))
    assert module.predictions.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(module.predictions.probabilities, probabilities, rtol=1e-5)


def test_multilabel_figures_are_over_all_documents():
    random = np.random.default_rng(1)
    count, classes = 61, 3
    labels = (random.random((count, classes)) < [0.7, 0.4, 0.1]).astype(np.uint8)
    logits = (random.normal(size=(count, classes)) + 2.0 * labels - 1).astype(np.float32)
    module, column = fixed(logits, multilabel=True)
    data = TokenDataset([column], labels, np.arange(count), multilabel=True)
    (logged,) = pl.Trainer(**PLAIN).test(module, batches(data, size=16), verbose=False)

    probabilities = 1 / (1 + np.exp(-logits))
    predicted = probabilities > 0.5
    flat, flat_predicted = labels.ravel(), predicted.ravel()
    expected = {
        "test/loss": sk.log_loss(flat, probabilities.ravel()),
        "test/accuracy": (labels == predicted).mean(),
        "test/exact_match": sk.accuracy_score(labels, predicted),
        "test/f1_micro": sk.f1_score(labels, predicted, average="micro"),
        "test/f1_macro": sk.f1_score(labels, predicted, average="macro"),
        "test/f1_weighted": sk.f1_score(labels, predicted, average="weighted"),
        "test/mcc": sk.matthews_corrcoef(flat, flat_predicted),
        "test/calibration_error": calibration(probabilities.ravel(), flat),
    }
    assert logged == pytest.approx(expected, rel=1e-5)
    assert module.confusion.tolist() == sk.multilabel_confusion_matrix(labels, predicted).tolist()
    assert [row["support"] for row in module.per_class] == labels.sum(axis=0).tolist()
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted)
    np.testing.assert_allclose(
        [[r["precision"], r["recall"], r["f1"]] for r in module.per_class],
        np.c_[precision, recall, f1],
        rtol=1e-5,
    )
    np.testing.assert_allclose(module.predictions.probabilities, probabilities, rtol=1e-5)
    assert module.predictions.labels.tolist() == labels.tolist()


def test_flushing_in_between_changes_nothing(monkeypatch):
    data = dataset(50)
    whole, cut = classifier(), classifier()
    pl.Trainer(**PLAIN).test(whole, batches(data), verbose=False)
    monkeypatch.setattr("textbed.classifier._FLUSH", 30)
    pl.Trainer(**PLAIN).test(cut, batches(data), verbose=False)
    assert cut.figures == pytest.approx(whole.figures, rel=1e-6)
    assert np.array_equal(cut.predictions.probabilities, whole.predictions.probabilities)


def test_a_model_gone_to_nan_still_gets_figures():
    module = classifier()
    nn.init.constant_(module.linear.weight, math.nan)
    pl.Trainer(**PLAIN).test(module, batches(dataset()), verbose=False)
    assert math.isnan(module.figures["test/loss"])


# ---- training


def test_training_logs_the_exact_mean_of_an_epoch_and_a_loss_every_few_steps(tmp_path):
    data = dataset(40)
    module = classifier(optimizer=partial(torch.optim.SGD, lr=0.0))
    logger = CSVLogger(tmp_path, "", "")
    # Validation in the middle of an epoch must not disturb the epoch's sums.
    trainer = pl.Trainer(
        **PLAIN | {"logger": logger}, max_epochs=2, log_every_n_steps=4, val_check_interval=2
    )
    trainer.fit(module, batches(data, ShuffledBatches, size=9), batches(data, size=11))  # 9 9 9 9 4
    # Nothing learns, so training and validation see the same model and the same documents.
    assert trainer.callback_metrics["train/loss_epoch"] == pytest.approx(module.figures["val/loss"], rel=1e-6)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [3, 7]
    assert module.predictions is None  # only after validate or test


def test_what_a_head_adds_to_the_loss_is_trained_on_and_logged_apart(tmp_path):
    loader = batches(dataset(9), size=9)
    batch = next(iter(loader))
    module = TextClassifier(Table(20, 4), Attention(4, None, 2, overlap=3.0), 3)
    loss_sum, weight = module.loss_parts(module(batch), batch.labels)
    penalty = module.head.penalty()
    expected = torch.autograd.grad(loss_sum / weight + penalty, list(module.parameters()))
    logger = CSVLogger(tmp_path, "", "")
    trainer = pl.Trainer(**PLAIN | {"logger": logger}, max_steps=1, log_every_n_steps=1)
    module.make_optimizer = partial(torch.optim.SGD, lr=1.0)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer.fit(module, loader, loader)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        row = next(row for row in csv.DictReader(file) if row["train/loss"])
    assert float(row["train/penalty"]) == pytest.approx(penalty.item(), rel=1e-6)
    assert float(row["train/loss"]) == pytest.approx((loss_sum / weight).item(), rel=1e-6)
    for parameter, start, gradient in zip(module.parameters(), before, expected, strict=True):
        torch.testing.assert_close(start - parameter, gradient, rtol=1e-4, atol=1e-6)


def logits_gradient(module, batch):
    module.zero_grad()
    total, weight = module.loss_parts(module(batch), batch.labels)
    (total / weight).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.SGD, RowwiseSGD])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_accumulation_averages_batches_and_clipping_bounds_the_step(clip, kind):
    data = dataset(12)
    module, reference = (classifier(optimizer=partial(kind, lr=0.5)) for _ in range(2))
    module.embedding.table.sparse = kind is RowwiseSGD
    both = list(batches(data, size=6))
    mean = [(a + b) / 2 for a, b in zip(*(logits_gradient(reference, batch) for batch in both), strict=True)]
    norm = float(torch.stack([part.square().sum() for part in mean]).sum().sqrt())
    assert norm > 0.01
    scale = 1.0 if clip is None else clip / norm
    pl.Trainer(**PLAIN, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=clip).fit(
        module, batches(data, size=6)
    )
    for got, start, part in zip(module.parameters(), reference.parameters(), mean, strict=True):
        torch.testing.assert_close(got, start - 0.5 * scale * part, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.optim.SGD, RowwiseAdam])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_sparse_gradients_train_only_touched_rows(precision, kind):
    data = dataset(10, vocabulary=5)
    table = Table(20, 4, sparse=True)
    before = table.table.weight.detach().clone().bfloat16()
    module = TextClassifier(table, Pooling(4, ["mean"]), 3, optimizer=partial(kind, lr=0.5))
    trainer = pl.Trainer(**PLAIN, max_epochs=1, precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Lightning thinks of precisions
        trainer.fit(module, batches(data))
    after = table.table.weight.bfloat16()
    moved = (after != before).any(dim=1)
    assert moved.tolist() == [True] * 5 + [False] * 15


def test_values_of_sparse_gradients_are_clipped_as_dense_ones():
    data = dataset(12)
    weights = []
    for sparse in (False, True):
        module = classifier(optimizer=partial(RowwiseSGD, lr=0.5))
        module.embedding.table.sparse = sparse
        settings = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
        pl.Trainer(**PLAIN | settings, max_epochs=2).fit(module, batches(data))
        weights.append(module.embedding.table.weight.detach())
    start = classifier().embedding.table.weight
    assert 0.5e-3 * 2 < (weights[0] - start).abs().max() <= 0.5e-3 * 4 + 1e-6
    torch.testing.assert_close(*weights, rtol=0, atol=1e-7)


def test_bfloat16_trains_and_gives_full_precision_probabilities():
    data = dataset(20)
    module = classifier()
    before = module.linear.weight.detach().clone()
    trainer = pl.Trainer(**PLAIN, max_epochs=1, precision="bf16-mixed")
    trainer.fit(module, batches(data, ShuffledBatches))
    assert module.linear.weight.dtype == torch.float32
    assert not torch.equal(module.linear.weight, before)
    trainer.test(module, batches(data), verbose=False)
    assert module.predictions.probabilities.dtype == np.float32
    np.testing.assert_allclose(module.predictions.probabilities.sum(axis=1), 1, rtol=1e-6)


HEADS = {
    "mean": Pooling(4, ["mean"]),
    "gru": Recurrent(4, "gru", 3, layers=2),
    "bilstm, mean": Recurrent(4, "lstm", 3, bidirectional=True, readout="mean"),
    "gru, max": Recurrent(4, "gru", 3, readout="max"),
}


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_train_every_kind_of_head(precision, head, multilabel):
    data = dataset(20, multilabel=multilabel)
    # scaled by frequency: the way of pooling that makes a row for each token
    table = Table(20, 4, scale_grad_by_freq=True)
    module = TextClassifier(
        table, copy.deepcopy(HEADS[head]), 3, multilabel=multilabel, label_smoothing=0.1, seed=1
    )
    before = module.linear.weight.detach().clone()
    trainer = pl.Trainer(**PLAIN, max_epochs=1, precision=precision)
    trainer.fit(module, batches(data, ShuffledBatches))
    assert module.linear.weight.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert not torch.equal(module.linear.weight.float(), before.float())
    trainer.test(module, batches(data), verbose=False)
    assert module.predictions.labels.tolist() == data.labels.tolist()
    assert module.predictions.probabilities.dtype == np.float32
    said = module.predictions.probabilities
    right = (said > 0.5) == data.labels if multilabel else said.argmax(axis=1) == data.labels
    assert module.figures["test/accuracy"] == pytest.approx(right.mean())


def test_precisions_that_turn_a_batch_into_another_type():
    """What FSDP does to each batch, in float32 as well."""
    batch = one_batch([1, 2], [], labels=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    turned = FSDPPrecision("bf16-true").convert_input(batch)
    assert isinstance(turned, TokenBatch)
    assert turned.ids.tolist() == [1, 2]
    assert (turned.ids.dtype, turned.labels.dtype) == (torch.int32, torch.bfloat16)
    assert batch.labels.dtype == torch.float32


PLATEAU = {  # falls at every validation but the first
    "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "patience": 0, "threshold": 0.9
}  # fmt: skip


def train(folder, data, ckpt_path=None, stop_at=None, val_check_interval=1.0, schedule="linear"):
    """Train three epochs; save after every validation; optionally stop there, as a killed run would."""

    class Killed(Exception):
        pass

    class Save(pl.Callback):
        def on_validation_end(self, trainer, module):
            trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")
            if trainer.global_step == stop_at:
                raise Killed

    epochs = []

    class Epochs(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            self.note(trainer)

        def on_train_end(self, trainer, module):
            self.note(trainer)

        def note(self, trainer):  # the module logs at an epoch's end, after the callbacks had their turn
            if "train/loss_epoch" in trainer.callback_metrics:
                epochs.append(float(trainer.callback_metrics["train/loss_epoch"]))

    module = classifier(
        max_norm=0.5,  # which the first weights are beyond
        optimizer=optimizer_from_config(OmegaConf.load(CONFIGS / "optimizer/adam.yaml")),
        schedule=Schedule.from_config(
            PLATEAU if schedule == "plateau" else OmegaConf.load(CONFIGS / f"scheduler/{schedule}.yaml")
        ),
    )
    trainer = pl.Trainer(
        **PLAIN, max_epochs=3, callbacks=[Save(), Epochs()], val_check_interval=val_check_interval
    )
    loaders = batches(data, ShuffledBatches, seed=3), batches(data)
    if stop_at is not None:
        with pytest.raises(Killed):
            trainer.fit(module, *loaders)
    else:
        trainer.fit(module, *loaders, ckpt_path=ckpt_path, weights_only=True)
    return module, epochs


@pytest.mark.parametrize("schedule", ["linear", "plateau"])
@pytest.mark.parametrize(
    ("val_check_interval", "stop_at", "epochs_left"),
    [
        (1.0, 6, 3),
        (0.5, 3, 3),
        (0.5, 9, 2),
    ],  # 6 steps an epoch; after the 6th the epoch's end is still to come
)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    tmp_path, val_check_interval, stop_at, epochs_left, schedule
):
    data = dataset(40)
    how = {"val_check_interval": val_check_interval, "schedule": schedule}
    whole, whole_epochs = train(tmp_path, data, **how)
    train(tmp_path, data, stop_at=stop_at, **how)
    resumed, epochs = train(tmp_path, data, ckpt_path=tmp_path / f"{stop_at}.ckpt", **how)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.figures == whole.figures
    assert epochs == whole_epochs[-epochs_left:]
    rates = [module.optimizers().param_groups[0]["lr"] for module in (whole, resumed)]
    validations = int(3 / val_check_interval)
    assert (
        rates[0]
        == rates[1]
        == pytest.approx(0.0 if schedule == "linear" else 1e-3 * 0.1 ** (validations - 1))
    )


def test_checkpoints_hold_no_pickled_objects(tmp_path):
    train(tmp_path, dataset(20))
    checkpoint = torch.load(tmp_path / "3.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"embedding.table.weight", "linear.weight", "linear.bias"}
    assert "hyper_parameters" not in checkpoint


def test_a_checkpoint_knows_what_validation_gave_it(tmp_path):
    module, _ = train(tmp_path, dataset(20))
    last = torch.load(tmp_path / f"{module.trainer.global_step}.ckpt", weights_only=True)
    assert last["figures"] == module.figures
    assert "val/accuracy" in last["figures"]
    first = torch.load(tmp_path / "3.ckpt", weights_only=True)
    assert first["figures"]["val/loss"] != last["figures"]["val/loss"]


@pytest.mark.parametrize("every", [1, 2])
def test_a_plateau_is_asked_after_validation_alone(every):
    module = classifier(optimizer=partial(torch.optim.SGD, lr=1.0), schedule=Schedule.from_config(PLATEAU))
    data = dataset(20)
    trainer = pl.Trainer(**PLAIN, max_epochs=4, check_val_every_n_epoch=every)
    trainer.fit(module, batches(data), batches(data))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 ** (4 // every - 1))


def test_a_plateau_of_a_figure_that_is_not_there():
    module = classifier(schedule=Schedule.from_config(PLATEAU | {"monitor": "val/lose"}))
    data = dataset(20)
    with pytest.raises(UserError, match=r"scheduler\.monitor=val/lose.*'val/loss'"):
        pl.Trainer(**PLAIN, max_epochs=1).fit(module, batches(data), batches(data))


# ---- optimizers and schedules


OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONFIGS / "scheduler").glob("*.yaml"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_config_learns(name, tmp_path):
    data = dataset(20)
    config = OmegaConf.load(CONFIGS / f"optimizer/{name}.yaml")
    module = classifier(optimizer=optimizer_from_config(config), table_lr=0.25, table_weight_decay=0.125)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    trainer = pl.Trainer(**PLAIN, max_epochs=1)
    trainer.fit(module, batches(data))
    (optimizer,) = trainer.optimizers
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["table", "rest"]
    assert (groups["table"]["lr"], groups["table"]["weight_decay"]) == (0.25, 0.125)
    assert (groups["rest"]["lr"], groups["rest"]["weight_decay"]) == (config.lr, config.weight_decay)
    assert {id(p) for p in groups["table"]["params"]} == {id(p) for p in module.embedding.parameters()}
    assert all(not torch.equal(start[key], value) for key, value in module.state_dict().items())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["optimizer_states"]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_last_layers_weights_are_shortened_after_every_step(accumulated):
    data, longest = dataset(40), 0.5
    lengths, free = [], []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            (lengths if module.max_norm else free).append(module.linear.weight.detach().norm(dim=1))

    def fit(**arguments):
        make = optimizer_from_config(OmegaConf.load(CONFIGS / "optimizer/sgd.yaml"))
        module = classifier(optimizer=make, **arguments)
        trainer = pl.Trainer(**PLAIN, max_epochs=1, callbacks=[Watch()], accumulate_grad_batches=accumulated)
        trainer.fit(module, batches(data))
        return module

    plain, bound = fit(), fit(max_norm=longest)
    assert torch.stack(free).max() > longest + 0.05  # so that there was something to do
    after = torch.stack(lengths)[accumulated - 1 :]
    assert after.max() < longest + 1e-6
    assert after[-1].max() == pytest.approx(longest, abs=1e-5)
    assert not torch.equal(plain.linear.bias, bound.linear.bias)

    # one step by hand: the same direction, and only what is too long is shorter
    one_step = {"limit_train_batches": accumulated, "accumulate_grad_batches": accumulated}
    modules = []
    for limit in (None, longest):
        make = optimizer_from_config(OmegaConf.load(CONFIGS / "optimizer/sgd.yaml"))
        module = classifier(optimizer=make, max_norm=limit)
        pl.Trainer(**PLAIN, max_epochs=1, **one_step).fit(module, batches(data))
        modules.append(module)
    weight = modules[0].linear.weight.detach()
    by_hand = weight * (longest / weight.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(modules[1].linear.weight.detach(), by_hand)
    assert torch.equal(modules[0].linear.bias, modules[1].linear.bias)


def test_the_activation_stands_between_head_and_dropout():
    batch = one_batch([1, 2], [3])
    plain, bent = classifier(), classifier(activation="relu", dropout=0.5)
    bent.load_state_dict(plain.state_dict())
    features = plain.features(batch)
    assert (features < 0).any()
    torch.testing.assert_close(bent.features(batch), features.clamp(min=0))
    torch.testing.assert_close(bent.eval()(batch), plain.linear(features.clamp(min=0)))
    torch.manual_seed(0)
    kept = bent.train().dropout(torch.ones_like(features))
    torch.manual_seed(0)
    torch.testing.assert_close(bent(batch), plain.linear(features.clamp(min=0) * kept))


def test_a_frozen_table_holds_no_optimizer_state():
    table = Table(20, 4, trainable=False)
    before = table.table.weight.clone()
    module = TextClassifier(table, Pooling(4, ["mean"]), 3, table_lr=0.1)
    trainer = pl.Trainer(**PLAIN, max_epochs=1)
    trainer.fit(module, batches(dataset(20)))
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["rest"]
    assert set(trainer.optimizers[0].state) == {module.linear.weight, module.linear.bias}
    assert torch.equal(table.table.weight, before)


def test_the_file_list_of_schedules_is_the_tested_one():
    assert SCHEDULERS == ["constant", "cosine", "linear", "plateau"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_config_follows_its_curve(name, tmp_path):
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = classifier(
        optimizer=partial(torch.optim.SGD, lr=1e-6),  # next to nothing is learnt: a plateau
        schedule=Schedule.from_config(OmegaConf.load(CONFIGS / f"scheduler/{name}.yaml")),
        table_lr=2e-6,
    )
    data = dataset(21)
    trainer = pl.Trainer(**PLAIN, max_epochs=4, accumulate_grad_batches=2, callbacks=[Rates()])
    trainer.fit(module, batches(data), batches(data))  # 3 batches = 2 optimizer steps an epoch, 8 in all
    done = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]) / 8
    expected = {
        "constant": np.ones(12),
        "linear": 1 - done,
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "plateau": np.repeat([1, 1, 1, 0.5], 3),  # epoch 0 is the best, 1 is let pass, 2 makes it fall
    }[name]
    np.testing.assert_allclose(rates, np.outer(expected, [2e-6, 1e-6]), rtol=1e-9)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["lr_schedulers"]


def test_arguments_of_a_config_become_plain_values():
    config = OmegaConf.create({"_target_": "torch.optim.lr_scheduler.MultiStepLR", "milestones": [2, 4]})
    assert type(Schedule.from_config(config).arguments["milestones"]) is list
    config = OmegaConf.load(CONFIGS / "optimizer/adam.yaml")
    assert type(optimizer_from_config(config).keywords["betas"]) is list


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.Adm"}, r"optimizer\._target_=torch\.optim\.Adm.*'Adam'"),
        ({"_target_": "torch.optim.Adam", "lrr": 1}, r"optimizer\.lrr: Adam has no such argument.*'lr'"),
        ({"_target_": "torch.optim.Adam", "lr": -1.0}, r"optimizer \(lr=-1.0\): Invalid learning rate: -1.0"),
    ],
)
def test_mistakes_in_the_optimizer(config, message):
    with pytest.raises(UserError, match=message):
        classifier(optimizer=optimizer_from_config(config)).configure_optimizers()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.lr_scheduler.LinaerLR"}, r"scheduler\._target_.*'LinearLR'"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "stepsize": 3}, r"scheduler\.stepsize.*'step_size'"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, r"scheduler.*step_size"),
        (
            {"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "steps"},
            r"scheduler\.interval=steps.*'step'",
        ),
    ],
)
def test_mistakes_in_the_schedule(config, message):
    with pytest.raises(UserError, match=message):
        classifier(schedule=Schedule.from_config(config)).configure_optimizers()


# ---- several processes, compilation


# Front ends of which some parameters get no gradient, or not at every step: what DDP takes ill.
TABLES = {
    "frozen": {"train_missing": True},
    "thawed": {"frozen_epochs": 0, "frozen_steps": 7, "sparse": True},
    "multichannel": {"frozen_epochs": 1},
    "adapted": {"rank": 2},
    "projected": {},
}


def distributed_results(devices):
    """What a run on this many processes gives: figures and predictions of tests, and trained weights."""

    def make_trainer():
        strategy = pl.strategies.DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
        return pl.Trainer(**PLAIN, devices=devices, strategy=strategy, max_epochs=2)

    trainer = make_trainer()
    share = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    result = {}
    for name, count, multilabel in [("uneven", 41, False), ("single", 1, False), ("multilabel", 23, True)]:
        data = dataset(count, multilabel=multilabel)
        module = classifier(multilabel=multilabel, class_weights=torch.tensor([1.0, 2.0, 3.0]))
        trainer.test(module, batches(data, size=4, **share), verbose=False)
        result[name] = {
            "figures": module.figures,
            "per_class": module.per_class,
            "rows": module.predictions.rows.tolist(),
            "labels": module.predictions.labels.tolist(),
            "probabilities": module.predictions.probabilities.tolist(),
        }
    data = dataset(40)
    module = classifier(optimizer=partial(torch.optim.SGD, lr=0.5))
    training = batches(data, ShuffledBatches, size=8 // devices, **share)
    trainer.fit(module, training, batches(data, size=4, **share))
    result["weights"] = module.linear.weight.tolist()
    result["losses"] = [float(trainer.callback_metrics[name]) for name in ("train/loss_epoch", "val/loss")]
    lazy = classifier(optimizer=partial(RowwiseAdagrad, lr=0.5))
    lazy.embedding.table.sparse = True
    trainer = make_trainer()
    trainer.gradient_clip_val = 0.1
    trainer.fit(lazy, batches(data, ShuffledBatches, size=8 // devices, **share))
    result["lazy"] = lazy.embedding.table.weight.tolist()
    for name, more in TABLES.items():
        trainer = make_trainer()
        with seeded(0, "embedding"):
            embedding = front_end(name, 20, 4, found=torch.arange(20) % 3 > 0, **more)
        module = TextClassifier(
            embedding, Pooling(embedding.dim, ["mean"]), 3, optimizer=partial(torch.optim.SGD, lr=0.5)
        )
        start = {key: value.clone() for key, value in embedding.state_dict().items()}
        trainer.fit(module, batches(data, ShuffledBatches, size=8 // devices, **share))
        result[name] = {key: value.tolist() for key, value in embedding.state_dict().items()}
        moved = {key for key, value in embedding.state_dict().items() if not torch.equal(value, start[key])}
        assert moved == {key for key, value in embedding.named_parameters() if value.requires_grad}
    return result


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one():
    first, second = in_two_processes(distributed_results, devices=2)
    assert first == second
    one = distributed_results(1)
    for name, count in (("uneven", 41), ("single", 1), ("multilabel", 23)):
        assert first[name]["rows"] == list(range(count))
        assert first[name]["labels"] == one[name]["labels"]
        # The composition of a batch decides the last bit of a product of matrices.
        np.testing.assert_allclose(first[name]["probabilities"], one[name]["probabilities"], rtol=1e-6)
        smooth = {"test/loss": 1e-6, "test/calibration_error": 1e-5}
        for figure, value in one[name]["figures"].items():
            assert first[name]["figures"][figure] == pytest.approx(value, rel=smooth.get(figure, 0), abs=0)
        assert first[name]["per_class"] == one[name]["per_class"]
    # Two processes of four documents a step take the steps of one process of eight.
    np.testing.assert_allclose(first["weights"], one["weights"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first["lazy"], one["lazy"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-5)
    for name in TABLES:
        for key, value in one[name].items():
            np.testing.assert_allclose(first[name][key], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} {key}")


@pytest.mark.slow
def test_compiled_gives_the_same_for_any_shape():
    data = dataset(30)
    plain, compiled = classifier(), classifier()
    compiled.compile(dynamic=True)
    for trained in (plain, compiled):
        trainer = pl.Trainer(**PLAIN, max_epochs=1)
        trainer.fit(trained, batches(data, ShuffledBatches))
        trainer.test(trained, batches(data, size=13), verbose=False)
    assert compiled.figures == pytest.approx(plain.figures, rel=1e-4)
