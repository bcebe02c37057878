"""The network itself: front end -> head -> dropout -> linear, and what it takes to make it again.

Stands on torch alone. :class:`~textbed.classifier.TextClassifier` is this and its training; what a run
leaves, or what was exported from it, becomes a network again by :func:`rebuild`.

Shape letters: B documents in the batch, P pairs (then B = 2P), V rows of the table, H width of what the head
returns, C classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.effects import Effects
from textbed.embedding.table import FrontEnd, Table
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.heads.layers import ACTIVATIONS, Layered
from textbed.targets import HYDRA_KEYS, is_ours, read_arguments

Part = TypeVar("Part", bound=nn.Module)

# Raised when a reader of the former cannot read a later design.
FORMAT = 1
# Arguments of a front end that say how its rows begin, and nothing of what they have become.
OF_THE_START = ("vectors", "found", "appended", "missing", "train_missing")


def part_seed(seed: int, part: str) -> int:
    """A seed for one part of the model, the same on every machine and in every version of Python.

    Parts of the same name start alike whatever else the model is made of, so that runs compare on equal
    ground.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest()) >> 1


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Build a part of the model inside this: its random numbers depend on ``seed`` and its name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(part_seed(seed, part))
        yield


class Network(nn.Module):
    """Token ids to logits, with any front end and any head.

    Args:
        embedding: the front end, token ids to vectors.
        head: vectors of a batch to (B, H), with ``out_dim`` = H.
        num_classes: C.
        multilabel: a document may have any number of classes: a sigmoid for each instead of softmax.
        pairs: batches hold pairs of texts (u, v), classified by (u, v, |u - v|, u * v): Conneau et al. 2017,
            arXiv:1705.02364.
        activation: on the head's outputs, before they are dropped: relu, tanh, gelu, or None.
        dropout: share of the head's outputs that are dropped in training.
        seed: decides the initial weights of the linear layer, whatever was built before it.
    """

    def __init__(
        self,
        embedding: FrontEnd,
        head: Head,
        num_classes: int,
        *,
        multilabel: bool = False,
        pairs: bool = False,
        activation: str | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.head = head
        self.num_classes = num_classes
        self.multilabel = multilabel
        self.pairs = pairs
        self.activation = ACTIVATIONS[activation]() if activation else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        with seeded(seed, "linear"):
            self.linear = nn.Linear(head.out_dim * (4 if pairs else 1), num_classes)

    def read(self, batch: TokenBatch) -> Tensor:
        """(B, H): what the head makes of each document."""
        if batch.pooled is None:
            return self.head(self.embedding.prepare(batch), self.embedding)
        return self.head.rest(batch.pooled)

    def features(self, batch: TokenBatch) -> Tensor:
        """(B, H) from the head; for pairs (P, 4H)."""
        features = self.activation(self.read(batch))
        if not self.pairs:
            return features
        u, v = features.tensor_split(2)  # (P, H) each
        return torch.cat([u, v, (u - v).abs(), u * v], dim=1)  # (P, 4H)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Logits (B, C); for pairs (P, C)."""
        return self.linear(self.dropout(self.features(batch)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) float32: softmax over the classes, or for multi-label a sigmoid for each."""
        return logits.float().sigmoid() if self.multilabel else logits.float().softmax(dim=1)


# ------------------------------------------------------------------------------------------------------------
# What a network is made of
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """What a network is made of besides its vocabulary and its weights: plain values, kept as YAML."""

    classes: list[str]
    """Names of the C classes, by class id."""
    multilabel: bool
    pairs: bool
    text: list[str]
    """Columns of the data that held the text: one, or two for pairs."""
    embedding: dict[str, Any]
    """The front end: ``_target_`` and arguments, without tensors and tokens."""
    effects: dict[str, Any] | None
    """Arguments of what acts on the front end's rows (:class:`Effects`), without tensors; None for nothing.
    ``weighted`` says whether tokens have fixed weights."""
    head: dict[str, Any]
    """The head: ``_target_`` and arguments, and the layers above it."""
    activation: str | None = None
    """Between the head and the linear layer."""
    class_weights: list[float] | None = None
    """(C,) of the loss."""
    label_smoothing: float = 0.0
    """Of the loss."""

    def dump(self) -> str:
        """As YAML text."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)

    @classmethod
    def load(cls, path: Path) -> Design:
        """Read what ``dump`` gave.

        Raises:
            UserError: the file is missing, damaged, or of a later format.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path.parent}: no {path.name} in it, which says what the model is made of: the run was "
                "ended before it had a model, or is of an older version; train it again"
            ) from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read: {reason}") from None
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{path} is of format {version}; this version of textbed reads up to {FORMAT}: install a "
                "newer one"
            )
        try:
            assert isinstance(content, dict)
            content.pop("format")
            return cls(**content)
        except (AssertionError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: it does not say what the model is made of") from None


def construct(node: Mapping[str, Any], kind: type[Part], **supplied: Any) -> Part:
    """The part that ``node`` describes: its class is named by ``_target_``, the rest are arguments.

    Raises:
        UserError: there is no such class, or it is no ``kind``: a folder may come from a stranger, and can
            name anything. Importing a module runs it, so none is imported for the name alone but ours.
    """
    target = str(node.get("_target_"))
    module, _, name = target.rpartition(".")
    if not (is_ours(target) or module in sys.modules):
        raise UserError(
            f"{target}: the model has a part of this class, and what a folder names is not imported unasked: "
            f"if you trust it, import that module first (import {module}, or --import {module} for a script)"
        )
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{target}: the model has a part of this class, which cannot be imported ({error}); use the "
            "version of the code that it was trained with"
        ) from error
    if not (isinstance(made, type) and issubclass(made, kind)):
        raise UserError(f"{target}: the model names this as a part of it, but it is no {kind.__name__}")
    return made(**{key: value for key, value in node.items() if key not in HYDRA_KEYS}, **supplied)


def make_head(
    node: Mapping[str, Any],
    dim: int,
    num_classes: int,
    seed: int = 0,
    make: Callable[..., Head] | None = None,
) -> Head:
    """The head that ``node`` describes, with its layers, over rows of width ``dim``.

    Args:
        make: makes the head itself from its node, Hydra's ``instantiate`` in training; None is
            :func:`construct`.
    """
    own = dict(node)
    dense = own.pop("dense", None)
    activation, dropout = own.pop("dense_activation", "relu"), own.pop("dense_dropout", 0.0)
    supplied = {"dim": dim}
    if "num_classes" in read_arguments(own["_target_"]).names:
        supplied["num_classes"] = num_classes
    with seeded(seed, "head"):
        head = make(own, **supplied) if make else construct(own, Head, **supplied)
    if dense is None:
        return head
    with seeded(seed, "dense"):
        return Layered(head, dense, activation, dropout)


def rebuild(
    design: Design,
    tokens: Sequence[str],
    state: Mapping[str, Tensor],
    network: Callable[..., Network] = Network,
) -> Network:
    """The network of a design with these weights, in evaluation.

    No number is drawn and none is copied: parts are made without memory, and the weights put in their places.

    Args:
        tokens: (V,) the vocabulary.
        state: the weights by name, as ``Network.state_dict`` gives them.
        network: what to make of the parts, called as :class:`Network` is.

    Raises:
        UserError: the weights are of another network.
    """
    if design.effects is not None:  # the rows that training was pulled to are of no use afterwards
        state = {key: state[key] for key in state if key not in ("embedding.initial", "embedding.pulled")}
    node = {key: value for key, value in design.embedding.items() if key not in OF_THE_START}
    takes = read_arguments(node["_target_"])
    node["num_embeddings"] = len(tokens)
    if "tokens" in takes.names:
        node["tokens"] = list(tokens)
    with torch.device("meta"):
        if "counts" in takes.names:
            node["counts"] = torch.zeros(len(tokens), dtype=torch.int64)
        embedding = construct(node, FrontEnd)
        if design.effects is not None:
            own = dict(design.effects)
            weights = torch.empty(len(tokens)) if own.pop("weighted") else None
            embedding = Effects(embedding, len(tokens), weights=weights, **own)
        head = make_head(design.head, embedding.dim, len(design.classes))
    made = network(
        embedding,
        head,
        len(design.classes),
        multilabel=design.multilabel,
        pairs=design.pairs,
        activation=design.activation,
    )
    for name, part in list(made.named_modules()):
        if isinstance(part, Table):
            begin = f"{name}."
            part.make_room(
                {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
            )
            part.set_clock(sys.maxsize, sys.maxsize)  # past any thaw
    try:
        made.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the weights do not fit the model: {reason[:300]}") from error
    return made.eval()
