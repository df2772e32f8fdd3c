"""Effective configuration of a run: what its regime reads, what is logged of it, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from experiments.config.choices import shipped
from experiments.config.schema import Config, Schedule, Threshold

# Keys about where and how a run is executed. They do not change what it computes, so its identity excludes them.
NOT_IDENTITY = (
    "tracking", "sweep", "notes", "tags", "outputs", "progress", "resume", "trusted_packages", "objective", "must_reach"
)  # fmt: skip
# Keys that only name an input, whose contents are identified by hashes; and the list of what the regime ignores.
NAMES_OF_INPUTS = ("model.weights", "regime.head_from", "continue_from", "regime.ignores")
DEFAULTS_OF_OTHERS = ("model.finetune_lr",)  # keys that other keys refer to, whose values say all
REPEATS = ("seed", "data.fold")  # runs that differ only in the values of these keys are repeats of one setting
# Keys that are read from what a run has logged, to compare it with others, to report on it and to use its model. So are
# those of `model`.
USED_LATER = (
    *REPEATS, "data.image_size", "data.resize", "data.gray_range", "data.max_pixels", "loss", "monitor", "epochs",
    "best_weights", "runtime.precision", "regime.unfrozen_blocks",
)  # fmt: skip
RUNTIME = ("precision", "xla")  # the keys of `runtime` that change what a run computes


def effective(config: Config) -> dict[str, Any]:
    """Return the configuration without the keys that its regime ignores, as plain values, spelt as in YAML."""
    return _without(config.model_dump(by_alias=True, mode="json"), config.regime.ignores)


def logged(config: Config) -> dict[str, Any]:
    """Return the effective configuration, with values from the environment unresolved, such as ${oc.env:NAME}.

    Keys that are used later are resolved: a model that was trained with `data.resize=pad` has to be used with it.
    """
    plain = effective(config)
    for key, text in config.unresolved.items():
        for node, last in _places(plain, key) if not _is_used_later(key) else ():
            node[last] = text
    return plain


def _is_used_later(key: str) -> bool:
    return key in USED_LATER or (key.startswith("model.") and key not in NAMES_OF_INPUTS)


def _without(plain: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Remove dotted keys from nested mappings, and return these."""
    for key in keys:
        for node, last in list(_places(plain, key)):
            del node[last]
    return plain


def _places(node: Any, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each nested mapping that holds a dotted key, with the key's last part; keys of mappings may have dots."""
    if isinstance(node, dict):
        if key in node:
            yield node, key
        for name, below in node.items():
            if key.startswith(f"{name}."):
                yield from _places(below, key.removeprefix(f"{name}."))


def hidden(config: Config, text: str) -> str:
    """Return a text in which values that came from the environment are replaced by their unresolved text."""
    plain = config.model_dump(by_alias=True, mode="json")
    for key, written in config.unresolved.items():
        for node, last in _places(plain, key):
            if isinstance(node[last], str) and len(node[last]) > 3:
                text = text.replace(node[last], written)
    return text


def defining(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an effective configuration that defines what a run computes, as plain values."""
    kept = {key: value for key, value in plain.items() if key not in (*NOT_IDENTITY, "evaluate")}
    return kept | {"runtime": {key: plain["runtime"][key] for key in RUNTIME}}


def run_identity(config: Config, **facts: str | None) -> str:
    """Return the hash that is equal for two runs of the same experiment.

    It covers the effective configuration and `facts`: hashes of what it only names, such as data and weights, and the
    version of this package.
    """
    plain, data = _identifying(effective(config)), config.data
    plain["data"] = {"image_size": data.image_size}
    # Omitted at their defaults, so that runs of versions that had no such keys keep their identity.
    if data.gray_range is not None:
        plain["data"]["gray_range"] = data.gray_range
    if data.resize != "squash":
        plain["data"]["resize"] = data.resize
    return hashlib.sha256(json.dumps({"config": plain, **facts}, sort_keys=True).encode()).hexdigest()[:32]


def _identifying(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration whose values are in a run's identity; of `data`, that is done elsewhere."""
    return _without(defining({**plain, "data": None}), (*NAMES_OF_INPUTS, *DEFAULTS_OF_OTHERS))


def unlogged_setting(config: Config) -> str | None:
    """Return a hash of the settings, equal for all seeds and folds, if some came from the environment; else None.

    What is logged of them is the same, whatever their values are.
    """
    if _identifying(logged(config)) == _identifying(effective(config)):
        return None
    return run_identity(config.model_copy(update={"seed": 0}))


def head_run(config: Config) -> Config:
    """Return the configuration of the bottleneck run that trains the head of a fine-tuning run."""
    bottleneck = shipped("regime")["bottleneck"]
    regime = config.regime.model_copy(
        update={"name": "bottleneck", "target": bottleneck["_target_"], "ignores": bottleneck["ignores"]}
    )
    return config.model_copy(
        update={
            "regime": regime,
            "optimizer": config.regime.head_optimizer,
            "epochs": config.regime.head_epochs,
            "schedule": Schedule.model_validate(shipped("schedule")["constant"]),
            "monitor": "validation_loss",
            "early_stopping": None,
            "best_weights": False,
            "positive": None,
            "continue_from": None,
            "threshold": Threshold(fixed=None, recall=None, precision=None),
        }
    )


def dump_yaml(plain: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True)
