"""Every key of the configuration: its type, its range, its default and what it means.

The dataclasses here are the one home of the default values. They are composed first (``schema`` in the
defaults list of ``configs/train.yaml``), so that a file in ``configs/data`` says only what differs, and any
key can be overridden on the command line. Files of the groups list their keys all the same where that
teaches.
"""

# ruff: noqa: RUF009 (`key` makes a dataclasses.field, which is what a default may be)

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from textbed.rules import Rule

FILE_SOURCES = ("csv", "tsv", "json", "parquet", "text", "disk")
SOURCES = ("docstrings", *FILE_SOURCES, "hub")
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
KEEP = ("head", "tail", "both")
UNKNOWN = ("keep", "drop")
INITIALISATIONS = (
    "normal", "uniform", "zeros", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform",
)  # fmt: skip
SPECIAL_TOKENS = 2  # padding and unknown, in every vocabulary
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "‘’“”„«»–—…·•"


# What a value must be


def key(default: Any, kinds: tuple[type, ...] | None = None, **rule: Any) -> Any:
    """A field of a config dataclass and what its value must be; ``kinds`` where the annotation is Any."""
    return field(default=default, metadata={"kinds": kinds, "rule": rule})


@functools.cache
def rules(schema: type) -> Mapping[str, Rule]:
    """The rule of every field of a config dataclass; sub-configs have none."""
    hints = typing.get_type_hints(schema)
    found = {}
    for item in fields(schema):
        if "rule" in item.metadata:
            kinds = item.metadata["kinds"] or _kinds(hints[item.name])
            found[item.name] = Rule(kinds, **item.metadata["rule"])
    return found


def defaults(schema: type) -> dict[str, Any]:
    """The default of every field of a config dataclass that has a rule; interpolations as they stand."""
    return {item.name: item.default for item in fields(schema) if item.name in rules(schema)}


def _kinds(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(typing.get_origin(part) or part for part in typing.get_args(hint))
    return (typing.get_origin(hint) or hint,)


# The keys


@dataclass
class DataConfig:
    """Where the documents come from, how they are split, and how they are put into batches."""

    source: str = key("docstrings", choices=SOURCES)
    """The kind of source; `docstrings` is built in and needs no download."""
    name: str | None = key(None, sources=("hub",))
    """Id of the data set on the hub, or its folder's name in the mirror."""
    hub_id: str | None = key(None, sources=("hub",))
    """Id to ask the hub for where the mirror knows the data set by a shorter name; null is the name."""
    config: str | None = key(None, sources=("hub",))
    """Configuration of the hub data set; null is its only one."""
    revision: str | None = key(None, sources=("hub",))
    """Branch, tag or commit on the hub; null is the newest."""
    path: Any = key(None, kinds=(str, dict, type(None)), sources=FILE_SOURCES, path=True)
    """A file, a folder, or a mapping from split to file or pattern."""
    text: Any = key(None, kinds=(str, list, type(None)))
    """Column of the text, or a list of two for pairs; null finds it where only one fits."""
    label: str | None = key(None)
    """Column of the label; null finds it where only one fits."""
    encoding: str = key("utf-8", sources=("csv", "tsv", "text"))
    """Character encoding of the files."""
    delimiter: str | None = key(None, sources=("csv", "tsv"))
    """What stands between two columns; null is a comma for csv and a tab for tsv."""
    quote: str | None = key('"', sources=("csv", "tsv"))
    """What a value that holds a delimiter stands between; null is nothing."""
    header: Any = key(True, kinds=(bool, list), sources=("csv", "tsv"))
    """Whether the first row names the columns; false calls them c0, c1, ...; a list names them itself."""
    splits: Any = key(None, kinds=(dict, type(None)))
    """Which of the source's splits is our train, validation and test, a list for several that are to be one;
    null goes by their names."""
    mirror: str | None = key("${oc.env:TEXTBED_MIRROR,null}", path=True)
    """Folder that is looked at before the network, in the hub's shape or as <name>/<split>.parquet."""
    size: int | None = key(None, minimum=1, sources=("docstrings",))
    """Most documents of the built-in data set, an equal part for each class; null is the usual number."""
    classes: Any = key(None, kinds=(list, type(None)), sources=("docstrings", "text"))
    """Classes that are read (libraries, or folders of texts), a list; null is the usual ones, or all."""
    validation: float = key(0.1, minimum=0, below=1)
    """Share of the training documents set aside where the source has no validation split."""
    validation_seed: int = key(0, minimum=0)
    """Seed of that choice, apart from the training seed."""
    test: float = key(0.2, minimum=0, below=1)
    """Share of all documents set aside where the source has no test split."""
    test_seed: int = key(0, minimum=0)
    """Seed of that choice."""
    folds: int | None = key(None, minimum=2)
    """Number of folds for cross-validation; null is none, and the source's own test split counts."""
    fold: int = key(0, minimum=0)
    """The fold that is the test set of this run, counted from 0."""
    fold_seed: int = key(0, minimum=0)
    """Seed of the division into folds."""
    train_fraction: float = key(1.0, above=0, maximum=1)
    """Share of the training documents that are trained on, the classes in proportion."""
    fraction_seed: int = key(0, minimum=0)
    """Seed of that choice."""
    limit: int | None = key(None, minimum=1)
    """Documents of each split that are used, for debugging; null is all of them."""
    shuffle_words: bool = key(False)
    """Whether the tokens of every document, in training, validation and test, stand in a random order that is
    the same in every run: does order matter at all? Each document keeps its bag of words. Vectors of the
    training split (`embedding.vectors=corpus`) are of the shuffled text too."""
    shuffle_seed: int = key(0, minimum=0)
    """Seed of that order, apart from the training seed."""
    batch_size: int = key(256, minimum=1)
    """Documents per training step and device."""
    batch_tokens: int | None = key(None, minimum=1)
    """Tokens per step and device, instead of a number of documents; in validation and test too."""
    eval_batch_size: int = key(256, minimum=1)
    """Documents per step and device in validation and test, without `batch_tokens`; alters no figure."""
    batching: str = key("shuffled", choices=("shuffled", "bucketed"))
    """Whether a batch is any documents, or documents of like length, which wastes less on padding."""
    workers: int = key(0, minimum=0)
    """Processes that fetch batches; 0 is the training process, the fastest with one gather a batch."""


@dataclass
class WordsConfig:
    """Words: cut at white space, and at the characters of `split_off`."""

    kind: str = key("words", choices=("words",))
    """Which tokenizer this is."""
    normalize: str | None = key("NFC", choices=NORMAL_FORMS)
    """Unicode normal form of the text; null leaves it as it is."""
    lowercase: bool = key(True)
    """Whether case is dropped."""
    html_breaks: bool = key(True)
    """Whether <br> and its like count as a space."""
    split_off: str = key(PUNCTUATION)
    """Characters that become tokens of their own."""
    drop: str = key("")
    """Characters that are removed."""
    max_tokens: int | None = key(None, minimum=1)
    """Longest document in tokens; null is no limit."""
    keep: str = key("head", choices=KEEP)
    """Which part of a longer document is kept."""
    vocabulary_size: int | None = key(None, minimum=SPECIAL_TOKENS + 1)
    """Most frequent words that are kept, the special tokens among them; null is all."""
    min_count: int = key(1, minimum=1)
    """How often a word must occur in the training documents to be kept."""
    unknown: str = key("keep", choices=UNKNOWN)
    """Whether a word outside the vocabulary becomes the unknown token or nothing."""


@dataclass
class CharactersConfig:
    """Characters: every code point is a token."""

    kind: str = key("characters", choices=("characters",))
    """Which tokenizer this is."""
    normalize: str | None = key("NFC", choices=NORMAL_FORMS)
    """Unicode normal form of the text; null leaves it as it is."""
    lowercase: bool = key(False)
    """Whether case is dropped."""
    html_breaks: bool = key(True)
    """Whether <br> and its like count as a space."""
    max_tokens: int | None = key(None, minimum=1)
    """Longest document in characters; null is no limit."""
    keep: str = key("head", choices=KEEP)
    """Which part of a longer document is kept."""
    vocabulary_size: int | None = key(None, minimum=SPECIAL_TOKENS + 1)
    """Most frequent characters that are kept, the special tokens among them; null is all."""
    min_count: int = key(1, minimum=1)
    """How often a character must occur in the training documents to be kept."""
    unknown: str = key("keep", choices=UNKNOWN)
    """Whether a character outside the vocabulary becomes the unknown token or nothing."""


@dataclass
class SubwordsConfig:
    """Subwords: trained on the training documents, or read from a file."""

    kind: str = key("subwords", choices=("subwords",))
    """Which tokenizer this is."""
    algorithm: str = key("bpe", choices=("bpe", "wordpiece", "unigram"))
    """How the vocabulary is built."""
    vocabulary_size: int = key(16000, minimum=SPECIAL_TOKENS + 1)
    """Entries of the vocabulary, the special tokens among them."""
    min_count: int = key(2, minimum=1)
    """How often a pair must occur to be merged (bpe and wordpiece)."""
    normalize: str | None = key("NFC", choices=NORMAL_FORMS)
    """Unicode normal form of the text; null leaves it as it is."""
    lowercase: bool = key(True)
    """Whether case is dropped."""
    html_breaks: bool = key(True)
    """Whether <br> and its like count as a space."""
    max_tokens: int | None = key(None, minimum=1)
    """Longest document in subwords; null is no limit."""
    keep: str = key("head", choices=KEEP)
    """Which part of a longer document is kept."""
    file: str | None = key(None, path=True)
    """A pretrained tokenizer.json, or a folder with one; null trains one here."""


TOKENIZERS: dict[str, type] = {
    "words": WordsConfig,
    "characters": CharactersConfig,
    "subwords": SubwordsConfig,
}


@dataclass
class EmbeddingConfig:
    """The front end. Those of ``RECIPE_KEYS`` are read by the recipe, whatever the class; the rest are
    arguments of the class, and hold where it has an argument of that name."""

    trainable: bool = key(True)
    """Whether the table learns; false freezes it to the last bit."""
    vectors: str | None = key(None, path=True)
    """File or folder of pretrained vectors, or the hub id of a model; `corpus` trains them on the training
    split; null starts from random ones."""
    case: Any = key(("exact",), kinds=(list, tuple))
    """Spellings under which a word is looked up in the vectors, in this order: exact, lower, title."""
    unseen: str = key("keep", choices=("keep", "unknown"))
    """Whether words that only the validation or test text has keep the vectors that a file has for them, in
    rows after those of the training vocabulary, or are unknown. Words of the training text that the tokenizer
    leaves out are unknown either way."""
    dim: int | None = key(None, minimum=1)
    """Width of a row of the table (D); null is the width of the vectors."""
    reduce: str | None = key(None, choices=("truncate", "pca"))
    """How wider vectors become `dim` wide: their first columns, or their principal components; null: not."""
    remove_components: int | None = key(None, minimum=0)
    """Principal components that are taken out of the vectors, and their mean with them; null leaves both."""
    lr: float | None = key(None, minimum=0)
    """Learning rate of the table, and of all else that the front end learns; null is the optimizer's."""
    weight_decay: float | None = key(None, minimum=0)
    """Weight decay of the same; null is the optimizer's."""
    scheduler: Any = key(None, kinds=(dict, type(None)))
    """Schedule of the table's learning rate, with the keys of `scheduler`, which then is that of all else;
    null is the same for both."""
    word_dropout: float = key(0.0, minimum=0, below=1)
    """Share of tokens that is left out of the documents in training."""
    row_dropout: float = key(0.0, minimum=0, below=1)
    """Share of rows that are zeros throughout a training batch, the others being scaled up."""
    noise: float = key(0.0, minimum=0)
    """Standard deviation of Gaussian noise on the numbers of each token's row in training."""
    token_weights: str | None = key(None, choices=("sif", "idf", "learned"))
    """A factor on each token's row: smooth inverse frequency, inverse document frequency, or learned."""
    sif_a: float = key(1e-3, above=0)
    """The share of the training tokens at which a token's `sif` weight is one half."""
    pull: float = key(0.0, minimum=0)
    """Strength of an L2 pull of the rows in a batch back to their pretrained vectors; a row in one of the k
    batches or processes of a step is pulled 1/k as hard. Over n-grams it pulls the row of a word that stands
    alone, character n-grams included."""
    sharded: bool = key(False)
    """Whether each process of a run keeps but its share of the rows, with their optimizer state: for a table
    that does not fit a device."""
    missing: str = key("random", choices=("random", "zeros", "mean", "shared"))
    """Rows without a pretrained vector: drawn as `init` says, zeros, the vectors' mean, or one for all."""
    train_missing: bool = key(False)
    """Whether these rows learn although the others are frozen."""
    frozen_epochs: int = key(0, minimum=0)
    """Epochs that the table stands still for, before it learns."""
    frozen_steps: int = key(0, minimum=0)
    """Optimizer steps that it stands still for; where both are given, the later end counts."""
    rank: int = key(8, minimum=1)
    """Rank of the learnt correction: numbers learnt for each row."""
    out_dim: int | None = key(None, minimum=1)
    """Width of a row after the learnt projection; null is the width before."""
    bias: bool = key(True)
    """Whether the projection has a bias."""
    init: str = key("normal", choices=INITIALISATIONS)
    """How rows without a pretrained vector start."""
    scale: float | None = key(None, minimum=0)
    """Standard deviation (normal) or bound (uniform) of those rows; null is the vectors' spread, else 0.1.
    The other initialisations have their own."""
    padding_idx: Any = key("auto", kinds=(int, type(None)), choices=("auto",), minimum=0)
    """Row that stays zero and never moves; `auto` is the tokenizer's padding token, null is none."""
    max_norm: float | None = key(None, above=0)
    """Longest allowed row; longer ones are shortened in place when they are looked up."""
    norm_type: float = key(2.0, above=0, finite=False)
    """The p of the norm that `max_norm` bounds."""
    scale_grad_by_freq: bool = key(False)
    """Whether a row's gradient is divided by how often it occurs in the batch."""
    gradient: str = key("auto", choices=("auto", "dense", "sparse", "lazy"))
    """Whether a step reckons with all rows of the table, `dense`, or with those of the batch alone: `sparse`
    (torch's own SGD or Adagrad) and `lazy` (SGD, Adam, AdamW or Adagrad, by rows). `auto` is dense, but lazy
    for a table far larger than what a step touches."""
    buckets: int = key(200_000, minimum=1, maximum=2**31 - 1)
    """Rows that words (hashed) or n-grams (ngrams) share by their hash."""
    hashes: int = key(2, minimum=1, maximum=8)
    """Rows that each word has in a table shared by hashing."""
    importance: bool = key(True)
    """Whether each word learns a factor for each of those rows."""
    append_importance: bool = key(False)
    """Whether those factors also follow the word's row, which becomes that much wider."""
    word_ngrams: int = key(2, minimum=1)
    """Most words of a word n-gram; 1 is none."""
    min_char: int | None = key(None, minimum=1)
    """Least characters of a character n-gram, the marks at both ends of a word included; null is none."""
    max_char: int | None = key(None, minimum=1)
    """Most characters of a character n-gram; null is none."""
    ngram_dim: int | None = key(None, minimum=1)
    """Width of an n-gram's row, reduced by itself and set beside the words'; null: as wide as a word's, and
    both are reduced together."""
    ngram_init: str = key("zeros", choices=("normal", "uniform", "zeros"))
    """How the rows of n-grams start."""
    ngram_scale: float | None = key(None, minimum=0)
    """Standard deviation (normal) or bound (uniform) of those; null is the class's own choice."""


# Read by the recipe, so allowed beside the arguments of any front end.
RECIPE_KEYS = (
    "trainable", "vectors", "case", "unseen", "dim", "reduce", "remove_components", "gradient", "lr",
    "weight_decay", "scheduler",
    "word_dropout", "row_dropout", "noise", "token_weights", "sif_a", "pull", "sharded",
)  # fmt: skip
# Those of them that the class is given as well.
PASSED_ON = ("trainable", "dim")


@dataclass
class HeadConfig:
    """What the recipe reads of a head, whatever the class; all else are arguments of the class."""

    dense: Any = key(None, kinds=(list, type(None)))
    """Widths of fully connected layers above the head, a list from the bottom up; null is none."""
    dense_activation: str = key("relu", choices=("relu", "tanh", "gelu"))
    """What follows each of these layers."""
    dense_dropout: float = key(0.0, minimum=0, below=1)
    """Share of each layer's values set to zero in training."""
    parameters: int | None = key(None, minimum=1)
    """Most parameters that the head may have, its layers included: it is made as wide as that allows; null
    leaves its width as given."""


@dataclass
class ClassifierConfig:
    """What lies between the head and the loss."""

    activation: str | None = key(None, choices=("relu", "tanh", "gelu"))
    """A function on each number of the head's output, before the dropout; null is none."""
    dropout: float = key(0.0, minimum=0, below=1)
    """Share of the head's output set to zero in training."""
    max_norm: float | None = key(None, above=0)
    """Largest length (L2) of the last layer's weights for a class: longer ones are shortened to it after a
    step. null is no limit."""
    label_smoothing: float = key(0.0, minimum=0, below=1)
    """Share of the target spread evenly over the classes."""
    reuse_mib: int = key(2048, minimum=0)
    """Memory in MiB for documents that are pooled once and reused in every epoch, where the head only pools
    rows of a table that does not change. If they need more, or for 0, each epoch pools anew. Alters no
    figure."""
    class_weights: Any = key(None, kinds=(list, type(None)), choices=("balanced",))
    """Weight of each class in the loss: `balanced` (inverse to its frequency), a list in the order of the
    classes, or null for none."""


@dataclass
class ReportConfig:
    """What a run shows at the end: pictures, and what became of its table (embedding.json)."""

    pictures: bool = key(True)
    """Whether learning curves, the confusion matrix and the table are drawn."""
    embedding: bool | None = key(None)
    """Whether there is such a report; null is where the run is tested, so not in a search."""
    words: Any = key(None, kinds=(list, type(None)))
    """Words whose neighbours are shown before and after, a list; null is those that moved most."""
    neighbours: int = key(10, minimum=1)
    """Nearest neighbours of each."""
    projected: int = key(200, minimum=2)
    """Most frequent words in the two-dimensional projection."""


@dataclass
class PathsConfig:
    """Folders that are written to. Relative ones start where the command is given."""

    runs: str = key("runs", path=True)
    """One folder per run lies here, under the run's name."""
    cache: str = key("${oc.env:TEXTBED_CACHE,${oc.env:XDG_CACHE_HOME,'~/.cache'}/textbed}", path=True)
    """Encoded texts and the built-in data set; safe to delete, costs the time to build it again."""


@dataclass
class SweepConfig:
    """How ``python train.py -m`` runs many: no part of any of these runs, so not in their configuration."""

    sampler: str = key("grid", choices=("grid", "random", "tpe", "cmaes"))
    """Every combination once, or draws: at random, or by what trials so far gave."""
    dir: str | None = key(None, path=True)
    """The sweep's folder; one that is there is gone on with. null makes one below `paths.runs`."""
    storage: str | None = key(None)
    """A PostgreSQL database for the study, such as postgresql+psycopg://user@host/database, which workers on
    machines without a shared file system reach too; null is a file in the sweep's folder."""
    trials: int | None = key(None, minimum=1)
    """Most trials that are begun; null is no limit."""
    hours: float | None = key(None, above=0)
    """Time after which no trial begins; those that run are let end. null is no limit."""
    objectives: Any = key(None, kinds=(list, str, type(None)))
    """The figure that is looked at, or a list of them such as [val/accuracy,seconds/fit], of which the first
    picks the winner; null is that of the checkpoints."""
    pruner: str = key("none", choices=("none", "median", "asha", "hyperband"))
    """What ends trials that fall behind in the first objective, from validation to validation."""
    startup_trials: int = key(10, minimum=0)
    """Trials that are drawn at random before tpe and cmaes learn from them, and end before median prunes."""
    seed: int = key(0, minimum=0)
    """Seed of the draws, apart from those of the runs."""
    refit: int = key(0, minimum=0)
    """Fresh seeds over which the winner is trained again and tested. Where there are any, trials look at
    validation alone."""
    retries: int = key(0, minimum=0)
    """How often a trial that failed is tried again, from its last checkpoint where there is one."""
    trial_minutes: float | None = key(None, above=0)
    """Time after which a trial counts as hanging, and is ended; null is no limit."""
    devices: Any = key(None, kinds=(list, type(None)))
    """GPUs that are used, as CUDA_VISIBLE_DEVICES names them; null is all there are."""
    devices_per_trial: int = key(1, minimum=1)
    """GPUs that a trial sees; for it to use several, give trainer=ddp too."""
    trials_per_device: int = key(1, minimum=1)
    """Trials that share a GPU at a time."""
    at_once: int | None = key(None, minimum=1)
    """Most trials at a time on a machine; null is as many as its devices, or cores and memory, bear."""
    here: bool = key(True)
    """Whether this machine works on it; false puts the trials in and prints the sweep's folder, for workers
    elsewhere."""
    memory_gib: float = key(2.0, above=0)
    """Memory that a trial on the CPU may need: no more run at once than fit."""
    warm: bool | None = key(None)
    """Whether trials are forked from a process that has imported what they need, which saves each 6 to 9 s.
    null: on the CPU; on GPUs processes stand by, which import while others train. false: neither. Linux
    alone."""


@dataclass
class TrainConfig:
    """Everything. Groups without a dataclass hold a `_target_` and its arguments."""

    name: str = key("scratch")
    """Folder under `paths.runs` in which this run's own folder is made."""
    seed: int = key(0, minimum=0, maximum=2**32 - 1)
    """Seed of initial weights, dropout and the order of documents; the splits have seeds of their own."""
    resume: str | None = key(None, path=True)
    """A run folder to go on with; its own configuration counts, changed by what is given beside this key."""
    threads: int | None = key(None, minimum=1)
    """CPU threads that torch may use; null is torch's choice."""
    compile: bool = key(False)
    """Whether the model is compiled: the first step takes up to minutes, later ones may be faster."""
    test: bool = key(True)
    """Whether the best checkpoint is tested at the end; a search switches it off."""
    cross_validate: bool = key(False)
    """Whether all `data.folds` folds are run, as one run with the means of their figures."""
    data: DataConfig = field(default_factory=DataConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tokenizer: Any = field(default_factory=dict)
    embedding: Any = field(default_factory=dict)
    head: Any = field(default_factory=dict)
    optimizer: Any = field(default_factory=dict)
    scheduler: Any = None
    trainer: Any = field(default_factory=dict)
    callbacks: Any = None
    logger: Any = None


ConfigStore.instance().store(name="schema", node=TrainConfig)


def _case(value: Any, table: Mapping[Any, Any], otherwise: Any = None) -> Any:
    return table.get(value, otherwise)


# A value that goes by another: "${case:${data.name},{mr: 1, trec: 1},5}" is 1 for mr and trec, else 5. So one
# sweep over data sets, or heads, gives each what belongs to it.
OmegaConf.register_new_resolver("case", _case, replace=True)

# Groups whose files hold keys of the top level (`@package _global_`), and so are no keys themselves.
GLOBAL_GROUPS = ("experiment", "debug")
