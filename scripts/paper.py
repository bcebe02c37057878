"""A paper's table beside what your runs of it gave, with the difference.

    python train.py -m experiment=paper/kim2014 data.mirror=DIR
    python scripts/paper.py runs/kim2014                          in the terminal
    python scripts/paper.py runs/kim2014 --markdown > table.md    as Markdown
    python scripts/paper.py runs/a runs/b --paper kim2014         runs of any name, from whatever sweep

"ours" is the mean over runs (folds or seeds) and their standard deviation; "–" is what the paper, or you, do
not have; "?" follows a published figure that was not compared with the paper. A run belongs to the row and
the data set that its configuration says. The published figures, with their sources, are in
src/textbed/runs/published.yaml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders of run folders"
    )
    parser.add_argument("--paper", help="kim2014, swem, textgcn, widemlp or wieting2019; else the runs' name")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    arguments = parser.parse_args()
    from textbed.command import one_line_errors
    from textbed.runs import papers

    with one_line_errors():
        replication = papers.replicate(arguments.runs, arguments.paper)
        if arguments.markdown:
            print(papers.markdown(replication))
        else:
            papers.show(replication)
    return 0


if __name__ == "__main__":
    sys.exit(main())
