"""What a run says about its table: the numbers against counts and norms made here, and where they go."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from running import ROOT, Runs, documents, on, weights, write_csv

from textbed import training
from textbed.classifier import TextClassifier
from textbed.data.datamodule import TextDataModule
from textbed.embedding.report import QUANTILES
from textbed.embedding.table import Table
from textbed.runs.embedding_report import make_report
from textbed.runs.folder import RunFolder

EMBEDDINGS = sorted(path.stem for path in (ROOT / "configs" / "embedding").glob("*.yaml"))
TOKENS = ["<pad>", "<unk>", "owl", "nest", "sail", "mast", "rye"]
COUNTS = np.array([0, 0, 9, 9, 3, 1, 0])


def table() -> Table:
    torch.manual_seed(0)
    return Table(7, 3, padding_idx=0)


def moved(front_end: Table, **rows: list[float]) -> dict[str, torch.Tensor]:
    """The state of the table after each of some words was moved by so much."""
    state = {name: value.clone() for name, value in front_end.state_dict().items()}
    for word, by in rows.items():
        state["table.weight"][TOKENS.index(word)] += torch.tensor(by)
    return state


def given(**more: Any) -> dict[str, Any]:
    texts = {"train": (COUNTS, np.zeros(0, int)), "test": (np.array([0, 0, 1, 0, 0, 0, 2]), np.array([4]))}
    return {"tokens": TOKENS, "counts": COUNTS, "texts": texts, "pad_id": 0, "unk_id": 1, **more}


def test_a_report_by_hand() -> None:
    front_end = table()
    start = front_end.table.weight.detach().clone()
    state = moved(front_end, owl=[3, 4, 0], mast=[0, 0, 1], rye=[0.5, 0, 0])
    report = make_report(front_end, state, **given())
    content = report.content
    assert content["rows"] == {"vocabulary": 7, "width": 3, "reported": 6, "which": "all but padding"}
    assert content["training"] == {
        "in_training_text": 4,
        "moved": 3,
        "moved_in_training_text": 2,
        "moved_outside": 1,
    }
    np.testing.assert_allclose(report.distance, [0, 5, 0, 0, 1, 0.5], rtol=1e-6)
    assert (report.distance == 0).tolist() == [True, False, True, True, False, False]
    np.testing.assert_allclose(report.norms_before, start[1:].double().norm(dim=1), rtol=1e-12)
    np.testing.assert_allclose(report.norms_after, state["table.weight"][1:].double().norm(dim=1), rtol=1e-12)
    assert content["norms"]["before"] == np.quantile(report.norms_before, QUANTILES).tolist()
    assert content["movement"]["distance_of_moved"][3] == pytest.approx(1)
    bins = content["movement"]["by_count"]
    assert [(each["low"], each["rows"], each["moved"]) for each in bins] == [
        (0, 2, 1), (1, 1, 1), (2, 1, 0), (8, 2, 1),
    ]  # fmt: skip
    assert [one["word"] for one in content["movement"]["most_moved"]] == ["owl", "mast", "rye"]
    assert content["movement"]["most_moved"][0]["count"] == 9
    assert [one["word"] for one in content["neighbours"]] == ["owl", "mast", "rye"]
    for entry in content["neighbours"]:
        for when, rows in (("before", start), ("after", state["table.weight"])):
            own = TOKENS.index(entry["word"])
            others = [row for row in range(2, 7) if row != own]  # neither padding nor the unknown row
            cosine = torch.cosine_similarity(rows[own : own + 1], rows[others])
            order = cosine.argsort(descending=True).tolist()
            assert [one["word"] for one in entry[when]] == [TOKENS[others[place]] for place in order]
            np.testing.assert_allclose(
                [one["cosine"] for one in entry[when]], cosine[order].numpy(), rtol=1e-5, atol=1e-6
            )
    test = content["coverage"]["test"]
    assert (test["types"], test["tokens"]) == (3, 7)
    assert test["known"]["tokens"] == 3
    new = test["known_but_not_in_training"]
    assert (new["types"], new["tokens"]) == (1, 2)
    assert (new["share_of_types"], new["share_of_tokens"]) == pytest.approx((1 / 3, 2 / 7))
    assert test["with_vector"] is content["without_vector"] is None
    words = content["projection"]["words"]
    assert [word["word"] for word in words] == ["owl", "nest", "sail", "mast", "rye"]
    assert [word["before"] == word["after"] for word in words] == [False, True, True, False, False]
    assert report.summary() == "table: 3 of 6 rows moved, by 1 in the median (length before: " + (
        f"{np.median(report.norms_before[[1, 4, 5]]):.3g})"
    )
    tables = report.tables()
    assert tables["most_moved"][1][0][:2] == ["owl", 9]
    assert set(tables) == {"coverage", "movement_by_count", "most_moved", "neighbours"}
    for columns, rows in tables.values():
        assert rows
        assert {len(row) for row in rows} == {len(columns)}


def test_words_without_a_vector() -> None:
    found = np.array([False, False, True, False, True, False, True])
    front_end = table()
    report = make_report(front_end, moved(front_end), **given(found=found))
    assert report.content["without_vector"] == {
        "types": 2,
        "tokens": 10,
        "outside_vocabulary": {"types": 0, "tokens": 0},
        "commonest": [{"word": "nest", "count": 9}, {"word": "mast", "count": 1}],
    }
    assert report.content["coverage"]["train"]["with_vector"]["tokens"] == 12
    assert report.tables()["without_vector"][1] == [["nest", 9], ["mast", 1]]
    # nothing moved: the most frequent words are shown
    assert [one["word"] for one in report.content["neighbours"]] == ["owl", "nest", "sail", "mast"]
    assert all(one["before"] == one["after"] for one in report.content["neighbours"])
    assert report.content["movement"]["distance_of_moved"] == [None] * len(QUANTILES)
    assert report.summary() == "table: none of 6 rows moved"


def test_chosen_words_and_how_many() -> None:
    front_end = table()
    state = moved(front_end, owl=[1, 0, 0])
    asked = given(words=["sail", "heron", "<unk>"], neighbours=2, projected=2)
    content = make_report(front_end, state, **asked).content
    assert [(one["word"], one["in_vocabulary"]) for one in content["neighbours"]] == [
        ("sail", True), ("heron", False), ("<unk>", False),
    ]  # fmt: skip
    assert [len(content["neighbours"][0][when]) for when in ("before", "after")] == [2, 2]
    assert [word["word"] for word in content["projection"]["words"]] == ["owl", "nest", "sail"]


def test_of_a_huge_table_the_most_frequent_rows() -> None:
    front_end = table()
    state = moved(front_end, nest=[0, 2, 0], mast=[1, 0, 0])
    report = make_report(front_end, state, **given(most_numbers=10))  # 3 rows of 3
    assert report.content["rows"]["reported"] == 3
    assert report.content["rows"]["which"] == "those of the tokens most frequent in training"
    assert report.counts.tolist() == [9, 9, 3]
    assert report.distance == pytest.approx([0, 2, 0])
    assert report.content["coverage"]["train"]["types"] == 4  # counted over all all the same


def test_rows_of_a_model_in_bfloat16_did_not_move_by_being_rounded() -> None:
    front_end = table()
    state = {name: value.to(torch.bfloat16) for name, value in front_end.state_dict().items()}
    assert not torch.equal(state["table.weight"].float(), front_end.table.weight)
    assert not make_report(front_end, state, **given()).distance.any()


# In a run


def read(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.embedding_file.read_text())


def data_of(run: RunFolder) -> tuple[Any, TextDataModule]:
    cfg = OmegaConf.load(run.config_file)
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    data.setup()
    return cfg, data


def texts_of(data: TextDataModule, split: str) -> list[str]:
    rows = data.splits[split]
    return [data.corpus.splits[rows.split].text(int(row)) for row in rows.rows]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    draw = np.random.default_rng(0)
    words = ["the", "owl", "sail", "loaf", "nest", "crumb", "of", "Anchor"]
    path.write_text(
        "".join(f"{word} {' '.join(f'{x:.4f}' for x in draw.normal(size=8))}\n" for word in words)
    )
    return path


def test_a_whole_run(
    tmp_path: Path, topics: Path, vectors: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, torch.Tensor] = {}

    def keep(self: TextClassifier) -> None:
        first.update({name: value.clone() for name, value in self.embedding.state_dict().items()})

    monkeypatch.setattr(TextClassifier, "on_fit_start", keep)
    wanted = ["embedding=finetuned", f"embedding.vectors='{vectors}'", "embedding.dim=null", "logger=wandb"]
    run = Runs(tmp_path)(*on(topics, *wanted, "tokenizer.min_count=2", "report.words=[owl,sail]"))
    content = read(run)
    cfg, data = data_of(run)

    # before is what training began with, to the last bit
    rebuilt, found = training.build_embedding(cfg, data)
    assert first.keys() == rebuilt.state_dict().keys()
    for name, value in rebuilt.state_dict().items():
        assert torch.equal(value, first[name])

    # coverage, by counting words
    assert content["checkpoint"] == "best.ckpt"
    train = Counter(" ".join(texts_of(data, "train")).split())
    vocabulary = {word for word, count in train.items() if count >= 2}
    have = {"the", "owl", "sail", "loaf", "nest", "crumb", "of"} & vocabulary
    assert found is not None
    assert {data.tokenizer.tokens[row] for row in np.flatnonzero(found)} == have
    for split in ("train", "validation", "test"):
        words = Counter(" ".join(texts_of(data, split)).split())
        told = content["coverage"][split]
        assert (told["types"], told["tokens"]) == (len(words), words.total())
        for name, those in (("known", vocabulary), ("with_vector", have)):
            assert told[name]["types"] == len(those & words.keys())
            assert told[name]["tokens"] == sum(words[word] for word in those)
    lacking = sorted((-train[word], word) for word in vocabulary - have)
    assert content["without_vector"]["types"] == len(lacking)
    assert content["without_vector"]["tokens"] == -sum(count for count, _ in lacking)
    rare = train.keys() - vocabulary
    assert content["without_vector"]["outside_vocabulary"] == {
        "types": len(rare),
        "tokens": sum(train[word] for word in rare),
    }
    commonest = [(-one["count"], one["word"]) for one in content["without_vector"]["commonest"]]
    assert commonest == lacking[:50]

    # movement, by subtracting the tables
    distance = (weights(run, "best")["embedding.table.weight"] - first["table.weight"]).double().norm(dim=1)
    assert content["training"]["moved"] == int((distance[1:] > 0).sum()) > 0
    furthest = content["movement"]["most_moved"][0]
    assert furthest["distance"] == pytest.approx(float(distance[2:].max()), rel=1e-5)
    assert furthest["word"] == data.tokenizer.tokens[2 + int(distance[2:].argmax())]
    assert [one["word"] for one in content["neighbours"]] == ["owl", "sail"]

    # the page, and what wandb has got
    from matplotlib.image import imread

    page = imread(run.pictures / "embedding.png")[..., :3]
    ink = (page < 0.9).any(axis=2)
    assert 0.01 < ink.mean() < 0.5
    assert all(part.any() for half in np.array_split(ink, 4) for part in np.array_split(half, 2, axis=1))
    (part,) = (run.path / "wandb").glob("offline-run-*")
    media = part / "files" / "media"
    sent = {path.name.split("_")[0] for path in (media / "images" / "pictures").iterdir()}
    assert sent == {"learning", "confusion", "embedding"}
    (file,) = (media / "table" / "embedding").glob("without_vector_*.table.json")
    assert json.loads(file.read_text()) == {
        "columns": ["word", "count"],
        "data": [[word, -count] for count, word in lacking[:50]],
    }


def test_words_of_the_evaluation_text_alone(runs: Runs, vectors: Path) -> None:
    """They have a row, which training leaves alone, and are told apart."""
    train = write_csv(runs.folder / "train.csv", documents(60))
    test = write_csv(runs.folder / "test.csv", [("zebra sail zebra gnu", "boats"), ("owl zebra", "birds")])
    file = runs.folder / "more.txt"
    file.write_text(vectors.read_text() + "zebra 1 2 3 4 5 6 7 8\n")
    wanted = ["embedding=finetuned", f"embedding.vectors='{file}'", "embedding.dim=null"]
    content = read(runs(*on(train, f"data.path={{train: '{train}', test: '{test}'}}", *wanted)))
    told = content["coverage"]["test"]
    assert (told["types"], told["tokens"], told["known"]["types"], told["known"]["tokens"]) == (4, 6, 3, 5)
    new = told["known_but_not_in_training"]
    assert (new["types"], new["tokens"], new["share_of_tokens"]) == (1, 3, 0.5)
    assert (told["with_vector"]["types"], told["with_vector"]["tokens"]) == (3, 5)
    for split in ("train", "validation"):
        assert content["coverage"][split]["known_but_not_in_training"]["tokens"] == 0
    zero = content["movement"]["by_count"][0]
    assert (zero["rows"], zero["moved"]) == (2, 0)  # zebra, and the row of unknown words
    assert content["training"]["moved"] == content["training"]["in_training_text"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_every_front_end_is_built_again_as_it_was(name: str, runs: Runs, topics: Path, vectors: Path) -> None:
    takes_vectors = name not in ("random", "hashed")
    given = [f"embedding.vectors='{vectors}'", "embedding.dim=null"] if takes_vectors else []
    cfg = runs.config(*on(topics, f"embedding={name}", *given))
    data = TextDataModule(cfg.data, cfg.tokenizer, Path(cfg.paths.cache), cfg.seed)
    data.setup()
    model, _ = training.build_model(cfg, data)
    again, _ = training.build_embedding(cfg, data)
    state = model.embedding.state_dict()
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key]), key
    report = make_report(
        again,
        state,
        data.tokenizer.tokens,
        data.train_counts,
        texts={"train": data.type_counts("train")},
        pad_id=data.tokenizer.pad_id,
        unk_id=data.tokenizer.unk_id,
    )
    assert report.content["rows"]["reported"] == len(data.tokenizer) - 1 == len(report.distance)
    assert not report.distance.any()
    assert (report.norms_before > 0).sum() > 30


def test_a_frozen_table_does_not_move(
    runs: Runs, topics: Path, vectors: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = ["embedding=frozen", f"embedding.vectors='{vectors}'", "embedding.dim=null"]
    run = runs(*on(topics, *wanted, "report.words=[owl,heronn]"))
    content = read(run)
    assert content["training"]["moved"] == 0
    for each in content["movement"]["by_count"]:
        assert each["distance"] == [0, 0, 0]
        assert each["cosine"] == [1, 1, 1]
    assert content["norms"]["before"] == content["norms"]["after"]
    said = capfd.readouterr().err
    assert f"table: none of {content['rows']['reported']} rows moved; see embedding.json\n" in said
    assert "report.words: 'heronn' is not in the vocabulary\n" in said


@pytest.mark.parametrize(
    ("optimizer", "outside"),
    [(["optimizer=adam"], False), (["optimizer=adamw"], True)],
    ids=["adam", "adamw"],
)
def test_rows_that_training_never_saw(optimizer: list[str], outside: bool, runs: Runs, topics: Path) -> None:
    """Adam leaves them where they are; decay moves all of them."""
    tokens = ["tokenizer=subwords", "tokenizer.vocabulary_size=300"]
    content = read(runs(*on(topics, *tokens, *optimizer)))
    zero = content["movement"]["by_count"][0]
    assert (zero["low"], zero["high"]) == (0, 0)
    assert zero["rows"] == content["rows"]["reported"] - content["training"]["in_training_text"] > 100
    assert content["training"]["moved_outside"] == (zero["rows"] if outside else 0)
    assert content["training"]["moved_in_training_text"] == content["training"]["in_training_text"]
    assert (zero["distance"] == [0, 0, 0]) is not outside


def test_pairs_count_a_word_of_both_texts_once(runs: Runs) -> None:
    texts = documents(80)
    pairs = [(a, b, one) for (a, one), (b, _) in zip(texts, [*texts[40:], *texts[:40]], strict=True)]
    path = write_csv(runs.folder / "pairs.csv", pairs, ("first", "second", "label"))
    run = runs(*on(path, "data.text=[first,second]", "tokenizer.min_count=30"))
    content, (_, data) = read(run), data_of(run)
    for split, told in content["coverage"].items():
        words = Counter(
            word for row in data.splits[split].rows for text in pairs[row][:2] for word in text.split()
        )
        assert (told["types"], told["tokens"]) == (len(words), words.total())
        assert 0 < told["known"]["types"] < len(words)


def test_the_report_can_be_switched_off_and_on(runs: Runs, topics: Path) -> None:
    quick = on(topics, "trainer.max_epochs=1")
    for wanted, there in (
        (["report.embedding=false"], False),
        (["test=false"], False),
        (["test=false", "report.embedding=true"], True),
        (["callbacks.checkpoints=null", "callbacks.early_stopping=null"], True),
    ):
        run = runs(*quick, *wanted)
        assert run.embedding_file.exists() == there, wanted
    assert read(run)["checkpoint"] is None
    assert read(run)["training"]["moved"] > 30


def test_vectors_that_are_gone_fail_no_run(
    runs: Runs,
    topics: Path,
    vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = runs.folder / "gone.txt"
    file.write_text(vectors.read_text())
    monkeypatch.setattr(TextClassifier, "on_fit_end", lambda self: file.unlink())
    wanted = ["embedding=frozen", f"embedding.vectors='{file}'", "embedding.dim=null"]
    run = runs(*on(topics, *wanted))
    assert run.info()["status"] == "finished"
    assert f"no report on the table: {file}: there is no such vectors file" in capfd.readouterr().err
    assert not run.embedding_file.exists()


def test_vectors_that_changed_fail_no_run(
    runs: Runs, vectors: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = write_csv(runs.folder / "train.csv", documents(60))
    test = write_csv(runs.folder / "test.csv", [("zebra sail", "boats"), ("owl zebra", "birds")])
    file = runs.folder / "changed.txt"
    file.write_text(vectors.read_text() + "zebra 1 2 3 4 5 6 7 8\n")
    monkeypatch.setattr(TextClassifier, "on_test_end", lambda self: file.write_text(vectors.read_text()))
    wanted = ["embedding=frozen", f"embedding.vectors='{file}'", "embedding.dim=null"]
    run = runs(*on(train, f"data.path={{train: '{train}', test: '{test}'}}", *wanted))
    assert run.info()["status"] == "finished"
    assert "not as large as in best.ckpt: the file of vectors has changed" in capfd.readouterr().err
    assert not run.embedding_file.exists()
