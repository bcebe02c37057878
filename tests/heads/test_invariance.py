"""What every head in configs/head promises: neither padding nor neighbours can be seen, and all trains.

Heads are found by listing the folder, so a new one is held to the same promises by its config file alone.
Values may differ in the last bits, since a matrix product of another size adds in another order; 1e-5 is
allowed.
"""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from head_reference import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_heads import plain_of
from running import HEADS, head_config
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.classifier import TextClassifier
from textbed.embedding.table import FrontEnd, Table
from textbed.heads.base import Head
from textbed.training import build_head

V, D, C, PAD = 40, 6, 3, 0
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# Heads to which a document is a bag of words; to all others order must matter.
ORDERLESS = {
    *("sum", "mean", "max", "min", "mean_max", "power", "logsumexp", "random_projection"),
    *("weighted", "attention", "self_attention", "dan"),
}
# Heads with parameters, of which none is trained.
DRAWN = {"random_projection", "random_lstm", "esn"}


def make_head(name: str, seed: int = 0, dim: int = D) -> Head:
    return build_head(head_config(name), dim, C, seed)


def make_batch(documents: list[list[int]]) -> TokenBatch:
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0).int()
    return TokenBatch(
        torch.tensor([token for document in documents for token in document], dtype=torch.int32), offsets
    )


def make_documents(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, V, (length,), generator=generator).tolist() for length in lengths]


class Model:
    """A front end, a head and a classifier with weights of their own, in evaluation."""

    def __init__(self, name: str, front_end: type[FrontEnd] = Table, seed: int = 0) -> None:
        torch.manual_seed(0)
        self.name = name
        self.embedding = front_end(V, D, padding_idx=PAD, scale=1.0)  # type: ignore[call-arg]
        self.head = make_head(name, seed).eval()
        self.classifier = TextClassifier(self.embedding, self.head, C, dropout=0.5, seed=seed).eval()

    def __call__(self, documents: list[list[int]]) -> Tensor:
        """What the head gives, (B, H)."""
        with torch.no_grad():
            return self.head(make_batch(documents), self.embedding)

    def logits(self, documents: list[list[int]]) -> Tensor:
        """(B, C)."""
        with torch.no_grad():
            return self.classifier(make_batch(documents))


@pytest.fixture(scope="module", params=HEADS)
def model(request) -> Model:
    return Model(request.param)


def test_there_are_heads():
    assert {"lstm", "gru", "bilstm", "bigru", "mingru", "cnn", "hierarchical", "label_attention"} <= set(
        HEADS
    )
    assert set(HEADS) > ORDERLESS


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), min_size=1, max_size=9),
    size=st.integers(1, 4),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_document_gets_the_same_in_any_company(model, lengths, size, shuffle):
    documents = make_documents(lengths)
    for say, width in ((model, model.head.out_dim), (model.logits, C)):
        together = say(documents)
        assert together.shape == (len(documents), width)
        alone = torch.cat([say([document]) for document in documents])
        torch.testing.assert_close(together, alone, **CLOSE)
        order = list(range(len(documents)))
        shuffle.shuffle(order)
        torch.testing.assert_close(say([documents[i] for i in order]), together[order], **CLOSE)
        parts = [say(documents[start : start + size]) for start in range(0, len(documents), size)]
        torch.testing.assert_close(torch.cat(parts), together, **CLOSE)
        for backwards in (False, True):  # from short to long, and from long to short
            by_length = sorted(range(len(documents)), key=lengths.__getitem__, reverse=backwards)
            torch.testing.assert_close(say([documents[i] for i in by_length]), together[by_length], **CLOSE)


def test_padding_is_not_seen(model):
    """Padding ids that come along, at the end, in front or within, change nothing."""
    documents = make_documents([3, 0, 1, 6])
    plain = model(documents)
    ids_BL, _ = make_batch(documents).padded(PAD)
    torch.testing.assert_close(model(ids_BL.tolist()), plain, **CLOSE)
    within = [[PAD, *document[:1], PAD, PAD, *document[1:], PAD] for document in documents]
    torch.testing.assert_close(model(within), plain, **CLOSE)


def test_very_unequal_lengths(model):
    documents = make_documents([1, 1000, 0, 2])
    together = model(documents)
    torch.testing.assert_close(together[0], model(documents[:1])[0], **CLOSE)
    torch.testing.assert_close(together[1], model(documents[1:2])[0], **CLOSE)
    assert not together[2].any()


def test_empty_documents_give_zeros(model):
    assert not model([[], [], []]).any()
    assert model([[], [], []]).shape == (3, model.head.out_dim)
    assert not model([[PAD, PAD], [3]])[0].any()
    assert model([[PAD, PAD], [3]])[1].any()


def test_order_of_tokens(model):
    words = [*range(1, 14)]
    ahead, apart = model([words, words[::2] + words[1::2]])
    assert torch.allclose(ahead, apart, atol=1e-5) == (model.name in ORDERLESS)


def test_what_is_saved_is_the_whole_head(model, tmp_path):
    """A head built from another seed gives the same to the last bit once it has loaded the file."""
    documents = make_documents([3, 0, 1, 60])
    torch.save(model.head.state_dict(), tmp_path / "head.pt")
    again = Model(model.name, seed=1)
    again.head.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(again(documents), model(documents))


def test_a_checkpoint_gives_the_same_logits(model, tmp_path):
    """Saved as the trainer saves it, into a model from another seed: the same to the last bit."""
    documents = make_documents([3, 0, 1, 60])
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.strategy.connect(model.classifier)
    model.classifier.trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    again = Model(model.name, seed=1)
    assert not torch.equal(again.logits(documents), model.logits(documents))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    again.classifier.load_state_dict(state)
    assert torch.equal(again.logits(documents), model.logits(documents))


@pytest.mark.parametrize("name", HEADS)
def test_against_a_plain_slow_reference(name):
    """One document at a time, one token after the other where it is read so; one token, and the longest."""
    torch.manual_seed(0)
    head = make_head(name, dim=5)
    assert_same(head, plain_of(head), [4, 0, 1, 30, 2])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("trainable", [True, False])
def test_gradients_reach_every_parameter_and_no_frozen_table(name, trainable):
    torch.manual_seed(0)
    head = make_head(name)
    embedding = Table(V, D, vectors=torch.randn(V, D), trainable=trainable, padding_idx=PAD)
    batch = make_batch(make_documents([5, 0, 1, 9]))
    nn.functional.cross_entropy(
        nn.Linear(head.out_dim, 2)(head(batch, embedding)), torch.tensor([0, 1, 0, 1])
    ).backward()
    for key, parameter in head.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    trained = [parameter.requires_grad for parameter in head.parameters()]
    assert (bool(trained) and not any(trained)) == (name in DRAWN)
    assert name in DRAWN or all(trained)
    weight = embedding.table.weight
    if trainable:
        used = torch.zeros(V, dtype=torch.bool)
        used[batch.ids.long()] = True
        assert weight.grad.any()
        assert not weight.grad[~used].any()
    else:
        assert weight.grad is None


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_empty_documents_still_touches_every_parameter(name):
    """DDP waits for a gradient of each parameter in each step, whatever a rank's documents are."""
    head, embedding = make_head(name), Table(V, D, padding_idx=PAD)
    head(make_batch([[], []]), embedding).sum().backward()
    for parameter in [*head.parameters(), *embedding.parameters()]:
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("name", HEADS)
def test_a_front_end_with_nothing_but_forward_is_enough(name):
    """Heads ask for ``forward`` and ``pool`` alone, and the base class makes ``pool`` from ``forward``."""

    class Plain(Table):
        pool = FrontEnd.pool

    documents = make_documents([3, 0, 1, 8])
    torch.testing.assert_close(Model(name, Plain)(documents), Model(name)(documents), **CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_what_a_head_says_of_its_work(name):
    """Multiply-adds are a sum over documents, and ``pools`` is what it asks of the front end."""
    head = make_head(name)
    apart = [head.multiply_adds([length]) for length in (4, 1, 30)]
    assert head.multiply_adds([4, 1, 30, 1]) == sum(apart) + apart[1]
    assert head.multiply_adds([]) == 0
    assert 0 < apart[1] < apart[0] < apart[2]
    asked: list[str] = []

    class Recorder(Table):
        def forward(self, batch):
            asked.append("rows")
            return super().forward(batch)

        def pool(self, batch, mode):
            asked.append(mode)
            return super().pool(batch, mode)

    head(make_batch(make_documents([3, 1])), Recorder(V, D, padding_idx=PAD))
    assert asked == (["rows"] if head.pools is None else list(head.pools))
