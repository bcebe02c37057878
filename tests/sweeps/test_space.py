"""What a sweep is over: Hydra's syntax as a space, its points, and what is drawn from it."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from running import ROOT

from textbed.errors import UserError
from textbed.sweeps import space
from textbed.sweeps.space import Condition, Dimension


@pytest.fixture
def parser() -> Iterator[OverridesParser]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield OverridesParser.create(GlobalHydra.instance().config_loader())


def read(parser: OverridesParser, *typed: str, grid: bool = True, **params: object) -> space.Space:
    return space.read({key.replace("__", "."): value for key, value in params.items()}, typed, parser, grid)[
        1
    ]


@pytest.mark.parametrize(
    "typed",
    [
        ("head=mean,gru", "seed=range(3)", "name=x"),
        ("head=glob(mean*)", "+trainer.max_time=null", "name='a b',\"c,d\""),
        ("data.classes=[a,b],[c]", "optimizer.lr=choice(1e-3,0.01)", "~scheduler"),
        ("seed=range(0,1,0.25)", "experiment=quickstart", "+a.b={x:1},{x:2}"),
    ],
)
def test_a_grid_is_what_hydras_own_sweeper_makes_of_it(
    parser: OverridesParser, typed: tuple[str, ...]
) -> None:
    (theirs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(typed)), max_batch_size=None)
    fixed, dimensions = space.read({}, typed, parser, grid=True)
    mine = [[*fixed, *space.overrides(point)] for point in space.points(dimensions)]
    # theirs stand in the order typed, and fixed values are spelt anew
    spelt = {one.input_line: one for one in parser.parse_overrides(fixed)}

    def plain(job: list[str]) -> list[str]:
        return sorted(
            f"{spelt[one].get_key_element()}={spelt[one].get_value_element_as_str()}" if one in spelt else one
            for one in job
        )

    assert [plain(job) for job in mine] == [sorted(job) for job in theirs]


def test_what_a_paper_sweeps_over(parser: OverridesParser) -> None:
    params = compose("train", ["experiment=paper/kim2014"], return_hydra_config=True).hydra.sweeper.params
    _, dimensions = space.read(params, ["experiment=paper/kim2014"], parser, grid=True)
    found = list(space.points(dimensions))
    assert len(found) == 40
    assert found[0] == {"data": "mr_folds", "seed": "0"}
    assert found[-1] == {"data": "trec", "seed": "9"}


def test_numbers(parser: OverridesParser) -> None:
    found = read(
        parser,
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "classifier.dropout=interval(0,0.5)",
        "head.hidden=int(interval(16,256))",
        "embedding.dim=range(50,301,50)",
        grid=False,
    )
    assert found == (
        Dimension("optimizer.lr", (), 1e-4, 0.1, log=True),
        Dimension("classifier.dropout", (), 0, 0.5),
        Dimension("head.hidden", (), 16, 256, integer=True),
        Dimension("embedding.dim", (), 50, 300, integer=True, step=50),
    )
    assert read(parser, "embedding.dim=range(50,301,50)")[0].choices == (
        "50",
        "100",
        "150",
        "200",
        "250",
        "300",
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.suggest(found, study.ask()) for _ in range(200)]
    rates = [float(point["optimizer.lr"]) for point in points]
    assert min(rates) < 3e-4
    assert 60 < sum(rate < 10**-2.5 for rate in rates) < 140  # half of them, on a log scale
    assert {int(point["embedding.dim"]) for point in points} == {50, 100, 150, 200, 250, 300}
    assert {type(int(point["head.hidden"])) for point in points} == {int}


CONDITIONAL = {
    "head__hidden": {"values": "int(interval(16,64))", "when": "head=gru,lstm"},
    "head": "mean,gru,lstm",
    "head__layers": {"values": "2", "when": "head=lstm"},
}


def test_a_key_that_only_some_trials_have(parser: OverridesParser) -> None:
    found = read(parser, grid=False, **CONDITIONAL)
    assert [one.key for one in found] == ["head", "head.hidden", "head.layers"]  # what decides comes first
    assert found[1].when == Condition("head", ("gru", "lstm"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    keys = {point["head"]: set(point) for point in (space.suggest(found, study.ask()) for _ in range(50))}
    assert keys == {
        "mean": {"head"}, "gru": {"head", "head.hidden"}, "lstm": {"head", "head.hidden", "head.layers"},
    }  # fmt: skip
    grid = read(parser, head="mean,gru", head__hidden={"values": "8,16", "when": "head=gru"}, seed="0,1")
    assert [space.overrides(point) for point in space.points(grid)] == [
        [*head, f"seed={seed}"] for head in (["head=mean"],) for seed in (0, 1)
    ] + [["head=gru", f"seed={seed}", f"head.hidden={size}"] for seed in (0, 1) for size in (8, 16)]


def test_the_command_line_takes_the_place_of_the_config(parser: OverridesParser) -> None:
    fixed, dimensions = space.read({"head": "mean,gru", "seed": "range(3)"}, ["head=max"], parser, True)
    assert fixed == ["head=max"]
    assert [one.key for one in dimensions] == ["seed"]


def test_a_condition_on_what_the_command_line_chose(parser: OverridesParser) -> None:
    params = {key.replace("__", "."): value for key, value in CONDITIONAL.items()}
    for typed, conditions in (
        ("head=gru", {"head.hidden": None}),
        ("head=mean", {}),
        ("head=gru,mean", {"head": None, "head.hidden": Condition("head", ("gru",))}),
        ("head=mean,max", {"head": None}),
    ):
        fixed, found = space.read(params, [typed], parser, grid=False)
        assert {one.key: one.when for one in found} == conditions
        assert fixed == ([] if "," in typed else [typed])


def test_a_space_as_plain_values(parser: OverridesParser) -> None:
    for one in read(parser, grid=False, **CONDITIONAL):
        assert Dimension.from_plain(one.plain()) == one


@pytest.mark.parametrize(
    ("params", "grid", "said"),
    [
        ({"optimizer__lr": "interval(0.1,1)"}, True, "sweep=tpe"),
        ({"optimizer__lr": "interval(1,0.1)"}, False, "a smaller number, then a larger"),
        ({"optimizer__lr": "tag(log,interval(0,1))"}, False, "above 0 for log"),
        ({"head": {"values": "a,b", "when": "data"}}, False, "expected KEY=VALUE"),
        ({"head": {"values": "a,b", "when": "dat=mr"}, "data": "mr,trec"}, False, "Did you mean 'data'?"),
        ({"head": {"values": "a,b", "when": "data=m"}, "data": "mr,trec"}, False, "one of mr, trec"),
        ({"head": {"value": "a,b"}}, False, "values: and when: alone"),
        ({"head": "glob(nothing*)"}, True, "there is no such value"),
    ],
)
def test_mistakes(parser: OverridesParser, params: dict[str, object], grid: bool, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(parser, grid=grid, **params)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
