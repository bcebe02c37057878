"""Imports without what no run looks at, which takes ten times as long as the rest of Lightning.

For the sake of a few names it and torchmetrics import ``torch._dynamo`` (a class in an ``isinstance`` check,
and to mark functions as not to be compiled), ``scipy.signal`` (to add a function that an old package misses)
and ``matplotlib`` (annotations of ``Metric.plot``). torch's optimizers import ``torch._dynamo`` too, to keep
their methods out of compiled graphs. In :func:`quickly` each finds a stand-in with the names it asks for;
``torch._dynamo`` keeps its own. Whatever else is asked of a stand-in comes from the real module, which is
imported on that occasion and takes its place. Nothing is compiled, nor of a class, by a module that was never
imported; so what a run gives is the same to the last bit, and whoever needs one of the modules imports it as
ever.

The garbage collector waits meanwhile, and from then on leaves alone what is there at the end: some 350,000
objects that stay as long as the process, which each of its full passes would look through, several of them at
the interpreter's end. 2 in 100 of these are cycles that nobody needs, and stay too.

``TEXTBED_PLAIN_START=1`` in the environment leaves all as it is.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

PLAIN = "TEXTBED_PLAIN_START"
COMPILER = "torch._dynamo"
_placing: set[str] = set()


def is_plain() -> bool:
    """Whether all that makes a start short is to be left out."""
    return os.environ.get(PLAIN) == "1"


class _StandIn(ModuleType):
    """Has the names that are given; any other is the real module's."""

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        vars(self).update(given)

    def take_away(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            parent, _, name = self.__name__.rpartition(".")
            if vars(sys.modules.get(parent, self)).get(name) is self:
                delattr(sys.modules[parent], name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and self.__name__ in _placing:  # what the import itself looks for
            raise AttributeError(name)
        self.take_away()
        return getattr(importlib.import_module(self.__name__), name)


def _is_imported(name: str) -> bool:
    return not isinstance(sys.modules.get(name), _StandIn | None)


class _OnceImported(type):
    """``isinstance`` as of the class of that name in a module: before it is imported nothing is one."""

    def __instancecheck__(cls, instance: Any) -> bool:
        module = cls.__module__
        return _is_imported(module) and isinstance(instance, getattr(sys.modules[module], cls.__name__))


def _disable(function: Callable[..., Any], *how: Any, **named: Any) -> Callable[..., Any]:
    """``torch._dynamo.disable``: takes hold as soon as there is anything that compiles."""
    real: Callable[..., Any] | None = None

    @functools.wraps(function)
    def disabled(*args: Any, **kwargs: Any) -> Any:
        nonlocal real
        if not _is_imported(COMPILER):
            return function(*args, **kwargs)
        real = real or sys.modules[COMPILER].disable(function, *how, **named)
        return real(*args, **kwargs)

    return disabled


def _no_graph(*why: str) -> None:
    """``torch._dynamo.graph_break`` where nothing is compiled."""


def _style(*given: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``matplotlib.pyplot.style.context`` as a decorator: takes hold when the function is called."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def styled(*args: Any, **kwargs: Any) -> Any:
            with importlib.import_module("matplotlib.pyplot").style.context(*given):
                return function(*args, **kwargs)

        return styled

    return decorate


def _stand_ins() -> list[_StandIn]:
    compiled = _OnceImported("OptimizedModule", (), {"__module__": COMPILER})
    style = _StandIn("matplotlib.style", context=_style)
    axes = _StandIn("matplotlib.axes", Axes=object)
    pyplot = _StandIn("matplotlib.pyplot", Figure=object, style=style)
    colors = _StandIn("matplotlib.colors", Colormap=object)
    return [
        _StandIn(COMPILER, OptimizedModule=compiled, disable=_disable, graph_break=_no_graph),
        _StandIn("scipy.signal", hamming=None),
        _StandIn("matplotlib", axes=axes, colors=colors, pyplot=pyplot),
        axes,
        pyplot,
    ]


@contextlib.contextmanager
def quickly(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Have what is imported in the block leave out what it would not use; see the module's docstring.

    The classes that the configuration names are imported before it ends. A run that compiles its model uses
    what would be left out.
    """
    if is_plain() or "lightning.pytorch" in sys.modules:
        yield
        return
    with _uncollected(), contextlib.nullcontext() if cfg["compile"] else _left_out(cfg):
        yield


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which leaves out for good what is there at the end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextlib.contextmanager
def _left_out(cfg: Mapping[str, Any]) -> Iterator[None]:
    """With stand-ins for what would not be used."""
    import scipy  # noqa: F401  the parents of the stand-ins
    import torch  # noqa: F401

    placed = [one for one in _stand_ins() if one.__name__ not in sys.modules]
    sys.modules.update({one.__name__: one for one in placed})
    _placing.update(one.__name__ for one in placed)
    try:
        yield
        for group in ("embedding", "head"):
            with contextlib.suppress(ImportError):  # said better later
                importlib.import_module(cfg[group]["_target_"].rpartition(".")[0])
    finally:
        _placing.clear()
        for one in placed:
            if one.__name__ != COMPILER:
                one.take_away()
