"""Every experiment and every debug config runs: on a mirror of a few made-up documents, for one step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from running import ROOT, TOPICS, Runs, accuracy, documents, figures, jobs, on, predictions, record

from textbed.runs import papers, registry
from textbed.runs.folder import RunFolder

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
PAPERS = sorted(f"paper/{path.stem}" for path in (ROOT / "configs" / "experiment" / "paper").glob("*.yaml"))
DEBUG = sorted(path.stem for path in (ROOT / "configs" / "debug").glob("*.yaml"))
# Splits of the data sets that have not just the two.
SPLITS = {"sst2": ("train", "validation", "test"), "subj": ("train",)}


def write_split(path: Path, count: int, seed: int) -> None:
    """A Parquet file as the hub has it: numbers for labels, their names in the metadata."""
    rows = documents(count, seed)
    names = sorted({topic for _, topic in rows})
    value = {"dtype": "string", "_type": "Value"}
    features = {"text": value, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [[text for text, _ in rows], [names.index(topic) for _, topic in rows]]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path)


def of_file(group: str, name: str) -> Any:
    return OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml")


@pytest.mark.parametrize("name", [*EXPERIMENTS, *PAPERS])
def test_every_experiment_says_what_it_is(name: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    head = text[: text.index("\ndefaults:")].split("\n")
    assert head[0] == "# @package _global_"
    assert all(line.startswith("# ") for line in head if line)
    assert re.search(rf"^# Command: python train\.py (-m )?experiment={name}\b", text, re.MULTILINE)
    assert re.search(r"^# Cost and score: \S", text, re.MULTILINE)
    assert of_file("experiment", name).name == Path(name).name  # its runs lie under its own name
    if name in PAPERS:
        assert re.search(
            r"^# The paper: .*^# The same here: .*^# Not the same: ", text, re.MULTILINE | re.DOTALL
        )
        assert f"scripts/paper.py runs/{Path(name).name}" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name: str, runs: Runs) -> None:
    settings = runs.config(f"experiment={name}").data
    if settings.source == "docstrings":
        given = ["data.size=240", "data.classes=[networkx,torchmetrics]"]
    else:
        for seed, split in enumerate(SPLITS.get(name, ("train", "test"))):
            write_split(runs.folder / "mirror" / settings.name / f"{split}.parquet", 60, seed)
        given = [f"data.mirror='{runs.folder}/mirror'"]
    run = runs(f"experiment={name}", "debug=step", *given)
    done = figures(run)
    assert (done["epochs"], done["steps"]) == (1, 1)
    cfg: Any = OmegaConf.load(run.config_file)
    assert cfg.name == "debug"
    # what its file says is what was run, where debug=step and the tests' one thread do not say otherwise
    for group, values in of_file("experiment", name).items():
        if group not in ("name", "defaults", "trainer", "threads"):
            said = OmegaConf.merge(cfg[group], values) if OmegaConf.is_config(values) else values
            assert said == cfg[group]
    if settings.source != "docstrings":
        assert len(predictions(run)["row"]) == (6 if settings.folds else 60)  # one of ten folds, or the split
        classes = json.loads(pq.read_schema(run.predictions / "test.parquet").metadata[b"classes"])
        assert classes == ["birds", "boats", "bread"]
    else:
        assert set(predictions(run)["label_name"]) == {"networkx", "torchmetrics"}


def write_mirror(folder: Path) -> str:
    """Every data set that the papers' sweeps are over; the override that points to them."""
    for name in ("mr", "sst2", "subj", "trec", "20ng", "r8"):
        for seed, split in enumerate(SPLITS.get(name, ("train", "test"))):
            write_split(folder / "mirror" / name / f"{split}.parquet", 60, seed)
    return f"data.mirror='{folder}/mirror'"


def write_vectors(folder: Path) -> str:
    """A file of vectors as wide as the papers'."""
    words = [word for topic in TOPICS.values() for word in topic]
    lines = [
        f"{word} {' '.join(f'{(place * 7 + i) % 11 / 11:.2f}' for i in range(300))}"
        for place, word in enumerate(words)
    ]
    path = folder / "vectors.txt"
    path.write_text("\n".join(lines) + "\n")
    return f"embedding.vectors='{path}'"


def jobs_of(name: str, *typed: str) -> list[list[str]]:
    return jobs(f"experiment={name}", *typed)


NEEDS_VECTORS = ("paper/swem", "paper/wieting2019")
# What their files say to type, and the number of its jobs.
SWEEPS = {
    ("paper/kim2014",): 40,
    ("paper/kim2014", "embedding=frozen,finetuned,multichannel", "VECTORS"): 120,
    ("paper/swem", "VECTORS"): 240,
    ("paper/textgcn",): 90,
    ("paper/textgcn", "embedding=ngrams", "head=mean"): 30,
    ("paper/textgcn", "embedding=finetuned", "head=cnn,lstm,bilstm,mean_max", "VECTORS"): 120,
    ("paper/widemlp",): 30,
    ("paper/wieting2019", "VECTORS"): 160,
}


@pytest.mark.parametrize("sweep", SWEEPS, ids=" ".join)
def test_the_jobs_of_a_papers_sweep_are_valid(sweep: tuple[str, ...], runs: Runs) -> None:
    """Every front end and head once, every data set with the first and the last seed: the others are made of
    the same choices, and all combinations would take minutes."""
    name, *typed = [write_vectors(runs.folder) if one == "VECTORS" else one for one in sweep]
    mirror = write_mirror(runs.folder)
    sweep_jobs = [dict(one.split("=", 1) for one in job) for job in jobs_of(name, *typed)]
    assert len(sweep_jobs) == len({tuple(job.values()) for job in sweep_jobs}) == SWEEPS[sweep]
    table = papers.published()[Path(name).name]
    first, last = sweep_jobs[0], sweep_jobs[-1]

    def model(job: dict[str, str]) -> tuple[str | None, ...]:
        return tuple(job.get(key) for key in ("embedding", "embedding.token_weights", "head"))

    cells = set()
    for job in sweep_jobs:
        here = [key for key in ("data", "seed") if job[key] != first[key]]
        if here and (model(job) != model(first) or job["seed"] not in (first["seed"], last["seed"])):
            continue
        cfg = runs.config(*(f"{key}={value}" for key, value in job.items()), mirror)
        folded = job["data"] in ("mr_folds", "subj")
        wanted = (10, int(job["seed"])) if folded else (None, 0)
        assert (cfg.data.folds, cfg.data.fold, cfg.seed) == (*wanted, int(job["seed"]))
        assert belongs(cfg), job
        cell = papers.cell_of(table, registry.flat(OmegaConf.to_container(cfg)))  # type: ignore[arg-type]
        assert cell is not None, job
        cells.add(cell)
    assert len({row for row, _ in cells}) == len(
        {model(job) for job in sweep_jobs}
    )  # each is a row of its own
    assert {data for _, data in cells} == set(table["sets"])


def belongs(cfg: Any) -> bool:
    """Whether a job has what its paper gives its data set, or its head, alone."""
    words, data = cfg.tokenizer, cfg.data.name
    if cfg.name == "kim2014":
        return words.lowercase == (data != "trec")
    if cfg.name == "textgcn":
        pooled, hashed = cfg.head._target_.endswith(".Pooling"), cfg.embedding._target_.endswith(".NGrams")
        rare = (words.min_count, words.unknown) == ((1, "keep") if data == "mr" else (5, "drop"))
        return (
            rare and cfg.optimizer.lr == (0.005 if pooled else 0.001) and (cfg.embedding.dim < 300) == hashed
        )
    return True


@pytest.mark.parametrize("typed", [(), ("embedding=random,finetuned",), ("embedding.vectors=null",)])
def test_a_sweep_over_vectors_without_any_ends_in_one_line(
    typed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs_of("paper/wieting2019", *typed)
    assert ended.value.code == 1
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"error: embedding\.vectors: [^\n]+ embedding\.vectors=FILE, or embedding=random [^\n]+\n", line
    )


def test_a_sweep_over_modes_needs_no_file_where_vectors_can_be_trained() -> None:
    assert [job[-1] for job in jobs_of("quickstart", "embedding=random,frozen")] == [
        "embedding=random",
        "embedding=frozen",
    ]


def test_a_glob_takes_the_place_of_what_a_paper_sweeps_over() -> None:
    found = jobs_of("paper/swem", "embedding=random", "head=glob(mean*)", "data=trec", "seed=0")
    assert [job[2] for job in found] == ["head=mean", "head=mean_max"]


def test_the_command_line_takes_the_place_of_what_a_paper_sweeps_over() -> None:
    assert jobs_of("paper/kim2014", "data=trec", "seed=0,3", "optimizer.rho=0.9,0.95") == [
        ["experiment=paper/kim2014", "data=trec", f"seed={seed}", f"optimizer.rho={rho}"]
        for seed in (0, 3)
        for rho in (0.9, 0.95)
    ]
    weights = [job[0] for job in jobs_of("paper/widemlp", "data=r8", "seed=1")]
    assert weights == ["embedding.token_weights=null", "embedding.token_weights=idf"]


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_runs(name: str, runs: Runs) -> None:
    given = [write_vectors(runs.folder)] if name in NEEDS_VECTORS else []
    run = runs(f"experiment={name}", "debug=step", write_mirror(runs.folder), *given)
    assert (figures(run)["epochs"], figures(run)["steps"]) == (1, 1)
    folded = OmegaConf.load(run.config_file).data.folds is not None
    assert len(predictions(run)["row"]) == (12 if folded else 60)  # a tenth of both files, or the split


def test_a_papers_table_from_runs_of_its_sweep(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write_mirror(runs.folder)
    by_hand = {}
    for data, seeds in (("mr_folds", (0, 3)), ("trec", (1,))):
        shares = []
        for seed in seeds:
            small = ["trainer.max_epochs=2", "embedding.dim=8", "callbacks.early_stopping.patience=1"]
            run = runs("experiment=paper/kim2014", f"data={data}", f"seed={seed}", mirror, *small)
            said = predictions(run)
            shares.append(100 * accuracy(said["label"], said["predicted"]))
        by_hand[data] = shares
    first, second = by_hand["mr_folds"]
    mean, spread = (first + second) / 2, abs(first - second) / 2**0.5
    (only,) = by_hand["trec"]
    text = papers.markdown(papers.replicate([runs.folder / "runs" / "kim2014"]))

    def row(name: str, published: float, ours: str, value: float, count: int) -> str:
        return f"| {name} | {published} | {ours} | {papers.signed(value - published)} | {count} |"

    assert row("CNN-rand | MR", 76.1, f"{mean:.1f} ± {spread:.1f}", mean, 2) in text
    assert row(" | TREC", 91.2, f"{only:.1f}", only, 1) in text
    assert "- " not in text  # nothing to note


def test_these_are_the_debug_configs() -> None:
    assert DEBUG == ["hundred", "overfit", "profiler", "step"]


def debugged(runs: Runs, topics: Path, name: str, *more: str) -> RunFolder:
    """A run on a file with the debug config's own number of epochs and the usual batches."""
    own = ("trainer.max_epochs", "data.batch_size", "classifier.dropout")
    left = [one for one in on(topics) if not one.startswith(own)]
    run = runs(*left, f"debug={name}", *more)
    assert run.path.parent.name == "debug"
    assert run.info()["status"] == "finished"
    return run


def test_debug_step(runs: Runs, topics: Path) -> None:
    run = debugged(runs, topics, "step", "data.batch_size=16", "data.eval_batch_size=8")
    assert (figures(run)["epochs"], figures(run)["steps"]) == (1, 1)
    assert len(predictions(run)["row"]) == 8


def test_debug_overfit(runs: Runs, topics: Path) -> None:
    run = debugged(runs, topics, "overfit", "trainer.max_epochs=40")
    done = figures(run)
    assert (done["epochs"], done["steps"]) == (40, 40)
    losses = [line["train/loss_epoch"] for line in record(run) if "train/loss_epoch" in line]
    assert len(losses) == 40
    assert losses[0] > 1
    assert losses[-1] < 0.05
    assert of_file("debug", "overfit").trainer.max_epochs == 100
    assert not run.predictions.exists()


def test_debug_hundred(runs: Runs, topics: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = debugged(runs, topics, "hundred", "trainer.max_epochs=1", "data.limit=20")
    assert figures(run)["steps"] == 1
    assert len(predictions(run)["row"]) == 20
    assert re.search(r"train +20 ", capfd.readouterr().err)
    assert of_file("debug", "hundred").data.limit == 100


def test_debug_profiler(runs: Runs, topics: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = debugged(runs, topics, "profiler", "data.batch_size=1")
    assert figures(run)["steps"] == 100
    shown = capfd.readouterr()
    assert "run_training_batch" in shown.out + shown.err + run.log_file.read_text()
