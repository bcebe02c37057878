"""The built-in data set: docstrings of the installed libraries, where the class is the library.

It is real English that lies on every machine once the packages are installed; nothing is downloaded or
shipped. Sources are parsed with ``ast`` and never imported. Doctests and each library's own names are taken
out, so that the task is language and not a keyword; whole modules go to one split, so that near-twins
(overloads, aliases) do not straddle it.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import json
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from textbed.errors import UserError, nearest

# Libraries that every installation has, because textbed or what it depends on needs them, and that are rich
# in prose. `stdlib` stands for Python's standard library.
DEFAULT_CLASSES = (
    "stdlib",
    "torch",
    "numpy",
    "pandas",
    "sympy",
    "networkx",
    "matplotlib",
    "lightning",
    "torchmetrics",
    "huggingface_hub",
    "wandb",
    "fontTools",
)
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
MIN_WORDS = 8
DEFAULT_SIZE = 18_000
# What else a library calls itself or is called. The name itself is always taken out.
OWN_NAMES = {
    "stdlib": ("python", "cpython"),
    "torch": ("pytorch",),
    "numpy": ("np",),
    "pandas": ("pd",),
    "networkx": ("nx",),
    "matplotlib": ("mpl", "plt", "pyplot"),
    "lightning": ("pytorch_lightning", "pl"),
    "huggingface_hub": ("huggingface", "hugging face", "hf"),
    "wandb": ("w&b", "weights & biases", "weights and biases"),
    "sklearn": ("scikit-learn", "scikit learn"),
    "scipy": ("sp",),
    "PIL": ("pillow",),
}
# Tests and copies of other projects are no prose of the library's own.
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "__pycache__",
    "vendor", "_vendor", "vendored", "_vendored", "extern", "externals", "_vendored_packages",
}  # fmt: skip
VERSION = 1  # of this file's rules: raise it when the same libraries would give other documents

_DOCTEST = re.compile(r"^[ \t]*>>>.*\n?(?:^[ \t]*\S.*\n?)*", re.MULTILINE)
_SPACE = re.compile(r"[ \t]+")


def clean(text: str, names: Sequence[str]) -> str:
    """A docstring without doctests and without ``names``.

    A doctest goes from its prompt to the next blank line, so that what it prints goes as well. Names go in
    any case: those of five letters and more wherever they stand, since ``NetworkXError`` gives networkx away,
    shorter ones between characters that are no letters or digits (``np.sum`` becomes ``.sum``).
    """
    text = _DOCTEST.sub("", text.expandtabs())
    words = [re.escape(name) for name in sorted(names, key=len, reverse=True)]
    anywhere = [word for word in words if len(word) >= 5] or [r"(?!)"]
    alone = [word for word in words if len(word) < 5] or [r"(?!)"]
    pattern = rf"{'|'.join(anywhere)}|(?<![^\W_])(?:{'|'.join(alone)})(?![^\W_])"
    text = re.sub(pattern, "", text, flags=re.IGNORECASE)
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def docstrings_of(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in order; functions inside functions as well."""
    body = getattr(node, "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        value = body[0].value.value
        if isinstance(value, str):
            yield value
    for child in body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from docstrings_of(child)


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()


def split_of(library: str, module: str) -> str:
    """The split that a module belongs to; the same in every version of the library and on every machine."""
    point = int.from_bytes(_hash("split", library, module), "big") / 2**64
    for split, share in SHARES.items():
        if point < share:
            return split
        point -= share
    return "test"


def _sources(root: Path) -> list[tuple[str, Path]]:
    """``(path inside the library, file)`` of every Python file, in a shuffled but fixed order."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not name.startswith("test_") and not name.endswith("_test.py"):
                file = Path(folder, name)
                found.append((file.relative_to(root).as_posix(), file))
    return sorted(found, key=lambda item: _hash("order", item[0]))


def collect(library: str, root: Path, limit: int) -> list[tuple[str, str, str]]:
    """``(split, module, text)`` of at most ``limit`` documents of one library, each split up to its share.

    Modules are read in a fixed shuffled order until every split is full, so that a small share of a large
    library costs little.
    """
    names = (library, *OWN_NAMES.get(library, ()))
    room = {split: max(1, round(share * limit)) for split, share in SHARES.items()}
    seen: set[bytes] = set()
    result = []
    for module, file in _sources(root):
        split = split_of(library, module)
        if not room[split]:
            continue
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # templates, or syntax of another Python
        for text in docstrings_of(tree):
            # Half a surrogate pair, which an escape in the source can spell, is no text.
            text = clean(text.encode("utf-8", "replace").decode(), names)
            key = _hash(" ".join(text.split()))
            if key not in seen and len(text.split()) >= MIN_WORDS:
                seen.add(key)
                result.append((split, module, text))
                room[split] -= 1
                if not room[split]:
                    break
        if not any(room.values()):
            break
    return result


def _locate(name: str) -> Path:
    """The folder of a library's sources, found without importing it."""
    if name == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        installed = [module.name for module in pkgutil.iter_modules() if module.ispkg]
        raise UserError(
            f"data.classes: no installed library '{name}'; the default ones are "
            f"{', '.join(DEFAULT_CLASSES)}, and any installed package will "
            f"do.{nearest(name, ['stdlib', *installed])}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _version(name: str) -> str:
    if name == "stdlib":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(name)  # 0.2 s: only for names such as sklearn or PIL
        return metadata.version(owners[0]) if owners else "unknown"


def _collect_elsewhere(library: str, root: Path, limit: int) -> list[tuple[str, str, str]]:
    """:func:`collect` in a Python process of its own.

    Parsing holds the interpreter's lock, and a plain process, unlike one of ``multiprocessing``, neither
    forks a threaded program nor runs the caller's main module again.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "textbed.data.docstrings", library, str(root), str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(
            f"reading the docstrings of {library} failed: "
            f"{done.stderr.decode(errors='replace').strip()[-500:]}"
        )
    return [tuple(item) for item in json.loads(done.stdout)]


def build(cache: Path, size: int | None = None, classes: Sequence[str] | None = None) -> Path:
    """Make the data set where the cache has it not, and return its folder of ``<split>.parquet`` files.

    Columns are ``text``, ``label`` (a ``ClassLabel``) and ``module``. Takes 5 to 10 s on two cores the first
    time, for the defaults.

    Args:
        size: documents in all, at most; every class gets an equal part of it, and less where its library has
            fewer.
        classes: names of installed libraries, or ``stdlib``; None for :data:`DEFAULT_CLASSES`.

    Raises:
        UserError: an unknown library, fewer than two, a library with next to no docstrings, or a size too
            small for them.
    """
    names = list(DEFAULT_CLASSES if classes is None else classes)
    size = DEFAULT_SIZE if size is None else size
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError(f"data.classes: {names} must be two or more different libraries")
    if size < 10 * len(names):
        raise UserError(
            f"data.size: {size} is too small; expected at least {10 * len(names)}, 10 documents a class"
        )
    roots = {name: _locate(name) for name in names}
    key = [VERSION, size, [(name, _version(name), str(roots[name])) for name in names]]
    folder = cache / "docstrings" / hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
    if folder.is_dir():
        return folder

    start = time.perf_counter()
    documents: dict[str, list[tuple[str, str, str]]] = {}

    def progress(text: str, end: str = "") -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end=end, file=sys.stderr, flush=True)
        elif end:
            print(text, file=sys.stderr, flush=True)

    def work(name: str) -> None:
        documents[name] = _collect_elsewhere(name, roots[name], size // len(names))
        progress(f"docstrings: read {len(documents)} of {len(names)} libraries")

    progress(f"docstrings: reading {len(names)} libraries, this once", end="\n")
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        list(pool.map(work, names))
    # A text that two libraries share has no one label.
    libraries = Counter(text for name in names for text in {text for _, _, text in documents[name]})
    rows: dict[str, list[tuple[str, int, str]]] = {split: [] for split in SHARES}
    for label, name in enumerate(names):
        kept = [item for item in documents[name] if libraries[item[2]] == 1]
        for split in SHARES:
            part = [(text, label, f"{name}/{module}") for where, module, text in kept if where == split]
            if not part:
                raise UserError(
                    f"data.classes: '{name}' has too few docstrings to fill a {split} split ({len(kept)} in "
                    "all)"
                )
            rows[split] += part
    _write(folder, rows, names)
    counts = ", ".join(f"{split} {len(part):,}" for split, part in rows.items())
    progress(
        f"docstrings: {counts} documents in {len(names)} classes, {time.perf_counter() - start:.1f} s, kept "
        f"in {folder}",
        "\n",
    )
    return folder


def _write(folder: Path, rows: dict[str, list[tuple[str, int, str]]], names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    value = {"dtype": "string", "_type": "Value"}
    features = {"text": value, "label": {"names": names, "_type": "ClassLabel"}, "module": value}
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64()), ("module", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        for split, part in rows.items():
            columns = list(zip(*part, strict=True))
            pq.write_table(pa.table(columns, schema=schema), temporary / f"{split}.parquet")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another process that started with us was faster, and wrote the same
                raise
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}): choose another place (paths.cache)"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    gc.disable()  # syntax trees hold no cycles worth looking for; parsing is twice as fast without
    library, root, limit = sys.argv[1:]
    json.dump(collect(library, Path(root), int(limit)), sys.stdout)
