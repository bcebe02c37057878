"""Word tokenization beside Hugging Face ``tokenizers`` (WordLevel) and fastText's reader, on the same texts.

    python benchmarks/tokenize_words.py [--mirror DIR] [--documents 25000] [--repeats 3] [--threads N]

All start from IMDB's training texts, or as many made-up ones. textbed and tokenizers cut at white space with
Unicode's punctuation apart, drop case, count a vocabulary of the words that occur twice, and end with the ids
of all documents end to end. Ours also writes its cache to a fresh folder, as in a first run. Only the
library's own work is timed for it: the conversion to Python strings that it needs is left out, that of its
encodings to flat ids is left in.

fastText reads a file in which words are in lower case and apart already, as its users prepare it outside of
its time, and counts them (a training of no epochs, one column wide, with words that occur twice). That is
less than ours do: it ends with a dictionary and no ids. It has one thread for this.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import unicodedata
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from documents import encoded
from documents import read as read_documents
from fasttext_lines import fasttext_line
from measuring import CLOCKS, FASTTEXT, Missing, Results, apart, at_least_one, options, peer, read

from textbed.data.vocabulary import thread_count

# What the library's own Punctuation sets apart: ASCII's signs, and what Unicode calls punctuation.
PUNCTUATION = "$+<=>^`|~" + "".join(
    char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char).startswith("P")
)


def ours(texts: pa.Array, threads: int, clock: str) -> tuple[float, int, int]:
    """Return seconds, tokens and rows of the vocabulary."""
    settings = {"kind": "words", "split_off": PUNCTUATION, "normalize": None, "html_breaks": False}
    with tempfile.TemporaryDirectory() as cache:
        start = CLOCKS[clock]()
        size, found = encoded({"train": texts}, {**settings, "min_count": 2}, Path(cache), threads)
        return CLOCKS[clock]() - start, len(found["train"][0]), size


def word_level(texts: pa.Array, threads: int, clock: str) -> tuple[float, int, int]:
    """Return seconds, tokens and rows of the vocabulary."""
    # Read by the library as it is loaded. Where it was before, this process has a copy of its pool without
    # the threads, and would wait for them for ever: then it goes without.
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if "tokenizers" in sys.modules else "true"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    strings = texts.to_pylist()
    start = CLOCKS[clock]()
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=10**7, min_frequency=2, special_tokens=["<pad>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(strings, trainer, length=len(strings))
    encodings = chain.from_iterable(
        tokenizer.encode_batch_fast(strings[begin : begin + 1024], add_special_tokens=False)
        for begin in range(0, len(strings), 1024)
    )
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
    return CLOCKS[clock]() - start, len(ids), tokenizer.get_vocab_size()


def measure(texts: pa.Array, prepared: Path, given: argparse.Namespace, results: Results) -> None:
    threads = thread_count(given.threads)
    for _ in range(given.repeats):
        for name, side in (("textbed", ours), ("tokenizers", word_level)):
            (seconds, tokens, vocabulary), memory = apart(side, texts, threads, given.clock)
            figures = {"tokens": tokens, "vocabulary": vocabulary}
            results.add("imdb", name, seconds=seconds, **figures, **memory)
        try:
            results.add("imdb", "fasttext", **peer(given, "read_fasttext", prepared))
        except Missing as why:
            results.leave_out("fasttext", why)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--documents", type=at_least_one, default=25_000, help="how many training texts")
    given = read(parser, {"documents": 300})
    results = Results("tokenize_words", given, ["pyarrow", "numpy", "tokenizers"], FASTTEXT)
    texts, _ = read_documents(given.mirror, "imdb", "train", given.documents)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "train.txt"
        with prepared.open("w", encoding="utf-8") as file:
            file.writelines(f"{fasttext_line(text.as_py(), 0)}\n" for text in texts)
        measure(texts, prepared, given, results)
    results.ratio("tokenizers / textbed", ("imdb", "tokenizers"), ("imdb", "textbed"), aim=">= 20")
    results.ratio("fasttext / textbed", ("imdb", "fasttext"), ("imdb", "textbed"), aim=">= 1")
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
