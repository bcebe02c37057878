"""A run, or what was exported from one, as something that predicts.

Takes a folder and nothing else: no data, no file of vectors, no network. Neither Hydra nor Lightning is
imported.

Shape letters: n texts, B of them in a batch, H width of what the head returns, C classes.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.data.encoding import load_tokenizer
from textbed.data.vocabulary import Tokenizer
from textbed.errors import UserError
from textbed.network import Design, Network, rebuild
from textbed.runs.folder import RunFolder, is_whole
from textbed.runs.weights import read_safetensors, weights_of

BATCH_SIZE = 256
# Texts that are cut into tokens at a time; what they become is forgotten with them.
ENCODED_AT_ONCE = 8192
WEIGHTS = "model.safetensors"
MODEL = "model.yaml"


class Model:
    """A trained classifier over texts.

    Texts are a sequence of strings (a list, a NumPy array, a pandas or Arrow column); a model of pairs takes
    pairs of strings. None is an empty text. A text gets the same values alone and in any batch, up to the
    last digits of float32 (1e-6), since products of matrices round by their size.

    Attributes:
        design: what it is made of.
        classes: names of the C classes, in the order of the columns of ``predict_proba``.
        multilabel: whether a text may have several classes, or none.
        pairs: whether it classifies pairs of texts.
        tokenizer: text to ids.
        network: ids to logits, a plain ``nn.Module``.
        source: the folder it came from.
    """

    def __init__(
        self,
        design: Design,
        tokenizer: Tokenizer,
        network: Network,
        source: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.design, self.tokenizer, self.source = design, tokenizer, source
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.classes = list(design.classes)
        self.multilabel, self.pairs = design.multilabel, design.pairs

    def __repr__(self) -> str:
        return f"Model({str(self.source)!r}, {len(self.classes)} classes)"

    def predict_proba(
        self, texts: Sequence[Any], *, batch_size: int = BATCH_SIZE, as_list: bool = False
    ) -> Any:
        """Probabilities (n, C) float32: a softmax over the classes, for multi-label a sigmoid for each.

        Args:
            batch_size: texts that go through the network at a time; alters memory and speed.
            as_list: a list of lists of numbers instead of an array.

        Raises:
            UserError: something that is no text (no pair of texts); names the first.
        """
        columns = columns_of(texts, self.pairs)
        network = self.network
        parts = [network.probabilities(network(batch)) for batch in self._batches(columns, batch_size)]
        return _whole(parts, len(self.classes), as_list)

    def predict(self, texts: Sequence[Any], *, batch_size: int = BATCH_SIZE, as_list: bool = False) -> Any:
        """The class of each text, (n,) names; for multi-label (n, C) zeros and ones, int64.

        As lists: n names, for multi-label n lists of the names of the classes above one half.
        """
        chances = self.predict_proba(texts, batch_size=batch_size)
        names = np.array(self.classes, dtype=object)
        if not self.multilabel:
            found = names[chances.argmax(axis=1)]
            return found.tolist() if as_list else found.astype(str)
        hits = chances > 0.5
        return [names[row].tolist() for row in hits] if as_list else hits.astype(np.int64)

    def embed(self, texts: Sequence[Any], *, batch_size: int = BATCH_SIZE, as_list: bool = False) -> Any:
        """What the head makes of each text, (n, H) float32.

        A model of pairs takes single texts here as well; of a pair it gives both texts' vectors, (n, 2, H).
        """
        texts = rows_of(texts)
        pairs = self.pairs and any(not isinstance(text, str) and not _is_missing(text) for text in texts)
        columns = columns_of(texts, self.pairs) if pairs else [_texts(texts)]
        parts = [self.network.read(batch) for batch in self._batches(columns, batch_size)]
        if pairs:
            parts = [torch.stack(part.tensor_split(2), dim=1) for part in parts]
        return _whole(parts, self.network.head.out_dim, as_list)

    # ---- inside

    def _batches(self, columns: Sequence[Sequence[str | None]], batch_size: int) -> Iterator[TokenBatch]:
        """The texts as batches on the device; of pairs all first texts and then all second."""
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected at least 1")
        with torch.inference_mode():
            for begin in range(0, len(columns[0]), ENCODED_AT_ONCE):
                encoded = [
                    self.tokenizer.encode(column[begin : begin + ENCODED_AT_ONCE]) for column in columns
                ]
                count = len(encoded[0][1]) - 1
                for first in range(0, count, batch_size):
                    yield _batch(encoded, first, min(first + batch_size, count)).to(self.device)


def _batch(encoded: Sequence[tuple[np.ndarray, np.ndarray]], first: int, last: int) -> TokenBatch:
    """Documents ``first`` to ``last`` of columns of ids and starts."""
    ids, lengths = [], []
    for tokens, starts in encoded:
        ids.append(tokens[starts[first] : starts[last]])
        lengths.append(np.diff(starts[first : last + 1]))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return TokenBatch(
        torch.from_numpy(np.concatenate(ids).astype(np.int32)), torch.from_numpy(offsets.astype(np.int32))
    )


def _whole(parts: Sequence[Tensor], width: int, as_list: bool) -> Any:
    whole = torch.cat([part.float().cpu() for part in parts]) if parts else torch.zeros(0, width)
    return whole.tolist() if as_list else whole.numpy()


def rows_of(texts: Any) -> list[Any]:
    """Texts, or pairs of them, as a list.

    Raises:
        UserError: one string, which is a sequence too but not what is meant, a table, or no sequence.
    """
    if isinstance(texts, str):
        raise UserError("one string was given where a list of texts is expected: write [text]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # which would be read as its columns' names
        raise UserError("a table was given where a list of texts is expected: name its column, table['text']")
    if hasattr(texts, "to_pylist"):  # Arrow, whose scalars are no strings
        return texts.to_pylist()
    try:
        return list(texts)
    except TypeError:
        raise UserError(f"{_shown(texts)} was given where a list of texts is expected") from None


def columns_of(texts: Any, pairs: bool) -> list[list[str | None]]:
    """The texts, of pairs the first and the second ones; None for one that is missing.

    Raises:
        UserError: something that is no text (no pair of texts); names the first.
    """
    if not pairs:
        return [_texts(texts)]
    firsts, seconds = [], []
    for number, pair in enumerate(rows_of(texts), start=1):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise UserError(
                f"text {number} is {_shown(pair)}; this model classifies pairs: expected (first, second)"
            )
        firsts.append(pair[0])
        seconds.append(pair[1])
    return [_texts(firsts), _texts(seconds)]


def _texts(texts: Any) -> list[str | None]:
    checked = rows_of(texts)
    for number, text in enumerate(checked, start=1):
        if not isinstance(text, str) and not _is_missing(text):
            raise UserError(f"text {number} is {_shown(text)}; expected a string")
    return [str(text) if isinstance(text, str) else None for text in checked]


def _is_missing(text: Any) -> bool:
    """None, or what pandas has in its place: NaN, or its NA."""
    if isinstance(text, float):
        return math.isnan(text)
    return text is None or text is getattr(sys.modules.get("pandas"), "NA", None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------------------------------------------------
# Loading
# ------------------------------------------------------------------------------------------------------------


def load(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
    """The model of a run folder, by its best checkpoint, or of a folder that ``scripts/export.py`` made.

    Args:
        folder: the run folder, or the exported one.
        device: where it is to compute.

    Raises:
        UserError: there is no such folder, it holds no model, or one of a later version; the message says
            what is missing. Or torch has no such device here.
    """
    path, place = Path(folder).expanduser(), _device(device)
    design, tokens, network = read_network(path)
    return Model(design, tokens, network, path, place)


def _device(device: torch.device | str) -> torch.device:
    """The device, once a number has been there and back: what a name cannot do shows only in use."""
    try:
        made = torch.device(device)
        torch.zeros(1, device=made).cpu()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that is built without it
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"device {device}: expected {' or '.join(here)}, which torch has here ({reason})"
        ) from None
    return made


def read_network(path: Path, make: Callable[..., Network] = Network) -> tuple[Design, Tokenizer, Network]:
    """What a folder holds: design, tokenizer, and the network made of its parts by ``make``.

    Raises:
        UserError: as :func:`load`.
    """
    if (path / WEIGHTS).is_file():
        design, state = Design.load(path / MODEL), read_safetensors(path / WEIGHTS)
    else:
        folder = RunFolder.open(path)
        folder.check_one_model()
        checkpoint = best_checkpoint(folder)
        design, state = Design.load(folder.model_file), weights_of(checkpoint)
    tokenizer = load_tokenizer(path / "tokenizer")
    return design, tokenizer, rebuild(design, tokenizer.tokens, state, make)


def best_checkpoint(folder: RunFolder) -> Path:
    """The checkpoint that a run tested: the best by validation; the last where there was no validation.

    Raises:
        UserError: there is none.
    """
    for path in (folder.best_checkpoint, folder.last_checkpoint):
        if path.is_file():
            if not is_whole(path):
                raise UserError(
                    f"checkpoint {path} is cut short or damaged ({path.stat().st_size:,} bytes); get it "
                    "again from where the folder was copied from, or train again"
                )
            return path
    info = folder.info()
    hint = (
        "its first epoch has not ended yet"
        if info.get("status") == "running"
        else "it ended before its first epoch did, kept none (callbacks=null), or they were deleted"
    )
    raise UserError(f"{folder} has no checkpoint (the run is {info.get('status')}): {hint}")
