"""The processes of one run: how they learn its folder, prepare one after the other, and notice that one died.

Lightning's own launcher is rank 0 itself and starts the others as training begins; ``torchrun`` and SLURM's
``srun`` start all at once. In either case every other rank holds a connection to rank 0 from beginning to
end, over which a few words go: where the run folder is, that data and vocabulary lie ready in the cache, that
a rank has failed. It breaks as soon as a process dies, however it dies and whatever the backend, while a
collective operation that waits for the dead may go on waiting (gloo up to 30 minutes, NCCL up to 10). Only a
machine that loses its power breaks no connection; there that wait is the limit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities import rank_zero
from torch.distributed import TCPStore

from textbed import config
from textbed.errors import UserError
from textbed.runs.folder import LINK

ADDRESS = "TEXTBED_RANK_ZERO"
"""Variable of the environment: where rank 0 listens, for the processes that Lightning starts beside it."""
GRACE = 10.0
"""Seconds that rank 0 has to end by itself once another rank is lost, before it is ended: its main thread may
hang in a collective operation. Loggers take up to five to close."""
JOIN = timedelta(minutes=30)
"""How long the ranks that a cluster starts wait for rank 0: machines may begin at different times."""
# What launchers tell a process of its place, and what Lightning's sets for the processes it starts.
_PLACE = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID", ADDRESS,
)  # fmt: skip

_runs = itertools.count()
"""Runs of these processes so far: the store may outlive the first."""


class RankLost(UserError):
    """Another process of the run was killed, or failed."""


@contextlib.contextmanager
def joined(trainer: Mapping[str, Any]) -> Iterator[Ranks]:
    """The processes of the run that the ``trainer`` group describes, from the first of its life to the last.

    Raises:
        UserError: the launcher started another number of processes than the trainer is set to, or they
            cannot reach each other.
    """
    before = {key: os.environ[key] for key in _PLACE if key in os.environ}
    well = False
    if LINK in os.environ and ADDRESS not in os.environ:
        # A trial of a sweep is a run of its own, whatever started the sweep.
        for key in before:
            del os.environ[key]
    ranks = _join(trainer)
    try:
        yield ranks
        well = True
    finally:
        ranks.leave(well)
        for key in _PLACE:  # a later run in this process is not to take itself for a part of this one
            os.environ.pop(key, None)
        os.environ.update(before)


def _join(trainer: Mapping[str, Any]) -> Ranks:
    environment = _environment()
    nodes, devices = trainer.get("num_nodes", 1), _devices(trainer)
    outside = environment.creates_processes_externally and ADDRESS not in os.environ
    if outside and devices is not None and (environment.world_size() > 1 or not config.is_alone(trainer)):
        try:
            environment.validate_settings(devices, nodes)
        except ValueError as error:
            raise UserError(f"trainer.devices={devices}: {error}") from error
    _set_rank(0)
    if config.is_alone(trainer):
        return Ranks()
    if outside:
        rank = environment.global_rank()
    else:  # where it found the devices itself, Lightning tells those it starts how many there are
        here = devices or int(os.environ.get("WORLD_SIZE", 0)) // nodes or 1
        rank = environment.node_rank() * here + environment.local_rank()
    ranks = Ranks(rank, others=environment.world_size() - 1 if outside else 0)
    _set_rank(rank)
    if ADDRESS in os.environ:
        ranks.join(os.environ[ADDRESS])
        return ranks
    if not outside and nodes == 1:
        os.environ[ADDRESS] = ranks.listen("127.0.0.1")
        return ranks
    if "MASTER_PORT" not in os.environ and isinstance(environment, LightningEnvironment):
        raise UserError(
            f"trainer.num_nodes={nodes}: the machines do not know of each other; set MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK in the environment of each, or start the run with torchrun or srun."
        )
    address, port = environment.main_address, environment.main_port
    try:
        # Training will use it too: torchrun's own, else one that this process and the backend share.
        theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            address,
            port,
            is_master=ranks.first and not theirs,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=JOIN,
        )
        key = f"textbed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_runs)}"
        if ranks.first:
            store.set(key, ranks.listen(address))
        else:
            ranks.join(store.get(key).decode())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes of this run do not meet at {address}:{port}: {reason}") from error
    if not outside:
        os.environ[ADDRESS] = ranks.listen("127.0.0.1") if ranks.first else store.get(key).decode()
    ranks.store = store
    return ranks


def _set_rank(rank: int) -> None:
    # Lightning would read it from the environment until it has set up its strategy, and may read it wrongly.
    rank_zero.rank_zero_only.rank = rank  # type: ignore[attr-defined]


def _environment() -> ClusterEnvironment:
    """Who started this process, in the order in which Lightning looks."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            try:
                return kind()
            except RuntimeError as error:  # srun without --ntasks-per-node
                raise UserError(str(error)) from error
    return LightningEnvironment()


def _devices(trainer: Mapping[str, Any]) -> int | None:
    """Devices of each machine; None where that is for Lightning to find out."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return int(devices) if str(devices).isdecimal() else None


class Ranks:
    """The processes of a run as one of them sees them; alone in its run it is rank 0, and nobody listens.

    Args:
        rank: which of them this is.
        others: how many a launcher has started beside it.
    """

    def __init__(self, rank: int = 0, others: int = 0) -> None:
        self.rank = rank
        self.others = others
        self.store: TCPStore | None = None  # to be kept while the backend uses the same
        self.lost: str | None = None
        """Of rank 0: what became of another, once one is lost."""
        self.on_loss: Callable[[], Any] = lambda: None
        """Of rank 0: called as soon as another rank is lost."""
        self.give_up: Callable[[str], Any] = lambda line: None
        """Of rank 0: called with what happened before a process is ended that does not end by itself."""
        self._words: dict[str, Any] = {}  # what rank 0 has told
        self._others: list[Connection] = []
        self._zero: Connection | None = None
        self._listeners: list[Listener] = []
        self._key = secrets.token_bytes(32)
        self._left = False
        self._changed = threading.Condition()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, **words: Any) -> None:
        """Rank 0 tells the others something, also those that join later."""
        with self._changed:
            self._words |= words
            for connection in self._others:
                _send(connection, words)

    def hear(self, word: str) -> Any:
        """What rank 0 tells under that name, as soon as it does; where rank 0 fails, this process ends."""
        with self._changed:
            self._changed.wait_for(lambda: word in self._words)
            return self._words[word]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 does the block first, and fills the cache; then all others do, and read from it."""
        if not self.first:
            self.hear("ready")
        yield
        if self.first:
            self.tell(ready=True)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error that follows from the loss of another rank into one that tells of the loss.

        Rank 0 speaks for all: an error in another rank is told to it, and that process ends.

        Raises:
            RankLost: another rank was killed, or failed.
        """
        try:
            yield
        except BaseException as error:
            ours = not isinstance(error, UserError | KeyboardInterrupt | SystemExit)
            if not self.first:
                self._fail(error, ours)
            if ours and self._others:
                with self._changed:  # the backend may notice a moment before the connection breaks
                    self._changed.wait_for(lambda: self.lost is not None, timeout=2)
            if ours and self.lost is not None:
                raise RankLost(self.lost) from error
            raise

    def leave(self, well: bool) -> None:
        """Say goodbye: from now on the end of this process is no loss."""
        with self._changed:
            if self.first and not well:  # who knocks a moment later would report that nobody is there
                self._changed.wait_for(lambda: len(self._others) >= self.others, timeout=GRACE)
            self._left = True
            self._changed.notify_all()
            words = {"ended": "well" if well else "badly"}
            for connection in [*self._others, *filter(None, [self._zero])]:
                _send(connection, words)
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # wakes the thread that waits there
                socket.create_connection(("127.0.0.1", listener.address[1]), timeout=1).close()

    # -- connections -----------------------------------------------------------------------------------------

    def listen(self, host: str) -> str:
        """Wait for others from now on; returns what they have to know to join."""
        local = host in ("127.0.0.1", "localhost")
        listener = Listener((host if local else "", 0), backlog=1024)
        self._listeners.append(listener)
        self._start(self._accept, listener)
        return json.dumps([host, listener.address[1], self._key.hex()])

    def join(self, address: str) -> None:
        """Connect to rank 0."""
        host, port, key = json.loads(address)
        try:
            self._zero = Client((host, port), authkey=bytes.fromhex(key))
        except OSError as error:
            raise UserError(
                f"process {self.rank} cannot reach process 0 at {host}:{port} ({error}): the machines of a "
                "run must be able to connect to each other on any port"
            ) from error
        _send(self._zero, {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname()})
        self._start(self._hear_zero, self._zero)

    def _start(self, target: Callable[[Any], None], argument: Any) -> None:
        threading.Thread(target=target, args=[argument], daemon=True, name="ranks").start()

    def _accept(self, listener: Listener) -> None:
        while not self._left:
            with contextlib.suppress(OSError):  # who knocked has gone again
                self._start(self._hear_other, listener.accept())
        listener.close()

    def _hear_other(self, connection: Connection) -> None:
        """Rank 0 listens to one of the others until that leaves."""
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            other = json.loads(connection.recv_bytes())
        except Exception:  # a stranger
            connection.close()
            return
        with self._changed:
            self._others.append(connection)
            _send(connection, self._words)
            self._changed.notify_all()
        last: dict[str, Any] = {}
        with contextlib.suppress(EOFError, OSError):
            last = json.loads(connection.recv_bytes())
        if last.get("ended") != "well" and not self._left:
            what = f"failed: {last['failed']}" if "failed" in last else "was killed, or crashed"
            self._lose(f"process {other['rank']} of this run (pid {other['pid']} on {other['host']}) {what}")

    def _hear_zero(self, connection: Connection) -> None:
        """Another rank listens to rank 0 until that leaves, and does not outlive its failure."""
        words: dict[str, Any] = {}
        with contextlib.suppress(EOFError, OSError):
            while "ended" not in words:
                words = json.loads(connection.recv_bytes())
                with self._changed:
                    self._words |= words
                    self._changed.notify_all()
        if self._left or words.get("ended") == "well":
            return
        if "ended" not in words and self.rank == 1:  # one of them speaks
            print(f"error: process 0 of this run was killed, or crashed{self._go_on()}", file=sys.stderr)
        _end_process()

    # -- losses ----------------------------------------------------------------------------------------------

    def _lose(self, line: str) -> None:
        with self._changed:
            if self.lost is not None or self._left:
                return
            self.lost = line = f"{line}{self._go_on()}"
            self._changed.notify_all()
        self.on_loss()
        self.tell(ended="badly")
        with self._changed:
            if self._changed.wait_for(lambda: self._left, timeout=GRACE):
                return
        self.give_up(line)
        _end_process()

    def _go_on(self) -> str:
        folder = self._words.get("folder")
        return f"; go on with: python train.py resume={folder}" if folder else ""

    def _fail(self, error: BaseException, ours: bool) -> None:
        """End this process, which is not rank 0, for an error of its own or one that follows from a loss."""
        with self._changed:
            if ours:  # of a loss rank 0 tells, or its own is noticed: then this process ends here
                self._changed.wait_for(lambda: False, timeout=2)
            line = " ".join(str(error).split())
            if ours:
                traceback.print_exception(error)
                line = f"{type(error).__name__}: {line}"
            if self._zero is not None:
                _send(self._zero, {"failed": line or "interrupted"})
        _end_process()


def _send(connection: Connection, words: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who is gone hears nothing
        connection.send_bytes(json.dumps(words).encode())


def _end_process() -> None:
    """End a process at once: its main thread may hang, and what is to be kept has been written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
