"""Errors that are the user's to mend: one clear line each, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: a config key, a file, a row.

    The message is one line. It names the key, file or row, says what was expected and how to mend it.
    ``train.py`` and the scripts print it and exit; anything else that is raised is our mistake and keeps its
    traceback.
    """


def nearest(word: object, choices: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the choice nearest to ``word``; empty where none is near."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""
