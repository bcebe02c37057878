"""What becomes of trials: run once each, on all devices, whatever happens to them or to who runs them."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from running import ROOT
from sweeping import Quiet, calls, choice, plan, rows, run, slots

from textbed.errors import UserError
from textbed.runs import registry
from textbed.sweeps.folder import Presence, SweepFolder
from textbed.sweeps.launch import begin
from textbed.sweeps.trial import Child, Starter, Trial, start_plainly
from textbed.sweeps.worker import Worker, queues

_AT_THE_END = {"refit", "comparison.md", "pictures"}
"""What only the command leaves, not a worker."""


def test_a_grid_is_run_in_order_on_all_devices_each_point_once(tmp_path: Path) -> None:
    sweep, _ = run(plan(tmp_path, choice("head", "a", "b"), choice("seed", 0, 1, 2)), tmp_path)
    found = rows(sweep)
    assert [row.name for row in found] == [f"head={head} seed={seed}" for head in "ab" for seed in range(3)]
    assert [row.status for row in found] == ["finished"] * 6
    assert [row.values for row in found] == [(pytest.approx(1 + seed / 1000),) for seed in (0, 1, 2)] * 2
    began = calls(tmp_path)
    assert sorted(" ".join(one["given"][1:]) for one in began) == sorted(row.name for row in found)
    assert {one["device"] for one in began} == {"0", "1"}  # pinned, and both used
    # by its links the sweep's folder holds its runs
    runs = registry.find([sweep.path]).runs
    assert [run.path.parent for run in runs] == [tmp_path / "runs" / "stub"] * 6
    assert {(run.config["head"], run.config["seed"]) for run in runs} == {
        (head, seed) for head in "ab" for seed in range(3)
    }
    assert list((sweep.path / "workers").iterdir()) == []
    # and holds what the page shows
    page = (ROOT / "docs" / "sweeps.md").read_text()
    tree = re.search(r"^runs/sweeps/\S+/\n((?:  .*\n)+)", page, re.MULTILINE)
    assert tree is not None
    shown = {line.split()[0].replace("0007", "0005").rstrip("/") for line in tree[1].splitlines()}
    assert shown - _AT_THE_END <= {str(path.relative_to(sweep.path)) for path in sweep.path.rglob("*")}


def test_a_trials_command_is_on_record_and_can_be_given_again(tmp_path: Path) -> None:
    sweep, _ = run(plan(tmp_path, choice("x", 0.3), fixed=("name='a b'",)), tmp_path)
    line = sweep.log("trials", 0).read_text().splitlines()[0]
    assert line.startswith("$ CUDA_VISIBLE_DEVICES=0 ")
    (trial,) = next(queues(sweep)).study.trials
    assert line == f"$ {trial.user_attrs['command']}"
    environment = {**os.environ, "TEXTBED_RUN_LINK": str(tmp_path / "link")}
    subprocess.run(line.removeprefix("$ "), shell=True, check=True, cwd=tmp_path, env=environment)
    first, second = (one["given"] for one in calls(tmp_path))
    assert first == second == [f"paths.runs={tmp_path}/runs", "name='a b'", "x=0.3"]


def test_a_failure_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    ways = ["raise", "kill", "nan", "memory", "mistake", "nothing", "fine"]
    sweep, heard = run(plan(tmp_path, choice("do", *ways)), tmp_path)
    found = {row.point["do"]: row for row in rows(sweep)}
    assert {way: row.status for way, row in found.items()} == {
        "raise": "failed", "kill": "killed", "nan": "nan", "memory": "memory", "mistake": "failed",
        "nothing": "finished", "fine": "finished",
    }  # fmt: skip
    assert found["raise"].error == "RuntimeError: no luck"
    assert found["raise"].last_lines.splitlines()[-1] == "RuntimeError: no luck"
    assert found["kill"].error == "killed by SIGKILL"
    assert found["mistake"].error == "x=: expected a number."
    assert found["nothing"].error == "the run has no val/accuracy"
    assert (found["nothing"].values, found["fine"].values) == ((), (1.0,))
    assert Counter(line.split()[-1] for line in heard.lines)["begins"] == len(ways)


def test_a_trial_that_the_system_kills_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textbed.sweeps.trial.killed_for_memory", itertools.count().__next__)
    sweep, _ = run(plan(tmp_path, choice("do", "kill", "fine")), tmp_path, 1)
    killed, fine = rows(sweep)
    assert (killed.status, killed.error, fine.status) == ("memory", "killed by SIGKILL", "finished")


def test_a_trial_that_hangs_is_ended_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textbed.sweeps.trial.GRACE_SECONDS", 0.2)
    monkeypatch.setattr("textbed.sweeps.trial._WATCH_SECONDS", 0.05)
    monkeypatch.setattr("textbed.sweeps.worker._LOOK_SECONDS", 0.05)

    def seconds(trial: Trial) -> float:
        return 121.0 if "do=hang" in trial.words and (trial.link / "metrics.jsonl").exists() else 1.0

    monkeypatch.setattr(Trial, "seconds", property(seconds))
    sweep, _ = run(plan(tmp_path, choice("do", "hang", "fine"), trial_minutes=2), tmp_path, 1)
    hung, fine = rows(sweep)
    assert (hung.status, fine.status) == ("timeout", "finished")
    assert hung.error == "not done after 2 minutes"


def test_what_failed_is_tried_again_as_often_as_told_and_every_failure_is_kept(tmp_path: Path) -> None:
    sweep, _ = run(plan(tmp_path, choice("do", "once", "mistake"), retries=2), tmp_path, 1)
    once, mistake = rows(sweep)
    assert (once.status, once.start["attempt"], len(once.failures)) == ("finished", 2, 1)
    assert (mistake.status, mistake.start["attempt"], len(mistake.failures)) == ("failed", 3, 2)
    given = [one["given"] for one in calls(tmp_path)]
    assert len(given) == 5
    assert given[1][0] == f"resume={sweep.link('trials', 0).resolve()}"  # from where it was
    assert all(one[1] == "do=mistake" for one in given[2:])  # which left no folder


def test_a_stop_is_no_failure(tmp_path: Path) -> None:
    """A trial that was begun twice since the sweep was stopped may fail as often as any other."""
    what = plan(tmp_path, choice("do", "mistake"), retries=1)
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    (queue,) = queues(sweep)
    with Presence(sweep) as worker:
        for _ in range(2):
            job = queue.claim(worker, "gpu 0")
            assert job is not None
            queue.give_back(job)
    sweep, heard = run(what, tmp_path, 1)
    assert [line for line in heard.lines if "begins" not in line] == ["0 failed again", "0 failed"]
    (row,) = rows(sweep)
    assert [one["attempt"] for one in row.failures] == [3]
    assert row.start["attempt"] == 4


def test_a_sweep_that_is_over_runs_nothing_again(tmp_path: Path) -> None:
    what = plan(tmp_path, choice("do", "fine", "raise"), choice("seed", 0, 1))
    run(what, tmp_path)
    before = calls(tmp_path)
    sweep, heard = run(what, tmp_path)
    assert calls(tmp_path) == before
    assert heard.lines == []
    assert [row.status for row in rows(sweep)] == ["finished", "finished", "failed", "failed"]


def test_what_had_failed_is_tried_again_where_the_same_command_has_more_retries(tmp_path: Path) -> None:
    space = (choice("do", "fine", "once", "mistake"),)
    sweep, _ = run(plan(tmp_path, *space), tmp_path, 1)
    assert [row.status for row in rows(sweep)] == ["finished", "killed", "failed"]
    half = sweep.link("trials", 1).resolve()
    sweep, _ = run(plan(tmp_path, *space, retries=1), tmp_path, 1)
    fine, once, mistake = rows(sweep)
    assert [row.name for row in (fine, once, mistake)] == ["do=fine", "do=once", "do=mistake"]
    assert (fine.number, once.number, mistake.number) == (0, 3, 4)
    assert (once.status, once.start["attempt"]) == ("finished", 2)
    assert [(one["outcome"], one["attempt"]) for one in once.failures] == [("killed", 1)]
    assert (mistake.status, len(mistake.failures)) == ("failed", 1)
    given = [one["given"] for one in calls(tmp_path)]
    assert given[3] == [f"resume={half}"]
    assert len(given) == 5
    run(plan(tmp_path, *space, retries=1), tmp_path, 1)
    assert len(calls(tmp_path)) == 5


def test_a_folder_with_another_sweep_is_refused(tmp_path: Path) -> None:
    run(plan(tmp_path, choice("x", 0.1)), tmp_path)
    for other, said in (
        (plan(tmp_path, choice("x", 0.1, 0.2)), "its space has other values of x"),
        (plan(tmp_path, choice("seed", 0)), "its space is over x"),
        (plan(tmp_path, choice("x", 0.1), fixed=("seed=1",)), "its fixed was paths.runs="),
    ):
        with pytest.raises(UserError, match="another sweep lies there") as caught:
            run(other, tmp_path)
        assert said in str(caught.value)


def test_a_limit_in_trials_and_hours(tmp_path: Path) -> None:
    space = (choice("seed", *range(5)),)
    sweep, _ = run(plan(tmp_path, *space, trials=2), tmp_path)
    assert [row.status for row in rows(sweep)] == ["finished"] * 2 + ["waiting"] * 3
    sweep, _ = run(plan(tmp_path, *space, trials=3, hours=1e-9), tmp_path)  # over before it begins
    assert len(calls(tmp_path)) == 2
    sweep, _ = run(plan(tmp_path, *space), tmp_path)
    assert [row.status for row in rows(sweep)] == ["finished"] * 5
    assert len(calls(tmp_path)) == 5


class Interrupting(Quiet):
    """Presses Ctrl-C once when a trial has got somewhere."""

    done = False

    def tick(self, worker: Worker) -> None:
        records = [trial.run and trial.run / "metrics.jsonl" for trial in worker.running.values()]
        if not self.done and len(records) == 2 and all(path and path.exists() for path in records):
            self.done = True
            raise KeyboardInterrupt


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    what = plan(tmp_path, choice("seed", 0, 1, 2), fixed=("epochs=20", "holds=seed=0,1"))
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    with pytest.raises(KeyboardInterrupt):
        Worker(sweep, slots(), Interrupting()).run()
    assert [row.status for row in rows(sweep)] == ["waiting"] * 3
    half = [sweep.link("trials", number).resolve() for number in (0, 1)]
    assert [registry.read(path).status for path in half] == ["interrupted"] * 2
    sweep, _ = run(what, tmp_path)
    found = rows(sweep)
    assert [row.status for row in found] == ["finished"] * 3
    assert [row.values[0] for row in found] == pytest.approx([1.0, 1.001, 1.002])
    given = [one["given"] for one in calls(tmp_path)]
    again = sorted(one[0] for one in given[2:] if one[0].startswith("resume="))
    assert again == sorted(f"resume={path}" for path in half)
    assert len(given) == 5
    for path in half:  # gone on with, not begun anew
        assert len((path / "metrics.jsonl").read_text().splitlines()) == 20


def test_an_interruption_is_heeded_when_nothing_is_half_done(tmp_path: Path) -> None:
    """It comes as a trial is being claimed: that is begun, told to end, and waits; another comes in vain."""
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("seed", 0, 1), fixed=("pause=30",)))
    begin(sweep)
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]

    class Interrupted(Quiet):
        def began(self, trial: Trial) -> None:
            super().began(trial)
            os.kill(os.getpid(), signal.SIGTERM if trial.job.number else signal.SIGINT)

    heard = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Worker(sweep, slots(1), heard).run()
    assert heard.lines == ["0 begins", "stopping 1 trials; Ctrl-C again kills them"]
    (queue,) = queues(sweep)
    assert [(row.status, row.start.get("lost")) for row in queue.rows()] == [
        ("waiting", 0),
        ("waiting", None),
    ]
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interruption_kills_what_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textbed.sweeps.trial.GRACE_SECONDS", 3600)
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("do", "hang")))
    begin(sweep)

    class Impatient(Quiet):
        def tick(self, worker: Worker) -> None:
            if (sweep.link("trials", 0) / "metrics.jsonl").exists():
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Worker(sweep, slots(1), Impatient()).run()
    (row,) = rows(sweep)
    assert row.status == "waiting"
    run_folder = sweep.link("trials", 0).resolve()
    assert not registry.RunFolder(run_folder).is_locked()  # its process is gone


def test_nothing_is_claimed_before_it_can_begin(tmp_path: Path) -> None:
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("seed", 0, 1)))
    begin(sweep)

    class Importing(Starter):
        looks = 0

        def is_ready(self) -> bool:
            self.looks += 1
            return self.looks > 3

    class Watching(Quiet):
        def tick(self, worker: Worker) -> None:
            if start.looks <= 3:
                assert [row.status for row in rows(sweep)] == ["waiting"] * 2

    start, heard = Importing(), Watching()
    Worker(sweep, slots(), heard, start).run()
    assert heard.lines[:2] == ["importing, once for all trials", "0 begins"]
    assert [row.status for row in rows(sweep)] == ["finished"] * 2


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from sweeping import Quiet, slots
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.worker import Worker
Worker(SweepFolder.open({path!r}), slots(1), Quiet()).run()
"""


def other_worker(sweep: SweepFolder) -> subprocess.Popen[bytes]:
    code = WORKER.format(tests=str(Path(__file__).parent), path=str(sweep.path))
    return subprocess.Popen([sys.executable, "-c", code])


def test_the_trial_of_a_worker_that_is_killed_is_taken_up_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textbed.sweeps.worker._LOST_SECONDS", 0.1)
    what = plan(tmp_path, choice("seed", 0, 1), fixed=("epochs=40", "holds=seed=0"))
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    other = other_worker(sweep)
    record = sweep.link("trials", 0) / "metrics.jsonl"
    while not record.exists():
        assert other.poll() is None
        time.sleep(0.02)

    class Killing(Quiet):
        def tick(self, worker: Worker) -> None:
            if worker.running and other.poll() is None:
                other.send_signal(signal.SIGKILL)  # its trial is told to end by the system
                other.wait()

    heard = Killing()
    Worker(sweep, slots(1), heard).run()
    first, second = rows(sweep)
    assert (first.status, second.status) == ("finished", "finished")
    assert first.values == (1.0,)
    assert "trial 0: its worker is gone; it is taken up again" in heard.lines
    assert len(record.read_text().splitlines()) == 40
    assert len(calls(tmp_path)) == 3


def test_two_workers_share_trials_and_none_is_run_twice(tmp_path: Path) -> None:
    what = plan(tmp_path, choice("seed", *range(16)), fixed=("meets=2",))
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    other = other_worker(sweep)
    Worker(sweep, slots(1), Quiet()).run()
    assert other.wait(300) == 0
    found = rows(sweep)
    assert [row.status for row in found] == ["finished"] * 16
    assert len({row.start["worker"] for row in found}) == 2
    assert Counter(one["given"][-1] for one in calls(tmp_path)) == {f"seed={seed}": 1 for seed in range(16)}


def test_a_trial_whose_end_was_not_written_down_is_read_not_run_again(tmp_path: Path) -> None:
    """The worker dies between the end of a trial and its row."""
    what = plan(tmp_path, choice("seed", 0))
    sweep = SweepFolder.create(tmp_path / "sweep", what)
    begin(sweep)
    (queue,) = queues(sweep)
    with Presence(sweep) as dead:
        job = queue.claim(dead, "gpu 0")
        assert job is not None
        words = [*what.program, *job.overrides]
        link = {**os.environ, "TEXTBED_RUN_LINK": str(sweep.link("trials", 0))}
        child: Child = start_plainly(words, what.cwd, link, sweep.log("trials", 0))
        while child.poll() is None:
            time.sleep(0.01)
    sweep, _ = run(what, tmp_path)
    (row,) = rows(sweep)
    assert (row.status, row.values) == ("finished", (1.0,))
    assert len(calls(tmp_path)) == 1


def test_a_trial_that_ends_its_workers_is_given_up(tmp_path: Path) -> None:
    sweep = SweepFolder.create(tmp_path / "sweep", plan(tmp_path, choice("seed", 0)))
    begin(sweep)
    (queue,) = queues(sweep)
    with Presence(sweep) as alive:
        for _ in range(4):
            with Presence(sweep) as dead:
                assert queue.claim(dead, "gpu 0") is not None
                assert queue.take_back(alive, lambda number: False) == []  # not as long as it lives
            assert queue.take_back(alive, lambda number: True) == []  # its process is still there
            assert queue.take_back(alive, lambda number: False) == [0]
        assert queue.claim(alive, "gpu 0") is None
    (row,) = queue.rows()
    assert (row.status, row.error) == ("killed", "4 workers ended while they were at it")
