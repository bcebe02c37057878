"""Look into files of vectors, and make some.

    python scripts/vectors.py info FILE [--data data=mr]          what is in it, what it covers of a data set
    python scripts/vectors.py neighbours FILE WORD...             nearest words by cosine
    python scripts/vectors.py convert FILE --to vectors.npz       as .txt (word2vec), .npz or .safetensors
    python scripts/vectors.py train TEXT... --to vectors.npz      word2vec or fastText on text of your own
    python scripts/vectors.py distill MODEL --to FOLDER           a sentence encoder into a static table

FILE is a file or folder of any format that embedding.vectors reads, packed or not, or a model's hub id.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    data: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "KEY=VALUE"}

    verb = verbs.add_parser("info", help="what is in a file")
    verb.add_argument("file")
    verb.add_argument("--first", type=int, default=10, help="how many words to show (10)")
    verb.add_argument("--data", help="data set to cover, such as data=mr tokenizer=words", **data)
    verb.add_argument(
        "--case", nargs="+", choices=("exact", "lower", "title"), default=["exact"], help="spellings to try"
    )

    verb = verbs.add_parser("neighbours", help="nearest words by cosine")
    verb.add_argument("file")
    verb.add_argument("words", nargs="+", metavar="WORD")
    verb.add_argument("--count", type=int, default=10, help="neighbours of each word (10)")

    verb = verbs.add_parser("convert", help="write a file in another format")
    verb.add_argument("file")
    verb.add_argument(
        "--to", type=Path, required=True, help="file to write: .txt, .vec, .npz or .safetensors"
    )

    verb = verbs.add_parser("train", help="train vectors on text of your own (needs gensim)")
    verb.add_argument("texts", nargs="*", type=Path, metavar="TEXT", help="text files, a document a line")
    verb.add_argument("--data", help="or the training split of a data set, such as data=mr", **data)
    verb.add_argument("--to", type=Path, required=True, help="file to write; .bin keeps fastText's subwords")
    verb.add_argument("--method", choices=("word2vec", "fasttext"), default="word2vec")
    verb.add_argument("--dim", type=int, default=100, help="numbers a word (100)")
    verb.add_argument("--min-count", type=int, default=2, help="least occurrences of a word (2)")
    verb.add_argument("--epochs", type=int, default=5, help="passes over the text (5)")
    verb.add_argument("--window", type=int, default=5, help="words to each side that count (5)")
    verb.add_argument("--seed", type=int, default=0)

    verb = verbs.add_parser("distill", help="a sentence encoder into a static table")
    verb.add_argument("model", help="folder of a sentence encoder, or its hub id")
    verb.add_argument("--to", type=Path, required=True, help="folder to write")
    verb.add_argument("--dim", type=int, default=256, help="columns to keep (256)")
    verb.add_argument("--environment", type=Path, help="folder of the environment that model2vec gets")
    return parser.parse_args(given)


def main() -> int:
    arguments = vars(parse())
    verb = arguments.pop("verb")
    from textbed import vector_tools
    from textbed.command import one_line_errors

    with one_line_errors():
        if "file" in arguments:
            arguments["path"] = arguments.pop("file")
        print("\n".join(getattr(vector_tools, verb)(**arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
