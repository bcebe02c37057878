"""How wide a head must be to have a given number of parameters, so that heads compare at equal size."""

from __future__ import annotations

from collections.abc import Callable


def widest(count: Callable[[int], int], most: int) -> int | None:
    """The largest width, from 1 up, of which ``count`` is not above ``most``; None where that of 1 is.

    ``count`` says how many parameters a width gives, and is asked 2 log2(width) times.

    Raises:
        ValueError: twice the width does not give more parameters, so that no width would be the largest.
    """
    size = count(1)
    if size > most:
        return None
    below, above = 1, 2
    while (larger := count(above)) <= most:
        if larger <= size:
            raise ValueError(f"a width of {above} gives {larger:,} parameters, no more than one of {below}")
        size, below, above = larger, above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) <= most else (below, middle)
    return below
