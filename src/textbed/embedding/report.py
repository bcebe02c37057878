"""What a table did: what it covers, which rows moved and how far, and what lies beside what.

Plain functions of arrays. Shape letters: V rows of the table (tokens of the vocabulary), D width of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """Some of the tokens of a text."""

    types: int
    """Distinct tokens."""
    tokens: int
    """Tokens, each as often as it occurs."""


@dataclass(frozen=True)
class Coverage:
    """How much of a text the vocabulary and the pretrained vectors know."""

    all: Part
    known: Part
    """Those in the vocabulary."""
    only_here: Part
    """Of these, those that the training text lacks: they have a row, which training did not see."""
    vectors: Part | None
    """Those in the vocabulary that have a vector; None where there are no vectors."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the share of each part, 0 to 1; null of a text without a token."""

        def with_shares(part: Part) -> dict[str, Any]:
            return {
                **part._asdict(),
                "share_of_types": part.types / self.all.types if self.all.types else None,
                "share_of_tokens": part.tokens / self.all.tokens if self.all.tokens else None,
            }

        return {
            **self.all._asdict(),
            "known": with_shares(self.known),
            "known_but_not_in_training": with_shares(self.only_here),
            "with_vector": None if self.vectors is None else with_shares(self.vectors),
        }


def coverage(
    counts: np.ndarray,
    unknown: np.ndarray,
    *,
    found: np.ndarray | None = None,
    train_counts: np.ndarray | None = None,
) -> Coverage:
    """Count what a text holds of the vocabulary and of the vectors.

    Args:
        counts: (V,) how often each token of the vocabulary occurs in the text, 0 for the unknown token.
        unknown: how often each distinct token outside the vocabulary occurs.
        found: (V,) bool, which tokens have a pretrained vector; None where there are none.
        train_counts: (V,) how often each occurs in the training text; None where this is that text.
    """
    counts, unknown = np.asarray(counts), np.asarray(unknown)

    def part(which: np.ndarray) -> Part:
        return Part(int(np.count_nonzero(counts[which])), int(counts[which].sum()))

    known = part(np.ones(len(counts), bool))
    return Coverage(
        all=Part(known.types + int(np.count_nonzero(unknown)), known.tokens + int(unknown.sum())),
        known=known,
        only_here=Part(0, 0) if train_counts is None else part(np.asarray(train_counts) == 0),
        vectors=None if found is None else part(np.asarray(found)),
    )
