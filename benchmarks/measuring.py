"""What the benchmarks share: their options, sides in processes of their own, and the JSON line at the end.

    python benchmarks/NAME.py [--mirror DIR] [--vectors DIR] [--peer-python PYTHON] [--repeats N]
        [--clock wall|cpu] [--threads N] [--tiny]

A benchmark compares sides, such as this package and a peer, in one or more cases, such as tables of several
sizes. In each repeat every side runs once, one after the other; a ratio is the median over the repeats of the
ratio within one. The last line on standard output is the result, in JSON:

    benchmark   its name
    settings    sizes, repeats, the clock, the threads
    cases       case -> side -> figure: the median over the repeats, of megabytes the largest
    ratios      name -> one side's figure over another's, or one case's over another's
    aims        name -> {"aim": ">= 3", "is": 4.2, "met": true}; none with ``--tiny``
    missing     side -> why it was not measured, such as a peer that is not installed
    machine     cores, those of them that may be used, memory, processor, load before anything ran
    versions    of Python and the packages that were measured
    peers       of the peers' interpreter: versions of Python and of what it has of the peers

``peak_mb`` is the largest memory of a whole process. Sides that need no interpreter of their own run in a
copy of the process that began; ``grown_mb`` is what they took above what that held. Only Python's own library
is imported here: a peer's interpreter has nothing else in common with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = {"all", "documents", "fasttext_lines", "first_step", "machine", "measuring", "sweep_job", "trained"}
"""What the benchmarks are made of: the other files of the folder are benchmarks."""
# Packages of the peers whose versions are told: fastText is installed by either name.
FASTTEXT = ["fasttext-wheel", "fasttext", "numpy"]
MODEL2VEC = ["model2vec", "torch", "numpy"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def names() -> list[str]:
    """Of the benchmarks."""
    return sorted({path.stem for path in HERE.glob("*.py")} - PARTS)


# ------------------------------------------------------------------------------------------------------------
# Options
# ------------------------------------------------------------------------------------------------------------


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def options(
    doc: str | None, repeats: int = 3, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """The options that all benchmarks take, whether they have a use for each or not."""
    parser = argparse.ArgumentParser(
        description=(doc or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=list(parents),
    )
    parser.add_argument(
        "--mirror", type=Path, metavar="DIR", help="folder of data sets, with imdb/train.parquet in it"
    )
    parser.add_argument(
        "--vectors", type=Path, metavar="DIR", help="static table of vectors, as model2vec lays it out"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers"
    )
    parser.add_argument("--repeats", type=at_least_one, default=repeats, help="times that each side runs")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a machine that is busy"
    )
    parser.add_argument("--threads", type=at_least_one, help="threads of each side; all cores by default")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="sizes that take seconds, to see that it runs: no figure counts, and none is held to an aim",
    )
    return parser


def read(
    parser: argparse.ArgumentParser, tiny: Mapping[str, Any], given: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options as given; with ``--tiny`` the sizes in ``tiny`` and one repeat."""
    found = parser.parse_args(given)
    if found.tiny:
        vars(found).update(tiny, repeats=1)
    if found.mirror is not None and not (found.mirror / "imdb" / "train.parquet").is_file():
        parser.error(f"--mirror {found.mirror}: no imdb/train.parquet in it")
    if found.vectors is not None and not (found.vectors / "model.safetensors").is_file():
        parser.error(f"--vectors {found.vectors}: no model.safetensors in it")
    return found


# ------------------------------------------------------------------------------------------------------------
# Sides
# ------------------------------------------------------------------------------------------------------------


def peak_mb() -> float:
    """Largest memory of this process so far, in MB."""
    with contextlib.suppress(OSError, StopIteration):
        # getrusage would count what the process that started this one held
        lines = Path("/proc/self/status").read_text(errors="replace").split("\n")
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _run(function: Callable[..., Any], given: tuple[Any, ...], connection: Connection) -> None:
    before = peak_mb()
    connection.send((function(*given), {"peak_mb": peak_mb(), "grown_mb": peak_mb() - before}))


def apart(function: Callable[..., Any], *given: Any) -> tuple[Any, dict[str, float]]:
    """What the function returns in a copy of this process, and the megabytes of that copy.

    Nothing may have run on torch's threads in this process before.
    """
    if not hasattr(os, "fork"):
        raise SystemExit("needs a system on which processes can be copied, such as Linux")
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, given, other))
    process.start()
    other.close()
    try:
        return mine.recv()
    except EOFError:
        raise SystemExit("a side ended without a result, perhaps for want of memory") from None
    finally:
        process.join()


class Ended(NamedTuple):
    """What a command took."""

    wall: float
    cpu: float
    peak_mb: float
    out: str

    def seconds(self, clock: str) -> float:
        return self.wall if clock == "wall" else self.cpu


# Runs a command and says what it took. A small process: what starts a command counts as its memory.
_LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - begin
unit = 1e6 if sys.platform == "darwin" else 1e3
figures = [wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit]
print("\\n" + json.dumps([os.waitstatus_to_exitcode(status), *figures]))
"""


def command(
    words: Sequence[object], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Ended:
    """Run a command, of which the first word is a path.

    Raises:
        subprocess.CalledProcessError: it did not end with 0; ``stderr`` holds what it said.
    """
    texts = [str(word) for word in words]
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", _LAUNCHER, *texts],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        check=True,
    )
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, wall, cpu, peak = json.loads(last)
    out = out.rstrip("\n")
    if code:
        raise subprocess.CalledProcessError(code, texts, out, done.stderr)
    return Ended(wall, cpu, peak, out)


class Missing(Exception):
    """A peer that cannot be measured here; says why."""


def _threads(given: argparse.Namespace) -> dict[str, str]:
    """The environment in which libraries take as many threads as were asked for."""
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS") if given.threads else ()
    return {"TOKENIZERS_PARALLELISM": "true", **dict.fromkeys(names, str(given.threads))}


def ours(given: argparse.Namespace, script: str, *arguments: object) -> Any:
    """What a script of ``benchmarks/sides`` says in its last line, in JSON.

    It runs in a process of its own, whose memory is like a peer's. A tiny one is a copy of this process: it
    need not import anything anew.
    """
    words = [str(HERE / "sides" / f"{script}.py"), given.clock, *map(str, arguments)]
    if given.tiny:
        return json.loads(apart(_run_script, words)[0])
    return json.loads(command([sys.executable, *words], _threads(given)).out.rpartition("\n")[2])


def _run_script(words: list[str]) -> str:
    sys.argv = words
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(words[0], run_name="__main__")
    return said.getvalue().rstrip("\n").rpartition("\n")[2]


def peer_process(given: argparse.Namespace, script: str, *arguments: object) -> Ended:
    """What a script of ``benchmarks/sides``, run by the peers' interpreter, took as a whole.

    Raises:
        Missing: the interpreter has not what the script imports.
    """
    words = [given.peer_python, HERE / "sides" / f"{script}.py", given.clock, *arguments]
    try:
        return command(words, _threads(given))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().split("\n")
        if not lines[-1].startswith(("ModuleNotFoundError", "ImportError", "FileNotFoundError")):
            raise SystemExit(f"{script}: {error.stderr or error}") from None
        reason = f"{given.peer_python}: {lines[-1].partition(': ')[2]}; give --peer-python"
        raise Missing(reason) from None


def peer(given: argparse.Namespace, script: str, *arguments: object) -> Any:
    """What it says in its last line, in JSON. Raises as :func:`peer_process`."""
    return json.loads(peer_process(given, script, *arguments).out.rpartition("\n")[2])


def peer_versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that an interpreter has; of none if it has none."""
    asked = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {name: d.version for name in sys.argv[1:] for d in m.distributions(name=name)}\n"
        "print(json.dumps({'python': platform.python_version(), **found} if found else {}))"
    )
    try:
        return json.loads(command([python, "-c", asked, *packages]).out)
    except subprocess.CalledProcessError:
        return {}  # each of its sides says what is wrong with it


def accuracy(said: Sequence[Any], labels: Sequence[int]) -> float:
    """In per cent; a side may say a class as a number or as a text."""
    right = sum(str(name) == str(label) for name, label in zip(said, labels, strict=True))
    return 100 * right / len(labels)


def predicting(
    clock: str,
    bulk: Callable[[list[str]], Sequence[Any]],
    one: Callable[[str], None],
    texts: list[str],
    labels: list[int],
    singles: int,
) -> dict[str, dict[str, float]]:
    """What it takes a side to classify all texts at once, and a single one; its accuracy in per cent."""
    now = CLOCKS[clock]
    bulk(texts[:10])  # what the first call prepares is not of the time
    start = now()
    said = bulk(texts)
    seconds = now() - start
    peak = peak_mb()
    took = []
    for text in texts[:singles]:
        start = now()
        one(text)
        took.append(now() - start)
    return {
        "bulk": {
            "seconds": seconds,
            "documents_a_second": len(texts) / seconds,
            "accuracy": accuracy(said, labels),
            "peak_mb": peak,
        },
        "one": {"seconds": statistics.median(took), "peak_mb": peak_mb()},
    }


# ------------------------------------------------------------------------------------------------------------
# Results
# ------------------------------------------------------------------------------------------------------------


class Results:
    """The figures of a benchmark, repeat by repeat; made before anything is measured.

    ``packages`` are those of ours whose versions are told, ``peers`` those of the peers' interpreter.
    """

    def __init__(
        self, name: str, given: argparse.Namespace, packages: Sequence[str] = (), peers: Sequence[str] = ()
    ) -> None:
        self.name, self.given, self.machine = name, given, machine()
        self.peers = peer_versions(given.peer_python, peers) if peers else {}
        self.versions = {"python": platform.python_version()} | {
            package: importlib.metadata.version(package) for package in ("textbed", "torch", *packages)
        }
        self.cases: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.ratios: dict[str, float] = {}
        self.aims: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}

    def add(self, case: str, side: str, **figures: float) -> None:
        """Figures of one repeat."""
        kept = self.cases.setdefault(case, {}).setdefault(side, {})
        for name, value in figures.items():
            kept.setdefault(name, []).append(value)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{case}, {side}: {shown}", flush=True)

    def leave_out(self, side: str, why: object) -> None:
        """Say once that a side is not measured."""
        if side not in self.missing:
            self.missing[side] = str(why)
            print(f"{side}: not measured: {why}", flush=True)

    def ratio(
        self,
        name: str,
        over: tuple[str, str],
        under: tuple[str, str],
        aim: str | None = None,
        figure: str = "seconds",
    ) -> None:
        """One side's figure over another's, each named by case and side; nothing where one is missing."""
        try:
            above, below = (self.cases[case][side][figure] for case, side in (over, under))
        except KeyError:
            return
        ratio = statistics.median(a / b for a, b in zip(above, below, strict=True))
        self.note(name, ratio, aim)

    def note(self, name: str, ratio: float, aim: str | None = None) -> None:
        """What stands among the ratios, and what it is to be."""
        self.ratios[name] = rounded(ratio)
        if aim is not None:
            self.aim(name, ratio, aim)

    def aim(self, name: str, value: float, aim: str) -> None:
        """A figure and what it is to be, such as ``<= 0.7``; with ``--tiny`` nothing is to be anything."""
        if self.given.tiny:
            return
        sign, _, bound = aim.partition(" ")
        met = {"<=": value <= float(bound), ">=": value >= float(bound), "<": value < float(bound)}[sign]
        self.aims[name] = {"aim": aim, "is": rounded(value), "met": met}

    def median(self, case: str, side: str, figure: str = "seconds") -> float:
        return statistics.median(self.cases[case][side][figure])

    def show(self) -> None:
        """Print the JSON line."""
        settings = {
            name: value
            for name, value in vars(self.given).items()
            if value is not None and not isinstance(value, Path) and name != "peer_python"
        }
        settings.setdefault("threads", "default")
        settings["source"] = "mirror" if self.given.mirror else "made up"
        result = {
            "benchmark": self.name,
            "settings": settings,
            "cases": {
                case: {
                    side: {
                        name: rounded(max(values) if name.endswith("_mb") else statistics.median(values))
                        for name, values in figures.items()
                    }
                    for side, figures in sides.items()
                }
                for case, sides in self.cases.items()
            },
            "ratios": self.ratios,
            "aims": self.aims,
            "missing": self.missing,
            "machine": self.machine,
            "versions": self.versions,
            "peers": self.peers,
        }
        print(json.dumps(result), flush=True)


def rounded(value: float) -> float:
    """Four digits are more than a measurement has."""
    return float(f"{value:.4g}")
