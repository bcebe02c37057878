"""The table: where its rows come from, what trains, and pooling against looking up and reducing by hand."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise
from typing import get_args

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from textbed.batch import TokenBatch
from textbed.embedding.corrections import Adapted, Projected
from textbed.embedding.table import DEFAULT_SCALE, FrontEnd, Initialisation, Missing, Table
from textbed.errors import UserError
from textbed.schema import PASSED_ON, RECIPE_KEYS, EmbeddingConfig, rules

MODES = ["sum", "mean", "max"]
V, D, PAD = 12, 4, 0


def batch_of(*documents: list[int]) -> TokenBatch:
    lengths = torch.tensor([0, *map(len, documents)])
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    return TokenBatch(ids, lengths.cumsum(0).int())


BATCH = batch_of([3, 1, 3, 5], [], [2], [7, PAD, 1, PAD], [PAD], [11] * 50)


def by_hand(weight: torch.Tensor, batch: TokenBatch, mode: str, padding_idx: int | None) -> torch.Tensor:
    rows = []
    for start, end in pairwise(batch.offsets.tolist()):
        tokens = [token for token in batch.ids[start:end].tolist() if token != padding_idx]
        part = weight[tokens]
        if not tokens:
            rows.append(torch.zeros(weight.shape[1]))
        else:
            rows.append(part.amax(0) if mode == "max" else getattr(part, mode)(0))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_idx", [PAD, None])
@pytest.mark.parametrize("way", ["fused", "plain"])
def test_pool_and_its_gradient_against_a_loop(mode, padding_idx, way):
    torch.manual_seed(0)
    table = Table(V, D, padding_idx=padding_idx)
    pool = table.pool if way == "fused" else lambda *args: FrontEnd.pool(table, *args)
    expected = by_hand(table.table.weight, BATCH, mode, padding_idx)
    torch.testing.assert_close(pool(BATCH, mode), expected)
    weights = torch.randn(len(BATCH), D)
    parameters = list(table.parameters())
    ours = torch.autograd.grad((pool(BATCH, mode) * weights).sum(), parameters)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), parameters))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["fused", "plain"])
def test_weights_multiply_rows_and_a_mean_divides_by_the_tokens(mode, way):
    torch.manual_seed(0)
    table = Table(V, D, padding_idx=PAD)
    pool = table.pool if way == "fused" else lambda *args: FrontEnd.pool(table, *args)
    batch = batch_of([3, 1], [2, PAD])
    batch.weights = torch.tensor([0.5, -2.0, 3.0, 7.0])
    rows = table.table.weight
    both = torch.stack([0.5 * rows[3], -2.0 * rows[1]])
    first = {"sum": both.sum(0), "mean": both.sum(0) / 2, "max": both.amax(0)}[mode]
    torch.testing.assert_close(pool(batch, mode), torch.stack([first, 3.0 * rows[2]]))


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_rows_for_words_of_the_evaluation_text_change_no_other(init):
    """5 x 7 numbers are no whole number of blocks of 16, by which a longer draw begins otherwise."""
    vectors = torch.arange(56.0).view(8, 7)
    vectors[5:] *= 100
    found = torch.tensor([False, True, False, True, False, True, True, True])

    def rows(size: int, appended: int) -> torch.Tensor:
        torch.manual_seed(0)
        given = {"vectors": vectors[:size], "found": found[:size], "init": init, "padding_idx": 0}
        return Table(size, appended=appended, **given).table.weight

    torch.testing.assert_close(rows(8, 3), torch.cat([rows(5, 0), vectors[5:]]), rtol=0, atol=0)
    assert not torch.equal(rows(8, 0)[:5], rows(5, 0))


@pytest.mark.parametrize("mode", MODES)
def test_padding_idx_off_the_cpu_means_the_same(mode):
    """A GPU gets padding_idx itself instead of ids without padding; here both are computed by the CPU."""
    table = Table(V, D, padding_idx=PAD)
    direct = nn.functional.embedding_bag(
        BATCH.ids, table.table.weight, BATCH.offsets, mode=mode, include_last_offset=True, padding_idx=PAD
    )
    torch.testing.assert_close(table.pool(BATCH, mode), direct)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("setting", ["sparse", "scale_grad_by_freq"])
def test_gradient_settings_reach_the_table(setting, mode):
    settings = {setting: True}
    torch.manual_seed(0)
    table = Table(V, D, padding_idx=PAD, **settings)
    table.pool(BATCH, mode).square().sum().backward()
    gradient = table.table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse == settings.get("sparse", False)
    reference = nn.Embedding(V, D, padding_idx=PAD, _weight=table.table.weight.detach().clone(), **settings)
    kept = BATCH.without(PAD)
    kept.reduce(reference(kept.ids), mode).square().sum().backward()
    torch.testing.assert_close(gradient.to_dense(), reference.weight.grad.to_dense())


def test_all_settings_reach_the_embedding():
    table = Table(V, D, padding_idx=2, max_norm=3.0, norm_type=1.0, scale_grad_by_freq=True)
    module = table.table
    assert (module.padding_idx, module.max_norm, module.norm_type) == (2, 3.0, 1.0)
    assert (module.scale_grad_by_freq, module.sparse) == (True, False)
    assert Table(V, D, sparse=True).table.sparse
    assert list(table.state_dict()) == ["table.weight"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_max_norm_shortens_what_is_looked_up(mode, norm_type):
    torch.manual_seed(0)
    table = Table(V, D, scale=1.0, max_norm=0.5, norm_type=norm_type)
    assert (table.table.weight.norm(norm_type, dim=1) <= 0.5 + 1e-6).all()
    with torch.no_grad():
        table.table.weight[3] = 10.0
        table.table.weight[4] = 10.0
    pooled = table.pool(batch_of([3]), mode)
    assert pooled.norm(norm_type).item() == pytest.approx(0.5, abs=1e-5)
    assert table.table.weight[4].tolist() == [10.0] * D
    assert table(batch_of([4])).norm(norm_type).item() == pytest.approx(0.5, abs=1e-5)
    # Two lookups before the backward pass, each of which writes in place.
    (table.pool(BATCH, "mean") + table.pool(BATCH, "max")).sum().backward()


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf])
def test_a_row_is_shortened_once_and_to_the_bits_of_nn_embedding(norm_type):
    """nn.Embedding shortens many of these rows again and again, by their last digits."""
    random = torch.Generator().manual_seed(0)
    table = Table(300, 300, max_norm=0.7, norm_type=norm_type)
    with torch.no_grad():
        table.table.weight.normal_(generator=random)
    plain = nn.Embedding(
        300, 300, _weight=table.table.weight.detach().clone(), max_norm=0.7, norm_type=norm_type
    )
    ids = torch.randint(300, (1000,), generator=random).int()
    batch = TokenBatch(ids, torch.tensor([0, 400, 1000], dtype=torch.int32))
    with torch.no_grad():
        first = table(batch)
        assert torch.equal(first, plain(ids))
        kept = table.table.weight.clone()
        assert torch.equal(table(batch_of(ids.tolist()[::-1])), first.flip(0))
        table.pool(batch, "mean")
        assert torch.equal(table.table.weight, kept)
        # any training moves a row by more than what is let pass
        table.table.weight.mul_(1 + 1e-4)
        table(batch)
        assert torch.allclose(table.table.weight[ids], kept[ids], rtol=1e-5, atol=0)


def test_a_frozen_table_is_shortened_once():
    vectors = torch.randn(V, D) * 3
    table = Table(V, D, vectors=vectors, trainable=False, max_norm=1.0)
    assert (table.table.weight.norm(dim=1) <= 1 + 1e-6).all()
    before = table.table.weight.clone()
    table.pool(BATCH, "mean")
    table(BATCH)
    assert torch.equal(before, table.table.weight)


def test_rows_come_from_vectors_and_the_others_at_their_scale():
    torch.manual_seed(0)
    vectors = torch.randn(5000, 8) * 0.37
    found = torch.arange(5000) % 2 == 0
    table = Table(5000, vectors=vectors, found=found, padding_idx=PAD)
    weight = table.table.weight.detach()
    assert table.dim == 8
    assert torch.equal(weight[2::2], vectors[2::2])
    assert weight[PAD].tolist() == [0] * 8
    assert weight[~found].std().item() == pytest.approx(vectors[found].std().item(), rel=0.02)
    wide = Table(5000, vectors=vectors, found=found, scale=2.0).table.weight[~found]
    assert wide.std().item() == pytest.approx(2, rel=0.02)
    uniform = Table(5000, vectors=vectors, found=found, init="uniform").table.weight[~found]
    assert uniform.std().item() == pytest.approx(vectors[found].std().item(), rel=0.02)


def test_initial_rows():
    assert Table(5000, 8).table.weight.std().item() == pytest.approx(DEFAULT_SCALE, rel=0.02)
    uniform = Table(5000, 8, init="uniform", scale=0.25).table.weight
    assert uniform.abs().max().item() == pytest.approx(0.25, rel=0.01)
    assert uniform.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    assert not Table(V, D, init="zeros").table.weight.any()


@pytest.mark.parametrize(
    ("init", "formula"),
    [
        ("xavier_normal", (2 / (500 + 40)) ** 0.5),
        ("xavier_uniform", (6 / (500 + 40)) ** 0.5),
        ("kaiming_normal", 40**-0.5),
        ("kaiming_uniform", (3 / 40) ** 0.5),
    ],
)
def test_initialisations_with_a_scale_of_their_own(init, formula):
    """As torch.nn.init draws them, with a gain of 1; and their formulas."""
    torch.manual_seed(0)
    weight = Table(500, 40, init=init).table.weight
    torch.manual_seed(0)
    extra = {"nonlinearity": "linear"} if init.startswith("kaiming") else {}
    torch.testing.assert_close(weight.data, getattr(nn.init, f"{init}_")(torch.empty(500, 40), **extra))
    spread = weight.std() if init.endswith("normal") else weight.abs().max()
    assert spread.item() == pytest.approx(formula, rel=0.02)
    # the vectors' scale does not change it
    found = torch.zeros(500, dtype=torch.bool)
    found[7] = True
    torch.manual_seed(0)
    beside = Table(500, 40, init=init, vectors=torch.full((500, 40), 9.0), found=found).table.weight
    assert torch.equal(beside[~found], weight[~found])
    assert (beside[7] == 9).all()


def test_the_schema_offers_what_the_table_takes():
    known = rules(EmbeddingConfig)
    assert known["init"].choices == get_args(Initialisation)
    assert known["missing"].choices == get_args(Missing)


def test_equal_ground_between_modes():
    """The same draws whichever rows have vectors and whether the table is trained, here and afterwards."""
    found = torch.arange(V) < 6
    made = {}
    for name, settings in {
        "random": {"scale": 0.2},
        "frozen": {"scale": 0.2, "vectors": torch.ones(V, D), "found": found, "trainable": False},
        "finetuned": {"scale": 0.2, "vectors": torch.ones(V, D), "found": found},
    }.items():
        torch.manual_seed(3)
        made[name] = Table(V, D, padding_idx=PAD, **settings).table.weight.detach(), torch.rand(3)
    assert torch.equal(made["frozen"][0], made["finetuned"][0])
    assert torch.equal(made["random"][0][6:], made["finetuned"][0][6:])
    assert torch.equal(made["random"][1], made["frozen"][1])
    assert torch.equal(made["random"][1], made["finetuned"][1])


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.5),
    "adam, decay": lambda parameters: torch.optim.Adam(parameters, lr=0.5, weight_decay=0.1),
    "adamw, decay": lambda parameters: torch.optim.AdamW(parameters, lr=0.5, weight_decay=0.1),
    "sgd, momentum and decay": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=0.1),
    "sparse adam": lambda parameters: torch.optim.SparseAdam(parameters, lr=0.5),
}


def train(table: Table, optimizer: str, batch: TokenBatch, mode: str) -> torch.optim.Optimizer:
    """Five steps of a linear layer over pooled rows."""
    torch.manual_seed(1)
    linear = nn.Linear(table.dim, 3)
    others = [] if optimizer == "sparse adam" else linear.parameters()  # it takes sparse gradients alone
    chosen = OPTIMIZERS[optimizer]([*table.parameters(), *others])
    target = torch.arange(len(batch)) % 3
    for _ in range(5):
        chosen.zero_grad()
        nn.functional.cross_entropy(linear(table.pool(batch, mode)), target).backward()
        chosen.step()
    return chosen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam, decay", "sgd, momentum and decay"])
def test_frozen_is_bit_identical_and_has_no_state(optimizer, mode):
    table = Table(V, D, vectors=torch.randn(V, D), trainable=False, padding_idx=PAD)
    before = table.table.weight.clone()
    chosen = train(table, optimizer, BATCH, mode)
    assert torch.equal(before, table.table.weight)
    assert table.table.weight.grad is None
    assert table.table.weight not in chosen.state


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("optimizer", "sparse"),
    [
        ("sgd", False),
        ("sgd", True),
        ("adagrad", False),
        ("adagrad", True),
        ("sparse adam", True),
        ("adam, decay", False),
        ("adamw, decay", False),
        ("sgd, momentum and decay", False),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_touched_rows_move_and_the_padding_row_never(optimizer, mode, sparse):
    torch.manual_seed(0)
    table = Table(V, D, vectors=torch.randn(V, D), padding_idx=PAD, sparse=sparse)
    before = table.table.weight.detach().clone()
    train(table, optimizer, BATCH, mode)
    moved = (table.table.weight.detach() != before).any(1)
    touched = torch.zeros(V, dtype=torch.bool)
    touched[BATCH.ids.long()] = True
    touched[PAD] = False
    assert moved[touched].all()
    assert table.table.weight[PAD].tolist() == [0] * D
    if "decay" not in optimizer:  # decay pulls at every row, wherever it is
        assert not moved[~touched].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 5, "vectors": torch.ones(V, D)}, r"the table is 12 x 5, but the vectors are 12 x 4"),
        ({"vectors": torch.ones(V - 1, D)}, r"the table is 12 x 4, but the vectors are 11 x 4"),
        ({}, r"embedding.dim is null"),
        ({"dim": 0}, r"embedding.dim is 0"),
        ({"dim": D, "init": "norml"}, r"embedding.init is 'norml'.* Did you mean 'normal'\?"),
        ({"dim": D, "scale": -1.0}, r"embedding.scale is -1.0"),
        ({"dim": D, "padding_idx": V}, r"padding_idx is 12; .* a row from 0 to 11"),
        ({"dim": D, "max_norm": 0.0}, r"embedding.max_norm is 0.0"),
        ({"dim": D, "sparse": True, "scale_grad_by_freq": True}, r"set one of them to false"),
        ({"dim": D, "scale": 0.1, "init": "kaiming_normal"}, r"embedding.scale is 0.1; embedding.init=kaim"),
        ({"dim": D, "missing": "mean"}, r"embedding.missing is mean; without vectors"),
        ({"vectors": torch.ones(V, D), "missing": "meen"}, r"missing is 'meen'.* Did you mean 'mean'\?"),
        ({"dim": D, "train_missing": True}, r"train_missing and embedding.trainable are both true"),
        ({"dim": D, "trainable": False, "frozen_steps": 2}, r"trainable is false, so the table never thaws"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Table(V, **settings)


@pytest.mark.parametrize("rank", [0, D + 1])
def test_ranks_and_widths_that_cannot_be(rank):
    with pytest.raises(UserError, match=rf"embedding.rank is {rank}; expected 1 to 4"):
        Adapted(V, D, rank=rank)
    assert Adapted(V, D, rank=D).dim == D
    with pytest.raises(UserError, match=r"embedding.out_dim is 0"):
        Projected(V, D, out_dim=0)


@pytest.mark.parametrize("name", ["random", "frozen", "finetuned"])
def test_configs_build_what_they_say(name):
    with hydra.initialize(version_base="1.3", config_path="../../configs"):
        settings = OmegaConf.to_container(hydra.compose(f"embedding/{name}").embedding)
    assert isinstance(settings, dict)
    recipe = {key: settings.pop(key) for key in RECIPE_KEYS if key in settings and key not in PASSED_ON}
    usual = {item.name: item.default for item in fields(EmbeddingConfig) if item.name in recipe}
    own = {} if name == "random" else {"vectors": "corpus"}
    assert recipe == {**usual, "case": list(usual["case"]), **own}
    assert settings.pop("padding_idx") == "auto"
    vectors = None if name == "random" else torch.ones(V, D)
    table = hydra.utils.instantiate(settings, num_embeddings=V, vectors=vectors, padding_idx=PAD)
    assert table.table.weight.requires_grad == (name != "frozen")
    assert table.dim == (100 if name == "random" else D)
