"""Tables of whole models: a model2vec folder, the input table of a transformer, or the hub id of either.

The entries of such a table are pieces of words. For a vocabulary of words a word's row is the mean of the
rows of its pieces, cut as the model's own tokenizer cuts the word inside a text, and a word with a piece that
the tokenizer does not know has none. For a vocabulary of pieces each takes the row of its own spelling.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from textbed.embedding.vectors.arrays import SafeTensors, as_float
from textbed.embedding.vectors.files import Batch, Source, blocks_of
from textbed.errors import UserError

PLACES = ("", "0_StaticEmbedding", "0_Transformer")
"""Where in a folder the model lies: sentence-transformers puts some in a folder of their own."""
INPUT_TABLES = (
    "embeddings",  # model2vec
    "embedding.weight",  # a static model of sentence-transformers
    "word_embeddings.weight",  # BERT and its kin, BLOOM
    "embed_tokens.weight",  # Llama and its kin, BART
    "tok_embeddings.weight",  # ModernBERT
    "wte.weight",  # GPT-2
    "embed_in.weight",  # GPT-NeoX
    "shared.weight",  # T5
    "word_embedding.weight",  # XLNet
    "embeddings.weight",  # Mamba
)
WORDS_AT_ONCE = 8192


class ModelVectors(Source):
    """A folder with ``tokenizer.json`` and ``model.safetensors``, one file or several with an index."""

    composes = True
    pieces = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        folder = next((path / place for place in PLACES if (path / place / "tokenizer.json").is_file()), None)
        weights = any(list((path / place).glob("*.safetensors")) for place in PLACES)
        if folder is None or not weights:
            raise UserError(f"{path}: {_lacks(path, folder is not None, weights)}")
        self.tokenizer_file = folder / "tokenizer.json"
        self.weights_file, name = self._find_table(folder)
        tensors = SafeTensors(self.weights_file)
        if name not in tensors.names():
            raise UserError(f"{self.weights_file}: has no tensor {name}, though the index says so")
        self.table = tensors.get(name)
        if self.table.ndim != 2 or not self.table.size:
            raise UserError(
                f"{self.weights_file}: '{name}' has the shape {self.table.shape}; expected a table"
            )
        static = name == "embeddings"
        # model2vec's newer files share rows among tokens, and weigh tokens apart from their rows.
        self.mapping = tensors.get("mapping") if static and "mapping" in tensors.names() else None
        self.weights = tensors.get("weights") if static and "weights" in tensors.names() else None
        if self.mapping is not None and (self.mapping < 0).any() | (self.mapping >= len(self.table)).any():
            raise UserError(f"{self.weights_file}: its mapping names rows that are not in its table")
        self.count = len(self.table) if self.mapping is None else len(self.mapping)
        if self.weights is not None and len(self.weights) != self.count:
            raise UserError(
                f"{self.weights_file}: has {len(self.weights):,} weights for {self.count:,} tokens"
            )
        self.format = "model2vec folder" if static else f"input table of a transformer ({name})"
        self._tokenizer: Any = None

    def _find_table(self, folder: Path) -> tuple[Path, str]:
        """The file and the name of the input table."""
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                names = {str(name): folder / file for name, file in where.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{index}: is no index of a model's files, or damaged") from None
        else:
            single = folder / "model.safetensors"
            places = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
            names = {name: file for file in places for name in SafeTensors(file).tables()}
        for known in INPUT_TABLES:
            found = [name for name in names if name == known or name.endswith(f".{known}")]
            if found:
                name = min(found, key=len)
                if not names[name].is_file():
                    raise UserError(f"{names[name]}: the index names this file, but it is not there")
                return names[name], name
        listed = ", ".join(list(names)[:5]) or "nothing"
        raise UserError(
            f"{folder}: none of its tensors is known as a table of input vectors (named like "
            f"{', '.join(INPUT_TABLES[:4])}); it holds {listed}"
        )

    def peek(self) -> tuple[int | None, int]:
        return self.count, self.table.shape[1]

    def files(self) -> list[Path]:
        return [self.weights_file, self.tokenizer_file]

    def stream(self, wanted: Mapping[bytes, int] | None) -> Iterator[Batch]:
        names = self._open().get_vocab(with_added_tokens=True)
        tokens = sorted((row, name.encode(errors="replace")) for name, row in names.items())
        chosen = [item for item in tokens if wanted is None or item[1] in wanted]
        for part in blocks_of(len(chosen), self.table.shape[1]):
            some = [word for _, word in chosen[part]]
            ids = np.array([row for row, _ in chosen[part]], np.int64)
            vectors = self.take(ids)
            self.check_finite(vectors, some, (ids + 1).tolist())
            yield Batch(some, (ids + 1).tolist(), vectors)

    def compose(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokenizer = self._open()
        vectors = np.zeros((len(words), self.table.shape[1]), np.float32)
        found = np.zeros(len(words), bool)
        for begin in range(0, len(words), WORDS_AT_ONCE):
            some = [self.before + word for word in words[begin : begin + WORDS_AT_ONCE]]
            lists = [item.ids for item in tokenizer.encode_batch_fast(some, add_special_tokens=False)]
            counts = np.fromiter(map(len, lists), np.int64, len(lists))
            ids = np.fromiter(chain.from_iterable(lists), np.int64, int(counts.sum()))
            owner = np.repeat(np.arange(len(lists)), counts)
            known = counts > 0
            if self.unknown is not None:
                known[owner[ids == self.unknown]] = False
            ids, counts = ids[known[owner]], counts[known]
            if not len(ids):
                continue
            pieces = self.take(ids)
            self.check_finite(pieces, [b"a piece"] * len(ids), (ids + 1).tolist())
            means = np.add.reduceat(pieces, np.cumsum(counts) - counts, axis=0) / counts[:, None]
            vectors[begin : begin + len(some)][known] = means
            found[begin : begin + len(some)] = known
        return vectors, found

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The rows (n, D) float32 of tokens."""
        rows = as_float(self.table[ids if self.mapping is None else self.mapping[ids]])
        return rows if self.weights is None else rows * as_float(self.weights[ids])[:, None]

    def _open(self) -> Any:
        """Load the tokenizer once, and see that it fits the table."""
        if self._tokenizer is None:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
            import tokenizers

            try:
                text = self.tokenizer_file.read_text(encoding="utf-8")
                tokenizer = tokenizers.Tokenizer.from_str(text)
                plan = json.loads(text)
            except Exception as error:  # the library raises plain Exception
                reason = str(error).split("\n")[0][:100]
                raise UserError(
                    f"{self.tokenizer_file}: not a tokenizer.json of Hugging Face tokenizers ({reason})"
                ) from None
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = True
            most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            if most > self.count:
                raise UserError(
                    f"{self.path}: its tokenizer has {most:,} tokens, but its table {self.count:,} rows: "
                    "they are of two models"
                )
            model = plan["model"]
            self.unknown = model.get("unk_id")
            if self.unknown is None and model.get("unk_token") is not None:
                self.unknown = tokenizer.token_to_id(model["unk_token"])
            # A byte-level tokenizer gives a word inside a text another piece than at the start of one.
            self.before = " " if '"ByteLevel"' in json.dumps(plan.get("pre_tokenizer")) else ""
            self._tokenizer = tokenizer
        return self._tokenizer


def _lacks(path: Path, tokenizer: bool, weights: bool) -> str:
    """What a folder lacks to be a model."""
    if not weights:
        old = [place for place in PLACES if (path / place / "pytorch_model.bin").is_file()]
        if old:
            return (
                "holds its weights in pytorch_model.bin, a pickle, which is never opened; get the model's "
                "model.safetensors"
            )
        return "is a folder without model.safetensors; expected a file of vectors, or the folder of a model"
    assert not tokenizer
    return "is a folder without tokenizer.json, so which row is which word is not known"


def hub_folder(name: str) -> Path:
    """The folder of a hub model, downloaded before or now.

    Raises:
        UserError: the hub cannot be reached, or has no such model. Takes less than 10 s to notice.
    """
    import huggingface_hub
    from huggingface_hub import constants

    from textbed.data.hub import reachable

    wanted = [
        f"{place}{'/' if place else ''}{file}"
        for place in PLACES
        for file in ("tokenizer.json", "model*.safetensors", "model.safetensors.index.json")
    ]

    def fetch(local: bool) -> Path:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=local))

    try:
        folder = fetch(local=True)
        if any((folder / place / "tokenizer.json").is_file() for place in PLACES):
            return folder
    except Exception:  # whatever is wrong with the local copy, the hub may have a whole one
        pass
    told = constants.HF_HUB_OFFLINE
    if told or not reachable():
        cause = "HF_HUB_OFFLINE is set" if told else f"{constants.ENDPOINT} does not answer"
        raise UserError(
            f"{name}: there is no such file or folder, and the hub's model of that name cannot be fetched "
            f"({cause}) nor was it downloaded before; copy the model's folder here and give its path"
        )
    try:
        return fetch(local=False)
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "GatedRepoError" in kinds:
            raise UserError(
                f"{name}: asks for a login: accept its terms on the hub and run `hf auth login`"
            ) from None
        if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
            raise UserError(
                f"{name}: there is no such file or folder, nor a model of that name on the hub"
            ) from None
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{name}: cannot be fetched from the hub ({reason})") from None
