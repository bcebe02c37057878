"""The rule that chooses between dense and lazy updates, and where it is set."""

from __future__ import annotations

import pytest
from torch import nn

from textbed.embedding.gradient import LARGE, is_worth_it, set_gradient


@pytest.mark.parametrize(
    ("rows", "dim", "tokens", "alike", "lazy"),
    [
        (20_000, 100, 5_000, False, False),  # MR's words: dense, as long as untouched rows would move
        (20_001, 100, 5_000, True, True),
        (19_999, 100, 5_000, True, False),
        (50_000, 300, 70_000, True, False),  # IMDB's words: a step touches much of the table
        (2_000_000, 16, 70_000, False, True),  # hashed bigrams
        (2_000_000, 8, 70_000, False, False),  # 16 million numbers, just below LARGE
        (500_000, 100, 70_000, False, False),  # large, but not so much larger than a step
    ],
)
def test_the_rule(rows, dim, tokens, alike, lazy):
    assert is_worth_it(rows, dim, tokens, alike) == lazy


def front_end() -> nn.Module:
    small, large = nn.Embedding(10, 2), nn.Embedding(LARGE // 8, 8, _freeze=False, device="meta")
    return nn.ModuleDict({"small": small, "large": large, "frozen": nn.Embedding(10, 2, _freeze=True)})


def test_every_table_is_judged_by_itself():
    made = front_end()
    assert set(set_gradient(made, "auto", tokens=100.0)) == {"large"}
    assert [table.sparse for table in made.values()] == [False, True, False]
    assert set(set_gradient(made, "auto", tokens=1.0, alike=True)) == {"small", "large"}  # not the frozen one
    assert set_gradient(made, "dense") == {}
    assert not any(table.sparse for table in made.values())
    assert set(set_gradient(made, "lazy")) == {"small", "large"}
    made["small"].scale_grad_by_freq = True
    assert set(set_gradient(made, "lazy")) == {"large"}
