"""A warm start: trials begin in processes that have imported what they need.

The imports of a run take 6 to 9 s, and there is one run after the other. Either one process does them once
for all, waits, and forks a child for each trial (:class:`WarmStarter`); or a process stands by for each trial
to come, and does them while others train (:class:`SpareStarter`). In both ways the trial is the same script
with the same arguments in a process group, environment and folder of its own. Nothing is computed and no
device is touched before, so that a trial is as apart from the others, and gives the same figures to the last
bit, as if it had been started by itself; its command line is still the plain one. Linux alone: elsewhere
libraries do not survive a fork.

``python -m textbed.sweeps.warm MODULE ...`` is the process that forks. When it has imported, it says that it
is ready; it reads a request a line (JSON) and answers with the child's number when it begins, and with its
exit code when it has ended. With ``--once`` it becomes itself what the first request asks for.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from textbed.sweeps.trial import Child, Process, Starter, end_with_parent, environment_of_trials

MODULES = (
    "textbed.training",
    "textbed.heads.recurrent",
    "datasets",
    "torch.profiler",
    "matplotlib.backends.backend_agg",
)
"""What a run imports, sooner or later."""


class _Importing(Starter):
    """Starts processes that have imported; a context that ends those which nothing was asked of.

    Args:
        environment: of these processes, such as OMP_NUM_THREADS, which libraries read as they are imported.
        modules: what they import.
    """

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self._environment, self._modules = {**environment_of_trials(), **environment}, list(modules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError

    def _launch(self, *options: str, answers: int, errors: int | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *options, *self._modules],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=errors,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def _ask(
    process: subprocess.Popen[bytes],
    words: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    log: Path,
) -> None:
    """Send a request.

    Args:
        words: interpreter, script, arguments.
    """
    assert process.stdin is not None
    request = {"words": list(words[1:]), "cwd": cwd, "environment": dict(environment), "log": str(log)}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()


class SpareStarter(_Importing):
    """Starts processes of which up to ``most`` stand by: for devices, of which a fork must share nothing."""

    def __init__(
        self, environment: Mapping[str, str], modules: Sequence[str] = MODULES, most: int = 1
    ) -> None:
        super().__init__(environment, modules)
        self._most = most
        self._spares: list[subprocess.Popen[bytes]] = []

    def expect(self, count: int) -> None:
        while len(self._spares) < min(count, self._most):
            # what its imports may say has been said by the first trials, which start plainly
            quiet = subprocess.DEVNULL
            self._spares.append(self._launch("--once", answers=quiet, errors=quiet))

    def __call__(self, words: Sequence[str], cwd: str, environment: Mapping[str, str], log: Path) -> Child:
        """Start ``words`` in a process that stands by; plainly where there is none, or it has ended."""
        while self._spares:
            spare = self._spares.pop(0)
            with contextlib.suppress(OSError):
                if spare.poll() is None:
                    _ask(spare, words, cwd, environment, log)
                    assert spare.stdin is not None
                    spare.stdin.close()
                    return Process(spare)
        return super().__call__(words, cwd, environment, log)

    def close(self) -> None:
        for spare in self._spares:
            spare.kill()
            spare.communicate()
        self._spares.clear()


class WarmStarter(_Importing):
    """Starts processes by forking them from one that has imported."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        super().__init__(environment, modules)
        self._forking: _Forking | None = None
        self._failed = False

    def close(self) -> None:
        if self._forking is not None:
            self._forking.close()
            self._forking = None

    def is_ready(self) -> bool:
        """Whether the imports are done, which the first call begins; also where they cannot be done."""
        if self._failed:
            return True
        if self._forking is None or self._forking.has_ended():
            self._forking = _Forking(self._launch(answers=subprocess.PIPE))
        self._failed = not self._forking.read(wait=False) and not self._forking.ready
        return self._failed or self._forking.ready

    def __call__(self, words: Sequence[str], cwd: str, environment: Mapping[str, str], log: Path) -> Child:
        """Start ``words`` as a child of the warm process, as soon as that is ready.

        Where its imports fail, they are started plainly, to fail by themselves.
        """
        while not self.is_ready():
            assert self._forking is not None
            self._forking.read(wait=True)
        if not self._failed:
            assert self._forking is not None
            with contextlib.suppress(OSError):
                _ask(self._forking.process, words, cwd, environment, log)
                while not self._forking.begun and self._forking.read(wait=True):
                    pass
                if self._forking.begun:
                    return _Forked(self._forking.begun.pop(), self._forking)
        return super().__call__(words, cwd, environment, log)


class _Forking:
    """The process that forks, as the worker sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process, self.answers = process, process.stdout.fileno()
        self.ready = False
        self.begun: list[int] = []
        self._codes: dict[int, int] = {}
        self._half = b""

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        if not self.ready:  # it need not do its imports to the end, having no children
            self.process.kill()
        self.process.communicate()  # it ends at the end of its requests, with the last child

    def code(self, pid: int) -> int | None:
        """The exit code of a child; None while it runs."""
        if pid not in self._codes and not self.read(wait=False) and pid not in self._codes:
            return -signal.SIGTERM  # the process is gone, and its children were told to end
        return self._codes.get(pid)

    def read(self, wait: bool) -> bool:
        """Take in answers; False where no more will come."""
        if not wait and not select.select([self.answers], [], [], 0)[0]:
            return True
        text = os.read(self.answers, 65_536)
        *lines, self._half = (self._half + text).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "code" in answer:
                self._codes[answer["pid"]] = answer["code"]
            elif "pid" in answer:
                self.begun.append(answer["pid"])
            else:
                self.ready = True
        return bool(text)


class _Forked:
    """A trial's process, which is a child of the one that forks, not of ours."""

    def __init__(self, pid: int, forking: _Forking) -> None:
        self.pid, self._forking = pid, forking

    @property
    def sentinel(self) -> int | None:
        return self._forking.answers

    def poll(self) -> int | None:
        return self._forking.code(self.pid)


# The process that imports

_exit_code: int | None = None
"""That of a trial's process, when it has done its work."""


def _leave() -> None:
    """The last thing that it does: taking all imported modules apart would cost a child 2 s."""
    if _exit_code is not None:
        # What the trial itself has left open; an instance's own __class__ could be anything.
        files = [one for one in gc.get_objects() if issubclass(type(one), io.IOBase)]
        for file in [*files, sys.stdout, sys.stderr]:
            if not file.closed and file.writable():
                file.flush()
        os._exit(_exit_code)


def main(modules: Sequence[str], once: bool = False) -> None:
    """Import; then fork a child for each request until there are no more, or ``once`` be the first."""
    atexit.register(_leave)  # before all others, so called after them
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import may print is no answer
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # here and in the children: the collector would touch, and so copy, what they share
    if once:
        line = sys.stdin.buffer.readline()
        if line.endswith(b"\n"):
            _become(json.loads(line))
        return

    def answer(**content: Any) -> None:
        os.write(answers, json.dumps(content).encode() + b"\n")

    told, tell = os.pipe()
    for end in (told, tell):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)  # so that the end of a child ends the wait below
    answer(ready=True)
    half, children, more = b"", set[int](), True
    while more or children:
        readable, _, _ = select.select([told, 0] if more else [told], [], [])
        if told in readable:
            os.read(told, 4096)
        if 0 in readable:
            text = os.read(0, 1 << 20)
            more = bool(text)
            *lines, half = (half + text).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (told, tell, answers):
                        os.close(descriptor)
                    _become(json.loads(line))
                with contextlib.suppress(OSError):  # both do, so that neither can be too late
                    os.setpgid(pid, pid)
                children.add(pid)
                answer(pid=pid)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def _become(request: Mapping[str, Any]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    with contextlib.suppress(PermissionError):  # one that was not forked leads a session
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
    main([name for name in sys.argv[1:] if name != "--once"], "--once" in sys.argv)
