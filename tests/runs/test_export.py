from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from textbed.errors import UserError
from textbed.runs.export import export
from textbed.runs.folder import RunFolder
from textbed.runs.model import load

Trained = Callable[[str], RunFolder]
TEXTS = ["an owl in its nest", "", "rye bread & a sail"]


@pytest.mark.parametrize("name", ["words", "pairs", "multilabel"])
def test_the_folder_gives_the_same_to_the_last_bit(trained: Trained, tmp_path: Path, name: str) -> None:
    run = trained(name)
    export(str(run.path), "folder", tmp_path / "model")
    texts = [(text, "a mast") for text in TEXTS] if name == "pairs" else TEXTS
    ours, theirs = load(run.path), load(tmp_path / "model")
    np.testing.assert_array_equal(theirs.predict_proba(texts), ours.predict_proba(texts))
    np.testing.assert_array_equal(theirs.embed(texts), ours.embed(texts))
    assert (theirs.classes, theirs.design) == (ours.classes, ours.design)
    assert sorted(path.name for path in (tmp_path / "model").rglob("*") if path.is_file()) == [
        "config.yaml",
        "model.safetensors",
        "model.yaml",
        "tokenizer.json",
    ]


def test_it_loads_without_hydra_and_lightning(trained: Trained, tmp_path: Path) -> None:
    export(str(trained("words").path), "folder", tmp_path / "model")
    code = (
        "import json, sys, textbed; model = textbed.load(sys.argv[1]);"
        "print(json.dumps(model.predict_proba(sys.argv[2:], as_list=True)));"
        "print([name for name in ('hydra', 'lightning', 'omegaconf') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), *TEXTS]
    chances, imported = subprocess.check_output(command, text=True).splitlines()
    assert imported == "[]"
    expected = load(trained("words").path).predict_proba(TEXTS)
    np.testing.assert_allclose(json.loads(chances), expected, rtol=0, atol=1e-6)


def test_the_card_tells_what_the_run_knew(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    export(str(run.path), "hub", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    told = yaml.safe_load(header)
    assert told["pipeline_tag"] == "text-classification"
    (result,) = told["model-index"][0]["results"]
    figures = {one["type"]: one["value"] for one in result["metrics"]}
    kept = run.read_metrics()
    assert figures["accuracy"] == round(kept["test/accuracy"], 4)
    assert f"| f1_macro | {kept['test/f1_macro']:.4f} |" in body
    assert run.info()["data"] in body
    assert "Training 0; validation_seed 0, test_seed 0" in body
    assert "one of 3 classes: birds, boats, bread" in body
    block = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block)["embedding"]["dim"] == 8


def test_a_folder_for_everyone_whole_or_not_at_all(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("words")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # an empty one, of whatever name
    export(str(run.path), "hub", Path())
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path().iterdir() if path.is_file()}
    assert sorted(modes) == ["README.md", "config.yaml", "model.safetensors", "model.yaml"]
    assert len(set(modes.values())) == 1, modes

    def broken(*_: object) -> str:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("textbed.runs.export.model_card", broken)
    with pytest.raises(UserError, match=r"no space left while writing .*new .*another disk \(DIR\)"):
        export(str(run.path), "hub", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    with pytest.raises(UserError, match=r"cannot write /proc/new .*\(DIR\)"):
        export(str(run.path), "folder", Path("/proc/new"))


def test_what_cannot_be_exported(trained: Trained, tmp_path: Path) -> None:
    run = trained("words")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="full is there already"):
        export(str(run.path), "folder", tmp_path / "full")
    with pytest.raises(UserError, match="--to onyx: expected one of folder, hub"):
        export(str(run.path), "onyx", tmp_path / "new")
    export(str(run.path), "folder", tmp_path / "model")
    broken = Path(shutil.copytree(tmp_path / "model", tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load(broken)
    (broken / "model.yaml").unlink()
    with pytest.raises(UserError, match=r"no model\.yaml in it"):
        load(broken)
