"""Logged models as MLflow serves them: image files and pixels in, class and probability out."""

from __future__ import annotations

import ast
import base64
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from PIL import Image
from red_classifier import SIZE, classifier, expected

from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings, Resize
from experiments.images.resizing import resize
from experiments.system.paths import PACKAGE
from experiments.tracking import model_logging, serving

CLASSES = ("cats", "dogs")


def image(red: int, size: tuple[int, int] = (40, 30), format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (red, 40, 90)).save(content, format)
    return content.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logged model as MLflow keeps it."""
    place = tmp_path_factory.mktemp("served") / "model"
    metadata = {"classes": list(CLASSES), "image_size": SIZE, "gray_range": [0, 4095]}
    model_logging.Flavor.save_model(str(place), Model(metadata=metadata), classifier())
    return place


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Any]:
    before = list(sys.path)
    yield mlflow.pyfunc.load_model(str(folder))
    sys.path[:] = before


def test_image_files_are_answered_with_class_and_probability(served: Any) -> None:
    contents = [image(20), image(230, format="JPEG"), image(128, (7, 90), "BMP")]
    rows = expected(*contents)
    answers = [
        served.predict(pd.DataFrame({"image": [encoded(content) for content in contents], "note": ["a", "b", "c"]})),
        served.predict(pd.DataFrame({"image": contents})),
        served.predict(pd.DataFrame({"picture": contents})),  # the column's name in version 0.1
        served.predict([encoded(content) for content in contents]),
        served.predict({"image": np.array([encoded(content) for content in contents])}),
    ]
    for answer in answers:
        assert list(answer["class"]) == ["cats", "dogs", CLASSES[rows[2].argmax()]]
        np.testing.assert_allclose(answer["probability"], rows.max(axis=1), atol=1e-6)
        np.testing.assert_allclose(
            [[shares["cats"], shares["dogs"]] for shares in answer["probabilities"]], rows, atol=1e-6
        )


def test_answers_have_the_index_of_the_table(served: Any) -> None:
    table = pd.DataFrame({"image": [image(20), image(230), image(10)]}, index=["a", "b", "c"])[::-1]
    answered = table.assign(found=served.predict(table)["class"])
    assert dict(answered["found"]) == {"a": "cats", "b": "dogs", "c": "cats"}
    assert list(served.predict(table[:0]).columns) == list(served.predict(table).columns)


def test_the_positive_class_is_predicted_from_the_threshold_on() -> None:
    contents = [image(20), image(120), image(230)]
    rows = expected(*contents)
    model = serving.Classifier(classifier(), CLASSES, positive="cats", threshold=float(rows[1][0]) - 1e-4)
    answer = model.predict(contents)
    assert list(answer["class"]) == ["cats", "cats", "dogs"]
    np.testing.assert_allclose(answer["probability"], [rows[0][0], rows[1][0], rows[2][1]], atol=1e-6)
    above = serving.Classifier(classifier(), CLASSES, positive="cats", threshold=float(rows[1][0]) + 1e-4)
    assert list(above.predict(contents)["class"]) == ["cats", "dogs", "dogs"]


def test_16_bit_grays_are_served_with_the_range_that_the_model_was_trained_with(served: Any) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 4095 * 200 // 255, "uint16")).save(file, "PNG")
    alike = served.predict([encoded(image(200)), encoded(file.getvalue())])["probability"]
    assert alike[0] == pytest.approx(alike[1], abs=1e-3)


@pytest.mark.parametrize("how", ["pad", "crop"])
def test_image_files_are_resized_as_for_the_training(how: Resize) -> None:
    content = io.BytesIO()
    brighter = (np.linspace(0, 15, 120) ** 2).astype("uint8")  # from left to right, and most at the end
    Image.fromarray(np.tile(brighter[:, None], (20, 1, 3))).save(content, "PNG")
    metadata = {"classes": list(CLASSES), "image_size": SIZE, "resize": how, "max_pixels": 120 * 20}
    served = serving.Classifier(classifier(), CLASSES, DecoderSettings.of(metadata))
    pixels = resize(decoder.decode(content.getvalue()), SIZE, how)
    files, arrays = served.predict([content.getvalue()]), served.predict(pixels)
    assert files["probability"][0] == pytest.approx(arrays["probability"][0], abs=1e-6)
    squashed = served.predict(resize(decoder.decode(content.getvalue()), SIZE))
    assert files["probability"][0] != pytest.approx(squashed["probability"][0], abs=1e-3)
    with pytest.raises(MlflowException, match=r"row 0 is too large \(121 x 20 pixels, at most 2,400\)"):
        served.predict([image(9, (121, 20))])


def test_pixels_are_answered_alike(served: Any) -> None:
    content = image(200)
    pixels = resize(decoder.decode(content), SIZE)
    for given in (pixels[None], pixels, pixels[None].astype("float64"), pixels[None].tolist()):
        answer = served.predict(given)
        np.testing.assert_allclose(answer["probability"], expected(content).max(axis=1), atol=1e-6)
    assert len(served.predict(np.repeat(pixels[None], 70, axis=0))) == 70  # several batches


def test_what_cannot_be_used_is_named_by_row(served: Any) -> None:
    whole = image(20)
    bad = [encoded(whole), encoded(b""), "no base64!", encoded(whole[:60]), encoded(whole), None]
    with pytest.raises(mlflow.MlflowException) as caught:
        served.predict(pd.DataFrame({"image": bad}))
    text = str(caught.value)
    assert "4 of 6 images" in text and "row 1 is empty" in text and "row 2 is no base64" in text
    assert "row 3 " in text and "row 5 is no base64" in text and "row 0" not in text
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        (np.zeros((2, 8, 8, 3)), "[N, 16, 16, 3]"),
        (np.zeros((SIZE, SIZE)), "[N, 16, 16, 3]"),
        (np.stack([np.zeros((SIZE, SIZE, 3)), np.full((SIZE, SIZE, 3), 256.0)]), "not so in rows 1"),
        (np.full((1, SIZE, SIZE, 3), np.nan), "not so in rows 0"),
        (np.full((1, SIZE, SIZE, 3), 200 / 255), "none is above 1: give them without scaling"),
        (pd.DataFrame({"photo": ["x"]}), "Received: photo"),
    ],
)
def test_other_input_is_refused_with_what_is_allowed(served: Any, given: Any, reported: str) -> None:
    with pytest.raises(mlflow.MlflowException) as caught:
        served.predict(given)
    assert reported in str(caught.value) and caught.value.get_http_status_code() == 400


def test_the_same_file_is_read_by_keras(folder: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (3, SIZE, SIZE, 3)).astype("float32")
    again = mlflow.keras.load_model(str(folder))
    np.testing.assert_allclose(np.asarray(again(pixels)), np.asarray(classifier()(pixels)), atol=1e-6)
    assert len(list(folder.rglob("*.keras"))) == 1


def test_its_code_needs_nothing_else_of_this_package(folder: Path) -> None:
    code = folder / "code"
    names = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file() and path.suffix == ".py"}
    (package,) = {name.partition("/")[0] for name in names}
    assert package.startswith("experiments_served") and names == {f"{package}/{name}" for name in model_logging.SERVED}
    needed: set[str] = set()
    for name in names:
        tree = ast.parse((code / name).read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # for type checkers alone
        needed |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        needed |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in needed if name.startswith("experiments")} == {
        f"{package}.images",
        f"{package}.images.colors",
        f"{package}.images.decoder_settings",
        f"{package}.images.file_formats",
        f"{package}.images.plugins",
        f"{package}.images.resizing",
        f"{package}.errors",
    }


def test_models_of_two_versions_are_served_with_their_own_code(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "package"
    for name in model_logging.SERVED:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, other / name)
    resizing = other / "images/resizing.py"
    text = resizing.read_text().replace("return np.asarray(image.resize", "return 255 - np.asarray(image.resize")
    resizing.write_text(text)
    monkeypatch.setattr(model_logging, "PACKAGE", other)
    metadata = {"classes": list(CLASSES), "image_size": SIZE}
    model_logging.Flavor.save_model(str(tmp_path / "model"), Model(metadata=metadata), classifier())
    monkeypatch.setattr(sys, "path", list(sys.path))
    inverting = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert list(served.predict([image(230)])["class"]) == ["dogs"]
    assert list(inverting.predict([image(230)])["class"]) == ["cats"]
