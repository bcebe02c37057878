"""A worker's sign of life, in whatever shape others can see it."""

from __future__ import annotations

import os
import secrets
import socket
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

BEAT_SECONDS = 10.0


class SignOfLife(ABC):
    """That of a worker; a context, during which it is alive to others.

    Attributes:
        id: what others know it by.
    """

    def __init__(self) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def beat(self) -> bool:
        """Be heard of; False where it was not for so long that it may have been taken for dead."""

    def is_alive(self, worker: str) -> bool:
        """Whether another worker is, as far as can be told from here."""
        if worker in (self.id, ""):  # it died before it said who it was
            return bool(worker)
        return self._is_heard_of(worker)

    @abstractmethod
    def _is_heard_of(self, worker: str) -> bool:
        """Whether there is a sign of another worker."""


def host_of(worker: str) -> str:
    """The machine of a worker."""
    return worker.rsplit("-", 2)[0]
