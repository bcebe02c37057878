"""Trials that are forked from a process that has imported what they need: as apart as if started plainly."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import STUB, Quiet, calls, choice, plan, rows, slots

from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.trial import Child, environment_of_trials, start_plainly
from textbed.sweeps.warm import SpareStarter, WarmStarter
from textbed.sweeps.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")


@pytest.fixture
def warm() -> Iterator[WarmStarter]:
    with WarmStarter({}, modules=["json", "fractions"]) as starter:
        yield starter


@pytest.fixture
def spare() -> Iterator[SpareStarter]:
    with SpareStarter({}, modules=["json", "fractions"], most=2) as starter:
        yield starter


def code_of(child: Child) -> int:
    code = None
    while code is None:
        time.sleep(0.01)
        code = child.poll()
    return code


PROGRAM = """
import os, sys, json, atexit, threading
atexit.register(lambda: print("goodbye"))
print(json.dumps({{
    "argv": sys.argv, "cwd": os.getcwd(), "file": __file__, "name": __name__,
    "environment": dict(os.environ), "group": os.getpgid(0) == os.getpid(), "stdin": sys.stdin.readable(),
    "main": sys.modules["__main__"].__file__, "path": sys.path[0], "warm": "fractions" in sys.modules,
}}), flush=True)
if len(sys.argv) > 2: sys.exit(sys.argv[2])
sys.left_open = open("left_open.txt", "w")
sys.left_open.write("not yet flushed")
threading.Thread(target=lambda: print("from a thread")).start()
sys.exit(int(sys.argv[1]))
"""


def test_the_process_is_what_it_would_be_by_itself(
    tmp_path: Path, warm: WarmStarter, spare: SpareStarter
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format())
    spare.expect(3)
    said = []
    for place, start in enumerate((start_plainly, warm, spare)):
        log = tmp_path / f"{place}.log"
        log.write_text("$ ...\n")
        child = start(
            [sys.executable, str(script), "7"], str(tmp_path), {"A": "1", "LC_CTYPE": "C.UTF-8"}, log
        )
        assert code_of(child) == 7
        assert (tmp_path / "left_open.txt").read_text() == "not yet flushed"
        (tmp_path / "left_open.txt").unlink()
        said.append(log.read_text().splitlines())
        assert ('"warm": true' in said[-1][1]) is (place > 0)
        said[-1][1] = said[-1][1].replace('"warm": true', '"warm": false')
    assert said[0] == said[1] == said[2]
    assert said[0][-2:] == ["from a thread", "goodbye"]  # it ended in an orderly way
    for start in (warm, spare):
        log = tmp_path / "again.log"
        log.write_text("")
        child = start([sys.executable, str(script), "0", "a mistake"], str(tmp_path), {}, log)
        assert code_of(child) == 1
        text = log.read_text()
        assert '"warm": true' in text
        assert text.splitlines()[-2:] == ["a mistake", "goodbye"]


def test_spares_stand_by_for_as_many_as_are_to_come(tmp_path: Path, spare: SpareStarter) -> None:
    log = tmp_path / "log"
    log.touch()
    spare.expect(1)
    spare.expect(9)
    first, second = spare._spares
    child = spare([sys.executable, "-c", ""], str(tmp_path), {}, log)
    assert child.pid == first.pid
    spare.expect(0)  # none is ended that is there
    assert spare._spares == [second]
    second.kill()
    second.wait()
    script = tmp_path / "program.py"
    script.write_text("import sys; sys.exit(4)")
    assert code_of(spare([sys.executable, str(script)], str(tmp_path), dict(os.environ), log)) == 4  # plainly
    spare.expect(1)
    (third,) = spare._spares
    spare.close()
    assert third.poll() == -signal.SIGKILL


def test_what_was_set_for_the_sweeps_own_process_is_not_meant_for_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of a sweep asks Hydra for full errors: a trial's mistake would be a traceback."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    script = tmp_path / "program.py"
    script.write_text("from textbed import command\nimport sys\nsys.exit(int(command.WANTED))")
    log = tmp_path / "log"
    log.touch()
    with WarmStarter({}, modules=["textbed.command"]) as start:
        assert code_of(start([sys.executable, str(script)], str(tmp_path), environment_of_trials(), log)) == 0


def test_a_sweep_with_a_warm_start(tmp_path: Path, warm: WarmStarter) -> None:
    ways = ["fine", "raise", "kill", "memory", "nan", "mistake"]
    what = plan(tmp_path, choice("do", *ways), choice("seed", 0, 1))
    what = dataclasses.replace(what, program=[sys.executable, str(STUB)])
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    Worker(sweep, slots(), Quiet(), warm).run()
    statuses = ["finished", "failed", "killed", "memory", "nan", "failed"]
    assert [row.status for row in rows(sweep)] == [status for status in statuses for _ in (0, 1)]
    assert rows(sweep)[2].last_lines.splitlines()[-1] == "RuntimeError: no luck"
    assert {one["device"] for one in calls(tmp_path)} == {"0", "1"}
    assert len(calls(tmp_path)) == 12


def test_children_end_with_the_warm_process_and_it_is_started_anew(tmp_path: Path, warm: WarmStarter) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time, os\nopen('begun', 'w').close()\ntime.sleep(60)")
    log = tmp_path / "log"
    log.touch()
    child = warm([sys.executable, str(script)], str(tmp_path), dict(os.environ), log)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert child.poll() is None
    assert warm._forking is not None
    warm._forking.process.kill()
    warm._forking.process.wait()
    assert not warm.is_ready()  # another is started, which knows nothing of the child
    assert code_of(child) == -signal.SIGTERM
    for _ in range(1200):
        try:
            os.kill(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")
    script.write_text("import sys; sys.exit(3)")
    assert code_of(warm([sys.executable, str(script)], str(tmp_path), dict(os.environ), log)) == 3
