"""What a sweep is over: keys and the values they may have, read from Hydra's own syntax.

``head=mean,gru``, ``choice(...)``, ``range(...)`` and ``glob(...)`` list values; ``interval(0.1, 1)`` is a
stretch of numbers, on a log scale as ``tag(log, interval(...))``, of whole numbers as
``int(interval(...))``. A key that only some trials have says when: ``{values: "int(interval(16, 256))",
when: head=gru,lstm}``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from textbed.errors import UserError, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Condition:
    """A key is there only where another one has one of these values."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Dimension:
    """A key and its values: ``choices``, or the numbers from ``low`` to ``high``, both included."""

    key: str
    """As it stands before the ``=``; may begin with ``+`` or ``++``."""
    choices: tuple[str, ...] = ()
    """As they stand after the ``=``."""
    low: float = 0
    high: float = 0
    log: bool = False
    integer: bool = False
    step: int = 1
    """Of whole numbers on a plain scale."""
    when: Condition | None = None

    def applies(self, point: Mapping[str, str]) -> bool:
        return self.when is None or point.get(self.when.key) in self.when.values

    def suggest(self, trial: BaseTrial) -> str:
        """The value that the study's sampler draws, or that the trial has already, as an override has it."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, self.choices))
        if self.integer:
            whole = trial.suggest_int(
                self.key, int(self.low), int(self.high), log=self.log, step=1 if self.log else self.step
            )
            return str(whole)
        return f"{trial.suggest_float(self.key, self.low, self.high, log=self.log):.6g}"

    def plain(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Dimension:
        when = values["when"]
        return cls(
            **{
                **values,
                "choices": tuple(values["choices"]),
                "when": when and Condition(when["key"], tuple(when["values"])),
            }
        )


Space = tuple[Dimension, ...]


def points(space: Space, point: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Every combination of values, the last key's changing fastest; keys that do not apply are left out."""
    point = dict(point or {})
    if not space:
        yield point
        return
    first, rest = space[0], space[1:]
    if not first.applies(point):
        yield from points(rest, point)
        return
    for value in first.choices:
        yield from points(rest, {**point, first.key: value})


def suggest(space: Space, trial: BaseTrial) -> dict[str, str]:
    """The point of a trial, value by value."""
    point: dict[str, str] = {}
    for dimension in space:
        if dimension.applies(point):
            point[dimension.key] = dimension.suggest(trial)
    return point


def overrides(point: Mapping[str, str]) -> list[str]:
    """A point as it stands on the command line."""
    return [f"{key}={value}" for key, value in point.items()]


def name_of(point: Mapping[str, str]) -> str:
    """What a point is called."""
    return " ".join(overrides(point)) or "as it is"


def read(
    params: Mapping[str, Any], typed: Iterable[str], parser: OverridesParser, grid: bool
) -> tuple[list[str], Space]:
    """What every trial has in common, and the space.

    Args:
        params: the config's own (``hydra.sweeper.params``): a text as on the command line, or a mapping with
            ``values`` and ``when``.
        typed: the command line; it takes the place of what the config says of the same key.
        parser: Hydra's.
        grid: whether every combination is run, so that there must be finitely many.

    Raises:
        UserError: a value that is neither, or a condition that cannot hold.
    """
    given: dict[str, tuple[Override, Any]] = {}
    here = {override.get_key_element(): override for override in parser.parse_overrides(list(typed))}
    for key, value in params.items():
        text, when = value, None
        if isinstance(value, Mapping):
            if "values" not in value or set(value) - {"values", "when"}:
                raise UserError(f"hydra.sweeper.params: {key}: expected a text, or values: and when: alone.")
            text, when = value["values"], value.get("when")
        (override,) = parser.parse_overrides([f"{key}={text}"])
        given[override.get_key_element()] = (override, when)
    given |= {key: (override, None) for key, override in here.items()}
    fixed, space = [], []
    for key, (override, when) in given.items():
        if when is not None or override.is_sweep_override():
            space.append(_dimension(key, override, when, grid))
        else:
            fixed.append(str(override.input_line))
    return fixed, _ordered(_narrowed(space, here, grid))


def _narrowed(space: list[Dimension], typed: Mapping[str, Override], grid: bool) -> list[Dimension]:
    """The space without keys whose condition cannot hold any more, as the command line chose otherwise."""
    narrowed = []
    for one in space:
        if one.when is not None and one.when.key in typed:
            other = _dimension(one.when.key, typed[one.when.key], None, grid)
            values = tuple(value for value in one.when.values if value in other.choices)
            if not values:
                continue
            always = len(other.choices) == 1
            one = dataclasses.replace(one, when=None if always else Condition(one.when.key, values))
        narrowed.append(one)
    return narrowed


def _dimension(key: str, override: Override, when: Any, grid: bool) -> Dimension:
    condition = None
    if when is not None:
        other, equals, values = str(when).partition("=")
        if not (equals and other and values):
            raise UserError(f"{key}: when: {when}: expected KEY=VALUE or KEY=VALUE,VALUE.")
        condition = Condition(other.strip(), tuple(one.strip() for one in values.split(",")))
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        log = "log" in value.tags
        if grid:
            raise UserError(
                f"{override.input_line}: an interval has no list of values to run one by one; draw from it "
                "with sweep=tpe or sweep=random, or give choice(...) or range(...)."
            )
        if value.start >= value.end or (log and value.start <= 0):
            above = " and above 0 for log" if log else ""
            raise UserError(f"{override.input_line}: expected a smaller number, then a larger one{above}.")
        integer = isinstance(value.start, int) and isinstance(value.end, int)
        return Dimension(key, (), value.start, value.end, log, integer, when=condition)
    if isinstance(value, RangeSweep) and not grid and isinstance(value.range(), range):
        numbers = sorted(value.range())
        if len(numbers) > 1:
            step = numbers[1] - numbers[0]
            return Dimension(key, (), numbers[0], numbers[-1], integer=True, step=step, when=condition)
    if not override.is_sweep_override():
        return Dimension(key, (override.get_value_element_as_str(),), when=condition)
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise UserError(f"{override.input_line}: there is no such value.")
    return Dimension(key, choices, when=condition)


def _ordered(space: list[Dimension]) -> Space:
    """The space with every key after the one that it depends on."""
    done: list[Dimension] = []
    left = space
    while left:
        known = {dimension.key: dimension for dimension in done}
        ready = [one for one in left if one.when is None or one.when.key in known]
        if not ready:
            key, when = left[0].key, left[0].when
            assert when is not None
            names = [dimension.key for dimension in space if dimension.key != key]
            raise UserError(
                f"{key}: when: {when.key}=...: this is no key of the sweep.{nearest(when.key, names)}"
            )
        for one in ready:
            if one.when is None:
                continue
            there = known[one.when.key].choices
            missing = [value for value in one.when.values if value not in there]
            if missing:
                raise UserError(
                    f"{one.key}: when: {one.when.key}={missing[0]}: expected a value of that key in this "
                    f"sweep, one of {', '.join(there) or 'none, as it is an interval'}."
                )
        done += ready
        left = [one for one in left if one not in ready]
    return tuple(done)


def size(space: Space) -> int:
    """Number of combinations."""
    return sum(1 for _ in itertools.islice(points(space), 10**6))
