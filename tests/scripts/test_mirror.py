from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from textbed.data import hub
from textbed.data.hub import mirror
from textbed.data.sources import load
from textbed.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mirror.py"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder in the shape of a hub repository with class names and two splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "downloads")
    names = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    folder = tmp_path / "owner" / "films"
    (folder / "data").mkdir(parents=True)
    for split, labels in {"train": [1, 0, 1], "test": [0, 1]}.items():
        rows = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, names).to_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return folder


def test_a_mirror_of_a_repository_gives_the_same_corpus(repository, tmp_path):
    written = mirror(str(repository), tmp_path / "mirror")
    assert written == {
        tmp_path / "mirror" / "films" / "train.parquet": 3,
        tmp_path / "mirror" / "films" / "test.parquet": 2,
    }
    assert sorted(path.name for path in (tmp_path / "mirror" / "films").iterdir()) == [
        "test.parquet",
        "train.parquet",
    ]
    settings = {"source": "hub", "name": "films", "mirror": str(tmp_path / "mirror")}
    corpus = load(settings, tmp_path / "cache")
    assert corpus.classes == ["neg", "pos"]
    assert corpus.splits["train"].labels.tolist() == [1, 0, 1]
    assert corpus.splits["test"].text(1) == "test 1"
    # The repository itself will do as a mirror, too, under owner/name.
    whole = load({"source": "hub", "name": "owner/films", "mirror": str(tmp_path)}, tmp_path / "cache")
    assert whole.splits["train"].labels.tolist() == [1, 0, 1]


def test_the_script_mirrors_and_says_what_it_wrote(repository, tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(sys, "argv", ["mirror.py", str(repository), "--to", str(tmp_path / "mirror")])
    assert script["main"]() == 0
    assert f"{tmp_path}/mirror/films/train.parquet: 3 rows" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mirror.py", "no/such", "--to", str(tmp_path / "mirror")])
    assert script["main"]() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: data.name: the hub's 'no/such' cannot be fetched")


def test_the_script_explains_itself_without_loading_anything_heavy():
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python scripts/mirror.py stanfordnlp/imdb" in done.stdout
    assert " torch" not in done.stderr
    assert " datasets" not in done.stderr


def test_a_place_that_cannot_be_written_is_named(repository, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*train.parquet .*--to"):
        mirror(str(repository), tmp_path / "file")
