"""List runs by their folders: how they stand, and what they gave.

    python scripts/runs.py                                     all below runs/, the oldest first
    python scripts/runs.py runs/mr runs/sst2 head=gru seed=0   those for which this holds
    python scripts/runs.py 'runs/mr*' 'embedding=f*' --sort test/accuracy --show optimizer.lr
    python scripts/runs.py runs status=killed --paths          their folders alone, for other commands

KEY is a key of the configuration (optimizer.lr), a config group (head), a figure (test/accuracy) or a field
of run.json (host, git.revision). A run that says it is running while its process is gone is "killed".
Folders that are no whole runs are left out, with a line on standard error.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PATH | KEY=VALUE",
        help="folders or patterns (runs), and what must hold",
    )
    parser.add_argument("--sort", metavar="KEY", help="order by this; by the time of their start otherwise")
    parser.add_argument("--descending", action="store_true", help="greatest first")
    parser.add_argument("--show", metavar="KEY,...", default="", help="further columns")
    parser.add_argument("--paths", action="store_true", help="print the folders alone, one a line")
    arguments = parser.parse_args()
    from textbed.command import one_line_errors
    from textbed.runs import registry

    conditions = [word for word in arguments.words if "=" in word]
    with one_line_errors():
        found = registry.find([word for word in arguments.words if "=" not in word] or ["runs"])
        for line in found.left_out:
            print(f"left out: {line}", file=sys.stderr)
        runs = registry.select(found.runs, conditions)
        if arguments.sort:
            runs = registry.in_order(runs, arguments.sort, arguments.descending)
        elif arguments.descending:
            runs = runs[::-1]
        columns = [name for name in arguments.show.split(",") if name]
        for name in columns:
            registry.check_name(runs, name)
        if arguments.paths:
            print("\n".join(str(run.path) for run in runs))
        else:
            asked = [word.partition("=")[0] for word in conditions] + [arguments.sort or ""]
            registry.show(runs, [name for name in (*asked, *columns) if name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
