"""Which arguments a ``_target_`` takes: from its source where that can be read, else from the import.

A misspelt key in ``configs/head`` or ``trainer`` would otherwise show up as a ``TypeError`` after the data
has been read. Reading source with ``ast`` costs milliseconds where importing it would load torch, so a
configuration is checked before anything heavy is imported, and a new head needs no entry in any table.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path

from textbed.errors import UserError, nearest
from textbed.rules import Rule

PACKAGE = "textbed"
# Keys that Hydra's `instantiate` takes for itself.
HYDRA_KEYS = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_"})
# Annotations that say what a config may give. Text is mostly one of a few choices, which the class knows.
KINDS: dict[str, type] = {"int": int, "float": float, "bool": bool}
LISTS = frozenset({"Sequence", "list"})
# Bases whose own `__init__` takes nothing that a config could give.
PLAIN_BASES = frozenset({"object", "ABC", "Module", "Callback", "LightningModule"})


@dataclass(frozen=True)
class Arguments:
    """The named arguments of a class or function."""

    names: tuple[str, ...] = ()
    """Every name that can be given, in the order of the definition."""
    required: frozenset[str] = field(default_factory=frozenset)
    """Those without a default."""
    open: bool = False
    """Whether any other name is taken too (``**kwargs`` that go who knows where), or it is not known."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """What a value must be, of the names whose annotation is one of numbers, flags or lists of them."""


def is_ours(target: str) -> bool:
    """Whether ``target`` lies in this package."""
    return target.startswith(PACKAGE + ".")


def read_arguments(target: str) -> Arguments:
    """Arguments of a class or function, from source alone: nothing is imported.

    Follows base classes, and names that a module imports from another, where the class has no ``__init__`` of
    its own or hands ``**kwargs`` on. What cannot be followed (compiled, decorated, made on the fly) is
    reported as open.

    Raises:
        UserError: where this package has no such module, or no such class in it. The message begins with the
            path. For other packages that is not certain from the source; :func:`inspect_arguments` knows.
    """
    module, _, name = target.rpartition(".")
    file = _module_file(module)
    if file is None:
        if is_ours(target):
            raise UserError(f"{target}: there is no module '{module}'.{nearest(module, _our_modules())}")
        return Arguments(open=True)
    found = _arguments(module, name)
    if found is None and is_ours(target):
        names = [node.name for node in _tree(file).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        raise UserError(f"{target}: there is no '{name}' in {module}.{nearest(name, names)}")
    return found or Arguments(open=True)


def inspect_arguments(target: str) -> Arguments:
    """Arguments of any class or function, by importing it.

    Raises:
        UserError: where it cannot be imported or is not there. The message begins with the dotted path.
    """
    module, _, name = target.rpartition(".")
    owner: object | None = None
    parts = module.split(".")
    for cut in range(len(parts), 0, -1):  # the longest part that is a module; the rest are attributes of it
        stem = ".".join(parts[:cut])
        try:
            owner = import_module(stem)
        except ModuleNotFoundError as error:
            if error.name is None or not (stem + ".").startswith(error.name + "."):
                raise UserError(f"{target}: importing it needs the package '{error.name}'.") from error
            continue
        for attribute in parts[cut:]:
            owner = getattr(owner, attribute, None)
        break
    if owner is None:
        raise UserError(f"{target}: there is no module '{module}'; is '{parts[0]}' installed?")
    if not hasattr(owner, name):
        raise UserError(f"{target}: there is no '{name}' in {module}.{nearest(name, dir(owner))}")
    try:
        parameters = signature(getattr(owner, name)).parameters.values()
    except (TypeError, ValueError):  # built in C, without a signature
        return Arguments(open=True)
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    return Arguments(
        names=tuple(p.name for p in named),
        required=frozenset(p.name for p in named if p.default is Parameter.empty),
        open=any(p.kind is Parameter.VAR_KEYWORD for p in parameters),
    )


def _our_modules() -> Iterator[str]:
    root = Path(__file__).parent
    for file in root.rglob("*.py"):
        yield ".".join((PACKAGE, *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")


@functools.cache
def _module_file(module: str) -> Path | None:
    """Source file of a module, found from where its top package lies, which takes no import."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location).joinpath(*rest)
        for candidate in ([path.with_suffix(".py")] if rest else []) + [path / "__init__.py"]:
            if candidate.is_file():
                return candidate
    return None


@functools.cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _arguments(module: str, name: str, hops: int = 8) -> Arguments | None:
    """Arguments of ``name`` as seen from ``module``; None where it is neither defined nor imported there."""
    file = _module_file(module)
    if file is None or hops == 0:
        return None
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return Arguments(open=True) if node.decorator_list else _of_function(node, method=False)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Arguments(open=True) if node.decorator_list else _of_class(module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _arguments(_imported_from(module, file, node), alias.name, hops - 1)
    return None


def _imported_from(module: str, file: Path, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, node.module] if node.module else package)


def _of_class(module: str, node: ast.ClassDef) -> Arguments:
    own = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    found = _of_function(own[0], method=True) if own else Arguments(open=True)
    if not found.open:
        return found
    handed_on = _handed_on(own[0]) if own else None
    if own and handed_on is None:
        return found
    # What the class itself gives to its base cannot be given once more.
    fixed = {given.arg for given in handed_on.keywords} if handed_on is not None else set()
    names, required, still_open = list(found.names), set(found.required), False
    known = dict(found.rules)
    for base in node.bases:
        base_name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if base_name in PLAIN_BASES and not own:
            continue
        inherited = _arguments(module, base.id) if isinstance(base, ast.Name) else None
        if inherited is None:
            still_open = True
            continue
        still_open |= inherited.open
        names += [argument for argument in inherited.names if argument not in names and argument not in fixed]
        known = {**inherited.rules, **known}
        # With an `__init__` of its own the class may well fill in what its base requires.
        required |= set() if own else inherited.required
    return Arguments(tuple(names), frozenset(required), still_open, known)


def _handed_on(init: ast.FunctionDef) -> ast.Call | None:
    """The call of ``super().__init__`` to which ``**kwargs`` go, and so must be names that a base takes."""
    kwargs = init.args.kwarg.arg if init.args.kwarg else None
    for call in ast.walk(init):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "__init__"
            and isinstance(call.func.value, ast.Call)
            and getattr(call.func.value.func, "id", "") == "super"
            and any(given.arg is None and getattr(given.value, "id", "") == kwargs for given in call.keywords)
        ):
            return call
    return None


def _of_function(node: ast.FunctionDef, method: bool) -> Arguments:
    positional, keyword = node.args.posonlyargs + node.args.args, node.args.kwonlyargs
    given = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    defaults = dict(zip((argument.arg for argument in positional + keyword), given, strict=True))
    names = tuple(defaults)[1 if method else 0 :]
    known = {
        argument.arg: rule
        for argument in positional + keyword
        if (rule := _rule(argument.annotation, defaults[argument.arg])) is not None
    }
    required = frozenset(name for name in names if defaults[name] is None)
    return Arguments(names, required, node.args.kwarg is not None, known)


def _rule(annotation: ast.expr | None, default: ast.expr | None) -> Rule | None:
    """What an annotation of numbers, flags or lists of them allows; None for any other."""
    parts, kinds, each = [annotation], [], None
    while parts:
        part = parts.pop()
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
            parts += [part.right, part.left]
        elif isinstance(part, ast.Name) and part.id in KINDS:
            kinds.append(KINDS[part.id])
        elif isinstance(part, ast.Constant) and part.value is None:
            kinds.append(type(None))
        elif isinstance(part, ast.Subscript) and getattr(part.value, "id", "") in LISTS:
            each = _rule(part.slice, None)
            if each is None:
                return None
            kinds.append(list)
        else:
            return None
    if isinstance(default, ast.Constant) and default.value is None:
        kinds.append(type(None))
    return Rule(tuple(dict.fromkeys(kinds)), finite=False, each=each)
