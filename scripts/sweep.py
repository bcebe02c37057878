"""A sweep that goes on or is over: how it stands and what it gave; or take part in it.

    python scripts/sweep.py runs/sweeps/SWEEP            its best trials, failures, comparison, pictures
    python scripts/sweep.py runs/sweeps/SWEEP --join     work on its trials too, here or on another machine
    CUDA_VISIBLE_DEVICES=2,3 python scripts/sweep.py runs/sweeps/SWEEP --join --at-once 2

A worker needs the sweep's folder, the run folders and the data under the same paths as where the sweep began,
as on a shared file system. It takes what is next, takes up what a dead worker left, and ends with the sweep.
Ctrl-C ends its trials, which wait for another. docs/sweeps.md tells more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="SWEEP", help="the sweep's folder")
    parser.add_argument("--join", action="store_true", help="run trials until the sweep is over")
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="most trials at a time here; else what the sweep says"
    )
    arguments = parser.parse_args()
    from textbed.command import one_line_errors

    with one_line_errors():
        from textbed.runs import comparison_tables
        from textbed.sweeps.folder import SweepFolder
        from textbed.sweeps.launch import work
        from textbed.sweeps.report import make_report

        folder = SweepFolder.open(arguments.folder)
        if arguments.join:
            work(folder, "this worker has left; the others go on", arguments.at_once)
        else:
            report = make_report(folder)
            comparison_tables.show(report.tables, report.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
