"""The record that is stored with the weights of a backbone or a head: what they belong to, to be compared later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments.config.schema import Model
from experiments.errors import ConfigError
from experiments.models import network, weights
from experiments.models.architecture import SHOWN, architecture, differences, setting_differences
from experiments.models.stages import Backbone


def network_settings(config: Model) -> dict[str, Any]:
    """Return the settings that determine the backbone's network, by their full key."""
    return {
        f"model.{key}": value
        for key, value in config.model_dump(by_alias=True, mode="json").items()
        if key not in ("name", "weights", "head", "blocks", "native_size", "finetune_lr")
    }


def network_record(config: Model, model: keras.Model) -> dict[str, Any]:
    """Return the description of the network that is stored with a backbone's weights."""
    return {"model": network_settings(config), "image_size": model.input_shape[1], "architecture": architecture(model)}


def head_record(config: Model, backbone: Backbone, head: keras.Model, model: keras.Model) -> dict[str, Any]:
    """Return the record that is stored with a head's weights.

    It describes the head and its backbone, and holds the probabilities that both give for the reference images.

    Args:
        backbone: the backbone at the end of the run.
        model: backbone and head joined.
    """
    return {
        "architecture": architecture(head),
        "pooling": config.head.pooling,
        "backbone": network_record(config, backbone.model) | {"weights": network.weights_hash(backbone.model)},
        "reference": np.asarray(model(network.reference_images(model), training=False)).tolist(),
    }


def backbone_differences(config: Model, record: Mapping[str, Any], backbone: Backbone) -> list[str]:
    """Return the differences between the backbone that a head was trained on and a run's backbone.

    Args:
        record: the record of the head, see `head_record`.

    Returns:
        One phrase per difference, beginning with the key; an empty list if both are the same.
    """
    there, here = record["backbone"], network_record(config, backbone.model)
    found = setting_differences(
        {"data.image_size": there["image_size"], "model.head.pooling": record["pooling"]},
        {"data.image_size": here["image_size"], "model.head.pooling": config.head.pooling},
    )
    network_differs = differences(there["architecture"], here["architecture"])
    if network_differs:
        found += setting_differences(there["model"], here["model"]) or ([] if found else network_differs[:SHOWN])
    if not found and there["weights"] != network.weights_hash(backbone.model):
        found.append("model.weights: the weights' values there are not those here")
    return found


def compare_record(config: Model, file: Path, backbone: Backbone, key: str) -> tuple[list[str], np.ndarray | None]:
    """Compare the record of a head with a run's backbone; the `key` of the configuration is for messages.

    Returns:
        The `backbone_differences`; and the recorded probabilities [N, classes] float32 for the reference images. None
        in files of early versions, which stored no record.

    Raises:
        ConfigError: the record is damaged.
    """
    record = weights.read(file, key).record
    if record is None:
        return [], None
    try:
        return backbone_differences(config, record, backbone), np.asarray(record["reference"], "float32")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {file}: its record is damaged ({error!r})") from None


def check_head(config: Model, file: Path, backbone: Backbone) -> None:
    """Raise ConfigError if the head of `regime.head_from` was trained on features of another backbone."""
    wrong, _ = compare_record(config, file, backbone, "regime.head_from")
    if wrong:
        raise ConfigError(
            "regime.head_from: that run's head was trained on features of another backbone: "
            f"{'; '.join(wrong)}. Give the run whose backbone this is (model.weights, model.preprocessing, "
            "data.image_size, ... as there), or regime.head_from=null, which trains a head first"
        )
