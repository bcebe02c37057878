"""What every front end in configs/embedding promises: pooling is looking up and reducing, padding cannot be
seen, frozen parts get no gradient and stay, learnt ones get one and move. Found by listing the folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from running import EMBEDDINGS, HEADS, front_end, head_config
from torch import Tensor, nn

from textbed.batch import TokenBatch
from textbed.embedding.table import FrontEnd, Table
from textbed.training import build_head

MODES = ["sum", "mean", "max"]
V, D, PAD = 12, 6, 0
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # sums of 50 rows, added in another order
FOUND = torch.tensor([False, False, True, True, False, True, True, True, False, True, True, True])

# A file of the folder with settings that change what learns, by a name of its own.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in EMBEDDINGS} | {
    "frozen, shared": ("frozen", {"missing": "shared"}),
    "frozen, missing trained": ("frozen", {"train_missing": True}),
    "frozen, one row trained": ("frozen", {"train_missing": True, "missing": "shared"}),
    "frozen, missing trained and short": ("frozen", {"train_missing": True, "max_norm": 0.5}),
    "frozen, missing trained by frequency": ("frozen", {"train_missing": True, "scale_grad_by_freq": True}),
    "finetuned, shared": ("finetuned", {"missing": "shared"}),
    "multichannel, shared": ("multichannel", {"missing": "shared"}),
    "adapted, missing trained": ("adapted", {"train_missing": True}),
    "adapted, one row trained": ("adapted", {"train_missing": True, "missing": "shared"}),
    "projected, narrower": ("projected", {"out_dim": 3}),
    "projected, wider, missing trained": ("projected", {"out_dim": 8, "train_missing": True}),
    "projected, without bias": ("projected", {"bias": False}),
}
# Its n-grams are pooled beside the words, with the same say.
POOLS_MORE = {"ngrams"}
each_setting = pytest.mark.parametrize("setting", SETTINGS)
# Every option with every head, and its other settings with a head of each kind.
each_pair = pytest.mark.parametrize(
    ("setting", "head"),
    [(name, head) for name in SETTINGS for head in (HEADS if name in EMBEDDINGS else ("mean", "max", "gru"))],
)


def make(setting: str, **more: Any) -> FrontEnd:
    """The front end as it begins."""
    name, settings = SETTINGS[setting]
    extra = {"adapted": {"rank": 3}, "ngrams": {"buckets": 50}}.get(name, {})
    torch.manual_seed(0)
    return front_end(name, V, D, found=FOUND, padding_idx=PAD, **{**extra, **settings, **more})


def make_moved(setting: str) -> FrontEnd:
    """The front end with all that learns moved away from where it begins, which is zero for some."""
    embedding = make(setting)
    for module in embedding.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter += 0.2 * torch.randn_like(parameter)
                    if getattr(module, "padding_idx", None) is not None:
                        parameter[module.padding_idx] = 0
    return embedding


def batch_of(*documents: list[int], weighted: bool = False) -> TokenBatch:
    ids = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
    batch = TokenBatch(ids, torch.tensor([0, *map(len, documents)]).cumsum(0).int())
    if weighted:
        batch.weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(5))
    return batch


TEXTS = ([3, 1, 3, 5], [], [2], [7, PAD, 1, PAD, 4, 8], [PAD], [4, 4], [11] * 50)
MISSING = torch.tensor([1, 4, 8])


def rows_of(embedding: FrontEnd) -> Tensor:
    """(V, D): the row of every id."""
    with torch.no_grad():
        return embedding(batch_of(list(range(V))))


def by_hand(embedding: FrontEnd, batch: TokenBatch, mode: str) -> Tensor:
    """Rows of one token after the other, and a loop over documents."""
    reduced = []
    for document in range(len(batch)):
        rows = []
        for place in range(int(batch.offsets[document]), int(batch.offsets[document + 1])):
            if batch.ids[place] != PAD:
                row = embedding(TokenBatch(batch.ids[place : place + 1], torch.tensor([0, 1]).int()))[0]
                rows.append(row if batch.weights is None else row * batch.weights[place])
        if not rows:
            reduced.append(torch.zeros(embedding.dim))
        else:
            values = torch.stack(rows)
            reduced.append(values.amax(0) if mode == "max" else getattr(values, mode)(0))
    return torch.stack(reduced)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("setting", [one for one in SETTINGS if SETTINGS[one][0] not in POOLS_MORE])
def test_pooling_is_looking_up_and_reducing(setting: str, weighted: bool, mode: Any) -> None:
    embedding, batch = make_moved(setting), batch_of(*TEXTS, weighted=weighted)
    pooled = embedding.pool(batch, mode)
    assert pooled.shape == (len(TEXTS), embedding.dim)
    expected = by_hand(embedding, batch, mode)
    torch.testing.assert_close(pooled, expected, **CLOSE)
    torch.testing.assert_close(FrontEnd.pool(embedding, batch, mode), expected, **CLOSE)
    if "frequency" in setting:
        return  # what a gradient is divided by depends on the whole batch
    learnt = [parameter for parameter in embedding.parameters() if parameter.requires_grad]
    if pooled.requires_grad:
        pull = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
        ours = torch.autograd.grad((pooled * pull).sum(), learnt, allow_unused=True)
        theirs = torch.autograd.grad((expected * pull).sum(), learnt, allow_unused=True)
        torch.testing.assert_close(ours, theirs, **CLOSE)


@each_setting
def test_padding_and_empty_documents(setting: str) -> None:
    embedding = make_moved(setting)
    assert not rows_of(embedding)[PAD].any()
    with_padding = batch_of([PAD, 3, PAD, 1], [PAD], [5])
    for mode in MODES:
        pooled = embedding.pool(with_padding, mode)
        torch.testing.assert_close(pooled, embedding.pool(batch_of([3, 1], [], [5]), mode))
        assert not pooled[1].any()
        assert pooled[0].any()


def frozen_parts(embedding: FrontEnd) -> dict[str, Tensor]:
    learnt = {name for name, parameter in embedding.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in embedding.state_dict().items() if name not in learnt}


@each_pair
def test_gradients_reach_what_learns_and_nothing_else(setting: str, head: str) -> None:
    embedding = make_moved(setting)
    torch.manual_seed(0)
    layers = build_head(head_config(head), embedding.dim, 3, seed=0)
    logits = nn.Linear(layers.out_dim, 3)(layers(batch_of(*TEXTS), embedding))
    nn.functional.cross_entropy(logits, torch.arange(len(TEXTS)) % 3).backward()
    frozen = SETTINGS[setting][0] == "thawed"  # from here on it is not told that time passes
    for name, parameter in [*embedding.named_parameters(), *layers.named_parameters()]:
        if not parameter.requires_grad or (frozen and parameter is embedding.table.weight):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


@each_pair
def test_a_batch_of_empty_documents_still_touches_every_parameter(setting: str, head: str) -> None:
    """DDP waits for a gradient of each parameter in each step, whatever a rank's documents are."""
    embedding = make(setting)
    layers = build_head(head_config(head), embedding.dim, 3, seed=0)
    features = layers(batch_of([], []), embedding)
    assert not features.any()
    total = features.sum()
    for module in embedding.modules():
        if isinstance(module, Table) and module.frozen:
            total = total + module.touch()  # as the model does under DDP
    if total.requires_grad:
        total.backward()
    for name, parameter in embedding.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or not parameter.grad.any(), name


def train(embedding: FrontEnd, texts: Any = TEXTS, steps: int = 4) -> torch.optim.Optimizer:
    """A few steps of a linear layer over pooled rows."""
    torch.manual_seed(1)
    linear = nn.Linear(embedding.dim, 3)
    learnt = [*(one for one in embedding.parameters() if one.requires_grad), *linear.parameters()]
    optimizer = torch.optim.SGD(learnt, lr=0.5, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        pooled = embedding.pool(batch_of(*texts), "mean")
        nn.functional.cross_entropy(linear(pooled), torch.arange(len(texts)) % 3).backward()
        optimizer.step()
    return optimizer


MOVES = {
    "random": "touched",
    "finetuned": "touched",
    "multichannel": "touched",
    "multichannel, shared": "touched",
    "finetuned, shared": "touched",
    "adapted": "touched",
    "adapted, missing trained": "touched",
    "adapted, one row trained": "touched",
    "projected": "all",
    "projected, without bias": "all",
    "projected, narrower": "all",
    "projected, wider, missing trained": "all",
    "frozen": "none",
    "thawed": "none",  # from here on it is not told that time passes
    "frozen, shared": "none",
    "frozen, missing trained": "missing",
    "frozen, one row trained": "missing",
    "frozen, missing trained and short": "missing",
    "frozen, missing trained by frequency": "missing",
}


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one in MOVES])
def test_which_rows_move(setting: str) -> None:
    embedding = make(setting)
    embedding.pool(batch_of(list(range(V))), "sum")  # what is too long is shortened when it is first read
    before, parts = rows_of(embedding), {k: v.clone() for k, v in frozen_parts(embedding).items()}
    optimizer = train(embedding)
    for name, value in frozen_parts(embedding).items():
        assert torch.equal(value, parts[name]), name
    for parameter in embedding.parameters():
        assert parameter.requires_grad or parameter not in optimizer.state
    moved = (rows_of(embedding) != before).any(dim=1)
    touched = torch.zeros(V, dtype=torch.bool)
    touched[[token for text in TEXTS for token in text]] = True
    if SETTINGS[setting][1].get("missing") == "shared":
        touched |= ~FOUND  # one for all
    expected = {
        "none": torch.zeros_like(touched),
        "touched": touched,
        "missing": touched & ~FOUND,
        "all": torch.ones_like(touched),
    }[MOVES[setting]]
    expected[PAD] = False
    assert expected.tolist() == moved.tolist()
    assert not rows_of(embedding)[PAD].any()


def test_every_option_with_vectors_is_tried() -> None:
    assert {"random", "frozen", "finetuned", "thawed", "multichannel", "adapted", "projected"} <= set(MOVES)


@pytest.mark.parametrize("missing", ["random", "zeros", "mean", "shared"])
@pytest.mark.parametrize("name", ["finetuned", "thawed", "multichannel", "adapted", "projected"])
def test_all_start_from_the_rows_of_frozen(name: str, missing: str) -> None:
    """The same seed draws the same rows in every mode, whatever else the mode draws."""
    rows = {}
    for each in ("frozen", name):
        torch.manual_seed(4)
        embedding = front_end(
            each, V, D, found=FOUND, **({"rank": 2} if each == "adapted" else {}), missing=missing
        )
        rows[each] = rows_of(embedding)
        if each == "projected":
            torch.testing.assert_close(rows[each].norm(dim=1), rows["frozen"].norm(dim=1))  # turned alone
            rows[each] = rows[each] @ embedding.projection.weight
    if name == "multichannel":
        assert torch.equal(rows[name][:, D:], rows["frozen"])
    torch.testing.assert_close(
        rows[name][:, :D], rows["frozen"], rtol=0, atol=1e-6 if name == "projected" else 0
    )


@pytest.mark.parametrize("name", ["frozen", "adapted", "projected"])
def test_training_missing_rows_changes_no_row_at_the_start(name: str) -> None:
    rows = []
    for train_missing in (False, True):
        torch.manual_seed(4)
        more = {"rank": 2} if name == "adapted" else {}
        rows.append(rows_of(front_end(name, V, D, found=FOUND, train_missing=train_missing, **more)))
    assert torch.equal(*rows)
    assert rows[0][MISSING].any(dim=1).all()


def test_only_missing_rows_are_held_twice() -> None:
    embedding = make("frozen, missing trained")
    learnt = {name: tuple(p.shape) for name, p in embedding.named_parameters() if p.requires_grad}
    assert learnt == {"learnt.table.weight": (4, D)}  # words 1, 4 and 8, and the row for all others
    assert embedding.slot.tolist() == [0, 1, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
    assert not embedding.table.weight[~FOUND].any()
    shared = make("frozen, one row trained")
    assert shared.learnt.table.weight.shape == (2, D)
    all_known = front_end("frozen", V, D, train_missing=True)
    assert all_known.learnt is None


def test_one_row_for_all_words_without_a_vector() -> None:
    for setting in (
        "frozen, shared",
        "finetuned, shared",
        "frozen, one row trained",
        "adapted, one row trained",
    ):
        rows = rows_of(make_moved(setting))
        assert torch.equal(rows[MISSING], rows[1].expand(3, -1)), setting
        assert len({tuple(row) for row in rows.tolist()}) == V - 2, setting
    embedding = make("finetuned, shared")
    start = rows_of(embedding)
    train(embedding, ([4], [3], [2]))  # one of the three alone
    after = rows_of(embedding)
    assert (after[MISSING] != start[MISSING]).all()
    assert torch.equal(after[MISSING], after[1].expand(3, -1))


def test_rows_without_a_vector_at_the_start() -> None:
    made = {}
    for missing in ("random", "zeros", "mean", "shared"):
        torch.manual_seed(2)
        made[missing] = rows_of(front_end("finetuned", V, D, found=FOUND, missing=missing))
    for rows in made.values():
        assert torch.equal(rows[FOUND], made["random"][FOUND])
    assert not made["zeros"][~FOUND].any()
    mean = made["random"][FOUND].mean(dim=0)
    torch.testing.assert_close(made["mean"][MISSING], mean.expand(3, -1))
    assert torch.equal(made["shared"][MISSING], made["random"][1].expand(3, -1))
    assert len({tuple(row) for row in made["random"].tolist()}) == V


def test_a_trained_missing_row_is_kept_short() -> None:
    embedding = make("frozen, missing trained and short")
    embedding.pool(batch_of(list(range(V))), "mean")
    train(embedding)
    embedding.pool(batch_of(list(range(V))), "mean")
    lengths = rows_of(embedding).norm(dim=1)
    assert (lengths <= 0.5 + 1e-6).all()
    assert (lengths[MISSING] > 0.1).all()


def test_two_channels() -> None:
    embedding = make("multichannel")
    assert embedding.dim == 2 * D
    rows = rows_of(embedding)
    torch.testing.assert_close(rows[:, :D], embedding.static.table.weight)
    torch.testing.assert_close(rows[:, D:], embedding.table.weight)
    assert not embedding.static.table.weight.requires_grad
    assert embedding.static.table.weight.data_ptr() != embedding.table.weight.data_ptr()
    # filters over both channels are filters over each, added
    filters = torch.randn(5, 2 * D)
    apart = rows[:, :D] @ filters[:, :D].T + rows[:, D:] @ filters[:, D:].T
    torch.testing.assert_close(rows @ filters.T, apart)


def test_a_correction_is_of_its_rank_and_begins_at_nothing() -> None:
    torch.manual_seed(0)
    embedding = front_end("adapted", 4000, 40, rank=16)
    assert not embedding.coefficients.table.weight.any()
    assert embedding.directions.var().item() == pytest.approx(1 / 16, rel=0.15)
    base = embedding.table.weight
    with torch.no_grad():
        embedding.coefficients.table.weight[1:] = torch.randn(3999, 16)
        correction = embedding(batch_of(list(range(4000)))) - base
    assert torch.linalg.matrix_rank(correction, rtol=1e-4).item() == 16
    expected = embedding.coefficients.table.weight @ embedding.directions
    torch.testing.assert_close(correction, expected, rtol=1e-4, atol=1e-4)
    sizes = {name: p.numel() for name, p in embedding.named_parameters() if p.requires_grad}
    assert sum(sizes.values()) == 16 * (4000 + 40)


def test_adapted_and_projected_pool_without_a_row_for_each_token() -> None:
    """(N, D) of these documents would be 2 GB; the test would be killed, or take minutes."""
    batch = batch_of([3] * 200_000, [5] * 300_000)
    for name, more in (("adapted", {"rank": 1}), ("projected", {"out_dim": 1})):
        embedding = front_end(name, V, 1000, **more)
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            embedding.pool(batch, "mean")
        largest = max(event.cpu_memory_usage for event in profile.key_averages())
        assert largest < 50e6, name


def test_projection_is_a_linear_layer_on_the_rows() -> None:
    embedding = make("projected, narrower")
    rows = embedding.projection(embedding.table.weight)
    rows[PAD] = 0
    torch.testing.assert_close(rows_of(embedding), rows)
    assert embedding.dim == 3
    weight = front_end("projected", V, D, out_dim=3).projection.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(3))
    with_bias, without = (
        (torch.manual_seed(0), front_end("projected", V, D, bias=bias))[1].projection
        for bias in (True, False)
    )
    assert torch.equal(with_bias.weight, without.weight)
    assert not with_bias.bias.any()
    assert without.bias is None


# Thawing


def test_a_clock_decides_what_is_frozen() -> None:
    for settings, frozen in (
        ({"frozen_epochs": 2}, lambda epoch, step: epoch < 2),
        ({"frozen_epochs": 0, "frozen_steps": 5}, lambda epoch, step: step < 5),
        ({"frozen_epochs": 2, "frozen_steps": 5}, lambda epoch, step: epoch < 2 or step < 5),
    ):
        table = front_end("thawed", V, D, **settings)
        assert table.frozen
        for epoch, step in ((0, 0), (0, 4), (1, 5), (1, 9), (2, 4), (2, 5), (7, 40), (0, 0)):
            table.set_clock(epoch, step)
            assert table.frozen == frozen(epoch, step)
    plain = front_end("finetuned", V, D)
    plain.set_clock(0, 0)
    assert not plain.frozen
    assert not plain.thaws


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_phase_costs_no_gradient_and_no_state(mode: Any) -> None:
    table = make("thawed", max_norm=0.7)
    linear = nn.Linear(D, 3)
    optimizer = torch.optim.AdamW([*table.parameters(), *linear.parameters()], lr=0.1, weight_decay=0.5)
    before = table.table.weight.detach().clone()
    for step in range(4):
        table.set_clock(step, 0)
        optimizer.zero_grad()
        linear(table.pool(batch_of(*TEXTS), mode)).square().sum().backward()
        optimizer.step()
        thawed = step >= 2
        assert (table.table.weight.grad is not None) == thawed
        assert (table.table.weight in optimizer.state) == thawed
        assert torch.equal(table.table.weight, before) != thawed
    assert optimizer.state[table.table.weight]["step"] == 2
    assert not table.table.weight[PAD].any()


def test_touching_gives_zeros_and_keeps_sparse_gradients_sparse() -> None:
    for sparse in (False, True):
        table = make("thawed", sparse=sparse)
        table.touch().backward()
        gradient = table.table.weight.grad
        assert gradient.is_sparse == sparse
        assert not gradient.to_dense().any()
