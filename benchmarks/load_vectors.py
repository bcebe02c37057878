"""Reading a GloVe-format text file for a vocabulary beside gensim's loader, in turn, on the same file.

    python benchmarks/load_vectors.py [--rows 400000] [--width 300] [--words 50000] [--repeats 3]

Makes the file (about 1 GB with the default sizes; kept in --folder for the next time) with the words drawn by
a seed. Ours reads the rows of the vocabulary into a matrix, first without a cache, then cold, which fills it,
then warm; gensim reads the whole file, as it knows no vocabulary, and the rows are taken from it outside of
its time. All read the file from the memory of the system, as it is read once beforehand. The figures must
agree to the last bit of float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import gensim
import numpy as np
from measuring import CLOCKS, Results, apart, at_least_one, options, read

from textbed.embedding import vectors


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


def ours(
    path: Path, words: list[str], cache: Path | None, clock: str
) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, which words have a row, and a thousand or so of the rows."""
    start = CLOCKS[clock]()
    matrix, found = vectors.read(path, words, cache=cache)
    seconds = CLOCKS[clock]() - start
    return seconds, found, matrix[sample(found)]


def theirs(path: Path, words: list[str], clock: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The same by gensim."""
    start = CLOCKS[clock]()
    loaded = gensim.models.KeyedVectors.load_word2vec_format(str(path), no_header=True)
    seconds = CLOCKS[clock]() - start
    found = np.array([word in loaded for word in words])
    return seconds, found, loaded[[words[row] for row in sample(found)]]


def sample(found: np.ndarray) -> np.ndarray:
    return np.flatnonzero(found)[:: max(1, len(found) // 1000)]


def measure(path: Path, given: argparse.Namespace, results: Results) -> None:
    # One in ten of the vocabulary is not in the file.
    generator = np.random.default_rng(1)
    words = [f"w{row}" for row in generator.permutation(given.rows * 10 // 9)[: given.words]]
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, place in (("no cache", None), ("cold", Path(cache)), ("warm", Path(cache))):
                (seconds, found, rows), memory = apart(ours, path, words, place, given.clock)
                results.add("text", f"textbed, {name}", seconds=seconds, **memory)
        (seconds, known, vectors_of), memory = apart(theirs, path, words, given.clock)
        results.add("text", "gensim", seconds=seconds, **memory)
        assert np.array_equal(found, known)
        assert np.array_equal(rows, vectors_of)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=at_least_one, default=400_000, help="rows of the file")
    parser.add_argument("--width", type=at_least_one, default=300, help="numbers a row")
    parser.add_argument("--words", type=at_least_one, default=50_000, help="words of the vocabulary")
    parser.add_argument("--folder", type=Path, help="where the file is kept; a temporary one by default")
    given = read(parser, {"rows": 2000, "width": 8, "words": 500})
    results = Results("load_vectors", given, ["numpy", "pyarrow", "gensim"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"textbed-vectors-{given.rows}x{given.width}.txt"
        if not path.exists():
            print(f"writing {path}", file=sys.stderr)
            write(path, given.rows, given.width)
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
        measure(path, given, results)
    results.ratio("gensim / cold", ("text", "gensim"), ("text", "textbed, cold"), aim=">= 10")
    results.ratio("gensim / no cache", ("text", "gensim"), ("text", "textbed, no cache"))
    results.aim("warm, seconds", results.median("text", "textbed, warm"), "< 0.2")
    results.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
