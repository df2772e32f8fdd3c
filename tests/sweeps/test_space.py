"""Search spaces of command lines as Optuna's distributions."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.errors import ConfigError
from experiments.sweeps.search.space import Dimension, Space, dimension, space

optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")


def over(*arguments: str, **defaults: Any) -> Space:
    return space(OverridesParser.create().parse_overrides(list(arguments)), defaults.get)


def dimension_of(argument: str, default: Any = None) -> Dimension:
    (override,) = OverridesParser.create().parse_overrides([argument])
    found = dimension(override, default)
    assert found is not None
    return found


@pytest.mark.parametrize("argument", ["a=relu,null,'x y',[1,2]", "a=choice(relu,gelu,'x y',1)", "+a=relu,gelu"])
def test_choices_are_the_strings_that_hydra_spells(argument: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([argument])
    found, spelled = dimension_of(argument), tuple(override.sweep_string_iterator())
    assert found.key == "a"
    assert found.distribution == optuna.distributions.CategoricalDistribution(spelled)
    assert tuple(map(found.spelled, found.distribution.choices)) == spelled


def test_a_shuffled_choice_is_the_same_space_every_time() -> None:
    assert {dimension_of("a=shuffle(choice(c,a,b,d,e))").choices for _ in range(10)} == {("a", "b", "c", "d", "e")}


def test_a_range_ends_before_its_end_and_has_the_values_that_a_grid_has() -> None:
    assert dimension_of("a=range(1,10,3)").distribution == optuna.distributions.IntDistribution(1, 7, step=3)
    assert dimension_of("a=range(10,0,-3)").distribution == optuna.distributions.IntDistribution(1, 10, step=3)
    tenths = dimension_of("a=range(0.1,0.6,0.1)")
    assert tenths.distribution == optuna.distributions.FloatDistribution(0.1, 0.5, step=0.1)
    assert [tenths.spelled(value) for value in (0.1, 0.30000001, 0.5)] == ["0.1", "0.30000000000000004", "0.5"]
    ending = dimension_of("a=range(0.1,0.31,0.1)").distribution  # Hydra adds up to 0.30000000000000004
    assert (ending.low, ending.high) == (0.1, pytest.approx(0.3))


def test_an_interval_holds_floats_or_integers_with_both_ends() -> None:
    assert dimension_of("a=interval(0.5,2)").distribution == optuna.distributions.FloatDistribution(0.5, 2.0)
    assert dimension_of("a=interval(1,5)").distribution == optuna.distributions.IntDistribution(1, 5)
    assert dimension_of("a=int(interval(1,5))").distribution == optuna.distributions.IntDistribution(1, 5)
    # The key holds a float, so that the interval means all floats from 0 to 1.
    assert dimension_of("a=interval(0,1)", default=0.5).distribution == optuna.distributions.FloatDistribution(0.0, 1.0)


def test_tag_log_searches_in_logarithms() -> None:
    found = dimension_of("a=tag(log, interval(1e-5,1e-2))")
    assert found.distribution == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
    assert found.spelled(0.000123456789) == "0.00012346"
    assert dimension_of("a=tag(log,range(1,65))").distribution == optuna.distributions.IntDistribution(1, 64, log=True)


def test_what_is_spelled_lies_in_the_interval() -> None:
    assert float(dimension_of("a=interval(0.1,0.1234567)").spelled(0.1234567)) <= 0.1234567


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (
            ["a=interval(2.0,1.0)"],
            "a: interval: its start must be less than its end, both finite. Received: a=interval",
        ),
        (["a=tag(log,interval(0.0,1.0))"], "a: tag(log): its start must be greater than 0. Received: a=tag"),
        (["a=tag(wide,interval(0.1,1.0))"], "a: tag: allowed is log. Received: a=tag(wide"),
        (["a=tag(log,choice(1,2))"], "a: tag(log): allowed with interval and range. Received: a=tag"),
        (["a=tag(log,range(0.1,1.0,0.1))"], "a: tag(log, range): needs whole numbers and steps of 1. Received: a=tag"),
        (["a=range(5,1)"], "a: range: there is nothing from its start to its end. Received: a=range(5,1)"),
        (["b=1,2", "seed=interval(0,4)"], "seed: every trial is run with each of its values"),
        (["a=1", "seed=0,1"], "there is nothing to search: no key has several values.*Received: a=1 seed=0,1"),
        (["a=choice(1)"], "there is nothing to search"),
    ],
)
def test_a_wrong_space_is_reported_with_its_key(arguments: list[str], printed: str) -> None:
    pattern = printed if ".*" in printed else printed.replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")
    with pytest.raises(ConfigError, match=pattern):
        over(*arguments)


def test_seeds_and_folds_repeat_a_trial() -> None:
    found = over("epochs=3", "optimizer.lr=interval(0.1,0.2)", "seed=0,1", "data.fold=range(2)")
    assert [found_one.key for found_one in found.dimensions] == ["optimizer.lr"]
    jobs = [found.job({"optimizer.lr": "0.15"}, repeat) for repeat in found.repeats]
    assert [overrides for overrides, _ in jobs] == [
        ["epochs=3", "optimizer.lr=0.15", f"seed={seed}", f"data.fold={fold}"] for seed in (0, 1) for fold in (0, 1)
    ]
    assert jobs[1][1] == {"optimizer.lr": "0.15", "seed": "0", "data.fold": "1"}


def test_corners_have_every_choice_and_both_ends() -> None:
    found = over("a=x,y,z", "b=interval(1,9)", "seed=0,1")
    assert [values for _, values in found.corners()] == [
        {"a": "x", "b": "1", "seed": "0"}, {"a": "y", "b": "1", "seed": "0"}, {"a": "z", "b": "1", "seed": "0"},
        {"a": "x", "b": "9", "seed": "0"}, {"a": "x", "b": "1", "seed": "1"},
    ]  # fmt: skip


def test_a_fraction_of_every_interval_of_numbers_shows_whether_its_key_takes_them() -> None:
    assert over("a=x,y", "b=interval(1,9)").fractions() is None
    found = over("a=x,y", "b=interval(1,9)", "c=interval(1.0,5.0)", "d=range(0.5,2,0.5)").fractions()
    assert found is not None and found[1] == {"a": "x", "b": "1", "c": "2.5279", "d": "0.5"}
