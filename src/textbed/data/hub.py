"""Data sets of the hub, from a mirror folder or the network, and folders that ``save_to_disk`` wrote.

``datasets`` takes about 2 s to import, so it is imported only where it is needed: not for a mirror of Parquet
files.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from textbed.data.files import SPLIT_NAMES, find_in_folder, missing, split_of
from textbed.data.records import ParquetRecords, Records, TableRecords, message_of, written_atomically
from textbed.errors import UserError, nearest

# Seconds that the hub gets to answer before it counts as unreachable; `datasets` itself retries for 24 s.
PROBE_SECONDS = 3.0


def records_of(dataset: Any, name: str) -> TableRecords:
    """The rows of a ``datasets.Dataset``, in its order; the fingerprint is left to the texts."""
    if dataset._indices is not None:  # shuffled or selected: the table beneath knows nothing of it
        dataset = dataset.flatten_indices()
    table = pa.table(dataset.data.table).replace_schema_metadata(dataset.features.arrow_schema.metadata)
    return TableRecords(table, "", [(name, table.num_rows)])


def _by_split(data: Any, name: str) -> dict[str, Records]:
    """Records by the source's own split names; a single ``Dataset`` is train."""
    if not isinstance(data, Mapping):
        return {"train": records_of(data, name)}
    return {str(split): records_of(dataset, f"{name}, {split}") for split, dataset in data.items()}


# ---- save_to_disk


def read_disk(path: Any) -> dict[str, Records]:
    """Rows by split of a folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote, or of a
    mapping of folders.

    Raises:
        UserError: no such folder, or it is not such a folder, or it is damaged.
    """
    if path in (None, ""):
        raise UserError("data.path: missing; data.source=disk needs a folder that save_to_disk wrote")
    if isinstance(path, Mapping):
        result: dict[str, Records] = {}
        for split, folder in path.items():
            if split_of(str(split)) is None:
                raise UserError(
                    f"data.path.{split}: no such split; there are train, validation, "
                    f"test.{nearest(split, SPLIT_NAMES)}"
                )
            parts = _read_disk(folder, f"data.path.{split}")
            if list(parts) != ["train"]:
                raise UserError(
                    f"data.path.{split}: {folder} holds several splits ({', '.join(parts)}); name one, "
                    f"{folder}/SPLIT"
                )
            result[str(split)] = parts["train"]
        return result
    return _read_disk(path, "data.path")


def _read_disk(path: Any, key: str) -> dict[str, Records]:
    folder = Path(os.path.expanduser(str(path)))
    # `datasets` answers a missing path with a complaint about the hub, so it is looked at first.
    if not folder.exists():
        raise missing(folder, key)
    if not ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        raise UserError(
            f"{key}: {folder} was not written by save_to_disk (no dataset_dict.json or state.json in it)"
        )
    import datasets

    try:
        return _by_split(datasets.load_from_disk(str(folder)), str(folder))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{key}: {folder} is damaged or incomplete ({message_of(error)})") from None


# ---- mirror


def _holds_data(folder: Path) -> bool:
    return folder.is_dir() and any(
        entry.suffix in (".parquet", ".md", ".csv", ".jsonl") or (entry.name == "data" and entry.is_dir())
        for entry in folder.iterdir()
    )


def mirrored(mirror: Path) -> list[str]:
    """Names of the data sets in a mirror folder, ``name`` or ``owner/name``, sorted."""
    names = []
    for entry in sorted(mirror.iterdir()):
        if _holds_data(entry):
            names.append(entry.name)
        elif entry.is_dir():
            names += [f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir()) if _holds_data(inner)]
    return names


def _from_mirror(
    mirror: Path, name: str, config: str | None, cache: Path
) -> tuple[dict[str, Records], Path] | None:
    folder = mirror / name
    if not folder.is_dir():
        return None
    place = folder / config if config else folder
    if place.is_dir() and (found := find_in_folder(place, (".parquet",), "data.mirror")):
        return {split: ParquetRecords(paths, cache) for split, paths in found.items()}, place
    if not _holds_data(folder) or (config and not (folder / "README.md").is_file()):
        return None
    # A copy of the hub's own repository: its README says which files are which configuration and split.
    import datasets

    try:
        return _by_split(datasets.load_dataset(str(folder), config), str(folder)), folder
    except Exception as error:
        why = explain(error, name, config, None) if "onfig" in str(error) else None
        raise why or UserError(f"data.mirror: {folder} cannot be read ({message_of(_root(error))})") from None


# ---- network


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the hub (``HF_ENDPOINT``) answers within ``seconds``, by the proxies that `datasets` takes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds).status_code)

    # In a thread, because looking up a host name takes no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * seconds)
    return bool(answers) and answers[0] < 500 and answers[0] != 407


@contextmanager
def _offline() -> Iterator[None]:
    """Make ``datasets`` look at its own cache only; ``HF_HUB_OFFLINE`` only counts before it is imported."""
    import datasets.config
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def explain(error: Exception, name: str, config: str | None, revision: str | None) -> UserError | None:
    """What an exception of ``load_dataset`` means to the user; None where the hub was not reached."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "Dataset scripts are no longer supported" in text:
        return UserError(
            f"data.name: '{name}' is a loading script on the hub, which is not run; look for a Parquet copy "
            "of it there (data.revision=refs/convert/parquet often is one)"
        )
    if "is a gated dataset" in text or "GatedRepoError" in kinds:
        return UserError(
            f"data.name: '{name}' asks for a login: accept its terms on the hub and run `hf auth login`"
        )
    if (
        "RevisionNotFoundError" in kinds
        or "Invalid rev id" in text
        or (revision and f"Revision '{revision}'" in text)
    ):
        return UserError(f"data.revision: '{name}' has no revision '{revision}' on the hub")
    if "DatasetNotFoundError" in kinds or "RepositoryNotFoundError" in kinds:
        return UserError(
            f"data.name: no data set '{name}' on the hub, or it is private (`hf auth login`); ids look like "
            "owner/name, e.g. stanfordnlp/imdb"
        )
    if "HFValidationError" in kinds:
        return UserError(f"data.name: '{name}' is no hub id; ids look like owner/name, e.g. stanfordnlp/imdb")
    if "BuilderConfig" in text or "Config name is missing" in text or "pick one among" in text:
        known = list(dict.fromkeys(re.findall(r"'([^']+)'", text.partition("vailable")[2])))
        listing = (
            f"; it has {', '.join(known[:20])}.{nearest(config, known) if config else ''}" if known else ""
        )
        problem = f"no configuration '{config}'" if config else "several configurations, so name one"
        return UserError(f"data.config: '{name}' has {problem}{listing}")
    if "DataFilesNotFoundError" in kinds or "EmptyDatasetError" in kinds:
        return UserError(f"data.name: '{name}' holds no data files that can be read")
    if isinstance(error, OSError) and error.errno == 28:
        return UserError(
            f"data.name: no space left to download '{name}'; free some or set HF_HOME to another disk"
        )
    if isinstance(error, (ConnectionError, TimeoutError)) or "Couldn't reach" in text:
        return None
    return UserError(f"data.name: '{name}' cannot be loaded from the hub ({message_of(_root(error))})")


def read_hub(
    name: str,
    hub_id: str | None,
    config: str | None,
    revision: str | None,
    mirror_folder: str | None,
    cache: Path,
) -> tuple[dict[str, Records], str]:
    """Rows by split of a hub data set, from the mirror, the network, or what ``datasets`` has already
    downloaded, in this order.

    Args:
        name: hub id, or the short name of a folder in the mirror.
        hub_id: the id to ask the hub for where it is not ``name``; an empty string for a data set that the
            hub has not.
        mirror_folder: a folder with ``<name>/<split>.parquet`` or copies of hub repositories; None for none.

    Returns:
        The rows by the source's split names, and where they came from.

    Raises:
        UserError: not found; says how to get it. An unreachable hub takes less than 10 s to notice.
    """
    if not name:
        raise UserError("data.name: missing; data.source=hub needs a hub id, e.g. data.name=stanfordnlp/imdb")
    ids = list(dict.fromkeys(item for item in (name, hub_id) if item))
    note = ""
    if mirror_folder:
        folder = Path(os.path.expanduser(str(mirror_folder)))
        if not folder.is_dir():
            raise (
                missing(folder, "data.mirror")
                if not folder.exists()
                else UserError(f"data.mirror: {folder} is not a folder")
            )
        for item in ids:
            if found := _from_mirror(folder, item, config, cache):
                return found[0], f"mirror {found[1]}"
        names = mirrored(folder)
        wanted = f"'{name}'" + (f" with configuration '{config}'" if config else "")
        holds = (
            f"it holds {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "it is empty"
        )
        note = f"the mirror {folder} has no {wanted} ({holds}).{nearest(name, names)} "
    identifier = name if hub_id is None else hub_id
    if not identifier:
        begin = f"{note}And" if note else "no mirror is set, and"
        raise UserError(
            f"data.name: {begin} the hub does not have '{name}'; set data.mirror=DIR (or TEXTBED_MIRROR=DIR) "
            f"where DIR/{name}/train.parquet is, or data.hub_id to another id"
        )
    data, online = _fetch(identifier, config, revision, note)
    where = (
        f"hub {identifier}"
        + (f", {config}" if config else "")
        + (f", revision {revision}" if revision else "")
        + ("" if online else " (as downloaded before)")
    )
    return _by_split(data, f"{identifier} on the hub"), where


def _fetch(name: str, config: str | None, revision: str | None, note: str = "") -> tuple[Any, bool]:
    """The ``DatasetDict`` of a hub id, and whether the hub was asked or only the download cache.

    ``note`` says what was tried before and comes into the messages.
    """
    from huggingface_hub import constants

    told = constants.HF_HUB_OFFLINE
    online = not told and reachable()
    import datasets

    try:
        with nullcontext() if online else _offline():
            return datasets.load_dataset(name, config, revision=revision), online
    except Exception as error:
        why = explain(error, name, config, revision) if online else None
        if why is not None:
            raise UserError(f"{why}{' (' + note.strip() + ')' if note else ''}") from None
        options = (f" --config {config}" if config else "") + (f" --revision {revision}" if revision else "")
        begin = f"{note}And the" if note else "the"
        cause = "HF_HUB_OFFLINE is set" if told else f"{constants.ENDPOINT} does not answer"
        raise UserError(
            f"data.name: {begin} hub's '{name}' cannot be fetched ({cause}) and is not in the download "
            f"cache; on a machine with internet run `python scripts/mirror.py {name}{options} --to DIR`, "
            "copy DIR here and set data.mirror=DIR or TEXTBED_MIRROR=DIR"
        ) from None


def mirror(name: str, to: Path, config: str | None = None, revision: str | None = None) -> dict[Path, int]:
    """Write ``to/<name>/<split>.parquet`` (with ``config``: ``to/<name>/<config>/…``) from the hub.

    Args:
        name: hub id; or the path (./x, ~/x or /x) of a folder in the shape of a hub repository, which is
            mirrored under the folder's own name.

    Returns:
        The files written, whole or not at all, with their numbers of rows.

    Raises:
        UserError: the data set cannot be fetched, or ``to`` cannot be written.
    """
    local = Path(name).expanduser()
    # Only what cannot be an id: a folder of some id's name may lie here by chance, a mirror for one.
    is_local = name.startswith((".", "~", "/")) and local.is_dir()
    if is_local:
        import datasets

        try:
            data = datasets.load_dataset(str(local), config, revision=revision)
        except Exception as error:
            raise explain(error, name, config, revision) or error from None
    else:
        data, _ = _fetch(name, config, revision)
    folder = to.expanduser() / (local.resolve().name if is_local else name) / (config or "")
    written = {}
    for split, dataset in data.items():
        path = folder / f"{split}.parquet"
        with written_atomically(path, "--to") as temporary:
            dataset.to_parquet(temporary)
        written[path] = len(dataset)
    return written
