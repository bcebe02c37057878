from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textbed.runs import pictures
from textbed.runs.embedding_report import TableReport, make_report
from textbed.runs.pictures import curves, draw_confusion, draw_learning_curves, draw_table


def record(epochs: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        lines.append({"step": 9 * epoch, "epoch": epoch, "time": 0.0, "train/loss": 1.0 + epoch})
        lines.append({"step": 9 * epoch + 4, "epoch": epoch, "time": 0.0, "train/loss": 3.0 + epoch})
        lines.append(
            {"step": 9 * epoch + 8, "epoch": epoch, "time": 0.0, "val/loss": 0.5, "val/accuracy": epoch / 100}
        )
    return lines


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def test_import_is_light() -> None:
    code = "import sys, textbed.runs.pictures; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False False"


def test_curves() -> None:
    lines = record(2)
    assert curves(lines) == {
        "train/loss": {1: 2.0, 2: 3.0},  # the mean of the logged steps
        "val/loss": {1: 0.5, 2: 0.5},
        "val/accuracy": {1: 0.0, 2: 0.01},
    }
    lines += [
        {"step": 8, "epoch": 0, "time": 0.0, "train/loss_epoch": 7.0},
        {"step": 17, "epoch": 1, "time": 0.0, "train/loss_epoch": float("nan")},
        {"step": 17, "epoch": 1, "time": 0.0, "test/accuracy": 1.0},
        {"step": 17, "epoch": None, "time": 0.0, "val/loss": 9.0},
    ]
    assert curves(lines)["train/loss"] == {1: 7.0}
    assert "test/accuracy" not in curves(lines)
    assert curves(lines)["val/loss"] == {1: 0.5, 2: 0.5}


@pytest.mark.parametrize("epochs", [1, 30])
def test_learning_curves(tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[int], list[float]]] = {}
    real = pictures._line

    def spy(axes: Any, values: Any, name: str, colour: str) -> None:
        real(axes, values, name, colour)
        line = axes.lines[-1]
        drawn[name] = (list(line.get_xdata()), list(line.get_ydata()))

    monkeypatch.setattr(pictures, "_line", spy)
    path = tmp_path / "pictures" / "learning_curves.png"
    assert draw_learning_curves(record(epochs), path, title="a $ b")
    places = list(range(1, epochs + 1))
    assert drawn["training"] == (places, [1.0 + epoch for epoch in places])
    assert drawn["validation"] == (places, [0.5] * epochs)
    assert drawn["validation accuracy"] == (places, [(epoch - 1) / 100 for epoch in places])
    height, width = pixels(path).shape[:2]
    assert (width, height) == (1296, 547)
    assert [p.name for p in path.parent.iterdir()] == ["learning_curves.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert not draw_learning_curves([], tmp_path / "a.png")
    assert not draw_learning_curves([{"step": 0, "epoch": 0, "test/accuracy": 0.5}], tmp_path / "a.png")
    assert not draw_confusion(np.zeros((2, 2)), ["a", "b"], tmp_path / "a.png")
    assert draw_learning_curves([{"step": 0, "epoch": 0, "val/accuracy": 0.5}], tmp_path / "b.png")
    assert draw_learning_curves(
        [{"step": 0, "epoch": 0, "val/loss": 0.5}], tmp_path / "c.png", figure="val/loss"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "c.png"]


@pytest.mark.parametrize("size", [2, 20, 61])
def test_confusion(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    seen: dict[str, Any] = {"numbers": {}}

    def imshow(self: Any, data: Any, **settings: Any) -> Any:
        seen["shares"] = np.array(data)
        return real_imshow(self, data, **settings)

    def text(self: Any, x: float, y: float, content: str, **settings: Any) -> Any:
        seen["numbers"][(y, x)] = content
        return real_text(self, x, y, content, **settings)

    real_imshow, real_text = Axes.imshow, Axes.text
    monkeypatch.setattr(Axes, "imshow", imshow)
    monkeypatch.setattr(Axes, "text", text)
    counts = np.arange(size * size).reshape(size, size)
    counts[-1] = 0  # a class without documents
    path = tmp_path / "confusion.png"
    assert draw_confusion(counts, [f"class {i}" for i in range(size)], path)
    np.testing.assert_allclose(seen["shares"][:-1].sum(axis=1), 1)
    assert (seen["shares"][-1] == 0).all()
    if size <= 20:
        assert seen["numbers"] == {
            (i, j): str(counts[i, j]) for i, j in np.ndindex(size, size) if counts[i, j]
        }
    else:
        assert seen["numbers"] == {}
    height, width = pixels(path).shape[:2]
    assert 300 < height < 4000
    assert 300 < width < 4000


def test_strange_names_make_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [
        "日本語",
        "$x^2$ \\frac{",
        "a very long name of a class, longer than anyone would read",
        "",
        "\U0001f600",
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert draw_confusion(np.eye(5, dtype=int) * 7, names, tmp_path / "a.png", title="$")
    assert [str(w.message) for w in caught if "Deprecat" not in w.category.__name__] == []
    assert "".join(capfd.readouterr()) == ""


def report_of(tokens: list[str], far: float, found: bool = False, **more: Any) -> TableReport:
    """A report on a table whose rows moved by up to ``far``; the first token is padding."""
    import torch

    from textbed.embedding.table import Table

    size = len(tokens)
    torch.manual_seed(0)
    front_end = Table(size, 4, padding_idx=0)
    state = {"table.weight": front_end.table.weight + far * torch.rand(size, 4)}
    counts = np.arange(size)[::-1] ** 2
    counts[0] = 0
    texts = {"train": (counts, np.zeros(0, int)), "test": (np.minimum(counts, 3), np.array([2]))}
    return make_report(
        front_end, state, tokens, counts, texts=texts, pad_id=0,
        found=np.arange(size) % 2 == 0 if found else None, **more,
    )  # fmt: skip


@pytest.mark.parametrize("far", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [2, 3, 300])
def test_table(tmp_path: Path, tokens: int, far: float) -> None:
    report = report_of([f"word {number}" for number in range(tokens)], far, found=tokens != 3)
    draw_table(report, tmp_path / "table.png", title="a $ b")
    height, width = pixels(tmp_path / "table.png").shape[:2]
    assert width == 1584
    assert 600 < height < 3000


def test_words_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    real = Figure.add_axes
    monkeypatch.setattr(Figure, "add_axes", lambda self, *a, **k: kept.append(self) or real(self, *a, **k))
    names = ["<pad>", *(f"{'word' * (number % 4)}WM{number}" for number in range(250))]
    draw_table(report_of(names, 1.0), tmp_path / "table.png")
    (axes,) = (one for one in kept[0].axes if "two dimensions" in one.get_title(loc="left"))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 40 < len(boxes) <= 90
    frame = axes.get_window_extent().padded(3)
    for place, box in enumerate(boxes):
        assert frame.x0 < box.x0
        assert box.x1 < frame.x1
        assert [other for other in boxes[:place] if box.overlaps(other)] == [], box
    # nor do the lists of neighbours
    (axes,) = (one for one in kept[0].axes if any("Nearest" in text.get_text() for text in one.texts))
    boxes = [
        text.get_window_extent() for text in axes.texts if ", " in text.get_text() and "WM" in text.get_text()
    ]
    assert len(boxes) == 16
    for before, after in zip(boxes[::2], boxes[1::2], strict=True):
        assert before.x1 < after.x0
        assert after.x1 < kept[0].bbox.x1


def test_strange_tokens_make_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokens = [
        "<pad>",
        " ",
        "\n",
        "\x96",
        "$x^2$ \\frac{",
        "日本語",
        "\U0001f600",
        "a" * 90,
        "b\u0301",
        "%s {}",
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_table(report_of(tokens, 1.0, found=True), tmp_path / "a.png", title="$")
    assert [str(w.message) for w in caught if "Deprecat" not in w.category.__name__] == []
    assert "".join(capfd.readouterr()) == ""
    assert pictures._cut("\x96", 14) == "'\\x96'"
    assert pictures._cut("a" * 90, 14) == "a" * 13 + "…"
