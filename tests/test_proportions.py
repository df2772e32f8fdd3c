"""Things that differ in their proportions alone: circles against ellipses of 4:1, both filling their image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments.config import schema
from experiments.config.identity import run_identity
from experiments.deploy import export, saved_run
from experiments.deploy.predict import list_files, predictions
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings, Resize
from experiments.images.resizing import resize
from experiments.inspection import data, mistakes
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import RunDirectory

SIZE = 48
Read = Callable[..., schema.Config]


class Trained(NamedTuple):
    folder: Path

    @property
    def predictions(self) -> list[Prediction]:
        return list(RunDirectory(self.folder).predictions("validation"))

    @property
    def accuracy(self) -> float:
        return float(np.mean([prediction.correct for prediction in self.predictions]))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 20 + 20 images of a circle, 160 x 160, and the same of an ellipse, 160 x 40, each pair in equal colors."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for number in range(20):
            ground, color = (tuple(rng.integers(low, low + 120, 3).tolist()) for low in (0, 135))
            for name, height in (("circles", 160), ("ellipses", 40)):
                image = Image.new("RGB", (160, height), ground)
                ImageDraw.Draw(image).ellipse((0, 0, 159, height - 1), fill=color)
                (root / split / name).mkdir(parents=True, exist_ok=True)
                image.save(root / split / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def train(
    shapes: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Trained]:
    outputs = tmp_path_factory.mktemp("proportions")

    def call(how: Resize) -> Trained:
        folder = outputs / how
        if not folder.exists():
            train_here(
                "data=folder", f"data.root={shapes}", f"data.image_size={SIZE}", f"data.resize={how}", "epochs=15",
                "regime=bottleneck", "model.head.pooling=average", "augmentation=none", "batch_size=8", "tracking=none",
                "progress=none", "hydra/job_logging=none", f"outputs={outputs}", f"hydra.run.dir={folder}",
            )  # fmt: skip
        return Trained(folder)

    return call


@pytest.mark.parametrize("how, low, high", [
    ("pad", 0.95, 1), pytest.param("crop", 0.95, 1, marks=pytest.mark.slow), ("squash", 0.3, 0.7)
])  # fmt: skip
def test_shapes_are_distinguished_where_proportions_are_kept(
    how: Resize, low: float, high: float, train: Callable[..., Trained]
) -> None:
    assert low <= train(how).accuracy <= high


def test_what_predicts_with_a_run_resizes_like_it(train: Callable[..., Trained], shapes: Path) -> None:
    trained = train("pad")
    run = saved_run.find(str(trained.folder))
    settings = DecoderSettings.of(run.plain["data"])
    assert settings.resize == "pad"
    model = run.model()
    files, _ = list_files([str(shapes / "validation")])
    found = [prediction for some in predictions(model, files, 8, settings) for prediction in some]
    assert [Path(prediction.path).name for prediction in found] == [
        Path(prediction.path).name for prediction in trained.predictions
    ]
    for prediction, recorded in zip(found, trained.predictions, strict=True):
        assert prediction.probabilities == pytest.approx(list(recorded.probabilities.values()), abs=1e-4)

    about = export.about(run, model)
    assert about["data.resize"] == "pad" and "pad_to_aspect_ratio=True" in str(about["resize"])
    pixels, _, what = export.sample(run, SIZE, 8)
    assert "validation split" in what
    ellipse = decoder.decode((shapes / trained.predictions[-1].path).read_bytes())
    np.testing.assert_array_equal(pixels[-1], resize(ellipse, SIZE, "pad"))


@pytest.mark.parametrize("how", ["pad", pytest.param("crop", marks=pytest.mark.slow), "squash"])
def test_heatmaps_lie_on_the_image_in_its_own_proportions(
    how: Resize, train: Callable[..., Trained], shapes: Path
) -> None:
    run = saved_run.find(str(train(how).folder))
    ellipses = [prediction for prediction in train(how).predictions if prediction.label == "ellipses"][:2]
    shown = mistakes.explain(run, shapes, ellipses)
    assert [mistake.image.size for mistake in shown] == [(240, 60)] * 2 and all(
        mistake.has_evidence for mistake in shown
    )
    panels = mistakes.draw(shown, "").axes
    images = [np.asarray(panel.get_images()[0].get_array()) for panel in panels]
    for image in images:  # 240 x 60 pixels, centered on a white square
        assert (image[[*range(90), *range(150, 240)]] == 255).all() and (image[90:150] < 255).any(axis=-1).all()
    ends = images[1][90:150, [*range(90), *range(150, 240)]]  # crop has cut off both ends of the ellipse
    assert (ends.min() >= 170) == (how == "crop")


def test_the_identity_of_a_run_includes_what_changes_its_pixels(config: Read) -> None:
    def identity(*overrides: str) -> str:
        return run_identity(config(*overrides), data="x")

    names = [
        identity(),
        identity("data.resize=pad"),
        identity("data.resize=crop"),
        identity("data.gray_range=[0,4095]"),
    ]
    assert len(set(names)) == 4
    assert identity("data.max_pixels=1000000") == identity("data.resize=squash") == names[0]


def test_inspect_data_shows_proportions(shapes: Path, config: Read) -> None:
    def printed(how: str) -> str:
        read = config("data=folder", f"data.root={shapes}", f"data.resize={how}")
        return "\n".join(str(line) for line in data.inspect(read, images=2).lines)

    squashed = printed("squash")
    assert "proportions (longer to shorter side) 1.00 to 4.00 (median 2.50), 50% of the images beyond 4:3" in squashed
    assert "data.resize=squash distorts 50% of them by more than 2 times" in squashed
    assert "data.resize=pad makes 38% of the square black" in printed("pad")
    assert "data.resize=crop cuts off 38% of an image" in printed("crop")
