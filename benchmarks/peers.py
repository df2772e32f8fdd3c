"""Peers of the benchmark: what users of plain Keras would run instead. Nothing of `experiments` is imported here.

Every network is compiled with Keras's defaults: jit_compile="auto", all cores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

AUTOTUNE = tf.data.AUTOTUNE


@dataclass
class Peer:
    """A training that runs one epoch at a time."""

    images: int  # in an epoch
    epoch: Callable[[], tuple[float, int]]  # trains one epoch; returns seconds and steps


class Clock(keras.callbacks.Callback):
    """Training time of an epoch, measured as `experiments.training.fit` does: to the end of its last batch."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.began, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.ended = time.perf_counter()
        self.steps += 1


def one_epoch(model: keras.Model, *data: Any, **options: Any) -> tuple[float, int]:
    clock = Clock()
    model.fit(*data, epochs=1, verbose=0, callbacks=[clock], **options)
    return clock.ended - clock.began, clock.steps


# --- from scratch: the tutorial's network


def small_convnet(size: int, *before: keras.layers.Layer) -> keras.Model:
    """Return the tutorial's network, compiled with the tutorial's settings.

    It expects pixels in [0, 1], unless the layers in `before` rescale them.
    """
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((size, size, 3)), *before,
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(2),
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2),
        layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    model.compile(optimizer="rmsprop", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def legacy_generator(root: Path, size: int, batch_size: int) -> Peer:
    """Return peer (a), the tutorial's script: ImageDataGenerator and flow_from_directory."""
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rescale=1 / 255,
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
        fill_mode="nearest",
    )
    flow = generator.flow_from_directory(
        str(root / "train"), target_size=(size, size), batch_size=batch_size, class_mode="binary"
    )
    model = small_convnet(size)
    return Peer(flow.n, lambda: one_epoch(model, flow))


def augmentation_layers() -> keras.Sequential:
    """Return the tutorial's augmentation as a sequence of Keras layers: a flip and four resamplings."""
    layers = keras.layers
    shear = float(np.tan(np.deg2rad(0.2)))  # the tutorial's 0.2 are degrees
    return keras.Sequential([
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(40 / 360, fill_mode="nearest"),
        layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
        layers.RandomShear(x_factor=shear, fill_mode="nearest"),
        layers.RandomZoom(0.2, 0.2, fill_mode="nearest"),
    ])  # fmt: skip


def directory_and_layers(root: Path, size: int, batch_size: int) -> Peer:
    """Return peer (b): image_dataset_from_directory, decoded once and cached, augmentation layers in dataset.map."""
    files = keras.utils.image_dataset_from_directory(
        str(root / "train"), label_mode="binary", image_size=(size, size), batch_size=None, verbose=False
    )
    images = len(files.file_paths)
    augment = augmentation_layers()
    dataset = (
        files.cache()
        .shuffle(1000)
        .batch(batch_size)
        .map(lambda pixels, labels: (augment(pixels, training=True), labels), num_parallel_calls=AUTOTUNE)
        .prefetch(AUTOTUNE)
    )
    model = small_convnet(size, keras.layers.Rescaling(1 / 255))
    return Peer(images, lambda: one_epoch(model, dataset))


def from_memory(root: Path, size: int, batch_size: int) -> Peer:
    """Return peer (c), the floor: the same network fed from arrays in memory, without augmentation."""
    pixels, labels = in_memory(root, "train", size)
    pixels /= 255
    model = small_convnet(size)
    return Peer(len(pixels), lambda: one_epoch(model, pixels, labels, batch_size=batch_size))


def in_memory(root: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all images of a split: pixels [N, H, W, 3] float32 in [0, 255] and labels [N] float32."""
    dataset = keras.utils.image_dataset_from_directory(
        str(root / split), label_mode="binary", image_size=(size, size), batch_size=32, shuffle=False, verbose=False
    )
    pixels, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)[:, 0]


def augmented_batches(pixels: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return an epoch of images [N, H, W, 3] uint8 in memory as batches, augmented by Keras's layers."""
    augment = augmentation_layers()
    return (
        tf.data.Dataset.from_tensor_slices(pixels)
        .shuffle(len(pixels))
        .batch(batch_size)
        .map(lambda batch: augment(tf.cast(batch, tf.float32), training=True), num_parallel_calls=AUTOTUNE)
        .prefetch(AUTOTUNE)
    )


def read_through(dataset: tf.data.Dataset) -> tuple[float, int]:
    """Read a dataset to its end and return the seconds and the number of batches."""
    began = time.perf_counter()
    steps = sum(1 for _ in dataset)
    return time.perf_counter() - began, steps


# --- on a pretrained backbone


def backbone(name: str, weights: str | None, size: int) -> tuple[keras.Model, Callable[[np.ndarray], np.ndarray]]:
    """Return a network without its top, which outputs one vector per image, and its preprocessing.

    The preprocessing may work in place.
    """
    shape = (size, size, 3)
    if name == "mobilenet_v2":
        model = keras.applications.MobileNetV2(
            alpha=0.35, include_top=False, weights=weights, input_shape=shape, pooling="avg"
        )
        return model, keras.applications.mobilenet_v2.preprocess_input
    base = keras.applications.VGG16(include_top=False, weights=weights, input_shape=shape)
    flat = keras.layers.Flatten()(base.output)
    return keras.Model(base.input, flat), keras.applications.vgg16.preprocess_input


def predict_twice(model: keras.Model, pixels: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Return the seconds of two calls of `predict` over images in memory; the first one builds the graph."""
    fresh = keras.Model(model.inputs, model.outputs)  # a new model, so that every repeat builds the graph again
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        fresh.predict(pixels, batch_size=batch_size, verbose=0)
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def whole_network(root: Path, size: int, batch_size: int, trained: tuple[str, ...]) -> Peer:
    """Return a training of VGG16 and the tutorial's head, in which images in memory pass the whole network.

    Only the blocks named in `trained` and the head are trained; the other blocks are frozen.
    """
    pixels, labels = in_memory(root, "train", size)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    for layer in base.layers:
        layer.trainable = layer.name.startswith(trained)
    layers = keras.layers
    model = keras.Sequential([
        base, layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    optimizer = keras.optimizers.SGD(learning_rate=1e-4, momentum=0.9)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    pixels = keras.applications.vgg16.preprocess_input(pixels)
    return Peer(len(pixels), lambda: one_epoch(model, pixels, labels, batch_size=batch_size))


def head(shape: tuple[int, ...], dense: bool) -> keras.Model:
    """Return a compiled head on features of a shape.

    It has dropout and one unit, as for MobileNetV2. With `dense` a layer of 256 units comes first, as in the
    tutorial's head for VGG16.
    """
    layers = keras.layers
    flat = [layers.Flatten()] if len(shape) > 1 else []
    hidden = [layers.Dense(256, activation="relu")] if dense else []
    model = keras.Sequential([
        keras.Input(shape), *flat, *hidden, layers.Dropout(0.5), layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    model.compile(optimizer="rmsprop", loss="binary_crossentropy", metrics=["accuracy"])
    return model


# --- whole processes: python -m benchmarks.peers NAME ARGUMENTS(JSON) prints one line of JSON


def bare(
    *, root: str, name: str, weights: str | None, size: int, batch_size: int, epochs: int, dense: bool
) -> dict[str, Any]:
    """Run only the compute of a bottleneck run: `predict` over images in memory, then the head's fit.

    Returns:
        The seconds of each, in a process that has done neither before, and the numbers of images and epochs.
    """
    data = {split: in_memory(Path(root), split, size) for split in ("train", "validation")}
    model, preprocess = backbone(name, weights, size)
    inputs = {split: preprocess(pixels) for split, (pixels, _) in data.items()}
    began = time.perf_counter()
    features = {split: model.predict(pixels, batch_size=32, verbose=0) for split, pixels in inputs.items()}
    predicted = time.perf_counter()
    top = head(features["train"].shape[1:], dense)
    validation = (features["validation"], data["validation"][1])
    labels = data["train"][1]
    start = time.perf_counter()
    top.fit(
        features["train"], labels, batch_size=batch_size, epochs=epochs, validation_data=validation, verbose=0
    )  # fmt: skip
    ended = time.perf_counter()
    return {"predict": predicted - began, "head_fit": ended - start, "images": len(labels), "epochs": epochs}


def tutorial_bottleneck(*, root: str, folder: str, size: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """Run the tutorial's second script: save VGG16's features as .npy files, load them, fit the head.

    Generators read the images.
    """
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    generator = tf.keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255)
    labels = {}
    for split in ("train", "validation"):
        flow = generator.flow_from_directory(
            str(Path(root) / split), target_size=(size, size), batch_size=batch_size, class_mode=None, shuffle=False
        )
        np.save(Path(folder) / f"features_{split}.npy", base.predict(flow, verbose=0))
        labels[split] = flow.classes.astype("float32")
    features = {split: np.load(Path(folder) / f"features_{split}.npy") for split in labels}
    top = head(features["train"].shape[1:], dense=True)
    validation = (features["validation"], labels["validation"])
    top.fit(
        features["train"], labels["train"],
        batch_size=batch_size, epochs=epochs, validation_data=validation, verbose=0,
    )  # fmt: skip
    top.save_weights(Path(folder) / "bottleneck_fc_model.weights.h5")
    return {"images": len(labels["train"]), "epochs": epochs}


def tuned(
    *, root: str, weights: str | None, unfrozen: int, dropout: float, l2: float, cached: bool, batch_size: int,
    head_epochs: int, epochs: int,
) -> dict[str, Any]:  # fmt: skip
    """Run one job of a sweep as a script of its own: train a head on MobileNetV2's features, then the last blocks.

    Args:
        cached: compute the input of the first unfrozen block once, for one augmented view of each image, and train
            only the layers above; otherwise the images of every epoch are augmented again and pass the whole network.
    """
    size = 224
    data = {split: in_memory(Path(root), split, size) for split in ("train", "validation")}
    base, preprocess = backbone("mobilenet_v2", weights, size)
    labels = {split: part[1] for split, part in data.items()}
    inputs = {split: preprocess(pixels) for split, (pixels, _) in data.items()}
    top = keras.Sequential([
        keras.Input((base.output_shape[-1],)), keras.layers.Dropout(dropout),
        keras.layers.Dense(1, activation="sigmoid", kernel_regularizer=keras.regularizers.L2(l2)),
    ])  # fmt: skip
    top.compile(optimizer="rmsprop", loss="binary_crossentropy", metrics=["accuracy"])
    features = {split: base.predict(part, batch_size=32, verbose=0) for split, part in inputs.items()}
    top.fit(
        features["train"], labels["train"], batch_size=batch_size, epochs=head_epochs,
        validation_data=(features["validation"], labels["validation"]), verbose=0,
    )  # fmt: skip
    first = base.get_layer("Conv_1" if unfrozen == 1 else "block_16_expand")
    boundary = keras.Model(base.input, first.input)
    boundary.trainable = False
    above = keras.Model(first.input, top(base.output))
    pixels = keras.Input((size, size, 3))
    augment = [
        keras.layers.RandomRotation(40 / 360, fill_mode="nearest"), keras.layers.RandomTranslation(0.2, 0.2),
        keras.layers.RandomZoom(0.2), keras.layers.RandomFlip("horizontal"),
    ]  # fmt: skip
    if cached:
        model = above
        turned = augmented(inputs["train"], augment)
        inputs = {
            split: boundary.predict(part, batch_size=32, verbose=0)
            for split, part in (("train", turned), ("validation", inputs["validation"]))
        }
    else:
        flow = pixels
        for layer in augment:
            flow = layer(flow)
        model = keras.Model(pixels, above(boundary(flow)))
    optimizer = keras.optimizers.SGD(learning_rate=1e-4, momentum=0.9)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    history = model.fit(
        inputs["train"], labels["train"], batch_size=batch_size, epochs=epochs,
        validation_data=(inputs["validation"], labels["validation"]), verbose=0,
    )  # fmt: skip
    return {"images": len(labels["train"]), "epochs": epochs, "accuracy": history.history["val_accuracy"][-1]}


def augmented(pixels: np.ndarray, layers: list[Any]) -> np.ndarray:
    """Return one augmented view of every image."""
    parts = []
    for start in range(0, len(pixels), 64):
        part = pixels[start : start + 64]
        for layer in layers:
            part = layer(part, training=True)
        parts.append(np.asarray(part))
    return np.concatenate(parts)


PROCESSES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "bare": bare, "tutorial_bottleneck": tutorial_bottleneck, "tuned": tuned,
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(PROCESSES[sys.argv[1]](**json.loads(sys.argv[2]))))
