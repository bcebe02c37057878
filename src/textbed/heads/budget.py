"""How wide a head must be to have a given number of parameters, so that heads compare at equal size."""

from __future__ import annotations

from collections.abc import Callable


def widest(count: Callable[[int], int], most: int) -> int | None:
    """The largest width, from 1 up, of which ``count`` is not above ``most``; None where that of 1 is.

    ``count`` says how many parameters a width gives, must grow with it, and is asked 2 log2(width) times.
    """
    if count(1) > most:
        return None
    below, above = 1, 2
    while count(above) <= most:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) <= most else (below, middle)
    return below
