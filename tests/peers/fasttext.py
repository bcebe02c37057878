"""A stand-in for fastText: the calls that benchmarks/sides makes, with naive Bayes behind them.

Arguments have the names and the order that fastText gives them, and a wrong one is a TypeError here too.
"""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

from naive_bayes import NaiveBayes

LABEL = "__label__"


class _Model:
    """What fastText's Python class calls ``f``."""

    def __init__(self, bayes: NaiveBayes[str]) -> None:
        self.bayes = bayes

    def predict(self, text: str, k: int, threshold: float, on_unicode_error: str) -> list[tuple[float, str]]:
        if not text.endswith("\n"):
            raise ValueError("fastText reads a line")
        return [(1.0, self.bayes.predict(text.split()))]


class Model:
    def __init__(self, lines: list[list[str]], least: int) -> None:
        labels = [line[0] for line in lines]
        documents = [line[1:] for line in lines]
        if not all(label.startswith(LABEL) for label in labels):
            raise ValueError(f"a line does not begin with {LABEL}")
        self.f = _Model(NaiveBayes(documents, labels))
        counts = Counter(word for words in documents for word in words)
        counts["</s>"] = len(lines)  # fastText counts the end of a line as a word
        self.counts = {word: count for word, count in counts.most_common() if count >= least}

    def predict(self, text: list[str], k: int = 1) -> tuple[list[list[str]], list[list[float]]]:
        return [[self.f.bayes.predict(one.split())] for one in text], [[1.0] for _ in text]

    def test(self, path: str) -> tuple[int, float, float]:
        """Documents, precision and recall at 1."""
        lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        right = sum(self.f.bayes.predict(words) == label for label, *words in lines)
        return len(lines), right / len(lines), right / len(lines)

    def get_words(self, include_freq: bool = False) -> Any:
        return ([*self.counts], [*self.counts.values()]) if include_freq else [*self.counts]

    def save_model(self, path: str) -> None:
        Path(path).write_bytes(pickle.dumps(self))


def train_supervised(
    input: str,
    *,
    lr: float = 0.1,
    dim: int = 100,
    epoch: int = 5,
    minCount: int = 1,
    wordNgrams: int = 1,
    bucket: int = 2_000_000,
    thread: int = 12,
    verbose: int = 2,
) -> Model:
    lines = [line.split() for line in Path(input).read_text(encoding="utf-8").splitlines()]
    return Model(lines, minCount)


def load_model(path: str) -> Model:
    return pickle.loads(Path(path).read_bytes())
