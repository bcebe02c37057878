"""A warm start: trials are forked from one process that has imported what they need.

The imports of a run take 6 to 9 s, and there is one run after the other. Here they are done once: the process
waits, and for each trial forks a child that runs the same script with the same arguments in a process group,
environment and folder of its own. Nothing is computed and no device is touched before the fork, so that a
trial is as apart from the others, and gives the same figures to the last bit, as if it had been started by
itself; its command line is still the plain one. Linux alone: elsewhere libraries do not survive a fork.

``python -m textbed.sweeps.warm MODULE ...`` is that process. It reads a request a line (JSON) and answers
with the child's number when it begins, and with its exit code when it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from textbed.sweeps.trial import Child, end_with_parent, start_plainly

MODULES = ("textbed.training", "textbed.heads.recurrent", "datasets", "torch.profiler")
"""What a run imports, sooner or later."""
_REAP_SECONDS = 0.01


@dataclass
class _Child:
    """A trial's process, which is a child of the warm one, not of ours."""

    pid: int
    starter: WarmStarter

    def poll(self) -> int | None:
        return self.starter.code(self.pid)


class WarmStarter:
    """Starts processes by forking, to be given to a worker in place of ``start_plainly``.

    Args:
        environment: of the warm process, such as OMP_NUM_THREADS, which libraries read as they are imported.
        modules: what it imports.
    """

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self._environment, self._modules = {**os.environ, **environment}, list(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._half = b""
        self._codes: dict[int, int] = {}
        self._begun: list[int] = []

    def __enter__(self) -> WarmStarter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # it ends at the end of its requests
            self._process.wait()
            self._process = None

    def __call__(self, words: Sequence[str], cwd: str, environment: Mapping[str, str], log: Path) -> Child:
        """Start ``words`` (interpreter, script, arguments) as a child of the warm process.

        The first start waits for the imports. Where these fail, it is started plainly, to fail by itself.
        """
        if self._process is None or self._process.poll() is not None:
            self._launch()
        assert self._process is not None
        assert self._process.stdin is not None
        request = {"words": list(words[1:]), "cwd": cwd, "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._begun:
            if not self._read(wait=True):
                return start_plainly(words, cwd, environment, log)
        return _Child(self._begun.pop(), self)

    def code(self, pid: int) -> int | None:
        """The exit code of a child; None while it runs."""
        if pid not in self._codes and not self._read(wait=False) and pid not in self._codes:
            return -signal.SIGTERM  # the warm process is gone, and its children were told to end
        return self._codes.get(pid)

    def _launch(self) -> None:
        self._half, self._begun = b"", []
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *self._modules],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def _read(self, wait: bool) -> bool:
        """Take in answers; False where no more will come."""
        assert self._process is not None
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        if not wait and not select.select([out], [], [], 0)[0]:
            return True
        text = os.read(out, 65_536)
        *lines, self._half = (self._half + text).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "code" in answer:
                self._codes[answer["pid"]] = answer["code"]
            else:
                self._begun.append(answer["pid"])
        return bool(text)


# The warm process

_exit_code: int | None = None
"""That of a child, when it has done its work."""


def _leave() -> None:
    """The last thing that a child does: taking all imported modules apart would cost it 2 s."""
    if _exit_code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)


def main(modules: Sequence[str]) -> None:
    """Import, then fork a child for each request until there are no more."""
    atexit.register(_leave)  # before all others, so called after them
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import may print is no answer
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, what children share
    half, children, more = b"", set[int](), True

    def answer(**content: Any) -> None:
        os.write(answers, json.dumps(content).encode() + b"\n")

    while more or children:
        if more and select.select([0], [], [], _REAP_SECONDS)[0]:
            text = os.read(0, 1 << 20)
            more = bool(text)
            *lines, half = (half + text).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    os.close(answers)
                    _become(request)
                with contextlib.suppress(OSError):  # both do, so that neither can be too late
                    os.setpgid(pid, pid)
                children.add(pid)
                answer(pid=pid)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                if not more:
                    select.select([], [], [], _REAP_SECONDS)
                break
            children.discard(pid)
            answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def _become(request: Mapping[str, Any]) -> NoReturn:
    """In the child: be the process that was asked for, to its end."""
    os.setpgid(0, 0)
    end_with_parent()
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    script, *arguments = request["words"]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    gc.unfreeze()
    global _exit_code
    try:
        runpy.run_path(script, run_name="__main__")
        sys.exit(0)
    except SystemExit as end:  # as Python has it: nothing is 0, a text is shown and 1
        _exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BaseException:
        _exit_code = 1
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
