"""A sweep that goes on or is over: how it stands and what it gave; or take part in it.

    python scripts/sweep.py runs/sweeps/SWEEP            its best trials, failures, comparison, pictures
    python scripts/sweep.py runs/sweeps/SWEEP --join     work on its trials too, here or on another machine
    CUDA_VISIBLE_DEVICES=2,3 python scripts/sweep.py runs/sweeps/SWEEP --join --at-once 2
    python scripts/sweep.py --join postgresql+psycopg://user@host/database --study SWEEP
    python scripts/sweep.py runs/sweeps/SWEEP --slurm 8 | sbatch    workers of SLURM; or --submitit 8, --ray

A worker needs the sweep's folder, the run folders and the data under the same paths as where the sweep began,
as on a shared file system; or, where the sweep has a database (sweep.storage), that and the project in the
current folder. It takes what is next, takes up what a dead worker left, and ends with the sweep. Ctrl-C ends
its trials, which wait for another. docs/sweeps.md tells more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from textbed.sweeps import clusters


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="SWEEP", help="the sweep's folder")
    parser.add_argument(
        "--join",
        nargs="?",
        const="",
        metavar="URL",
        help="run trials until the sweep is over; without the sweep's folder, by its database",
    )
    parser.add_argument("--study", metavar="NAME", help="the sweep's name in that database")
    parser.add_argument(
        "--dir", type=Path, metavar="LOCAL", help="where this machine keeps its part; runs/sweeps/NAME"
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="most trials at a time here; else what the sweep says"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a trial here")
    clusters.add_options(parser)
    arguments = parser.parse_args()
    if arguments.join and "://" not in arguments.join and arguments.folder is None:
        arguments.folder, arguments.join = Path(arguments.join), ""
    if bool(arguments.join) != bool(arguments.study) or bool(arguments.folder) == bool(arguments.join):
        parser.error("give either the sweep's folder, or --join URL and --study NAME")
    if arguments.dir and not arguments.study:
        parser.error("--dir goes with --join URL and --study NAME")
    from textbed.command import one_line_errors

    with one_line_errors():
        from textbed.runs import comparison_tables
        from textbed.sweeps.folder import SweepFolder
        from textbed.sweeps.launch import work
        from textbed.sweeps.report import make_report

        if arguments.join:
            folder = SweepFolder.of_database(arguments.join, arguments.study, arguments.dir)
        else:
            folder = SweepFolder.open(arguments.folder)
        command = [sys.executable, str(Path(__file__).absolute()), str(folder.path), "--join"]
        if clusters.is_asked(arguments) and not clusters.start(folder, arguments, command):
            return 0
        if arguments.join is not None:
            folder = clusters.joined(folder, arguments.threads)
        with folder.errors():
            if arguments.join is not None:
                work(folder, "this worker has left; the others go on", arguments.at_once)
            else:
                report = make_report(folder)
                comparison_tables.show(report.tables, report.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
