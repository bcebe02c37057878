from __future__ import annotations

import ast
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from textbed.data import docstrings
from textbed.data.sources import load
from textbed.errors import UserError


def test_clean_takes_out_doctests_with_their_output_and_own_names():
    text = """Return the NumPy array.

    See np.sum and numpy.linalg, not snp.

    >>> np.ones(2)
    array([1., 1.])
    >>> for x in y:
    ...     pass
    3

    After the example.
    """
    assert docstrings.clean(text, ["numpy", "np"]) == (
        "Return the array.\n\nSee .sum and .linalg, not snp.\n\nAfter the example."
    )


def test_clean_knows_long_names_inside_words_and_short_ones_alone():
    text = docstrings.clean(
        "PyTorch: Torch's __torch_function__, NotTorchError, tp in tps.", ["torch", "pytorch", "tp"]
    )
    assert text == ": 's ___function__, NotError, in tps."


def test_docstrings_of_finds_modules_classes_functions_and_no_other_strings():
    tree = ast.parse(
        '"""one"""\nx = """no"""\n'
        'class A:\n    """two"""\n    def f(self):\n        """three"""\n'
        '        def g():\n            """four"""\n'
        'async def h():\n    """five"""\n    """no"""\nclass B:\n    1\n'
    )
    assert list(docstrings.docstrings_of(tree)) == ["one", "two", "three", "four", "five"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Two libraries of 40 modules with 5 docstrings each, of which one is in all modules of both."""
    root = tmp_path_factory.mktemp("site")
    for name, kind in (("alpha", "swift"), ("beta", "gentle")):
        (root / name / "tests").mkdir(parents=True)
        (root / name / "tests" / "inner.py").write_text(
            '"""This is a test and must never be read by anybody."""'
        )
        (root / name / "broken.py").write_text('"""never closed, so this is no Python at all here')
        for module in range(40):
            lines = [
                f'def f{i}():\n    """The {name} {kind} thing number {module} {i} does what it should."""'
                for i in range(4)
            ]
            lines.append('def g():\n    """Words that two libraries share have no one label at all."""')
            lines.append('def short():\n    """Too short."""')
            (root / name / f"m{module}.py").write_text("\n".join(lines))
    return root


def test_collect_gives_each_split_its_share_and_never_divides_a_module(library):
    documents = docstrings.collect("alpha", library / "alpha", 100)
    splits = {}
    for split, module, text in documents:
        splits.setdefault(module, set()).add(split)
        assert "alpha" not in text.lower()
        assert "test and must" not in text
        assert "Too short" not in text
    assert all(len(found) == 1 for found in splits.values())
    sizes = {split: sum(where == split for where, _, _ in documents) for split in docstrings.SHARES}
    # 10 to validation if hashing sent enough modules there: at least two of 40 with four each.
    assert sizes["train"] == 70
    assert sizes["test"] == 20
    assert 8 <= sizes["validation"] <= 10
    assert len({text for _, _, text in documents}) == len(documents)
    assert docstrings.collect("alpha", library / "alpha", 100) == documents


def test_half_a_surrogate_pair_does_not_stop_the_build(tmp_path):
    (tmp_path / "m.py").write_text('"""Eight words and more around \\ud800 the half of a pair."""')
    ((_, _, text),) = docstrings.collect("alpha", tmp_path, 100)
    assert text == "Eight words and more around ? the half of a pair."


def test_build_drops_what_two_libraries_share_and_caches(library, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(library)
    folder = docstrings.build(tmp_path, 200, ["alpha", "beta"])
    table = pq.read_table(folder / "train.parquet")
    assert not any("share" in text for text in table["text"].to_pylist())
    assert set(table["label"].to_pylist()) == {0, 1}
    modules = {
        split: set(pq.read_table(folder / f"{split}.parquet")["module"].to_pylist())
        for split in docstrings.SHARES
    }
    assert not modules["train"] & modules["test"]
    assert not modules["train"] & modules["validation"]
    read = []
    monkeypatch.setattr(
        docstrings, "_collect_elsewhere", lambda *given: read.append(given[0]) or docstrings.collect(*given)
    )
    assert docstrings.build(tmp_path, 200, ["alpha", "beta"]) == folder  # a second look reads nothing
    assert [path.name for path in (tmp_path / "docstrings").iterdir()] == [folder.name]
    assert read == []
    # Another version of a library is other documents.
    monkeypatch.setattr(docstrings, "_version", lambda name: "2")
    assert docstrings.build(tmp_path, 200, ["alpha", "beta"]) != folder
    assert sorted(read) == ["alpha", "beta"]


def test_real_libraries_come_with_their_names(tmp_path):
    settings = {"source": "docstrings", "size": 60, "classes": ["networkx", "torchmetrics"]}
    corpus = load(settings, tmp_path)
    assert corpus.classes == ["networkx", "torchmetrics"]
    sizes = {name: np.bincount(split.labels).tolist() for name, split in corpus.splits.items()}
    assert sizes == {"train": [21, 21], "validation": [3, 3], "test": [6, 6]}
    for split in corpus.splits.values():
        for batch in split.texts():
            assert not any(">>>" in text for text in batch.to_pylist())
    names = [
        text.lower()
        for split in corpus.splits.values()
        for batch in split.texts()
        for text in batch.to_pylist()
    ]
    labels = np.concatenate([split.labels for split in corpus.splits.values()])
    for label, name in enumerate(corpus.classes):
        assert not any(name in text for text, own in zip(names, labels, strict=True) if own == label)


def test_default_classes_are_installed_and_not_imported():
    code = (
        "import sys, json; from textbed.data import docstrings as d;"
        "[d._locate(n) for n in d.DEFAULT_CLASSES];"
        "print(json.dumps([n for n in d.DEFAULT_CLASSES if n in sys.modules] + [len(d.DEFAULT_CLASSES)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [12]


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [
        (100, ["numpi", "torch"], "no installed library 'numpi'.*Did you mean 'numpy'"),
        (100, ["torch"], "two or more different"),
        (100, ["torch", "torch"], "two or more different"),
        (5, None, "data.size: 5 is too small; expected at least 120"),
    ],
)
def test_wrong_settings_are_named(size, classes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        docstrings.build(tmp_path, size, classes)
