"""Finding runs: by folder, pattern and condition; what is left out and why; whether a run is still alive."""

from __future__ import annotations

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up import make_run

from textbed.errors import UserError
from textbed.runs import registry
from textbed.runs.folder import FORMAT, RunFolder

SCRIPT = Path(__file__).parents[2] / "scripts" / "runs.py"


def found(*paths: Path | str) -> registry.Found:
    return registry.find(paths)


def test_each_run_once_by_folder_pattern_and_all_above(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name=name) for name in ("b", "a", "paper/kim")]
    paths = [run.path for run in runs]  # in the order of time, not of names
    assert [run.path for run in found(tmp_path).runs] == paths
    assert [run.path for run in found(*reversed(paths), tmp_path / "runs").runs] == paths
    assert [run.path for run in found(tmp_path / "runs" / "paper").runs] == paths[2:]
    assert [run.path for run in found(f"{tmp_path}/runs/[ab]").runs] == paths[:2]
    (tmp_path / "link").symlink_to(paths[0])
    assert [run.path for run in found(paths[0], tmp_path / "link").runs] == paths[:1]
    first = found(tmp_path).runs[0]
    assert (first.status, first.metrics, first.config["head.modes"]) == (
        "finished",
        {"test/accuracy": 0.5},
        ["mean"],
    )


def test_a_moved_folder_is_the_same_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "here", 0.7)
    before = found(tmp_path / "here").runs[0]
    shutil.move(tmp_path / "here", tmp_path / "there")
    (after,) = found(tmp_path / "there").runs
    assert after.path == tmp_path / "there" / "trial" / run.id
    assert (after.config, after.metrics, after.info) == (before.config, before.metrics, before.info)


def test_what_is_no_whole_run_is_named_in_a_line(tmp_path: Path) -> None:
    good = make_run(tmp_path)
    broken = {
        "config.yaml missing": lambda run: run.config_file.unlink(),
        "run.json and config.yaml missing": lambda run: [file.unlink() for file in run.path.iterdir()],
        "its metrics.json is missing": lambda run: run.metrics_file.unlink(),
        "cannot be read as JSON": lambda run: run.info_file.write_text('{"status": "fin'),
        "metrics.json cannot be read": lambda run: run.metrics_file.write_text("[1]"),
        "cannot be read as YAML": lambda run: run.config_file.write_text("seed: ["),
        "expected keys and their values": lambda run: run.config_file.write_text("- 1\n"),
        "config.yaml has no seed and no name": lambda run: run.config_file.write_text("training: {}\n"),
        f"a newer version (format {FORMAT + 1}": lambda run: run.update(format=FORMAT + 1),
    }
    expected = {}
    for line, spoil in broken.items():
        run = make_run(tmp_path)
        spoil(run)
        expected[str(run.path)] = line
    there = found(tmp_path)
    assert [run.path for run in there.runs] == [good.path]
    assert len(there.left_out) == len(expected)
    for path, part in expected.items():
        (line,) = [line for line in there.left_out if path in line]
        assert part in line
        assert "\n" not in line


def test_a_format_before_they_were_numbered_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, chosen=False)
    info = run.info()
    del info["format"]
    registry.RunFolder(run.path).info_file.write_text(yaml.safe_dump(info))  # which is no JSON
    assert "cannot be read as JSON" in found(tmp_path).left_out[0]
    import json

    run.info_file.write_text(json.dumps(info))
    (read,) = found(tmp_path).runs
    # its options are not on record: what the configuration says of them
    assert [read.choice(group) for group in ("head", "data", "optimizer", "scheduler")] == [
        "Pooling",
        "sst2",
        "Adam",
        None,
    ]


def mistake(*paths: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        found(*paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes(tmp_path: Path) -> None:
    run = make_run(tmp_path, name="quickstart")
    (tmp_path / "empty").mkdir()
    assert "there is no run folder in it" in mistake(run.path, tmp_path / "empty")
    line = mistake(tmp_path / "quikstart")
    assert "there is no such folder. Did you mean 'quickstart'?" in line
    assert "there is no such folder" in mistake(f"{tmp_path}/none*")
    assert "metrics.json is a file" in mistake(run.metrics_file)


# Whether it is alive


def test_killed_is_told_from_running(tmp_path: Path) -> None:
    code = (
        "import sys, time; from textbed.runs.folder import RunFolder;"
        "run = RunFolder.create(sys.argv[1], 'trial'); run.start('name: a\\nseed: 0\\n', [], 0);"
        "print(run.path, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        assert [run.status for run in found(tmp_path).runs] == ["running"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [run.status for run in found(path).runs] == [registry.KILLED]
    # the number of its process may be another's by now: it is the lock that counts
    RunFolder(path).update(pid=os.getpid())
    assert [run.status for run in found(path).runs] == [registry.KILLED]
    # what another machine says of itself cannot be asked after
    RunFolder(path).update(host="elsewhere")
    assert [run.status for run in found(path).runs] == ["running"]


def test_looking_does_not_hinder_a_run_that_begins(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "trial")
    run.finish("interrupted")
    assert not run.is_locked()
    again = RunFolder(run.path)
    again.resume()
    assert run.is_locked()
    again.finish()
    assert not run.is_locked()


def test_without_locks_the_process_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, None, status="running", info={"pid": os.getpid()})
    run.log_file.touch()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert run.is_locked()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.update(pid=ended.pid)
    assert not run.is_locked()
    run.update(pid=None)
    assert not run.is_locked()


# Reading


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nseed: 0\n",
        "a:\n  b: 1\n  c:\n  - x\n  - y: 2\n    z: 3\n  d:\n    e: -0.5\n    f: null\ng: {}\n",
        "text: '! \" #\n  “ ”'\nmore: |\n  name: 1\n\n  b\nlist:\n- 1\n- 2\nempty:\n  a: {}\n",
        "# first\na: 1  # why\n\nb:\n    c: 1\n    d:\n        e: 2\n",
        "a: &it\n  x: 1\nb:\n  <<: *it\n  y: 2\n",
        "--- \na: {x: 1,\n y: 2}\n'on': 3\nb: 007\nc: 1e-5\nd: 1.0e-05\ne: -3.25\nf: '5'\n",
        "a: 1\na: 2\n",
        "",
    ],
)
def test_reading_in_blocks_is_reading_the_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for _ in range(2):  # the second from what was kept
        assert registry.read_config(tmp_path / "config.yaml") == registry.flat(yaml.safe_load(text) or {})


def test_a_key_that_came_later_has_its_default() -> None:
    before = {"seed": 0, "tokenizer.kind": "words", "head._target_": "a"}
    usual = {
        **before, "data.shuffle_words": False, "test": True, "embedding.case": ["exact"], "head.later": None,
        "tokenizer.lowercase": registry.completed(before)["tokenizer.lowercase"],
    }  # fmt: skip
    assert registry.differing([before, usual]) == registry.differing([usual, before]) == []
    other = {**usual, "data.shuffle_words": True, "head.later": 1, "embedding.case": ["lower"]}
    assert registry.differing([before, usual, other]) == [
        "data.shuffle_words", "embedding.case", "head.later",
    ]  # fmt: skip
    assert registry.completed(other).items() >= other.items()


# Choosing


def test_select_and_order(tmp_path: Path) -> None:
    for seed, (head, accuracy) in enumerate([("mean", 0.5), ("gru", 0.75), ("mean", 0.625), ("max", None)]):
        status = "failed" if accuracy is None else "finished"
        make_run(tmp_path, accuracy, head=head, seed=seed, status=status, info={"host": "this"})
    runs = found(tmp_path).runs

    def seeds(*conditions: str) -> list[int]:
        return [run.config["seed"] for run in registry.select(runs, conditions)]

    assert seeds("head=mean") == [0, 2]
    assert seeds("head=m*") == [0, 2, 3]
    assert seeds("head=mean", "seed=2") == [2]
    assert seeds("status=failed") == [3]
    assert seeds("head.modes=[max]") == [3]
    assert seeds("data.limit=null", "embedding.trainable=true", "git.revision=a*") == [0, 1, 2, 3]
    assert seeds("optimizer.lr=0.001", "test/accuracy=0.75") == [1]
    assert seeds("optimizer.lr=1e-3", "seed=2e0") == [2]  # texts to YAML, which wants a dot and a sign
    assert seeds("optimizer.lr=1e-4") == seeds("optimizer.lr=le-3") == []
    assert seeds("embedding.trainable=1") == [0, 1, 2, 3]  # as YAML's and Python's 1 is true
    with pytest.raises(UserError, match=r"haed: no run has .* Did you mean 'head'\?"):
        registry.select(runs, ["haed=mean"])

    assert [run.config["seed"] for run in registry.in_order(runs, "test/accuracy")] == [0, 2, 1, 3]
    assert [run.config["seed"] for run in registry.in_order(runs, "test/accuracy", True)] == [1, 2, 0, 3]
    assert [run.get("head") for run in registry.in_order(runs, "head")] == ["gru", "max", "mean", "mean"]

    out = io.StringIO()
    registry.show(registry.select(runs, ["seed=1"]), ["optimizer.lr"], out)
    header, row = [line.split() for line in out.getvalue().splitlines() if line.strip()][0:3:2]
    assert header == [
        "run", "status", "seed", "data", "embedding", "head", "optimizer.lr", "test/accuracy", "time",
    ]  # fmt: skip
    assert row == [
        "trial/20300101-000001-abcdef", "finished", "1", "sst2", "random", "gru", "0.0010", "0.7500", "–",
    ]  # fmt: skip
    assert "1 run: 1 finished" in out.getvalue()


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runs.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    paths = [make_run(tmp_path / "runs", accuracy).path for accuracy in (0.5, 0.8, 0.6)]
    make_run(tmp_path / "runs").config_file.unlink()
    code, out, err = run(tmp_path, "head=mean", "--sort", "test/accuracy", "--descending", "--paths")
    assert (code, out.split()) == (0, [str(paths[i]) for i in (1, 2, 0)])
    assert err.startswith("left out: ")
    assert err.count("\n") == 1
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("--show", "optimizer.lr")
    assert (code, out.count("abcdef")) == (0, 3)
    head, rule, *rows, _, last = out.splitlines()
    names = "run status seed data embedding head optimizer.lr test/accuracy time"
    assert " ".join(head.split()) == names
    values = "finished 0 sst2 random mean 0.0010 0.8000 –"
    assert " ".join(rows[1].split()) == f"trial/{paths[1].name} {values}"
    assert {len(line) for line in (head, rule, *rows)} == {len(head)}
    assert last == "3 runs: 3 finished"
    code, out, err = run(tmp_path / "rnus")
    assert (code, out) == (1, "")
    assert err.endswith("Did you mean 'runs'?\n")
