"""The search space of a command line with ranges and intervals, as Optuna distributions and as Hydra overrides."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from experiments.config.identity import REPEATS
from experiments.config.overrides import spelled
from experiments.errors import ConfigError
from experiments.sweeps.plan import Combination

RUNS = 100  # a trial's jobs are numbered from 100 times its own number on; a single job has the trial's number
INTEGERS = re.compile(r"(?<!float\()interval\(\s*(?:start=)?([+-]?\d+)\s*,\s*(?:end=)?([+-]?\d+)\s*\)")


@dataclass(frozen=True)
class Dimension:
    """A key that is searched over."""

    element: str  # the key as typed, with a leading + if it has one
    distribution: Any  # of Optuna: categorical, or int or float from `low` to `high`
    values: tuple[str, ...] = ()  # of a range, as override text in ascending order

    @property
    def key(self) -> str:
        return self.element.lstrip("+~")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values as override text, unless they are numbers of an interval or a range."""
        return getattr(self.distribution, "choices", ())

    def spelled(self, value: Any) -> str:
        """Return the override text of a value that Optuna suggests."""
        if isinstance(value, str | int):
            return str(value)
        if self.values:
            return min(self.values, key=lambda text: abs(float(text) - value))
        short = f"{value:.5g}"  # readable; where rounding leaves the interval, the exact value is used
        return short if self.distribution.low <= float(short) <= self.distribution.high else repr(value)

    @property
    def ends(self) -> list[str]:
        """The values that are validated before anything starts: every choice, or both ends of a range."""
        return list(self.choices) or [self.spelled(self.distribution.low), self.spelled(self.distribution.high)]

    @property
    def fraction(self) -> str | None:
        """A number between the ends of an interval that is not whole; None where all values are whole or listed."""
        if self.choices or self.values or isinstance(low := self.distribution.low, int):
            return None
        return self.spelled(low + (self.distribution.high - low) * 0.381966)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key}  one of {', '.join(self.choices)}"
        found = self.distribution
        kind = "whole numbers" if isinstance(found.low, int) else "numbers"
        step = f" in steps of {found.step:g}" if found.step not in (None, 1) else ""
        return f"{self.key}  {kind} from {found.low:g} to {found.high:g}{step}{', in logarithms' if found.log else ''}"


def dimension(override: Override, default: Any = None) -> Dimension | None:
    """Return the dimension that an override with several values describes, or None if all of them are the same.

    If the key's value without the override, `default`, is a float, an interval contains floats, even if its ends are
    typed as whole numbers. Raise ConfigError if the values cannot be searched over.
    """
    sweep: Any = override.value()
    tags = set(getattr(sweep, "tags", ()))
    if tags - {"log"}:
        raise _wrong(override, "tag: allowed is log.")
    log = "log" in tags
    if isinstance(sweep, IntervalSweep):
        return _interval(override, sweep, log, default)
    if isinstance(sweep, RangeSweep):
        return _range(override, sweep, log)
    if log:
        raise _wrong(override, "tag(log): allowed with interval and range.")
    return _choice(override, is_shuffled=isinstance(sweep, ChoiceSweep) and bool(sweep.shuffle))


def _wrong(override: Override, reason: str) -> ConfigError:
    return ConfigError(f"{override.get_key_element()}: {reason} Received: {override.input_line}")


def _interval(override: Override, sweep: IntervalSweep, log: bool, default: Any) -> Dimension:
    low: Any = sweep.start
    high: Any = sweep.end
    # Hydra converts the ends of an interval to floats unless they are cast, so the typed text is parsed.
    typed = INTEGERS.search(str(override.input_line))
    if typed and not isinstance(default, float):
        low, high = int(typed[1]), int(typed[2])
    if not low < high or not math.isfinite(low) or not math.isfinite(high):
        raise _wrong(override, "interval: its start must be less than its end, both finite.")
    return _numbers(override, low, high, log)


def _range(override: Override, sweep: RangeSweep, log: bool) -> Dimension | None:
    values = tuple(sorted(dict.fromkeys(override.sweep_string_iterator()), key=float))
    if not values:
        raise _wrong(override, "range: there is nothing from its start to its end.")
    if len(values) == 1:
        return None
    kind = int if all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step)) else float
    first, width = Decimal(values[0]), abs(Decimal(str(sweep.step)))
    if log and (kind is float or width != 1):
        raise _wrong(override, "tag(log, range): needs whole numbers and steps of 1.")
    # The end is exact: Hydra sums floats, and Optuna requires whole steps.
    return _numbers(override, kind(first), kind(first + width * (len(values) - 1)), log, values, step=kind(width))


def _numbers(
    override: Override, low: Any, high: Any, log: bool, values: tuple[str, ...] = (), **step: Any
) -> Dimension:
    from optuna.distributions import FloatDistribution, IntDistribution

    if log and low <= 0:
        raise _wrong(override, "tag(log): its start must be greater than 0.")
    distribution = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    return Dimension(override.get_key_element(), distribution(low, high, log=log, **step), values)


def _choice(override: Override, *, is_shuffled: bool) -> Dimension | None:
    from optuna.distributions import CategoricalDistribution

    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise _wrong(override, "there is no such choice.")
    if len(choices) == 1:
        return None
    # Shuffled choices are sorted, because another order at every start would make another search space.
    values = sorted(choices) if is_shuffled else choices
    return Dimension(override.get_key_element(), CategoricalDistribution(values))


@dataclass(frozen=True)
class Space:
    """The search space of a command line."""

    overrides: Sequence[str | Dimension]  # in the order they were typed; those with a single value as text
    repeats: Sequence[Sequence[str]]  # seed and fold overrides of each of a trial's runs

    @property
    def dimensions(self) -> list[Dimension]:
        return [override for override in self.overrides if isinstance(override, Dimension)]

    def spell(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Return the override text of a trial's parameters, by key."""
        return {dimension.key: dimension.spelled(parameters[dimension.key]) for dimension in self.dimensions}

    def job(self, values: Mapping[str, str], repeat: Sequence[str]) -> Combination:
        """Return a run's overrides and values from those of its trial and its own seed and fold."""
        overrides = [
            override if isinstance(override, str) else f"{override.element}={values[override.key]}"
            for override in self.overrides
        ]
        return [*overrides, *repeat], {**values, **dict(line.lstrip("+~").split("=", 1) for line in repeat)}

    def first_job(self, place: int) -> int:
        """Return the number of the first job of the trial at a place."""
        return place * (RUNS if len(self.repeats) > 1 else 1)

    def corners(self) -> Iterator[Combination]:
        """Yield runs that together contain every value of `Dimension.ends` and every repeat, one change at a time."""
        first = {dimension.key: dimension.ends[0] for dimension in self.dimensions}
        yield self.job(first, self.repeats[0])
        for dimension in self.dimensions:
            for value in dimension.ends[1:]:
                yield self.job({**first, dimension.key: value}, self.repeats[0])
        for repeat in self.repeats[1:]:
            yield self.job(first, repeat)

    def fractions(self) -> Combination | None:
        """Return a run with every `Dimension.fraction`, which a key of whole numbers refuses; None if there is none."""
        if not any(dimension.fraction for dimension in self.dimensions):
            return None
        values = {dimension.key: dimension.fraction or dimension.ends[0] for dimension in self.dimensions}
        return self.job(values, self.repeats[0])


def space(overrides: Sequence[Override], default: Callable[[str], Any] = lambda key: None) -> Space:
    """Return the search space of a command line; `default` returns the value of a key without the overrides."""
    parts: list[str | Dimension] = []
    repeats: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if not override.is_sweep_override():
            parts.append(str(override.input_line))
        elif key in REPEATS:
            if not override.is_discrete_sweep():
                raise ConfigError(
                    f"{key}: every trial is run with each of its values, so they must be single ones: a,b,c or "
                    f"range(start,stop). Received: {override.input_line}"
                )
            repeats.append(list(dict.fromkeys(spelled(override))))
        else:
            found = dimension(override, default(key))
            parts += [found] if found else spelled(override)
    made = Space(parts, list(itertools.product(*repeats)))
    if not made.dimensions:
        raise ConfigError(
            "sweep.search: there is nothing to search: no key has several values. Allowed: KEY=a,b,c, "
            "KEY=range(start,stop,step), KEY=interval(low,high), KEY=tag(log,interval(low,high)). Received: "
            + (" ".join(str(override.input_line) for override in overrides) or "no overrides")
        )
    if len(made.repeats) > RUNS:
        raise ConfigError(f"seed, data.fold: at most {RUNS} runs a trial. Received: {len(made.repeats)}")
    return made
