"""The padded form of the network gives what the network gives, for every head and front end in configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from running import EMBEDDINGS, HEADS, front_end, head_config
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.effects import Effects
from textbed.embedding.hashed import Hashed
from textbed.embedding.ngrams import NGrams
from textbed.embedding.table import FrontEnd
from textbed.errors import UserError
from textbed.heads.base import Head
from textbed.heads.pooling import Pooling
from textbed.network import Network
from textbed.padded import Padded, has_padded_form
from textbed.training import build_head

V, D, C, PAD = 30, 8, 3, 0
TOKENS = ["<pad>", "<unk>", *(f"word{'x' * (number % 7)}{number}" for number in range(2, V))]
GRAMS: dict[str, Any] = {
    "tokens": TOKENS,
    "buckets": 50,
    "ngram_init": "normal",
    "padding_idx": PAD,
    "scale": 1.0,
}
# Settings that alter what is computed, beyond the files' own.
READERS: dict[str, dict[str, Any]] = {
    "three layers": {
        "cell": "lstm",
        "layers": 3,
        "bidirectional": True,
        "layer_norm": True,
        "residual": True,
    },
    "windows": {"cell": "gru", "bidirectional": True, "window": 4, "stride": 3, "readout": "max"},
    "windows, the last": {"cell": "rnn_relu", "window": 2, "window_pooling": "max"},
    "mean of states": {"cell": "rnn_tanh", "readout": "mean", "truncate": 3},
}


def make_head(name: str, dim: int = D) -> Head:
    return build_head(head_config(name), dim, C, 0)


def network_of(embedding: FrontEnd, head: Head, **settings: Any) -> Network:
    made = Network(embedding, head, C, **settings).eval()
    for parameter in made.parameters():
        if parameter.dim() == 1:  # biases that begin as zeros hide what is forgotten
            nn.init.normal_(parameter)
    return made


def as_batch(documents: list[list[int]]) -> TokenBatch:
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(ids, torch.tensor([0, *map(len, documents)]).cumsum(0).int())


def as_rows(documents: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Padded with tokens that are none of the documents'."""
    longest = max(1, *map(len, documents))
    ids = torch.tensor([[*document, *[5] * (longest - len(document))] for document in documents])
    return ids, torch.tensor([len(document) for document in documents])


def documents_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, V, (length,), generator=generator).tolist() for length in lengths]


BATCHES = [
    documents_of(5, 0, 1, 12, 2, 60, 4),
    documents_of(9),
    documents_of(1),
    documents_of(0),
    documents_of(0, 1),
    [[PAD, 7, PAD, PAD, 3, 9, PAD], [PAD, PAD], [4]],  # padding within, and nothing else
]


def assert_same(network: Network, atol: float = 2e-6) -> None:
    padded = Padded(network, V).eval()
    with torch.no_grad():
        for documents in BATCHES:
            expected = network.probabilities(network(as_batch(documents)))
            torch.testing.assert_close(padded(*as_rows(documents)), expected, rtol=1e-5, atol=atol)


# A new head need not have a padded form; these do.
WITH_ONE = {"mean", "power", "attention", "label_attention", "bilstm", "gru", "bimingru", "esn", "cnn", "dan"}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    torch.manual_seed(0)
    network = network_of(front_end("random", V, D), make_head(name))
    if name not in WITH_ONE and not has_padded_form(network.head):
        pytest.skip("it has no padded form")
    assert_same(network)


@pytest.mark.parametrize("settings", READERS.values(), ids=READERS)
def test_readers(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    node = {"_target_": "textbed.heads.recurrent.Recurrent", "hidden": 5, **settings}
    assert_same(network_of(front_end("random", V, D), build_head(node, D, C, 0)))


def test_scores_behind_the_end_may_be_huge() -> None:
    torch.manual_seed(0)
    head = make_head("bilstm_attention")
    with torch.no_grad():
        head.score[2].weight *= 1e4  # and so are differences in the states' last digits
    assert_same(network_of(front_end("random", V, D), head), atol=1e-2)


def test_echo_states_with_a_leak() -> None:
    torch.manual_seed(0)
    node = {"_target_": "textbed.heads.reservoir.EchoState", "hidden": 7, "leak": 0.3, "activation": "tanh"}
    assert_same(network_of(front_end("random", V, D), build_head(node, D, C, 0)))


HARD: dict[str, Any] = {
    "three words and characters": lambda: NGrams(V, D, word_ngrams=3, min_char=2, max_char=4, **GRAMS),
    "characters alone": lambda: NGrams(V, D, word_ngrams=1, min_char=2, max_char=4, **GRAMS),
    "beside": lambda: NGrams(V, D, ngram_dim=4, min_char=3, max_char=3, **GRAMS),
    "importance": lambda: Hashed(V, D, tokens=TOKENS, buckets=9, append_importance=True, padding_idx=PAD),
    "long rows": lambda: front_end("finetuned", V, D, max_norm=0.3),
    "no padding row": lambda: front_end("random", V, D, padding_idx=None),
}


@pytest.mark.parametrize("name", [*EMBEDDINGS, *HARD])
@pytest.mark.parametrize("weighted", [False, True])
def test_front_ends(name: str, weighted: bool) -> None:
    """Under heads that pool, in every mode, and that read rows."""
    torch.manual_seed(0)
    embedding = HARD[name]() if name in HARD else front_end(name, V, D, found=torch.arange(V) % 3 > 0)
    if weighted:
        embedding = Effects(embedding, V, weights=torch.rand(V) + 0.1, learn_weights=name in HARD, noise=0.5)
    with torch.no_grad():
        for parameter in embedding.parameters():
            if parameter.dim() == 2:  # what begins as zeros or ones
                parameter += 0.1 * torch.randn_like(parameter)
    for head in (Pooling(embedding.dim, ["sum", "mean", "max"]), make_head("cnn", embedding.dim)):
        assert_same(network_of(embedding, head, activation="tanh"))


def test_pairs_and_several_classes() -> None:
    torch.manual_seed(0)
    network = network_of(front_end("random", V, D), make_head("gru"), pairs=True, multilabel=True)
    firsts, seconds = documents_of(4, 0, 7), documents_of(1, 30, 2)
    expected = network.probabilities(network(as_batch([*firsts, *seconds])))
    padded = Padded(network, V)(*as_rows(firsts), *as_rows(seconds))
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-6)
    assert padded.shape == (3, C)


def test_what_has_no_padded_form() -> None:
    class Mine(Head):
        out_dim = D

    class Near(FrontEnd):
        dim = D

    with pytest.raises(UserError, match=r"head .*Mine has no padded form.* use --to folder"):
        Padded(network_of(front_end("random", V, D), Mine()), V)
    with pytest.raises(UserError, match=r"front end .*Near has no padded form.*row_by_id"):
        Padded(network_of(Near(), make_head("mean")), V)
