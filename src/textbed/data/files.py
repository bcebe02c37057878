"""Which local file belongs to which split."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from textbed.errors import UserError, nearest

# What each split may be called in a file name or on the hub, the first being our own name for it.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
EXTENSIONS = {
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tab", ".tsv.gz"),
    "json": (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz"),
    "parquet": (".parquet",),
}


def _is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _existing(text: object, key: str) -> list[Path]:
    """The files that a file name or glob stands for, sorted."""
    path = Path(os.path.expanduser(str(text)))
    if path.is_file():
        return [path]
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder; name the file")
    if _is_glob(str(text)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not found:
            raise UserError(f"{key}: no file matches {path} (seen from {Path.cwd()})")
        return found
    raise missing(path, key)


def missing(path: Path, key: str) -> UserError:
    """The error for a path that does not exist, with the nearest name beside it."""
    near = ""
    if path.parent.is_dir():
        near = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    seen = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
    return UserError(f"{key}: no file or folder {path}{seen}.{near}")


def _complete(paths: list[Path], key: str) -> list[Path]:
    """Check that numbered shards (``train-00000-of-00003.parquet``) are all there."""
    for path in paths:
        if match := re.search(r"-\d{5}-of-(\d{5})\.", path.name):
            if len(paths) != int(match[1]):
                raise UserError(
                    f"{key}: {path.parent} holds {len(paths)} of {int(match[1])} files like {path.name}; get "
                    "the rest"
                )
            break
    return paths


def find_in_folder(folder: Path, extensions: Iterable[str], key: str = "data.path") -> dict[str, list[Path]]:
    """Files by split in ``folder`` or its ``data`` folder: ``<split><ext>`` or ``<split>-*<ext>``; an empty
    dict where there are none.

    Raises:
        UserError: two files claim the same split, or shards are missing.
    """
    for place in (folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for split, names in SPLIT_NAMES.items():
            claims = []
            for name in names:
                for extension in extensions:
                    if (place / f"{name}{extension}").is_file():
                        claims.append([place / f"{name}{extension}"])
                    if shards := sorted(place.glob(f"{name}-*{extension}")):
                        claims.append(_complete(shards, key))
            if len(claims) > 1:
                both = " and ".join(claim[0].name for claim in claims)
                raise UserError(
                    f"{key}: {both} in {place} both look like the {split} split; name one "
                    f"(data.path={{{split}: FILE, …}})"
                )
            if claims:
                found[split] = claims[0]
        if found:
            return found
    return {}


def split_of(name: str) -> str | None:
    """Our name for a split that a source calls ``name``, or None for one that is none of the three."""
    for split, names in SPLIT_NAMES.items():
        if name.lower() in names:
            return split
    return None


def find_splits(path: Any, kind: str) -> dict[str, list[Path]]:
    """Files by split for ``data.path``: a file or glob (all of it train), a folder, or a mapping of split to
    file, glob or list.

    Raises:
        UserError: nothing there, or it is not clear which file is which split.
    """
    if path in (None, ""):
        raise UserError(
            f"data.path: missing; data.source={kind} needs a file, a folder with train{EXTENSIONS[kind][0]}, "
            f"or a mapping such as data.path={{train: a.csv, test: b.csv}}"
        )
    if isinstance(path, Mapping):
        result = {}
        for name, value in path.items():
            split = split_of(str(name))
            if split is None:
                raise UserError(
                    f"data.path.{name}: no such split; there are train, validation, "
                    f"test.{nearest(name, SPLIT_NAMES)}"
                )
            values = [value] if isinstance(value, (str, os.PathLike)) else list(value)
            result[split] = [file for item in values for file in _existing(item, f"data.path.{name}")]
        return result
    folder = Path(os.path.expanduser(str(path)))
    if not folder.is_dir():
        return {"train": _existing(path, "data.path")}
    found = find_in_folder(folder, EXTENSIONS[kind])
    if not found:
        inside = sorted(entry.name for entry in folder.iterdir())
        listing = ", ".join(inside[:8]) + (", …" if len(inside) > 8 else "") if inside else "nothing"
        raise UserError(
            f"data.path: {folder} holds no train{EXTENSIONS[kind][0]}, validation… or test… (it holds "
            f"{listing}); name the files: data.path={{train: {folder}/FILE}}"
        )
    return found
