"""Whether our own kernels are left out for those of PyTorch and Arrow: ``TEXTBED_PLAIN_KERNELS=1``.

It takes the place of three parts that are here for time alone: on the CPU the backward pass of lookups and
bags, the merging and writing of sparse rows (:mod:`textbed.embedding.bag`) and the scan of recurrent layers
(:mod:`textbed.heads.scan`), and anywhere the cutting of short texts as Python strings
(:mod:`textbed.data.words`). Short texts get the same ids. The others add up in another order, so that a run
differs from one without the variable by float rounding. What PyTorch does not have stays ours: sparse
gradients of maxima, which hold the rows that were largest alone; sums in float32 of gradients in half
precision; and leaking or linear recurrent layers.

The environment is read once, when this module is imported; what asks for ``plain`` then reads an attribute.
"""

from __future__ import annotations

import os

PLAIN = "TEXTBED_PLAIN_KERNELS"

plain = os.environ.get(PLAIN) == "1"
