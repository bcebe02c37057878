"""Reading a GloVe-format text file for a vocabulary beside gensim's loader, in turn, on the same file.

    python benchmarks/load_vectors.py [--rows 400000] [--width 300] [--words 50000] [--repeats 3]

Makes the file (about 1 GB with the default sizes; kept in --folder for the next time) with the words drawn by
a seed. Ours reads the rows of the vocabulary into a matrix, first without and then with its cache; gensim
reads the whole file, as it knows no vocabulary, and the rows are taken from it outside of its time. Both read
the file from the memory of the system, as it is read once beforehand. The figures must agree to the last bit
of float32. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import gensim
import numpy as np
import pyarrow as pa
from machine import processor

from textbed.embedding.vectors import read


def write(path: Path, rows: int, width: int) -> None:
    """Write rows as GloVe's files have them: five decimals, about 8.5 bytes a number."""
    generator = np.random.default_rng(0)
    # A million numbers in writing, drawn from again and again: formatting each anew would take minutes.
    numbers = np.array([f"{value:.5f}" for value in generator.normal(scale=0.4, size=1_000_000)], object)
    temporary = path.with_suffix(".part")
    with temporary.open("w") as file:
        for row in range(rows):
            at = int(generator.integers(len(numbers) - width))
            file.write(f"w{row} {' '.join(numbers[at : at + width])}\n")
    temporary.rename(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=400_000, help="rows of the file")
    parser.add_argument("--width", type=int, default=300, help="numbers a row")
    parser.add_argument("--words", type=int, default=50_000, help="words of the vocabulary")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs, in turn")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the file is")
    given = parser.parse_args()
    if min(given.rows, given.width, given.words, given.repeats) < 1:
        print("--rows, --width, --words and --repeats must be at least 1", file=sys.stderr)
        return 2
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / f"textbed-vectors-{given.rows}x{given.width}.txt"
    if not path.exists():
        print(f"writing {path}", flush=True)
        write(path, given.rows, given.width)
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass
    # Every eighth word or so is in the file; one in ten of the vocabulary is not.
    generator = np.random.default_rng(1)
    words = [f"w{row}" for row in generator.permutation(given.rows * 10 // 9)[: given.words]]
    times: dict[str, list[float]] = {"without_cache": [], "cold": [], "cached": [], "gensim": []}
    for repeat in range(given.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, place in (("without_cache", None), ("cold", Path(cache)), ("cached", Path(cache))):
                start = time.perf_counter()
                matrix, found = read(path, words, cache=place)
                times[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = gensim.models.KeyedVectors.load_word2vec_format(str(path), no_header=True)
        times["gensim"].append(time.perf_counter() - start)
        for row in np.flatnonzero(found)[:: max(1, given.words // 1000)]:
            assert np.array_equal(theirs[words[row]], matrix[row]), words[row]
        assert sum(word in theirs for word in words) == found.sum()
        del theirs
        print(
            f"repeat {repeat + 1}: { {name: round(done[-1], 3) for name, done in times.items()} }", flush=True
        )
    medians = {name: statistics.median(done) for name, done in times.items()}
    result = {
        "benchmark": "load_vectors",
        "rows": given.rows,
        "width": given.width,
        "words": given.words,
        "found": int(found.sum()),
        "megabytes": round(path.stat().st_size / 1e6),
        "repeats": given.repeats,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["gensim"] / medians["cold"], 1),
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "gensim": gensim.__version__,
        },
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
