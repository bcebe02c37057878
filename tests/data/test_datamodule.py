"""The data module: what it does to a batch on its way. Its splits and batches are held by whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from textbed.data.datamodule import TextDataModule


@pytest.mark.parametrize(("device", "without_waiting"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_a_copy_from_pinned_memory_is_not_waited_for(device: str, without_waiting: bool) -> None:
    class Batch:
        def to(self, *args: Any, **how: Any) -> tuple[Any, ...]:
            return (*args, how)

    where = torch.device(device)
    moved = TextDataModule(None, None, Path()).transfer_batch_to_device(Batch(), where, 0)
    assert moved == (where, {"non_blocking": without_waiting})
