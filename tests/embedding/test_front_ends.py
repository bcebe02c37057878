"""What hashed front ends promise under every head in configs/head: neither padding nor neighbours show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from running import HEADS, head_config
from torch import Tensor

from textbed.batch import TokenBatch
from textbed.embedding.hashed import Hashed
from textbed.embedding.ngrams import NGrams
from textbed.embedding.table import FrontEnd
from textbed.training import build_head

V, D, PAD = 40, 6, 0
TOKENS = ["<pad>", "<unk>", *(f"word{'x' * (number % 7)}{number}" for number in range(2, V))]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

USUAL: dict[str, Any] = {"tokens": TOKENS, "padding_idx": PAD, "scale": 1.0}
GRAMS: dict[str, Any] = {**USUAL, "ngram_init": "normal", "ngram_scale": 1.0}
FRONT_ENDS = {
    "bloom": lambda: Hashed(V, D, buckets=9, importance=False, **USUAL),
    "hash embeddings": lambda: Hashed(V, D - 2, buckets=9, append_importance=True, **USUAL),
    "word n-grams": lambda: NGrams(V, D, buckets=50, word_ngrams=3, **GRAMS),
    "word and character n-grams": lambda: NGrams(V, D, buckets=50, min_char=2, max_char=4, **GRAMS),
}


class Model:
    """A front end and a head, in evaluation."""

    def __init__(self, front_end: str, head: str) -> None:
        torch.manual_seed(0)
        self.embedding: FrontEnd = FRONT_ENDS[front_end]()
        self.head = build_head(head_config(head), self.embedding.dim, 3, seed=0).eval()

    def __call__(self, documents: list[list[int]]) -> Tensor:
        offsets = torch.tensor([0, *map(len, documents)]).cumsum(0).int()
        ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
        return self.head(self.embedding.prepare(TokenBatch(ids, offsets)), self.embedding)


@pytest.fixture(scope="module", params=[(one, other) for one in FRONT_ENDS for other in HEADS], ids=" ".join)
def model(request) -> Model:
    return Model(*request.param)


def documents_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, V, (length,), generator=generator).tolist() for length in lengths]


DOCUMENTS = documents_of(3, 0, 1, 40, 2, 0, 7)


def test_a_document_gets_the_same_in_any_company(model):
    together = model(DOCUMENTS)
    assert together.shape == (len(DOCUMENTS), model.head.out_dim)
    torch.testing.assert_close(together, torch.cat([model([document]) for document in DOCUMENTS]), **CLOSE)
    order = [4, 6, 0, 5, 3, 1, 2]
    torch.testing.assert_close(model([DOCUMENTS[i] for i in order]), together[order], **CLOSE)
    parts = [model(DOCUMENTS[start : start + 2]) for start in range(0, len(DOCUMENTS), 2)]
    torch.testing.assert_close(torch.cat(parts), together, **CLOSE)
    assert not torch.allclose(together[0], together[3])


def test_padding_is_not_seen(model):
    """At the end, in front or within."""
    within = [[PAD, *document[:1], PAD, PAD, *document[1:], PAD] for document in DOCUMENTS]
    torch.testing.assert_close(model(within), model(DOCUMENTS), **CLOSE)


def trained(model: Model) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves, without a gradient."""
    found = {}
    for part in (model.head, model.embedding):
        part.zero_grad()
        found |= {
            f"{type(part).__name__}.{name}": one for name, one in part.named_parameters() if one.requires_grad
        }
    return found


def test_empty_documents_give_zeros_and_touch_every_parameter(model):
    """DDP waits for a gradient of each parameter in each step, whatever a rank's documents are."""
    for given in ([[], [], []], [[PAD, PAD], []]):
        parameters = trained(model)
        out = model(given)
        assert out.shape == (len(given), model.head.out_dim)
        assert not out.any()
        out.sum().backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_gradients_reach_every_parameter_and_not_the_padding(model):
    parameters = trained(model)
    model([[PAD, *document, PAD] for document in DOCUMENTS]).square().sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
        if len(parameter) == V:
            assert not parameter.grad[PAD].any(), name
