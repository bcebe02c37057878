"""The page of a comparison: the values it holds, what is missing, and how it behaves in a browser."""

from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import make_run, predict
from torchmetrics.functional.classification import multiclass_calibration_error

from textbed.classifier import CALIBRATION_BINS
from textbed.errors import UserError
from textbed.runs import report
from textbed.runs.answers import read_predictions
from textbed.runs.comparison import Comparison, compare
from textbed.runs.folder import RunFolder, write_json

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"
LABELS = [0, 1, 0, 1, 0, 1, 0, 1]
TEXTS = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "日本語 & Ünïcödé",
    *(f"text {row}" for row in range(3, 8)),
]
WRONG = {"gru": [(2,), (2, 5)], "mean": [(0, 1), (0, 1, 5)]}
CURVES = {"gru": [(0.5, 0.7), (0.6, 0.9, 0.8)], "mean": [(0.3,), (0.4,)]}
COSTS = {"gru": (90.0, 100 << 20), "mean": (30.0, 50 << 20), "max": (60.0, 70 << 20)}


def log(folder: RunFolder, values: tuple[float, ...]) -> None:
    lines = [{"step": i, "epoch": i, "time": 0.0, "val/accuracy": value} for i, value in enumerate(values)]
    folder.record_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def table(distance: float, share: float) -> dict[str, Any]:
    """What embedding.json holds, as far as it is read."""
    part = {"share_of_types": share / 2, "share_of_tokens": share}
    moved = [{"word": "<b>odd</b>", "count": 3, "distance": distance, "cosine": 0.5}]
    bins = [{"low": low, "high": 2 * low - 1, "distance": [0.1, distance, 0.9]} for low in (1, 2)]
    return {
        "rows": {"reported": 10},
        "training": {"moved": 5},
        "movement": {
            "quantiles": [0.25, 0.5, 0.75], "distance_of_moved": [0.0, distance, 9.0],
            "cosine_of_moved": [0.0, 0.5, 1.0], "by_count": bins, "most_moved": moved,
        },
        "norms": {"before": [0.0, 1.0, 2.0], "after": [0.0, 2.0, 4.0]},
        "coverage": {"test": {"known": part, "with_vector": None}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("page")
    data = root / "data.csv"
    with data.open("w", encoding="utf-8") as file:
        names = ["yes" if label else "no" for label in LABELS]
        csv.writer(file).writerows([["text", "label"], *zip(TEXTS, names, strict=True)])
    config = {
        "data.source": "csv", "data.name": None, "data.path": {"train": str(data), "test": str(data)},
        "paths.cache": str(root / "cache"),
    }  # fmt: skip
    for head, (seconds, size) in COSTS.items():
        for seed in range(2 if head in WRONG else 1):
            wrong = WRONG[head][seed] if head in WRONG else range(4)
            figures = {"test/accuracy": 1 - len(wrong) / 8, "test/calibration_error": 0.05 * (1 + seed)}
            figures |= {"seconds/fit": seconds, "memory/peak_bytes": size}
            run = make_run(root / "runs", figures, head=head, seed=seed, config=config)
            if head in WRONG:  # the others left nothing but figures
                predict(run, LABELS, [1 - y if row in wrong else y for row, y in enumerate(LABELS)])
                log(run, CURVES[head][seed])
                write_json(run.embedding_file, table(0.2 + 0.2 * seed, 0.8))
    return compare([root / "runs"])


@pytest.fixture(scope="module")
def content(compared: Comparison) -> dict[str, Any]:
    assert [group.name for group in compared.groups] == ["gru", "mean", "max"]
    return report.content(compared)


def test_figures_and_costs(content: dict[str, Any]) -> None:
    assert content["groups"][0]["figures"]["test/accuracy"]["mean"] == pytest.approx((0.875 + 0.75) / 2)
    assert [(one["group"], one["value"]) for one in content["runs"]] == [
        (0, 0.875), (0, 0.75), (1, 0.75), (1, 0.625), (2, 0.5),
    ]  # fmt: skip
    assert content["runs"][1]["name"] == "seed=1 data.fold=0"
    # max is dearer than mean and worse
    assert [(one["name"], one["front"]) for one in content["costs"]["axes"]] == [
        ("seconds/fit", [1, 0]), ("memory/peak_bytes", [1, 0]),
    ]  # fmt: skip
    assert content["costs"]["missing"] == ["No parameters."]
    assert [content["pairs"][place]["second"] for place in content["shown_pairs"]] == ["mean", "max", "max"]


def test_pareto_front() -> None:
    points = [(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (4, 0.9), (4, 0.9)]
    assert report.front(points) == [0, 2, 4, 5]
    assert report.front([(1, 0.5), (2, 0.6), (3, 0.4)], lower=True) == [0, 2]


def test_learning_curves(content: dict[str, Any]) -> None:
    assert content["curves"]["figures"] == [{"name": "val/accuracy", "share": True, "lower": False}]
    gru, mean = content["curves"]["lines"]
    assert (gru["group"], gru["figure"]) == (0, "val/accuracy")
    # the second seed alone came to a third epoch
    assert [pytest.approx(point) for point in gru["points"]] == [
        [1, 0.55, 0.5, 0.6, 2], [2, 0.8, 0.7, 0.9, 2], [3, 0.8, 0.8, 0.8, 1],
    ]  # fmt: skip
    assert mean["points"] == [pytest.approx([1, 0.35, 0.3, 0.4, 2])]
    assert content["curves"]["missing"] == ["No learning curves (metrics.jsonl): max."]


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    log(make_run(tmp_path), tuple(range(1001)))
    ((line,),) = [report.content(compare([tmp_path]))["curves"]["lines"]]
    assert len(line["points"]) == 168  # every sixth, and the last
    assert [line["points"][place][0] for place in (0, 1, -1)] == [1, 7, 1001]


def test_classes(content: dict[str, Any]) -> None:
    (found,) = content["classes"]["sets"]
    assert (found["classes"], found["multilabel"]) == (["no", "yes"], False)
    gru, mean = found["groups"]
    assert gru["confusion"] == [[0, 0, 3], [0, 1, 1], [1, 0, 0.5], [1, 1, 3.5]]
    assert mean["confusion"] == [[0, 0, 3], [0, 1, 1], [1, 0, 1.5], [1, 1, 2.5]]
    assert gru["support"] == [4, 4]
    assert gru["precision"] == pytest.approx([(1 + 3 / 4) / 2, (4 / 5 + 3 / 4) / 2])
    assert gru["recall"] == pytest.approx([0.75, (1 + 0.75) / 2])
    assert gru["f1"] == pytest.approx([(6 / 7 + 6 / 8) / 2, (8 / 9 + 6 / 8) / 2])
    assert content["classes"]["missing"] == ["No predictions on test: max."]


def test_calibration(content: dict[str, Any]) -> None:
    gru, mean = content["calibration"]["groups"]
    assert gru["error"]["mean"] == pytest.approx(0.075)
    assert gru["bins"] == [pytest.approx([0.8, 13 / 16, 1])]  # all answers were given with 0.8
    assert mean["bins"] == [pytest.approx([0.8, 11 / 16, 1])]


def test_bins_are_those_of_the_calibration_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet((1, 1, 1), 500).astype(np.float32)
    labels = random.integers(0, 3, 500)
    run = make_run(tmp_path)
    run.write_predictions(
        "test", range(500), labels, probabilities.argmax(axis=1), probabilities, ["a", "b", "c"]
    )
    said = read_predictions(run, "test")
    assert said is not None
    count, sure, right = report.reliability(said).T
    assert (len(count), count.sum()) == (CALIBRATION_BINS, 500)
    error = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=3, n_bins=CALIBRATION_BINS
    )
    assert np.abs(sure - right).sum() / 500 == pytest.approx(error.item(), abs=1e-5)


def test_tables(content: dict[str, Any]) -> None:
    gru, _ = content["tables"]["groups"]
    assert (gru["group"], gru["runs"], gru["splits"]) == (0, 2, ["test"])
    assert gru["numbers"]["distance"] == pytest.approx(0.3)
    assert gru["numbers"]["length_after"] == 2
    assert gru["numbers"]["test known types"] == pytest.approx(0.4)
    assert gru["numbers"]["test with_vector tokens"] is None
    assert gru["bins"] == [pytest.approx([1, 1, 0.1, 0.3, 0.9]), pytest.approx([2, 3, 0.1, 0.3, 0.9])]
    assert gru["words"] == [{"word": "<b>odd</b>", "count": 3, "distance": pytest.approx(0.3), "runs": 2}]
    assert content["tables"]["missing"] == ["No embedding.json: max."]


def test_documents(compared: Comparison, content: dict[str, Any]) -> None:
    found = content["documents"]
    # on row 5 each has one seed that is right
    assert (found["total"], [item["row"] for item in found["items"]]) == (3, [0, 2, 1])
    first = found["items"][0]
    assert (first["text"], first["label"], first["is_cut"]) == (TEXTS[0], "no", False)
    assert first["right"] == [1, 0, None]
    assert first["said"] == ["no", "yes", None]
    assert found["missing"] == ["No predictions on test of all runs: max."]
    assert [item["row"] for item in report.content(compared, 1)["documents"]["items"]] == [0]


def test_damaged_predictions_are_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.write_predictions("test", [0, 1], [0, 1], [1, 1], [[0.2, 0.8]] * 2, ["a", "b"])
    assert read_predictions(run, "test") is not None
    assert read_predictions(run, "validation") is None
    (run.predictions / "test.parquet").write_bytes(b"PAR1")
    assert read_predictions(run, "test") is None
    assert report.content(compare([tmp_path]))["classes"]["missing"] == ["No predictions on test: all."]


def test_nothing_to_disagree_on(tmp_path: Path) -> None:
    predict(make_run(tmp_path, 0.9, head="gru"), [0, 1], [0, 1])
    predict(make_run(tmp_path, 0.8, head="mean"), [1, 1], [0, 1])  # row 0 is another document
    documents = report.content(compare([tmp_path]))["documents"]
    assert (documents["total"], documents["items"]) == (0, [])
    assert documents["missing"] == ["None: groups are right on the same documents, or predicted other ones."]


def test_several_labels(tmp_path: Path) -> None:
    for head, said in (("gru", [[1, 0, 1], [0, 0, 0]]), ("mean", [[1, 1, 0], [0, 0, 0]])):
        run = make_run(tmp_path, 0.5, head=head)
        chances = [[0.95, 0.1, 0.7], [0.4, 0.1, 0.1]]
        run.write_predictions("test", [0, 1], [[1, 0, 1], [0, 0, 0]], said, chances, ["a", "b", "c"])
    content = report.content(compare([tmp_path]))
    (found,) = content["classes"]["sets"]
    assert found["multilabel"]
    assert found["groups"][0]["f1"] == [1, 0, 1]
    assert found["groups"][1]["recall"] == [1, 0, 0]
    assert found["groups"][1]["confusion"] == []
    # each label is one answer
    assert [share for *_, share in content["calibration"]["groups"][0]["bins"]] == [
        3 / 6,
        1 / 6,
        1 / 6,
        1 / 6,
    ]
    (item,) = content["documents"]["items"]
    assert (item["label"], item["said"]) == ("a, c", ["a, c", "a, b"])
    assert item["right"] == pytest.approx([1, 1 / 3])
    assert "No texts: " in content["documents"]["missing"][0]


def test_lead(compared: Comparison, tmp_path: Path) -> None:
    assert report.lead(compared) == (
        "Best of 3 groups is gru, test/accuracy 81.25 % ± 8.84 over 2 runs. Against the next, mean, that is "
        "+12.50 points: other runs would not surely show it (p 0.500), other documents would not surely show "
        "it (p 0.766)."
    )
    make_run(tmp_path, 0.5)
    assert report.lead(compare([tmp_path])) == "all, test/accuracy 50.00 %, one run."


@pytest.fixture(scope="module")
def page(compared: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vl_convert")
    path = tmp_path_factory.mktemp("html") / "report.html"
    report.write(compared, path)
    return path


def test_texts_are_no_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 3  # the data, the charts, ours
    assert "window.broken" in text
    assert "<img" not in text.partition("<script>")[0]
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert [item["text"] for item in json.loads(data)["documents"]["items"]] == [TEXTS[i] for i in (0, 2, 1)]
    assert "日本語" in text
    assert "No predictions on test: max." in text


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the charts' code, which takes seconds to gather."""
    fake = types.ModuleType("vl_convert")
    fake.javascript_bundle = lambda _: "</script>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vl_convert", fake)


@pytest.mark.usefixtures("bundle")
def test_few_of_many_documents_and_a_single_run(compared: Comparison, tmp_path: Path) -> None:
    text = report.page(compared, 1)
    assert "1 of 3 documents: those on which each group differs most from gru, in turn" in text
    assert text.count("</script") == 3
    make_run(tmp_path, 0.5)
    text = report.page(compare([tmp_path]))
    for line in ("It takes two groups to differ.", "No embedding.json: all.", "No predictions on test: all."):
        assert line in text


@pytest.mark.usefixtures("bundle")
def test_script(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        runs = compared.groups[0].runs.values()
        monkeypatch.setattr(sys, "argv", ["compare.py", *(str(run.path) for run in runs), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code  # type: ignore[return-value]

    assert run("--html", str(tmp_path / "report.html")) == 0
    printed = capsys.readouterr()
    assert "81.25" in printed.out  # the table is printed all the same
    assert printed.err == f"page: {tmp_path / 'report.html'}\n"
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # type: ignore[arg-type]
    assert run("--html", str(tmp_path / "other.html")) == 1
    assert "--html: vl_convert is missing; pip install -e '.[report]'" in capsys.readouterr().err
    with pytest.raises(UserError, match="missing"):
        report.page(compared)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("there is no Chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    quiet = [f"--disable-{what}" for what in ("gpu", "background-networking", "component-update", "sync")]
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root cannot have
    for argument in ("--headless=new", "--no-first-run", profile, *sandbox, *quiet):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path, width: int = 1280) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance")  # what went before is none of the page's
    browser.get(page.as_uri())
    until(browser, "return document.documentElement.dataset.drawn")


def until(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(script))


def asked_for(browser: Any) -> list[str]:
    """Addresses that the page asked for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    found = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [
        url for url in found if not url.startswith(("chrome", "data:"))
    ]  # of the browser's own first page


@pytest.mark.browser
def test_in_a_browser(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    opened(browser, page)
    script, one = browser.execute_script, lambda css: browser.find_element("css selector", css)

    # all charts, each with words for who does not see it
    drawn = "return [...document.querySelectorAll('[data-chart]')].map(f => [f.dataset.chart, "
    charts = dict(script(drawn + "f.querySelector('[role=graphics-document]').getAttribute('aria-label')])"))
    assert list(charts) == ["differences", "cost", "curves", "by-class", "calibration", "coverage", "drift"]
    assert "no group is as cheap and better than mean; gru." in charts["cost"]
    dots = "return document.querySelectorAll('[data-chart=curves] .mark-symbol path').length"
    assert script(dots) == 4
    one('#curves [data-group="1"]').send_keys(Keys.SPACE)
    assert not one('#cost [data-group="1"]').is_selected()
    until(browser, dots.replace("length", "length === 3"))

    # sorted with the keyboard: numbers from the greatest, then the other way round
    names = "return [...document.querySelectorAll('#figures tbody tr')].map(row => row.cells[0].textContent)"
    head = one("#figures th:nth-child(7)")
    assert head.text.startswith("training")
    for order, expected in (("descending", ["gru", "max", "mean"]), ("ascending", ["mean", "max", "gru"])):
        head.find_element("css selector", "button").send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == order
        assert script(names) == expected
    one("#figures th:nth-child(1) button").click()
    assert script(names) == ["gru", "max", "mean"]
    assert head.get_attribute("aria-sort") is None

    # filtered
    def found() -> list[str]:
        said = one("#count").text.split(" ")[0]
        texts = script("return [...document.querySelectorAll('#list blockquote')].map(b => b.textContent)")
        assert int(said) == len(texts)
        return texts

    assert sorted(found()) == sorted(TEXTS[:3])
    one("#text").send_keys("ünï")
    assert found() == TEXTS[2:3]
    one("#text").clear()
    one("#text").send_keys(" ")
    Select(one("#label")).select_by_visible_text("no")
    assert found() == [TEXTS[0], TEXTS[2]]
    Select(one("#side")).select_by_visible_text("the second")
    assert found() == TEXTS[2:3]
    Select(one("#documents [data-side='1']")).select_by_visible_text("max")
    assert found() == []
    assert one("#classes [data-side='1']").get_attribute("value") == "2"
    for group in range(3):  # no group is drawn any more
        box = one(f'#cost [data-group="{group}"]')
        if box.is_selected():
            box.send_keys(Keys.SPACE)
    until(browser, "return document.querySelector('[data-chart=curves] .missing')")

    assert script("return window.broken") is None
    assert browser.get_log("browser") == []
    assert asked_for(browser) == [page.as_uri()]

    opened(browser, page, 375)
    assert script("return document.documentElement.scrollWidth") <= 375
    assert one("#figures th:nth-child(3)").text == "test/accuracy, %"  # in sight on a phone too
    right = "return document.querySelector('#figures th:nth-child(3)').getBoundingClientRect().right"
    assert script(right) <= 375
    assert browser.get_log("browser") == []
