"""The width that a number of parameters allows, alone and for the heads that the configs offer."""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class
from omegaconf import open_dict
from torch import nn

from textbed.errors import UserError
from textbed.heads.attention import Attention
from textbed.heads.budget import widest
from textbed.training import build_head

CONFIGS = Path(__file__).parents[2] / "configs"
HEADS = sorted(path.stem for path in (CONFIGS / "head").glob("*.yaml"))
D = 6


@functools.cache
def composed(name):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(f"head/{name}").head


def config_of(name, **changes):
    config = copy.deepcopy(composed(name))
    with open_dict(config):
        config.update(changes)
    return config


def size(head):
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize("most", [*range(3, 40), 10**12])
def test_widest_is_the_last_width_within(most):
    asked = []

    def count(width):
        asked.append(width)
        return 3 * width * width

    width = widest(count, most)
    assert count(width) <= most < count(width + 1)
    assert len(asked) < 2 * width.bit_length() + 5


def test_nothing_fits():
    assert widest(lambda width: 10 * width, 9) is None


@pytest.mark.parametrize(
    "sizes", [lambda width: 10, lambda width: min(width, 20), lambda width: 100 // width]
)
def test_parameters_that_do_not_grow_have_no_widest(sizes):
    with pytest.raises(ValueError, match=r"gives .* parameters, no more than one of"):
        widest(sizes, 200)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_keeps_to_its_parameters(name):
    """One more unit of width would be too much: parameters by unit are what the next wider head has more."""
    most = 20_000
    config = config_of(name, parameters=most)
    if get_class(config["_target_"]).width is None and "dense" not in config:
        assert not {"hidden", "maps", "projections"} & set(config)
        with pytest.raises(UserError, match="has no width to change"):
            build_head(config, D, 3, seed=0)
        return
    head = build_head(config, D, 3, seed=0)
    assert size(head) <= most < size(wider(head, name))
    assert all(parameter.device.type == "cpu" for parameter in head.parameters())


def wider(head, name):
    """The head of that file with one unit more of what its budget widens."""
    cls = get_class(config_of(name)["_target_"])
    if cls.width is None:
        dense = [layer.out_features + 1 for layer in head.layers if isinstance(layer, nn.Linear)]
        return build_head(config_of(name, dense=dense), D, 3, seed=0)
    unit = {"maps": len(config_of(name).get("widths", "1"))}.get(cls.width, 1)
    unit *= 2 if config_of(name).get("bidirectional") else 1
    if cls.width == "hidden" and issubclass(cls, Attention):  # its width is not that of what it returns
        return build_head(config_of(name, hidden=head.score[0].out_features + 1), D, 3, seed=0)
    return build_head(config_of(name, **{cls.width: head.out_dim // unit + 1}), D, 3, seed=0)


@pytest.mark.parametrize("most", [3_000, 50_000])
def test_heads_of_one_budget_are_equal_to_within_a_unit(most):
    """Whatever the two are: each lies below the budget by less than a unit of its own width adds."""
    sizes, units = {}, {}
    for name in ("cnn", "bigru", "lstm", "mingru", "dan", "attention"):
        head = build_head(config_of(name, parameters=most), D, 3, seed=0)
        sizes[name], units[name] = size(head), size(wider(head, name)) - size(head)
    for one, other in itertools.combinations(sizes, 2):
        assert abs(sizes[one] - sizes[other]) < max(units[one], units[other]), (one, other)
    assert len(set(sizes.values())) > 3


def test_a_budget_is_exact():
    """12 rows of weights and 3 biases a map for widths 3, 4, 5: 12 x 6 + 3 = 75."""
    head = build_head(config_of("cnn", parameters=75 * 41 + 74), D, 3, seed=0)
    assert size(head) == 75 * 41
    assert head.out_dim == 3 * 41
    with pytest.raises(UserError, match=r"head.parameters=74: with head.maps=1 the head has 75 parameters"):
        build_head(config_of("cnn", parameters=74), D, 3, seed=0)


def test_layers_above_a_head_without_a_width_are_widened_instead():
    head = build_head(config_of("mean", dense=[9, 9], parameters=6 * 20 + 20 + 20 * 20 + 20), D, 3, seed=0)
    assert [layer.out_features for layer in head.layers[::3]] == [20, 20]
    counted = build_head(config_of("cnn", dense=[10], parameters=5000), D, 3, seed=0)
    assert [layer.out_features for layer in counted.layers[::3]] == [10]
    assert size(counted) <= 5000 < size(counted) + 75 + 30


def test_layers_change_nothing_below():
    plain = build_head(config_of("attention"), D, 3, seed=0)
    layered = build_head(config_of("attention", dense=[4]), D, 3, seed=0)
    for ours, theirs in zip(plain.parameters(), layered.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_layers_do_not_start_as_what_is_below_them():
    head = build_head(config_of("attention", hidden=4, dense=[4]), D, 3, seed=0)
    below, above = head.head.score[0].weight, head.layers[0].weight
    assert below.shape == above.shape
    assert not torch.equal(below, above)


def test_the_same_width_starts_the_same():
    chosen = build_head(config_of("cnn", parameters=75 * 41), D, 3, seed=0)
    given = build_head(config_of("cnn", maps=41), D, 3, seed=0)
    for ours, theirs in zip(chosen.parameters(), given.parameters(), strict=True):
        assert torch.equal(ours, theirs)
