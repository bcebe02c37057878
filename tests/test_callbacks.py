from __future__ import annotations

import errno
import io
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from textbed import callbacks as module
from textbed.batch import TokenBatch
from textbed.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    NonFiniteLoss,
    Progress,
    StopEarly,
    Timing,
    make_callbacks,
)
from textbed.errors import UserError
from textbed.runs.folder import RunFolder
from textbed.runs.lines import read_metrics
from textbed.runs.record import RecordLogger

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "callbacks" / "default.yaml"
STEPS = 6


def batches(seed: int) -> list[TokenBatch]:
    """Six batches of 4 documents of 3 tokens each; row numbers count up."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(STEPS):
        ids = torch.randint(0, 20, (12,), generator=generator, dtype=torch.int32)
        labels = torch.randint(0, 2, (4,), generator=generator)
        offsets = torch.arange(0, 15, 3, dtype=torch.int32)
        found.append(TokenBatch(ids, offsets, labels, torch.arange(4 * i, 4 * i + 4)))
    return found


def no_pause() -> None: ...


class Tiny(pl.LightningModule):
    """Mean of rows, dropout, linear. ``accuracies`` are logged for validation instead of the real ones."""

    def __init__(
        self, accuracies: list[float] | None = None, bad: tuple[int, int] | None = None, lr: float = 0.1
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.dropout, self.linear = nn.EmbeddingBag(20, 8), nn.Dropout(0.5), nn.Linear(8, 2)
        self.accuracies, self.bad, self.lr = accuracies, bad, lr
        self.trained: list[tuple[int, int]] = []
        self.pause: Callable[[], None] = no_pause

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        self.pause()
        self.trained.append((self.current_epoch, batch_idx))
        logits = self.linear(self.dropout(self.table(batch.ids, batch.offsets[:-1])))
        loss = nn.functional.cross_entropy(logits, batch.labels)
        if (self.current_epoch, batch_idx) == self.bad:
            loss = loss * math.nan
        self.log("train/loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss_epoch", torch.tensor(0.5 + self.current_epoch))

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.pause()

    def on_validation_epoch_end(self) -> None:
        accuracy = self.accuracies[self.current_epoch] if self.accuracies else 0.5
        self.log("val/accuracy", accuracy)
        self.log("val/loss", 0.25)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.pause()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "trial")
    run.start("seed: 0\n", [], seed=0)
    return run


def trainer_for(run: RunFolder, epochs: int, resume_step: int | None = None, **changes: Any) -> pl.Trainer:
    more = {
        key: changes.pop(key)
        for key in list(changes)
        if key in ("check_val_every_n_epoch", "val_check_interval")
    }
    config = OmegaConf.merge({"seed": 7, "callbacks": OmegaConf.load(CONFIG)}, {"callbacks": changes})
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=make_callbacks(settings["callbacks"], run),
        logger=[RecordLogger(run.path, resume_step)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.path,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=2,
        **more,
    )


def loader(seed: int = 0) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(batches(seed), batch_size=None)  # type: ignore[arg-type]


def fit(trainer: pl.Trainer, model: Tiny, checkpoint: Path | None = None) -> Tiny:
    trainer.fit(model, loader(), loader(1), ckpt_path=checkpoint, weights_only=True)
    return model


def weights(source: Tiny | Path) -> dict[str, Tensor]:
    if isinstance(source, Path):
        return torch.load(source, weights_only=True)["state_dict"]
    return source.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- checkpoints


def test_best_and_last(run: RunFolder) -> None:
    model = fit(trainer_for(run, 4, early_stopping=None), Tiny([0.5, 0.75, 0.75, 0.25]))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    best = torch.load(run.best_checkpoint, weights_only=True)
    last = torch.load(run.last_checkpoint, weights_only=True)
    assert (best["epoch"], best["global_step"]) == (1, 2 * STEPS)  # the first of two equals
    assert (last["epoch"], last["global_step"]) == (3, 4 * STEPS)
    assert same(last["state_dict"], model.state_dict())
    assert not same(best["state_dict"], model.state_dict())


def test_one_file_where_the_last_is_the_best(run: RunFolder) -> None:
    fit(trainer_for(run, 2, early_stopping=None), Tiny([0.5, 0.75]))
    assert os.path.samefile(run.best_checkpoint, run.last_checkpoint)
    fit(trainer_for(run, 3, 12, early_stopping=None), Tiny([0.5, 0.75, 0.25]), run.last_checkpoint)
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == 1
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 2


def test_last_without_validation(run: RunFolder) -> None:
    fit(trainer_for(run, 3, check_val_every_n_epoch=2, early_stopping=None), Tiny([0.5, 0.75, 0.25]))
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == 1
    assert torch.load(run.last_checkpoint, weights_only=True)["epoch"] == 2


def test_best_in_the_middle_of_an_epoch(run: RunFolder) -> None:
    fit(trainer_for(run, 1, val_check_interval=0.5, early_stopping=None), Tiny([0.5]))
    assert torch.load(run.best_checkpoint, weights_only=True)["global_step"] == STEPS // 2
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == STEPS


def test_misspelt_monitor(run: RunFolder) -> None:
    changes = {"checkpoints": {"monitor": "val/acuracy"}}
    with pytest.raises(
        UserError, match=r"monitor='val/acuracy'.*expected one of val/accuracy, val/loss.*Did you mean"
    ):
        fit(trainer_for(run, 1, **changes), Tiny())


@pytest.mark.parametrize("accuracies", [[0.5, 0.75, 0.25, 0.5], [0.75, 0.5, 0.25, 0.5]])
def test_resumed_is_bit_identical(tmp_path: Path, accuracies: list[float]) -> None:
    def new(name: str) -> RunFolder:
        run = RunFolder.create(tmp_path, name)
        run.start("seed: 0\n", [], seed=0)
        return run

    class Killed(Exception):
        pass

    class Doomed(Tiny):
        def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
            if (self.current_epoch, batch_idx) == (2, 4):
                raise Killed
            return super().training_step(batch, batch_idx)

    whole = new("whole")
    expected = fit(trainer_for(whole, 4, early_stopping=None), Tiny(accuracies))
    run = new("killed")
    with pytest.raises(Killed):
        fit(trainer_for(run, 4, early_stopping=None), Doomed(accuracies))
    torch.manual_seed(99)  # a new process starts with another state
    resumed = fit(trainer_for(run, 4, 2 * STEPS, early_stopping=None), Tiny(accuracies), run.last_checkpoint)
    assert resumed.trained == [(epoch, i) for epoch in (2, 3) for i in range(STEPS)]
    assert same(weights(resumed), weights(expected))
    assert same(weights(run.best_checkpoint), weights(whole.best_checkpoint))
    lines = [
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(r.path)]
        for r in (whole, run)
    ]
    assert lines[0] == lines[1]
    assert len({(line["step"], *sorted(line)) for line in lines[0]}) == len(lines[0])


def test_a_moved_folder_keeps_its_best(tmp_path: Path, run: RunFolder) -> None:
    fit(trainer_for(run, 2, early_stopping=None), Tiny([0.75, 0.5]))
    shutil.move(run.path, tmp_path / "elsewhere")
    moved = RunFolder.open(tmp_path / "elsewhere")
    trainer = trainer_for(moved, 3, 12, early_stopping=None)
    fit(trainer, Tiny([0.75, 0.5, 0.625]), moved.last_checkpoint)
    assert torch.load(moved.best_checkpoint, weights_only=True)["epoch"] == 0
    assert isinstance(trainer.checkpoint_callback, Checkpoints)
    assert trainer.checkpoint_callback.best_model_path == str(moved.best_checkpoint)
    assert not run.path.exists()


def test_early_stopping_that_had_fired(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    accuracies = [0.75, 0.5, 0.5, 0.5, 0.5, 0.5]
    first = fit(trainer_for(run, 6, early_stopping={"patience": 2}), Tiny(accuracies))
    assert {epoch for epoch, _ in first.trained} == {0, 1, 2}
    capfd.readouterr()
    again = fit(
        trainer_for(run, 6, 18, early_stopping={"patience": 2}), Tiny(accuracies), run.last_checkpoint
    )
    assert again.trained == []
    assert same(weights(again), weights(first))
    assert (
        "early stopping had ended this run: val/accuracy had not improved 2 times" in capfd.readouterr().err
    )
    patient = fit(
        trainer_for(run, 6, 18, early_stopping={"patience": 4}), Tiny(accuracies), run.last_checkpoint
    )
    assert {epoch for epoch, _ in patient.trained} == {3, 4}


def test_early_stopping_without_patience(run: RunFolder) -> None:
    accuracies = [0.75, 0.5, 0.5, 0.5]
    first = fit(trainer_for(run, 4, early_stopping={"patience": 0}), Tiny(accuracies))
    assert {epoch for epoch, _ in first.trained} == {0, 1}
    again = fit(
        trainer_for(run, 4, 12, early_stopping={"patience": 0}), Tiny(accuracies), run.last_checkpoint
    )
    assert again.trained == []


def test_a_finished_run_is_left_alone(run: RunFolder) -> None:
    first = fit(trainer_for(run, 2), Tiny([0.5, 0.75]))
    again = fit(trainer_for(run, 2, 12), Tiny([0.5, 0.75]), run.last_checkpoint)
    assert again.trained == []
    assert same(weights(again), weights(first))


# -- writing and reading checkpoints


def save_without_end(path: Path, count: Any) -> None:
    torch.set_num_threads(1)
    checkpoints = AtomicCheckpointIO()
    while True:
        number = count.value + 1
        checkpoints.save_checkpoint({"i": number, "w": torch.full((2_000_000,), float(number))}, path)
        count.value = number


def test_checkpoint_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")  # a fresh process would spend seconds on its imports
    count = context.Value("i", 0)
    process = context.Process(target=save_without_end, args=(path, count), daemon=True)
    process.start()
    while count.value < 2:
        time.sleep(0.001)
    for _ in range(5):  # also while it is being replaced
        content = AtomicCheckpointIO().load_checkpoint(path)
        assert torch.equal(content["w"], torch.full((2_000_000,), float(content["i"])))
    process.kill()
    process.join()
    content = AtomicCheckpointIO().load_checkpoint(path)
    assert content["i"] >= count.value >= 2
    assert torch.equal(content["w"], torch.full((2_000_000,), float(content["i"])))


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"i": 1}, path)

    class Small(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 10_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(module, "open", lambda name, mode: Small(name, "w"), raising=False)
    with pytest.raises(
        UserError, match=r"no space left while writing .*last\.ckpt.*nothing already computed is lost"
    ):
        AtomicCheckpointIO().save_checkpoint({"i": 2, "w": torch.ones(100_000)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"i": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"last\.ckpt does not exist"):
        AtomicCheckpointIO().load_checkpoint(path)
    torch.save({"w": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"rubbish", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"last\.ckpt cannot be read: it is cut short, damaged, or no checkpoint"
        ):
            AtomicCheckpointIO().load_checkpoint(path)
    torch.save({"code": Tiny()}, path)  # an object: reading it would run its code
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)


# -- NaN


@pytest.mark.parametrize("every_step", [None, False])
def test_nan_stops_and_names_the_batch(run: RunFolder, every_step: bool | None) -> None:
    trainer = trainer_for(run, 3, stop_on_nan={"every_step": every_step})
    with pytest.raises(NonFiniteLoss) as caught:
        fit(trainer, Tiny([0.5, 0.75, 1.0], bad=(1, 2)))
    error = caught.value
    assert (error.epoch, error.batch_idx, error.rows) == (1, 2, [8, 9, 10, 11])
    assert re.search(
        r"became NaN in epoch 2, batch 3 \(rows 8, 9, 10, 11 of the training split\)", str(error)
    )
    assert f"kept, {run.last_checkpoint}" in str(error)
    assert f"python train.py resume={run.path} " in str(error)
    assert "\n" not in str(error)
    # the checkpoint is that of the epoch before, and finite
    last = torch.load(run.last_checkpoint, weights_only=True)
    assert last["epoch"] == 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_nan_in_the_first_epoch(run: RunFolder) -> None:
    # in the last batch, with a look every 2 steps of 6 and a second time before the checkpoint
    trainer = trainer_for(run, 3, stop_on_nan={"every_step": False})
    trainer.log_every_n_steps = 1000
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, batch 6 .*there is no checkpoint to go on from"):
        fit(trainer, Tiny([0.5] * 3, bad=(0, 5)))
    assert not run.checkpoints.exists() or not list(run.checkpoints.iterdir())


def test_infinite_loss(run: RunFolder) -> None:
    class Exploding(Tiny):
        def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * math.inf

    with pytest.raises(NonFiniteLoss, match="became infinite in epoch 1, batch 1 "):
        fit(trainer_for(run, 1), Exploding())


# -- times


class Clock:
    """Stands still until a second is let pass."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1


def test_timing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("textbed.callbacks.time", clock)
    timing = Timing(warmup=2)
    model = Tiny([0.75, 0.5])  # the first epoch is the best: its checkpoint is the one tested
    model.pause = clock.tick
    trainer = trainer_for(run, 2)
    trainer.callbacks = [timing if isinstance(c, Timing) else c for c in trainer.callbacks]
    with timing.phase("data"):
        clock.tick()
    fit(trainer, model)
    trainer.test(model, loader(2), ckpt_path=str(run.best_checkpoint), weights_only=True, verbose=False)
    figures = timing.figures()
    assert list(figures)[:1] == ["seconds/data"]
    # a second a batch, six batches an epoch in each: nothing is counted twice, nothing is left out
    seconds = {name: value for name, value in figures.items() if name.startswith("seconds/")}
    expected = {"data": 1, "warmup": 2, "fit": 10, "validation": 12, "test": 6}
    assert seconds == {f"seconds/{name}": value for name, value in expected.items()}
    # the first two steps are warm-up; 4 documents and 12 tokens a step
    assert timing.steps == timing.measured == 10
    assert (timing.documents, timing.tokens) == (40, 120)
    speeds = {name: value for name, value in figures.items() if name.startswith("speed/")}
    assert speeds == {
        f"speed/{what}_per_second": n for what, n in (("steps", 1), ("documents", 4), ("tokens", 12))
    }

    # A resumed run goes on counting.
    saved = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]["Timing"]
    again = Timing()
    again.load_state_dict(saved)
    assert again.seconds == {"warmup": 2, "fit": 10, "validation": 12}
    assert again.steps == 10


def test_warm_up_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1)
    model: Any = SimpleNamespace(device=torch.device("cpu"))

    def epoch(timing: Timing, steps: int) -> Timing:
        timing.on_train_epoch_start(trainer, model)
        for _ in range(steps):
            now[0] += 1
            timing.on_train_batch_end(trainer, model, None, None, 0)
        timing.on_validation_start(trainer, model)
        now[0] += 10
        timing.on_validation_end(trainer, model)
        timing.on_train_epoch_end(trainer, model)
        return timing

    first = Timing(warmup=3)
    first.on_fit_start(trainer, model)
    assert epoch(first, 2).state_dict()["seconds"] == {"fit": 2, "validation": 10}  # so far it was all
    kept = epoch(first, 4).state_dict()
    assert kept["seconds"] == {"warmup": 3, "fit": 3, "validation": 20}
    second = Timing(warmup=3)
    second.load_state_dict(kept)
    second.on_fit_start(trainer, model)
    assert epoch(second, 4).state_dict()["seconds"] == {"warmup": 6, "fit": 4, "validation": 30}
    second.on_fit_end(trainer, model)
    assert second.seconds == {"warmup": 6, "fit": 4, "validation": 30}
    assert (second.steps, second.measured) == (4, 4)


def test_no_speed_from_warm_up_alone() -> None:
    assert Timing().figures() == {}


# -- what the person sees


def test_lines_where_there_is_no_terminal(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    with run.logging():
        fit(trainer_for(run, 3), Tiny([0.5, 0.75, 0.625]))
    out, err = capfd.readouterr()
    expected = [
        "epoch 1/3  train loss 0.5000  val loss 0.2500  val accuracy 0.5000  (best)",
        "epoch 2/3  train loss 1.5000  val loss 0.2500  val accuracy 0.7500  (best)",
        "epoch 3/3  train loss 2.5000  val loss 0.2500  val accuracy 0.6250",
    ]
    assert [line for line in err.splitlines() if line.startswith("epoch")] == expected
    assert "epoch" not in out
    logged = [
        line.split(": ", 1)[1] for line in run.log_file.read_text().splitlines() if "textbed.progress" in line
    ]
    assert logged == expected


def test_the_bar_shows_loss_and_validation(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert Progress()._wanted
    fit(trainer_for(run, 2, progress={"refresh_seconds": 0.0}), Tiny([0.5, 0.75]))
    text = screen.getvalue()
    assert re.search(r"epoch 2/2: +100%\|.*\| 6/6 \[.*loss=\d\.\d{3}, val accuracy=0\.500", text)
    assert re.search(r"validation: +100%\|", text)
    assert "epoch 1/2  train loss 0.5000  val loss 0.2500  val accuracy 0.5000  (best)\n" in text


def test_nothing_in_other_processes(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress(bar=True)
    progress.disable()
    progress.print("a")
    progress._open("epoch", 10)
    assert progress._bar is None
    assert capfd.readouterr().err == ""


def test_every_callback_can_be_left_out(run: RunFolder) -> None:
    names = list(OmegaConf.load(CONFIG))
    assert len(names) == 7
    assert make_callbacks(dict.fromkeys(names), run) == []
    assert make_callbacks(None, run) == []
    assert isinstance(make_callbacks({"a": {"_target_": "textbed.callbacks.StopEarly"}}, run)[0], StopEarly)
