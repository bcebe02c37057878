"""What acts on the rows of a front end: shares and variances in closed form, the rest beside PyTorch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from running import threads_restored
from torch import nn

from textbed.batch import TokenBatch
from textbed.embedding.channels import Multichannel
from textbed.embedding.corrections import Adapted, Projected
from textbed.embedding.effects import Effects, idf_weights, sif_weights
from textbed.embedding.hashed import Hashed
from textbed.embedding.ngrams import NGrams
from textbed.embedding.table import FrontEnd, Table
from textbed.errors import UserError

MODES = ["sum", "mean", "max"]
V, D, PAD = 12, 4, 0


def batch_of(*documents: list[int]) -> TokenBatch:
    lengths = torch.tensor([0, *map(len, documents)])
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(ids, lengths.cumsum(0).int(), labels=torch.arange(len(documents)))


def documents_of(batch: TokenBatch) -> list[list[int]]:
    return [part.tolist() for part in batch.ids.split(batch.lengths.tolist())]


BATCH = batch_of([3, 1, 3, 5], [], [2], [7, PAD, 1, PAD], [PAD], [11] * 5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def effects(**settings) -> Effects:
    return Effects(Table(V, D, scale=1.0, padding_idx=PAD), V, **settings)


# What is off


@pytest.mark.parametrize("mode", MODES)
def test_nothing_acts_where_everything_is_off(mode):
    module = effects()
    assert (module.dim, module.padding_idx) == (D, PAD)
    assert module.prepare(BATCH) is BATCH
    assert module.penalty(BATCH) is None
    assert torch.equal(module(BATCH), module.inner(BATCH))
    assert torch.equal(module.pool(BATCH, mode), module.inner.pool(BATCH, mode))
    assert list(module.state_dict()) == ["inner.table.weight"]


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_knows_the_weights_alone(mode):
    weights = torch.rand(V)
    module = effects(word_dropout=0.5, row_dropout=0.5, noise=1.0, pull=1.0, weights=weights).eval()
    before = torch.get_rng_state()
    prepared = module.prepare(BATCH)
    assert torch.equal(prepared.ids, BATCH.ids)
    assert torch.equal(prepared.weights, weights[BATCH.ids.long()])
    pooled = module.pool(prepared, mode)
    assert torch.equal(pooled, module.inner.pool(replace(BATCH, weights=prepared.weights), mode))
    assert torch.equal(module(prepared), module.inner(BATCH) * prepared.weights.unsqueeze(1))
    assert torch.equal(before, torch.get_rng_state())


# Words


@pytest.mark.parametrize(("share", "length"), [(0.3, 1), (0.3, 7), (0.9, 2), (0.9, 20), (0.999, 5)])
def test_the_share_of_words_that_is_kept(share, length):
    count = 20_000
    module = effects(word_dropout=share)
    document = [1 + number % 11 for number in range(length)]
    kept = module.prepare(batch_of(*[document] * count))
    lengths = kept.lengths.double()
    # Binomial, but for the empty documents, which hold one token instead.
    mean = length * (1 - share) + share**length
    square = length * share * (1 - share) + (length * (1 - share)) ** 2 + share**length
    error = math.sqrt((square - mean**2) / count)
    assert lengths.mean().item() == pytest.approx(mean, abs=5 * error + 1e-9)
    assert lengths.min() >= 1
    # each place is kept as often as any other, also where only one is
    places = torch.bincount(kept.ids, minlength=V)[document[: min(length, 11)]].double()
    if length <= 11:
        assert (places / count - mean / length).abs().max() < 5 * math.sqrt(0.25 / count)


def test_words_keep_their_order_and_everything_that_goes_with_them():
    module = effects(word_dropout=0.5)
    batch = replace(
        batch_of(list(range(1, 12)), [], [5, 5, 6], [PAD, 4, PAD]), weights=torch.arange(17).float()
    )
    for _ in range(20):
        kept = module.prepare(batch)
        documents = documents_of(kept)
        assert documents[0] == sorted(set(documents[0]))
        assert documents[1] == []
        assert documents[2]
        assert set(documents[2]) <= {5, 6}
        assert documents[3] == [4]  # padding is no word: dropping all the others leaves the last of them
        assert torch.equal(kept.labels, batch.labels)
        assert kept.weights[: len(documents[0])].tolist() == [word - 1 for word in documents[0]]
        assert kept.weights[-1] == 15


# Rows


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_dropped_row_is_dropped_everywhere(share):
    module = effects(row_dropout=share)
    batch = batch_of([1, 2, 1, 3], [1, 4, 2, 2])
    steps = 2000
    kept = torch.zeros(V)
    for _ in range(steps):
        weights = module.prepare(batch).weights
        factors = {}
        for token, factor in zip(batch.ids.tolist(), weights.tolist(), strict=True):
            assert factors.setdefault(token, factor) == factor
        assert set(factors.values()) <= {0.0, torch.tensor(1 / (1 - share)).item()}
        kept[list(factors)] += torch.tensor([float(factor > 0) for factor in factors.values()])
    error = math.sqrt(share * (1 - share) / steps)
    assert (kept[1:5] / steps - (1 - share)).abs().max() < 5 * error


def test_the_rows_of_a_batch_are_those_of_a_masked_table():
    module = effects(row_dropout=0.5)
    batch = module.prepare(BATCH)
    factor_of = dict(zip(BATCH.ids.tolist(), batch.weights.tolist(), strict=True))
    masked = module.inner.table.weight.detach().clone()
    for token, factor in factor_of.items():
        masked[token] *= factor
    reference = Table(V, D, vectors=masked, padding_idx=PAD)
    for mode in MODES:
        torch.testing.assert_close(module.pool(batch, mode), reference.pool(BATCH, mode))
    assert 0.0 in factor_of.values()


# Noise


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["fused", "plain"])
def test_noise_has_the_spread_of_the_noise_of_its_tokens(mode, weighted, way):
    """The way that makes a row for each token is the definition; drawing for a document must be like it."""
    module = effects(noise=0.5)
    pool = module.pool if way == "fused" else lambda *given: FrontEnd.pool(module, *given)
    document, factors = [3, PAD, 1, 3], [0.5, 9.0, 2.0, 1.0]
    count = 20_000
    batch = batch_of(*[document] * count, [], [PAD])
    if weighted:
        batch.weights = torch.tensor([*factors * count, 9.0])
    draws = pool(batch, mode)
    assert torch.equal(draws[-2:], torch.zeros(2, D))  # where there is no token there is no noise
    difference = (draws - module.inner.pool(batch, mode))[:-2]
    if mode == "max":
        assert difference.mean() > 0.05  # the largest of several draws
        return
    squares = sum(factor**2 for factor in ([0.5, 2.0, 1.0] if weighted else [1.0] * 3))
    variance = 0.25 * squares / (9 if mode == "mean" else 1)
    size = difference.numel()
    assert difference.mean().item() == pytest.approx(0, abs=5 * math.sqrt(variance / size))
    assert difference.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / size))
    # independent between columns and documents
    correlation = torch.corrcoef(difference.T) - torch.eye(D)
    assert correlation.abs().max() < 5 / math.sqrt(count)
    assert torch.corrcoef(torch.stack([difference[:-1, 0], difference[1:, 0]]))[0, 1].abs() < 0.05


def test_noise_on_rows_is_drawn_for_each_token():
    module = effects(noise=0.5)
    batch = replace(batch_of([3] * 20_000), weights=torch.full((20_000,), 2.0))
    difference = module(batch) - module.inner(batch)
    assert difference.std().item() == pytest.approx(1.0, abs=0.02)
    assert len(torch.unique(difference[:, 0])) > 19_000


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_noise_leaves_the_gradient_alone(mode):
    module = effects(noise=0.5, row_dropout=0.5, learn_weights=True)
    batch = module.prepare(BATCH)
    parameters = list(module.parameters())
    noisy = torch.autograd.grad(module.pool(batch, mode).sum(), parameters, retain_graph=True)
    plain = torch.autograd.grad(module.inner.pool(batch, mode).sum(), parameters)
    for ours, theirs in zip(noisy, plain, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs)


# Weights


def test_sif_by_hand():
    weights = sif_weights(torch.tensor([0, 0, 1, 9, 990]), a=0.01)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.01 / 0.011, 0.01 / 0.019, 0.01]))


def test_idf_by_hand():
    weights = idf_weights(torch.tensor([3, 1, 2, 0]), 3)
    expected = [1.0, math.log(4 / 2) + 1, math.log(4 / 3) + 1, math.log(4) + 1]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_the_mean_divides_by_the_number_of_tokens():
    weights = torch.arange(V).float()
    module = effects(weights=weights)
    rows = module.inner.table.weight
    pooled = module.pool(module.prepare(batch_of([2, 3, PAD])), "mean")
    torch.testing.assert_close(pooled, (2 * rows[2] + 3 * rows[3]).unsqueeze(0) / 2)


def test_learned_weights_begin_at_one_and_learn():
    module = effects(learn_weights=True)
    assert torch.equal(module.prepare(BATCH).weights, torch.ones(len(BATCH.ids)))
    assert list(module.state_dict()) == ["log_weights", "inner.table.weight"]
    assert sum(parameter.numel() for parameter in module.parameters()) == V * D + V
    # against a plain product of a table and of weights
    with torch.no_grad():
        module.log_weights.uniform_(-1, 1)
    table, factors = (
        part.detach().clone().requires_grad_() for part in (module.inner.table.weight, module.log_weights)
    )
    kept = BATCH.without(PAD)
    rows = nn.functional.embedding(kept.ids, table, PAD) * factors.exp()[kept.ids].unsqueeze(1)
    kept.reduce(rows, "mean").square().sum().backward()
    module.pool(module.prepare(BATCH), "mean").square().sum().backward()
    torch.testing.assert_close(module.log_weights.grad, factors.grad)
    torch.testing.assert_close(module.inner.table.weight.grad, table.grad)
    assert factors.grad.count_nonzero() == 6  # 1, 2, 3, 5, 7 and 11: padding teaches nothing


def test_learned_weights_of_a_frozen_table():
    table = Table(V, D, vectors=torch.randn(V, D), trainable=False, padding_idx=PAD)
    module = Effects(table, V, learn_weights=True)
    module.pool(module.prepare(BATCH), "mean").sum().backward()
    assert module.log_weights.grad.count_nonzero() == 6
    assert table.table.weight.grad is None
    assert [name for name, one in module.named_parameters() if one.requires_grad] == ["log_weights"]


def test_all_factors_are_multiplied():
    weights = torch.rand(V) + 0.5
    module = effects(weights=weights, row_dropout=0.5)
    given = torch.rand(len(BATCH.ids))
    prepared = module.prepare(replace(BATCH, weights=given)).weights
    whole = given * weights[BATCH.ids.long()]
    kept = prepared != 0
    torch.testing.assert_close(prepared[kept], 2 * whole[kept])
    assert 0 < kept.sum() < len(kept)


# The pull


def test_the_penalty_and_its_gradient_by_hand():
    pulled = torch.ones(V, dtype=torch.bool)
    pulled[5] = False
    module = effects(pull=0.3, pulled=pulled)
    assert module.penalty(BATCH).item() == 0
    begin = module.inner.table.weight.detach().clone()
    with torch.no_grad():
        module.inner.table.weight.add_(torch.randn(V, D))
        module.inner.table.weight[PAD] = 0
    moved = module.inner.table.weight.detach() - begin
    # each once, however often it stands in the batch; 5 has no vector, 0 is padding
    touched = [1, 2, 3, 7, 11]
    penalty = module.penalty(BATCH)
    assert penalty.item() == pytest.approx(0.15 * moved[touched].square().sum().item(), rel=1e-5)
    penalty.backward()
    expected = torch.zeros(V, D)
    expected[touched] = 0.3 * moved[touched]
    torch.testing.assert_close(module.inner.table.weight.grad, expected)


def test_the_pull_is_weight_decay_about_the_first_rows():
    """Of a batch that holds every row: decay of w - w0, as SGD has it of w."""
    module = effects(pull=0.3)
    everything = batch_of(list(range(V)))
    table = module.inner.table.weight
    begin = table.detach().clone()
    offset = torch.randn(V, D)
    offset[PAD] = 0
    with torch.no_grad():
        table.add_(offset)
    optimizer = torch.optim.SGD([table], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        module.penalty(everything).backward()
        optimizer.step()
    torch.testing.assert_close(table.detach(), begin + offset * (1 - 0.5 * 0.3) ** 3)


def test_the_rows_to_pull_to_are_in_the_checkpoint():
    module = effects(pull=1.0)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    assert set(kept) == {"inner.table.weight", "initial", "pulled"}
    other = effects(pull=1.0)
    assert not torch.equal(other.initial, module.initial)
    other.load_state_dict(kept)
    assert torch.equal(other.initial, module.initial)


def test_a_sparse_gradient_stays_sparse():
    module = Effects(Table(V, D, sparse=True), V, pull=1.0, row_dropout=0.3, noise=0.1)
    loss = module.pool(module.prepare(BATCH), "mean").sum() + module.penalty(BATCH)
    loss.backward()
    assert module.inner.table.weight.grad.is_sparse
    touched = module.inner.table.weight.grad.coalesce().indices()[0].tolist()
    assert set(touched) == set(BATCH.ids.tolist())


# Other front ends


WORDS = ["<pad>", "<unk>", *"abcdefghij"]
FRONT_ENDS = {
    "hashed": lambda: Hashed(V, D, tokens=WORDS, buckets=7, padding_idx=PAD),
    "ngrams": lambda: NGrams(V, D, tokens=WORDS, buckets=50, min_char=3, max_char=4, padding_idx=PAD),
    "multichannel": lambda: Multichannel(V, vectors=torch.randn(V, D), padding_idx=PAD),
    "adapted": lambda: Adapted(V, vectors=torch.randn(V, D), rank=2, padding_idx=PAD),
    "projected": lambda: Projected(V, vectors=torch.randn(V, D), out_dim=3, padding_idx=PAD),
    "thawed": lambda: Table(V, vectors=torch.randn(V, D), frozen_epochs=1, padding_idx=PAD),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_around_any_front_end(name, mode):
    inner = FRONT_ENDS[name]()
    settings = {"word_dropout": 0.3, "row_dropout": 0.3, "noise": 0.1, "learn_weights": True, "pull": 1.0}
    module = Effects(inner, V, pulled=torch.arange(V) != PAD, **settings)
    assert module.penalty(BATCH).item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.1)
    frozen = name == "thawed"
    # of each distinct token alone, without the n-grams that it makes with others
    alone = [[token] for token in sorted(set(BATCH.without(PAD).ids.tolist()))]
    now = inner(batch_of(*alone)).detach()
    begin = module.initial[[token for (token,) in alone]]
    penalty = module.penalty(BATCH)
    assert penalty.item() == pytest.approx(0.5 * (now - begin).square().sum().item(), rel=1e-4)
    assert penalty.requires_grad != frozen
    batch = module.prepare(BATCH)
    (module.pool(batch, mode).square().sum() + module(batch).square().sum() + penalty).backward()
    assert module.log_weights.grad.count_nonzero() > 0
    assert all(torch.isfinite(one.grad).all() for one in module.parameters() if one.grad is not None)
    module.eval()
    weighted = replace(BATCH, weights=module.log_weights.exp()[BATCH.ids.long()])
    assert torch.equal(module.pool(module.prepare(BATCH), mode), inner.pool(weighted, mode))


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_shortened_are_looked_up_more_than_once(mode):
    """Weights that learn keep the table for their gradient, and the next lookup shortens in place."""
    table = Table(V, D, scale=1.0, max_norm=0.5, padding_idx=PAD)
    module = Effects(table, V, learn_weights=True, pull=1.0, noise=0.1)
    with torch.no_grad():
        table.table.weight.mul_(3)
    batch = module.prepare(BATCH)
    (module.pool(batch, "mean") + module.pool(batch, mode)).sum().backward(retain_graph=True)
    module.penalty(BATCH).backward()
    touched = sorted(set(BATCH.ids.tolist()))
    assert (table.table.weight[touched].norm(dim=1) <= 0.5 + 1e-6).all()
    assert module.log_weights.grad.count_nonzero() == len(touched) - 1


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word_dropout": 1.0}, r"embedding.word_dropout is 1.0; expected a share from 0 to below 1"),
        ({"row_dropout": -0.1}, r"embedding.row_dropout is -0.1"),
        ({"noise": -1.0}, r"embedding.noise is -1.0; expected a number from 0 up"),
        ({"pull": math.inf}, r"embedding.pull is inf"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        effects(**settings)


def test_what_is_on_shows():
    said = repr(effects(word_dropout=0.3, learn_weights=True))
    assert "word_dropout=0.3, token_weights=learned" in said
    assert "noise" not in said


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(
    "settings",
    [{"max_norm": 0.7}, {"max_norm": 0.7, "norm_type": 1.0}, {"scale_grad_by_freq": True}],
    ids=["max_norm", "norm_type", "scale_grad_by_freq"],
)
def test_settings_of_the_table_train_as_those_of_embedding(settings, mode):
    """Three steps of SGD, beside nn.Embedding and a reduction by hand."""
    table = Table(V, D, padding_idx=PAD, scale=1.0, **settings)
    plain = nn.Embedding(V, D, padding_idx=PAD, _weight=table.table.weight.detach().clone(), **settings)
    target = torch.randn(len(BATCH), D)
    kept = BATCH.without(PAD)

    def train(module, pooled):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            (pooled() - target).square().sum().backward()
            optimizer.step()

    begin = plain.weight.detach().clone()
    train(table, lambda: table.pool(BATCH, mode))
    train(plain, lambda: kept.reduce(plain(kept.ids), mode))
    torch.testing.assert_close(table.table.weight, plain.weight)
    assert (plain.weight - begin).abs().max() > 0.1


def test_threads_add_the_weights_gradient_up_in_the_same_order_every_time():
    """40,000 tokens are enough for torch to divide them among threads; 11 weights, so that these meet."""
    random = torch.Generator().manual_seed(0)
    batch = TokenBatch(
        torch.randint(1, V, (40_000,), generator=random).int(), torch.arange(0, 40_001, 400).int()
    )
    module = effects(learn_weights=True)
    grad_N = torch.randn(40_000, generator=random)
    with threads_restored():
        torch.set_num_threads(2)
        first, *others = [
            torch.autograd.grad(module.prepare(batch).weights, module.log_weights, grad_N)[0]
            for _ in range(6)
        ]
    assert all(torch.equal(first, other) for other in others)
