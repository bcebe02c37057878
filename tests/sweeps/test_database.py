"""Workers that share no file system: the study and all that they have to know are in PostgreSQL."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import server
from running import ROOT
from sweeping import Quiet, calls, choice, plan, rows, slots

from textbed.errors import UserError
from textbed.sweeps.database import Database, DatabasePresence
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.launch import begin, finish
from textbed.sweeps.queue import Ending
from textbed.sweeps.report import make_report
from textbed.sweeps.worker import Worker, queues

pytest.importorskip("psycopg", reason="the extra postgres has it")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name no other sweep in the database has."""
    return tmp_path / f"sweep-{secrets.token_hex(3)}"


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from sweeping import Quiet, slots
from textbed.sweeps.folder import SweepFolder
from textbed.sweeps.worker import Worker
Worker(SweepFolder.of_database({url!r}, {name!r}, Path({path!r})), slots(1), Quiet()).run()
"""


def other_worker(sweep: SweepFolder, path: Path, more: str = "") -> subprocess.Popen[bytes]:
    """One that knows nothing but the URL and the name, in a folder of its own."""
    assert sweep.database is not None
    code = WORKER.format(
        tests=str(Path(__file__).parent),
        url=sweep.database.url + more,
        name=sweep.database.name,
        path=str(path),
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=path.parent)


@pytest.mark.slow
def test_two_workers_share_trials_and_none_is_run_twice(url: str, tmp_path: Path, place: Path) -> None:
    what = plan(tmp_path, choice("seed", *range(8)), storage=url, refit=2)
    sweep = SweepFolder.create(place, what)
    begin(sweep)
    assert not sweep.journal.exists()
    other = other_worker(sweep, tmp_path / "other")
    while all(row.status == "waiting" for row in rows(sweep)):
        assert other.poll() is None
        time.sleep(0.1)
    Worker(sweep, slots(1), Quiet()).run()
    assert other.wait(120) == 0
    found = rows(sweep)
    assert [row.status for row in found] == ["finished"] * 8
    assert [row.values for row in found] == [(pytest.approx(1 + seed / 1000),) for seed in range(8)]
    assert len({row.start["worker"] for row in found}) == 2
    given = Counter(one["given"][-1] for one in calls(tmp_path))
    assert given == {f"seed={seed}": 1 for seed in range(10)}  # the last two are the winner's fresh ones
    # each has the links and logs of its own trials, and no others
    here, there = (
        {path.name for path in folder.glob("trials/????.log")} for folder in (place, tmp_path / "other")
    )
    assert here | there == {f"{number:04d}.log" for number in range(8)}
    assert not here & there
    tested = [row.tested for row in rows(sweep, 1)]
    assert tested == [pytest.approx(0.9 + seed / 1000) for seed in (8, 9)]


@pytest.mark.slow
def test_the_trial_of_a_worker_that_is_killed_is_taken_up_by_another(
    url: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has not its files, and begins the trial anew."""
    monkeypatch.setattr("textbed.sweeps.worker._LOST_SECONDS", 0.1)
    monkeypatch.setattr("textbed.sweeps.database.LOST_SECONDS", 0.1)
    what = plan(tmp_path, choice("seed", 0), fixed=("epochs=60", "pause=0.05"), storage=url)
    sweep = SweepFolder.create(place, what)
    begin(sweep)
    other = other_worker(sweep, tmp_path / "other")
    record = tmp_path / "other" / "trials" / "0000" / "metrics.jsonl"
    while not record.exists():
        assert other.poll() is None
        time.sleep(0.02)

    (queue,) = queues(sweep)
    with sweep.presence() as me:
        time.sleep(0.2)
        assert queue.take_back(me, lambda number: False) == []  # not as long as it lives
    (before,) = queue.rows()
    other.kill()
    other.wait()
    heard = Quiet()
    Worker(sweep, slots(1), heard).run()
    assert "trial 0: its worker is gone; it is taken up again" in heard.lines
    (row,) = queue.rows()
    assert (before.status, row.status, row.values) == ("running", "finished", (1.0,))
    assert (row.start["attempt"], row.start["lost"]) == (2, 1)
    assert row.start["worker"] != before.start["worker"]
    assert len(calls(tmp_path)) == 2


def test_what_stopped_goes_on_and_what_is_done_is_not_run_again(
    url: str, tmp_path: Path, place: Path
) -> None:
    sweep = SweepFolder.create(place, plan(tmp_path, choice("seed", 0, 1, 2), storage=url, trials=1))
    begin(sweep)
    Worker(sweep, slots(1), Quiet()).run()
    sweep = SweepFolder.create(place, plan(tmp_path, choice("seed", 0, 1, 2), storage=url))
    begin(sweep)
    Worker(SweepFolder.open(place), slots(1), Quiet()).run()
    assert [row.status for row in rows(sweep)] == ["finished"] * 3
    assert len(calls(tmp_path)) == 3


def test_any_machine_can_look_at_it(
    url: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepFolder.create(place, plan(tmp_path, choice("x", 0.1, 0.3), storage=url, refit=2))
    begin(sweep)
    Worker(sweep, slots(), Quiet()).run()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = SweepFolder.of_database(url, place.name)
    assert there.path == tmp_path / "elsewhere" / "runs" / "sweeps" / place.name
    assert there.plan.cwd == str(tmp_path / "elsewhere")
    lines = make_report(there).lines
    host = rows(sweep)[0].host
    assert f"run folders that are not here, and not in the comparison: 4 on {host}" in lines
    assert any(line.startswith("tested over 2 fresh seeds: test/accuracy 0.9015 ± 0.0007") for line in lines)
    finish(there)
    assert capsys.readouterr().out == ""
    finish(sweep)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_script_and_folders_below_the_sweeps_are_those_of_the_machine_that_joins(
    url: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = plan(tmp_path, choice("seed", 0), storage=url, devices=["7"])
    words = ["/there/python", f"{tmp_path}/train.py", f"--config-dir={tmp_path}/mine", "--config-dir=/shared"]
    what.program[:] = words
    begin(SweepFolder.create(place, what))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    joined = SweepFolder.of_database(url, place.name).plan
    here = f"{tmp_path}/elsewhere"
    assert joined.program == [
        sys.executable,
        f"{here}/train.py",
        f"--config-dir={here}/mine",
        "--config-dir=/shared",
    ]
    assert (joined.settings["devices"], joined.settings["storage"]) == (None, url)


def cut(presence: DatabasePresence, name: str) -> None:
    """Cut all connections of a process that calls itself ``name``."""
    found = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = :name"
    )
    assert presence._session.run(found, name=name)


def test_a_worker_is_dead_when_its_lock_is_free_and_it_is_not_heard_of(
    url: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(url, place.name)
    named = Database(f"{url}&application_name={place.name}", place.name)
    with database.presence() as me:
        with named.presence() as other:
            assert me.is_alive(other.id)
            assert not me.is_alive("host-1-abcdef")
            cut(me, place.name)
            assert me.is_alive(other.id)  # it may come again
            monkeypatch.setattr("textbed.sweeps.database.LOST_SECONDS", 0.0)
            assert not me.is_alive(other.id)
            assert other.beat()  # it is not due
            monkeypatch.setattr(other, "_next", 0.0)
            assert not other.beat()
            assert me.is_alive(other.id)  # by its lock
            cut(me, place.name)
            assert other.is_alive(me.id)
            assert me.is_alive(other.id)
            monkeypatch.undo()
        assert not me.is_alive(other.id)  # it left


@pytest.mark.slow
def test_a_trial_goes_on_when_its_workers_connections_are_cut(url: str, tmp_path: Path, place: Path) -> None:
    what = plan(tmp_path, choice("seed", 0), fixed=("epochs=60", "pause=0.05"), storage=url)
    sweep = SweepFolder.create(place, what)
    begin(sweep)
    other = other_worker(sweep, tmp_path / "other", f"&application_name={place.name}")
    (queue,) = queues(sweep)
    while "command" not in queue.study.trials[0].user_attrs:
        assert other.poll() is None
        time.sleep(0.05)
    with sweep.presence() as me:
        assert isinstance(me, DatabasePresence)
        cut(me, place.name)
        assert queue.take_back(me, lambda number: False) == []
    assert other.wait(120) == 0
    assert [row.status for row in queue.rows()] == ["finished"]
    assert len(calls(tmp_path)) == 1


def test_a_worker_ends_the_trials_that_others_took_up(
    url: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was away for long: its trial is another's, and what it has of it counts for nothing."""
    sweep = SweepFolder.create(place, plan(tmp_path, choice("seed", 0), fixed=("pause=60",), storage=url))
    begin(sweep)
    worker = Worker(sweep, slots(1), heard := Quiet())
    (queue,) = queues(sweep)

    class Away(DatabasePresence):
        def beat(self) -> bool:
            if not worker.running or heard.lines[-1] != "0 begins":
                return super().beat()
            with monkeypatch.context() as patch, sweep.presence() as me:
                patch.setattr("textbed.sweeps.database.LOST_SECONDS", 0.0)
                self._session.give_back(f"worker {self.id}")
                self._session.close()
                assert queue.take_back(me, lambda number: False) == [0]
                job = queue.claim(me, "gpu 0")
                assert job is not None
                self._next = 0.0
                assert not super().beat()
                assert queue.end(job, Ending("finished", [0.5]), 1.0)
            return False

    worker._presence = Away(url)
    worker.run()
    assert heard.lines == ["0 begins", "trial 0: another worker has taken it up"]
    assert [(row.status, row.values) for row in queue.rows()] == [("finished", (0.5,))]


def test_mistakes(url: str, tmp_path: Path, place: Path) -> None:
    for wrong, said in (
        ("sqlite:///x.db", "expected a PostgreSQL database"),
        ("nothing", "expected a URL such as postgresql"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "me:***@127.0.0.1:1/x: connection failed"),
    ):
        with pytest.raises(UserError) as caught:
            begin(SweepFolder.create(place, plan(tmp_path, choice("seed", 0), storage=wrong)))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    run_there = plan(tmp_path, choice("seed", 0), storage=url)
    begin(SweepFolder.create(place, run_there))
    with pytest.raises(UserError, match=r"another sweep\.storage: postgresql"):
        SweepFolder.create(place, plan(tmp_path, choice("seed", 0)))
    with pytest.raises(UserError, match=f"has a sweep {place.name}, which is not in that folder"):
        SweepFolder.create(tmp_path / "b" / place.name, run_there)
    with pytest.raises(UserError, match=f"no sweep nobody is there; there are .*{place.name}"):
        SweepFolder.of_database(url, "nobody")


@pytest.mark.slow
def test_the_command_joins_by_url(url: str, tmp_path: Path, place: Path) -> None:
    sweep = SweepFolder.create(place, plan(tmp_path, choice("seed", 0, 1), storage=url))
    begin(sweep)
    words = [sys.executable, str(ROOT / "scripts" / "sweep.py"), "--join", url, "--study", place.name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row.status for row in rows(sweep)] == ["finished"] * 2
    assert (tmp_path / "runs" / "sweeps" / place.name / "trials" / "0001.log").exists()
