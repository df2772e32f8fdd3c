"""Python values as overrides: what they become, and that Hydra's grammar reads the same values back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.api.overrides import command
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.inspection.parts import OF_RUNS, OPTIONS


@pytest.mark.parametrize("value, expected", [
    (None, None), (True, True), (10, 10), (1e-4, 1e-4), ("mobilenet_v2", "mobilenet_v2"), ("null", "null"),
    ("true", "true"), ("1e-4", "1e-4"), ("", ""), ("a, b=c 'd' \"e\" \\", "a, b=c 'd' \"e\" \\"), ("nan", "nan"),
    ("${oc.env:HOME}", "\\${oc.env:HOME}"), ("ä ö", "ä ö"), (Path("/a b/c,d"), "/a b/c,d"), (np.int64(3), 3),
    (np.float32(0.5), 0.5), (np.bool_(True), True), (np.array([1, 2]), [1, 2]), (["cats", "a b"], ["cats", "a b"]),
    ((1, 2.5), [1, 2.5]), (range(3), [0, 1, 2]), ({"cats": 1.0, "big dogs": 2}, {"cats": 1.0, "big dogs": 2}),
    ([{"a": [None, "x"]}], [{"a": [None, "x"]}]),
])  # fmt: skip
def test_hydra_reads_the_value_that_was_given(value: Any, expected: Any) -> None:
    (line,) = command((), {"notes": value})
    override = OverridesParser.create().parse_override(line)
    assert override.key_or_group == "notes" and not override.is_sweep_override()
    assert override.value() == expected


def test_overrides_come_first_and_mappings_are_parts_of_the_configuration() -> None:
    keys = {
        "epochs": 3, "data": {"root": Path("/x"), "per_class": {"train": 4}}, "model": {"head": {"dropout": 0.5}},
        "class_weights": {"cats": 2.0}, "regime.unfrozen_blocks": 2, "hydra": {"run": {"dir": "/out"}}, "+tags.a": "b",
    }  # fmt: skip
    assert command(("regime=finetune",), keys, "mine") == [
        "--config-dir", "mine", "regime=finetune", "epochs=3", "data.root='/x'", "data.per_class={train:4}",
        "model.head.dropout=0.5", "class_weights={cats:2.0}", "regime.unfrozen_blocks=2", "hydra.run.dir='/out'",
        "+tags.a=b",
    ]  # fmt: skip


def test_a_sweep_runs_over_lists() -> None:
    keys = {
        "seed": range(3), "model": {"head": {"dropout": np.array([0.3, 0.5])}}, "regime": ["scratch", "finetune"],
        "data": {"species": [["cats", "dogs"]], "root": "a,b"}, "epochs": [5], "optimizer": {"lr": 0.1},
    }  # fmt: skip
    assert command((), keys, sweep=True) == [
        "seed=0,1,2", "model.head.dropout=0.3,0.5", "regime=scratch,finetune", "data.species=['cats','dogs']",
        "data.root='a,b'", "epochs=5", "optimizer.lr=0.1",
    ]  # fmt: skip


@pytest.mark.parametrize("overrides, keys, message", [
    ((3,), {}, "overrides: must be texts as on the command line.*Received: 3"),
    (("-m", "seed=0,1"), {}, "-m: options of the command line do not apply here.*ex.sweep"),
    (("--cfg", "job"), {}, "--cfg: .*ex.compose"),
    ((), {"hydra": {"mode": "MULTIRUN"}}, "hydra.mode=MULTIRUN: does not apply here.*ex.sweep"),
    ((), {"seed": object()}, "seed: <object.*no values of type object. Allowed: None, bool"),
    ((), {"model": {"head": {"dropout": {1, 2}}}}, "model.head.dropout: {1, 2}: .* type set"),
    ((), {"data": {3: "x"}}, "data.3: a key must be a text. Received: 3"),
])  # fmt: skip
def test_what_cannot_be_written_is_an_error_with_its_key(overrides: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(overrides, keys)


def test_an_empty_sweep_is_an_error() -> None:
    with pytest.raises(ConfigError, match="seed: a sweep needs at least one value"):
        command((), {"seed": []}, sweep=True)


def test_options_of_inspect_are_no_keys_of_the_configuration() -> None:
    for part, options in OPTIONS.items():
        assert part in OF_RUNS or not options.keys() & Config.model_fields.keys()
