"""`inspect augmentation`: the augmented images that a run with this configuration would train on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.config.schema import Config
from experiments.inspection import augmentation

Read = Callable[..., Config]


def test_the_sample_takes_the_classes_in_turn_and_makes_no_others_pixels(
    config: Read, here: tuple[str, ...], own_outputs: Path
) -> None:
    read = config(*here)
    shown = augmentation.sample(read, 5)
    assert list(shown.train.labels) == [0, 1, 0, 1, 0] and shown.classes == ("blobs", "stripes")
    assert shown.train.pixels.shape == (5, 48, 48, 3)
    stored = [json.loads(meta.read_text())["shape"] for meta in own_outputs.glob("cache/pixels/*/meta.json")]
    assert stored == [[5, 48, 48, 3]]
    assert len(augmentation.sample(read, 100).train) == 24, "all there are"
    assert len(augmentation.sample(config(*here, "data.limit.train=2"), 100).train) == 4


def test_views_stand_beside_their_originals(config: Read, here: tuple[str, ...]) -> None:
    read = config(*here, "augmentation=none")
    shown = augmentation.sample(read, 6)
    for pixels, labels in augmentation.augmented_views(read, shown, 3):
        np.testing.assert_array_equal(pixels, shown.train.pixels[:])
        np.testing.assert_array_equal(labels, shown.train.labels)
    read = config(*here, "augmentation=light")
    first, second = (pixels for pixels, _ in augmentation.augmented_views(read, shown, 2))
    plain = shown.train.pixels[:].astype("float32")
    assert all(np.any(a != b) and np.any(a != c) for a, b, c in zip(first, second, plain, strict=True))


def test_titles_show_shares_where_labels_are_mixed(config: Read, here: tuple[str, ...]) -> None:
    def titles(name: str) -> list[str]:
        read = config(*here, f"augmentation={name}")
        figure = augmentation.draw(read, augmentation.sample(read, 4), 3)
        assert figure.get_suptitle() == f"augmentation={name}: originals, and what epochs 1 to 3 show"
        return [panel.get_title() for panel in figure.axes]

    unread = config(*here, "regime=bottleneck", "augmentation=light")
    assert augmentation.draw(unread, augmentation.sample(unread, 2), 1).get_suptitle().endswith("epoch 1 would show")
    plain = titles("strong")
    assert plain[::4] == ["blobs", "stripes"] * 2 and set(plain) == {"blobs", "stripes", ""}
    mixed = titles("cutmix")
    assert len(mixed) == 16 and mixed[::4] == ["blobs", "stripes"] * 2
    views = [title for at, title in enumerate(mixed) if at % 4]
    assert all("%" in title for title in views) and any("blobs" in title and "stripes" in title for title in views)
