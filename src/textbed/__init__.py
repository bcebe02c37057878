"""textbed: text classification research around an embedding table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textbed.runs.model import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Torch is imported by whoever loads a model, not by who asks for help.
    if name == "load":
        from textbed.runs.model import load

        return load
    raise AttributeError(f"module 'textbed' has no attribute '{name}'")
