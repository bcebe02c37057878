"""A table divided among processes: the run of one process, in checkpoints that any number can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from running import Runs, figures, in_two_processes, on, predictions, record

from textbed.embedding.sharding import Shard, whole_size
from textbed.training import resume, train

SHARDED = ["embedding.sharded=true", "trainer=ddp_sim", "data.batch_size=8"]
KINDS = {
    "dense": ["optimizer=adam", "embedding.gradient=dense"],
    "lazy": ["optimizer=adagrad", "embedding.gradient=lazy", "embedding.padding_idx=0"],
    "ngrams": ["embedding=ngrams", "embedding.buckets=501", "optimizer=adam", "head=max"],
}


def test_blocks_cover_a_table() -> None:
    for rows, size in [(10, 3), (9, 3), (2, 4), (7, 1)]:
        kept = [torch.arange(rows)[Shard(rows, rank, size).kept] for rank in range(size)]
        assert torch.cat(kept).tolist() == list(range(rows))
        assert max(map(len, kept)) <= -(-rows // size)


def state_of(path: Path) -> dict[int, dict[str, Any]]:
    return torch.load(path, weights_only=True)["optimizer_states"][0]["state"]


@pytest.mark.slow
def test_two_processes_with_half_a_table_each(
    runs: Runs, topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    setup = {}
    for name, more in KINDS.items():
        usual = on(topics, "embedding.dim=8", "classifier.dropout=0", "report.embedding=false")
        setup[name] = [*usual, *more, "optimizer.lr=0.1"]
        runs(*setup[name], f"name={name}-1")

    def work() -> list[int]:
        real = torch.optim.Optimizer.__init__

        def made(self: Any, params: Any, defaults: Any) -> None:
            real(self, params, defaults)
            table = self.param_groups[0]["params"]
            kept.append(sum(parameter.numel() for parameter in table))
            assert sum(map(whole_size, table)) > kept[-1]

        monkeypatch.setattr(torch.optim.Optimizer, "__init__", made)
        for name in KINDS:
            train(runs.config(*setup[name], *SHARDED, f"name={name}-2"))
        return kept

    first, second = in_two_processes(work)
    made = {run.name: run for run in runs.made()}
    for number, name in enumerate(KINDS):
        one, two = made[f"{name}-1"], made[f"{name}-2"]
        assert first[number] + second[number] == figures(one)["parameters_trainable/embedding"]
        assert abs(first[number] - second[number]) <= 3 * 8
        assert figures(two) == pytest.approx(figures(one), rel=1e-4)
        for mine, theirs in zip(record(one), record(two), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        torch.testing.assert_close(
            torch.tensor(predictions(two)["probability"]),
            torch.tensor(predictions(one)["probability"]),
            rtol=1e-4,
            atol=1e-5,
        )
        mine, theirs = state_of(one.last_checkpoint), state_of(two.last_checkpoint)
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-6)
    # one process goes on with what two have left, and the other way round
    longer = ["trainer.max_epochs=3"]
    resume(str(made["lazy-2"].path), ["trainer.devices=1", "trainer.strategy=auto", *longer])
    in_two_processes(lambda: resume(str(made["dense-2"].path), longer))
    for name in ("lazy", "dense"):
        one, two = runs.resume(made[f"{name}-1"], *longer), made[f"{name}-2"]
        assert figures(two)["val/loss"] == pytest.approx(
            figures(one)["val/loss"], rel=0.05 if name == "lazy" else 1e-3
        )


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("embedding.max_norm=1", "embedding.max_norm=1"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1.*value"),
        ("embedding.scale_grad_by_freq=true", "embedding.scale_grad_by_freq=true.*divided"),
    ],
)
def test_what_needs_a_whole_table(wrong: str, line: str, runs: Runs, topics: Path) -> None:
    with pytest.raises(Exception, match=line):
        runs.config(*on(topics, *SHARDED, wrong))
