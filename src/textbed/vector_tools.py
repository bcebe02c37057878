"""What ``scripts/vectors.py`` does: look into files of vectors, convert, train and distil them.

Each function answers one verb and returns the lines to show; mistakes are :class:`UserError`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textbed.data.records import written_atomically
from textbed.embedding.vectors import open_vectors, read
from textbed.embedding.vectors.files import BLOCK, Batch, Source, opened, shown
from textbed.errors import UserError, nearest
from textbed.runs.folder import say

ENDINGS = (".txt", ".vec", ".npz", ".safetensors")


# info


def info(path: str, first: int = 10, data: Sequence[str] = (), case: Sequence[str] = ("exact",)) -> list[str]:
    """Format, rows, width, first words and norms of a file; with ``data`` how much of a data set it covers.

    Reads the whole file, and once more where words come twice; holds its words in memory.

    Args:
        first: how many words to show; 0 for none.
        data: overrides of the configuration that choose a data set, such as ``data=mr``; empty for none.
    """
    _at_least("--first", first, 0)
    source = open_vectors(path)
    rows = 0
    words: list[bytes] = []
    seen: set[bytes] = set()
    again: dict[bytes, int] = {}
    norms = []
    for batch in source.stream(None):
        rows += len(batch.words)
        for word in batch.words:
            if word in seen:
                again[word] = 0
            seen.add(word)
        words += batch.words[: first - len(words)] if len(words) < first else []
        norms.append(np.linalg.norm(batch.vectors, axis=1))
    norm = np.concatenate(norms) if norms else np.zeros(1)
    named = ", ".join(word.decode(errors="replace") for word in words)
    quantiles = np.quantile(norm, [0, 0.5, 1])
    lines = [
        f"file     {path}",
        f"format   {source.format}",
        f"rows     {rows:,} of {source.peek()[1]:,} numbers",
        *([f"words    {named}{', …' if rows > len(words) else ''}"] if first else []),
        f"norms    {quantiles[0]:.3g} to {quantiles[2]:.3g}, median {quantiles[1]:.3g}",
    ]
    if source.composes:
        parts = "pieces" if source.pieces else "character n-grams"
        lines.append(f"beyond   words that it does not hold are made of their {parts}")
    if again:
        lines.append(f"twice    {_repeated(source, again)}")
    if data:
        lines += _coverage(path, data, case)
    elif source.doubt is not None:
        say(source.doubt)  # coverage reads the file as training does, and says so itself
    return lines


def _repeated(source: Source, words: Mapping[bytes, int]) -> str:
    """A line on words that come more than once, and whether they do with the same numbers."""
    first: dict[bytes, tuple[int, np.ndarray]] = {}
    same: list[tuple[bytes, int]] = []
    other: list[tuple[bytes, int]] = []
    for batch in source.stream(words):
        for word, number, vector in zip(*batch, strict=True):
            if word not in first:
                first[word] = number, vector
            else:
                (same if np.array_equal(first[word][1], vector) else other).append((word, number))
    word, number = (other or same)[0]
    where = f"'{shown(word)}' in {source.unit}s {first[word][0]:,} and {number:,}"
    come = f"{len(words):,} {'word comes' if len(words) == 1 else 'words come'} more than once"
    if not other:
        return f"{come}, with the same numbers each time, such as {where}"
    differ = len({word for word, _ in other})
    return (
        f"{come}, {differ:,} with other numbers than before, such as {where}; a training run that looks it "
        f"up is refused: remove one {source.unit}, or keep the first of each with convert"
    )


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{option} {value}: expected a whole number of at least {least}")


def _coverage(path: str, overrides: Sequence[str], case: Sequence[str]) -> list[str]:
    """Shares of the words, and of each split's tokens, that have a vector; the commonest that have none."""
    data, cache = _corpus(overrides)
    tokens = data.tokenizer.tokens
    special = (data.tokenizer.pad_id, data.tokenizer.unk_id)
    pieces = data.tokenizer.kind == "subwords"
    _, found = read(path, tokens, special=special, case=case, pieces=pieces, cache=cache, tell=say)
    own = np.array([row not in special for row in range(len(tokens))])
    lines = [
        f"words    {found[own].mean():.1%} of the {own.sum():,} words of the training split have a vector"
    ]
    for name, rows in data.splits.items():
        counts = np.zeros(len(tokens), np.int64)
        for column in data.encoded[rows.split]:
            for begin in range(0, len(rows.rows), 8192):
                counts += np.bincount(
                    column.gather(rows.rows[begin : begin + 8192])[0], minlength=len(tokens)
                )
        share = counts[found & own].sum() / max(counts.sum(), 1)
        lines.append(f"tokens   {share:.1%} of the {counts.sum():,} tokens of {name} have one")
        if name == "train":
            lacking = np.flatnonzero(~found & own)
            common = lacking[np.argsort(-counts[lacking], kind="stable")][:10]
            lines.append(f"without  {', '.join(tokens[row] for row in common) or 'none'}")
    return lines


def _corpus(overrides: Sequence[str]) -> tuple[Any, Path]:
    """The data module of a composed configuration, set up, and its cache."""
    from hydra import compose, initialize_config_dir

    from textbed import config
    from textbed.data.datamodule import TextDataModule

    configs = Path.cwd() / "configs"
    if not configs.is_dir():
        configs = Path(__file__).resolve().parents[2] / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        cfg = config.check(compose("train", ["embedding=random", *overrides]))
    cache = Path(cfg.paths.cache)
    data = TextDataModule(cfg.data, cfg.tokenizer, cache)
    data.setup()
    return data, cache


# convert


def convert(path: str, to: Path) -> list[str]:
    """Write all rows of a file in another format, chosen by the ending of ``to``: .txt or .vec (word2vec
    text), .npz, .safetensors. Of a word that comes twice the first row is kept.

    Takes the memory of the table for .npz and .safetensors, of a block for text.
    """
    check_output(to)
    source = open_vectors(path)
    seen: set[bytes] = set()
    skipped = 0

    def rows() -> Iterator[Batch]:
        nonlocal skipped
        for batch in source.stream(None):
            kept = []
            for row, word in enumerate(batch.words):
                if word not in seen:
                    seen.add(word)
                    kept.append(row)
            skipped += len(batch.words) - len(kept)
            if len(kept) == len(batch.words):
                yield batch
            else:
                yield Batch(
                    [batch.words[row] for row in kept],
                    [batch.numbers[row] for row in kept],
                    batch.vectors[kept],
                )

    count = write(to, rows(), source.peek()[1])
    if source.doubt is not None:
        say(source.doubt)
    lines = [f"{to}: {count:,} rows of {source.peek()[1]:,} numbers, from {source.format}"]
    if skipped:
        lines.append(f"{skipped:,} rows of words that came before were left out")
    return lines


def check_output(to: Path) -> None:
    """Raise UserError for an output of an unknown ending."""
    if to.suffix == ".bin":
        raise UserError(
            f"--to {to}: .bin, word2vec's or fastText's binary format, cannot be written; expected a file "
            f"that ends in {', '.join(ENDINGS)}"
        )
    if to.suffix not in ENDINGS:
        raise UserError(
            f"--to {to}: expected a file that ends in {', '.join(ENDINGS)}.{nearest(to.suffix, ENDINGS)}"
        )


def write(to: Path, rows: Iterator[Batch], width: int) -> int:
    """Write batches of rows to a file of vectors, whole or not at all, and return how many there were.

    Raises:
        UserError: a word with white space, which word2vec text cannot hold; or the place cannot be written.
    """
    with written_atomically(to, "--to") as temporary:
        if to.suffix in (".txt", ".vec"):
            return _write_text(temporary, rows, width)
        batches = list(rows)
        words = [word.decode() for batch in batches for word in batch.words]
        matrix = np.concatenate([np.zeros((0, width), np.float32), *(batch.vectors for batch in batches)])
        with temporary.open("wb") as file:
            if to.suffix == ".npz":
                np.savez(file, words=np.array(words, dtype=str), vectors=matrix)
            else:
                header = json.dumps(
                    {
                        "__metadata__": {"words": json.dumps(words)},
                        "vectors": {
                            "dtype": "F32",
                            "shape": list(matrix.shape),
                            "data_offsets": [0, matrix.nbytes],
                        },
                    }
                ).encode()
                header += b" " * (-len(header) % 8)
                file.write(len(header).to_bytes(8, "little") + header)
                file.write(matrix.astype("<f4").data)
        return len(words)


def _write_text(path: Path, rows: Iterator[Batch], width: int) -> int:
    """word2vec text: each number in the fewest digits that give the same float32 again."""
    count = 0
    with path.open("wb") as file:
        file.write(b" " * 30 + b"\n")  # room for the counts, once they are known
        for batch in rows:
            for word, number, vector in zip(*batch, strict=True):
                if not word or any(blank in word for blank in (b" ", b"\t", b"\n", b"\r")):
                    raise UserError(
                        f"row {number:,} is of the word {word.decode()!r}, and word2vec text holds none that "
                        "is empty or has white space; write .npz or .safetensors"
                    )
                file.write(word + b" " + " ".join(map(str, vector)).encode() + b"\n")
                count += 1
        file.seek(0)
        file.write(f"{count} {width}".encode())
    return count


# train


def train(
    texts: Sequence[Path],
    to: Path,
    data: Sequence[str] = (),
    method: str = "word2vec",
    **settings: Any,
) -> list[str]:
    """Train word2vec or fastText vectors on text files, a document a line, or on a data set's training split.

    The words are those of the default word tokenizer (for ``data`` of the configuration's). ``.bin`` writes
    fastText's own format, with its subwords.
    """
    from textbed.embedding.vectors import corpus

    for name, least in (("dim", 1), ("min_count", 1), ("epochs", 1), ("window", 1), ("seed", 0)):
        if name in settings:
            _at_least(f"--{name.replace('_', '-')}", settings[name], least)
    if to.suffix == ".bin":
        if method != "fasttext":
            raise UserError(
                f"--to {to}: only --method fasttext writes .bin; give one of {', '.join(ENDINGS)}"
            )
    else:
        check_output(to)
    if bool(texts) == bool(data):
        raise UserError("train: give text files, or a data set with --data, and not both")
    if data:
        module, _ = _corpus(data)
        names = module.tokenizer.tokens

        def documents() -> Iterator[list[str]]:
            return ([names[row] for row in ids.tolist()] for ids in module.train_documents())
    else:
        for path in texts:
            if not path.is_file():
                raise UserError(f"{path}: there is no such text file")

        def documents() -> Iterator[list[str]]:
            return _documents(texts)

    model = corpus.train(documents, method=method, **settings)
    vectors = model.wv
    if to.suffix == ".bin":
        from gensim.models.fasttext import save_facebook_model

        with written_atomically(to, "--to") as temporary:
            save_facebook_model(model, str(temporary))
    else:
        words = [word.encode() for word in vectors.index_to_key]
        batch = Batch(words, list(range(1, len(words) + 1)), np.asarray(vectors.vectors, np.float32))
        write(to, iter([batch]), vectors.vector_size)
    return [f"{to}: {len(vectors):,} words of {vectors.vector_size:,} numbers, {method}"]


def _documents(texts: Sequence[Path]) -> Iterator[list[str]]:
    """The words of each line of text files, packed or not."""
    import pyarrow as pa

    from textbed.data.words import WordSettings, WordSplitter

    split = WordSplitter(WordSettings())
    for path in texts:
        rest = b""
        with opened(path) as stream:
            while True:
                block = stream.read(BLOCK)
                lines = (rest + block).split(b"\n")
                rest = lines.pop() if block else b""
                try:
                    texts_of = pa.array([line.decode() for line in lines if line.strip()], pa.large_string())
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}: is not UTF-8 text ({error.reason})") from None
                if len(texts_of):
                    words = split(texts_of)
                    names = words.distinct.to_pylist()
                    ends = np.cumsum(words.counts)
                    for ids in np.split(words.tokens, ends[:-1]):
                        yield [names[row] for row in ids.tolist()]
                if not block:
                    break


# distill

PACKAGES = ("model2vec[distill,quantization]",)  # without the second its distillation cannot be imported
DISTIL = """
import sys
from model2vec.distill import distill
model, to, dim = sys.argv[1:4]
distill(model_name=model, pca_dims=int(dim)).save_pretrained(to)
"""


def distill(model: str, to: Path, dim: int = 256, environment: Path | None = None) -> list[str]:
    """Turn a sentence encoder into a static table with model2vec, in an environment of its own.

    model2vec's distillation asks for other versions of transformers and its kin than training does, so it
    gets a virtual environment (``environment``; made at the first call, some minutes and GB, and kept).

    Args:
        model: a folder, or OWNER/NAME on the hub.
        to: folder to write, which ``embedding.vectors`` reads.
        dim: columns that are kept of the encoder's.
    """
    if to.exists():
        raise UserError(f"--to {to}: is there already; choose another folder, or remove it")
    _at_least("--dim", dim, 1)
    place = environment or Path.home() / ".cache" / "textbed" / "distill-environment"
    python = place / "bin" / "python"
    ready = place / "ready"
    if not ready.is_file() or ready.read_text().split() != list(PACKAGES):
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(place)], "making the environment")
        _run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], "installing model2vec")
        ready.write_text("\n".join(PACKAGES) + "\n")
    local = str(Path(model).resolve()) if Path(model).exists() else model
    temporary = to.with_name(f".{to.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _run([str(python), "-c", DISTIL, local, str(temporary), str(dim)], f"distilling {model}")
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    rows, width = open_vectors(to).peek()
    return [f"{to}: {rows:,} rows of {width:,} numbers; use it with embedding.vectors={to}"]


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.strip().split("\n") if line.strip()]
        raise UserError(f"{what} failed: {said[-1][:300] if said else f'exit code {done.returncode}'}")


# neighbours


def neighbours(path: str, words: Sequence[str], count: int = 10) -> list[str]:
    """The words whose vectors have the largest cosine with each of ``words``.

    Reads the file twice: for the words, then for all others, a block at a time. Words that are not in the
    file are made of their parts, where the format can.
    """
    _at_least("--count", count, 1)
    source = open_vectors(path)
    matrix, found = read(path, (), more=words, tell=say)  # none of them is a vocabulary that must be covered
    missing = [word for word, there in zip(words, found, strict=True) if not there]
    if missing:
        hints = "".join(_near(source, word) for word in missing)
        raise UserError(f"{path}: has no vector for {', '.join(map(repr, missing))}.{hints}")
    asked = _unit(matrix)
    best: list[list[tuple[float, str]]] = [[] for _ in words]
    for batch in source.stream(None):
        cosines = asked @ _unit(batch.vectors).T
        for row, word in enumerate(words):
            order = np.argsort(-cosines[row], kind="stable")[: count + 1]
            near = [(float(cosines[row][at]), batch.words[at].decode(errors="replace")) for at in order]
            best[row] = sorted(best[row] + [item for item in near if item[1] != word], reverse=True)[:count]
    return [
        line
        for word, near in zip(words, best, strict=True)
        for line in (word, *(f"  {cosine:.3f}  {other}" for cosine, other in near))
    ]


def _near(source: Source, word: str) -> str:
    """`` Did you mean 'x'?`` for a word of the file: one of another case, else one with a slip in it.

    Only words of the same first letter and about the same length are weighed against each other, which costs
    more than reading them did.
    """
    words = (other.decode(errors="replace") for batch in source.stream(None) for other in batch.words)
    alike = [
        other for other in words if other[:1].lower() == word[:1].lower() and abs(len(other) - len(word)) <= 2
    ]
    same = next((other for other in alike if other.lower() == word.lower()), None)
    return nearest(word, alike) if same is None else f" Did you mean '{same}'?"


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
