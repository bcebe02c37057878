from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from matplotlib.image import imread, imsave
from omegaconf import OmegaConf
from running import Runs, documents, on, predictions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.util import get_core_path

from textbed import config
from textbed.errors import UserError
from textbed.runs import loggers as module
from textbed.runs.folder import RunFolder
from textbed.runs.lines import read_metrics
from textbed.runs.loggers import (
    Wandb,
    finish_loggers,
    log_report,
    log_settings,
    make_loggers,
    prediction_table,
    what_differs,
)
from textbed.runs.record import RecordLogger

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "logger"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "trial")
    run.start("seed: 0\n", [], seed=0)
    return run


def entries(name: str, **changes: Any) -> dict[str, Any]:
    """The config group logger=name, as the code sees it."""
    config = OmegaConf.merge(
        {"name": "trial", "logger": OmegaConf.load(CONFIGS / f"{name}.yaml")}, {"logger": changes}
    )
    group = OmegaConf.to_container(config, resolve=True)
    assert isinstance(group, dict)
    return group["logger"]


def test_record_is_always_there(run: RunFolder) -> None:
    assert [type(logger) for logger in make_loggers(entries("none"), run)] == [RecordLogger]
    assert [type(logger) for logger in make_loggers({"wandb": None}, run)] == [RecordLogger]
    assert [type(logger) for logger in make_loggers(None, run)] == [RecordLogger]


def test_a_wrong_setting_is_named(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"logger\.tensorboard: .*versio"):
        make_loggers({"tensorboard": {"_target_": "textbed.runs.loggers.Wandb", "versio": 1}}, run)
    with pytest.raises(UserError, match=r"logger\.wandb\.mode='onlin'.*Did you mean 'online'"):
        make_loggers(entries("wandb", wandb={"mode": "onlin"}), run)


def test_missing_package_is_one_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(module, "MLflow", missing)
    with pytest.raises(
        UserError, match=r"^logger=mlflow: a package is missing; pip install -e \'\.\[mlflow\]\'$"
    ):
        make_loggers(entries("mlflow"), run)


def inspect(part: Path, *flags: str) -> str:
    """What wandb's own tool, ``wandb leet inspect``, reads in an offline run."""
    (file,) = part.glob("*.wandb")
    # the program behind that command, without its second of imports
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *flags]
    return subprocess.check_output([*command, "--run-file", str(file)], text=True)


def summary_of(part: Path) -> dict[str, Any]:
    return json.loads(inspect(part, "--summary"))


def records_of(part: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in inspect(part).splitlines()]
    return [record[kind] for record in records if record["type"] == kind]


def table_of(part: Path, name: str) -> tuple[list[str], list[list[Any]]]:
    """A table that was logged under ``name``."""
    content = json.loads((part / "files" / summary_of(part)["summary"][name]["path"]).read_text())
    return content["columns"], content["data"]


def part_of(run: RunFolder) -> Path:
    (part,) = (run.path / "wandb").glob("offline-run-*")
    return part


def test_wandb_offline_and_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path, "trial")
    typed = ["experiment=sst2", "head=gru", "seed=1", "paths.runs=/tmp"]
    run.start("seed: 1\n", typed, seed=1, choices={"data": "sst2", "head": "gru", "trainer": "cpu"})
    loggers = make_loggers(entries("wandb", wandb={"tags": ["mine"]}), run)
    log_settings(loggers, {"seed": 1, "head": {"kind": "mean"}}, new=True)
    for logger in loggers:
        logger.log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=3)
        logger.log_metrics({"val/accuracy": 0.625, "epoch": 1}, step=7)
    lines = finish_loggers(loggers, {"val/accuracy": 0.5, "test/accuracy": 0.75, "seconds/fit": 2})
    part = part_of(run)
    assert lines == [f"wandb: logged offline; to upload: wandb sync {part}"]
    seen = summary_of(part)
    assert (seen["run_id"], seen["project"], seen["state"]) == (run.id, "textbed", "finished")
    assert seen["name"] == "head=gru seed=1"
    assert seen["tags"] == ["data=sst2", "head=gru", "mine"]
    (made,) = records_of(part, "run")
    assert (made["run_group"], made["job_type"]) == ("trial head=gru", "train")
    assert seen["config"]["head"] == {"kind": "mean"}
    info = run.info()
    facts = seen["config"]["run"]
    assert facts["versions"] == {name: version for name, version in info["versions"].items() if version}
    assert [facts[key] for key in ("git", "host", "choices")] == [
        info[key] for key in ("git", "host", "choices")
    ]
    figures = {"val/accuracy": 0.5, "test/accuracy": 0.75, "seconds/fit": 2, "trainer/global_step": 7}
    assert {key: seen["summary"][key] for key in figures} == figures
    assert "wandb" not in "".join(capfd.readouterr())

    # Resumed from the checkpoint of step 4: the same run id, in it the steps before from the record, and the
    # new ones.
    loggers = make_loggers(entries("wandb"), run, resume_step=4)
    log_settings(loggers, {"seed": 1}, new=False)
    for logger in loggers:
        logger.log_metrics({"val/accuracy": 0.875, "epoch": 1}, step=7)
    finish_loggers(loggers, failed=True)
    part = part_of(run)
    assert part.name.endswith(f"-{run.id}")
    history = [record["item"] for record in records_of(part, "history")]
    assert [(line["trainer/global_step"], line["val/accuracy"]) for line in history] == [(3, 0.5), (7, 0.875)]
    assert [line["val/accuracy"] for line in read_metrics(run.path)] == [0.5, 0.875]


def test_what_a_run_shows_at_wandb(runs: Runs, topics: Path) -> None:
    run = runs(*on(topics, "logger=wandb", "head=max", "seed=3", "report.embedding=true"))
    part = part_of(run)
    seen = summary_of(part)
    figures = {key: value for key, value in run.read_metrics().items() if value is not None}
    assert {key: seen["summary"].get(key) for key in figures} == pytest.approx(figures)
    config = yaml.safe_load(run.config_file.read_text())
    facts = seen["config"].pop("run")
    assert seen["config"] == config
    assert facts["data"] == run.info()["data"]

    said = predictions(run)
    columns, rows = table_of(part, "test/confusion_matrix_table")
    assert columns == ["Actual", "Predicted", "nPredictions"]
    pairs = Counter(zip(said["label_name"], said["predicted_name"], strict=True))
    assert {(true, given): count for true, given, count in rows if count} == pairs
    assert len(rows) == 9

    columns, rows = table_of(part, "test/predictions")
    assert columns == ["row", "text", "class", "predicted", "probability of the class"]
    least = sorted(p[label] for p, label in zip(said["probability"], said["label"], strict=True))
    assert [row[-1] for row in rows] == pytest.approx(least[:100])
    texts = dict(documents(150))
    assert all(texts[row[1]] == row[2] for row in rows)
    assert "embedding/neighbours" in seen["summary"]


def test_wandb_without_a_key(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", str(run.path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    (_, logger) = make_loggers(entries("wandb"), run)
    assert isinstance(logger, Wandb)
    assert logger._wandb_init["mode"] == "offline"
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "there is no key" in error


class Server:
    """A server on this machine that gives one answer to every connection, or to the first of them alone."""

    def __init__(self, answer: bytes | None, once: bool = False) -> None:
        self.answer = answer
        self.once = once
        self.asked: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.kept: list[socket.socket] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.kept.append(connection)  # silent, and open
                if self.answer is not None:
                    self.asked.append(connection.recv(1 << 16))
                    connection.sendall(self.answer)
                    self.answer = None if self.once else self.answer

    def close(self) -> None:
        for one in (self.socket, *self.kept):
            one.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    for key in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    made: list[Server] = []

    def start(answer: bytes | None, once: bool = False) -> Server:
        made.append(Server(answer, once))
        return made[-1]

    yield start
    for one in made:
        one.close()


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode()


def test_no_server_is_waited_for(server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.WAIT_SECONDS == 5
    monkeypatch.setattr(module, "WAIT_SECONDS", 60.0)
    for status in ("200 OK", "404 Not Found", "500 Internal Server Error"):
        assert module.cannot_reach(server(http(status)).url) is None
    refusing = server(http("401 Unauthorized")).url
    assert (
        module.cannot_reach(refusing, {"Authorization": "Basic eA=="})
        == "127.0.0.1 does not accept the key (HTTP 401)"
    )
    assert module.cannot_reach(refusing) is None  # it was given no key
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.5)
    for answer in (None, b"HTTP/1.1 200 OK\r\nA-line-without-end"):  # silent, or never done
        assert module.cannot_reach(server(answer).url) == "127.0.0.1 does not answer within 0.5 s"
    monkeypatch.setattr(module, "WAIT_SECONDS", 60.0)

    with socket.socket() as taken:  # bound, not listening: it refuses
        taken.bind(("127.0.0.1", 0))
        reason = module.cannot_reach(f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert reason is not None
        assert reason.startswith("127.0.0.1 cannot be reached (")

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert module.cannot_reach("https://nowhere.invalid") == (
        "nowhere.invalid cannot be reached ([Errno -2] Name or service not known)"
    )

    over = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:  # it has no time limit
        over.wait()
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.5)
    assert module.cannot_reach("https://nowhere.invalid") == "nowhere.invalid does not answer within 0.5 s"
    over.set()


def test_wandb_falls_back_where_its_server_is_silent(
    run: RunFolder,
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server(None).url)
    (_, logger) = make_loggers(entries("wandb", wandb={"mode": "online"}), run)
    assert isinstance(logger, Wandb)
    assert logger._wandb_init["mode"] == "offline"
    line = "wandb: 127.0.0.1 does not answer within 0.5 s; this run is logged offline\n"
    assert capfd.readouterr().err == line
    monkeypatch.setattr(module, "WAIT_SECONDS", 60.0)
    refusing = server(http("403 Forbidden"))
    monkeypatch.setenv("WANDB_BASE_URL", refusing.url)
    assert module.cannot_reach_wandb() == "127.0.0.1 does not accept the key (HTTP 403)"
    assert base64.b64encode(b"api:" + b"x" * 40) in refusing.asked[0]


@pytest.mark.slow  # wandb's own process takes the time that it is given
def test_wandb_falls_back_where_its_server_falls_silent(
    run: RunFolder,
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wandb.teardown()  # it has read its settings, and reads them anew
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server(http("200 OK"), once=True).url)
    monkeypatch.setattr(module, "WAIT_SECONDS", 2.0)
    loggers = make_loggers(entries("wandb", wandb={"mode": "online"}), run)
    for logger in loggers:
        logger.log_metrics({"val/accuracy": 0.5}, step=3)
    (line,) = finish_loggers(loggers)
    assert line == f"wandb: logged offline; to upload: wandb sync {part_of(run)}"
    assert summary_of(part_of(run))["summary"]["val/accuracy"] == 0.5
    (said,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"wandb: cannot start online \(.*\); this run's wandb logger is offline", said)
    wandb.teardown()


def test_wandb_whose_server_is_gone_at_the_end(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, logger) = make_loggers(entries("wandb"), run)
    assert isinstance(logger, Wandb)
    part = run.path / "wandb" / f"run-20300101_000000-{run.id}"
    part.mkdir(parents=True)

    class Gone:
        summary: ClassVar[dict[str, float]] = {}

        def finish(self, exit_code: int) -> None:
            raise TimeoutError

    logger._mode, logger._experiment = "online", Gone()
    line = f"wandb: the server did not take all within 5 s; to upload the rest: wandb sync {part}"
    assert finish_loggers([logger], {"test/accuracy": 0.5}) == [line]
    assert Gone.summary == {"test/accuracy": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: 103.0)
        settings = module._online_settings(100.0)
    assert settings["init_timeout"] == 2
    assert (settings["finish_timeout"], settings["finish_timeout_raises"]) == (5, True)


ON_A_TERMINAL = """
import sys
from textbed.runs.folder import RunFolder
from textbed.runs.loggers import finish_loggers, make_loggers
run = RunFolder.create(sys.argv[1], "trial")
run.start("seed: 0", [], seed=0)
settings = {"_target_": "textbed.runs.loggers.Wandb", "folder": "{folder}", "id": "{id}", "mode": "online"}
loggers = make_loggers({"wandb": settings}, run)
loggers[1].log_metrics({"a": 1.0}, step=0)
print("\\n".join(finish_loggers(loggers)))
"""


@pytest.mark.slow  # a process of its own, on a terminal
def test_wandb_asks_nothing_on_a_terminal(tmp_path: Path, offline: None) -> None:
    master, slave = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)},
    )
    os.close(slave)
    said = b""
    try:
        with contextlib.suppress(OSError):  # how a terminal says that nobody is left
            while True:
                assert select.select([master], [], [], 60)[0], said  # it waits for an answer
                said += os.read(master, 1 << 16)
    finally:
        process.kill()
        os.close(master)
    first, second = said.decode().splitlines()
    assert "there is no key (wandb login, or WANDB_API_KEY); this run is logged offline" in first
    assert second.startswith("wandb: logged offline; to upload: wandb sync ")


def test_wandb_key_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(f"machine wandb.example login user password {'k' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert module._key_in_netrc("https://wandb.example") == "k" * 40
    assert module._key_in_netrc("https://elsewhere.example") is None


def test_wandb_that_cannot_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    real = wandb.init

    def broken(**settings: Any) -> Any:
        if settings["mode"] == "offline":
            raise wandb.errors.CommError("no service\nmore")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", broken)
    loggers = make_loggers(entries("wandb"), run)
    for logger in loggers:
        logger.log_metrics({"a": 1.0}, step=0)
    assert finish_loggers(loggers, {"a": 1.0}) == []
    assert (
        "wandb: cannot start offline (no service); this run's wandb logger is disabled\n"
        in capfd.readouterr().err
    )
    assert read_metrics(run.path)[0]["a"] == 1.0


def events(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    reader.Reload()
    return reader


def curve(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in reader.Scalars(tag)]


MATRIX = np.array([[3, 1], [0, 4]])


def log_all(loggers: list[Logger], picture: Path) -> None:
    """What a run hands to its loggers."""
    log_settings(loggers, {"seed": 0, "head": {"modes": ["mean"], "hidden": None}}, new=True)
    for logger in loggers:
        for step in range(8):
            logger.log_metrics({"val/loss": 1.0 - step / 8, "epoch": step // 4}, step=step)
    table = (["word", "count"], [["owl", 3], ["oar|keel", None]])
    log_report(loggers, picture.parent, {"embedding/moved": table}, MATRIX, ["no", "yes"])
    assert finish_loggers(loggers, {"val/loss": 0.25, "test/accuracy": 0.75, "steps": 8}) == []


@pytest.fixture
def picture(run: RunFolder) -> Path:
    """A PNG file of 2 by 3 pixels."""
    run.pictures.mkdir()
    pixels = np.linspace(0, 1, 18).reshape(2, 3, 3)
    imsave(run.pictures / "dots.png", pixels)
    return run.pictures / "dots.png"


def test_tensorboard(run: RunFolder, picture: Path) -> None:
    log_all(make_loggers(entries("tensorboard"), run), picture)
    reader = events(run.path / "tensorboard")
    assert curve(reader, "val/loss") == [(step, 1.0 - step / 8) for step in range(8)]
    assert curve(reader, "test/accuracy") == [(8, 0.75)]
    assert curve(reader, "best/val/loss") == [(8, 0.25)]
    (image,) = reader.Images("pictures/dots")
    assert imread(io.BytesIO(image.encoded_image_string)).shape == (2, 3, 3)
    texts = {
        tag: reader.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in reader.Tags()["tensors"]
    }
    assert "| owl | 3 |" in texts["embedding/moved/text_summary"]
    assert "| oar\\|keel | – |" in texts["embedding/moved/text_summary"]
    assert "| no | 3 | 1 |" in texts["test/confusion_matrix/text_summary"]

    loggers = make_loggers(entries("tensorboard"), run, resume_step=4)
    log_settings(loggers, {"seed": 0}, new=False)
    for logger in loggers:
        for step in range(4, 6):
            logger.log_metrics({"val/loss": 2.0, "epoch": 1}, step=step)
    finish_loggers(loggers)
    expected = [(step, 1.0 - step / 8) for step in range(4)] + [(4, 2.0), (5, 2.0)]
    assert curve(events(run.path / "tensorboard"), "val/loss") == expected


@contextlib.contextmanager
def serving(*command: str, path: str = "") -> Iterator[str]:
    """Start a server of pages, wait until it answers, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                ask(url + path)
                break
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.wait()


def ask(url: str, **content: Any) -> Any:
    """The JSON that is answered; ``content`` is posted."""
    data = json.dumps(content).encode() if content else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text.startswith((b"{", b"[")) else text


@pytest.mark.slow  # TensorBoard's server
def test_tensorboard_shows_it(run: RunFolder, picture: Path) -> None:
    log_all(make_loggers(entries("tensorboard"), run), picture)
    program = [sys.executable, "-m", "tensorboard.main", "--load_fast=false"]
    data = "/data/plugin"
    with serving(*program, "--logdir", str(run.path.parent), path="/data/environment") as url:
        name = f"{run.id}/tensorboard"
        wanted = urllib.parse.urlencode({"run": name, "tag": "val/loss"})
        for _ in range(600):  # it reads the files after it has begun to answer
            tags = ask(f"{url}{data}/scalars/tags")
            if "val/loss" in tags.get(name, {}):
                break
            time.sleep(0.1)
        points = ask(f"{url}{data}/scalars/scalars?{wanted}")
        assert [(step, value) for _, step, value in points] == [(step, 1.0 - step / 8) for step in range(8)]
        assert set(ask(f"{url}{data}/images/tags")[name]) == {"pictures/dots"}
        assert "test/confusion_matrix/text_summary" in ask(f"{url}{data}/text/tags")[name]
        sessions = ask(
            f"{url}{data}/hparams/session_groups",
            experimentName="",
            allowedStatuses=["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            colParams=[{"hparam": "seed"}, {"metric": {"group": "", "tag": "test/accuracy"}}],
            startIndex=0,
            sliceSize=10,
        )
        (session,) = sessions["sessionGroups"]
        assert session["hparams"] == {"seed": 0, "head.modes": "['mean']", "head.hidden": "None"}
        values = {one["name"]["tag"]: one["value"] for one in session["metricValues"]}
        assert values["test/accuracy"] == 0.75


NO_MLFLOW = "mlflow is not installed (650 MB, and it takes pyarrow down): pip install -e '.[mlflow]'"


def test_mlflow(
    run: RunFolder,
    picture: Path,
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    mlflow = pytest.importorskip("mlflow", reason=NO_MLFLOW)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(None).url)  # a server that is silent
    log_all(make_loggers(entries("mlflow"), run), picture)
    line = "mlflow: 127.0.0.1 does not answer within 0.5 s; this run is logged into mlflow.db in its folder\n"
    assert capfd.readouterr().err == line

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client = mlflow.tracking.MlflowClient(f"sqlite:///{run.path}/mlflow.db")

    def only() -> Any:
        (found,) = client.search_runs([client.get_experiment_by_name("textbed").experiment_id])
        return found

    kept = only()
    assert (kept.info.run_name, kept.info.status) == ("trial", "FINISHED")
    assert (kept.data.tags["textbed.run"], kept.data.tags["textbed.setting"]) == (run.id, "trial")
    assert kept.data.params == {"seed": "0", "head/modes": "['mean']", "head/hidden": "None"}
    assert kept.data.metrics["test/accuracy"] == 0.75
    assert kept.data.metrics["best/val/loss"] == 0.25
    history = client.get_metric_history(kept.info.run_id, "val/loss")
    assert [(one.step, one.value) for one in history] == [(step, 1.0 - step / 8) for step in range(8)]
    assert (run.path / "mlflow").is_dir()

    (_, logger) = loggers = make_loggers(entries("mlflow"), run, resume_step=4)
    logger.log_metrics({"val/loss": 2.0}, step=9)
    assert only().info.status == "RUNNING"
    finish_loggers(loggers, failed=True)
    assert (only().info.run_id, only().info.status) == (kept.info.run_id, "FAILED")
    assert only().data.metrics["val/loss"] == 2.0

    (_, logger) = loggers = make_loggers(entries("mlflow"), run, resume_step=4)
    assert isinstance(logger, module.MLflow)

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone\nfor good")

    monkeypatch.setattr(logger._mlflow_client, "log_batch", gone)
    for step in range(3):
        logger.log_metrics({"val/loss": 2.0}, step=step)
    assert capfd.readouterr().err == (
        "mlflow: takes no more figures (the server is gone); the run folder has them\n"
    )


def test_mlflow_falls_back_where_its_server_refuses(
    run: RunFolder,
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whether mlflow is installed or not: its part is played here."""
    places: list[str] = []

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            if places[-1].startswith("http"):
                raise PermissionError("401: not authenticated\nmore")

    def begin(self: Any, tracking_uri: str, **_: Any) -> None:
        places.append(tracking_uri)
        self._mlflow_client = Client()

    monkeypatch.setattr(MLFlowLogger, "__init__", begin)
    url = server(http("401 Unauthorized")).url  # that asks for a key is no reason: the client may have one
    make_loggers(entries("mlflow", mlflow={"tracking_uri": url}), run)
    assert places == [url, f"sqlite:///{run.path}/mlflow.db"]
    line = "mlflow: 401: not authenticated; this run is logged into mlflow.db in its folder\n"
    assert capfd.readouterr().err == line


@pytest.mark.slow  # MLflow's server
def test_mlflow_shows_it(run: RunFolder, picture: Path) -> None:
    pytest.importorskip("mlflow", reason=NO_MLFLOW)
    log_all(make_loggers(entries("mlflow"), run), picture)
    program = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
    with serving(*program, "--backend-store-uri", f"sqlite:///{run.path}/mlflow.db", path="/health") as url:
        api = f"{url}/api/2.0/mlflow"
        experiment = ask(f"{api}/experiments/get-by-name?experiment_name=textbed")["experiment"]
        (found,) = ask(f"{api}/runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
        assert found["info"]["run_name"] == "trial"
        assert {one["key"]: one["value"] for one in found["data"]["params"]}["seed"] == "0"
        assert {one["key"]: one["value"] for one in found["data"]["metrics"]}["test/accuracy"] == 0.75
        wanted = f"run_id={found['info']['run_id']}"
        history = ask(f"{api}/metrics/get-history?{wanted}&metric_key=val%2Floss")["metrics"]
        assert [(one["step"], one["value"]) for one in history] == [
            (step, 1.0 - step / 8) for step in range(8)
        ]
        files = ask(f"{api}/artifacts/list?{wanted}&path=pictures")["files"]
        assert [one["path"] for one in files] == ["pictures/dots.png"]
        text = ask(f"{url}/get-artifact?{wanted}&path=test/confusion_matrix.csv")
        assert text == b"class / predicted,no,yes\nno,3,1\nyes,0,4\n"


def test_a_logger_that_cannot_be_closed_fails_nothing(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    class Gone(CSVLogger):
        def finalize(self, status: str) -> None:
            raise ConnectionError("the server is gone\nfor good")

    loggers = [*make_loggers({}, run), Gone(run.path, "", "")]
    loggers[0].log_metrics({"val/accuracy": 0.5, "epoch": 0}, step=3)
    for failed in (False, True):
        assert finish_loggers(loggers, failed=failed) == []
        assert "Gone: could not be closed (the server is gone); the run folder" in capfd.readouterr().err
    assert run.table_file.exists()


def test_pictures_and_tables_go_where_they_are_taken(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    class Takes(CSVLogger):
        def __init__(self) -> None:
            super().__init__(run.path, "", "")
            self.taken: list[Any] = []

        def log_image(self, key: str, images: list[Any]) -> None:
            self.taken.append((key, images))

        def log_table(self, key: str, columns: list[str], data: list[Any]) -> None:
            self.taken.append((key, columns, data))

    class Refuses(Takes):
        def log_image(self, key: str, images: list[Any]) -> None:
            raise ConnectionError("the server is gone\nfor good")

    run.pictures.mkdir()
    for name in ("b.png", "a.png", "notes.txt"):
        (run.pictures / name).touch()
    takes = Takes()
    loggers = [*make_loggers({}, run), Refuses(), CSVLogger(run.path, "", ""), takes]
    log_report(loggers, run.pictures, {"embedding/norms": (["word"], [["owl"]])}, MATRIX, ["no", "yes"])
    assert takes.taken == [
        ("pictures/a", [str(run.pictures / "a.png")]),
        ("pictures/b", [str(run.pictures / "b.png")]),
        ("embedding/norms", ["word"], [["owl"]]),
        ("test/confusion_matrix", ["class / predicted", "no", "yes"], [["no", 3, 1], ["yes", 0, 4]]),
    ]
    line = "Refuses: did not take the report (the server is gone); the run folder has it\n"
    assert capfd.readouterr().err == line


def test_settings_of_a_resumed_run_go_to_no_other_logger(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(CSVLogger, "log_hyperparams", lambda self, settings: given.append(settings))
    log_settings([CSVLogger(run.path, "", "")], {"seed": 1}, new=True)
    log_settings([CSVLogger(run.path, "", "")], {"seed": 2}, new=False)
    assert given == [{"seed": 1}]


def test_what_a_run_is_called() -> None:
    typed = ["experiment=sst2", "head=gru", "+head.dense=[300,300]", "seed=1", "data.fold=2", "~scheduler"]
    aside = ["paths.runs=/tmp/a", "logger=none", "logger.wandb.mode=online", "name=x", "data.mirror=/m"]
    assert what_differs([*typed, *aside]) == "head=gru +head.dense=[300,300] seed=1 data.fold=2 ~scheduler"
    assert what_differs(typed, repeats=False) == "head=gru +head.dense=[300,300] ~scheduler"
    assert (
        what_differs(["embedding.vectors=/data/glove.6B.100d.txt"]) == "embedding.vectors=glove.6B.100d.txt"
    )
    assert what_differs(["experiment=sst2"]) == ""


def test_names_are_of_a_length_that_is_taken(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "trial")
    run.start("seed: 0\n", [f"data.text=[{','.join(f'column{i}' for i in range(30))}]"], seed=0)
    filled = module._placeholders(run)
    assert [len(filled[key]) for key in ("label", "setting")] == [100, 100]
    run.start("seed: 0\n", [], seed=0)
    assert module._placeholders(run) == {"label": "trial", "setting": "trial", "options": {}}
    run.overrides_file.unlink()
    assert module._placeholders(run)["label"] == "trial"


def test_predictions_that_were_worst() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
    rows, classes = np.array([4, 7, 9]), ["no", "yes"]
    columns, table = prediction_table(
        rows, np.array([0, 0, 1]), probabilities, classes, "text {}".format, most=2
    )
    assert [row[:4] for row in table] == [[7, "text 7", "no", "yes"], [9, "text 9", "yes", "no"]]
    assert [row[4] for row in table] == pytest.approx([0.2, 0.4])
    assert len(columns) == 5
    several = np.array([[1, 0], [1, 1], [0, 0]])
    _, table = prediction_table(rows, several, probabilities, classes, lambda row: "x" * 2000)
    assert [(row[0], row[2], row[3]) for row in table] == [
        (7, "no, yes", "yes"),
        (9, "", "no"),
        (4, "no", "no"),
    ]
    assert [row[4] for row in table] == pytest.approx([0.2, 0.4, 0.9])
    assert len(table[0][1]) == 1000


def test_runs_of_before_name_their_loggers_as_they_did(runs: Runs) -> None:
    cfg = runs.config("logger=wandb")
    cfg.logger.wandb["_target_"] = "textbed.runs.record.Wandb"
    assert config.check(cfg).logger.wandb["_target_"] == "textbed.runs.loggers.Wandb"
