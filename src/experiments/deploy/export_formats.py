"""The formats of exported models: how each is written, and read back for a comparison with the model.

Keras, TensorFlow and the packages of the extras are imported where they are used, so that a command line is checked
without them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.errors import ConfigError

if TYPE_CHECKING:
    import keras

Infer = Callable[[np.ndarray], np.ndarray]  # pixels [N, H, W, 3] float32 -> probabilities [N, classes] float32


class ExportFormat(NamedTuple):
    """One format of exported models."""

    file: str  # its file or directory below the exported directory
    write: Callable[[keras.Model, Path, np.ndarray], None]  # the last: the run's training images, for int8
    read: Callable[[Path], Infer]
    extra: str | None = None  # the optional dependencies that it needs
    rounded: bool = False  # its weights have fewer digits than the model's, so that its probabilities differ


def read_keras(path: Path) -> Infer:
    import keras

    from experiments.models.network import inference_function

    return inference_function(keras.models.load_model(path, compile=False))


def read_saved_model(path: Path) -> Infer:
    """Return the serving function of a SavedModel, on NumPy arrays."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda pixels: np.asarray(loaded.serve(tf.constant(pixels)))


def write_onnx(model: keras.Model, path: Path, images: np.ndarray) -> None:
    """Write an ONNX file by tf2onnx, which Keras adapts to NumPy 2."""
    import keras

    inputs = [keras.InputSpec(shape=model.input_shape, dtype="float32", name="pixels")]
    model.export(path, format="onnx", verbose=False, input_signature=inputs)


def read_onnx(path: Path) -> Infer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: np.asarray(session.run(None, {name: pixels})[0])


def write_tflite(precision: str, model: keras.Model, path: Path, images: np.ndarray) -> None:
    """Write a TFLite file, which takes and returns float32 at every precision and needs no TensorFlow operations.

    float16 halves the weights. int8 quantises weights and activations, whose ranges are those that occur while the
    model computes `images` (post-training quantisation: Jacob et al., 2018, https://arxiv.org/abs/1712.05877).
    """
    import tensorflow as tf

    def representative() -> Iterator[list[np.ndarray]]:
        for image in images:
            yield [image[None].astype("float32")]

    builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8 if precision == "int8" else tf.lite.OpsSet.TFLITE_BUILTINS
    target = {"supported_ops": [builtins]} | ({"supported_types": [tf.float16]} if precision == "float16" else {})
    options: dict[str, Any] = {} if precision == "float32" else {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if precision == "int8":
        options["representative_dataset"] = representative
    model.export(path, format="litert", verbose=False, target_spec=target, **options)


def read_tflite(path: Path) -> Infer:
    """Return a TFLite file's function, computed by the runtime of phones and boards, image by image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def infer(pixels: np.ndarray) -> np.ndarray:
        rows = []
        for image in pixels:
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(result["index"])[0])
        return np.stack(rows)

    return infer


def tflite(precision: str) -> ExportFormat:
    write = functools.partial(write_tflite, precision)
    return ExportFormat(f"model_{precision}.tflite", write, read_tflite, "litert", rounded=precision != "float32")


INT8 = "tflite_int8"
FORMATS = {
    "keras": ExportFormat("model.keras", lambda model, path, images: model.save(path), read_keras),
    "saved_model": ExportFormat(
        "saved_model",
        lambda model, path, images: model.export(path, format="tf_saved_model", verbose=False),
        read_saved_model,
    ),
    "onnx": ExportFormat("model.onnx", write_onnx, read_onnx, "onnx"),
    "tflite_float32": tflite("float32"),
    "tflite_float16": tflite("float16"),
    INT8: tflite("int8"),
}
GROUPS = {"tflite": [name for name in FORMATS if name.startswith("tflite_")], "all": list(FORMATS)}
DEFAULT = "keras,saved_model"
MODEL_JSON = "model.json"  # the file beside the exported ones that describes them
EXTRAS = {"onnx": ("tf2onnx", "onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}  # the modules of each


def parse(text: str) -> list[str]:
    """Return the names of FORMATS in a comma-separated text, in their order; ConfigError if one cannot be used."""
    given = [name.strip() for name in text.split(",")]
    if unknown := [name for name in given if name not in FORMATS and name not in GROUPS]:
        raise ConfigError(
            f"--format: unknown: {', '.join(map(repr, unknown))}. Allowed, separated by commas: "
            f"{', '.join([*FORMATS, *GROUPS])} (tflite is {', '.join(GROUPS['tflite'])})"
        )
    wanted = {name for group in given for name in GROUPS.get(group, [group])}
    names = [name for name in FORMATS if name in wanted]
    for name in names:
        extra = FORMATS[name].extra
        if absent := [module for module in EXTRAS.get(extra or "", ()) if importlib.util.find_spec(module) is None]:
            raise ConfigError(
                f"--format: {name} needs {', '.join(absent)}, which is not installed. Install it: "
                f"pip install 'image-experiments[{extra}]'. Possible without it: "
                f"{', '.join(name for name in FORMATS if FORMATS[name].extra is None)}"
            )
    return names


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ConfigError if a directory may not be written because something has that name, or a file its parent's.

    Only what an earlier export has written is ever replaced.
    """
    if folder.parent.exists() and not folder.parent.is_dir():
        raise ConfigError(f"--output: {folder.parent} is a file, and no folder can be made in it. Give another one")
    is_export = (folder / MODEL_JSON).is_file()
    if os.path.lexists(folder) and not (overwrite and is_export):
        how = "Give --overwrite to replace it" if is_export else "Give another one"
        raise ConfigError(f"--output: {folder} is there already. {how}")


def check_precision(model: keras.Model, names: Sequence[str]) -> None:
    """Raise ConfigError if a model computes in a precision that a format cannot express."""
    from experiments.system.private_api import flatten_layers

    layer = next((layer for layer in flatten_layers(model) if layer.compute_dtype != "float32"), None)
    name = next((name for name in names if FORMATS[name].extra), None)
    if layer and name:
        raise ConfigError(
            f"--format: {name} takes networks that compute in float32 only; the layer {layer.name} computes in "
            f"{layer.compute_dtype}. Train with runtime.precision=float32, or export to {DEFAULT}"
        )


def convert(model: keras.Model, name: str, path: Path, images: np.ndarray) -> Infer:
    """Write a model in one of FORMATS and read it back; `images`: training images [N, H, W, 3], for int8.

    Raises:
        ConfigError: the format cannot express the model; the message names the layers.
    """
    form = FORMATS[name]
    try:
        form.write(model, path, images)
        return form.read(path)
    except (OSError, MemoryError):  # these are not about the network
        raise
    except Exception as error:  # the converters and runtimes have no common base class of errors
        layers = inconvertible(model, form)
        blamed = f"its layers {', '.join(layers)}" if layers else "it (each layer alone can be expressed)"
        reason = str(error).replace(str(path), path.name).strip().splitlines() or [type(error).__name__]
        others = ", ".join(other for other in FORMATS if other != name)
        raise ConfigError(
            f"--format: {name} cannot express this network: {blamed}. The converter's reason: {reason[0][:500]}. "
            f"Nothing was kept. Other formats: {others}"
        ) from error


def inconvertible(model: keras.Model, form: ExportFormat) -> list[str]:
    """Return the layers that a format cannot express, as 'name (class)'.

    Each is tried alone, one of every class. Layers with several inputs, such as sums, are not tried, nor are layers
    inside other layers than models, which have no inputs of their own.
    """
    import keras

    from experiments.system.private_api import flatten_layers

    found, tried = [], {keras.layers.InputLayer}
    for layer in flatten_layers(model):
        inputs = getattr(layer, "input", None)
        if isinstance(layer, keras.Model) or type(layer) in tried or not isinstance(inputs, keras.KerasTensor):
            continue
        tried.add(type(layer))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / form.file
            try:
                alone = keras.Input(batch_shape=inputs.shape)
                noise = np.random.default_rng(0).normal(size=(8, *alone.shape[1:]))
                form.write(keras.Model(alone, layer(alone)), path, noise)
                form.read(path)
            except Exception:
                found.append(f"{layer.name} ({type(layer).__name__})")
    return found
