"""The benchmarks run: each file of the folder, with sizes that take seconds, down to its JSON line.

Times are never looked at. Peers are not installed here: each says so in a line, and our side is measured.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import ROOT

FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))
NAMES = importlib.import_module("measuring").names()
sys.path.remove(str(FOLDER))
SLOW = {"imdb", "start", "sweeps"}  # they start processes that import everything anew
KEYS = {"benchmark", "settings", "cases", "ratios", "aims", "missing", "machine", "versions"}


def run(name: str, arguments: list[str], folder: Path) -> None:
    """In a process of its own, which has imported what this one has.

    On one thread: of the pools of threads that torch and tokenizers made here, a fork has but the record, and
    waits for them without end.
    """
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    for number, stream in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.path.insert(0, str(FOLDER))
    sys.argv = [str(FOLDER / f"{name}.py"), *arguments]
    code: Any = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def result(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the JSON line of a tiny run says."""
    import torch._dynamo  # noqa: F401  by torch's first optimizer: here once, not in each process

    process = multiprocessing.get_context("fork").Process(
        target=run, args=(name, ["--tiny", "--threads", "1", *arguments], folder)
    )
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "err.txt").read_text()
    return json.loads((folder / "out.txt").read_text().rstrip("\n").rpartition("\n")[2])


def check(name: str, found: dict[str, Any]) -> None:
    assert found.keys() == KEYS
    assert found["benchmark"] == name
    assert found["machine"].keys() == {"cores", "processor", "load"}
    assert {"python", "textbed", "torch"} <= found["versions"].keys()
    sides = [figures for case in found["cases"].values() for figures in case.values()]
    assert sides
    for figures in sides:
        assert all(isinstance(value, int | float) and value >= 0 for value in figures.values())
        assert "seconds" in figures
    # what a side took of memory stands beside its time; jobs of a sweep sleep
    assert all("peak_mb" in figures for figures in sides) or name == "sweeps"
    for aim in found["aims"].values():
        assert aim.keys() == {"aim", "is", "met"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES]
)
def test_runs(name: str, tmp_path: Path, offline: None) -> None:
    check(name, result(name, tmp_path))


def test_each_is_documented() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("measuring")


def test_a_ratio_is_the_median_of_those_within_a_repeat(
    measuring: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = measuring.read(measuring.options("A benchmark."), {}, ["--repeats", "3"])
    results = measuring.Results("made up", given)
    # the machine was three times as slow in the second repeat
    for ours, theirs, mb in ((1.0, 2.0, 10), (3.0, 9.0, 30), (1.0, 2.5, 20)):
        results.add("case", "textbed", seconds=ours, peak_mb=mb)
        results.add("case", "peer", seconds=theirs, peak_mb=2 * mb)
    results.leave_out("another", "not installed")
    results.ratio("peer / textbed", ("case", "peer"), ("case", "textbed"), ">= 2.6")
    results.ratio("textbed / peer", ("case", "textbed"), ("case", "peer"), "<= 0.4")
    results.ratio("another / textbed", ("case", "another"), ("case", "textbed"), ">= 1")
    results.aim("seconds", results.median("case", "textbed"), "< 1")
    results.show()
    found = json.loads(capsys.readouterr().out.rstrip("\n").rpartition("\n")[2])
    assert found["ratios"] == {"peer / textbed": 2.5, "textbed / peer": 0.4}
    assert found["aims"] == {
        "peer / textbed": {"aim": ">= 2.6", "is": 2.5, "met": False},
        "textbed / peer": {"aim": "<= 0.4", "is": 0.4, "met": True},
        "seconds": {"aim": "< 1", "is": 1.0, "met": False},
    }
    assert found["cases"]["case"]["textbed"] == {"seconds": 1.0, "peak_mb": 30}  # of memory the largest
    assert found["missing"] == {"another": "not installed"}


def test_what_a_command_took(measuring: Any) -> None:
    code = "held = bytearray(200_000_000); sum(range(3_000_000)); print('line'); print('last')"
    done = measuring.command([sys.executable, "-S", "-c", code])
    assert done.out == "line\nlast"
    assert 200 < done.peak_mb < 300  # and not what this process holds
    assert 0 < done.seconds("cpu") == done.cpu < done.wall + 1
    with pytest.raises(subprocess.CalledProcessError) as failed:
        measuring.command([sys.executable, "-S", "-c", "import sys; sys.exit('no such thing')"])
    assert failed.value.returncode == 1
    assert failed.value.stderr.strip() == "no such thing"


def test_a_peer_that_is_not_installed_is_missing(measuring: Any) -> None:
    given = measuring.read(measuring.options("A benchmark."), {}, [])
    if importlib.util.find_spec("fasttext"):
        pytest.skip("fastText is installed")
    with pytest.raises(measuring.Missing, match="No module named 'fasttext'; give --peer-python"):
        measuring.peer(given, "read_fasttext", "no file")


def test_memory_that_a_side_took_is_its_own(measuring: Any) -> None:
    grown = measuring.apart(lambda size: len(bytearray(size)), 100_000_000)
    assert grown[0] == 100_000_000
    assert 95 < grown[1]["grown_mb"] < 130
    assert grown[1]["peak_mb"] > grown[1]["grown_mb"]


def test_made_up_documents_are_like_imdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    made = importlib.import_module("documents").Maker()
    texts, labels = made.texts(2000)
    again, _ = made.texts(2000)
    assert texts.equals(again)
    assert not texts.equals(made.texts(2000, seed=1)[0])
    words = [word.rstrip(",.") for text in texts.to_pylist() for word in text.split()]
    counts = collections.Counter(words)
    # of IMDB's first 2,000 documents, shuffled: 250 words, 24,900 different ones; the first word has 4.8 %
    assert 240 < len(words) / 2000 < 260
    assert 20_000 < len(counts) < 30_000
    assert 0.043 < counts.most_common(1)[0][1] / len(words) < 0.055
    assert 900 < labels.sum() < 1100
    telling = {str(made.names[200 + place]) for place in range(40)}
    shares = [
        sum(word.rstrip(",.") in telling for word in str(text).split()) / len(str(text).split())
        for text in texts
    ]
    assert np.mean(np.array(shares)[labels == 0]) > 0.09 > 0.05 > np.mean(np.array(shares)[labels == 1])
