"""Weights on disk: checkpoints, read without unpickling anything, and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textbed.errors import UserError


def read_checkpoint(path: Any, **how: Any) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only. ``how`` goes to ``torch.load``.

    Raises:
        UserError: it is missing, cut short, or holds anything else.
    """
    try:
        return torch.load(path, weights_only=True, **how)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except Exception as error:  # torch, zip and pickle each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be read: it is cut short, damaged, or no checkpoint ({reason})"
        ) from error


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, in memory; the optimizer's state beside them is not read.

    Raises:
        UserError: as :func:`read_checkpoint`, or there are none in it.
    """
    state = read_checkpoint(checkpoint, map_location="cpu", mmap=True).get("state_dict")
    if not isinstance(state, Mapping):
        raise UserError(f"checkpoint {checkpoint} holds no weights")
    return {name: value.clone() for name, value in state.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing, cut short or damaged.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library has its own
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}") from error
