"""What the value of a key must be, and the words for it.

Stands by itself, so that a model that is loaded without Hydra can have its arguments looked at too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What one value must be. ``kinds`` holds ``type(None)`` where null is allowed."""

    kinds: tuple[type, ...]
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None  # the value itself is allowed
    above: float | None = None  # the value itself is not
    maximum: float | None = None
    below: float | None = None
    finite: bool = True
    sources: tuple[str, ...] | None = None  # data only: the sources that read this key
    path: bool = False  # a file or folder: a leading ~ stands for the home folder
    each: Rule | None = None  # of a list: what each of its entries must be

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is allowed. True and False are no numbers; a whole number is a number."""
        if value is None:
            return type(None) in self.kinds
        if self.choices is not None and isinstance(value, str) and value in self.choices:
            return True
        if isinstance(value, bool):
            return bool in self.kinds
        if isinstance(value, int | float):
            if not (isinstance(value, self.kinds) or (isinstance(value, int) and float in self.kinds)):
                return False
            if math.isnan(value) or (self.finite and math.isinf(value)):
                return False
            return (
                (self.minimum is None or value >= self.minimum)
                and (self.above is None or value > self.above)
                and (self.maximum is None or value <= self.maximum)
                and (self.below is None or value < self.below)
            )
        if isinstance(value, str) and self.choices is not None:
            return False
        if isinstance(value, list) and self.each is not None and not all(map(self.each.holds, value)):
            return False
        return isinstance(value, self.kinds)

    def expected(self) -> str:
        """What is allowed, in words: ``a whole number of at least 1, or null``."""
        words = [", ".join(str(choice) for choice in self.choices)] if self.choices else []
        bounds = [
            f"{sign} {bound}"
            for sign, bound in (
                ("of at least", self.minimum),
                ("above", self.above),
                ("of at most", self.maximum),
                ("below", self.below),
            )
            if bound is not None
        ]
        names = {bool: "true or false", str: "text", list: "a list", dict: "a mapping", type(None): "null"}
        if int in self.kinds or float in self.kinds:
            number = "a number" if float in self.kinds else "a whole number"
            words.append(" ".join([number, " and ".join(bounds)]) if bounds else number)
        if self.each is not None:
            names[list] = f"a list, of each entry {self.each.expected()}"
        for kind in self.kinds:
            if kind in names and not (kind is str and self.choices):
                words.append(names[kind])
        if len(words) == 1:
            return f"one of {words[0]}" if self.choices else words[0]
        return ("one of " if self.choices else "") + ", ".join(words[:-1]) + f", or {words[-1]}"
