"""Compare runs: what each group of them gave over seeds and folds, and which differences are real.

    python scripts/compare.py runs/sst2                                   grouped by whatever differs
    python scripts/compare.py runs/sst2 runs/mr --by embedding,head --metric test/f1_macro,test/loss
    python scripts/compare.py runs/sst2 --against "random, mean"          each against one, fewer tests
    python scripts/compare.py runs/sst2 --disagreements 20                and the documents they differ on
    python scripts/compare.py 'runs/sst2*' --format latex --out table.tex
    python scripts/compare.py --wandb TEAM/sst2                     runs of a project, and the tables go there
    python scripts/compare.py --wandb runs/sst2                     the same with offline runs
    python scripts/compare.py runs/sst2 --html report.html                a page with charts, beside the table

Runs that differ in seed and fold alone are one group. "p, runs" is of a permutation test over seeds and
folds, paired where groups share these: would other seeds show it? "p, documents" is of a paired bootstrap
over the test documents: would other documents show it? Holm's correction stands beside each, over all pairs.
"d" is the difference in standard deviations, "runs needed" how many of each would show it four times in five.
docs/compare.md explains the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

FORMATS = ("text", "markdown", "latex", "csv", "json")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="run folders, folders of them, or patterns")
    parser.add_argument(
        "--wandb",
        metavar="PLACE",
        help="send the tables to this project of Weights & Biases, or offline into this folder; without RUNS "
        "those that were logged there are compared",
    )
    parser.add_argument(
        "--by", metavar="KEY,...", help="keys or config groups to compare; what differs by default"
    )
    parser.add_argument(
        "--metric",
        default="test/accuracy",
        metavar="NAME,...",
        help="figures; the first is tested (test/accuracy)",
    )
    parser.add_argument("--against", metavar="GROUP", help="test the others against this group alone")
    better = parser.add_mutually_exclusive_group()
    better.add_argument("--lower", action="store_true", default=None, help="less of the figure is better")
    better.add_argument("--higher", dest="lower", action="store_false", help="more of it is better")
    parser.add_argument(
        "--disagreements", type=int, default=0, metavar="N", help="show N documents they differ on"
    )
    parser.add_argument("--between", nargs=2, metavar="GROUP", help="the two groups for that; the best two")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with charts and documents there too"
    )
    arguments = parser.parse_args()
    if not arguments.runs and not arguments.wandb:
        parser.error("give run folders, or --wandb PROJECT")
    from textbed.command import one_line_errors

    with one_line_errors():
        content = render(arguments)
        if arguments.out is None:
            print(content)
        else:
            from textbed.runs.folder import write_text

            write_text(arguments.out, content + "\n", "--out")
    return 0


def render(arguments: argparse.Namespace) -> str:
    from textbed.runs import comparison_tables as shown
    from textbed.runs.comparison import compare

    runs: Any = arguments.runs
    if not runs:
        from textbed.runs.wandb_runs import read

        runs = read(arguments.wandb)
    comparison = compare(
        runs,
        arguments.by.split(",") if arguments.by else None,
        arguments.metric.split(","),
        arguments.against,
        arguments.lower,
    )
    if arguments.wandb:
        from textbed.runs.folder import say
        from textbed.runs.wandb_runs import send

        for line in send(comparison, arguments.wandb):
            say(line)
    if arguments.html:
        from textbed.runs import report
        from textbed.runs.folder import say

        report.write(comparison, arguments.html, arguments.disagreements or report.MOST_DOCUMENTS)
        say(f"page: {arguments.html}")
    tables, disagreeing = shown.tables(comparison), None
    if arguments.disagreements:
        between = tuple(arguments.between) if arguments.between else None
        table, disagreeing = shown.of_disagreements(comparison, arguments.disagreements, between)
        tables.append(table)
    if arguments.format == "csv":
        return shown.as_csv(comparison)
    if arguments.format == "json":
        return shown.as_json(comparison, disagreeing or ())
    return getattr(shown, arguments.format)(tables, shown.lines(comparison))


if __name__ == "__main__":
    sys.exit(main())
