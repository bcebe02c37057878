"""A PostgreSQL server for a test, from the system's package."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of initdb and postgres; skips where there is none."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: -float(place.parent.name))
    for place in places:
        if (place / "postgres").exists():
            return place
    pytest.skip("no PostgreSQL server here: Debian's package postgresql has one")


@contextmanager
def server(*options: str) -> Iterator[str]:
    """A server that listens on a socket in a folder of its own.

    Args:
        options: further ones of ``postgres``.

    Yields:
        The URL of its database, as ``sweep.storage`` takes it.
    """
    place = programs()
    # it refuses to be run by root, and a socket's path may have no more than 107 characters
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="textbed-"))
    if user:
        shutil.chown(folder, user)
    log = folder / "log"
    try:
        subprocess.run(
            [place / "initdb", "-D", folder / "data", "-U", "textbed", "-A", "trust", "--no-sync"],
            check=True,
            user=user,
            cwd=folder,
            capture_output=True,
        )
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [place / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F", *options],
                user=user,
                cwd=folder,
                stdout=out,
                stderr=out,
            )
        try:
            while b"ready to accept connections" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
            yield f"postgresql+psycopg://textbed@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for those that are connected
            process.wait()
    finally:
        shutil.rmtree(folder)
