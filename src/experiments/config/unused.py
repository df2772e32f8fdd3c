"""Checks for overrides that were typed but that no run reads, and that would thus have no effect."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from experiments.config.messages import format_errors
from experiments.config.schema import Config
from experiments.errors import ConfigError

# For each key that names weights: what a regime that ignores it does instead, and what to do.
WEIGHTS = {
    "model.weights": "it trains from random ones. Leave it out, or use regime=bottleneck or regime=finetune",
    "regime.head_from": "it trains its own head. Leave it out, or use regime=finetune",
}
SEARCH_KEYS = ("sweep.trials", "sweep.seed", "sweep.pruner", "sweep.storage")  # read by a search only
FINETUNE_LR = "model.finetune_lr"  # read by the optimizers whose YAML refers to it
brought: list[str] = []  # overrides that `like=` was expanded to in this process


def check_weights(configs: Sequence[Config], overrides: Sequence[str]) -> None:
    """Raise ConfigError for weights that were typed and that neither the run nor any job of the sweep would load."""
    lines = [
        f"{key}: {_choices(configs, 'regime')} loads no such weights, {WEIGHTS[key]}. Received: {value}"
        for _, key, value in _unread(configs, overrides)
        if key in WEIGHTS and value not in ("null", "None", "")
    ]
    if lines:
        raise ConfigError(format_errors(lines))


def warn(configs: Sequence[Config], overrides: Sequence[str]) -> None:
    """Warn of typed keys that no run reads, except keys of weights, which `check_weights` refuses."""
    unread: dict[str, list[str]] = {}
    for override, key, _ in _unread(configs, overrides):
        if key not in WEIGHTS:
            names = _choices(configs, "optimizer" if key == FINETUNE_LR else "regime")
            unread.setdefault(names, []).append(override)
    for names, of_these in unread.items():
        logging.getLogger(__name__).warning("%s does not read: %s", names, ", ".join(of_these))


def warn_of_sweep_keys(overrides: Iterable[str], what: str, keys: Sequence[str] = ("sweep",)) -> None:
    """Warn of typed settings of sweeps, those of `keys` or below them, that a single run or a grid does not read."""
    typed = {override: override.lstrip("+~").partition("=")[0] for override in overrides if override not in brought}
    unread = [override for override, name in typed.items() if any(f"{name}.".startswith(f"{key}.") for key in keys)]
    if unread:
        logging.getLogger(__name__).warning("%s does not read: %s", what, ", ".join(unread))


def _choices(configs: Sequence[Config], group: str) -> str:
    return " or ".join(dict.fromkeys(f"{group}={getattr(config, group).name}" for config in configs))


def _unread(configs: Sequence[Config], overrides: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield override, key and value of every typed override that none of the configurations reads.

    Overrides that come from a preset or from `like=` do not count as typed.
    """
    for override in overrides:
        name, _, value = override.lstrip("+").partition("=")
        key = name.rpartition("@")[2]  # optimizer@regime.head_optimizer=adam sets regime.head_optimizer
        typed = override not in brought and not override.startswith("~")
        if typed and all(_ignored(config, key) for config in configs):
            yield override, key, value


def _ignored(config: Config, key: str) -> bool:
    """Return whether a run with this configuration reads neither a key nor anything below it."""
    regime, unread = config.regime, [*config.regime.ignores]
    if regime.head_from is not None:
        unread += ["regime.head_epochs", "regime.head_optimizer"]
    if regime.unfrozen_blocks == "all" or (config.augmentation.name == "none" and not config.augmentation.layers):
        unread.append("regime.views")
    if config.model.finetune_lr not in (config.optimizer.lr, regime.head_optimizer.lr):  # a YAML may refer to it
        unread.append(FINETUNE_LR)
    return any(f"{key}.".startswith(f"{name}.") for name in unread)
