"""Activations of a frozen network at its boundary, computed once and kept in the store."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from experiments import store
from experiments.data import decoder
from experiments.data.pipeline import augmented
from experiments.models.network import Cut, forward
from experiments.types import Parts, Pictures, Progress

BATCH = 32  # of the forward pass; its size does not change what is stored


def activations(parts: Parts, cut: Cut, pictures: Pictures, progress: Progress, view: int | None = None) -> np.ndarray:
    """What the pictures of one split look like at the boundary: a read-only memory map [N, ...] float32.

    Args:
        parts: the run's parts; the store lies in their cache.
        cut: the network in two; its prefix is run, once, where the store does not hold the result.
        pictures: one split; rows keep its order.
        progress: shown while the prefix runs.
        view: None for the pictures as they are; k for the k-th augmented view, a function of augmentation.seed and k.
    """
    config = parts.config
    augmentation = None
    if view is not None:
        augmentation = {"seed": config.augmentation.seed, "view": view, "spec": config.augmentation.model_dump()}
    spec = {
        "pictures": [entry.sha256 for entry in pictures.entries],
        "image_size": pictures.image_size,
        "decoder": decoder.VERSION,
        "backbone": parts.backbone.identity,
        "boundary": cut.boundary,
        "pooling": config.model.head.pooling if cut.boundary == "pooling" else None,
        "augmentation": augmentation,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
    }
    shape = (len(pictures), *cut.prefix.output_shape[1:])

    def write(rows: np.ndarray) -> None:
        pixels = pictures.pixels
        source = None
        if view is not None:
            source = augmented(
                pixels,
                augmentation=parts.augmentation,
                extra_layers=parts.extra_layers,
                seed=config.augmentation.seed,
                view=view,
            )
        run = forward(cut.prefix)
        label = f"features of {pictures.split}" + ("" if view is None else f", view {view + 1}")
        with progress.stage(label, len(rows)) as advance:
            for start in range(0, len(rows), BATCH):
                at = slice(start, min(start + BATCH, len(rows)))
                batch = np.asarray(pixels[at], "float32") if source is None else source(at)
                rows[at] = run(batch)
                advance(at.stop - at.start)

    return store.array(parts.cache, "activations", spec, shape, "float32", write)
