"""Our own kernels beside those of PyTorch and Arrow: the same run, but for float rounding."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Runs, figures, on, predictions, record, weights

from textbed import kernels
from textbed.data.words import ShortSplitter
from textbed.embedding import bag
from textbed.heads import recurrent
from textbed.runs.folder import RunFolder
from textbed.runs.model import load

CASES = {
    "a mean": ["head=mean"],
    "a mean, lazy": ["head=mean", "embedding.gradient=lazy", "trainer.gradient_clip_val=0.05"],
    "a maximum, lazy": ["head=max", "embedding.gradient=lazy"],
    "an LSTM": ["head=bilstm", "head.hidden=6", "optimizer.lr=0.02"],
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part was called: ours, and what stands in for it."""
    counts: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        usual = getattr(place, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return usual(*args, **kwargs)

        monkeypatch.setattr(place, name, counted)

    count(bag, "_gradient")
    count(bag, "_max_backward")
    count(bag, "_turned")
    count(recurrent, "scan")
    count(recurrent, "_by_library")
    count(torch.Tensor, "index_copy_")
    count(ShortSplitter, "__call__")
    return counts


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to have the environment say so; what reads it is read again, as in a new process."""

    def set_plain() -> None:
        monkeypatch.setenv(kernels.PLAIN, "1")
        importlib.reload(kernels)

    yield set_plain
    monkeypatch.delenv(kernels.PLAIN, raising=False)
    importlib.reload(kernels)


def told(run: RunFolder) -> list[list[float]]:
    """What a user's first texts get, with the run's model."""
    return load(run.path).predict_proba(["the owl left its nest", "flour, yeast"]).tolist()


@pytest.mark.parametrize("case", CASES)
def test_a_run_without_our_kernels_is_the_same(
    case: str, runs: Runs, topics: Path, calls: Counter[str], plainly: Any
) -> None:
    """In double precision, where sums in another order differ by 1e-16 of what was added up. Some forty steps
    make at most a few powers of ten more of it; a wrong gradient is far from 1e-9."""
    given = on(topics, "data.test=0.2", "trainer.precision=64-true", "report.embedding=false", *CASES[case])
    ours = runs(*given, "name=ours")
    said = told(ours)
    lazy, lstm = "lazy" in case, "LSTM" in case
    assert calls["__call__"] == 2
    assert calls["_gradient"] > 10 or "maximum" in case
    assert (calls["_max_backward"] > 10) == ("maximum" in case)
    assert (calls["scan"] > 10) == lstm
    assert not calls["index_copy_"]

    calls.clear()
    plainly()
    plain = runs(*given, "name=plain")
    said_plainly = told(plain)
    kept = {"_max_backward", "_turned"} if "maximum" in case else set()  # PyTorch has no sparse one
    assert {name for name, count in calls.items() if count} - kept <= {"_by_library", "index_copy_"}
    assert (calls["_by_library"] > 10) == lstm
    assert (calls["index_copy_"] > 10) == lazy

    for which in ("best", "last"):
        torch.testing.assert_close(weights(plain, which), weights(ours, which), rtol=1e-9, atol=1e-9)
    for mine, theirs in zip([figures(plain), *record(plain)], [figures(ours), *record(ours)], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert predictions(plain)["predicted"] == predictions(ours)["predicted"]
    torch.testing.assert_close(torch.tensor(said_plainly), torch.tensor(said), rtol=1e-6, atol=1e-7)


def test_another_value_changes_nothing(monkeypatch: pytest.MonkeyPatch, plainly: Any) -> None:
    assert not kernels.plain
    for value, plain in (("0", False), ("", False), ("1", True)):
        monkeypatch.setenv(kernels.PLAIN, value)
        assert importlib.reload(kernels).plain is plain
