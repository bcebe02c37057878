"""As model2vec.train: a classifier that begins with a static table. It counts the table's tokens."""

from __future__ import annotations

from naive_bayes import NaiveBayes

from model2vec import StaticModel


class StaticModelForClassification:
    def __init__(self, tokenizer: object) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_static_model(cls, *, model: StaticModel) -> StaticModelForClassification:
        return cls(model.tokenizer)

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        return [found.tokens for found in self.tokenizer.encode_batch(texts)]

    def fit(
        self, X: list[str], y: list[int], *, max_epochs: int = -1, random_seed: int = 42
    ) -> StaticModelForClassification:
        self.bayes = NaiveBayes(self._tokens(X), y)
        return self

    def predict(self, X: list[str]) -> list[int]:
        return [self.bayes.predict(tokens) for tokens in self._tokens(X)]
