"""The end of a process, without taking all its modules apart: that costs as much as a small training."""

from __future__ import annotations

import atexit
import logging
import os
import sys

from textbed.imports import PLAIN


class QuickEnd:
    """Ends the process as the last of its exit handlers, with ``code``; where that is None, Python does.

    Made before anything else registers a handler, it is called when threads and all other handlers are done.
    A program that was run inside a longer process, as by runpy, does not end that one. With
    ``TEXTBED_PLAIN_START=1`` in the environment Python ends it as ever.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._program = sys.modules["__main__"]
        if os.environ.get(PLAIN) != "1":
            atexit.register(self._leave)

    def _leave(self) -> None:
        if self.code is not None and sys.modules["__main__"] is self._program:
            logging.shutdown()  # the one handler that is older
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)
