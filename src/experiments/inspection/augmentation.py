"""Figure of augmented training images for `experiments inspect augmentation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure

from experiments.config.schema import Config, Limit
from experiments.config.targets import build_source
from experiments.data.input_pipeline import image_batches, rng
from experiments.data.pixel_cache import splits_of
from experiments.data.types import Dataset
from experiments.inspection.inspection import Inspection
from experiments.regimes.build import build_augmentation, build_layers
from experiments.reports import plots
from experiments.run import read_manifest
from experiments.training import runtime


def inspect(config: Config, *, images: int, views: int) -> Inspection:
    """Show training images, each in a row with what the augmentation makes of it in the first epochs."""
    with runtime.apply(config.runtime):
        shown = sample(config, images)
        figure = draw(config, shown, views)
    lines = []
    if "augmentation" in config.regime.ignores:
        lines.append(f"regime={config.regime.name} trains on images as they are: it reads no augmentation")
    # Added explicitly, because the identity of a configuration omits an augmentation that its regime ignores.
    augmentation = config.augmentation.model_dump_json()
    facts = {"views": str(views), "data": shown.fingerprint, "augmentation": augmentation}
    return Inspection(config, f"augmentation-{config.augmentation.name}", lines, lambda: figure, facts)


def sample(config: Config, count: int) -> Dataset:
    """Return the data set limited to `count` training images, which are chosen from the classes in turn.

    Other training images are not decoded.
    """
    half = -(-count // 2)  # There are at least two classes.
    limit = Limit(train=min(half, config.data.limit.train or half), validation=1, test=1)
    data = config.data.model_copy(update={"limit": limit})
    found = read_manifest(config.model_copy(update={"data": data}), build_source(config)())
    members = [[entry for entry in found.of("train") if entry.class_name == name] for name in found.classes]
    chosen = [entry for turn in zip_longest(*members) for entry in turn if entry][:count]
    others = [entry for entry in found.entries if entry.split != "train"]
    few = dataclasses.replace(found, entries=(*chosen, *others))
    return splits_of(few, config.data.image_size, config.cache, config.runtime.memory * 1e9)


def draw(config: Config, shown: Dataset, views: int) -> Figure:
    """Draw a row for each training image: the original, then its augmented view of each of the first epochs.

    If the augmentation mixes labels, the title of a view shows its shares of the classes.
    """
    originals = shown.train.pixels[:].astype("float32")
    rows = [[pixels] for pixels in originals]
    titles = [[plots.label_title(label, shown.classes)] for label in shown.train.labels]
    for pixels, labels in augmented_views(config, shown, views):
        for at, label in enumerate(labels):
            rows[at].append(pixels[at])
            titles[at].append(plots.label_title(label, shown.classes) if label.ndim else "")
    flat = np.stack([pixels for row in rows for pixels in row])
    figure = plots.image_grid(flat, [title for row in titles for title in row], columns=1 + views)
    span = "epoch 1" if views == 1 else f"epochs 1 to {views}"
    does = "would show" if "augmentation" in config.regime.ignores else "shows" if views == 1 else "show"
    figure.suptitle(f"augmentation={config.augmentation.name}: originals, and what {span} {does}", fontsize=11)
    return figure


def augmented_views(config: Config, shown: Dataset, views: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the training images of each epoch as the network receives them, in the order of `shown`.

    They are pixels [N, H, W, 3] float32 in [0, 255] with labels [N] int32, or with shares of classes [N, C] float32.
    """
    batches = image_batches(
        shown.train,
        classes=len(shown.classes),
        augmentation=build_augmentation(config.augmentation, config.trusted_packages),
        extra_layers=build_layers(config.augmentation, config.trusted_packages),
        batch_size=len(shown.train),
        seed=config.seed,
        epochs=range(views),
    )
    for epoch, (pixels, labels) in enumerate(batches.dataset):
        back = np.argsort(rng(config.seed, epoch).permutation(len(shown.train)))  # the inverse of the epoch's shuffling
        yield np.asarray(pixels)[back], np.asarray(labels)[back]
