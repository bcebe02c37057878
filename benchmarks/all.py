"""All benchmarks, one after the other, and the table of what they were to reach.

    python benchmarks/all.py [--only bag,prediction] [--out FILE] [options of a benchmark, for all of them]

``--out`` collects the JSON lines. A benchmark that fails is named at the end, and the others run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import HERE, names, options


def table(found: list[dict[str, Any]]) -> str:
    """The aims as Markdown."""
    lines = ["| benchmark | figure | is | aim | met |", "|---|---|--:|--:|---|"]
    for result in found:
        for name, aim in result["aims"].items():
            met = "yes" if aim["met"] else "no"
            lines.append(f"| {result['benchmark']} | {name} | {aim['is']:g} | {aim['aim']} | {met} |")
        for side in result["missing"]:
            lines.append(f"| {result['benchmark']} | {side} | not measured | | |")
    return "\n".join(lines)


def main() -> int:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", metavar="NAME,...", help=f"some of {', '.join(names())}")
    own.add_argument("--out", type=Path, metavar="FILE", help="file of JSON lines to add to")
    parser = options(__doc__, parents=[own])
    given = parser.parse_args()
    _, passed_on = own.parse_known_args()
    chosen = given.only.split(",") if given.only else names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"--only {','.join(sorted(unknown))}: expected some of {', '.join(names())}")
    found, failed = [], []
    for name in chosen:
        print(f"== {name}", flush=True)
        lines = []
        command = [sys.executable, str(HERE / f"{name}.py"), *passed_on]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            failed.append(name)
            continue
        found.append(json.loads(lines[-1]))
        if given.out:
            with given.out.open("a") as file:
                file.write(lines[-1])
    print(f"\n{table(found)}")
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
