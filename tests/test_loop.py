"""The quick loop over batches beside Lightning's own: the same run, and the same state in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from running import Runs, assert_same_run, on, record, stopping, weights

from textbed.classifier import TextClassifier
from textbed.loop import QuickEpochLoop
from textbed.runs.folder import RunFolder

STEP_SCHEDULER = "scheduler=linear"
CASES = {
    "plain": [],
    "clipped, with a schedule by step": ["trainer.gradient_clip_val=0.05", STEP_SCHEDULER],
    "clipped by value, lazy": [
        "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value", "embedding.gradient=lazy",
    ],
    "validated inside the epoch": ["trainer.val_check_interval=2"],
    "validated every other epoch": ["trainer.check_val_every_n_epoch=2"],
    "cut by steps": ["trainer.max_steps=9"],
    "cut by batches": ["+trainer.limit_train_batches=3"],
    "a plateau": ["scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.5"],
    "thawed": ["embedding=thawed", "embedding.vectors=corpus", "embedding.frozen_steps=3"],
    "a longest weight": ["classifier.max_norm=0.3"],
    "every step logged": ["trainer.log_every_n_steps=1"],
    "batches by tokens": ["data.batch_tokens=120"],
    "batches from a worker": ["data.workers=1"],
    "pooled once": ["embedding=frozen", "embedding.vectors=corpus"],
}  # fmt: skip


def settings(topics: Path, *more: str) -> list[str]:
    quiet = ["report.embedding=false", "report.pictures=false"]
    return on(topics, "data.test=0.2", "trainer.max_epochs=2", *quiet, *more)


def state(run: RunFolder) -> dict[str, Any]:
    """All of the last checkpoint but for weights and times."""
    checkpoint = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    del checkpoint["state_dict"]
    # its name, and what it measured; the quick loop is a callback without a state
    checkpoint["callbacks"] = {
        name: value for name, value in checkpoint["callbacks"].items() if name.startswith("StopEarly")
    }
    return checkpoint


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that the quick loop took itself."""
    batches: list[int] = []
    usual = QuickEpochLoop._optimize

    def counted(self: QuickEpochLoop, module: Any, batch: Any, batch_idx: int) -> Any:
        batches.append(batch_idx)
        return usual(self, module, batch, batch_idx)

    monkeypatch.setattr(QuickEpochLoop, "_optimize", counted)
    return batches


@pytest.mark.parametrize("case", CASES)
def test_it_is_lightnings_run_to_the_last_bit(
    case: str, runs: Runs, topics: Path, optimized: list[int]
) -> None:
    quick = runs(*settings(topics, *CASES[case]))
    steps = len(optimized)
    assert steps == quick.read_metrics()["steps"] > 4
    own = runs(*settings(topics, *CASES[case], "callbacks.quick_loop=null"))
    assert len(optimized) == steps
    assert_same_run(quick, own)
    assert_equal(state(quick), state(own))


@pytest.mark.parametrize("kind", ["pairs", "multilabel"])
def test_so_it_is_with_pairs_and_with_several_classes(
    kind: str, runs: Runs, trained: Callable[[str], RunFolder], optimized: list[int]
) -> None:
    quick = trained(kind)
    optimized.clear()  # it may have been made just now
    given = [line for line in quick.overrides() if not line.startswith("paths.")]
    own = runs(*given, "callbacks.quick_loop=null")
    assert not optimized
    assert_same_run(quick, own)
    assert_equal(state(quick), state(own))


@pytest.mark.parametrize("case", ["trainer.accumulate_grad_batches=2", "+trainer.profiler=simple"])
def test_other_cases_are_lightnings(case: str, runs: Runs, topics: Path, optimized: list[int]) -> None:
    run = runs(*settings(topics, case))
    assert not optimized
    assert run.info()["status"] == "finished"


def test_a_run_goes_on_from_either_loops_checkpoint(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch, optimized: list[int]
) -> None:
    """Interrupted under Lightning's loop inside an epoch, gone on with by the quick one."""
    given = settings(topics, STEP_SCHEDULER, "trainer.val_check_interval=2", "callbacks.quick_loop=null")
    whole = runs(*given, "name=whole")
    go_on = stopping(monkeypatch, 1, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs(*given, "name=parts")
    go_on()
    (run,) = (run for run in runs.made() if run.name == "parts")
    assert not optimized
    runs.resume(run, "callbacks.quick_loop={_target_: textbed.loop.QuickLoop}")
    assert optimized
    assert_same_run(whole, run)
    assert_equal(state(whole), state(run))


class Skipping(pl.Callback):
    """Logs in its hooks; a module's answer of -1 ends the epoch."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.log("train/mine", float(outputs["loss"]) + batch_idx, batch_size=1)


def test_hooks_log_and_end_an_epoch(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch, optimized: list[int]
) -> None:
    monkeypatch.setattr(
        TextClassifier, "on_train_batch_start", lambda self, batch, batch_idx: -1 if batch_idx == 4 else None
    )
    mine = "+callbacks.mine={_target_: test_loop.Skipping}"
    quick = runs(*settings(topics, mine))
    assert optimized == [0, 1, 2, 3] * 2
    own = runs(*settings(topics, mine, "callbacks.quick_loop=null"))
    for name, value in weights(quick).items():  # no epoch was validated
        assert torch.equal(value, weights(own)[name])
    assert record(quick) == record(own)
    assert "train/mine" in quick.record_file.read_text()
