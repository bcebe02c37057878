"""Classify texts by the model of a run.

    python scripts/predict.py RUN "a fine film" "dull"                 a line for each text
    python scripts/predict.py RUN --file in.csv --out out.parquet      the file's columns, and what was said
    python scripts/predict.py RUN --file in.jsonl --top 3              JSON lines on standard output

Files end in .csv, .tsv, .json, .jsonl, .parquet or .txt (a document a line); they are read and written a
piece at a time. New columns are predicted and probability, with --top also predicted_2, probability_2 and so
on, with --probabilities one for each class.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse(given: list[str] | None = None) -> argparse.Namespace:
    from textbed.command import add_import, at_least_one

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; for pairs two after one another")
    parser.add_argument("--file", type=Path, help="a file of documents instead")
    parser.add_argument("--out", type=Path, help="file to write: .parquet, .csv, .tsv or .jsonl")
    parser.add_argument(
        "--text", nargs="+", metavar="COLUMN", help="column of the text, or two for pairs; found by default"
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="likeliest classes to say (1)")
    parser.add_argument("--probabilities", action="store_true", help="say the probability of every class")
    parser.add_argument("--prefix", default="", help="in front of the names of the new columns")
    parser.add_argument("--batch-size", type=at_least_one, default=256, help="texts at a time (256)")
    parser.add_argument("--encoding", default="utf-8", help="of .csv, .tsv and .txt (utf-8)")
    parser.add_argument("--delimiter", help="between columns of .csv and .tsv")
    parser.add_argument("--quote", help="around values that hold a delimiter; empty for none")
    parser.add_argument(
        "--no-header", action="store_true", help="the first row is a document; columns c0, c1"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument("--threads", type=at_least_one, help="CPU threads; torch's choice by default")
    add_import(parser)
    arguments = parser.parse_args(given)
    if bool(arguments.texts) == bool(arguments.file):
        parser.error("give texts, or a file of them with --file")
    if arguments.out and not arguments.file:
        parser.error("--out goes with --file")
    return arguments


def main() -> int:
    arguments = parse()
    from textbed.command import import_own, one_line_errors

    with one_line_errors():
        import_own(arguments.modules)
        from textbed.runs.model import load
        from textbed.runs.prediction import Wanted, predict_file, predict_texts

        if arguments.threads:
            import torch

            torch.set_num_threads(arguments.threads)
        model = load(arguments.run, arguments.device)
        wanted = Wanted(arguments.top, arguments.probabilities, arguments.prefix)
        if arguments.texts:
            for line in predict_texts(model, arguments.texts, wanted=wanted, batch_size=arguments.batch_size):
                print(line)
            return 0
        form = {"encoding": arguments.encoding, "header": not arguments.no_header}
        form |= {"delimiter": arguments.delimiter.replace("\\t", "\t")} if arguments.delimiter else {}
        form |= {"quote": arguments.quote or None} if arguments.quote is not None else {}
        rows = predict_file(
            model,
            arguments.file,
            arguments.out,
            wanted=wanted,
            text=arguments.text,
            batch_size=arguments.batch_size,
            form=form,
        )
        if arguments.out:
            print(f"{arguments.out}: {rows:,} rows", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
