"""What comes before there are batches: read, split, encode. Imports neither torch nor Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from textbed.data import encoding, sources, splits


class Prepared(NamedTuple):
    """Documents as ids, of whole splits of the source, and which of these make up each part of a run."""

    corpus: sources.Corpus
    parts: dict[str, splits.Rows]
    encoded: encoding.Encoded


def prepare(data: Any, tokenizer: Any, cache: Path) -> Prepared:
    """Read, split, tokenize and encode; what has been encoded before comes from ``cache``.

    Args:
        data: the ``data`` group of the configuration.
        tokenizer: its ``tokenizer`` group.
    """
    corpus = sources.load(data, cache)
    parts = splits.make_splits(corpus, data)
    used = {rows.split for rows in parts.values()}
    texts = {name: split for name, split in corpus.splits.items() if name in used}
    train = parts["train"]
    encoded = encoding.encode(tokenizer, texts, corpus.columns, (train.split, train.rows), cache)
    return Prepared(corpus, parts, encoded)
