from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from running import TOPICS, documents, threads_restored
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from textbed.errors import UserError
from textbed.runs.folder import RunFolder
from textbed.sklearn import TextClassifier

SMALL = ("embedding.dim=8", "data.batch_size=16", "optimizer.lr=0.1", "trainer=cpu", "threads=1")


@pytest.fixture(autouse=True)
def alone(offline: None, monkeypatch: pytest.MonkeyPatch):
    from textbed.runs import pictures

    for name in ("draw_learning_curves", "draw_confusion", "draw_table"):
        monkeypatch.setattr(pictures, name, lambda *args, **kwargs: None)
    with threads_restored():
        yield


def plain_texts() -> tuple[list[str], list[str]]:
    """Texts that hold words of their topic alone, and the topics."""
    rows = [(" ".join([word, *TOPICS[topic][:2]]), topic) for topic in TOPICS for word in TOPICS[topic]]
    return [text for text, _ in rows] * 4, [topic for _, topic in rows] * 4


def shouted(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


def test_parameters_as_scikit_learn_has_them() -> None:
    made = TextClassifier(head="max", overrides=SMALL)
    again = clone(made).set_params(seed=3)
    assert again is not made
    assert again.get_params() == made.get_params() | {"seed": 3}
    with pytest.raises(NotFittedError):
        made.predict(["a text"])
    with pytest.raises(UserError, match="X has 1 texts and y 2 labels"):
        made.fit(["a"], [0, 1])


def test_fit_and_predict(tmp_path: Path) -> None:
    # labels that are no numbers from 0 on, in an order of their own
    names = {"birds": 30, "boats": 10, "bread": 20}
    texts, topics = plain_texts()
    labels = [names[topic] for topic in topics]
    made = TextClassifier(epochs=5, validation=0.2, overrides=SMALL, runs=str(tmp_path / "runs"))
    assert made.fit([*texts, None, None], [*labels, 30, 30]) is made
    assert "none" not in made.model_.tokenizer.tokens  # a text that is missing is empty
    assert made.classes_.tolist() == [10, 20, 30]
    assert made.predict(["owl nest", "mast rope", "flour oven"]).tolist() == [30, 10, 20]
    assert made.score(texts, labels) == 1
    chances = made.predict_proba(np.array(texts, dtype=object))
    assert chances.shape == (len(texts), 3)
    assert made.classes_[chances.argmax(axis=1)].tolist() == labels
    assert RunFolder.open(made.run_).info()["status"] == "finished"


def test_cross_validation_of_a_pipeline() -> None:
    texts, labels = plain_texts()
    made = TextClassifier(epochs=5, validation=0, overrides=SMALL)
    steps = Pipeline([("shout", FunctionTransformer(shouted)), ("classify", made)])
    scores = cross_val_score(steps, texts, labels, cv=2)
    assert scores.shape == (2,)
    assert (scores > 0.9).all()  # a third by chance


def test_texts_in_any_column(capsys: pytest.CaptureFixture[str]) -> None:
    texts, labels = plain_texts()
    made = TextClassifier(epochs=1, validation=0, overrides=SMALL).fit(pa.array(texts), pa.array(labels))
    assert capsys.readouterr().err == ""  # of its own accord it shows nothing
    expected = made.predict_proba(texts)
    table = pd.DataFrame({"text": texts})
    columns = (np.array(texts)[:, None], table, table["text"], pa.chunked_array([texts[:3], texts[3:]]))
    for column in columns:
        np.testing.assert_array_equal(made.predict_proba(column), expected)
    made.set_params(verbose=True).fit(table, labels)
    assert "train loss" in capsys.readouterr().err
    np.testing.assert_array_equal(made.predict_proba(texts), expected)
    pairs = pd.DataFrame({"first": texts, "second": texts[::-1]})
    found = made.fit(pairs, labels).predict_proba(pairs)
    np.testing.assert_array_equal(found, made.predict_proba(list(zip(texts, texts[::-1], strict=True))))


def test_several_labels_of_pairs() -> None:
    rows = documents(60)
    pairs = [(one, two) for (one, _), (two, _) in itertools.pairwise(rows)]
    marks = np.array([[topic in (a, b) for topic in TOPICS] for (_, a), (_, b) in itertools.pairwise(rows)])
    made = TextClassifier(epochs=1, validation=0, overrides=SMALL).fit(pairs, marks.astype(int))
    said = made.predict(pairs)
    assert said.shape == marks.shape
    np.testing.assert_array_equal(said, made.predict_proba(pairs) > 0.5)


def test_a_label_that_no_text_has() -> None:
    texts, topics = plain_texts()
    columns = {"birds": 0, "boats": 2, "bread": 3}
    marks = np.zeros((len(texts), 5), int)
    marks[np.arange(len(texts)), [columns[topic] for topic in topics]] = 1
    made = TextClassifier(epochs=15, validation=0, overrides=SMALL).fit(texts, marks)
    assert made.classes_.tolist() == [0, 1, 2, 3, 4]
    chances = made.predict_proba(texts)
    assert not chances[:, [1, 4]].any()
    np.testing.assert_array_equal(chances.argmax(axis=1), marks.argmax(axis=1))
    np.testing.assert_array_equal(made.predict(texts), marks)


@pytest.mark.parametrize(
    "check",
    [
        # those that need no numbers; check_estimator itself makes but the first for an estimator of texts
        "check_estimator_cloneable",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_repr",
        "check_mixin_order",
        "check_valid_tag_types",
    ],
)
def test_scikit_learns_own_checks(check: str) -> None:
    getattr(estimator_checks, check)("TextClassifier", TextClassifier())


def test_settings_that_there_are_not() -> None:
    for settings, line in (
        ({"head": "meen"}, "^head=meen: expected one of .* Did you mean 'mean'"),
        ({"optimizer": "sgdd"}, "^optimizer=sgdd: .* Did you mean 'sgd'"),
        ({"overrides": ["head.hiden=3"]}, "head.hiden"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            TextClassifier(**settings).fit(["a", "b"], ["x", "y"])
        assert "\n" not in str(caught.value)


def test_what_is_no_text() -> None:
    for given, line in (
        (np.zeros((2, 2)), r"text 1 is .*0\.0.*; expected a string"),
        (np.zeros((2, 3)), "text 1 is .* expected .first, second"),
        ([3.5, "a"], "text 1 is 3.5; expected a string"),
        ([None, 3], "expected a string"),
        ([("a", "b"), "c"], "text 2 is 'c'"),
        (["a"], "X has 1 texts and y 2 labels"),
        ("ab", "one string was given where a list of texts is expected"),
        (7, "^7 was given where a list of texts is expected"),
    ):
        with pytest.raises(UserError, match=line):
            TextClassifier().fit(given, ["x", "y"])
