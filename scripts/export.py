"""Write the model of a run on its own: its weights, its vocabulary, and what it is made of.

    python scripts/export.py RUN --to folder DIR         loads with textbed.load(DIR), no Hydra or Lightning
    python scripts/export.py RUN --to hub DIR            the same with a model card, to upload to a model hub
    python scripts/export.py RUN --to onnx DIR           a graph for ONNX runtimes, without textbed
    python scripts/export.py RUN --to torch.export DIR   a graph for torch, without textbed

A graph is compared with the model on the run's test documents before anything is written.

DIR is made. Checkpoints, record and predictions of the run stay where they are.
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
        "--to", required=True, choices=("folder", "hub", "onnx", "torch.export"), help="what to write"
    )
    parser.add_argument("out", metavar="DIR", type=Path, help="folder to write it into")
    add_import(parser)
    arguments = parser.parse_args()

    with one_line_errors():
        import_own(arguments.modules)
        from textbed.runs.export import export

        print("\n".join(export(arguments.run, arguments.to, arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
