"""A run as an estimator of scikit-learn, for ``cross_val_score``, ``GridSearchCV`` and pipelines.

Needs scikit-learn: ``pip install -e '.[sklearn]'``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from textbed.errors import UserError


class TextClassifier(ClassifierMixin, BaseEstimator):
    """Trains a run on texts and labels, and predicts by its best checkpoint.

    Args:
        head, embedding, tokenizer, optimizer: options of these groups of the configuration.
        epochs: ``trainer.max_epochs``.
        validation: share of the documents by which the best epoch is chosen; 0 takes the last.
        seed: of the training.
        overrides: further ones of the configuration, such as ``["head.hidden=64"]``.
        runs: folder in which runs are kept; None keeps none.
        verbose: whether ``fit`` shows on stderr what ``train.py`` does.

    After ``fit``: ``classes_``; ``model_``, a :class:`~textbed.runs.model.Model`; ``run_``, the run folder,
    None where none is kept.
    """

    def __init__(
        self,
        head: str = "mean",
        embedding: str = "random",
        tokenizer: str = "words",
        optimizer: str = "adam",
        epochs: int = 10,
        validation: float = 0.1,
        seed: int = 0,
        overrides: Sequence[str] = (),
        runs: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.head = head
        self.embedding = embedding
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.epochs = epochs
        self.validation = validation
        self.seed = seed
        self.overrides = overrides
        self.runs = runs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Sequence[Any], y: Any) -> TextClassifier:
        """Train.

        Args:
            X: n strings, or n pairs of strings, in a list, an array, or a column of Arrow or pandas; also a
                table, (n, 1) of texts or (n, 2) of pairs. None for one that is missing.
            y: n labels of any kind, or (n, C) zeros and ones for multi-label.

        Raises:
            UserError: a mistake in the settings or the data.
        """
        from hydra import compose, initialize_config_dir

        import textbed.schema  # noqa: F401  the schema must be registered before anything is composed
        from textbed import config
        from textbed.command import explain
        from textbed.runs.folder import unseen
        from textbed.runs.model import columns_of, load
        from textbed.training import train

        texts, labels = _texts(X), np.asarray(y)
        if len(texts) != len(labels):
            raise UserError(f"X has {len(texts)} texts and y {len(labels)} labels; expected one for each")
        several = type_of_target(labels) == "multilabel-indicator"
        if several:
            self.classes_ = np.arange(labels.shape[1])
            ids = pa.array([np.flatnonzero(row).tolist() for row in labels], pa.list_(pa.int64()))
        else:
            self.classes_, numbers = np.unique(labels, return_inverse=True)
            ids = pa.array(numbers.astype(np.int64))
        known = next((text for text in texts if text is not None), "")
        pairs = hasattr(known, "__len__") and not isinstance(known, str)
        names = ["first", "second"] if pairs else ["text"]
        columns = columns_of(texts, pairs)
        with ExitStack() as stack:
            if not self.verbose:
                stack.enter_context(unseen())
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="textbed-")))
            table = {name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)}
            pq.write_table(pa.table(table | {"label": ids}), place / "train.parquet")
            overrides = [
                *(f"{group}={getattr(self, group)}" for group in ("head", "embedding", "tokenizer")),
                *(f"optimizer={self.optimizer}", f"trainer.max_epochs={self.epochs}", f"seed={self.seed}"),
                *("data=parquet", f"data.path='{place / 'train.parquet'}'", f"data.text=[{','.join(names)}]"),
                *("data.label=label", "data.test=0", f"data.validation={self.validation}", "test=false"),
                *("logger=none", f"paths.runs='{self.runs or place / 'runs'}'"),
                *([] if self.runs else [f"paths.cache='{place / 'cache'}'"]),
                *self.overrides,
            ]
            configs = Path(__file__).resolve().parents[2] / "configs"
            with initialize_config_dir(str(configs), version_base="1.3"):
                try:
                    cfg = config.check(compose("train", overrides))
                except Exception as error:
                    line = explain(error, configs)
                    if line is None:
                        raise
                    raise UserError(line) from error
            folder = train(cfg, overrides)
            assert folder is not None
            self.model_ = load(folder)
            self.run_ = str(folder) if self.runs else None
        return self

    def predict_proba(self, X: Sequence[Any]) -> np.ndarray:
        """Probabilities (n, C) float32, columns as in ``classes_``; 0 for a label that ``fit`` never saw."""
        check_is_fitted(self)
        found = self.model_.predict_proba(_texts(X))
        if not self.model_.multilabel:
            return found
        # The model knows the labels that occur; a column of y without a one is none of them.
        chances = np.zeros((len(found), len(self.classes_)), found.dtype)
        chances[:, [int(name) for name in self.model_.classes]] = found
        return chances

    def predict(self, X: Sequence[Any]) -> np.ndarray:
        """Labels (n,) as ``fit`` got them; for multi-label (n, C) zeros and ones."""
        chances = self.predict_proba(X)
        if self.model_.multilabel:
            return (chances > 0.5).astype(np.int64)
        return self.classes_[chances.argmax(axis=1)]


def _texts(X: Any) -> list[Any]:
    """The texts, or pairs of them, one a row; of a table, of which scikit-learn may pass any, its cells."""
    from textbed.runs.model import rows_of

    if hasattr(X, "columns") and hasattr(X, "to_numpy"):  # of pandas
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    return rows_of(X)
