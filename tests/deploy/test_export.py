"""Exports: every format reproduces the model, its consumer on the page works, and what cannot be done is an error."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from experiments.cli import export as verb
from experiments.deploy import export, export_formats
from experiments.deploy.predict import predictions
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings, Resize
from experiments.models.head import probabilities
from experiments.models.network import preprocess
from experiments.storage.csv_files import write_rows

SIZE = 32
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
CONSUMERS = dict(re.findall(r"```python\n# (\w+)\.py(?:[^\n]*)\n(.*?)```", PAGE, re.DOTALL))


def network(*layers: keras.Layer) -> keras.Model:
    """Return a small convolutional classifier of two classes: pixels -> probabilities."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 64)(preprocess(inputs, "caffe"))
    blocks = [(keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.MaxPooling2D()) for _ in range(2)]
    for layer in (*blocks[0], *layers, *blocks[1], keras.layers.Flatten()):
        x = layer(x)
    return keras.Model(inputs, probabilities(keras.layers.Dense(1, name="logits")(x)), name="classifier")


def run_of(drawn: Path, folder: Path, resize: Resize = "squash", precision: str = "float32") -> Trained:
    """Return a run, as its directory would have recorded it, with the images of `drawn`."""
    rows = [
        {
            "path": path.relative_to(drawn).as_posix(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "split": path.parts[-3], "class_name": path.parts[-2], "label": int(path.parts[-2] == "stripes"),
        }
        for path in sorted(drawn.glob("*/*/*.jpg"))
    ]  # fmt: skip
    write_rows(folder / "manifest.csv", rows)
    plain: dict[str, Any] = {
        "data": {"root": str(drawn), "resize": resize}, "runtime": {"precision": precision},
        "regime": {"name": "scratch"}, "model": {"name": "convnet"},
    }  # fmt: skip
    return Trained("tiny", None, None, folder, folder / "manifest.csv", plain, {"validation.temperature": 1.5}, {})


@pytest.fixture(scope="module")
def exported(
    drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, keras.Model, list[export.Parity], Path]:
    """A small network in every format, in the folder `exported` that the page's programs read, and its comparison."""
    place = tmp_path_factory.mktemp("place")
    run, model = run_of(drawn, place), network()
    train = export.recorded_images(run, "train", SIZE, 24)
    assert train is not None and train.labels is not None
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    model.fit(train.pixels.astype("float32"), train.labels, epochs=15, batch_size=8, verbose=0)
    found = export.export(run, model, export.sample(run, SIZE, 500), place / "exported", export_formats.parse("all"))
    return run, model, found, place


def test_every_format_reproduces_the_model(exported: Any) -> None:
    run, _, (model, *files), place = exported
    about = json.loads((place / "exported" / "model.json").read_bytes())
    names = {path.name for path in (place / "exported").iterdir()}
    assert names == {"model.json", *(form.file for form in export_formats.FORMATS.values())}
    assert model.accuracy >= 0.9 and model.same == 1
    allowed = {"tflite_float16": 2e-3, "tflite_int8": 0.4}
    for name, parity in zip(export_formats.FORMATS, files, strict=True):
        assert parity.difference <= allowed.get(name, 1e-5)
        assert (parity.same, parity.accuracy) == (1, model.accuracy) and parity.size > 1000
        assert about["files"][name] == parity._asdict()
    assert about["compared_on"] == "12 of 12 images of the run's validation split"
    assert about["int8_ranges_from"] == "24 of 24 images of the run's train split" and about["temperature"] == 1.5
    assert about["output"].startswith("probabilities [N, classes]")
    hinge = replace(run, plain={**run.plain, "loss": "hinge"})
    assert str(export.about(hinge, network())["output"]).startswith("scores that only rank images")
    (head, first, *lines) = verb.table([model, *files], list(export_formats.FORMATS))
    assert head.split() == ["difference", "same", "class", "accuracy", "size"] and first.startswith("the model")
    assert [line.split()[0] for line in lines] == list(export_formats.FORMATS) and lines[0].endswith("model.keras")


@pytest.mark.parametrize("name", sorted(set(CONSUMERS) - {"read_image"}))
def test_the_program_on_the_page_gives_the_model_s_probabilities_for_an_image_file(
    name: str, exported: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model, _, place = exported
    assert len(CONSUMERS) == 5 and len(CONSUMERS[name].splitlines()) <= 10
    for file, code in CONSUMERS.items():
        (place / f"{file}.py").write_text(code, encoding="utf-8")
        imported = {module.split(".")[0] for module in re.findall(r"^(?:import|from) (\S+)", code, re.MULTILINE)}
        own = {"keras": {"keras"}, "saved_model": {"tensorflow"}, "onnx": {"onnxruntime"}, "tflite": {"ai_edge_litert"}}
        assert imported <= {"json", "numpy", "PIL", "read_image", *own.get(file.removeprefix("use_"), ())}
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    for image in ("validation/blobs/blobs.0.jpg", "validation/stripes/stripes.3.jpg"):
        content = (Path(run.plain["data"]["root"]) / image).read_bytes()
        Path("cat.jpg").write_bytes(content)
        ((expected,),) = predictions(model, ["cat.jpg"], 8)
        runpy.run_path(f"{name}.py")
        printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
        assert expected.probabilities is not None and list(printed) == ["blobs", "stripes"]
        np.testing.assert_allclose(list(printed.values()), expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("how", ["squash", "pad", "crop"])
def test_the_page_s_program_reads_image_files_as_training_does(
    how: Resize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes, a rotated JPEG and TIFF, a transparent PNG, grays, and images of one row or column."""
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.json").write_text(
        json.dumps({"image_size": SIZE, "data.resize": how, "gray_range": None})
    )
    (tmp_path / "read_image.py").write_text(CONSUMERS["read_image"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    read_image = runpy.run_path("read_image.py")["read_image"]
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    Image.fromarray(noise[..., :3]).save("rotated.jpg", exif=exif)
    Image.fromarray(noise).save("transparent.png")
    Image.fromarray(noise[:33, :, 0]).save("gray.png")
    Image.fromarray(noise[..., :2].copy(), "LA").save("transparent_gray.png")
    Image.fromarray(noise[:, :1, :3]).save("column.png")
    Image.fromarray(noise[:1, :, :3]).save("row.png")
    Image.fromarray(noise[..., 0].copy()).save("rotated.tif", tiffinfo={0x0112: 6})
    Image.fromarray(noise[..., 0] * np.uint16(257)).save("16_bits.png")
    for name in ("rotated.jpg", "transparent.png", "gray.png", "transparent_gray.png", "column.png", "row.png",
                 "rotated.tif"):  # fmt: skip
        expected = decoder.decode_resized(Path(name).read_bytes(), SIZE, DecoderSettings(resize=how))
        np.testing.assert_array_equal(read_image(name)[0], expected)
    with pytest.raises(ValueError, match="scale its grays to 8 bits"):  # converted by Pillow, they would be white
        read_image("16_bits.png")


def test_what_is_not_installed_or_unknown_is_an_error_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert export_formats.parse("tflite,keras, keras") == ["keras", "tflite_float32", "tflite_float16", "tflite_int8"]
    with pytest.raises(ConfigError, match=r"--format: unknown: 'torch'. Allowed.* keras, saved_model, onnx, .*, all"):
        export_formats.parse("keras,torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert export_formats.parse(export_formats.DEFAULT) == ["keras", "saved_model"]
    with pytest.raises(ConfigError, match=r"onnx needs tf2onnx, onnx, onnxruntime, .*'image-experiments\[onnx\]'"):
        export_formats.parse("all")
    with pytest.raises(ConfigError, match=r"tflite_int8 needs ai_edge_litert, .*'image-experiments\[litert\]'"):
        export_formats.parse("tflite_int8")


class Spectrum(keras.layers.Layer):
    """A layer of an operation that neither ONNX nor TFLite has, with another layer inside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = keras.layers.Activation("relu")

    def call(self, inputs: Any) -> Any:
        return self.inner(keras.ops.fft2((inputs, keras.ops.zeros_like(inputs)))[0])


@pytest.mark.parametrize("name", ["onnx", pytest.param("tflite_float32", marks=pytest.mark.slow)])
def test_a_format_that_cannot_express_a_network_is_named_with_the_layer(
    name: str, drawn: Path, tmp_path: Path, exported: Any
) -> None:
    run, model = run_of(drawn, tmp_path), network(Spectrum(name="spectrum"))
    with pytest.raises(ConfigError, match=rf"{name} cannot express .*: its layers spectrum \(Spectrum\)"):
        export.export(run, model, export.sample(run, SIZE, 4), tmp_path / "exported", [name])
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_networks_of_other_precision_go_to_keras_and_saved_model_alone(drawn: Path, tmp_path: Path) -> None:
    run = run_of(drawn, tmp_path, precision="mixed_bfloat16")
    model = network(keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16", name="coarse"))
    images = export.sample(run, SIZE, 4)
    with pytest.raises(ConfigError, match=r"onnx takes .* the layer coarse computes in bfloat16.*keras,saved_model"):
        export.export(run, model, images, tmp_path / "exported", ["keras", "onnx"])
    assert not (tmp_path / "exported").exists()


def test_int8_needs_training_images_that_still_exist(drawn: Path, tmp_path: Path) -> None:
    run = run_of(drawn, tmp_path)
    run.plain["data"]["root"] = "gone"
    with pytest.raises(ConfigError, match=r"tflite_int8 needs training images .*data.root: gone.* tflite_float16"):
        export.export(run, network(), export.sample(run, SIZE, 4), tmp_path / "exported", ["tflite_int8"])


def test_an_interrupted_export_leaves_the_earlier_one(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, folder = run_of(drawn, tmp_path), network(), tmp_path / "exported"
    images = export.sample(run, SIZE, 4)
    export.export(run, model, images, folder, ["keras"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(path: Path) -> Any:
        assert path.exists(), "it was written"
        raise KeyboardInterrupt

    monkeypatch.setitem(export_formats.FORMATS, "keras", export_formats.FORMATS["keras"]._replace(read=interrupted))
    with pytest.raises(KeyboardInterrupt):
        export.export(run, model, images, folder, ["keras"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "manifest.csv"]


def test_an_export_replaces_an_earlier_one_and_nothing_else(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, folder = run_of(drawn, tmp_path), network(), tmp_path / "exported"
    images = export.sample(run, SIZE, 4)
    (folder / "old").mkdir(parents=True)
    (folder / "model.json").touch()
    export.export(run, model, images, folder, ["keras"], overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.keras"]

    def meanwhile(path: Path) -> Any:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine").touch()
        return export_formats.read_keras(path)

    monkeypatch.setitem(export_formats.FORMATS, "keras", export_formats.FORMATS["keras"]._replace(read=meanwhile))
    with pytest.raises(ConfigError, match="other is there already. Give another one"):
        export.export(run, model, images, tmp_path / "other", ["keras"], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "manifest.csv", "other"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match=r"--output: .*manifest.csv is a file"):
        export_formats.check_output(run.manifest / "exported", overwrite=True)


def test_a_file_is_compared_by_its_own_classes_with_the_model_and_with_the_labels(drawn: Path, tmp_path: Path) -> None:
    given, expected = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    found = export.compare(run_of(drawn, tmp_path), tmp_path / "manifest.csv", given, expected, np.array([0, 1, 0]))
    assert (found.file, found.size) == ("manifest.csv", (tmp_path / "manifest.csv").stat().st_size)
    assert found.difference == pytest.approx(0.6) and (found.same, found.accuracy) == (2 / 3, 2 / 3)
    assert export.compare(run_of(drawn, tmp_path), None, given, expected, np.array([0, 1, 1])).accuracy == 1


def test_images_that_have_changed_since_the_run_are_counted(drawn: Path, tmp_path: Path) -> None:
    run = run_of(drawn, tmp_path)
    rows = run.manifest.read_text(encoding="utf-8").splitlines()
    changed = next(number for number, row in enumerate(rows) if row.startswith("validation/"))
    rows[changed] = rows[changed].replace(rows[changed].split(",")[1], "0" * 64)
    run.manifest.write_text("\n".join(rows), encoding="utf-8")
    images = export.sample(run, SIZE, 4)
    assert images.description == "3 of 12 images of the run's validation split (1 more are missing or have changed)"
    assert len(images.pixels) == 3
    assert {row["class_name"] for row in run.images("train", 2)} == {"blobs", "stripes"}, "evenly spread"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "weights"),
    [("mobilenet_bottleneck", "mobilenet_v2_0.35_224_notop"), ("tutorial_bottleneck", "vgg16_notop")],
)
def test_large_networks_keep_their_probabilities_in_every_format(
    experiment: str, weights: str, photographs: Path, mobilenet_weights: Path, tmp_path: Path,
    train_here: Callable[..., None], run_verb: Callable[..., None],
) -> None:  # fmt: skip
    train_here(
        f"experiment={experiment}", f"data.root={photographs}", "data.limit={train: 20, validation: 10}", "epochs=5",
        f"model.weights={mobilenet_weights.parent / weights}.weights.h5", "evaluate.test=false", "tracking=none",
        "progress=none", "hydra/job_logging=none", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    run_verb(verb, tmp_path / "run", "--output", tmp_path / "exported", "--format", "all", "--images", 20)
    files = json.loads((tmp_path / "exported" / "model.json").read_bytes())["files"]
    for name in set(export_formats.parse("all")) - {export_formats.INT8}:
        assert files[name]["difference"] <= (0.02 if name == "tflite_float16" else 1e-4), name
        assert files[name]["same"] == 1, name
    # The logits of VGG16's head are so large that rounding some of them turns a probability from 0 to 1.
    assert files[export_formats.INT8]["same"] >= 0.8
    sizes = [files[f"tflite_{precision}"]["size"] for precision in ("float32", "float16", "int8")]
    assert sizes[0] > 1.8 * sizes[1] and sizes[1] > 1.2 * sizes[2]
