"""What a head is: B documents in, one row of H values for each out.

To add one, write a class here beside the others and a file in ``configs/head/`` whose ``_target_`` names it.
It takes ``dim`` (D, the width of the front end's rows), ``num_classes`` (C) where it has a use for it, and
its own settings. Every file in ``configs/head/`` is held to the same promises by
``tests/heads/test_invariance.py``: a document gets the same values alone, in any batch and in any order,
padding is not seen, an empty document gets zeros, and gradients reach every parameter that is trained. For
ONNX and ``torch.export`` it also needs a form over padded documents, see :mod:`textbed.padded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from textbed.batch import Reduction, TokenBatch
from textbed.embedding.table import FrontEnd


class Head(nn.Module):
    """Reads a batch through a front end and gives a row for each document."""

    out_dim: int
    """H, the width of what it returns."""
    width: ClassVar[str | None] = None
    """The argument that ``head.parameters`` widens or narrows the head by: a whole number, with which the
    parameters grow. None where there is no such argument."""

    def forward(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, H), zeros for an empty document."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """What the last forward pass in training adds to the loss; None for nothing. To be asked once."""
        return None

    @property
    def fixed_dim(self) -> int | None:
        """Width F of ``fixed_part``; None where the head has no such part."""
        return None

    def fixed_part(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        """(B, F): what is made of the rows before anything is learnt or drawn.

        Over a front end that is fixed itself a document always gives the same numbers, to the last bit and in
        any batch, and so they are worked out once. The head as a whole is ``rest`` of them.
        """
        raise NotImplementedError

    def rest(self, part_BF: Tensor) -> Tensor:
        """(B, H) from ``fixed_part``."""
        raise NotImplementedError

    @property
    def pools(self) -> Sequence[Reduction] | None:
        """The modes in which it asks the front end to ``pool``, once each; None where it reads rows."""
        return None

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        """Multiply-adds of the forward pass over documents of so many tokens, each at least 1.

        Counted are the products of matrices, a multiplication and the addition that follows it as one, and
        one for every value that a reduction over tokens reads. Lookups, activations and all else that is
        done to one value at a time are not. It is a sum over documents, each counted as if it came alone: a
        word that comes again is worked on again.

        A head that has the front end pool counts one for every value of its rows (D wide) all the same.
        """
        raise NotImplementedError


class FixedHead(Head):
    """A head that is nothing but fixed: it has no parameters, draws nothing, and the batch that a document
    comes in changes no bit of what it gives."""

    @property
    def fixed_dim(self) -> int | None:
        return None if any(parameter.requires_grad for parameter in self.parameters()) else self.out_dim

    def fixed_part(self, batch: TokenBatch, embedding: FrontEnd) -> Tensor:
        return self(batch, embedding)

    def rest(self, part_BF: Tensor) -> Tensor:
        return part_BF
