"""What a start leaves out or does beside, and that a run cannot tell."""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, assert_same_run, documents, figures, write_csv

from textbed.imports import PLAIN
from textbed.runs.folder import RunFolder

LEFT_OUT = [
    "sympy",
    "matplotlib",
    "scipy.signal",
    "scipy.stats",
    "torch.distributed.fsdp",
    "datasets",
    "wandb",
]


def process(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python on ``words``, in a process that has imported nothing."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def python(*words: str, **given: Any) -> Any:
    """What such a process says in its last line."""
    done = process(*words, **given)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rstrip("\n").rpartition("\n")[2])


def train(left_out: str, *overrides: str) -> None:
    """``python train.py``, and then which modules there are: in a process of its own."""
    sys.argv = ["train.py", *overrides]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert not ended.value.code
    compiler = type(sys.modules.get("torch._dynamo")).__name__
    there = [name for name in json.loads(left_out) if name in sys.modules]
    print(json.dumps([there, compiler, gc.get_freeze_count() > 100_000]))


@pytest.mark.slow
def test_a_quick_start_gives_the_same_run(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "topics.csv", documents(80))
    settings = [
        "data=csv", f"data.path='{path}'", "data.test=0.2", "trainer=cpu", "trainer.max_epochs=2",
        "threads=1", "logger=none", "report.pictures=false", "report.embedding=false", "embedding=ngrams",
        "embedding.buckets=100",
    ]  # fmt: skip
    code = "import sys; from test_imports import train; train(*sys.argv[1:])"
    runs = []
    for name, environment in (("quick", {}), ("plain", {PLAIN: "1"})):
        folders = [f"paths.runs='{tmp_path / name}'", f"paths.cache='{tmp_path / f'{name}_cache'}'"]
        there, compiler, frozen = python("-c", code, json.dumps(LEFT_OUT), *settings, *folders, **environment)
        assert frozen == (name == "quick")
        assert there == ([] if name == "quick" else LEFT_OUT[:-2])
        assert compiler == ("_StandIn" if name == "quick" else "module")
        tokenized = [*(tmp_path / f"{name}_cache" / "ahead").glob("*")]
        assert len(tokenized) == (name == "quick")  # by the copy of the process alone
        runs.append(RunFolder.open(next((tmp_path / name).glob("*/*"))))
    assert_same_run(*runs)
    assert figures(runs[0])["steps"] > 0
    assert not (runs[0].path / "pictures").exists()


CODE = """
import gc, json, sys
import torch
from textbed import imports
found = []
settings = {"compile": False, "embedding": {"_target_": "textbed.embedding.ngrams.NGrams"},
            "head": {"_target_": "no.such.Module"}}
with imports.quickly(settings):
    found.append(gc.isenabled())
    import textbed.training
found += [gc.isenabled(), gc.get_freeze_count() > 100_000]
from lightning.fabric.wrappers import OptimizedModule
from torchmetrics.classification import MulticlassAccuracy
linear = torch.nn.Linear(2, 2)
found.append(isinstance(linear, OptimizedModule))

metric = MulticlassAccuracy(2)
metric.update(torch.tensor([1, 0]), torch.tensor([1, 0]))
found += ["matplotlib" in sys.modules, type(metric.plot()[0]).__name__]

optimizer = torch.optim.Adam(linear.parameters())
optimizer.zero_grad()
seen = []
function = torch.compiler.disable(lambda: seen.append(torch.compiler.is_compiling()))
function()
found.append(type(sys.modules["torch._dynamo"]).__name__)
compiled = torch.compile(linear, backend="eager")
compiled(torch.ones(1, 2))
found += [type(sys.modules["torch._dynamo"]).__name__, isinstance(compiled, OptimizedModule)]
torch.compile(lambda: function(), backend="eager")()
optimizer.step()
found.append(seen)

import torch._dynamo.config
import scipy.signal
found.append(len(scipy.signal.convolve([1, 2], [3, 4])))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_was_left_out_is_there_when_it_is_asked_for() -> None:
    assert python("-c", CODE) == [
        False, True, True, False, False, "Figure", "_StandIn", "module", True, [False, False], 3,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_mistake_that_the_copy_meets_is_reported_by_the_run(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "topics.csv", documents(20))
    folders = [f"paths.runs='{tmp_path / 'runs'}'", f"paths.cache='{tmp_path / 'cache'}'"]
    words = [str(ROOT / "train.py"), "data=csv", f"data.path='{path}'", "data.label=topic", *folders]
    done = process(*words, **{PLAIN: "0"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.label: no column 'topic'")
    assert not (tmp_path / "cache" / "ahead").exists()


COMPILED = """
import gc, json, sys
from textbed import imports
with imports.quickly({"compile": True}):
    import lightning.fabric
compiler = type(sys.modules["torch._dynamo"]).__name__
print(json.dumps([compiler, gc.isenabled(), gc.get_freeze_count() > 100_000]))
"""


@pytest.mark.slow
def test_a_compiled_run_imports_the_compiler_without_collecting_garbage() -> None:
    assert python("-c", COMPILED) == ["module", True, True]


COMPOSING = """
import sys, json, hydra
from pathlib import Path
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from textbed import command

load, loads = ConfigLoaderImpl._load_configuration_impl, []
ConfigLoaderImpl._load_configuration_impl = lambda *given, **named: loads.append(1) or load(*given, **named)

@hydra.main(version_base="1.3", config_path=None, config_name="conf")
def main(cfg):
    hydra_config = OmegaConf.to_container(HydraConfig.get(), enum_to_str=True)
    print(json.dumps([len(loads), OmegaConf.to_container(cfg), hydra_config]))

command.run(main, Path("."))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "quick", "plain"), [(["x=3"], 1, 2), (["hydra.mode=MULTIRUN", "x=1,2"], 7, 6)]
)
def test_a_configuration_is_composed_once(tmp_path: Path, given: list[str], quick: int, plain: int) -> None:
    (tmp_path / "conf.yaml").write_text(
        "x: 1\nhydra: {run: {dir: .}, output_subdir: null, sweep: {dir: .}}\n"
    )
    (tmp_path / "main.py").write_text(COMPOSING)
    said = []
    for how, times in (("0", quick), ("1", plain)):
        words = ["main.py", f"--config-dir={tmp_path}", *given]
        loads, cfg, hydra = python(*words, cwd=tmp_path, **{PLAIN: how})
        assert loads == times
        said.append((cfg, hydra))
    assert said[0] == said[1]
