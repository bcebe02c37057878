"""What ``scripts/export.py`` does: a run's model on its own, for who has no use for the run.

``folder`` holds model.yaml, model.safetensors and tokenizer/tokenizer.json, and loads with
:func:`textbed.load`; ``hub`` is that and a model card, as the Hugging Face hub wants it. ``onnx`` and
``torch.export`` are graphs that run without textbed; see :mod:`textbed.runs.portable`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from textbed.errors import UserError
from textbed.runs.folder import RunFolder, writing
from textbed.runs.model import MODEL, WEIGHTS, Model, load

KINDS = ("folder", "hub", "onnx", "torch.export")
SHOWN = ("accuracy", "exact_match", "f1_micro", "f1_macro", "f1_weighted", "mcc", "calibration_error", "loss")


def export(run: str, to: str, out: Path) -> list[str]:
    """Write the model of a run into the folder ``out``, which is made.

    Args:
        run: the run folder.
        to: ``folder``, ``hub``, ``onnx`` or ``torch.export``.

    Returns:
        Lines to show.

    Raises:
        UserError: no such run, ``out`` is there and holds something, or the model cannot be written so.
    """
    if to not in KINDS:
        raise UserError(f"--to {to}: expected one of {', '.join(KINDS)}")
    folder = RunFolder.open(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; give a folder that is not, or an empty one")
    model = load(folder.path)
    with writing(out, "DIR"):
        out.parent.mkdir(parents=True, exist_ok=True)
        # beside its place, and moved there when all is written: a mistake leaves nothing behind
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            lines = _write(model, folder, to, made)
            size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
            if out.exists():  # and is empty; it may be the folder that somebody stands in
                for path in made.iterdir():
                    os.replace(path, out / path.name)
            else:
                os.replace(made, out)
    how = f"loads with textbed.load({str(out)!r})"
    if to not in ("folder", "hub"):
        how = f"{out / 'README.md'} says how to use it"
    return [f"{out}: {size / 2**20:,.1f} MiB, {how}", *lines]


def _write(model: Model, folder: RunFolder, to: str, out: Path) -> list[str]:
    if to in ("folder", "hub"):
        _write_folder(model, folder, out)
        if to == "hub":
            (out / "README.md").write_text(model_card(model, folder), encoding="utf-8")
        return []
    from textbed.runs.portable import write_graph

    return write_graph(model, folder, to, out)


def _write_folder(model: Model, folder: RunFolder, out: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shutil.copyfile(folder.model_file, out / MODEL)
    shutil.copyfile(folder.config_file, out / "config.yaml")
    model.tokenizer.save(out / "tokenizer")
    # The rows that training pulled others to are left out by who reads; nothing is shared between names.
    state = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    try:
        save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk has no error of its own there
        raise UserError(f"cannot write {WEIGHTS}: {error}") from error
    shutil.copymode(out / MODEL, out / WEIGHTS)  # the library lets nobody else read it


def model_card(model: Model, folder: RunFolder) -> str:
    """A model card: YAML that the hub reads, then data, figures, seeds, configuration, and how to load it."""
    info = folder.info()
    config: dict[str, Any] = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
    figures = folder.read_metrics() if folder.metrics_file.is_file() else {}
    data, name = config["data"], config["name"]
    source = data.get("name") or data["source"]
    told = {key: figures[f"test/{key}"] for key in SHOWN if figures.get(f"test/{key}") is not None}
    header: dict[str, Any] = {
        "library_name": "textbed",
        "pipeline_tag": "text-classification",
        "tags": ["textbed", "pytorch", "safetensors"],
    }
    if data["source"] == "hub":
        header["datasets"] = [data.get("hub_id") or source]
    if told:
        dataset = {"name": source, "type": data.get("hub_id") or source}
        metrics = [{"type": key, "value": round(value, 4)} for key, value in told.items()]
        result = {"task": {"type": "text-classification"}, "dataset": dataset, "metrics": metrics}
        header["model-index"] = [{"name": name, "results": [result]}]
    seeds = {key: value for key, value in data.items() if key.endswith("_seed")}
    versions = info.get("versions") or {}
    git = info.get("git") or {}
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        f"Classifies {'pairs of texts' if model.pairs else 'texts'} into "
        f"{'any number of ' if model.multilabel else 'one of '}{len(model.classes)} classes: "
        f"{', '.join(model.classes)}.",
        "",
        "## How to load it",
        "",
        "```python",
        "import textbed",
        "",
        'model = textbed.load("FOLDER")  # this one',
        f"model.predict({json.dumps([['first', 'second']] if model.pairs else ['a text'])})",
        "```",
        "",
        "## Data",
        "",
        f"`{source}`, text from {' and '.join(f'`{one}`' for one in model.design.text)}; "
        f"fingerprint of documents, labels and splits `{info.get('data')}`.",
        "",
        "## Figures",
        "",
    ]
    if told:
        lines += ["| test | |", "|---|---|", *(f"| {key} | {value:.4f} |" for key, value in told.items())]
        lines += ["", "Of one run: another seed gives others."]
    else:
        lines += ["The run was not tested."]
    lines += [
        "",
        "## Seeds",
        "",
        f"Training {config['seed']}; " + ", ".join(f"{key} {value}" for key, value in seeds.items()) + ".",
        "",
        "## Configuration",
        "",
        f"Trained by `{info.get('command')}`; textbed {versions.get('textbed')}, "
        f"torch {versions.get('torch')}"
        + (f", revision `{git.get('revision')}`" if git else "")
        + (" with uncommitted changes" if git.get("dirty") else "")
        + ".",
        "",
        "```yaml",
        yaml.safe_dump(
            {key: config[key] for key in ("tokenizer", "embedding", "head", "classifier", "optimizer")},
            sort_keys=False,
            allow_unicode=True,
        ).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"
