"""The first checkpoint of a run that trains a finished one further: `continue=RUN`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import keras
import numpy as np

from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError
from experiments.images.decoder_settings import DecoderSettings
from experiments.models.network import split_network, stack
from experiments.regimes.declaration import Trains, declaration_of
from experiments.regimes.trained_weights import load_trained
from experiments.runs.run_directory import RunDirectory
from experiments.training.checkpoints import LARGEST_KEPT, LARGEST_KEPT_OF_JOB, Checkpoints, TrainingState
from experiments.training.fit import build_optimizer
from experiments.training.types import RunComponents, monitored

_log = logging.getLogger(__name__)
# The keys that the counters and weights of the best epoch depend on; if one is changed, they begin anew.
COUNTERS = ("monitor", "best_weights", "loss")
# The arguments of Keras's optimizers that decide which variables these have; two sets may have the same shapes.
DECIDING = ("use_ema", "gradient_accumulation_steps", "momentum", "centered", "amsgrad")
NOT_KEPT = (
    "runs of version 0.2 and before kept none; of later ones, it is kept if it has at most "
    f"{LARGEST_KEPT / 1e6:.0f} MB, in a job of a sweep {LARGEST_KEPT_OF_JOB / 1e6:.0f} MB"
)


def write_first_checkpoint(
    components: RunComponents, dataset: Dataset, checkpoints: Checkpoints
) -> TrainingState | None:
    """Write the state with which the continued run ended as the first checkpoint of this one, and return it.

    `fit` then goes on as after an interruption. Nothing is written, and None returned, if this run continues no other
    or has a checkpoint of its own.

    Raises:
        ConfigError: the regime does not declare what it trains, the frozen network or the weights are others, or the
            kept state is gone or damaged.
    """
    config, source, declared = components.config, components.continued, declaration_of(components.regime)
    if source is None or config.sweep.trained is not None:
        return None
    phase, trains = declared.last_phase, declared.trains
    if phase is None or trains is None:
        raise ConfigError(f"continue: regime={config.regime.name} does not declare what its last phase trains")
    if checkpoints.latest(phase) is not None:
        return None
    facts, unfrozen = source.facts(), trains.unfrozen(config)
    folder = Path(facts["continued"])
    if trains != Trains.ALL and facts.get("backbone_identity") not in (None, components.backbone.identity):
        raise ConfigError(
            f"continue: the frozen weights are not those of {folder}. Allowed: its model.weights "
            f"({source.config()['model'].get('weights')}) and, if they are random, its seed"
        )
    network_split = split_network(components.backbone, unfrozen, config.model.head.pooling)
    network_split.trainable_part.trainable = True
    head = components.head(len(dataset.classes))
    model = stack(network_split.trainable_part, head, training=False)
    history = tuple(record for record in source.epochs() if record.phase == phase)
    if facts["state"] is None:
        state = TrainingState([], history=history)
        _log.warning("continue: no state of training is kept in %s (%s)", folder, NOT_KEPT)
    elif (kept := Checkpoints(Path(facts["state"])).latest(phase)) is None:
        raise ConfigError(
            f"continue: the state that {folder} has kept is gone or damaged: {facts['state']}. Restore that folder; "
            "or remove it, and begin a new run: that takes the saved weights, with a fresh optimizer"
        )
    else:
        state = continued_state(kept, components, dataset, model, source)
    if len(state.variables) <= len(model.variables):  # The last weights may be others: averaged, or of the best epoch.
        load_trained(components, network_split, head, RunDirectory(folder), "continue")
        state = replace(state, variables=[np.asarray(variable) for variable in model.variables])
        _log.warning("continue: the optimizer starts anew, from the weights that %s has saved", folder)
    checkpoints.save(phase, state)
    rate = components.phase.rate(len(history), monitored(history, config.monitor))
    _log.info("Continues %s after epoch %d of %d; learning rate %g", folder, len(history), config.epochs, rate)
    return state


def first_candidate(state: TrainingState, components: RunComponents, dataset: Dataset) -> int:
    """Return the first epoch that can be the best one of a continued run, from 0.

    It is the first one after the finished run if that run's scores are not comparable with those to come, or if the
    weights of the best epoch are the result and the finished run has not kept those of its best one. The run begins
    with `state`, see `write_first_checkpoint`.
    """
    config, source = components.config, components.continued
    assert source is not None
    other = set(_scored_otherwise(source, config, dataset)) - {"monitor", "best_weights"}
    if other or (config.best_weights and not state.best):
        return len(state.history)
    return int(source.facts().get("first_candidate", 0))


def continued_state(
    state: TrainingState, components: RunComponents, dataset: Dataset, model: keras.Model, source: RunDirectory
) -> TrainingState:
    """Return the state of a finished run as this run continues it.

    It has no variables of the optimizer if that starts anew: if it is another one, or if its variables are others (such
    as another momentum of 0). The best epoch and the patience begin anew if the scores of the finished run are not
    comparable with those to come; the patience also after it has ended the finished run.
    """
    config = components.config
    # Compiled as `fit` does, because Keras wraps the optimizer under mixed_float16.
    model.compile(optimizer=build_optimizer(components.phase, model, {}))
    model.optimizer.build(model.trainable_variables)
    # The states of random layers are set as an epoch begins; how many there are depends on model.head.dropout.
    trained = [value for value in state.variables if not _is_seed(value)]
    expected = [variable for variable in model.variables if not _is_seed(variable)]
    weights, moments = trained[: len(expected)], trained[len(expected) :]
    wrong = [
        f"{variable.path} {tuple(variable.shape)}"
        for variable, value in zip_longest(expected, weights)
        if value is None or tuple(variable.shape) != value.shape
    ]
    if wrong:
        raise ConfigError(
            f"continue: the trained weights do not fit this network, at {wrong[0]}: keep the keys below `model`, "
            "data.image_size and the classes as they were"
        )
    shapes = [tuple(variable.shape) for variable in model.optimizer.variables]
    before, now = source.config()["optimizer"], config.optimizer.model_dump(by_alias=True)
    same_optimizer = before["_target_"] == now["_target_"] and all(
        bool(before.get(name)) == bool(now.get(name)) for name in DECIDING
    )
    if not same_optimizer or [value.shape for value in moments] != shapes:
        moments = []
    values = iter(weights)
    variables = [np.asarray(variable) if _is_seed(variable) else next(values) for variable in model.variables]
    if other := list(_scored_otherwise(source, config, dataset)):
        _log.warning(
            "continue: the best epoch and the patience begin anew, as what the scores depend on has changed: %s",
            ", ".join(other),
        )
        return TrainingState([*variables, *moments], history=state.history)
    patience = {"wait": 0} if state.stopped and state.stopping else {}
    return TrainingState([*variables, *moments], state.best, {**state.stopping, **patience}, False, state.history)


def _is_seed(variable: keras.Variable | np.ndarray) -> bool:
    """Return whether a variable is the state of a random layer: two int64, as no weight and no moment is."""
    return tuple(variable.shape) == (2,) and variable.dtype == "int64"


def _scored_otherwise(source: RunDirectory, config: Config, dataset: Dataset) -> Iterator[str]:
    """Yield what the scores of epochs depend on and is not as in the finished run."""
    plain = source.config()
    yield from (key for key in COUNTERS if plain.get(key) != getattr(config, key))
    before = {(row["sha256"], row["class_name"]) for row in source.images() if row["split"] == "validation"}
    now = {(entry.sha256, entry.class_name) for entry in dataset.manifest.entries if entry.split == "validation"}
    if before != now:
        yield "validation images"
    if DecoderSettings.of(plain["data"]).pixels_key() != dataset.manifest.decoder_settings.pixels_key():
        yield "data.resize or data.gray_range"
