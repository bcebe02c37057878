"""The figures of a run's model again: on its own splits, or on other data.

    python scripts/evaluate.py RUN                                       its test split
    python scripts/evaluate.py RUN split=validation
    python scripts/evaluate.py RUN data=csv data.path=other.csv          all rows of another file
    python scripts/evaluate.py RUN data=imdb split=test trainer=gpu

Classes of other data are matched by name; one that the model does not know is an error. The figures are
shown, and written into the run folder, evaluations/TIME-SPLIT.json; metrics.json stays as it is. On the CPU
the test split gives what metrics.json says, to the last bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    from textbed.command import add_import, import_own, one_line_errors

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="split=..., and keys of data, trainer and threads"
    )
    add_import(parser)
    arguments = parser.parse_args()

    with one_line_errors():
        import_own(arguments.modules)
        from textbed.runs.evaluation import evaluate
        from textbed.runs.summary import show_result
        from textbed.training import quieten

        chosen = [one for one in arguments.overrides if one.startswith("split=")]
        others = [one for one in arguments.overrides if one not in chosen]
        split = chosen[-1].removeprefix("split=") if chosen else None
        quieten()
        figures, by_class, file = evaluate(arguments.run, split, others)
        shown = {f"test/{name.partition('/')[2]}": value for name, value in figures.items()}
        note = f"written to {file}" if file else "nothing was kept: evaluations/ of the run cannot be written"
        show_result(shown, Path(arguments.run), notes=[note], per_class=by_class, split=split or "test")
        if file:
            print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
