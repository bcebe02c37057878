"""Echo state networks: a recurrent layer that is drawn at random and never trained.

Shape letters: N tokens, M rows that they are looked up in, D width of a row, H width of the state of one
direction.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.errors import UserError
from textbed.heads.reading import Reader, check_choice, check_share
from textbed.heads.recurrent import Packed, read_packed

Activation = Literal["none", "relu", "tanh"]

_EXACT = 256
"""Rows up to which all eigenvalues are computed: 0.2 s, but 11 s for 2,048."""


class EchoState(Reader):
    """An echo state network (Jaeger 2001) as a control: what reading with fixed random weights gives, so that
    what training them gives can be told (Wieting & Kiela 2019, arXiv:1901.10444).

    The state is h = (1 - leak) h' + leak f(A x + W h'). The entries of A are uniform; those of W too, where
    they are not zero, and W is scaled to its spectral radius afterwards. None of it is trained. There is no
    bias.

    Args:
        dim: D, width of the front end's rows.
        hidden: H, width of the state of one direction.
        spectral_radius: largest magnitude of an eigenvalue of W. Above 1 a state may grow with the document.
        sparsity: share of the entries of W that are zero.
        input_scale: largest magnitude of an entry of A.
        leak: share of the new value in the state, above 0 and up to 1.
        activation: f: none, relu or tanh.
        settings: see ``Reader``.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        spectral_radius: float = 1.0,
        sparsity: float = 0.5,
        input_scale: float = 0.1,
        leak: float = 1.0,
        activation: Activation = "none",
        **settings: Any,
    ) -> None:
        check_choice("activation", activation, get_args(Activation))
        check_share("sparsity", sparsity)
        for key, number in (("spectral_radius", spectral_radius), ("input_scale", input_scale)):
            if not 0 < number < float("inf"):
                raise UserError(f"head.{key} is {number}; expected a number above 0")
        if not 0 < leak <= 1:
            raise UserError(f"head.leak is {leak}; expected a share above 0 and up to 1")
        self.spectral_radius, self.sparsity, self.input_scale = spectral_radius, sparsity, input_scale
        self.leak, self.activation = leak, activation
        super().__init__(dim, hidden, **settings)

    def make_layer(self, dim: int) -> nn.ParameterList:
        weights = []
        for _ in range(self.directions):
            weights.append(torch.empty(self.hidden, dim).uniform_(-self.input_scale, self.input_scale))
            recurrent = torch.empty(self.hidden, self.hidden).uniform_(-1, 1)
            recurrent *= torch.rand_like(recurrent) >= self.sparsity
            if not recurrent.is_meta:
                recurrent *= self.spectral_radius / (spectral_radius(recurrent) or 1.0)
            weights.append(recurrent)
        return nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in weights])

    def order(self, batch: TokenBatch) -> Packed:
        return Packed.of(batch)

    def read(self, layer: nn.ParameterList, values_MD: Tensor, places_N: Tensor, order: Packed) -> Tensor:
        none = layer[0].new_zeros(self.hidden)
        weights = [[layer[2 * k], layer[2 * k + 1], none, none] for k in range(self.directions)]
        cell = f"rnn_{self.activation}"
        return read_packed(cell, values_MD, places_N, order, weights, cut=self.truncate, leak=self.leak)

    def layer_multiply_adds(self, dim: int) -> int:
        return self.directions * self.hidden * (dim + self.hidden)


def spectral_radius(matrix: Tensor) -> float:
    """The largest magnitude of an eigenvalue of a square matrix.

    For more than 256 rows from 128 steps of Arnoldi's iteration, which on random matrices found it to within
    0.01 % and takes a second for 2,048 rows.
    """
    size = len(matrix)
    if size <= _EXACT:
        return float(torch.linalg.eigvals(matrix).abs().max())
    steps = 128
    basis, image = matrix.new_zeros(steps + 1, size), matrix.new_zeros(steps + 1, steps)
    # A generator of its own: the weights that are drawn next do not depend on the size.
    start = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis[0] = start / start.norm()
    for step in range(steps):
        vector = matrix @ basis[step]
        for _ in range(2):  # once leaves too much of the directions that are there already
            parts = basis[: step + 1] @ vector
            vector -= parts @ basis[: step + 1]
            image[: step + 1, step] += parts
        norm = float(vector.norm())
        if norm < 1e-12:  # the directions so far are all that the matrix reaches
            steps = step + 1
            break
        image[step + 1, step] = norm
        basis[step + 1] = vector / norm
    return float(torch.linalg.eigvals(image[:steps, :steps]).abs().max())
