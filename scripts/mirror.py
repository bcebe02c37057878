"""Fill a folder with data sets of the Hugging Face hub, for machines without internet.

    python scripts/mirror.py stanfordnlp/imdb SetFit/sst2 --to DIR

writes DIR/stanfordnlp/imdb/train.parquet and so on, with the class names in the files. Copy DIR to the other
machine and train there with data.mirror=DIR (or TEXTBED_MIRROR=DIR). A configuration goes to a folder of its
own, DIR/ID/CONFIG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from textbed.data.hub import mirror
from textbed.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="+", metavar="ID", help="id of a data set, such as stanfordnlp/imdb")
    parser.add_argument(
        "--to", required=True, type=Path, metavar="DIR", help="folder to fill; made if missing"
    )
    parser.add_argument("--config", help="configuration, for data sets that have several")
    parser.add_argument("--revision", help="branch, tag or commit; the newest by default")
    arguments = parser.parse_args()
    try:
        for name in arguments.ids:
            for path, rows in mirror(name, arguments.to, arguments.config, arguments.revision).items():
                print(f"{path}: {rows:,} rows")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
