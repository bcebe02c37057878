"""The check of a composed configuration: keys, values, and what must hold between them.

:func:`check` runs before anything heavy is imported. It must stay free of torch: the answer to a misspelt key
should take a second, not ten.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from textbed.errors import UserError, nearest
from textbed.schema import (
    FILE_SOURCES,
    GLOBAL_GROUPS,
    RECIPE_KEYS,
    TOKENIZERS,
    ClassifierConfig,
    DataConfig,
    EmbeddingConfig,
    HeadConfig,
    PathsConfig,
    ReportConfig,
    Rule,
    SweepConfig,
    TrainConfig,
    defaults,
    rules,
)
from textbed.targets import HYDRA_KEYS, Arguments, inspect_arguments, is_ours, read_arguments

# Arguments of classes from elsewhere whose wrong values are better named here than deep in a constructor.
NUMBERS: dict[str, Rule] = {
    "optimizer.lr": Rule((float,), minimum=0, maximum=1e30),
    "optimizer.weight_decay": Rule((float,), minimum=0),
    "optimizer.momentum": Rule((float,), minimum=0),
    "trainer.max_epochs": Rule((int, type(None)), minimum=-1),
    "trainer.max_steps": Rule((int,), minimum=-1),
    "trainer.min_epochs": Rule((int, type(None)), minimum=0),
    "trainer.accumulate_grad_batches": Rule((int,), minimum=1),
    "trainer.gradient_clip_val": Rule((float, type(None)), minimum=0),
    "trainer.log_every_n_steps": Rule((int, type(None)), minimum=1),
    "trainer.num_nodes": Rule((int,), minimum=1),
    "trainer.precision": Rule(
        (type(None),),
        choices=(
            "32-true", "16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true",
            "transformer-engine", "transformer-engine-float16", "16", "32", "64", "bf16",
        ),
    ),
    "scheduler.interval": Rule((str,), choices=("step", "epoch")),
    "embedding.scheduler.interval": Rule((str,), choices=("step", "epoch")),
}  # fmt: skip

# Figures that a run logs, to name the nearest one; other names are let through, for callbacks of one's own.
FIGURES = ("val/loss", "val/accuracy", "val/f1_macro", "val/f1_weighted", "val/mcc", "val/calibration_error")

# Optimizers of torch's that have a row-wise twin in textbed.embedding.optimizers.
ROWWISE = ("SGD", "Adam", "AdamW", "Adagrad")

# The parts with a schema of their own; a tokenizer's depends on its kind.
GROUPS: dict[str, type] = {
    "data": DataConfig,
    "classifier": ClassifierConfig,
    "report": ReportConfig,
    "paths": PathsConfig,
    "sweep": SweepConfig,
}

# Keys beside a `_target_` that the recipe reads itself, and arguments that it fills in itself.
CONSUMED = {
    "embedding": frozenset(RECIPE_KEYS),
    "head": frozenset(rules(HeadConfig)),
    "scheduler": frozenset({"interval", "monitor"}),
    "embedding.scheduler": frozenset({"interval", "monitor"}),
}
SUPPLIED = {
    "embedding": frozenset({"num_embeddings", "found", "tokens", "counts", "sparse", "appended"}),
    "head": frozenset({"dim", "num_classes"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer"}),
    "embedding.scheduler": frozenset({"optimizer"}),
    "trainer": frozenset({"callbacks", "logger", "default_root_dir"}),
}

# What a run folder of before calls a class, and what it is called now: such a run can be resumed.
MOVED = {
    "textbed.runs.record.Wandb": "textbed.runs.loggers.Wandb",
    "textbed.runs.record.mlflow_logger": "textbed.runs.loggers.MLflow",
}


def check(cfg: DictConfig, chosen: Mapping[str, Any] | None = None) -> DictConfig:
    """Check a composed configuration and return it resolved, with every default filled in.

    Args:
        cfg: the composed configuration, without the ``hydra`` node.
        chosen: option chosen in each group, where known (``hydra.runtime.choices``): with it
            ``embedding=random`` given vectors, and ``embedding=finetuned`` without, are found.

    Returns:
        A new configuration; ``cfg`` stays as it is.

    Raises:
        UserError: for the first thing that is wrong: it names the key, its value, and what was expected.
    """
    values = _resolved(cfg)
    chosen = chosen or {}
    values.setdefault("sweep", {})  # a run's own configuration has none
    _unknown_keys("", values, tuple(item.name for item in fields(TrainConfig)), also=GLOBAL_GROUPS)
    for group, schema in GROUPS.items():
        values[group] = _complete(group, schema, values.get(group))
    plain = rules(TrainConfig)
    values |= _complete("", TrainConfig, {name: value for name, value in values.items() if name in plain})
    values["tokenizer"] = _check_tokenizer(values.get("tokenizer"))
    for group in ("embedding", "head", "optimizer", "trainer"):
        _check_node(group, values.get(group))
    if values.get("scheduler") is not None:
        _check_node("scheduler", values["scheduler"])
    for group in ("callbacks", "logger"):
        values[group] = _check_named(group, values.get(group))
    _check_name(values["name"])
    _check_data(values["data"])
    if values["cross_validate"]:
        _check_folds(values["data"])
    values["embedding"] = _check_embedding(values["embedding"], chosen.get("embedding"))
    values["head"] = _check_head(values["head"])
    _check_gradient(values)
    _check_max_norm(values)
    _check_sharded(values)
    _check_numbers(values)
    _check_monitors(values)
    _check_class_weights(values["classifier"]["class_weights"])
    _check_words(values["report"]["words"])
    _check_sweep(values.pop("sweep"))  # how many others are made is no part of a run
    return OmegaConf.create(values)


def check_sweep(cfg: DictConfig) -> dict[str, Any]:
    """Check the ``sweep`` node of a composed configuration and return it with every default filled in.

    Raises:
        UserError: as :func:`check`.
    """
    node = OmegaConf.to_container(cfg.sweep, resolve=True)
    settings = _complete("sweep", SweepConfig, node)
    _check_sweep(settings)
    if isinstance(settings["objectives"], str):
        settings["objectives"] = [settings["objectives"]]
    if settings["sampler"] != "grid" and settings["trials"] is None and settings["hours"] is None:
        raise UserError(
            f"sweep={settings['sampler']}: how long is it to go on? Give sweep.trials=NUMBER, "
            "sweep.hours=NUMBER, or both."
        )
    return settings


def check_targets(cfg: DictConfig) -> None:
    """Check the classes from outside this package again by importing them: what :func:`check` could not read.

    Raises:
        UserError: where a class is not there, or takes no argument of that name.
    """
    values = OmegaConf.to_container(cfg, resolve=True)
    for place, node in _targets("", values):
        if not is_ours(node["_target_"]):
            _check_arguments(place, node, inspect_arguments)


def expected(name: str) -> str:
    """What the value of a dotted key must be, in words; empty where the schema does not say."""
    place, _, last = name.rpartition(".")
    schema = {"": TrainConfig, **GROUPS}.get(place)
    rule = rules(schema).get(last) if schema else None
    return rule.expected() if rule else ""


def shown(name: str, value: Any) -> str:
    """``name=value`` as a person would write it on the command line, cut to a readable length."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = " ".join(str(value).split())
    return f"{name}={text if len(text) <= 80 else text[:77] + '...'}"


def wrong(name: str, value: Any, text: str) -> UserError:
    """The error for a value that cannot be."""
    return UserError(f"{shown(name, value)}: {text}")


def unknown_key(place: str, name: str, value: Any, names: Iterable[str]) -> str:
    """The line for a key that does not exist: the nearest key there, or all of them where none is near."""
    where = f"{place}." if place else ""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{where}{near[0]}'?" if near else f"The keys there are {', '.join(names)}."
    return f"{shown(where + name, value)}: there is no such key. {hint}"


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]}: this key must be given, for instance as {missing[0]}=VALUE.")
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}its value cannot be worked out: {reason}.") from error
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _unknown_keys(
    place: str, values: Mapping[str, Any], names: tuple[str, ...], also: tuple[str, ...] = ()
) -> None:
    for name, value in values.items():
        if name not in names:
            raise UserError(unknown_key(place, str(name), value, (*names, *also)))


def _complete(place: str, schema: type, values: Any) -> dict[str, Any]:
    """The values of one dataclass: known keys only, each as its rule wants it, and defaults for the rest."""
    if not isinstance(values, Mapping):
        raise wrong(place, values, "expected keys and their values.")
    known = rules(schema)
    _unknown_keys(place, values, tuple(known))
    resolved = OmegaConf.to_container(OmegaConf.create(defaults(schema)), resolve=True)
    assert isinstance(resolved, dict)
    complete = {str(name): value for name, value in resolved.items()} | dict(values)
    for name, rule in known.items():
        complete[name] = _checked(f"{place}.{name}" if place else name, complete[name], rule)
    return complete


def _checked(name: str, value: Any, rule: Rule) -> Any:
    if not rule.holds(value):
        hint = nearest(value, rule.choices) if rule.choices and isinstance(value, str) else ""
        raise wrong(name, value, f"expected {rule.expected()}.{hint}")
    if rule.path and isinstance(value, str):
        return str(Path(value).expanduser())
    if rule.path and isinstance(value, dict):
        return {split: _expanded(paths) for split, paths in value.items()}
    if rule.kinds[0] is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _expanded(paths: Any) -> Any:
    if isinstance(paths, list):
        return [_expanded(path) for path in paths]
    return str(Path(paths).expanduser()) if isinstance(paths, str) else paths


def _targets(place: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_``, with its dotted place."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield place, value
        for name, inner in value.items():
            yield from _targets(f"{place}.{name}" if place else str(name), inner)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _targets(f"{place}[{position}]", inner)


def _check_node(group: str, node: Any) -> None:
    if not isinstance(node, dict):
        raise wrong(group, node, f"expected keys and their values. Choose one with {group}=NAME.")
    if not isinstance(node.get("_target_"), str):
        near = difflib.get_close_matches("_target_", [str(name) for name in node], n=1, cutoff=0.6)
        option = "+scheduler@embedding.scheduler" if group == "embedding.scheduler" else group
        hint = f"'{group}.{near[0]}' looks like it." if near else f"Choose one with {option}=NAME."
        raise UserError(f"{group}: expected the dotted path of a class in {group}._target_. {hint}")
    for place, inner in _targets(group, node):
        _check_arguments(place, inner, read_arguments)


def _check_named(group: str, nodes: Any) -> dict[str, Any]:
    """Callbacks and loggers: a name for each; null leaves one out."""
    if nodes is None:
        return {}
    if not isinstance(nodes, dict):
        raise wrong(group, nodes, "expected a name for each, with its _target_ and arguments.")
    kept = {name: node for name, node in nodes.items() if node is not None}
    for name, node in kept.items():
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            place, hint = f"{group}.{name}", nearest(name, [other for other in kept if other != name])
            if isinstance(node, bool) and not hint:
                way = "leave this out to keep the entry" if node else f"give {place}=null to leave it out"
                raise wrong(place, node, f"an entry is not switched by true or false; {way}.")
            raise wrong(
                place, node, f"there is no such entry in {group}, and no _target_ to make one of.{hint}"
            )
        node["_target_"] = MOVED.get(node["_target_"], node["_target_"])
        _check_node(f"{group}.{name}", node)
    return kept


def _check_arguments(place: str, node: Mapping[str, Any], arguments: Callable[[str], Arguments]) -> None:
    target = node["_target_"]
    try:
        takes = arguments(target)
    except UserError as error:
        raise UserError(f"{place}._target_={error}") from error
    consumed, supplied = CONSUMED.get(place, frozenset()), SUPPLIED.get(place, frozenset())
    for name, value in node.items():
        if name in HYDRA_KEYS or name in consumed:
            continue
        if name in supplied:
            raise wrong(f"{place}.{name}", value, "the program fills this argument in; leave it out.")
        if name not in takes.names and not takes.open:
            raise UserError(unknown_key(place, name, value, {*takes.names, *consumed} - supplied))
        # The others have rules of their own, or values that the run fills in: "auto", "{step}".
        rule = takes.rules.get(name) if place in ("head", "optimizer") else None
        if rule is not None and not rule.holds(value):
            raise wrong(f"{place}.{name}", value, f"expected {rule.expected()}.")
    # What the recipe gives to a front end depends on the data; what it gives to the others is in the table.
    left = takes.required - set(node) - supplied if place != "embedding" and not node.get("_partial_") else ()
    for name in sorted(left):
        if "_args_" not in node:
            raise UserError(
                f"{place}.{name}: {target} needs this argument; give it with +{place}.{name}=VALUE."
            )


def keys_of(place: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that may stand in a tokenizer, or beside a ``_target_``; empty where that is not known."""
    if place == "tokenizer" and node.get("kind") in TOKENIZERS:
        return tuple(rules(TOKENIZERS[node["kind"]]))
    target = node.get("_target_")
    if not isinstance(target, str):
        return ()
    try:
        takes = read_arguments(target)
    except UserError:
        return ()
    if takes.open and not takes.names:
        return ()
    return tuple(sorted({*takes.names, *CONSUMED.get(place, ())} - SUPPLIED.get(place, frozenset())))


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w+=,-][\w.+=,-]*", name):
        raise wrong(
            "name", name, "expected the name of one folder, of letters, digits and . _ - + = , alone."
        )


def _check_tokenizer(node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping) or "kind" not in node:
        expected = ", ".join(TOKENIZERS)
        raise UserError(f"tokenizer.kind: expected one of {expected}. Choose one with tokenizer=words.")
    kind = node["kind"]
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise wrong(
            "tokenizer.kind", kind, f"expected one of {', '.join(TOKENIZERS)}.{nearest(kind, TOKENIZERS)}"
        )
    complete = _complete("tokenizer", TOKENIZERS[kind], node)
    if complete.get("file") is not None and not Path(complete["file"]).exists():
        raise wrong("tokenizer.file", complete["file"], "there is no such file or folder.")
    return complete


def _check_data(data: dict[str, Any]) -> None:
    source = data["source"]
    standard = defaults(DataConfig)
    for name, rule in rules(DataConfig).items():
        if rule.sources and source not in rule.sources and data[name] != standard[name]:
            raise wrong(
                f"data.{name}",
                data[name],
                f"data.source={source} does not read this key, which is for {' and '.join(rule.sources)}; "
                "choose a source with data=NAME, or leave the key out.",
            )
    if source in FILE_SOURCES:
        if data["path"] is None:
            raise UserError(f"data.path: data.source={source} needs it: give data.path=PATH.")
        for name, path in _paths(data["path"]):
            _check_exists(name, path)
    if source == "hub":
        if data["name"] is None:
            raise UserError("data.name: data.source=hub needs it: give data.name=ID, such as data.name=imdb.")
        if data["mirror"] is not None and not Path(data["mirror"]).is_dir():
            raise wrong(
                "data.mirror",
                data["mirror"],
                "there is no such folder (the key, or TEXTBED_MIRROR in the environment).",
            )
    text = data["text"]
    if isinstance(text, list) and not (1 <= len(text) <= 2 and all(isinstance(name, str) for name in text)):
        raise wrong("data.text", text, "expected the name of one column, or of two for pairs.")
    if isinstance(text, list) and len(text) == 2 and text[0] == text[1]:
        raise wrong("data.text", text, "expected two different columns.")
    for name in ("classes", "header"):
        names = data[name]
        if isinstance(names, list) and not (names and all(isinstance(one, str) for one in names)):
            raise wrong(f"data.{name}", names, "expected a list of names.")
    for ours in data["splits"] or {}:
        if ours not in ("train", "validation", "test"):
            raise UserError(
                unknown_key("data.splits", str(ours), data["splits"][ours], ("train", "validation", "test"))
            )
    for name in ("delimiter", "quote"):
        mark = data[name]
        if mark is not None and len(mark.replace("\\t", "\t")) != 1:
            raise wrong(f"data.{name}", mark, "expected one character, or null.")
    try:
        codecs.lookup(data["encoding"])
    except LookupError as error:
        from encodings.aliases import aliases

        hint = nearest(data["encoding"].lower().replace("-", "_"), {*aliases, *aliases.values()})
        raise wrong(
            "data.encoding",
            data["encoding"],
            f"expected a character encoding, such as utf-8 or latin-1.{hint}",
        ) from error
    if data["folds"] is not None and data["fold"] >= data["folds"]:
        raise wrong(
            "data.fold",
            data["fold"],
            f"out of range: expected 0 to {data['folds'] - 1}, "
            f"as data.folds={data['folds']} and folds are counted from 0.",
        )
    if data["folds"] is None and data["fold"] != 0:
        raise wrong("data.fold", data["fold"], "there are no folds; give data.folds=NUMBER as well.")


def _check_folds(data: dict[str, Any]) -> None:
    if data["folds"] is None:
        raise wrong(
            "cross_validate", True, "there are no folds; give data.folds=NUMBER, or a data set that has some."
        )
    if data["fold"] != 0:
        raise wrong("data.fold", data["fold"], "cross_validate=true runs all folds; give only one of them.")


def _paths(path: Any) -> Iterator[tuple[str, str]]:
    if isinstance(path, str):
        yield "data.path", path
        return
    if not path:
        raise UserError("data.path={}: expected at least one split with its file.")
    for split, value in path.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):
                raise wrong(f"data.path.{split}", value, "expected a file or a pattern such as part-*.csv.")
            yield f"data.path.{split}", one


def _check_exists(name: str, path: str) -> None:
    if Path(path).exists():
        return
    if glob.has_magic(path):
        if next(glob.iglob(path, recursive=True), None) is None:
            raise wrong(name, path, "no file fits this pattern.")
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise wrong(name, path, f"there is no such file or folder, nor a folder '{folder}'.")
    hint = nearest(Path(path).name, (entry.name for entry in folder.iterdir()))
    raise wrong(name, path, f"there is no such file or folder.{hint}")


def _no_vectors(trainable: Any) -> str:
    given = "" if trainable else " with embedding.trainable=false"
    return (
        f"embedding.vectors: expected a file of pretrained vectors{given}; "
        "give embedding.vectors=FILE, or embedding.vectors=corpus to train some on the training split, or "
        "choose embedding=random."
    )


# Options of the group that are what they are by their vectors.
PRETRAINED = ("frozen", "finetuned", "thawed", "multichannel", "adapted", "projected")


def _check_embedding(node: dict[str, Any], option: str | None) -> dict[str, Any]:
    known = rules(EmbeddingConfig)
    takes = read_arguments(node["_target_"]) if is_ours(node["_target_"]) else Arguments(open=True)
    complete = dict(node)
    for item in fields(EmbeddingConfig):
        if item.name in RECIPE_KEYS or item.name in takes.names or item.name in node:
            value = node.get(item.name, item.default)
            complete[item.name] = _checked(f"embedding.{item.name}", value, known[item.name])
    if complete["scheduler"] is not None:
        _check_node("embedding.scheduler", complete["scheduler"])
    vectors, dim = complete["vectors"], complete["dim"]
    if vectors is not None and "vectors" not in takes.names and not takes.open:
        raise wrong(
            "embedding.vectors",
            vectors,
            f"{node['_target_']} has no row for each word that a vector could fill; "
            "give embedding.vectors=null, or choose embedding=finetuned.",
        )
    _check_case(complete, vectors)
    if vectors is None:
        if not complete["trainable"] and "vectors" not in takes.names and not takes.open:
            raise wrong(
                "embedding.trainable",
                False,
                "there is nothing pretrained to freeze; give embedding.trainable=true.",
            )
        if not complete["trainable"] or option in PRETRAINED:
            raise UserError(_no_vectors(complete["trainable"]))
        for name in ("reduce", "remove_components"):
            if complete[name] is not None:
                raise wrong(
                    f"embedding.{name}",
                    complete[name],
                    f"there are no vectors to change; give embedding.vectors=FILE, or embedding.{name}=null.",
                )
        if dim is None:
            raise UserError(
                "embedding.dim=null: without vectors the width must be given, such as embedding.dim=300."
            )
    else:
        if option == "random":
            raise wrong(
                "embedding.vectors",
                vectors,
                "embedding=random starts from random rows; "
                "choose embedding=finetuned or embedding=frozen, or embedding.vectors=null.",
            )
        width = _width_of_vectors(vectors, dim)
        complete["dim"] = _check_width(complete, width)
        if dim == width:
            complete["reduce"] = None  # a sweep over the width may well end at the vectors' own
    _check_effects(complete)
    if "word_ngrams" in takes.names:
        _check_ngrams(complete)
    _check_rows(complete)
    _check_what_learns(complete, option, always="trainable" not in takes.names and not takes.open)
    return complete


def _check_rows(node: dict[str, Any]) -> None:
    """How the rows begin that have no vector, and what is done to rows later."""
    if node["vectors"] is None and node.get("missing", "random") != "random":
        raise wrong(
            "embedding.missing",
            node["missing"],
            "without vectors no row misses one; give embedding.missing=random, and embedding.init for all.",
        )
    if node["vectors"] in (None, "corpus") and node["unseen"] != "keep":
        raise wrong(
            "embedding.unseen",
            node["unseen"],
            "there is no file of vectors that could know such words; give embedding.unseen=keep.",
        )
    if node.get("scale") is not None and node.get("init") == "zeros":
        raise wrong(
            "embedding.scale",
            node["scale"],
            "embedding.init=zeros has no scale; "
            "give embedding.scale=null, or embedding.init=normal or uniform.",
        )
    if node.get("scale") is not None and node.get("init", "normal") not in ("normal", "uniform"):
        raise wrong(
            "embedding.scale",
            node["scale"],
            f"embedding.init={node['init']} has a scale of its own; "
            "give embedding.scale=null, or embedding.init=normal or uniform.",
        )
    usual = defaults(EmbeddingConfig)["norm_type"]
    if node.get("norm_type", usual) != usual and node.get("max_norm") is None:
        raise wrong(
            "embedding.norm_type",
            node["norm_type"],
            f"no row is shortened; give embedding.max_norm=NUMBER as well, or embedding.norm_type={usual}.",
        )
    if node.get("append_importance") and not node.get("importance", True):
        raise wrong(
            "embedding.append_importance",
            True,
            "there is nothing to append with embedding.importance=false; "
            "give embedding.importance=true, or embedding.append_importance=false.",
        )


def _check_what_learns(node: dict[str, Any], option: str | None, always: bool) -> None:
    """``always``: the class learns something whatever is frozen, and so has no switch for it."""
    thaws = [name for name in ("frozen_epochs", "frozen_steps") if node.get(name)]
    if option == "thawed" and not thaws:
        raise UserError(
            "embedding.frozen_epochs=0: embedding=thawed begins with a frozen table; give "
            "embedding.frozen_epochs or embedding.frozen_steps, or choose embedding=finetuned."
        )
    if node["trainable"]:
        if node.get("train_missing") and not always:
            raise wrong(
                "embedding.train_missing",
                True,
                "a table that is trained trains all its rows; "
                "give embedding.train_missing=false, or choose embedding=frozen.",
            )
        return
    if always:
        raise wrong(
            "embedding.trainable",
            False,
            f"{node['_target_']} always learns beside what it keeps frozen; "
            "leave the key out, or choose embedding=frozen.",
        )
    if thaws:
        raise wrong(
            f"embedding.{thaws[0]}",
            node[thaws[0]],
            "with embedding.trainable=false the table never thaws; "
            "give embedding.trainable=true, or choose embedding=frozen.",
        )
    if _learns_beside(node):
        return
    for name, reason in (
        ("lr", "a frozen table learns nothing"),
        ("weight_decay", "a frozen table must not shrink"),
        ("scheduler", "a frozen table learns nothing"),
        ("scale_grad_by_freq", "a frozen table has no gradient"),
    ):
        value, none = node.get(name), "false" if node.get(name) is True else "null"
        if value is not None and value is not False:
            raise wrong(
                f"embedding.{name}",
                value.get("_target_") if name == "scheduler" else value,
                f"{reason} (embedding.trainable=false); "
                f"give embedding.{name}={none}, or choose embedding=finetuned.",
            )


def _learns_beside(node: Mapping[str, Any]) -> bool:
    """Whether something learns beside a frozen table, in its parameter group."""
    return bool(node.get("train_missing") or "word_ngrams" in node or node["token_weights"] == "learned")


def _check_ngrams(node: Mapping[str, Any]) -> None:
    """What must hold between the settings of n-grams. Words may be frozen: the n-grams learn all the same."""
    least, most = node["min_char"], node["max_char"]
    if (least is None) != (most is None):
        given, other = ("min_char", "max_char") if most is None else ("max_char", "min_char")
        raise wrong(
            f"embedding.{given}",
            node[given],
            f"character n-grams need both lengths; give embedding.{other}=NUMBER, or embedding.{given}=null.",
        )
    if least is not None and least > most:
        raise wrong(
            "embedding.min_char", least, f"expected at most embedding.max_char={most}; exchange the two."
        )
    if most is None and node["word_ngrams"] == 1:
        raise wrong(
            "embedding.word_ngrams",
            1,
            "there are no n-grams then; give embedding.word_ngrams=2, or embedding.min_char and "
            "embedding.max_char, or choose embedding=random.",
        )
    if node["ngram_scale"] is not None and node["ngram_init"] == "zeros":
        raise wrong(
            "embedding.ngram_scale",
            node["ngram_scale"],
            "embedding.ngram_init=zeros has no scale; "
            "give embedding.ngram_scale=null, or embedding.ngram_init=normal or uniform.",
        )


def _check_effects(node: Mapping[str, Any]) -> None:
    """What acts on the rows in training, where it has nothing to act on."""
    sif_a = node["sif_a"]
    usual = next(item.default for item in fields(EmbeddingConfig) if item.name == "sif_a")
    if node["token_weights"] != "sif" and sif_a != usual:
        raise wrong(
            "embedding.sif_a", sif_a, "no token has such a weight; give embedding.token_weights=sif as well."
        )
    if node["noise"] and "word_ngrams" in node:
        raise wrong(
            "embedding.noise",
            node["noise"],
            "noise is of the words' rows alone, and n-grams are averaged with these; give embedding.noise=0.",
        )
    if node["pull"] and node["vectors"] is None:
        raise wrong(
            "embedding.pull",
            node["pull"],
            "there are no pretrained vectors to pull to; give embedding.vectors=FILE, or embedding.pull=0.",
        )
    if node["pull"] and not node["trainable"]:
        raise wrong(
            "embedding.pull",
            node["pull"],
            "a frozen table moves nowhere to be pulled back from (embedding.trainable=false); "
            "give embedding.pull=0, or choose embedding=finetuned.",
        )


def _check_width(node: Mapping[str, Any], width: int) -> int:
    """D of a table that starts from vectors of ``width`` columns."""
    vectors, dim, reduce = node["vectors"], node["dim"], node["reduce"]
    if reduce is not None and vectors == "corpus":
        raise wrong(
            "embedding.reduce",
            reduce,
            "vectors of the training split are trained as wide as embedding.dim says; leave it out.",
        )
    if reduce is not None and (dim is None or dim > width):
        raise wrong(
            "embedding.dim",
            dim,
            f"embedding.reduce={reduce} needs a width to reduce to: the vectors of {vectors} are {width} "
            f"wide, so give a number of at most {width}, or embedding.reduce=null.",
        )
    if dim is not None and dim != width and reduce is None:
        less = "; embedding.reduce=truncate, or pca, makes them narrower" if dim < width else ""
        raise wrong(
            "embedding.dim",
            dim,
            f"the vectors of {vectors} are {width} wide; "
            f"give embedding.dim={width}, or embedding.dim=null to take theirs{less}.",
        )
    width = width if dim is None else dim
    gone = node["remove_components"]
    if gone is not None and gone >= width:
        raise wrong(
            "embedding.remove_components",
            gone,
            f"the vectors have {width} columns; expected null or a number from 0 to {width - 1}.",
        )
    return width


def _check_head(node: dict[str, Any]) -> dict[str, Any]:
    """The keys that the recipe reads, with their defaults, beside the head's own arguments."""
    known = rules(HeadConfig)
    own = {name: value for name, value in node.items() if name not in known}
    complete = own | _complete(
        "head", HeadConfig, {name: value for name, value in node.items() if name in known}
    )
    width = Rule((int,), minimum=1)
    dense, usual = complete["dense"], defaults(HeadConfig)
    if dense is not None and not (dense and all(width.holds(one) for one in dense)):
        raise wrong("head.dense", dense, "expected a list of widths, such as [300, 300], or null.")
    for name in ("dense_activation", "dense_dropout"):
        if dense is None and complete[name] != usual[name]:
            raise wrong(
                f"head.{name}",
                complete[name],
                "there are no layers above the head; "
                f"give head.dense=[300] as well, or head.{name}={usual[name]}.",
            )
    return complete


def _check_case(node: dict[str, Any], vectors: Any) -> None:
    case = node["case"] = list(node["case"])
    if not case or len(set(map(str, case))) < len(case) or not {*case} <= {"exact", "lower", "title"}:
        raise wrong(
            "embedding.case", case, "expected some of exact, lower and title, such as [exact, lower]."
        )
    if vectors in (None, "corpus") and case != ["exact"]:
        raise wrong("embedding.case", case, "there is no file of vectors to look words up in; leave it out.")


def _width_of_vectors(vectors: str, dim: int | None) -> int:
    """D of a file of vectors, and a look at its start; of vectors yet to be trained the one asked for."""
    if vectors == "corpus":
        from textbed.embedding.vectors import corpus

        return corpus.DIM if dim is None else dim
    from textbed.embedding.vectors import is_hub_id, peek

    if not is_hub_id(vectors):
        _check_exists("embedding.vectors", vectors)
    return peek(vectors)[1]


def _check_gradient(values: Mapping[str, Any]) -> None:
    node = values["embedding"]
    gradient = node["gradient"]
    still = is_ours(node["_target_"]) and not node["trainable"] and not _learns_beside(node)
    if gradient in ("sparse", "lazy") and not still:
        problem = no_sparse_gradient(values, gradient)
        if problem is not None:
            raise UserError(problem)


def no_sparse_gradient(values: Mapping[str, Any], gradient: str) -> str | None:
    """Why there can be no ``embedding.gradient=sparse``, or ``lazy``, in a configuration; None where it can.

    For ``sparse`` that is what torch 2.13 cannot do: most optimizers, decay, fused steps. Either wants a
    backend that adds up sparse gradients of several processes.
    """
    embedding, optimizer, trainer = values["embedding"], values["optimizer"], values["trainer"]
    given, dense = f"embedding.gradient={gradient}", "embedding.gradient=dense"
    if embedding.get("scale_grad_by_freq"):
        return (
            f"{given}: torch has no sparse gradient that is scaled by frequency; "
            f"give embedding.scale_grad_by_freq=false, or {dense}."
        )
    target = optimizer["_target_"]
    package, _, name = target.rpartition(".")
    known = ("SGD", "Adagrad") if gradient == "sparse" else ROWWISE
    if name not in known or not package.startswith("torch.optim"):
        choices = ", ".join(f"optimizer={choice.lower()}" for choice in known)
        lazy = "embedding.gradient=lazy or " if gradient == "sparse" and name in ROWWISE else ""
        return f"{given}: {target} takes no sparse gradients; choose {choices}, or {lazy}{dense}."
    if gradient == "sparse" and optimizer.get("fused"):
        return (
            f"optimizer.fused=true: {target} takes no sparse gradients then; "
            "give optimizer.fused=null, or embedding.gradient=lazy."
        )
    if gradient == "sparse":
        name, decay = "embedding.weight_decay", embedding["weight_decay"]
        if decay is None:
            name, decay = "optimizer.weight_decay", optimizer.get("weight_decay")
        if decay:
            return (
                f"{shown(name, decay)}: {target} cannot decay weights with sparse gradients; "
                "give embedding.weight_decay=0, or embedding.gradient=lazy."
            )
    return _no_shared_gradient(trainer, given, dense)


def _no_shared_gradient(trainer: Mapping[str, Any], given: str, dense: str) -> str | None:
    """Why devices or processes cannot have, or share, sparse gradients."""
    own, name = _strategy(trainer)
    accelerator = trainer.get("accelerator", "auto")
    if accelerator == "mps":
        return f"{given}: the GPU of an Apple computer has no sparse gradients; give {dense}, or trainer=cpu."
    if _divides_weights(name):
        return f"{given}: trainer.strategy={name} cannot divide sparse gradients; give {dense}."
    alone = is_alone(trainer) and "ddp" not in name
    if not alone and accelerator != "cpu" and own.get("process_group_backend") != "gloo":
        return (
            f"{given}: NCCL, through which GPUs share gradients, has no sparse ones; "
            f"give {dense}, or trainer.devices=1 trainer.strategy=auto."
        )
    return None


def _strategy(trainer: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Lightning's strategy: its settings where it has some, and its name in lower case."""
    strategy = trainer.get("strategy") or "auto"
    own = strategy if isinstance(strategy, Mapping) else {}
    return own, str(own.get("_target_", strategy)).rpartition(".")[2].lower()


def _divides_weights(strategy: str) -> bool:
    """Whether a process has but a part of each weight."""
    return re.search("fsdp|deepspeed|model_?parallel", strategy) is not None


def is_alone(trainer: Mapping[str, Any]) -> bool:
    """Whether there is one process for certain: ``auto``, Lightning's default, may be several GPUs."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)  # numbers of the devices
    elif devices == "auto" and trainer.get("accelerator") in ("cpu", "mps"):
        devices = 1
    return devices in (1, "1") and trainer.get("num_nodes", 1) == 1


def _check_max_norm(values: Mapping[str, Any]) -> None:
    """Each process shortens the rows of its own batch alone, so that their tables would no longer be one; and
    the last layer's weights can be measured only where they are whole."""
    embedding, trainer = values["embedding"], values["trainer"]
    longest, strategy = values["classifier"]["max_norm"], _strategy(trainer)[1]
    if longest is not None and _divides_weights(strategy):
        raise wrong(
            "classifier.max_norm",
            longest,
            f"trainer.strategy={strategy} divides the weights whose length is bounded; "
            "give classifier.max_norm=null, or trainer=ddp.",
        )
    if embedding.get("max_norm") is not None and embedding["trainable"] and not is_alone(trainer):
        raise wrong(
            "embedding.max_norm",
            embedding["max_norm"],
            "several processes would each shorten other rows, and their tables drift apart; "
            "give embedding.max_norm=null, or trainer.devices=1 trainer.num_nodes=1.",
        )


def _check_sharded(values: Mapping[str, Any]) -> None:
    """What needs all rows of a table at once, and finds but a process's share."""
    embedding, trainer = values["embedding"], values["trainer"]
    if not embedding.get("sharded") or is_alone(trainer):
        return
    for key in ("max_norm", "scale_grad_by_freq", "pull"):
        if embedding.get(key):
            raise wrong(
                f"embedding.{key}",
                embedding[key],
                "a table divided among processes has none; leave it out, or give embedding.sharded=false.",
            )
    if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm") in ("norm", None):
        raise wrong(
            "trainer.gradient_clip_val",
            trainer["gradient_clip_val"],
            "no process has the whole gradient whose norm is bounded (embedding.sharded=true); "
            "give trainer.gradient_clip_algorithm=value.",
        )


def is_alike(values: Mapping[str, Any]) -> bool:
    """Whether lazy and dense updates are the same to the last bit: rows with a gradient of zero stay as they
    are, and no norm is taken over all rows or over the touched ones, whose squares add up otherwise.
    """
    optimizer, trainer = values["optimizer"], values["trainer"]
    if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm") in ("norm", None):
        return False
    decay = values["embedding"]["weight_decay"]
    decay = optimizer.get("weight_decay") if decay is None else decay
    kind = optimizer["_target_"].rpartition(".")[2]
    return not decay and (kind == "Adagrad" or (kind == "SGD" and not optimizer.get("momentum")))


def _check_numbers(values: dict[str, Any]) -> None:
    for name, rule in NUMBERS.items():
        *groups, argument = name.split(".")
        node = values
        for group in groups:
            node = node.get(group) or {}
        if argument in node:
            value = node[argument]
            # Lightning takes a precision as a number or as its name.
            plain = isinstance(value, int) and not isinstance(value, bool) and rule.choices is not None
            _checked(name, str(value) if plain else value, rule)


def _check_monitors(values: dict[str, Any]) -> None:
    """A figure that decides something must come from validation, and be wanted in the right direction."""
    nodes = {f"callbacks.{name}": node for name, node in values["callbacks"].items()}
    if values.get("scheduler"):
        nodes["scheduler"] = values["scheduler"]
    if values["embedding"]["scheduler"]:
        nodes["embedding.scheduler"] = values["embedding"]["scheduler"]
    for place, node in nodes.items():
        monitor = node.get("monitor")
        if monitor is None:
            continue
        if not isinstance(monitor, str) or not re.fullmatch(r"val/\w+", monitor):
            raise wrong(
                f"{place}.monitor",
                monitor,
                f"expected a validation figure, such as val/loss or val/accuracy.{nearest(monitor, FIGURES)}",
            )
        small = re.search("loss|error", monitor) is not None
        large = re.search("accuracy|f1|mcc", monitor) is not None
        backwards = {"max": small and not large, "min": large and not small}
        mode = node.get("mode", "min")  # the default of Lightning's callbacks and of torch's scheduler
        if backwards.get(mode):
            right = "min" if mode == "max" else "max"
            raise wrong(
                f"{place}.mode",
                mode,
                f"{monitor} is better when it is "
                f"{'smaller' if right == 'min' else 'larger'}; give {place}.mode={right}.",
            )


def _check_sweep(sweep: dict[str, Any]) -> None:
    given = sweep["objectives"]
    objectives = [given] if isinstance(given, str) else given
    for name in objectives or ():
        if not isinstance(name, str) or not re.fullmatch(r"(?!test/)\w+/\w+", name):
            raise wrong(
                "sweep.objectives",
                name,
                "expected a figure such as val/accuracy or seconds/fit, none of the test: that is for the "
                f"winner.{nearest(name, FIGURES)}",
            )
    if objectives is not None and not objectives:
        raise wrong("sweep.objectives", given, "expected at least one figure.")
    several = objectives is not None and len(objectives) > 1
    if several and sweep["sampler"] == "cmaes":
        raise wrong("sweep.objectives", given, "sweep=cmaes goes by one figure; give one, or sweep=tpe.")
    if several and sweep["pruner"] != "none":
        raise wrong(
            "sweep.pruner",
            sweep["pruner"],
            "with several objectives nothing is pruned; give one figure, or none.",
        )
    if sweep["pruner"] != "none" and objectives and not objectives[0].startswith("val/"):
        raise wrong(
            "sweep.pruner",
            sweep["pruner"],
            f"{objectives[0]} is not known before the end; prune by a figure of validation.",
        )


def _check_class_weights(weights: Any) -> None:
    if isinstance(weights, list):
        rule = Rule((float,), minimum=0)
        if not weights or not all(rule.holds(weight) for weight in weights) or not any(weights):
            raise wrong(
                "classifier.class_weights",
                weights,
                "expected a number of at least 0 for each class, not all of them 0.",
            )


def _check_words(words: Any) -> None:
    if words is not None and not (words and all(isinstance(word, str) for word in words)):
        raise wrong("report.words", words, "expected a list of words, such as [good,bad], or null.")
