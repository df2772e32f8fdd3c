"""Weights files: every layout that Keras writes is read; what belongs to another network is refused and named."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from keras.src.legacy.saving import legacy_h5_format

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.models import network, weights
from experiments.models.architecture import architecture, differences
from experiments.models.backbone import build_backbone
from experiments.models.head import dense_head
from experiments.models.stages import Backbone
from experiments.models.weights_record import backbone_differences, check_head, head_record, network_record
from experiments.regimes.build import backbone_weights

Configure = Callable[..., Config]
CONVNET = ("regime=bottleneck", "data.image_size=48", "model.head.pooling=average")
MOBILENET = ("regime=bottleneck", "model=mobilenet_v2", "data.image_size=32")
EFFICIENTNET = (
    "regime=bottleneck", "model=efficientnet_v2_b0", "model._target_=keras.applications.EfficientNetB0",
    "~model.include_preprocessing", "model.blocks=[stem,block1a,top]", "data.image_size=32",
)  # fmt: skip


def backbone(read: Config) -> Backbone:
    keras.utils.clear_session()
    return build_backbone(read.model, read.data.image_size, read.trusted_packages, backbone_weights(read, None))


def refusal(read: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        backbone(read)
    return str(caught.value)


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3)).astype("float32")


def features(model: keras.Model) -> np.ndarray:
    return np.asarray(model(noise(model.input_shape[1]), training=False))


def save_legacy(model: keras.Model, path: Path) -> Path:
    """Write weights as keras.applications publishes them."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def random_weights(model: keras.Model, gain: float = 1.0) -> keras.Model:
    """Give a model weights of which each matters, statistics of normalisations included."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        inputs = np.prod(
            weight.shape[:2] if weight.shape[-1:] == (1,) else weight.shape[:-1]
        )  # depthwise: each its own
        values = rng.normal(0, gain / np.sqrt(inputs) if len(weight.shape) > 1 else 0.1, weight.shape)
        weight.assign(np.abs(1 + values) if weight.name in ("gamma", "moving_variance", "variance") else values)
    return finalized(model)


def finalized(model: keras.Model) -> keras.Model:
    """Let normalisations at the input follow their weights, as they do when Keras loads a file."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def test_weights_of_another_width_are_refused(config: Configure, tmp_path: Path) -> None:
    keras.utils.clear_session()
    theirs = keras.applications.MobileNet(alpha=0.25, include_top=False, weights=None, input_shape=(32, 32, 3))
    file = save_legacy(theirs, tmp_path / "mobilenet.h5")
    given = ("model._target_=keras.applications.MobileNet", "model.alpha=0.5", f"model.weights={file}")
    wider = refusal(config(*MOBILENET, *given))
    assert "another width (model.alpha" in wider and "conv_dw_1" in wider


@pytest.mark.slow  # the test below reads the same files, of a small network
def test_published_weights_and_whole_backbones_are_read(config: Configure, tmp_path: Path) -> None:
    """As keras.applications downloads them (legacy HDF5, by order), and a backbone that a user saved whole."""
    keras.utils.clear_session()
    theirs = random_weights(
        keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(64, 64, 3))
    )
    expected = np.asarray(theirs(noise(64) / 127.5 - 1, training=False))
    assert expected.std() > 1e-3
    published = save_legacy(theirs, tmp_path / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5")
    theirs.save(tmp_path / "backbone.keras")
    theirs.save(tmp_path / "whole.h5")
    theirs.save_weights(tmp_path / "keras3.weights.h5")
    os.rename(published, published.with_suffix(".weights.h5"))  # by its content, not by its name
    for name in (published.with_suffix(".weights.h5").name, "backbone.keras", "whole.h5", "keras3.weights.h5"):
        given = (*MOBILENET, f"model.weights={tmp_path / name}")
        found = features(backbone(config(*given, "data.image_size=64")).model)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    at_another_size = backbone(config(*MOBILENET, f"model.weights={tmp_path / 'backbone.keras'}")).model
    for weight, other in zip(at_another_size.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other, err_msg="its padding differs, its weights do not")
    wider = refusal(config(*MOBILENET, f"model.weights={published.with_suffix('.weights.h5')}", "model.alpha=0.5"))
    assert "Conv1 [(3, 3, 3, 16)] expected, [(3, 3, 3, 16)]" not in wider and "another width (model.alpha" in wider
    assert "expand" in wider or "expanded_conv" in wider


def test_a_classifier_is_refused_with_what_to_do(config: Configure, tmp_path: Path) -> None:
    body = backbone(config(*CONVNET, "model.weights=null")).model
    top = keras.layers.Dense(7, name="predictions")(keras.layers.GlobalAveragePooling2D(name="pool")(body.output))
    whole = keras.Model(body.inputs, top)
    save_legacy(whole, tmp_path / "legacy.h5")
    whole.save_weights(tmp_path / "whole.weights.h5")
    whole.save(tmp_path / "whole.keras")
    for name in ("legacy.h5", "whole.weights.h5"):
        text = refusal(config(*CONVNET, f"model.weights={tmp_path / name}"))
        assert "predictions [(64, 7), (7,)] is only in the file" in text and "a whole classifier (predictions)" in text
        assert "*_notop.h5" in text and "save_weights('backbone.weights.h5')" in text
    text = refusal(config(*CONVNET, f"model.weights={tmp_path / 'whole.keras'}"))
    assert "layers only there: pool (GlobalAveragePooling2D), predictions (Dense)" in text


@pytest.fixture(scope="module")
def saved(config: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a run's convnet of random weights."""
    path = tmp_path_factory.mktemp("saved") / "backbone.weights.h5"
    given = config(*CONVNET, "model.weights=null")
    model = backbone(given).model
    weights.save(model, path, network_record(given.model, model))
    return path


def test_weights_of_a_run_fit_where_only_training_differs(config: Configure, saved: Path) -> None:
    training_only = ("model.layers.block1.dropout=0.3", "model.layers.block2.l2=0.1", "data.image_size=64")
    first = backbone(config(*CONVNET, f"model.weights={saved}")).model.get_weights()
    again = backbone(config(*CONVNET, f"model.weights={saved}", *training_only)).model
    with h5py.File(saved) as file:
        kernel = file["layers/conv2d/vars/0"][()]
    np.testing.assert_array_equal(first[0], kernel)
    for weight, other in zip(first, again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.parametrize("change, named", [
    ("model.preprocessing=tf", "model.preprocessing: 'rescale' there, 'tf' here"),
    ("model.layers.block2.activation=tanh", "model.layers.block2.activation: 'relu' there, 'tanh' here"),
    ("model.layers.block3.pool=3", "model.layers.block3.pool: 2 there, 3 here"),
    ("~model.layers.block3", "model.layers: block1, block2, block3 there, block1, block2 here"),
    ("+model.layers.block4={filters: 64, padding: same}", "block3 there, block1, block2, block3, block4 here"),
    ("model.layers.block3.padding=same", "model.layers.block3.padding: 'valid' there, 'same' here"),
    ("model.layers.block2.filters=16", "model.layers.block2.filters: 32 there, 16 here"),
])  # fmt: skip
def test_weights_of_a_run_belong_to_its_network(config: Configure, saved: Path, change: str, named: str) -> None:
    """Also where the shapes fit."""
    text = refusal(config(*CONVNET, f"model.weights={saved}", change))
    assert text.startswith("model.weights: ") and str(saved) in text and named in text
    assert "does not fit convnet" in text


def test_a_damaged_record_is_not_compared(config: Configure, tmp_path: Path) -> None:
    """HDF5 files have no checksum; the weights fit, as far as their shapes show."""
    read, path = config(*CONVNET, "model.weights=null"), tmp_path / "damaged.weights.h5"
    body = backbone(read)
    record = network_record(read.model, body.model)
    del record["architecture"][1]["inputs"]
    weights.save(body.model, path, record)
    assert backbone(config(*CONVNET, f"model.weights={path}")).identity == body.identity


def test_the_shipped_body_belongs_to_its_network(config: Configure) -> None:
    for change in ("model.preprocessing=tf", "model.layers.block1.activation=elu", "model.layers.block1.filters=16"):
        text = refusal(config(*CONVNET, change))
        assert text.startswith("model.weights=pretrained: ") and change.partition("=")[0] in text


@pytest.mark.parametrize("is_small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_graph_that_depends_on_weights_is_rebuilt_as_it_was(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """EfficientNet has a rescaling more with weights=imagenet, here a file of random weights instead of a download."""
    keras.utils.clear_session()
    if is_small:  # of one block
        blocks = efficientnet.DEFAULT_BLOCKS_ARGS[:1]

        def small(**options: Any) -> keras.Model:
            return efficientnet.EfficientNet(
                1.0, 1.0, 224, blocks_args=blocks, name="efficientnetb0", weights_name="b0", **options
            )

        monkeypatch.setattr(keras.applications, "EfficientNetB0", small)
    published = save_legacy(
        random_weights(
            keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3)), 1.5
        ),
        tmp_path / "efficientnetb0_notop.h5",
    )
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *arguments, **options: str(published))
    imagenet = config(*EFFICIENTNET, "model.weights=imagenet", "model.preprocessing=none")
    first = backbone(imagenet).model
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", None)  # from here on nothing may be downloaded
    expected = features(first)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    weights.save(first, tmp_path / "backbone.weights.h5", network_record(imagenet.model, first))
    first.save_weights(tmp_path / "keras3.weights.h5")
    first.save(tmp_path / "backbone.keras")
    first.save(tmp_path / "whole.h5")
    for name in ("backbone.weights.h5", published.name, "keras3.weights.h5", "backbone.keras", "whole.h5"):
        found = backbone(config(*EFFICIENTNET, f"model.weights={tmp_path / name}")).model
        np.testing.assert_array_equal(features(found), expected, err_msg=name)

    other = backbone(config("regime=scratch", *EFFICIENTNET[1:])).model
    other.set_weights(first.get_weights())
    finalized(other)
    assert np.abs(features(other) - expected).max() > 1e-4, "the two graphs give different features"
    other.save_weights(tmp_path / "other.weights.h5")
    found = backbone(config(*EFFICIENTNET, f"model.weights={tmp_path / 'other.weights.h5'}")).model
    np.testing.assert_array_equal(features(found), features(other))
    with h5py.File(tmp_path / "other.weights.h5", "a") as file:  # as Keras writes no longer: weights alone
        for name in [name for name in file["layers"] if not len(file["layers"][name]["vars"])]:
            del file["layers"][name]
    text = refusal(config(*EFFICIENTNET, f"model.weights={tmp_path / 'other.weights.h5'}"))
    assert "the file does not show which it is" in text and "*.keras" in text


def test_what_is_no_weights_file_is_named(config: Configure, tmp_path: Path) -> None:
    body = backbone(config(*CONVNET, "model.weights=null")).model
    good = tmp_path / "good.weights.h5"
    body.save_weights(good)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers"] = [1, 2, 3]
    with zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", good.read_bytes())
    packed = bytearray((tmp_path / "packed.keras").read_bytes())
    packed[30 + len("config.json")] = 0xFF  # where the compressed bytes begin: a block of no type
    files = {
        "other.h5": ((tmp_path / "other.h5").read_bytes(), "an HDF5 file without weights of Keras"),
        "packed.keras": (bytes(packed), "is damaged and cannot be read .*block type"),
        "page.h5": (b"<!DOCTYPE html><html>404", "an HTML or XML page"),
        "pointer.weights.h5": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        "pickle.h5": (b"\x80\x04\x95abc", "a pickle"),
        "cut.weights.h5": (good.read_bytes()[: good.stat().st_size // 2], "is damaged and cannot be read .*truncated"),
        "cut.keras": (b"PK\x03\x04" + b"0" * 99, "is damaged"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^model\.weights: .*{reason}") as caught:
            backbone(config(*CONVNET, f"model.weights={tmp_path / name}"))
        assert str(tmp_path / name) in str(caught.value)
    with zipfile.ZipFile(tmp_path / "torch.keras", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "an archive, but PyTorch's" in refusal(config(*CONVNET, f"model.weights={tmp_path / 'torch.keras'}"))
    os.mkfifo(tmp_path / "pipe.h5")
    for place in (tmp_path / "pipe.h5", Path("/dev/zero")):
        assert "not a pipe, socket or device" in refusal(config(*CONVNET, f"model.weights={place}"))
    assert "not a directory" in refusal(config(*CONVNET, f"model.weights={tmp_path}"))
    assert "is not downloaded" in refusal(config(*CONVNET, "model.weights='https://host.invalid/a.h5'"))


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_files_that_refer_to_others_are_refused(config: Configure, tmp_path: Path, kind: str) -> None:
    body = backbone(config(*CONVNET, "model.weights=null")).model
    path, secret = tmp_path / "evil.weights.h5", tmp_path / "secret"
    body.save_weights(path)
    secret.write_bytes(bytes(4 * 32))
    with h5py.File(path, "a") as file:
        place = file["layers/conv2d/vars"]
        del place["1"]
        if kind == "external link":
            place["1"] = h5py.ExternalLink(str(secret), "/x")
        elif kind == "soft link":
            place["1"] = h5py.SoftLink("/layers/conv2d_1/vars/1")
        elif kind == "external storage":
            place.create_dataset("1", (32,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            place.create_virtual_dataset("1", h5py.VirtualLayout((32,), "f4"))
    text = refusal(config(*CONVNET, f"model.weights={path}"))
    assert "refers to other" in text and str(path) in text and "model.save_weights" in text


def test_a_setting_that_was_written_as_float32_is_no_other_one() -> None:
    inputs = keras.Input((4,))
    here = architecture(keras.Model(inputs, keras.layers.BatchNormalization(epsilon=1e-3)(inputs)))
    there = copy.deepcopy(here)
    there[1]["settings"]["epsilon"] = float(np.float32(1e-3))
    assert there != here and differences(there, here) == []
    there[1]["settings"]["epsilon"] = 1.001e-3
    assert differences(there, here) == ["batch_normalization[0].epsilon: 0.001001 there, 0.001 here"]


def test_a_head_belongs_to_the_backbone_that_it_was_trained_on(config: Configure, tmp_path: Path) -> None:
    path = tmp_path / "head.weights.h5"
    given = config(*CONVNET)
    body = backbone(given)
    head = dense_head(64, given.model.head, 2)
    record = head_record(given.model, body, head, network.join(body, "average", head))
    weights.save(head, path, record)
    check_head(given.model, path, body)
    for damaged in ({}, record | {"reference": "?"}, record | {"backbone": None}):
        weights.save(head, tmp_path / "damaged.weights.h5", damaged)
        with pytest.raises(ConfigError, match=r"regime\.head_from: .*damaged\.weights\.h5: its record is damaged"):
            check_head(given.model, tmp_path / "damaged.weights.h5", body)
    for change, named in (
        ("model.head.pooling=max", "model.head.pooling: 'average' there, 'max' here"),
        ("data.image_size=64", "data.image_size: 48 there, 64 here"),
        ("model.weights=null", "model.weights: the weights' values there are not those here"),
    ):
        other = config(*CONVNET, change)
        with pytest.raises(ConfigError, match=r"^regime\.head_from: .*another backbone") as caught:
            check_head(other.model, path, backbone(other))
        assert named in str(caught.value)
    tanh = config(*CONVNET, "model.weights=null", "model.layers.block1.activation=tanh")
    assert backbone_differences(tanh.model, record, backbone(tanh)) == [
        "model.layers.block1.activation: 'relu' there, 'tanh' here"
    ]
    with pytest.raises(ConfigError, match=r"regime\.head_from: .*dense1\.activation: 'relu' there, 'tanh' here"):
        changed = config(*CONVNET, "model.head.dense.dense1.activation=tanh")
        network.load_weights(dense_head(64, changed.model.head, 2), path, "regime.head_from")
