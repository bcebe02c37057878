"""Which tables get a dense and which a sparse gradient, and the rule of thumb that chooses.

Shape letters: V rows of a table, D width of a row.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Gradient = Literal["auto", "dense", "sparse", "lazy"]

UNTOUCHED = 8
"""A table is far larger than what a step touches where it has this many rows for each token of a step."""
UNTOUCHED_ALIKE = 4
"""The same where dense and lazy updates are the same to the last bit, so that only time decides."""
LARGE = 1 << 24
"""Numbers of a table from which ``auto`` may change the arithmetic: 64 MiB, no vocabulary of usual size."""


def is_worth_it(rows: int, dim: int, tokens: float, alike: bool) -> bool:
    """Whether lazy updates of a table (V, D) pay, by what was measured (docs/log.md).

    Args:
        rows: V.
        dim: D.
        tokens: mean number of tokens of an optimizer step. Frequent words come often in it, so that it
            touches fewer rows, a third to two thirds as many.
        alike: whether the optimizer leaves alone a row whose gradient is zero: then both ways end with the
            same bits, and one is chosen by its time alone. Otherwise lazy is for tables with which a dense
            step is out of proportion: those of at least ``LARGE`` numbers.
    """
    if alike:
        return rows >= UNTOUCHED_ALIKE * tokens
    return rows >= UNTOUCHED * tokens and rows * dim >= LARGE


def set_gradient(
    front_end: nn.Module, gradient: Gradient, tokens: float = 0.0, alike: bool = False
) -> dict[str, nn.Embedding]:
    """Make the tables of a front end give dense or sparse gradients.

    Args:
        front_end: whose ``nn.Embedding`` modules are the tables.
        gradient: ``auto`` decides for each by :func:`is_worth_it`. One that divides gradients by frequency
            stays dense, as PyTorch has no other.
        tokens: mean number of tokens of an optimizer step, for ``auto``.
        alike: as there.

    Returns:
        The tables with sparse gradients, by their names in ``front_end``.
    """
    chosen = {}
    for name, table in front_end.named_modules():
        if not isinstance(table, nn.Embedding) or table.scale_grad_by_freq:
            continue
        table.sparse = gradient in ("sparse", "lazy") or (
            gradient == "auto" and is_worth_it(table.num_embeddings, table.embedding_dim, tokens, alike)
        )
        if table.sparse and table.weight.requires_grad:
            chosen[name] = table
    return chosen
