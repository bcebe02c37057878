"""Multinomial naive Bayes over words, with add-one smoothing: what the stand-ins learn by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Label = TypeVar("Label", bound=Hashable)


class NaiveBayes(Generic[Label]):
    """Counted from documents, which are lists of words, and their labels."""

    def __init__(self, documents: Iterable[list[str]], labels: Iterable[Label]) -> None:
        self.words: dict[Label, Counter[str]] = {}
        self.documents: Counter[Label] = Counter()
        for words, label in zip(documents, labels, strict=True):
            self.words.setdefault(label, Counter()).update(words)
            self.documents[label] += 1
        self.size = len(set().union(*self.words.values()))

    def predict(self, words: list[str]) -> Label:
        """The class of the greatest probability."""

        def score(label: Label) -> float:
            counts = self.words[label]
            total = math.log(counts.total() + self.size)
            known = sum(math.log(counts[word] + 1) - total for word in words)
            return math.log(self.documents[label]) + known

        return max(self.documents, key=score)
