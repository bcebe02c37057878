"""What README and docs tell a person to type works: every command is read from the page and tried."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from running import ROOT, Runs, jobs, on

from textbed import command, config, schema

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell", "console")
# What a person may be told to type that is not ours to test.
OTHERS = {"git", "cd", "pre-commit", "wandb", "tensorboard", "mlflow", "export"}


class Typed(NamedTuple):
    page: str
    line: str
    words: list[str]
    """The command without what is set before it."""
    environment: dict[str, str]
    shown: list[str]
    """Lines that the page shows as its output."""


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Fenced blocks of a page: language and lines."""
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield found[1], found[2].rstrip("\n").split("\n")


def commands(page: Path) -> Iterator[Typed]:
    for language, lines in blocks(page):
        if language not in SHELL:
            continue
        typed: list[tuple[str, list[str]]] = []
        prompts = any(line.startswith("$ ") for line in lines)
        for line in lines:
            if typed and typed[-1][0].endswith("\\"):
                typed[-1] = (typed[-1][0][:-1] + line.removeprefix("> "), [])
            elif not prompts or line.startswith("$ "):
                typed.append((line.removeprefix("$ "), []))
            elif typed:
                typed[-1][1].append(line)
        for line, shown in typed:
            for part in parts(line):
                environment = {}
                while part and re.fullmatch(r"\w+=.*", part[0]):
                    name, _, value = part.pop(0).partition("=")
                    environment[name] = value
                if part and part[0] in ("torchrun", "srun"):  # what they start is tried
                    part = ["python", *part[part.index("train.py") :]]
                if part:
                    yield Typed(page.name, line, part, environment, shown)


def parts(line: str) -> Iterator[list[str]]:
    """The commands of a line: those of a pipe, of a chain, and inside ``$(...)``."""
    inside = re.search(r"\$\((.*)\)", line)
    if inside:
        yield from parts(inside[1])
        line = line.replace(inside[0], "VALUE")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    part: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


ALL = [typed for page in PAGES for typed in commands(page)]


def of(*start: str) -> list[Any]:
    found = [typed for typed in ALL if typed.words[: len(start)] == list(start)]
    return [pytest.param(typed, id=f"{typed.page}: {' '.join(typed.words)}"[:80]) for typed in found]


def test_there_are_commands() -> None:
    assert {"make", "python", "pip"} <= {typed.words[0] for typed in ALL}
    assert len(of("python", "train.py")) >= 5


def test_all_commands_are_of_a_kind_that_is_tried() -> None:
    known = ("make", "pip", "python", "tail", *OTHERS)
    assert [typed.line for typed in ALL if typed.words[0] not in known] == []
    files = [typed.words[1] for typed in ALL if typed.words[0] == "python"]
    assert [file for file in files if not (ROOT / file).is_file() and file != "-m"] == []


def stand_in(key: str, value: Any, folder: Path) -> Any:
    """What a command line takes to be there is made: files, folders, vectors."""
    if isinstance(value, dict):
        return {name: stand_in(key, inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [stand_in(key, inner, folder) for inner in value]
    if not isinstance(value, str):
        return value
    path = folder / value.lstrip("/~")
    if key == "embedding.vectors":
        if value == "corpus":
            return value  # no file: the run trains them
        width = int((re.search(r"(\d+)d\b", value) or [0, 100])[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"word {' '.join(['0.5'] * width)}\n")
    elif Path(value).suffix and key != "data.mirror":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        path.mkdir(parents=True, exist_ok=True)
    return str(path)


def checked(arguments: list[str], folder: Path) -> DictConfig:
    """Compose as ``--cfg job`` does and check, with stand-ins for what the words name."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", arguments, return_hydra_config=True)
    chosen: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    for key in ("data.path", "data.mirror", "embedding.vectors", "tokenizer.file"):
        value = OmegaConf.select(cfg, key)
        if value is not None:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            OmegaConf.update(cfg, key, stand_in(key, plain, folder), merge=False)
    return config.check(cfg, chosen)


@pytest.mark.parametrize("typed", of("python", "train.py"))
def test_training_commands(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTBED_MIRROR", raising=False)
    for name, value in typed.environment.items():
        monkeypatch.setenv(name, value)
    flags = [word for word in typed.words[2:] if word.startswith("-")]
    assert set(flags) <= {"-m", "--multirun", "--help", "--cfg", "--hydra-help"}
    arguments = [word for word in typed.words[2:] if word not in (*flags, "job")]
    if {"-m", "--multirun"} & set(flags):
        sweep = jobs(*arguments)
        assert len(sweep) > 1
        # every choice once, in place of every combination; of an experiment's own sweep first and last
        wanted = [sweep[0], sweep[-1]] if len(sweep[0]) > len(arguments) else []
        for at in range(0 if wanted else len(arguments)):
            seen = {job[at]: job for job in reversed(sweep)}
            wanted += [job for job in seen.values() if job not in wanted]
    else:
        wanted = [arguments]
    errors = [line for line in typed.shown if line.startswith("error: ")]
    for job in wanted:
        if errors:
            with pytest.raises(Exception) as caught:  # noqa: PT011  the line is what counts
                checked(job, tmp_path)
            assert errors == [f"error: {command.explain(caught.value, ROOT / 'configs')}"]
            continue
        cfg = checked(job, tmp_path)
        if cfg.resume is not None:
            from textbed.training import RESUME_MAY_CHANGE

            assert all(word.startswith(("resume=", *RESUME_MAY_CHANGE)) for word in job)


def test_every_front_end_has_a_command() -> None:
    shown = {
        choice
        for typed in ALL
        if typed.page == "embedding.md"
        for word in typed.words
        if word.startswith("embedding=")
        for choice in word.partition("=")[2].split(",")
    }
    assert shown == {path.stem for path in (ROOT / "configs" / "embedding").glob("*.yaml")}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_keys_that_a_page_names_exist(page: Path) -> None:
    known = {field.name for field in dataclasses.fields(schema.EmbeddingConfig)} | {"json"}
    assert set(re.findall(r"(?<![/.])\bembedding\.(\w+)(?=[=`.]| )", page.read_text())) <= known


EXAMPLES = [
    pytest.param("\n".join(lines), id=f"{page.name}: {lines[0]}"[:80])
    for page in PAGES
    for language, lines in blocks(page)
    if language == "python"
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_hold(code: str) -> None:
    assert "assert" in code
    exec(code, {})


def script_help(path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    monkeypatch.syspath_prepend(str((ROOT / path).parent))  # as Python does for a script
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "typed", [one for one in of("python") if one.values[0].words[1] not in ("train.py", "-m")]
)
def test_script_commands(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = script_help(typed.words[1], monkeypatch, capsys)
    for word in typed.words[2:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", told), word


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*.py")))
def test_every_script_explains_itself(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(script_help(path, monkeypatch, capsys)) > 200


def test_make_targets() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for typed in ALL if typed.words[0] == "make" for word in typed.words[1:] if "=" not in word}
    for page in PAGES:
        named |= set(re.findall(r"`make ([\w-]+)[^`]*`", page.read_text()))
    assert {"quickstart", "test"} <= named <= targets


def test_packages_to_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for typed in ALL:
        if typed.words[0] == "pip":
            assert typed.words[1] == "install"
            for found in re.findall(r"\[([\w,]+)\]", typed.line):
                assert set(found.split(",")) <= set(extras), typed.line


def tree(lines: list[str]) -> Iterator[str]:
    """Paths in a drawn tree: names, a gap, what they are; what is indented lies in the folder above."""
    folders: list[tuple[int, str]] = []
    for line in lines:
        depth = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= depth:
            folders.pop()
        above = "".join(folder for _, folder in folders)
        found = re.match(r"\s*((?:[\w.-]+/)*[\w-]+(?:\.\w+|/)(?:  ?[\w-]+\.\w+(?= ))*)", line)
        for name in found[1].split() if found else ():
            if name.endswith("/"):
                folders.append((depth, name))
            yield above + name


TREES = [
    pytest.param(lines, id=f"{page.name}: {lines[0].split(' ')[0]}")
    for page in PAGES
    for language, lines in blocks(page)
    if language in ("", "text") and any(re.match(r"\s*[\w/.-]+/( |$)", line) for line in lines)
]


@pytest.mark.parametrize("lines", [one for one in TREES if not one.values[0][0].startswith("runs/")])
def test_files_in_a_tree_are_there(lines: list[str]) -> None:
    missing = [path for path in tree(lines) if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("lines", [one for one in TREES if one.values[0][0].startswith("runs/quickstart/")])
def test_a_run_leaves_what_the_tree_shows(lines: list[str], tmp_path: Path, topics: Path) -> None:
    top, *inside = lines
    assert re.match(r"runs/[\w-]+/\d{8}-\d{6}-[0-9a-f]{6}/", top)
    run = Runs(tmp_path)(*on(topics, "debug=step"))
    there = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    named = set(tree([line.removeprefix("  ") for line in inside]))
    # the first only where something was changed, the second with that logger
    assert {path.rstrip("/") for path in named} - {"git.diff", "wandb"} <= there
    covered = {path for path in there if any(path == name or path.startswith(name) for name in named)}
    assert {path for path in there if (run.path / path).is_file()} <= covered
