"""Configuration: every file composes and passes the check, every mistake is one line that names its mend."""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from textbed import command, config, schema
from textbed.data.characters import CharacterSettings
from textbed.data.subwords import SubwordSettings
from textbed.data.words import WordSettings
from textbed.errors import UserError
from textbed.targets import read_arguments

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "local")
)
Compose = Callable[..., DictConfig]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, with a table of two vectors and a file of documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEXTBED_MIRROR", raising=False)
    Path("vectors.txt").write_text("good 0.1 0.2 0.3\nbad 0.4 0.5 0.6\n")
    Path("reviews.csv").write_text("text,label\nfine,good\n")
    return tmp_path


@pytest.fixture(scope="module")
def base() -> DictConfig:
    """The composed default, to which values are applied as Hydra does it: composing takes 0.2 s each time."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train")


def line_of(composed: Compose, base: DictConfig, overrides: list[str]) -> str:
    """The line that a mistake gives, as train.py would print it."""

    def mistaken() -> None:
        if all(re.match(r"\+?\w+\.\w+[.=]", one) for one in overrides):  # values alone, no groups
            cfg = copy.deepcopy(base)
            parsed = OverridesParser.create().parse_overrides(overrides)
            ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
        else:
            cfg = composed(*overrides)
        config.check(cfg, dict(one.split("=", 1) for one in overrides if one.startswith("embedding=")))

    return explained(mistaken, CONFIGS)


def explained(mistaken: Callable[[], object], configs: Path) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  which class it is does not matter, the line does
        mistaken()
    line = command.explain(caught.value, configs)
    assert line is not None, caught.value
    assert "\n" not in line
    return line


# The files


def test_every_line_of_the_defaults_list_says_what_it_chooses():
    text = (CONFIGS / "train.yaml").read_text()
    block = re.search(r"^defaults:\n((?:[ #].*\n)+)", text, re.MULTILINE)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.strip().startswith("- ")]
    assert len(lines) >= 15
    assert [line for line in lines if not re.search(r"\s# \S.*\w{3}", line)] == []


def test_every_top_level_key_of_train_yaml_has_a_comment_above_it():
    lines = (CONFIGS / "train.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line) and not line.startswith("defaults"):
            assert lines[number - 1].startswith("# "), line


def test_train_yaml_and_the_schema_agree_on_the_defaults():
    written = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    written.pop("defaults")
    defaults = {item.name: item.default for item in fields(schema.TrainConfig)}
    groups = {"classifier": schema.ClassifierConfig, "report": schema.ReportConfig}
    for name, value in written.items():
        if name in groups:
            assert value == {item.name: item.default for item in fields(groups[name])}
        else:
            assert value == defaults[name], name
    written_paths = yaml.safe_load((CONFIGS / "paths/default.yaml").read_text())
    assert written_paths == {item.name: item.default for item in fields(schema.PathsConfig)}


def test_the_groups_are_the_folders():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"hydra", "local"}
    keys = {item.name for item in fields(schema.TrainConfig)}
    assert folders == (keys & folders) | set(schema.GLOBAL_GROUPS)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (WordSettings, schema.WordsConfig),
        (CharacterSettings, schema.CharactersConfig),
        (SubwordSettings, schema.SubwordsConfig),
    ],
)
def test_the_tokenizers_defaults_have_one_value(settings: type, keys: type):
    """The library's own defaults are for those who use it without Hydra."""
    theirs = {item.name: item.default for item in fields(settings)}
    ours = {item.name: item.default for item in fields(keys)}
    assert ours.pop("kind") in schema.TOKENIZERS
    assert ours == theirs


def commands() -> list[list[str]]:
    """Command lines that together hold every option of every group, as few as there are in the largest group.

    Composing takes 0.2 s, so options of different groups share a command. An experiment chooses for itself.
    """
    groups = {group: [option for other, option in OPTIONS if other == group] for group, _ in OPTIONS}
    alone = [[f"experiment={option}"] for option in groups.pop("experiment")]
    rows = range(max(len(options) for options in groups.values()))
    return alone + [
        [f"{group}={options[row % len(options)]}" for group, options in groups.items()] for row in rows
    ]


@pytest.mark.parametrize("given", commands(), ids=" ".join)
def test_every_option_composes_and_passes_the_check(composed: Compose, here: Path, given: list[str]):
    chosen = dict(one.split("=") for one in given)
    cfg = composed(*given)
    # What has to be given with some options:
    if chosen.get("embedding", "random") not in ("random", "hashed", "ngrams"):
        cfg.embedding.vectors = "vectors.txt"
    if cfg.data.source in schema.FILE_SOURCES:
        cfg.data.path = "reviews.csv"
    if cfg.data.source == "hub" and (OmegaConf.is_missing(cfg.data, "name") or cfg.data.name is None):
        cfg.data.name = "someone/something"
    checked = config.check(cfg, chosen)
    assert not OmegaConf.missing_keys(checked)
    assert set(checked.data) == set(schema.rules(schema.DataConfig))


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_file_says_what_it_is_for(path: Path):
    lines = [line for line in path.read_text().splitlines() if "@package" not in line]
    assert re.match(r"# \S+ \S+", lines[0])
    if path.parent.name in schema.GLOBAL_GROUPS:
        header = "\n".join(lines[: [line.startswith("#") for line in lines].index(False)])
        assert f"python train.py {path.parent.name}={path.stem}" in header


def test_the_check_fills_in_defaults_and_leaves_its_argument_alone(composed: Compose, here: Path):
    cfg = composed(
        "embedding=frozen", "embedding.vectors=vectors.txt", "paths.cache='~/somewhere'", "optimizer.lr=1"
    )
    del cfg.tokenizer.keep
    before = OmegaConf.to_yaml(cfg)
    checked = config.check(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert checked.tokenizer["keep"] == "head"
    assert checked.embedding.dim == 3  # the width of the vectors
    assert checked.paths.cache == str(Path("~/somewhere").expanduser())
    assert checked.data.mirror is None  # resolved


def test_n_grams_are_32_wide_or_as_wide_as_the_words_vectors(composed: Compose, here: Path):
    for given, dim in ([], 32), (["embedding.vectors=vectors.txt"], 3), (["embedding.dim=7"], 7):
        assert config.check(composed("embedding=ngrams", *given)).embedding.dim == dim


@pytest.mark.parametrize(
    "given",
    [["embedding=frozen", "embedding.train_missing=true"], ["embedding=adapted"], ["embedding=projected"]],
)
def test_what_learns_beside_a_frozen_table_has_a_learning_rate(
    composed: Compose, here: Path, given: list[str]
):
    own = ["embedding.vectors=vectors.txt", "embedding.lr=0.1", "embedding.weight_decay=0.2"]
    checked = config.check(composed(*given, *own), dict(one.split("=") for one in given[:1]))
    assert (checked.embedding.lr, checked.embedding.weight_decay) == (0.1, 0.2)


def test_what_a_class_gives_its_base_itself_is_no_key():
    channels = read_arguments("textbed.embedding.channels.Multichannel")
    adapted = read_arguments("textbed.embedding.corrections.Adapted")
    table = read_arguments("textbed.embedding.table.Table")
    assert {*table.names} - {*channels.names} == {"trainable", "train_missing"}
    assert {*table.names} - {*adapted.names} == {"trainable", "frozen_epochs", "frozen_steps"}
    assert {*adapted.names} - {*table.names} == {"rank"}
    assert not channels.open
    assert not adapted.open


def test_annotations_say_what_an_argument_must_be():
    lstm = read_arguments("textbed.heads.recurrent.Recurrent").rules
    assert lstm["hidden"].holds(3)
    assert not lstm["hidden"].holds(True)
    assert not lstm["hidden"].holds(None)
    assert lstm["window"].holds(None)  # of the base, to which settings are handed on
    assert lstm["weight_drop"].holds(0)
    assert not {"cell", "readout"} & set(lstm)  # choices, which the class knows
    powers = read_arguments("textbed.heads.pooling.PowerMean").rules["powers"]
    assert powers.holds([1, 2.5, math.inf])
    assert not powers.holds([1, "2"])
    assert not powers.holds(1)


@pytest.mark.parametrize(
    "given",
    [
        ["embedding.gradient=lazy", "optimizer=adamw", "trainer.gradient_clip_val=1.0"],
        ["embedding.gradient=lazy", "optimizer=adam", "optimizer.fused=true", "embedding.weight_decay=0.1"],
        ["embedding.gradient=sparse", "optimizer=adagrad", "trainer=ddp_sim"],
        ["embedding.gradient=auto", "embedding.scale_grad_by_freq=true", "trainer=fsdp"],
    ],
)
def test_gradients_that_can_be(composed: Compose, given: list[str]):
    config.check(composed(*given))


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        (["optimizer=sgd"], True),
        (["optimizer=sgd", "optimizer.momentum=0.9"], False),
        (["optimizer=sgd", "optimizer.weight_decay=0.1"], False),
        (["optimizer=sgd", "optimizer.weight_decay=0.1", "embedding.weight_decay=0"], True),
        (["optimizer=adagrad"], True),
        (["optimizer=adagrad", "embedding.weight_decay=0.1"], False),
        (["optimizer=adam"], False),
        (["optimizer=sgd", "trainer.gradient_clip_val=1.0"], False),
        (
            ["optimizer=sgd", "trainer.gradient_clip_val=1.0", "trainer.gradient_clip_algorithm=value"],
            True,
        ),
        (["optimizer=sgd", "trainer.gradient_clip_val=0"], True),
    ],
)
def test_which_optimizers_leave_untouched_rows_alone(composed: Compose, given: list[str], alike: bool):
    assert config.is_alike(config.check(composed(*given))) == alike


def test_a_list_of_one_callback_can_be_left_out(composed: Compose):
    assert "progress" in config.check(composed()).callbacks
    assert "progress" not in config.check(composed("callbacks.progress=null")).callbacks


# Mistakes: overrides, and what the line must hold in this order


MISTAKES = {
    "unknown option": (["head=grru"], ["head=grru", "bigru", "mean", "Did you mean 'gru'?"]),
    "unknown experiment": (["experiment=quikstart"], ["experiment=quikstart", "Did you mean 'quickstart'?"]),
    "unknown key": (["data.fodls=3"], ["data.fodls=3", "no such key", "Did you mean 'data.folds'?"]),
    "unknown key, added": (["+data.fodls=3"], ["data.fodls", "no such key", "Did you mean 'data.folds'?"]),
    "unknown top-level key": (["sede=3"], ["sede=3", "no such key", "Did you mean 'seed'?"]),
    "unknown group": (["experimnt=x"], ["experimnt=x", "no such key", "Did you mean 'experiment'?"]),
    "unknown group, added": (["+experimnt=x"], ["experimnt", "no such key", "Did you mean 'experiment'?"]),
    "no value": (["head"], ["head", "expected a value"]),
    "no key": (["hed"], ["hed", "KEY=VALUE", "Did you mean 'head'?"]),
    "unreadable value": (["data.text=[a"], ["data.text=[a", "cannot be read", "quotes"]),
    "several values": (["seed=0,1"], ["seed=0,1", "-m", "seed=[0,1]"]),
    "a search by the test": (["sweep.objectives=test/loss"], ["objectives=test/loss", "none of the test"]),
    "no objective": (["sweep.objectives=[]"], ["sweep.objectives=[]", "at least one"]),
    "one objective for cmaes": (
        ["sweep=cmaes", "sweep.objectives=[val/loss,seconds/fit]"],
        ["sweep.objectives=", "sweep=tpe"],
    ),
    "several objectives prune nothing": (
        ["sweep.pruner=median", "sweep.objectives=[val/loss,seconds/fit]"],
        ["sweep.pruner=median", "nothing is pruned"],
    ),
    "prune by what is known before the end": (
        ["sweep.pruner=asha", "sweep.objectives=seconds/fit"],
        ["sweep.pruner=asha", "seconds/fit is not known before the end"],
    ),
    "no such pruner": (["sweep.pruner=medien"], ["sweep.pruner=medien", "Did you mean 'median'?"]),
    "group chosen twice": (["+head=gru"], ["+head=gru", "head=gru"]),
    "group set to null": (["~head"], ["head", "expected"]),
    "unresolvable": (["name=${nothing}"], ["name", "nothing"]),
    "word for a number": (["data.batch_size=many"], ["data.batch_size=many", "whole number of at least 1"]),
    "fraction for a count": (["data.batch_size=2.5"], ["data.batch_size=2.5", "whole number of at least 1"]),
    "batch size 0": (["data.batch_size=0"], ["data.batch_size=0", "at least 1"]),
    "no workers": (["data.workers=-1"], ["data.workers=-1", "at least 0"]),
    "token budget 0": (["data.batch_tokens=0"], ["data.batch_tokens=0", "at least 1, or null"]),
    "negative learning rate": (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "a number of at least 0"]),
    "nan learning rate": (["optimizer.lr=nan"], ["optimizer.lr=nan", "a number of at least 0"]),
    "word for a learning rate": (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number of at least 0"]),
    "table's learning rate": (["embedding.lr=-1"], ["embedding.lr=-1", "at least 0, or null"]),
    "negative seed": (["seed=-1"], ["seed=-1", "at least 0"]),
    "large seed": (["seed=4294967296"], ["seed=4294967296", "at most 4294967295"]),
    "truth for a seed": (["seed=true"], ["seed=true", "whole number"]),
    "words of a report": (["report.words=[]"], ["report.words=[]", "such as [good,bad]"]),
    "a word that is no list": (["report.words=good"], ["report.words=good", "a list, or null"]),
    "no neighbours": (["report.neighbours=0"], ["report.neighbours=0", "at least 1"]),
    "dropout 1": (["classifier.dropout=1.0"], ["classifier.dropout=1.0", "below 1"]),
    "label smoothing 1": (["classifier.label_smoothing=1"], ["classifier.label_smoothing=1", "below 1"]),
    "class weights": (["classifier.class_weights=balancd"], ["balancd", "a list, or null", "'balanced'"]),
    "weights all 0": (["classifier.class_weights=[0,0]"], ["classifier.class_weights=[0, 0]", "each class"]),
    "validation 1": (["data.validation=1"], ["data.validation=1", "at least 0 and below 1"]),
    "training fraction 0": (["data.train_fraction=0"], ["data.train_fraction=0", "above 0 and of at most 1"]),
    "one fold": (["data.folds=1"], ["data.folds=1", "at least 2, or null"]),
    "folds out of range": (["data.folds=10", "data.fold=10"], ["data.fold=10", "out of range", "0 to 9"]),
    "fold below range": (["data.folds=10", "data.fold=-1"], ["data.fold=-1", "at least 0"]),
    "fold without folds": (["data.fold=2"], ["data.fold=2", "data.folds=NUMBER"]),
    "unknown source": (["data.source=cvs"], ["data.source=cvs", "docstrings, csv", "Did you mean 'csv'?"]),
    "unknown batching": (["data.batching=bucket"], ["data.batching=bucket", "Did you mean 'bucketed'?"]),
    "source without path": (["data=csv"], ["data.path", "data.path=PATH"]),
    "missing file": (
        ["data=csv", "data.path=revews.csv"],
        ["data.path=revews.csv", "no such file", "Did you mean 'reviews.csv'?"],
    ),
    "missing file of a split": (
        ["data=csv", "data.path={train: reviews.csv, test: gone/x.csv}"],
        ["data.path.test=gone/x.csv", "no such file"],
    ),
    "empty pattern": (["data=csv", "data.path='part-*.csv'"], ["data.path=part-*.csv", "no file fits"]),
    "path of another source": (["data.path=a.csv"], ["data.path=a.csv", "docstrings", "csv and tsv"]),
    "hub without a name": (["data=hub"], ["data.name", "data.name=ID"]),
    "mirror": (
        ["data=hub", "data.name=imdb", "data.mirror=/nowhere/at/all"],
        ["data.mirror=/nowhere/at/all", "no such folder"],
    ),
    "three texts": (["data.text=[a,b,c]"], ["data.text=['a', 'b', 'c']", "one column, or of two"]),
    "the same text twice": (["data.text=[a,a]"], ["data.text=['a', 'a']", "different"]),
    "encoding": (
        ["data=csv", "data.path=reviews.csv", "data.encoding=utf9"],
        ["data.encoding=utf9", "character encoding", "Did you mean"],
    ),
    "delimiter": (
        ["data=csv", "data.path=reviews.csv", "data.delimiter=';;'"],
        ["data.delimiter=;;", "one character"],
    ),
    "kind of tokenizer": (["tokenizer.kind=wrods"], ["tokenizer.kind=wrods", "Did you mean 'words'?"]),
    "normal form": (["tokenizer.normalize=NFX"], ["tokenizer.normalize=NFX", "NFC, NFD", "or null"]),
    "no tokens": (["tokenizer.max_tokens=0"], ["tokenizer.max_tokens=0", "at least 1, or null"]),
    "no count": (["tokenizer.min_count=0"], ["tokenizer.min_count=0", "at least 1"]),
    "tokenizer's key": (["+tokenizer.lowrcase=true"], ["tokenizer.lowrcase", "'tokenizer.lowercase'"]),
    "frozen without vectors": (
        ["embedding=frozen", "embedding.vectors=null"],
        ["embedding.vectors", "embedding.trainable=false", "embedding.vectors=FILE", "embedding=random"],
    ),
    "fine-tuned without vectors": (
        ["embedding=finetuned", "embedding.vectors=null"],
        ["embedding.vectors", "embedding=random"],
    ),
    "random with vectors": (
        ["embedding=random", "embedding.vectors=vectors.txt"],
        ["embedding.vectors=vectors.txt", "embedding=finetuned"],
    ),
    "missing vectors": (
        ["embedding=frozen", "embedding.vectors=vector.txt"],
        ["embedding.vectors=vector.txt", "no such file", "Did you mean 'vectors.txt'?"],
    ),
    "width of the vectors": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.dim=300"],
        ["embedding.dim=300", "3 wide", "embedding.dim=3"],
    ),
    "no width to reduce to": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.reduce=pca"],
        ["embedding.dim=null", "embedding.reduce=pca", "3 wide", "at most 3", "embedding.reduce=null"],
    ),
    "wider than the vectors": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.reduce=truncate", "embedding.dim=4"],
        ["embedding.dim=4", "3 wide", "at most 3"],
    ),
    "narrower than the vectors": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.dim=2"],
        ["embedding.dim=2", "3 wide", "embedding.reduce=truncate, or pca, makes"],
    ),
    "kind of reduction": (["embedding.reduce=PCA"], ["embedding.reduce=PCA", "truncate, pca"]),
    "reduction of nothing": (
        ["embedding.reduce=pca"],
        ["embedding.reduce=pca", "no vectors", "embedding.vectors=FILE", "embedding.reduce=null"],
    ),
    "all components removed": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.remove_components=3"],
        ["embedding.remove_components=3", "3 columns", "from 0 to 2"],
    ),
    "vectors where words share rows": (
        ["embedding=hashed", "embedding.vectors=vectors.txt"],
        ["embedding.vectors=vectors.txt", "Hashed", "embedding.vectors=null", "embedding=finetuned"],
    ),
    "too many hashes": (["embedding=hashed", "embedding.hashes=9"], ["embedding.hashes=9", "at most 8"]),
    "no buckets": (["embedding=ngrams", "embedding.buckets=0"], ["embedding.buckets=0", "at least 1"]),
    "one length of character n-grams": (
        ["embedding=ngrams", "embedding.max_char=6"],
        ["embedding.max_char=6", "both lengths", "embedding.min_char=NUMBER"],
    ),
    "lengths of character n-grams": (
        ["embedding=ngrams", "embedding.min_char=6", "embedding.max_char=3"],
        ["embedding.min_char=6", "at most embedding.max_char=3"],
    ),
    "no n-grams": (
        ["embedding=ngrams", "embedding.word_ngrams=1"],
        ["embedding.word_ngrams=1", "embedding.word_ngrams=2", "embedding=random"],
    ),
    "vectors in no folder": (
        ["embedding=frozen", "embedding.vectors=nowhere/glove.txt"],
        ["embedding.vectors=nowhere/glove.txt", "no such file or folder, nor a folder 'nowhere'"],
    ),
    "spelling": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.case=[exact,upper]"],
        ["embedding.case=['exact', 'upper']", "exact, lower and title"],
    ),
    "spelling twice": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.case=[lower,lower]"],
        ["embedding.case=['lower', 'lower']", "exact, lower and title"],
    ),
    "spelling of nothing": (
        ["embedding.case=[exact,lower]"],
        ["embedding.case=['exact', 'lower']", "no file of vectors"],
    ),
    "no width": (["embedding.dim=null"], ["embedding.dim=null", "embedding.dim=300"]),
    "frozen that learns": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.lr=0.1"],
        ["embedding.lr=0.1", "frozen", "embedding.lr=null"],
    ),
    "frozen that decays": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.weight_decay=0.1"],
        ["embedding.weight_decay=0.1", "frozen", "embedding.weight_decay=null"],
    ),
    "frozen that has a gradient": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.scale_grad_by_freq=true"],
        ["embedding.scale_grad_by_freq=true", "frozen", "embedding=finetuned"],
    ),
    "row without a vector": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.missing=meen"],
        ["embedding.missing=meen", "random, zeros, mean, shared", "Did you mean 'mean'?"],
    ),
    "row without a vector where there are none": (
        ["+embedding.missing=mean"],
        ["embedding.missing=mean", "without vectors", "embedding.missing=random"],
    ),
    "training missing rows of a trained table": (
        ["embedding=finetuned", "embedding.vectors=vectors.txt", "+embedding.train_missing=true"],
        ["embedding.train_missing=true", "embedding.train_missing=false", "embedding=frozen"],
    ),
    "scale of zeros": (
        ["embedding.init=zeros", "embedding.scale=0.1"],
        ["embedding.scale=0.1", "embedding.init=zeros", "embedding.scale=null"],
    ),
    "scale of n-grams that are zeros": (
        ["embedding=ngrams", "embedding.ngram_scale=0.1"],
        ["embedding.ngram_scale=0.1", "embedding.ngram_init=zeros", "embedding.ngram_init=normal"],
    ),
    "norm of nothing": (
        ["embedding.norm_type=1"],
        ["embedding.norm_type=1", "embedding.max_norm=NUMBER", "embedding.norm_type=2.0"],
    ),
    "unseen words without vectors": (
        ["embedding.unseen=unknown"],
        ["embedding.unseen=unknown", "no file of vectors", "embedding.unseen=keep"],
    ),
    "no importance to append": (
        ["embedding=hashed", "embedding.append_importance=true", "embedding.importance=false"],
        ["embedding.append_importance=true", "nothing to append", "embedding.importance=true"],
    ),
    "hashed and frozen": (
        ["embedding=hashed", "+embedding.trainable=false"],
        ["embedding.trainable=false", "nothing pretrained to freeze", "embedding.trainable=true"],
    ),
    "activation of no layers": (
        ["+head.dense_activation=tanh"],
        ["head.dense_activation=tanh", "no layers", "head.dense=[300]", "head.dense_activation=relu"],
    ),
    "dropout of no layers": (
        ["+head.dense_dropout=0.5"],
        ["head.dense_dropout=0.5", "no layers", "head.dense=[300]", "head.dense_dropout=0.0"],
    ),
    "sparse n-grams beside frozen words": (
        ["embedding=ngrams", "embedding.vectors=vectors.txt",
         "embedding.trainable=false", "embedding.gradient=sparse"],
        ["embedding.gradient=sparse", "Adam", "embedding.gradient=lazy"],
    ),
    "two scales": (
        ["embedding.init=kaiming_normal", "embedding.scale=0.1"],
        ["embedding.scale=0.1", "embedding.init=kaiming_normal", "embedding.scale=null"],
    ),
    "initialisation": (["embedding.init=xavier"], ["embedding.init=xavier", "xavier_normal"]),
    "thawed from nothing": (
        ["embedding=thawed", "embedding.vectors=null"],
        ["embedding.vectors", "embedding=random"],
    ),
    "two channels of nothing": (
        ["embedding=multichannel", "embedding.vectors=null", "embedding.dim=4"],
        ["embedding.vectors"],
    ),
    "thawed that never was frozen": (
        ["embedding=thawed", "embedding.vectors=vectors.txt", "embedding.frozen_epochs=0"],
        ["embedding.frozen_epochs=0", "embedding.frozen_steps", "embedding=finetuned"],
    ),
    "thawed that stays frozen": (
        ["embedding=thawed", "embedding.vectors=vectors.txt", "embedding.trainable=false"],
        ["embedding.frozen_epochs=2", "never thaws", "embedding.trainable=true", "embedding=frozen"],
    ),
    "channels that are both frozen": (
        ["embedding=multichannel", "embedding.vectors=vectors.txt", "embedding.trainable=false"],
        ["embedding.trainable=false", "Multichannel always learns", "embedding=frozen"],
    ),
    "correction that is frozen": (
        ["embedding=adapted", "embedding.vectors=vectors.txt", "embedding.trainable=false"],
        ["embedding.trainable=false", "Adapted always learns", "embedding=frozen"],
    ),
    "correction that thaws": (
        ["embedding=adapted", "embedding.vectors=vectors.txt", "+embedding.frozen_epochs=2"],
        ["embedding.frozen_epochs=2", "no such key", "The keys there are"],
    ),
    "sparse with Adam": (
        ["embedding.gradient=sparse"],
        ["embedding.gradient=sparse", "Adam", "optimizer=sgd", "embedding.gradient=lazy"],
    ),
    "lazy with another optimizer": (
        [
            "embedding.gradient=lazy",
            "optimizer=sgd",
            "optimizer._target_=torch.optim.RMSprop",
            "~optimizer.nesterov",
        ],
        ["embedding.gradient=lazy", "RMSprop", "optimizer=adamw", "embedding.gradient=dense"],
    ),
    "sparse and fused": (
        ["embedding.gradient=sparse", "optimizer=adagrad", "optimizer.fused=true"],
        ["optimizer.fused=true", "sparse", "optimizer.fused=null"],
    ),
    "sparse with decay": (
        ["embedding.gradient=sparse", "optimizer=sgd", "optimizer.weight_decay=0.1"],
        ["optimizer.weight_decay=0.1", "sparse", "embedding.weight_decay=0"],
    ),
    "sparse by frequency": (
        ["embedding.gradient=sparse", "embedding.scale_grad_by_freq=true", "optimizer=sgd"],
        ["embedding.gradient=sparse", "embedding.scale_grad_by_freq=false"],
    ),
    "lazy on several GPUs": (
        ["embedding.gradient=lazy", "trainer=ddp"],
        ["embedding.gradient=lazy", "NCCL", "embedding.gradient=dense", "trainer.devices=1"],
    ),
    "lazy and divided": (
        ["embedding.gradient=lazy", "trainer=fsdp"],
        ["embedding.gradient=lazy", "trainer.strategy=fsdp", "embedding.gradient=dense"],
    ),
    "lazy on an Apple GPU": (
        ["embedding.gradient=lazy", "trainer=mps"],
        ["embedding.gradient=lazy", "Apple", "trainer=cpu"],
    ),
    "an argument of the table that gradient decides": (
        ["+embedding.sparse=true"],
        ["embedding.sparse=true", "leave it out"],
    ),
    "padding row": (["embedding.padding_idx=atuo"], ["embedding.padding_idx=atuo", "auto", "'auto'"]),
    "head's argument": (["head=gru", "head.hiden=3"], ["head.hiden=3", "Did you mean 'head.hidden'?"]),
    "head's argument, added": (["head=gru", "+head.hiden=3"], ["head.hiden=3", "'head.hidden'"]),
    "width that is no number": (
        ["head=gru", "head.hidden=abc"],
        ["head.hidden=abc: expected a whole number."],
    ),
    "queries that are no whole number": (
        ["head=self_attention", "head.queries=1.5"],
        ["head.queries=1.5: expected a whole number."],
    ),
    "no is no false": (
        ["head=gru", "head.bidirectional=no"],
        ["head.bidirectional=no: expected true or false."],
    ),
    "share that is a word": (
        ["head=gru", "head.dropout=high"],
        ["head.dropout=high: expected a number."],
    ),
    "window that may be none": (
        ["head=gru", "head.window=1.5"],
        ["head.window=1.5: expected a whole number, or null."],
    ),
    "widths that are no list": (
        ["head=cnn", "head.widths=3"],
        ["head.widths=3: expected a list, of each entry a whole number."],
    ),
    "widths that are no numbers": (
        ["head=cnn", "head.widths=[3,a]"],
        ["head.widths=[3, 'a']: expected a list, of each entry a whole number."],
    ),
    "number of an optimizer": (
        ["optimizer.weight_decay=little"],
        ["optimizer.weight_decay=little: expected a number."],
    ),
    "classes of a head": (["+head.num_classes=3"], ["head.num_classes=3", "leave it out"]),
    "layers that are no list": (["+head.dense=300"], ["head.dense=300", "a list, or null"]),
    "layer of no width": (["+head.dense=[300,0]"], ["head.dense=[300, 0]", "a list of widths, such as"]),
    "layers that are none": (["+head.dense=[]"], ["head.dense=[]", "a list of widths"]),
    "layers' activation": (["+head.dense_activation=rleu"], ["head.dense_activation=rleu", "'relu'"]),
    "layers, misspelt": (["+head.dens=[3]"], ["head.dens", "Did you mean 'head.dense'?"]),
    "no parameters": (["+head.parameters=0"], ["head.parameters=0", "at least 1, or null"]),
    "head's width": (["+head.dim=3"], ["head.dim=3", "leave it out"]),
    "head's argument left out": (["head=gru", "~head.hidden"], ["head.hidden", "needs this argument"]),
    "module": (
        ["head._target_=textbed.heads.poolin.Pooling"],
        ["head._target_=textbed.heads.poolin.Pooling", "'textbed.heads.pooling'"],
    ),
    "class": (
        ["head._target_=textbed.heads.pooling.Poling"],
        ["head._target_=textbed.heads.pooling.Poling", "Did you mean 'Pooling'?"],
    ),
    "optimizer's argument": (["+optimizer.weight_decya=1"], ["weight_decya=1", "'optimizer.weight_decay'"]),
    "trainer's argument": (["trainer.max_epoch=1"], ["trainer.max_epoch=1", "'trainer.max_epochs'"]),
    "precision": (["trainer.precision=bf16-mix"], ["trainer.precision=bf16-mix", "'bf16-mixed'"]),
    "accumulation": (["trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches=0", "at least 1"]),
    "scheduler's interval": (["scheduler.interval=steps"], ["scheduler.interval=steps", "'step'"]),
    "the table's scheduler's interval": (
        ["+scheduler@embedding.scheduler=linear", "embedding.scheduler.interval=steps"],
        ["embedding.scheduler.interval=steps", "'step'"],
    ),
    "key of the table's scheduler": (
        ["+scheduler@embedding.scheduler=linear", "+embedding.scheduler.total=5"],
        ["embedding.scheduler.total=5", "no such key", "total_iters"],
    ),
    "the table's scheduler without a class": (
        ["+embedding.scheduler={interval: step}"],
        ["embedding.scheduler", "embedding.scheduler._target_", "+scheduler@embedding.scheduler=NAME"],
    ),
    "name for the table's scheduler": (
        ["embedding.scheduler=linear"],
        ["embedding.scheduler=linear", "a mapping, or null"],
    ),
    "direction of the table's scheduler": (
        ["+scheduler@embedding.scheduler=plateau", "embedding.scheduler.mode=max"],
        ["embedding.scheduler.mode=max", "val/loss is better when it is smaller", "scheduler.mode=min"],
    ),
    "scheduler of a frozen table": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "+scheduler@embedding.scheduler=linear"],
        ["embedding.scheduler=torch.optim.lr_scheduler.LinearLR", "frozen", "embedding.scheduler=null"],
    ),
    "all words dropped": (["embedding.word_dropout=1.0"], ["embedding.word_dropout=1.0", "below 1"]),
    "negative noise": (["embedding.noise=-0.1"], ["embedding.noise=-0.1", "at least 0"]),
    "noise over n-grams": (
        ["embedding=ngrams", "+embedding.noise=0.1"],
        ["embedding.noise=0.1", "n-grams", "embedding.noise=0"],
    ),
    **{
        f"longest row of several processes, {given[-1]}": (
            ["embedding.max_norm=3", *given],
            ["embedding.max_norm=3", "several processes", "embedding.max_norm=null", "trainer.devices=1"],
        )
        for given in (
            ["trainer=ddp_sim"], ["trainer=ddp"], ["trainer.devices=auto"], ["trainer.num_nodes=2"],
        )
    },
    "longest weights of a class, in parts": (
        ["trainer=fsdp", "classifier.max_norm=3"],
        ["classifier.max_norm=3", "fsdp divides", "classifier.max_norm=null", "trainer=ddp"],
    ),
    "kind of weights": (["embedding.token_weights=tfidf"], ["token_weights=tfidf", "sif, idf, learned"]),
    "sif without sif": (
        ["embedding.sif_a=0.01", "embedding.token_weights=idf"],
        ["embedding.sif_a=0.01", "embedding.token_weights=sif"],
    ),
    "pull to nothing": (["embedding.pull=0.1"], ["embedding.pull=0.1", "embedding.vectors=FILE"]),
    "pull of a frozen table": (
        ["embedding=frozen", "embedding.vectors=vectors.txt", "embedding.pull=0.1"],
        ["embedding.pull=0.1", "frozen", "embedding.pull=0", "embedding=finetuned"],
    ),
    "monitor of the test set": (
        ["callbacks.checkpoints.monitor=test/accuracy"],
        ["callbacks.checkpoints.monitor=test/accuracy", "validation", "'val/accuracy'"],
    ),
    "mode": (
        ["callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=max"],
        ["callbacks.checkpoints.mode=max", "val/loss is better when it is smaller", "mode=min"],
    ),
    "callback switched off": (
        ["callbacks.quick_loop=false"],
        ["callbacks.quick_loop=false", "true or false", "give callbacks.quick_loop=null to leave it out"],
    ),
    "callback switched on": (
        ["callbacks.quick_loop=true"],
        ["callbacks.quick_loop=true", "true or false", "leave this out to keep the entry"],
    ),
    "callback": (
        ["+callbacks.chekpoints.monitor=val/loss"],
        ["callbacks.chekpoints", "no such entry", "Did you mean 'checkpoints'?"],
    ),
    "name": (["name=../elsewhere"], ["name=../elsewhere", "one folder"]),
    "threads": (["threads=0"], ["threads=0", "at least 1, or null"]),
    "mandatory value": (["data.label='???'"], ["data.label", "must be given"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_key_value_and_mend(
    composed: Compose, base: DictConfig, here: Path, case: str
):
    overrides, parts = MISTAKES[case]
    line = line_of(composed, base, overrides)
    assert re.search(".*".join(re.escape(part) for part in parts), line), line
    assert len(line) < 450


def test_the_gradient_of_what_stands_still_suits_every_optimizer(
    composed: Compose, base: DictConfig, here: Path
):
    frozen = [
        "embedding=frozen",
        "embedding.vectors=vectors.txt",
        "optimizer=adam",
        "embedding.gradient=sparse",
    ]
    assert config.check(composed(*frozen)).embedding.gradient == "sparse"
    with pytest.raises(UserError, match=r"embedding\.gradient=sparse"):
        config.check(composed(*frozen, "embedding.token_weights=learned"))


FILES = {
    "misspelt key": ("data: {fodls: 3}", ["mine.yaml", "data.fodls=3", "'data.folds'"]),
    "misspelt part": ("hed: {hidden: 3}", ["mine.yaml", "hed", "'head'"]),
    "misspelt argument": ("head: {mods: [max]}", ["head.mods=['max']", "'head.modes'"]),
    "misspelt argument of the trainer": (
        "trainer: {precison: 32}",
        ["trainer.precison=32", "'trainer.precision'"],
    ),
    "misspelt key of the tokenizer": (
        "tokenizer: {lowrcase: true}",
        ["lowrcase=true", "'tokenizer.lowercase'"],
    ),
    "value": ("data: {batch_size: many}", ["mine.yaml", "data.batch_size=many", "whole number"]),
    "value for a part": ("data: 3", ["mine.yaml", "data=3", "keys and their values"]),
    "list for a part": ("callbacks: [a]", ["mine.yaml", "callbacks=['a']", "keys and their values"]),
    "nothing for a part": ("head: null", ["head=null", "keys and their values"]),
    "group": ("defaults: [{override /heda: gru}]", ["mine.yaml", "heda", "'head'"]),
    "option": ("defaults: [{override /head: grru}]", ["head=grru", "'gru'"]),
    "open bracket": ("data: [a", ["mine.yaml, line 3", "not valid YAML"]),
    "tab": ("data:\n\tfolds: 3", ["mine.yaml, line 3", "not valid YAML"]),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the config files, to put one's own beside."""
    return Path(shutil.copytree(CONFIGS, tmp_path_factory.mktemp("files") / "configs"))


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_of_ones_own(composed: Compose, configs: Path, case: str):
    content, parts = FILES[case]
    (configs / "experiment/mine.yaml").write_text(f"# @package _global_\n{content}\n")
    line = explained(lambda: config.check(composed("experiment=mine", configs=configs)), configs)
    assert re.search(".*".join(re.escape(part) for part in parts), line), line


def test_what_is_not_the_users_mistake_is_not_explained():
    assert command.explain(RuntimeError("ours")) is None
    with pytest.raises(Exception) as caught:  # noqa: PT011
        _ = OmegaConf.create({"a": 1}, flags={"struct": True}).b
    assert command.explain(caught.value) is None


def test_check_targets_finds_what_the_source_does_not_show(composed: Compose):
    cfg = composed()
    config.check_targets(cfg)
    cfg.optimizer._target_ = "torch.optim.Adan"
    config.check(cfg)  # torch's optimizers are put together on import: reading cannot tell
    with pytest.raises(UserError, match=r"optimizer\._target_=torch\.optim\.Adan: .* Did you mean 'Adam'\?"):
        config.check_targets(cfg)
    cfg = composed("+trainer.max_tiem=1", "optimizer._target_=nowhere.at.all.Adam")
    with pytest.raises(UserError, match=r"optimizer\._target_=nowhere\.at\.all\.Adam: .*installed"):
        config.check_targets(cfg)


# train.py itself


def run_train(
    *arguments: str, cwd: Path, code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", code] if code else [sys.executable, str(ROOT / "train.py")]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HYDRA_FULL_ERROR", "TEXTBED_MIRROR")
    }
    return subprocess.run(
        [*program, *arguments], cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=600
    )


# Runs train.py, and says at the end which heavy packages it imported.
TORCH_FREE = f"""
import atexit, runpy, sys
heavy = ("torch", "lightning", "datasets", "wandb", "torchmetrics", "pyarrow", "matplotlib")
atexit.register(lambda: print("imported:", [name for name in heavy if name in sys.modules]))
sys.argv[0] = {str(ROOT / "train.py")!r}
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_help_imports_nothing_heavy_and_lists_every_option(tmp_path: Path):
    done = run_train("--help", cwd=tmp_path, code=TORCH_FREE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("imported: []")
    for group, option in OPTIONS:
        assert re.search(rf"^{group}: .*\b{option}\b", done.stdout, re.MULTILINE), (group, option)
    assert "python train.py experiment=quickstart" in done.stdout
    assert "batch_size: 256" in done.stdout  # the composed configuration
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mistake", ["head=grru", "data.batch_size=0", "+trainer.max_epoch=3"])
def test_a_config_error_is_one_line_imports_nothing_heavy_and_leaves_nothing(tmp_path: Path, mistake: str):
    done = run_train(mistake, cwd=tmp_path, code=TORCH_FREE)
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert done.stdout.strip() == "imported: []"
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path):
    done = run_train("data.batch_size=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "textbed.errors.UserError: data.batch_size=0" in done.stderr


# Stands in for training: shows what it was given, and ends as told.
STANDIN = f"""
import sys, types
training = types.ModuleType("textbed.training")
def train(cfg, overrides, choices):
    print("environment", __import__("os").environ.get("HYDRA_FULL_ERROR"))
    if cfg.seed == 7: raise KeyboardInterrupt
    if cfg.seed == 8: raise RuntimeError("ours")
    return f"runs/x/{{cfg.seed}}"
def resume(path, overrides):
    print(overrides)
    return path
training.train, training.resume = train, resume
import textbed
textbed.training = sys.modules["textbed.training"] = training
sys.argv[0] = {str(ROOT / "train.py")!r}
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_last_line_is_the_run_folder_and_a_sweep_goes_on_after_a_mistake(tmp_path: Path):
    basic = ("hydra/sweeper=basic", "hydra/launcher=basic")  # Hydra's own: in this process
    done = run_train("-m", *basic, "seed=0,-1,2", cwd=tmp_path, code=STANDIN)
    assert done.stdout.splitlines() == ["environment None", "runs/x/0", "environment None", "runs/x/2"]
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "seed=-1" in errors[0]
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["multirun.yaml"]
    assert next(tmp_path.glob("runs/multirun/*/multirun.yaml"))


def test_resume_is_given_the_other_overrides_and_an_interruption_is_no_traceback(tmp_path: Path):
    done = run_train("resume=runs/a", "trainer.max_epochs=9", "head=gru", cwd=tmp_path, code=STANDIN)
    assert done.stdout.splitlines() == ["['trainer.max_epochs=9', 'head=gru']", "runs/a"]
    assert done.returncode == 0
    done = run_train("seed=7", cwd=tmp_path, code=STANDIN)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    done = run_train("seed=8", cwd=tmp_path, code=STANDIN)
    assert done.returncode == 1
    assert "RuntimeError: ours" in done.stderr
    assert "Traceback" in done.stderr
    assert list(tmp_path.iterdir()) == []
