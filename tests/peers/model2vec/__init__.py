"""A stand-in for model2vec: the calls that benchmarks/sides makes, with naive Bayes behind them."""

from __future__ import annotations

from typing import Any


class StaticModel:
    """A table of a row for each token."""

    def __init__(self, vectors: Any, tokenizer: Any, *, normalize: bool = True) -> None:
        if str(vectors.dtype) != "float32" or len(vectors) != tokenizer.get_vocab_size():
            raise ValueError(f"{vectors.shape} {vectors.dtype}: expected a float32 row for each token")
        self.tokenizer = tokenizer
