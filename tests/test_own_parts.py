"""Scripts and parts of a model that the user wrote: they are imported when asked for, never unasked."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from running import ROOT, Runs, on

from textbed.runs.folder import RunFolder

OWN = '''
from pathlib import Path

from torch import Tensor

from textbed.heads.pooling import Pooling
from textbed.padded import Documents, read

Path(__file__).with_suffix(".imported").touch()


class Twice(Pooling):
    """The mean, doubled."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, ["mean"])

    def forward(self, batch, embedding):
        return 2 * super().forward(batch, embedding)


@read.register
def _(head: Twice, documents: Documents) -> Tensor:
    return 2 * documents.pool("mean")
'''


@pytest.fixture
def own(topics: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with a head of the current folder's, in a process that has not imported it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_heads.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    given = ["head=weighted", "head._target_=own_heads.Twice", "report.embedding=false"]
    run = runs(*on(topics, *given), "trainer.max_epochs=1")
    sys.modules.pop("own_heads")
    sys.path.remove(str(tmp_path))
    Path("own_heads.imported").unlink()
    return run


def script(
    name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """What a script ends with and says."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_scripts_take_a_head_of_ones_own(
    own: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        return script(name, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    path = str(own.path)
    capsys.readouterr()
    code, _, said = call("predict.py", path, "an owl")
    assert code == 1
    assert said.count("\n") == 1
    assert "own_heads.Twice: the model has a part of this class" in said
    assert "--import own_heads for a script" in said
    assert not Path("own_heads.imported").exists()
    code, _, said = call("predict.py", path, "an owl", "--import", "own_head")
    assert (code, "--import own_head: there is no such module" in said) == (1, True)

    code, out, _ = call("predict.py", path, "an owl", "--import", "own_heads")
    assert (code, out.split()[0] in ("birds", "boats", "bread")) == (0, True)
    assert Path("own_heads.imported").exists()
    assert sys.path[-1] == str(Path.cwd())
    code, _, _ = call("evaluate.py", path, "--import", "own_heads")
    (file,) = own.evaluations.iterdir()
    accuracy = own.read_metrics()["test/accuracy"]
    assert (code, json.loads(file.read_text())["figures"]["test/accuracy"]) == (0, accuracy)
    code, out, _ = call("export.py", path, "--to", "torch.export", "graph", "--import", "own_heads")
    assert (code, Path("graph/model.pt2").is_file()) == (0, True)
    assert "on all 30 test documents of the run" in out
