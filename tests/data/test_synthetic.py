"""Synthetic images: the same seed gives the same images, whatever else is drawn."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data.drawing import faces
from experiments.data.drawing.species import SPECIES
from experiments.data.sources import synthetic

TARGET = ("cats", "dogs")


def drawn(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def order(cache: Path, **changes: object) -> Path:
    wanted = {"species": TARGET, "per_class": {"train": 3, "validation": 2, "test": 0}, "seed": 5, "size": 48}
    return synthetic.synthetic(cache=cache, **{**wanted, **changes})  # type: ignore[arg-type]


def test_layout_and_counts(tmp_path: Path) -> None:
    root = order(tmp_path)
    assert root.parent == tmp_path / "drawn"
    expected = {f"train/{name}/{name}.{n}.jpg" for name in TARGET for n in range(3)}
    expected |= {f"validation/{name}/{name}.{n}.jpg" for name in TARGET for n in range(2)}
    assert set(drawn(root)) == expected
    assert sorted(path.name for path in root.iterdir()) == ["train", "validation"]
    with Image.open(root / "train/cats/cats.0.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
    with Image.open(order(tmp_path, size=40) / "train/cats/cats.0.jpg") as image:
        assert image.size == (40, 40)


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    assert drawn(order(tmp_path / "one")) == drawn(order(tmp_path / "two"))


def test_every_image_differs_and_so_does_every_seed(tmp_path: Path) -> None:
    first, other = drawn(order(tmp_path)), drawn(order(tmp_path, seed=6))
    assert len({*first.values(), *other.values()}) == len(first) + len(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"species": ("dogs", "owls", "cats")},
        {"per_class": {"test": 1, "validation": 4, "train": 5}},
    ],
    ids=["other species", "other counts"],
)
def test_a_image_does_not_depend_on_its_neighbours(tmp_path: Path, changes: dict[str, object]) -> None:
    few, many = drawn(order(tmp_path)), drawn(order(tmp_path, **changes))
    assert few.items() < many.items()


def test_a_finished_folder_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = order(tmp_path)
    monkeypatch.setattr(synthetic, "draw_face", lambda *_: pytest.fail("drawn twice"))
    assert order(tmp_path) == root
    assert order(tmp_path, species=("dogs", "cats")) == root


def test_an_unfinished_folder_is_not_mistaken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(synthetic, "draw_face", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            order(tmp_path)
    assert list((tmp_path / "drawn").iterdir()) == []
    assert len(drawn(order(tmp_path))) == 10


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(draft: Path, root: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        order(tmp_path)
        (root / "winner").touch()
        rename(draft, root)

    monkeypatch.setattr(os, "rename", late)
    root = order(tmp_path)
    assert (root / "winner").exists()
    assert list(root.parent.iterdir()) == [root]


@pytest.mark.parametrize("size", [64, 160])
@pytest.mark.parametrize("species", SPECIES)
def test_every_species_draws_at_any_size(species: str, size: int) -> None:
    for n in range(3):
        image = faces.draw_face(species, np.random.default_rng([1, n]), size)
        assert (image.mode, image.size) == ("RGB", (size, size))
        assert np.asarray(image).std() > 5


def test_species_keep_their_own_numbers() -> None:
    numbers = [animal.number for animal in SPECIES.values()]
    assert len(set(numbers)) == len(numbers) == 10


def test_colour_alone_does_not_give_the_class_away() -> None:
    """Nearest mean over mean colour and colour histogram: fitted on 100 + 100, read on 100 + 100 others."""

    def described(split: int) -> np.ndarray:
        rows = []
        for species in TARGET:
            for n in range(100):
                rng = np.random.default_rng([3, split, SPECIES[species].number, n])
                pixels = np.asarray(faces.draw_face(species, rng, 40)).reshape(-1, 3) / 255.0
                bins = [np.histogram(channel, 6, (0, 1))[0] / len(channel) for channel in pixels.T]
                rows.append(np.concatenate([pixels.mean(0), *bins]))
        return np.stack(rows)

    labels = np.repeat([0, 1], 100)
    fitted, read = described(0), described(1)
    for columns in (slice(0, 3), slice(3, None)):
        means = np.stack([fitted[labels == label, columns].mean(0) for label in (0, 1)])
        guesses = np.linalg.norm(read[:, None, columns] - means, axis=2).argmin(1)
        assert (guesses == labels).mean() < 0.7
