"""Texts as fastText reads them. Imports nothing: the script that trains it is timed with its imports."""

from __future__ import annotations


def fasttext_line(text: str, label: int | None = None) -> str:
    """A text as fastText's own examples prepare it: signs apart, lower case, on one line."""
    text = text.replace("<br />", " ")
    for sign in ".!?,'/()\"":
        text = text.replace(sign, f" {sign} ")
    line = " ".join(text.lower().split())
    return line if label is None else f"__label__{label} {line}"
