"""Runs for the tests: made from the files in ``configs`` as ``train.py`` makes them, but inside the test
process, since importing torch takes seconds; with documents to run on, and what to look at afterwards."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import math
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

import textbed.schema  # noqa: F401  the schema must be registered before anything is composed
from textbed import command, config
from textbed.runs.folder import RunFolder
from textbed.targets import read_arguments

ROOT = Path(__file__).parent.parent
GROUPS = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}


@functools.cache
def composed(choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of these choices in groups, and the choice made in every group.

    Composing takes 0.2 s; so it is done once, and single values are set in it afterwards as Hydra sets them.
    """
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", list(choices), return_hydra_config=True)
    chosen: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, chosen


@contextlib.contextmanager
def threads_restored() -> Iterator[None]:
    """A run sets the number of torch's threads, for the whole process."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stopping(
    monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int, error: BaseException
) -> Callable[[], None]:
    """Interrupt training at that batch, counted from 0; calling what is returned lets it go on again."""
    from textbed.classifier import TextClassifier

    step = TextClassifier.training_step

    def interrupted(self: Any, given: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise error
        return step(self, given, batch_idx)

    monkeypatch.setattr(TextClassifier, "training_step", interrupted)
    return lambda: monkeypatch.setattr(TextClassifier, "training_step", step)


def in_two_processes(function: Callable[[], Any], launcher: str = "torchrun", **more: Any) -> list[Any]:
    """What ``function`` returns in each of two processes of one run, as ``torchrun`` or ``srun`` starts them.

    They are forked off this one, so that nothing is imported again.

    Args:
        function: called without arguments, or with what ``more`` holds.

    Returns:
        For each process what was returned; None where it was killed or failed.
    """
    import torch
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    ours = {"MASTER_ADDR": "127.0.0.1"}
    if launcher == "torchrun":  # which holds the store itself
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ours |= {"MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
        ours |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        numbered = ("RANK", "LOCAL_RANK")
    else:
        ours |= {"MASTER_PORT": str(find_free_network_port())}
        ours |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1"}
        numbered = ("SLURM_PROCID", "SLURM_LOCALID")

    def work(rank: int, to: Any) -> None:
        os.environ.update(ours | dict.fromkeys(numbered, str(rank)))
        torch.set_num_threads(1)
        to.send(function(**more))

    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [context.Process(target=work, args=(rank, ends[rank][1])) for rank in range(2)]
    for process in processes:
        process.start()
    for _, given in ends:
        given.close()
    try:
        found = []
        for taken, _ in ends:
            with contextlib.suppress(EOFError):
                assert taken.poll(300), "a process hangs"
                found.append(taken.recv())
                continue
            found.append(None)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    return found


EMBEDDINGS = sorted(path.stem for path in (ROOT / "configs" / "embedding").glob("*.yaml"))
HEADS = sorted(path.stem for path in (ROOT / "configs" / "head").glob("*.yaml"))


def head_config(name: str) -> Any:
    """A file in ``configs/head``; those that are thousands wide are narrow: seconds less, no other code."""
    given: Any = OmegaConf.to_container(composed((f"head={name}",))[0].head)
    for width in ("hidden", "projections"):
        if (given.get(width) or 0) > 512:
            given[width] = 32
    return given


def front_end(name: str, rows: int, dim: int, *, found: Any = None, padding_idx: int = 0, **more: Any) -> Any:
    """The front end of a file in ``configs/embedding`` over ``rows`` made-up words, from torch's seed.

    What takes vectors by its file gets the same ones each time, of length 1 and ``dim`` wide, for the words
    at which ``found`` (rows,) bool is true; ``more`` changes the file's settings.
    """
    import hydra.utils
    import torch

    cfg, _ = composed((f"embedding={name}",))
    given: Any = OmegaConf.to_container(cfg.embedding)
    takes = read_arguments(given["_target_"])
    own = {key: value for key, value in given.items() if key in takes.names} | more
    if name in config.PRETRAINED:
        vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(7))
        own |= {"vectors": torch.nn.functional.normalize(vectors), "found": found}
    else:
        own["dim"] = dim
    for key, value in (
        ("tokens", [f"word{number}" for number in range(rows)]),
        ("counts", torch.arange(rows)),
    ):
        if key in takes.names:
            own[key] = value
    make = hydra.utils.get_class(given["_target_"])
    return make(num_embeddings=rows, **own | {"padding_idx": padding_idx})


def jobs(*arguments: str) -> list[list[str]]:
    """The overrides of every job of ``python train.py -m ARGUMENTS``, the experiment's own sweep included; of
    an interval that a search draws from its lower end."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        chosen = [one for one in arguments if one.startswith("experiment=") and "," not in one]
        cfg = compose("train", chosen, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.overrides.task = list(arguments)
        command.Sweep().on_multirun_start(cfg)
        params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        ends = [
            f"{one.get_key_element()}={one.value().start}" if one.is_interval_sweep() else str(one.input_line)  # type: ignore[union-attr]
            for one in parser.parse_overrides([*params, *arguments])
        ]
        (found,) = BasicSweeper.split_arguments(parser.parse_overrides(ends), max_batch_size=None)
    return [list(job) for job in found]


class Runs:
    """Makes runs in a folder of its own: ``runs("head=gru")`` is ``python train.py head=gru``.

    Everything is written below ``folder``; there is no logger but the record, and the device is the CPU.
    Overrides that are given come after these.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.usual = [
            f"paths.runs='{folder}/runs'",
            f"paths.cache='{folder}/cache'",
            "logger=none",
            "trainer=cpu",
            "threads=1",  # the documents are few: two threads would mostly wait for each other
        ]

    def config(self, *overrides: str) -> DictConfig:
        """The configuration as train.py hands it to the recipe: composed and checked."""
        given = [*self.usual, *overrides]
        choices = [one for one in given if one.partition("=")[0] in GROUPS]
        cfg, chosen = composed(tuple(choices))
        cfg = copy.deepcopy(cfg)
        parser = OverridesParser.create()
        values = parser.parse_overrides([one for one in given if one not in choices])
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return config.check(cfg, chosen)

    def __call__(self, *overrides: str) -> RunFolder:
        """Train, and return the folder."""
        from textbed.training import train

        with threads_restored():
            path = train(self.config(*overrides), [*self.usual, *overrides])
        assert path is not None
        return RunFolder.open(path)

    def resume(self, folder: RunFolder, *overrides: str) -> RunFolder:
        """Go on with a run, as ``python train.py resume=FOLDER ...`` does."""
        from textbed.training import resume

        with threads_restored():
            path = resume(str(folder), overrides)
        assert path == folder.path
        return folder

    def mistake(self, *overrides: str) -> str:
        """The line that train.py prints for a run that cannot be made."""
        with pytest.raises(Exception) as caught:  # noqa: PT011  its class does not matter, the line does
            self(*overrides)
        line = command.explain(caught.value, ROOT / "configs")
        assert line is not None, caught.value
        assert "\n" not in line
        return line

    def made(self) -> list[RunFolder]:
        """The runs in the folder, in the order of their names."""
        return [RunFolder(path.parent) for path in sorted(self.folder.glob("runs/*/*/run.json"))]


TOPICS = {
    "birds": ["wing", "feather", "nest", "owl", "swallow", "beak", "egg", "heron"],
    "boats": ["sail", "mast", "rope", "harbour", "anchor", "deck", "oar", "keel"],
    "bread": ["flour", "yeast", "oven", "crust", "dough", "loaf", "rye", "crumb"],
}
PLAIN = [
    "the",
    "a",
    "of",
    "and",
    "it",
    "was",
    "with",
    "in",
    "for",
    "to",
    "on",
    "as",
    "so",
    "by",
    "at",
    "then",
]


def documents(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 2 to 24 words with their topic, equally many of each; hard enough that some are got wrong."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        topic = list(TOPICS)[number % 3]
        told = draw.choices(PLAIN, k=draw.randint(2, 20))
        # every fourth document speaks of another topic than its own as much
        told += draw.choices(TOPICS[topic], k=draw.randint(0, 2))
        if draw.random() < 0.25:
            told += draw.choices(TOPICS[draw.choice(list(TOPICS))], k=2)
        draw.shuffle(told)
        rows.append((" ".join(told), topic))
    return rows


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def on(path: Path, *more: str) -> list[str]:
    """Overrides for a short run on a CSV file, in which something is learnt."""
    usual = ["embedding.dim=8", "tokenizer.min_count=1", "optimizer.lr=0.1", "classifier.dropout=0.2"]
    return [
        "data=csv", f"data.path='{path}'", "data.batch_size=16", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2", *usual, *more,
    ]  # fmt: skip


def figures(folder: RunFolder, costs: bool = False) -> dict[str, Any]:
    """The final figures; without ``costs`` only those that repeat to the last bit."""
    return {
        name: value
        for name, value in folder.read_metrics().items()
        if costs or not name.startswith(("seconds/", "speed/", "memory/"))
    }


def record(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of the record without their time."""
    from textbed.runs.lines import read_metrics

    return [
        {key: value for key, value in line.items() if key != "time"} for line in read_metrics(folder.path)
    ]


def predictions(folder: RunFolder, split: str = "test") -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder.predictions / f"{split}.parquet").to_pydict()


def weights(folder: RunFolder, which: str = "last") -> dict[str, Any]:
    """The weights in a checkpoint, read without unpickling."""
    import torch

    return torch.load(folder.checkpoints / f"{which}.ckpt", weights_only=True)["state_dict"]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Both ended alike to the last bit: weights, figures, record and predictions."""
    import torch

    for which in ("best", "last"):
        mine, theirs = weights(one, which), weights(other, which)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), f"{which}.ckpt: {name}"
    assert figures(one) == figures(other)
    assert record(one) == record(other)
    assert predictions(one) == predictions(other)


def accuracy(labels: list[int], predicted: list[int]) -> float:
    return sum(map(int.__eq__, labels, predicted)) / len(labels)


def f1_macro(labels: list[int], predicted: list[int], classes: int) -> float:
    """The plain mean of the F1 of each class, by counting."""
    scores = []
    for each in range(classes):
        hits = sum(a == b == each for a, b in zip(labels, predicted, strict=True))
        both = labels.count(each) + predicted.count(each)
        scores.append(2 * hits / both if both else 0.0)
    return math.fsum(scores) / classes
