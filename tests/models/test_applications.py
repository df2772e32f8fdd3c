"""Every shipped backbone of keras.applications, and others by a YAML of one's own: split at each stage and rejoined."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import composition
import keras
import numpy as np
import pytest
import yaml
from keras.applications import imagenet_utils

from experiments.config.choices import shipped
from experiments.config.schema import Config, Head
from experiments.config.targets import resolve
from experiments.errors import ConfigError
from experiments.models import network, stages
from experiments.models.backbone import build_backbone
from experiments.models.head import dense_head
from experiments.models.stages import Backbone
from experiments.regimes.build import build
from experiments.system import paths

SIZE = 32  # the smallest size of most networks; Xception and InceptionV3 need more
# The module in keras.applications, and the mode of its preprocess_input or of the network's own first layers.
MODULES = {
    "convnext_tiny": ("convnext", "torch"),
    "efficientnet_v2_b0": ("efficientnet_v2", "torch"),
    "mobilenet_v2": ("mobilenet_v2", "tf"),
    "resnet50": ("resnet", "caffe"),
    "vgg16": ("vgg16", "caffe"),
    "vgg19": ("vgg19", "caffe"),
}
# The last stage in the paper: prefixes of the names of its layers with weights.
LAST_STAGE = {
    "convnext_tiny": ("convnext_tiny_downsampling_block_2", "convnext_tiny_stage_3_", "layer_normalization"),
    "efficientnet_v2_b0": ("block6", "top_"),
    "mobilenet_v2": ("block_13_", "block_14_", "block_15_", "block_16_", "Conv_1"),
    "resnet50": ("conv5_",),
    "vgg16": ("block5_",),
    "vgg19": ("block5_",),
}
STAGES_PAGE = paths.REPOSITORY / "docs" / "stages.md"
# Other networks of keras.applications that are in the table of docs/stages.md.
OTHERS = (
    "ConvNeXtBase", "DenseNet121", "DenseNet201", "EfficientNetB0", "EfficientNetV2S", "InceptionResNetV2",
    "InceptionV3", "MobileNet", "MobileNetV3Large", "MobileNetV3Small", "NASNetMobile", "ResNet101V2", "ResNet50V2",
    "Xception",
)  # fmt: skip


# Those whose features are computed in the fast tests, and those that these do not even build.
SMALL = ("mobilenet_v2", "vgg16")
LARGE = ("convnext_tiny", "resnet50")


class Built(NamedTuple):
    name: str
    config: Config
    backbone: Backbone


def read(name: str, folder: Path | None = None, size: int = SIZE) -> Config:
    """The configuration of a backbone with random weights, from conf/ or, as with --config-dir, one's own folder."""
    mine = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    return composition.configured(
        f"model={name}", "model.weights=null", "regime=scratch", f"data.image_size={size}", *mine
    )


def built(config: Config) -> Built:
    """A backbone as if trained: every layer does something, and what is below a layer matters above it.

    As Keras makes them, ConvNeXt's blocks are scaled to a millionth and deep networks forget their input.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    backbone = build_backbone(config.model, config.data.image_size, (), None)
    rng = np.random.default_rng(0)
    for weight in backbone.model.weights:
        if weight.name in ("bias", "beta"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif len(weight.shape) == 1:  # gamma, a layer's scale
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    for layer in backbone.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # statistics become those of the one batch that follows
    network.pooled(backbone, "average")(images(config.data.image_size, 8), training=True)
    return Built(config.model.name, config, backbone)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in SMALL else pytest.mark.slow) for name in MODULES],
)
def application(request: pytest.FixtureRequest) -> Built:
    return built(read(request.param))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in LARGE else []) for name in MODULES],
)
def untrained(request: pytest.FixtureRequest) -> Built:
    """Return a shipped backbone for images of its own size, as Keras makes it."""
    config = read(request.param, size=shipped("model")[request.param]["native_size"])
    keras.utils.clear_session()
    return Built(request.param, config, build_backbone(config.model, config.data.image_size, (), None))


def images(size: int = SIZE, count: int = 2) -> np.ndarray:
    """[count, size, size, 3] float32 in [0, 255]."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype("float32")


def assert_split_and_rejoined(backbone: Backbone, *names: str) -> None:
    """At each stage, and before the layers or blocks that are named."""
    pixels = images(backbone.model.input_shape[1])
    cuts = [
        network.split_network(backbone, unfrozen, "average") for unfrozen in (*range(len(backbone.stages) + 1), *names)
    ]
    # All frozen parts are computed in one pass, because they are parts of one graph.
    below = keras.Model(cuts[0].frozen_part.input, [cut.frozen_part.output for cut in cuts])(pixels, training=False)
    expected = np.asarray(network.pooled(backbone, "average")(pixels, training=False))
    scale = np.abs(expected).max()
    for cut, stored in zip(cuts, below, strict=True):
        nothing = keras.ops.zeros_like(stored)
        rejoined = np.asarray(cut.trainable_part(keras.ops.concatenate([stored, nothing]), training=False))
        np.testing.assert_allclose(rejoined[:2], expected, rtol=1e-5, atol=1e-5 * scale, err_msg=cut.split_point)
        assert np.abs(rejoined[2:] - expected).max() > 1e-2 * scale, (
            f"{cut.split_point}: what is stored does not matter"
        )


def test_all_of_keras_applications_that_we_ship_are_tested() -> None:
    targets = {name: node["_target_"] for name, node in shipped("model").items()}
    assert set(MODULES) == {name for name, target in targets.items() if target.startswith("keras.applications.")}


def test_split_at_each_stage_and_rejoined(application: Built) -> None:
    assert_split_and_rejoined(application.backbone)


def test_the_last_stage_is_that_of_the_paper_and_exactly_it_is_trained(untrained: Built) -> None:
    model = untrained.backbone.model
    trained = {
        id(weight)
        for weight in network.split_network(untrained.backbone, 1, "average").trainable_part.trainable_weights
    }
    expected = {
        id(weight)
        for layer in model.layers
        for weight in layer.trainable_weights
        if layer.name.startswith(LAST_STAGE[untrained.name])
    }
    assert trained == expected and trained
    for unfrozen in range(1, len(untrained.backbone.stages) + 1):
        prefix, suffix, _ = network.split_network(untrained.backbone, unfrozen, "average")
        assert len(prefix.weights) + len(suffix.weights) == len(model.weights)
    assert not prefix.weights, "all of it"


def test_what_enters_the_network_is_what_imagenet_weights_were_trained_on(untrained: Built) -> None:
    model = untrained.backbone.model
    preprocessed, size = keras.Model(model.inputs[0], stages.find_stages(model)[0].entering), model.input_shape[1]
    expected = imagenet_utils.preprocess_input(images(size), mode=MODULES[untrained.name][1])
    if untrained.name == "resnet50":  # whose first stage starts with padding, which is not preprocessing
        assert preprocessed.output_shape[1:3] == (size, size)
    np.testing.assert_allclose(preprocessed(images(size)), expected, rtol=1e-5, atol=1e-4)


def test_the_features_are_those_of_keras_network_behind_its_own_preprocessing(application: Built) -> None:
    model = application.config.model
    theirs = resolve(application.config.trusted_packages, "model", model.target)(
        include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), **model.arguments
    )
    theirs.set_weights(application.backbone.model.get_weights())
    module = importlib.import_module(f"keras.applications.{MODULES[application.name][0]}")
    expected = np.asarray(theirs(module.preprocess_input(images()), training=False))
    ours = keras.Model(application.backbone.model.inputs[0], application.backbone.model.output)
    # Wide enough for the rounding errors of fifty layers; another preprocessing differs by a hundred times as much.
    np.testing.assert_allclose(ours(images(), training=False), expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("application", ["convnext_tiny", "efficientnet_v2_b0"], indirect=True)
def test_a_saved_model_predicts_the_same(application: Built, tmp_path: Path) -> None:
    """They bring layers of their own, and constants."""
    head = dense_head(
        application.backbone.model.output_shape[-1], Head(pooling="average", dropout=0.5, l1=0, l2=0, dense={}), 2
    )
    model = network.join(application.backbone, "average", head)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images()), model(images()), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("application", ["convnext_tiny", "efficientnet_v2_b0"], indirect=True)
def test_identity_does_not_follow_what_this_process_built_before(application: Built) -> None:
    """Their rescaling, sums and last normalisation have no names but a counter's."""
    assert build(application.config, {}).backbone.identity == application.backbone.identity


# --- any other: one YAML


def write(folder: Path, name: str, target: str, preprocessing: str, **arguments: object) -> None:
    """folder/model/NAME.yaml, as a user writes it."""
    node = {
        "name": name,
        "_target_": f"keras.applications.{target}",
        "native_size": 224,
        "weights": "imagenet",
        "preprocessing": preprocessing,
        "head": {"pooling": "average", "dropout": 0.5, "l1": 0.0, "l2": 0.0, "dense": {}},
        **arguments,
    }
    (folder / "model").mkdir()
    (folder / "model" / f"{name}.yaml").write_text(yaml.safe_dump(node))


@pytest.mark.slow  # a network by a YAML is in tests/cli/test_backbones.py
@pytest.mark.parametrize("target, size, preprocessing, names", [
    ("DenseNet121", 32, "torch", ["conv4", "conv5_block1", "bn"]),
    ("MobileNetV3Small", 32, "none", ["expanded_conv_1", "expanded_conv_10", "conv_1"]),
    ("Xception", 71, "tf", [f"block{n}" for n in range(3, 15)]),
    ("NASNetMobile", 32, "tf", []),
])  # fmt: skip
def test_another_network_by_a_yaml(
    target: str, size: int, preprocessing: str, names: list[str], tmp_path: Path
) -> None:
    write(tmp_path, "mine", target, preprocessing)
    assert_split_and_rejoined(built(read("mine", tmp_path, size)).backbone, *names)


@pytest.mark.slow  # tests/models/test_network.py has it for small graphs
@pytest.mark.parametrize("target, size, name, possible", [
    ("InceptionV3", 75, "mixed9", r"unfrozen_blocks=[a-z0-9_]+\. Received: mixed9"),
    ("NASNetMobile", 32, "normal_conv_1_1", r"unfrozen_blocks=[a-z0-9_]+\. Received: normal_conv_1_1"),
])  # fmt: skip
def test_a_network_that_cannot_be_split_there_names_where_it_can(
    target: str, size: int, name: str, possible: str, tmp_path: Path
) -> None:
    write(tmp_path, "mine", target, "tf")
    given = read("mine", tmp_path, size)
    backbone = build_backbone(given.model, size, (), None)
    with pytest.raises(ConfigError, match=rf"cannot be split before '{name}': .*{possible}") as caught:
        network.split_network(backbone, name, "average")
    found = re.search(r"regime.unfrozen_blocks=(\w+)\.", str(caught.value))
    assert found
    above = network.split_network(backbone, found[1], "average").trainable_part
    assert name in [layer.name for layer in above.layers]


def stage_row(name: str, model: keras.Model) -> str:
    """A line of the table in docs/stages.md: where each stage begins, and the parameters from the last ones on."""
    found = stages.find_stages(model)
    backbone = Backbone(model, found, "")
    counts = [network.split_network(backbone, count, "average").trainable_part.count_params() for count in (1, 2)]
    begins = ", ".join(f"`{stage.name}`" for stage in found)
    return f"| {name} | {len(found)} | {begins} | {counts[0] / 1e6:.2f} | {counts[1] / 1e6:.2f} |"


def check_row(name: str, model: keras.Model, golden: bool) -> None:
    row = stage_row(name, model)
    lines = STAGES_PAGE.read_text(encoding="utf-8").splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith(f"| {name} |")]
    if golden:
        lines = [row if number in at else line for number, line in enumerate(lines)]
        STAGES_PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert at and lines[at[0]] == row, (
        "write it anew: pytest tests/models/test_applications.py --golden -m 'slow or not slow'"
    )


@pytest.mark.parametrize(
    "untrained",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else []) for name in (*MODULES, "convnet")],
    indirect=True,
)
def test_the_stages_of_shipped_backbones_are_those_of_the_table(
    untrained: Built, request: pytest.FixtureRequest
) -> None:
    check_row(untrained.name, untrained.backbone.model, request.config.getoption("--golden"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_stages_of_other_networks_are_those_of_the_table(name: str, request: pytest.FixtureRequest) -> None:
    keras.utils.clear_session()
    model = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(224, 224, 3))
    check_row(name, model, request.config.getoption("--golden"))


def test_blocks_beside_each_other_are_refused_rather_than_trained_together() -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, name="stem")(inputs)
    left, right = (keras.layers.Conv2D(3, 1, name=f"{name}_conv")(x) for name in ("left", "right"))
    model = keras.Model(inputs, keras.layers.Add()([left, right]))
    backbone = Backbone(model, stages.named_stages(model, ["stem", "left", "right"]), "")
    with pytest.raises(ConfigError, match="cannot be split before 'right'"):
        network.split_network(backbone, 1, "average")
    assert network.split_network(backbone, "left", "average").split_point == "left_conv"


def test_a_layer_belongs_to_the_longest_block_it_is_named_after() -> None:
    inputs = x = keras.Input((8, 8, 3))
    for name in ("conv_1_a", "conv_a", "conv_1_b"):
        x = keras.layers.Conv2D(3, 1, name=name)(x)
    model = keras.Model(inputs, x)
    found = stages.named_stages(model, ["conv_1", "conv"])
    with pytest.raises(ConfigError, match="cannot be split before 'conv'"):  # conv_1_b would be on the wrong side
        network.split_network(Backbone(model, found, ""), 1, "average")
    assert network.split_network(Backbone(model, found[:1], ""), "conv_a", "average").split_point == "conv_a"


def test_a_network_inside_another_is_a_block() -> None:
    inside = keras.Input((8, 8, 3))
    nested = keras.Model(inside, keras.layers.Conv2D(3, 1)(inside), name="nested")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, nested(keras.layers.Conv2D(3, 1, name="stem")(inputs)))
    assert_split_and_rejoined(Backbone(model, stages.named_stages(model, ["stem", "nested"]), ""))
