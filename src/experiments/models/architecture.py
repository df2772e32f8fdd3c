"""Architecture of a network as plain data, to be stored with its weights and compared with another network's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

# Settings that affect training or storage, but not what a trained network computes.
TRAINING_ONLY = re.compile(
    r"name|trainable|dtype|seed|momentum|renorm_momentum|batch_shape|batch_input_shape|sparse|ragged|optional"
    r"|(.*_)?(initializer|regularizer|constraint)"
)
# Layers that return their input unchanged at inference.
IDENTITY_AT_INFERENCE = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout",
    "GaussianNoise", "ActivityRegularization",
)  # fmt: skip
PREPROCESSING = "preprocessing"  # the name of the layer that `network.preprocess` adds
SHOWN = 5  # differences in a message

Architecture = list[dict[str, Any]]


def architecture(model: keras.Model) -> Architecture:
    """Return the layers of a functional model: name, class, settings and inputs of each, in the order of its graph."""
    return layers_of(json.loads(model.to_json())["config"])


def layers_of(config: Mapping[str, Any], *, preprocessing: bool = True) -> Architecture:
    """Return the layers of a functional model's Keras configuration.

    Settings that matter in training only and layers that do nothing at inference are skipped. Names that Keras numbers
    (`add_3`) are numbered anew, as they depend on what a process has built before.

    Args:
        config: the value of `config` in the config.json of a .keras file. It is only read, never deserialized.
        preprocessing: False skips what `network.preprocess` adds before a network.

    Raises:
        KeyError, TypeError, AttributeError: if the configuration has another form.
    """
    nodes = [(str(layer.get("name") or layer["config"]["name"]), layer) for layer in config["layers"]]
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    passed: dict[str, str] = {}  # skipped layer -> the layer before it
    for name, layer in nodes:
        kind = str(layer["class_name"])
        added = name == PREPROCESSING or kind == "Flip"
        if kind in IDENTITY_AT_INFERENCE or (added and not preprocessing):
            passed[name] = next(_sources(layer["inbound_nodes"]))
            continue
        # The name of an input layer does not matter.
        counted = kind == "InputLayer" or re.fullmatch(rf"{snake_case(kind)}(_\d+)?", name)
        names[name] = f"{snake_case(kind)}[{counts[kind]}]" if counted else name
        counts[kind] += bool(counted)

    def inputs(node: Any) -> Any:
        if isinstance(node, Mapping):
            if node.get("class_name") == "__keras_tensor__":
                source, *place = node["config"]["keras_history"]
                while source in passed:
                    source, place = passed[source], [0, 0]
                return [names.get(source, source), *place]
            return {key: inputs(value) for key, value in node.items() if key not in ("training", "mask")}
        return [inputs(value) for value in node] if isinstance(node, list) else node

    found = []
    for name, layer in nodes:
        if name in names:
            kind, settings = str(layer["class_name"]), layer["config"]
            if "layers" in settings and "input_layers" in settings:
                settings = {"layers": layers_of(settings, preprocessing=preprocessing)}
            called = inputs(layer.get("inbound_nodes", []))
            found.append({"name": names[name], "class": kind, "settings": _settings(settings), "inputs": called})
    return found


def differences(recorded: Architecture, current: Architecture) -> list[str]:
    """Return a phrase for each difference between a recorded and a current network; none if they compute the same.

    Settings that only one of the two has are not compared: another version of Keras may have added them.
    """
    there, here = ([f"{layer['name']} ({layer['class']})" for layer in layers] for layers in (recorded, current))
    if there != here:
        only = {
            "there": [kind for kind in there if kind not in here],
            "here": [kind for kind in here if kind not in there],
        }
        found = [f"layers only {where}: {_listed(names)}" for where, names in only.items() if names]
        return found or ["the same layers in another order"]
    found = []
    for before, now in zip(recorded, current, strict=True):
        found += [f"{before['name']}.{line}" for line in _layer_differences(before["settings"], now["settings"])]
        if before["inputs"] != now["inputs"]:
            found.append(f"{before['name']} has other inputs")
    return found


def _layer_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    if "layers" in there and "layers" in here:
        return differences(there["layers"], here["layers"])
    shared = [key for key in there if key in here and not _equal(there[key], here[key])]
    return [f"{key}: {there[key]!r:.80} there, {here[key]!r:.80} here" for key in shared]


def setting_differences(there: Mapping[str, Any], here: Mapping[str, Any], above: str = "") -> list[str]:
    """Return a phrase for each setting that differs between two configurations of a network.

    Settings that only one of them has are skipped, as are dropout, penalties and momentum, which matter in training
    only.
    """
    found = []
    for key in there:
        if key in here and there[key] != here[key] and key not in ("dropout", "l1", "l2") and "momentum" not in key:
            if isinstance(there[key], Mapping) and isinstance(here[key], Mapping):
                names = [[str(name) for name in mapping] for mapping in (there[key], here[key])]
                if above == "" and names[0] != names[1]:  # blocks
                    found.append(f"{key}: {_listed(names[0])} there, {_listed(names[1])} here")
                found += setting_differences(there[key], here[key], f"{above}{key}.")
            else:
                found.append(f"{above}{key}: {there[key]!r:.80} there, {here[key]!r:.80} here")
    return found


def _equal(there: Any, here: Any) -> bool:
    """Return whether two settings are equal, floats to a relative 1e-6: they may have been written as float32."""
    if isinstance(there, list) and isinstance(here, list):
        return len(there) == len(here) and all(map(_equal, there, here))
    if isinstance(there, float | int) and isinstance(here, float | int):
        return bool(abs(there - here) <= 1e-6 * max(abs(there), abs(here)))
    return bool(there == here)


def _settings(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {key: _settings(value) for key, value in settings.items() if not TRAINING_ONLY.fullmatch(key)}
    return [_settings(value) for value in settings] if isinstance(settings, list) else settings


def _sources(node: Any) -> Iterator[str]:
    """Yield the names of the layers whose outputs enter a node."""
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            yield str(node["config"]["keras_history"][0])
        else:
            for value in node.values():
                yield from _sources(value)
    elif isinstance(node, list):
        for value in node:
            yield from _sources(value)


def snake_case(kind: str) -> str:
    """Return the default name that Keras gives to a layer of a class."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))).lower()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
