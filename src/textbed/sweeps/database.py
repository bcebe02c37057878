"""A sweep's study in a PostgreSQL database, for workers that share no file system.

The study, and with it all that a worker has to know, lies where Optuna's ``RDBStorage`` keeps it. What files
and their locks do in a sweep's folder, advisory locks do here: such a lock belongs to a connection, and the
server takes it back when that ends, however it ends. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from textbed.errors import UserError
from textbed.sweeps.presence import BEAT_SECONDS, SignOfLife

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection

LOST_SECONDS = 30.0
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 6}
"""By these the server finds within 90 s that a machine is gone; most systems take two hours."""


class Database:
    """Where the studies of a sweep are kept, and who is at work on it.

    Args:
        url: as SQLAlchemy takes it, such as ``postgresql+psycopg://user@host/database``.
        name: that of the sweep in the database.

    Raises:
        UserError: the URL is none of PostgreSQL, or its driver is missing.
    """

    def __init__(self, url: str, name: str) -> None:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            parsed = make_url(url)
        except ArgumentError:
            raise UserError(
                f"sweep.storage={url}: expected a URL such as postgresql+psycopg://user@host/database."
            ) from None
        self.url, self.name, self.shown = url, name, parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() != "postgresql":
            raise UserError(
                f"sweep.storage={self.shown}: expected a PostgreSQL database, such as "
                "postgresql+psycopg://user@host/database: by its locks no trial is run twice. "
                "Without sweep.storage the study is a file in the sweep's folder."
            )
        try:
            parsed.get_dialect().import_dbapi()
        except ImportError as error:
            raise UserError(
                f"sweep.storage={self.shown}: {error}; pip install 'textbed[postgres]' has psycopg."
            ) from None

    def study_name(self, queue: str) -> str:
        return f"{self.name}/{queue}"

    @functools.cached_property
    def storage(self) -> BaseStorage:
        """Optuna's.

        Raises:
            UserError: the database cannot be reached.
        """
        import optuna
        from optuna.storages import RDBStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.errors(), self._session.held("tables"):  # two that make them at once would fail
            raw = RDBStorage(self.url, engine_kwargs={"pool_size": 1, "pool_pre_ping": True})
        return optuna.storages.get_storage(raw)  # reads of trials that have ended what it has read before

    @functools.cached_property
    def _session(self) -> _Session:
        return _Session(self.url)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """What is done inside, no other worker does at the same time."""
        return self._session.held(f"sweep {self.name}")

    def presence(self) -> DatabasePresence:
        return DatabasePresence(self.url)

    # -- the plan --------------------------------------------------------------------------------------------

    def plan(self) -> Mapping[str, Any]:
        """What :meth:`keep_plan` was given.

        Raises:
            UserError: there is no sweep of this name.
        """
        found = self._plan()
        if found is None:
            ending = self.study_name("trials").removeprefix(self.name)
            names = [one.study_name for one in self.storage.get_all_studies()]
            there = sorted(one.removesuffix(ending) for one in names if one.endswith(ending))
            raise UserError(
                f"{self.shown}: no sweep {self.name} is there; "
                + (f"there are {', '.join(there[-9:])}." if there else "there is none at all.")
            )
        return found

    def _plan(self) -> Mapping[str, Any] | None:
        with self.errors():
            for study in self.storage.get_all_studies():
                if study.study_name == self.study_name("trials"):
                    return study.user_attrs.get("plan")
        return None

    def is_there(self) -> bool:
        return self._plan() is not None

    def keep_plan(self, values: Mapping[str, Any]) -> None:
        """Put what a worker has to know where any can read it; the study has to be there."""
        study = self.storage.get_study_id_from_name(self.study_name("trials"))
        self.storage.set_study_user_attr(study, "plan", values)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """A database that cannot be reached, or is no longer, as one line.

        Raises:
            UserError: instead of SQLAlchemy's and Optuna's own.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
            raise UserError(
                f"sweep.storage={self.shown}: {str(cause).strip().splitlines()[0]}. The same command goes on "
                "with the sweep when the database can be reached."
            ) from error


class DatabasePresence(SignOfLife):
    """A worker's sign of life: a lock that it holds while it is connected, and when it was last heard of.

    It is taken for dead when the lock is free and nothing was heard of it for ``LOST_SECONDS``, in the
    server's time: a connection that is cut can be made again before.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._session = _Session(url)
        self._next = self._last = time.monotonic()

    def __enter__(self) -> DatabasePresence:
        self._connect()
        self._say()
        return self

    def __exit__(self, *_: object) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(SQLAlchemyError):  # then it will be found out
            self._session.run("DELETE FROM textbed_workers WHERE worker = :worker", worker=self.id)
            self._session.give_back(f"worker {self.id}")  # the server would a little after the end
        self._session.close()

    def beat(self) -> bool:
        if time.monotonic() < self._next:
            return True
        self._connect()
        in_time = time.monotonic() - self._last < LOST_SECONDS
        self._say()
        return in_time

    def _connect(self) -> None:
        if not self._session.is_connected():
            self._session.connect()
            with self._session.held("tables"):
                self._session.run(
                    "CREATE TABLE IF NOT EXISTS textbed_workers (worker text PRIMARY KEY, seen timestamptz)"
                )
            self._session.take(f"worker {self.id}")

    def _say(self) -> None:
        before = time.monotonic()
        self._session.run(
            "INSERT INTO textbed_workers VALUES (:worker, now()) "
            "ON CONFLICT (worker) DO UPDATE SET seen = excluded.seen",
            worker=self.id,
        )
        self._last, self._next = before, before + BEAT_SECONDS

    def _is_heard_of(self, worker: str) -> bool:
        self._connect()
        key = f"worker {worker}"
        if not self._session.try_to_take(key):
            return True
        self._session.give_back(key)
        heard = (
            "SELECT 1 FROM textbed_workers WHERE worker = :worker AND seen > now() - :limit * interval '1 s'"
        )
        return self._session.run(heard, worker=worker, limit=LOST_SECONDS) is not None


class _Session:
    """A connection of its own, for the locks that belong to it."""

    def __init__(self, url: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None

    def connect(self) -> None:
        self.close()
        self._connection = self._engine.connect()
        for name, seconds in _KEEPALIVE.items():
            self._connection.exec_driver_sql(f"SET {name} = {seconds}")

    def is_connected(self) -> bool:
        """Whether the connection is still there; asks the server."""
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(SQLAlchemyError):
            if self._connection is not None:
                self._connection.exec_driver_sql("SELECT 1")
                return True
        return False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def take(self, name: str) -> None:
        self._call("pg_advisory_lock", name)

    def try_to_take(self, name: str) -> bool:
        return bool(self._call("pg_try_advisory_lock", name))

    def give_back(self, name: str) -> None:
        self._call("pg_advisory_unlock", name)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        if not self.is_connected():
            self.connect()
        self.take(name)
        try:
            yield
        finally:
            with contextlib.suppress(SQLAlchemyError):  # with the connection the lock is gone too
                self.give_back(name)

    def _call(self, function: str, name: str) -> Any:
        # the number of a lock has 64 bits; those of all sweeps and workers of a database are apart
        digest = hashlib.sha256(f"textbed {name}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        return self.run(f"SELECT {function}(:key)", key=key)

    def run(self, statement: str, **values: Any) -> Any:
        """The first value that a statement gives; None where it gives none."""
        from sqlalchemy import text

        assert self._connection is not None
        result = self._connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None
