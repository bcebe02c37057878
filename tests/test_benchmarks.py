"""The benchmarks run: each file of the folder, with sizes that take seconds, down to its JSON line.

Times are never looked at. Peers are not installed here: those that train and predict have stand-ins in
tests/peers, so that what calls them runs; the others say so in a line, and our side is measured.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import multiprocessing
import os
import platform
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterable
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
PEERS = {
    "imdb": ["fasttext"],
    "prediction": ["fasttext", "model2vec"],
    "small_sets": ["model2vec"],
    "tokenize_words": ["fasttext"],
}
KEYS = {"benchmark", "settings", "cases", "ratios", "aims", "missing", "machine", "versions", "peers"}


def run(name: str, arguments: list[str], folder: Path) -> None:
    """In a process of its own, which has imported what this one has.

    On one thread: of the pools of threads that torch and tokenizers made here, a fork has but the record, and
    waits for them without end.
    """
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
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
    machine = found["machine"]
    assert machine.keys() == {"cores", "cores_allowed", "memory_gb", "processor", "load"}
    assert 1 <= machine["cores_allowed"] <= machine["cores"]
    assert {"python", "textbed", "torch"} <= found["versions"].keys()
    sides = [figures for case in found["cases"].values() for figures in case.values()]
    assert sides
    for figures in sides:
        assert all(isinstance(value, int | float) and value >= 0 for value in figures.values())
        assert "seconds" in figures
    # what a side took of memory stands beside its time; jobs of a sweep sleep
    assert all("peak_mb" in figures for figures in sides) or name == "sweeps"
    assert found["aims"] == {}  # what a tiny run measures has none
    assert found["settings"]["threads"] == 1


def params(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.mark.parametrize("name", params(name for name in NAMES if name not in PEERS))
def test_runs(name: str, tmp_path: Path, offline: None) -> None:
    check(name, result(name, tmp_path))


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules by the names of the peers, for the interpreters that a test starts, and what their installer
    would note of them.
    """
    for package in ("fasttext_wheel", "model2vec"):
        noted = tmp_path / "installed" / f"{package}-0.0.1.dist-info" / "METADATA"
        noted.parent.mkdir(parents=True)
        noted.write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.0.1\n")
    paths = [ROOT / "tests" / "peers", tmp_path / "installed", os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(path) for path in paths if path))


@pytest.fixture
def static_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with a row for each of the 2,000 commonest made-up words, as model2vec lays it out."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    monkeypatch.syspath_prepend(str(FOLDER))
    words = ["[UNK]", *importlib.import_module("documents").names(2000).to_pylist()]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "static"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = np.random.default_rng(0).normal(size=(len(words), 4)).astype(np.float32)
    save_file({"embeddings": rows}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", params(PEERS))
def test_runs_beside_its_peers(
    name: str, tmp_path: Path, static_table: Path, stand_ins: None, offline: None
) -> None:
    found = result(name, tmp_path, "--peer-python", sys.executable, "--vectors", str(static_table))
    check(name, found)
    assert found["missing"] == {}
    assert found["peers"]["python"] == platform.python_version()
    for peer in PEERS[name]:
        assert found["peers"]["fasttext-wheel" if peer == "fasttext" else peer] == "0.0.1"
        for case, figures in found["cases"].items():
            assert figures.keys() > {peer}, case
            if "accuracy" in figures[peer]:
                # a tenth of the words tell the class; of two, chance has half
                assert 80 < figures[peer]["accuracy"] <= 100
        assert any(peer in ratio for ratio in found["ratios"])
    if name == "tokenize_words":
        # ours has rows for <pad> and <unk>, fastText's a word for the end of a line
        sides = found["cases"]["imdb"]
        assert sides["fasttext"]["vocabulary"] - 1 == sides["textbed"]["vocabulary"] - 2
    else:
        assert any("accuracy" in side[peer] for side in found["cases"].values() for peer in PEERS[name])


def summarised(name: str, arguments: list[str], cases: dict[str, Any], patch: pytest.MonkeyPatch) -> Any:
    """The results of a benchmark whose sides took what ``cases`` say."""
    patch.syspath_prepend(str(FOLDER))
    measuring, benchmark = (importlib.import_module(module) for module in ("measuring", name))
    parser = measuring.options("A benchmark.")
    for option in ("rows", "documents"):
        parser.add_argument(f"--{option}", type=int, nargs="+")
    parser.add_argument("--optimizers", nargs="+")
    parser.add_argument("--words", type=int, default=0)
    given = measuring.read(parser, {}, arguments)
    results = measuring.Results(name, given)
    for case, sides in cases.items():
        for side, figures in sides.items():
            results.add(case, side, **figures)
    benchmark.summarise(given, results)
    return results


def test_a_table_is_compared_with_its_like(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        "adam torch dense": 12, "adam ours dense": 6, "adam torch dense fused": 8, "adam ours dense fused": 2,
        "adam torch sparse": 5, "adam ours lazy": 1, "adam ours lazy fused": 0.5,
    }  # fmt: skip
    small = {side: {"seconds": took, "rows_a_step": 10} for side, took in seconds.items()}
    large = {"adam ours lazy": {"seconds": 6, "rows_a_step": 30}}
    arguments = ["--rows", "1000", "2000", "--optimizers", "adam"]
    results = summarised("bag", arguments, {"1,000 rows": small, "2,000 rows": large}, monkeypatch)
    lazy = "adam ours lazy: 2,000 rows / 1,000 rows"
    assert results.ratios == {
        "1,000 rows: adam torch dense / adam ours dense": 2,
        "1,000 rows: adam torch dense fused / adam ours dense fused": 4,
        "1,000 rows: adam torch sparse / adam ours lazy": 5,
        "1,000 rows: adam torch dense fused / adam ours lazy fused": 16,
        lazy: 6,
        "rows a step: 2,000 rows / 1,000 rows": 3,
        f"growth of {lazy}": 2,
    }
    assert {name: (aim["aim"], aim["met"]) for name, aim in results.aims.items()} == {
        "1,000 rows: adam torch dense / adam ours dense": (">= 3", False),
        "1,000 rows: adam torch dense fused / adam ours dense fused": (">= 3", True),
        "1,000 rows: adam torch sparse / adam ours lazy": (">= 3", True),
        f"growth of {lazy}": ("<= 1.5", False),
    }


def test_memory_is_to_grow_by_few_bytes_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {1_000: (100, 9.0), 1_000_000: (500, 10.0), 3_000_000: (700, 10.5)}
    cases = {
        f"{count:,}": {"textbed": {"anonymous_mb": held, "seconds_a_million": took}}
        for count, (held, took) in counts.items()
    }
    arguments = ["--documents", *map(str, counts), "--words", "20"]
    results = summarised("scale", arguments, cases, monkeypatch)
    assert results.aims == {
        "seconds a document: 3,000,000 / 1,000,000": {"aim": "<= 1.1", "is": 1.05, "met": True},
        "bytes a document: 1,000,000 to 3,000,000": {"aim": "<= 64", "is": 100, "met": False},
    }
    assert results.ratios["bytes a document: 1,000 to 1,000,000"] == 400.4
    # a thousand documents wait whole: what they take says nothing of the next
    few = summarised(
        "scale", ["--documents", "1000", "1000000", "--words", "20"], dict([*cases.items()][:2]), monkeypatch
    )
    assert [*few.aims] == ["seconds a document: 1,000,000 / 1,000"]


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
