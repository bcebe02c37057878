"""Runs side by side: which groups they fall into, what each gave over seeds and folds, what holds.

Reads run folders and writes nothing into them. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textbed.errors import UserError, nearest
from textbed.runs import registry, significance
from textbed.runs.answers import Answers, read_answers
from textbed.runs.folder import RunFolder
from textbed.runs.registry import REPEATS, Run
from textbed.runs.significance import OverDocuments, OverRepeats

SECONDS, BYTES, PARAMETERS = "seconds/fit", "memory/peak_bytes", "parameters/all"
SPLITS = {"test": "test", "val": "validation"}
"""Which split a figure is of, by the first part of its name."""
_LOWER = ("loss", "calibration_error")
_LOWER_KINDS = ("seconds", "memory", "parameters", "parameters_trainable", "multiply_adds", "epochs", "steps")
# Config groups that are one choice each, in the order in which they are named.
_CHOICES = ("data", "tokenizer", "embedding", "head", "classifier", "optimizer", "scheduler", "trainer")
_BUDGET = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.limit_train_batches",
    "callbacks.early_stopping", "data.batch_size", "data.batch_tokens", "trainer.accumulate_grad_batches",
    "data.limit", "data.train_fraction",
)  # fmt: skip
_DOCUMENTS = "documents and splits"
_OTHER_DOCUMENTS = (
    "data", "data.source", "data.name", "data.config", "data.text", "data.classes", _DOCUMENTS,
)  # fmt: skip
_MOST_NAMED = 3


@dataclass(frozen=True)
class Figure:
    """A figure of a group over its runs."""

    mean: float
    spread: float | None
    """Standard deviation of a sample (n - 1); None of one run."""
    interval: tuple[float, float] | None
    """95 % interval of the mean by Student's t; None of one run."""
    best: float
    count: int


@dataclass
class Group:
    """Runs that are alike in all that is compared."""

    values: tuple[str, ...]
    """One for each key compared by."""
    runs: dict[tuple[str, ...], Run]
    """By what they may differ in: the values of what is averaged over, seed and fold."""
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(self.values)


@dataclass
class Pair:
    """Two groups, the better one first."""

    first: str
    second: str
    repeats: OverRepeats
    documents: OverDocuments | None
    """None where there are no predictions on the same documents."""
    holm: float | None = None
    """p-value over repeats, corrected for the number of pairs."""
    holm_documents: float | None = None


@dataclass
class Comparison:
    """What came of it."""

    metrics: list[str]
    """The first is what is tested."""
    lower: bool
    """Whether less of it is better."""
    by: list[str]
    groups: list[Group]
    """The best first."""
    pairs: list[Pair]
    """All of them; with ``against`` those with that group."""
    against: str | None
    equal: list[tuple[str, str]]
    """What was the same in all runs."""
    warnings: list[str]
    """In what the groups differ that was not asked for."""
    notes: list[str]
    averaged: list[str]
    """What else varies in the groups, which are means over it; the first of what a run is known by."""

    def documents_of(self, unit: tuple[str, ...]) -> tuple[str, ...]:
        """The data set of a run, as far as groups are means over several: other heads see the same documents,
        and so do other seeds and folds, but row 0 of another data set is another document."""
        return tuple(
            value for name, value in zip(self.averaged, unit, strict=False) if name in _OTHER_DOCUMENTS
        )

    @property
    def data_sets(self) -> list[tuple[str, ...]]:
        """All of these, in the order of their numbers in :func:`read_answers`."""
        return sorted({self.documents_of(unit) for group in self.groups for unit in group.runs})

    def places_of(self, group: Group) -> dict[tuple[str, ...], tuple[RunFolder, int]]:
        """The runs of a group, each beside the number of its data set, as :func:`read_answers` takes them."""
        data_sets = self.data_sets
        return {
            unit: (run.folder, data_sets.index(self.documents_of(unit))) for unit, run in group.runs.items()
        }

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            UserError: there is none.
        """
        names = {group.name.replace(" ", ""): group for group in self.groups}
        if name.replace(" ", "") not in names:
            raise UserError(
                f"{name}: no such group; expected one of "
                f"{'; '.join(group.name for group in self.groups)}.{nearest(name, names)}"
            )
        return names[name.replace(" ", "")]

    @property
    def shown_pairs(self) -> list[Pair]:
        """Those for a table: all of a few groups, else those with the best."""
        if self.against is not None or len(self.groups) <= 4:
            return self.pairs
        return [pair for pair in self.pairs if self.groups[0].name in (pair.first, pair.second)]


def is_lower_better(metric: str) -> bool:
    kind, _, name = metric.partition("/")
    return kind in _LOWER_KINDS or name.partition("/")[0] in _LOWER


def compare(
    paths: Iterable[str | Path] | registry.Found,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] = ("test/accuracy",),
    against: str | None = None,
    lower: bool | None = None,
) -> Comparison:
    """Compare runs.

    Args:
        paths: run folders, folders that hold some, or patterns; or the runs themselves.
        by: keys or config groups that tell the groups apart; None takes what differs.
        metrics: names of figures; the first is tested.
        against: name of the group that the others are tested against; None tests all pairs.
        lower: whether less is better; None goes by the name of the first metric.

    Of runs alike in everything, the seed too, the newest counts.

    Raises:
        UserError: no run has such a figure or key, or there is no such group.
    """
    found = paths if isinstance(paths, registry.Found) else registry.find(paths)
    everything = registry.whole(found)
    broken: list[str] = []
    everything = registry.with_folds(everything, broken)
    notes = [f"left out: {line}" for line in (*found.left_out, *broken)]
    # groups are named by values, and a run of before a key came goes with those that have its default
    runs = [
        dataclasses.replace(run, config=registry.completed(run.config))
        for run in _usable(everything, metrics, notes)
    ]
    lower = is_lower_better(metrics[0]) if lower is None else lower

    differing = registry.differing([run.config for run in runs])
    if by is None:
        by = _keys_to_compare(runs, differing)
    for key in by:
        registry.check_name(runs, key)
    asked = [key for key in differing if any(key == one or key.startswith(f"{one}.") for one in by)]
    others = [key for key in differing if key not in asked]

    # a key that is compared by itself is no detail of its config group as well
    details = [key for key in differing if key not in by]
    labellers = [_labeller(key, runs, details) for key in by]
    labels = [tuple(label(run) for label in labellers) or ("all",) for run in runs]
    members: dict[tuple[str, ...], list[Run]] = {}
    for label, run in sorted(zip(labels, runs, strict=True), key=lambda one: one[0]):
        members.setdefault(label, []).append(run)
    # what varies inside a group is averaged over, and runs are paired by it; what does not sets groups apart
    averaged = _keys_to_compare(
        runs, [key for key in others if any(len(_values(inside, key)) > 1 for inside in members.values())]
    )
    within = [_labeller(key, runs, others) for key in averaged]

    def repeat(run: Run) -> tuple[str, ...]:
        # what is compared by is no repeat: seed 0 of one group has no counterpart among those of seed 1
        keys = [None if key in by else run.config.get(key) for key in REPEATS]
        return (*(label(run) for label in within), *map(_plain, keys))

    # other files behind the same settings and seed are no repeat: paths do not count, but the documents do
    mixed = any(_is_of_several(inside, repeat) for inside in members.values())
    if mixed:
        averaged.append(_DOCUMENTS)
        within.append(lambda run: _plain(run.info.get("data")))
    groups = [Group(label, _by_repeat(inside, repeat, notes)) for label, inside in members.items()]
    for group in groups:
        for metric in (*metrics, SECONDS, BYTES, PARAMETERS):
            values = [
                run.metrics[metric] for run in group.runs.values() if _is_number(run.metrics.get(metric))
            ]
            if values:
                group.figures[metric] = figure(
                    values, lower if metric == metrics[0] else is_lower_better(metric)
                )
    groups.sort(key=lambda group: group.figures[metrics[0]].mean * (1 if lower else -1))

    warnings = _warnings(groups, _keys_to_compare(runs, others), averaged, asked)
    if averaged and (mixed or len(groups) > 1):
        notes.append(f"averaged over {', '.join(averaged)}")
    if any(len(_values(group.runs.values(), "data.fold")) > 1 for group in groups):
        notes.append(
            "folds share most of their training documents, so that intervals over folds are narrower than "
            "they should be (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366)"
        )
    comparison = Comparison(
        list(metrics), lower, list(by), groups, [], against, _equal(runs, by), warnings, notes, averaged
    )
    if against is not None:
        comparison.against = comparison.group(against).name
    comparison.pairs = _pairs(comparison)
    return comparison


def figure(values: Sequence[float], lower: bool = False) -> Figure:
    """Mean, spread, interval and best of some values."""
    return Figure(
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        significance.interval(values),
        min(values) if lower else max(values),
        len(values),
    )


# Which runs, and which groups


def _usable(runs: Sequence[Run], metrics: Sequence[str], notes: list[str]) -> list[Run]:
    for metric in metrics:
        known = {name for run in runs for name, value in run.metrics.items() if _is_number(value)}
        if metric not in known:
            near = f" Did you mean 'test/{metric}'?" if f"test/{metric}" in known else nearest(metric, known)
            raise UserError(
                f"--metric {metric}: none of {len(runs)} runs has this figure; expected one such as "
                f"test/accuracy or val/loss.{near}"
            )
    unfinished = Counter(run.status for run in runs if run.status != "finished")
    if unfinished:
        which = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
        notes.append(f"left out: runs that are not finished ({which})")
    usable, lacking = [], 0
    for run in runs:
        if run.status == "finished":
            has = all(_is_number(run.metrics.get(metric)) for metric in metrics)
            lacking += not has
            if has:
                usable.append(run)
    if lacking:
        notes.append(f"left out: {lacking} finished without {' and '.join(metrics)}")
    if not usable:
        raise UserError(f"none of {len(runs)} runs is finished and has {' and '.join(metrics)}.")
    return usable


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keys_to_compare(runs: Sequence[Run], differing: Sequence[str]) -> list[str]:
    """What tells the groups apart: a config group where its option differs, else the keys that differ."""
    by: list[str] = []
    for key in differing:
        group = key.partition(".")[0]
        chosen = {run.choice(group) for run in runs}
        name = group if group in _CHOICES and len(chosen) > 1 else key
        if name not in by:
            by.append(name)
    place = {group: number for number, group in enumerate(_CHOICES)}
    return sorted(by, key=lambda name: place.get(name.partition(".")[0], len(place)))


def _labeller(key: str, runs: Sequence[Run], differing: Sequence[str]) -> Callable[[Run], str]:
    """What groups are called: of a config group its option, and the keys in which runs of it differ."""
    inside = [name for name in differing if name.startswith(f"{key}.")]
    if not inside:
        return lambda run: _plain(run.get(key))
    alike: dict[str | None, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.choice(key), []).append(run)
    apart = {
        choice: [name for name in inside if len(_values(some, name)) > 1] for choice, some in alike.items()
    }

    def label(run: Run) -> str:
        choice = run.choice(key)
        details = [f"{name.removeprefix(f'{key}.')}={_plain(run.config.get(name))}" for name in apart[choice]]
        return " ".join([str(choice), *details])

    return label


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)


def _values(runs: Iterable[Run], key: str) -> set[str]:
    return {_plain(run.config.get(key)) for run in runs}


def _is_of_several(runs: Iterable[Run], repeat: Callable[[Run], tuple[str, ...]]) -> bool:
    """Whether some of ``runs`` alike in settings, seed and fold have read other documents."""
    known = {(repeat(run), str(run.info["data"])) for run in runs if run.info.get("data")}
    return len(known) > len({unit for unit, _ in known})


def _by_repeat(
    runs: Sequence[Run], repeat: Callable[[Run], tuple[str, ...]], notes: list[str]
) -> dict[tuple[str, ...], Run]:
    chosen: dict[tuple[str, ...], Run] = {}
    for run in sorted(runs, key=lambda run: run.folder.id):  # which begins with the time
        chosen[repeat(run)] = run
    if len(chosen) < len(runs):
        notes.append(f"{len(runs) - len(chosen)} left out for a newer run of the same settings and seed")
    return dict(sorted(chosen.items()))


# What was equal, and what was not


def _equal(runs: Sequence[Run], by: Sequence[str]) -> list[tuple[str, str]]:
    """What all runs have in common, of what a reader asks first."""
    names = [group for group in _CHOICES if group not in by and group != "classifier"]
    keys = ("trainer.max_epochs", "trainer.max_steps", "data.batch_size", "data.folds")
    wanted: dict[str, Callable[[Run], Any]] = {
        name: functools.partial(Run.get, name=name)
        for name in (*names, *(key for key in keys if key not in by), "versions.torch", "device")
    }
    wanted |= {_DOCUMENTS: lambda run: run.info.get("data"), "code": _code}
    equal = []
    for name, value_of in wanted.items():
        values = {_plain(value_of(run)) for run in runs}
        if len(values) == 1 and not values & {"null", "-1"}:  # -1 is Lightning's way to say null
            equal.append((name, values.pop()))
    return equal


def _code(run: Run) -> str | None:
    """The revision, and a hash of what was changed since."""
    git = run.info.get("git")
    if not git:
        return None
    revision = str(git.get("revision"))[:7]
    if not git.get("dirty"):
        return revision
    try:
        changes = (run.path / "git.diff").read_bytes()
    except OSError:
        changes = b""
    return f"{revision}+{hashlib.blake2b(changes, digest_size=2).hexdigest()}"


def _warnings(
    groups: Sequence[Group], others: Sequence[str], averaged: Sequence[str], asked: Sequence[str]
) -> list[str]:
    if len(groups) < 2:
        return []
    warnings = []

    def check(what: str, name: str, value_of: Callable[[Run, str], Any] = Run.get) -> None:
        by_group = {
            group.name: tuple(sorted({_plain(value_of(run, name)) for run in group.runs.values()}))
            for group in groups
        }
        if len(set(by_group.values())) > 1:
            names: dict[tuple[str, ...], list[str]] = {}
            for group_name, values in by_group.items():
                names.setdefault(values, []).append(group_name)
            parts = [f"{_some(values)} ({_some(inside, '; ')})" for values, inside in names.items()]
            warnings.append(f"groups differ in {what}: {_some(parts, '; ')}")

    for key in others:
        budget = any(key == one or key.startswith(f"{one}.") for one in _BUDGET)
        # a name without a dot is a group's, of which the option counts
        check(f"{key}, their budget" if budget else key, key)

    units = [set(group.runs) for group in groups]
    every = set().union(*units)
    for group, there in zip(groups, units, strict=True):
        lacking = sorted(every - there)
        if lacking:
            shown = [unit_name(averaged, unit) for unit in lacking]
            count = f"{len(lacking)} of {len(every)}"
            warnings.append(f"{group.name} lacks {count} runs that others have: {_some(shown, '; ')}")

    # Documents, labels and splits are to be the same wherever the configuration says so.
    if not any(key.startswith("data") for key in (*asked, *(set(others) - set(averaged)))):
        seen: dict[tuple[str, ...], dict[str, str]] = {}
        seeded = len(averaged) + REPEATS.index("seed")
        for group in groups:
            for unit, run in group.runs.items():
                if run.info.get("data"):
                    place = unit[:seeded] + unit[seeded + 1 :]
                    seen.setdefault(place, {}).setdefault(str(run.info["data"]), group.name)
        apart = [tuple(prints.values()) for prints in seen.values() if len(prints) > 1]
        if apart:
            warnings.append(
                "groups differ in their documents, labels or splits, although the configuration is the same: "
                f"such as {apart[0][0]} and {apart[0][1]}; the data set has changed between the runs"
            )

    check("code", "git", lambda run, _: _code(run))
    packages = sorted(
        {name for group in groups for run in group.runs.values() for name in run.info.get("versions") or {}}
    )
    for package in packages:
        check(f"the version of {package}", f"versions.{package}")
    for what in ("host", "device"):  # of a CPU the threads as well
        check(f"{what}, so that seconds do not compare", what)
    return warnings


def unit_name(averaged: Sequence[str], unit: Sequence[str]) -> str:
    """What a run of a group is called: ``seed=7 data.fold=0``."""
    names = (*averaged, *REPEATS)
    return " ".join(f"{name}={value}" for name, value in zip(names, unit, strict=True) if value != "null")


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - _MOST_NAMED
    return between.join(names[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")


# Tests


def _pairs(comparison: Comparison) -> list[Pair]:
    groups, metric = comparison.groups, comparison.metrics[0]
    by_documents = metric.partition("/")[0] in SPLITS and len(groups) > 1
    if by_documents and metric.partition("/")[2] != "accuracy":
        comparison.notes.append("documents are compared for accuracy alone")
        by_documents = False
    reasons = []
    pairs = []
    for first, second in itertools.combinations(groups, 2):
        if comparison.against is not None and comparison.against not in (first.name, second.name):
            continue
        shared = _shared(first, second)
        if shared:
            values = [[group.runs[unit].metrics[metric] for unit in shared] for group in (first, second)]
            repeats = significance.over_pairs(*values)
        else:
            values = [[run.metrics[metric] for run in group.runs.values()] for group in (first, second)]
            repeats = significance.over_groups(*values)
        documents = None
        if by_documents:
            try:
                mine, theirs = answers_of(comparison, first, second)
                _, *right = mine.beside(theirs)
                documents = significance.over_documents(*right)
                if len(right[0]) < max(len(mine.ids), len(theirs.ids)):
                    both = f"the {len(right[0]):,} documents that both have"
                    reasons.append(f"{first.name} and {second.name} are compared on {both}")
            except UserError as error:
                reasons.append(f"no comparison by documents: {error}")
        pairs.append(Pair(first.name, second.name, repeats, documents))
    comparison.notes += reasons[:_MOST_NAMED]
    corrected = significance.holm([pair.repeats.p for pair in pairs])
    of_documents = significance.holm([pair.documents.p if pair.documents else None for pair in pairs])
    for pair, p, p_documents in zip(pairs, corrected, of_documents, strict=True):
        pair.holm, pair.holm_documents = p, p_documents
    few = [
        (pair.repeats.least_p, pair.repeats)
        for pair in pairs
        if pair.repeats.least_p and pair.repeats.least_p > 0.05
    ]
    if few:
        least, most = min(few, key=lambda one: one[0])  # the others can show even less
        what, enough = ("pairs", "6 pairs") if most.paired else ("runs", "4 runs of each")
        comparison.notes.append(
            f"of {most.repeats} {what} no p is below {least:.3g}, whatever they show: it takes {enough} to "
            "get below 0.05" + (", and more after Holm's correction" if len(pairs) > 1 else "")
        )
    return pairs


def _shared(first: Group, second: Group) -> list[tuple[str, ...]]:
    """What runs of two groups are paired by; nothing where they share a single one, whose difference may
    well have the other sign than that of all their runs."""
    shared = [unit for unit in first.runs if unit in second.runs]
    return shared if len(shared) > 1 else []


def split_of(comparison: Comparison) -> str:
    """The split that the tested figure is of: of others, such as seconds, the test."""
    return SPLITS.get(comparison.metrics[0].partition("/")[0], "test")


def answers_of(comparison: Comparison, first: Group, second: Group) -> tuple[Answers, Answers]:
    """What the runs of two groups said of the documents, of runs that both have where these are several.

    Raises:
        UserError: there are no predictions of one of them, or none on documents of the other.
    """
    split = split_of(comparison)
    shared = _shared(first, second)
    found = []
    for group in (first, second):
        answers = read_answers(
            [one for unit, one in comparison.places_of(group).items() if not shared or unit in shared], split
        )
        if answers is None:
            raise UserError(f"no predictions on {split} from {group.name}")
        found.append(answers)
    ids, _, _ = found[0].beside(found[1])
    if not len(ids):
        raise UserError(f"{first.name} and {second.name} predicted other documents")
    return found[0], found[1]
