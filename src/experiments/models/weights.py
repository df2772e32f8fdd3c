"""Weights files: their content, its comparison with a network, and loading.

Only names, shapes, numbers and JSON text are read from a file; nothing in it is deserialized, called or followed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras

from experiments.errors import ConfigError
from experiments.models.architecture import PREPROCESSING, Architecture, layers_of, snake_case
from experiments.models.weights_files import ALLOWED, check_file
from experiments.storage import atomic_files

RECORD = "experiments"  # dataset beside Keras's own groups that holds the record given to `save`
LARGEST_CONFIG = 50_000_000  # bytes of JSON
DEEPEST = 20  # levels of nested groups
SHOWN = 3  # layers in a message
MEMBER = "model.weights.h5"  # in a .keras file
SUFFIX = {"keras": ".weights.h5", "legacy": ".h5", "archive": ".keras"}  # Keras chooses the layout by the suffix
BACKBONE_ONLY = (
    "Save the backbone alone and give that file: "
    "keras.Model(m.input, m.get_layer(LAST).output).save_weights('backbone.weights.h5')"
)
# Layer classes that do not prove a difference between networks: at the input or output, or idle at inference.
UNDECIDED = re.compile(r"input_layer|flip|rescaling|normalization|flatten|global_.*|.*dropout(_?\dd)?|gaussian_noise")


class Layer(NamedTuple):
    """A layer of a weights file or of a network."""

    name: str
    kind: str  # its class in snake case; in a legacy file its name without a number
    shapes: tuple[tuple[int, ...], ...]  # of its weights


Layers = dict[str, Layer]  # by the key of each layer in a weights file


@dataclass(frozen=True)
class Contents:
    """The content of a weights file, without the numbers."""

    path: Path
    layout: str  # keras: Keras 3's; legacy: Keras 1 and 2's, as keras.applications publishes; archive: a .keras file's
    layers: Layers
    record: Mapping[str, Any] | None = None  # the record given to `save`
    config: Mapping[str, Any] | None = None  # the Keras configuration of the network, where the file has one


def save(model: keras.Model, path: Path, record: Mapping[str, Any]) -> None:
    """Write a model's weights atomically, with a record of what they belong to."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        model.save_weights(draft)
        with h5py.File(draft, "a") as file:
            file[RECORD] = json.dumps(record)
        atomic_files.sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path, key: str) -> Contents:
    """Return the content of a weights file.

    Args:
        key: the configuration key that named the file, for the error message.

    Raises:
        ConfigError: if the file is missing, damaged, no weights file, or refers to other files.
    """
    check_file(path, key)
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path, key)
        with h5py.File(path) as file:
            return _read_file(file, path, key)
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # what h5py, zipfile and zlib raise for damaged files has no common base class
        raise ConfigError(f"{key}: {path} is damaged and cannot be read ({str(error)[:200]})") from None


def _read_archive(path: Path, key: str) -> Contents:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if MEMBER not in names or "config.json" not in names:
            what = "PyTorch's" if any(name.endswith("data.pkl") for name in names) else "not Keras's"
            raise ConfigError(f"{key}: {ALLOWED}. Received: {path}, an archive, but {what}: it has no {MEMBER}")
        if archive.getinfo("config.json").file_size > LARGEST_CONFIG:
            raise ConfigError(f"{key}: {path}: its config.json is larger than {LARGEST_CONFIG:,} bytes")
        config = json.loads(archive.read("config.json"))
        with archive.open(MEMBER) as member, h5py.File(member) as file:
            found = _read_file(file, path, key)
    return replace(found, layout="archive", config=_functional(config))


def _read_file(file: h5py.File, path: Path, key: str) -> Contents:
    _refuse_references(file, path, key)
    record = json.loads(file[RECORD][()]) if RECORD in file and file[RECORD].shape == () else None
    record = record if isinstance(record, Mapping) else None
    legacy = file["model_weights"] if "layer_names" not in file.attrs and "model_weights" in file else file
    if "layer_names" in legacy.attrs or "layer_names0" in legacy.attrs:
        layers: Layers = {}
        for name in _texts(legacy, "layer_names"):
            shapes = [_shape(legacy[name][weight]) for weight in _texts(legacy[name], "weight_names")]
            layers[str(len(layers))] = Layer(name, _without_number(name), tuple(shapes))
        config = file.attrs.get("model_config")
        return Contents(path, "legacy", layers, record, _functional(json.loads(config)) if config is not None else None)
    names = ("layers", "_layer_checkpoint_dependencies")
    root = next((file[name] for name in names if isinstance(file.get(name), h5py.Group)), None)
    if root is None:
        raise ConfigError(f"{key}: {ALLOWED}. Received: {path}, an HDF5 file without weights of Keras")
    return Contents(path, "keras", dict(_groups(root)), record)


def _groups(root: h5py.Group, above: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the key and the layer of every layer in Keras 3's layout, including the layers of nested networks."""
    for place, group in root.items():
        if isinstance(group, h5py.Group) and "layers" in group:
            yield from _groups(group["layers"], f"{above}{place}/")
        elif isinstance(group, h5py.Group):
            name = group["vars"].attrs.get("name", place) if "vars" in group else place
            found: list[h5py.Group | h5py.Dataset] = []
            group.visititems(lambda _, node, found=found: found.append(node))
            arrays = [node for node in found if isinstance(node, h5py.Dataset) and "seed_generator" not in node.name]
            shapes = [_shape(node) for node in arrays]
            yield f"{above}{place}", Layer(str(name), _without_number(place), tuple(shapes))


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _shape(dataset: h5py.Dataset) -> tuple[int, ...]:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiuV":
        raise ValueError(f"{dataset.name} holds no numbers")
    return tuple(map(int, dataset.shape))


def _refuse_references(file: h5py.File, path: Path, key: str) -> None:
    """Raise ConfigError if anything in an HDF5 file is stored elsewhere, or nested too deeply.

    Elsewhere are soft and external links, external storage and virtual datasets.
    """

    def refused(name: str, link: Any) -> str | None:
        if not isinstance(link, h5py.HardLink):
            return f"refers to other places ({name} is a link)"
        if name.count("/") > DEEPEST:
            return f"has groups nested deeper than {DEEPEST}"
        node = file[name]
        is_elsewhere = isinstance(node, h5py.Dataset) and (node.external or node.is_virtual)
        return f"refers to other files ({name})" if is_elsewhere else None

    if found := file.visititems_links(refused):
        raise ConfigError(
            f"{key}: {path} {found}, which is not read. Save the weights into one file: "
            "model.save_weights('backbone.weights.h5')"
        )


def _texts(group: h5py.Group, name: str) -> list[str]:
    """Return an attribute that is a list of names; Keras splits a long list into several attributes."""
    parts = [name] if name in group.attrs else [f"{name}{at}" for at in range(len(group.attrs))]
    values = [value for part in parts if part in group.attrs for value in group.attrs[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _functional(config: Any) -> Mapping[str, Any] | None:
    """Return the inner configuration of a functional model; None for any other model."""
    inner = config.get("config") if isinstance(config, Mapping) else None
    return inner if isinstance(inner, Mapping) and "layers" in inner and "input_layers" in inner else None


def recorded_architecture(contents: Contents) -> Architecture | None:
    """Return the architecture of the network that a file's weights belong to; None if it is not known."""
    try:
        if contents.record is not None:
            keys = ("name", "class", "settings", "inputs")  # all of these, unless it is damaged
            return [{key: layer[key] for key in keys} for layer in contents.record["architecture"]]
        return None if contents.config is None else layers_of(contents.config)
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
        return None


def recorded_size(contents: Contents) -> int | None:
    """Return the image size of the network that a file's weights belong to; None if it takes any size."""
    if contents.record is not None:
        size = contents.record.get("image_size")
    else:
        inputs = [layer["config"] for layer in (contents.config or {})["layers"] if layer["class_name"] == "InputLayer"]
        shape = inputs[0].get("batch_shape") if len(inputs) == 1 else None
        size = shape[1] if isinstance(shape, list) and len(shape) == 4 else None
    return size if isinstance(size, int) and 0 < size < 10_000 else None


def layers_in(model: keras.Model, layout: str) -> Layers:
    """Return a model's layers by the keys that they have in a weights file of a layout."""
    if layout == "legacy":
        return {str(at): _layer(layer) for at, layer in enumerate(model.layers)}
    found: Layers = {}
    counts: Counter[str] = Counter()
    for layer in model.layers:
        kind = snake_case(type(layer).__name__)
        place = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        if isinstance(layer, keras.Model):
            found |= {f"{place}/{inner}": inside for inner, inside in layers_in(layer, layout).items()}
        else:
            found[place] = _layer(layer)
    return found


def _layer(layer: keras.Layer) -> Layer:
    shapes = tuple(tuple(weight.shape) for weight in layer.weights)
    return Layer(layer.name, snake_case(type(layer).__name__), shapes)


def mismatch(contents: Contents, model: keras.Model) -> str | None:
    """Return why a file's arrays do not fit a model, layer by layer, with the likely cause; None if they fit.

    Layers may have other names in the file, as in the weights of keras.applications.
    """
    there, here = _weighted(contents.layers), _weighted(layers_in(model, contents.layout))
    if contents.layout == "legacy":  # Keras loads these in order
        there, here = ({str(at): layer for at, layer in enumerate(some.values())} for some in (there, here))
    wrong = [place for place in here if place in there and sorted(here[place].shapes) != sorted(there[place].shapes)]
    in_file, in_model = ({layer.name: layer for layer in layers.values()} for layers in (there, here))
    moved = [
        place for place in here
        if place in there and here[place].name != there[place].name
        and here[place].name in in_file and there[place].name in in_model
    ]  # fmt: skip
    if set(there) == set(here) and not wrong and not moved:
        return None
    lines = [
        f"{name} {list(layer.shapes)} expected, {list(in_file[name].shapes)} received"
        for name, layer in in_model.items()
        if name in in_file and sorted(layer.shapes) != sorted(in_file[name].shapes)
    ]
    lacking = [layer for name, layer in in_model.items() if name not in in_file]
    surplus = [layer for name, layer in in_file.items() if name not in in_model]
    lines += [f"{name} {list(shapes)} is not in the file" for name, _, shapes in lacking]
    lines += [f"{name} {list(shapes)} is only in the file" for name, _, shapes in surplus]
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    shown = "; ".join(lines[:SHOWN]) or "the same layers in another order"
    return f"{shown}{more}. Likely cause: {_likely_cause(in_file, in_model)}"


def _weighted(layers: Layers) -> Layers:
    return {place: layer for place, layer in layers.items() if layer.shapes}


def _likely_cause(there: Mapping[str, Layer], here: Mapping[str, Layer]) -> str:
    extra = [layer for name, layer in there.items() if name not in here]
    classifier = [layer.name for layer in extra if any(len(shape) == 2 for shape in layer.shapes)]
    if classifier and all(name in there for name in here):
        return (
            f"the file holds a whole classifier ({', '.join(classifier)}), and its backbone alone is needed. Of "
            f"keras.applications that is *_notop.h5 or *_no_top.h5; of your own model: {BACKBONE_ONLY}"
        )
    shared = [name for name in here if name in there]
    if not shared:
        return "another network (model=...)"
    if all(there[name].shapes == here[name].shapes for name in shared):
        return "another number of blocks or layers (model.layers, model=...)"
    return (
        "another width (model.alpha, model.layers.*.filters), kernel size (model.layers.*.kernel) or normalisation "
        "(model.layers.*.batch_norm)"
    )


def other_layers(contents: Contents, model: keras.Model) -> str | None:
    """Return which layers without weights differ in number between a file and a model; None if none is known to.

    Keras 3 lists all layers in a file; older versions of it and the legacy layout give no classes.
    """
    there = Counter(layer.kind for layer in contents.layers.values() if not layer.shapes)
    here = Counter(layer.kind for layer in layers_in(model, contents.layout).values() if not layer.shapes)
    if contents.layout == "legacy" or not there:
        return None
    kinds = sorted(kind for kind in {*there, *here} if there[kind] != here[kind] and not UNDECIDED.fullmatch(kind))
    return ", ".join(f"{there[kind]} x {kind} in the file, {here[kind]} in the network" for kind in kinds) or None


def rescalings(layers: Layers) -> int:
    """Return the number of rescaling layers in a network, except the one that `network.preprocess` adds."""
    return sum(layer.kind == "rescaling" and layer.name != PREPROCESSING for layer in layers.values())


def load(model: keras.Model, contents: Contents, key: str) -> None:
    """Load a file's weights into a model.

    Raises:
        ConfigError: if they do not fit; the message has the layers, the shapes and the likely cause.
    """
    reason = mismatch(contents, model)
    if reason is None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                link = Path(folder) / f"model{SUFFIX[contents.layout]}"
                link.symlink_to(contents.path.resolve())
                model.load_weights(link)
            return
        except (ValueError, OSError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
    layers = ", ".join(f"{name} {list(shapes)}" for name, _, shapes in layers_in(model, "legacy").values() if shapes)
    raise ConfigError(
        f"{key}: {contents.path} does not fit {model.name}: {reason}. The network's layers: {layers[:600]}"
    )
