"""Errors of `build`, raised before any image is read: each names the key, the value received and what is allowed."""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import pytest

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.models.backbone import PRETRAINED, build_backbone
from experiments.regimes.build import build
from experiments.system import paths

Configure = Callable[..., Config]
CONVNET = ("data.image_size=48", "model.weights=null", "model.head.pooling=average")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras with an empty cache and no network; returns the cache."""
    from keras.src.backend import config as backend_config
    from keras.src.utils import file_utils

    home = tmp_path / "keras"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr(backend_config, "_KERAS_DIR", str(home))

    def unreachable(*arguments: object) -> NoReturn:
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(file_utils, "urlretrieve", unreachable)
    return home


def failure(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        build(config, {})
    return str(caught.value)


# --- weights


def test_a_weights_file_that_is_not_there(config: Configure, tmp_path: Path) -> None:
    text = failure(config(*CONVNET, "regime=bottleneck", f"model.weights={tmp_path / 'gone.weights.h5'}"))
    assert text.startswith("model.weights: no such file") and str(tmp_path / "gone.weights.h5") in text


def test_a_file_that_is_no_weights_file(config: Configure, tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()
    text = failure(config(*CONVNET, "regime=bottleneck", f"model.weights={tmp_path / 'model.keras'}"))
    assert text.startswith("model.weights: must be a Keras weights file, *.weights.h5")
    assert str(tmp_path / "model.keras") in text
    (tmp_path / "empty.weights.h5").touch()
    text = failure(config(*CONVNET, "regime=bottleneck", f"model.weights={tmp_path / 'empty.weights.h5'}"))
    assert "model.weights" in text and "empty.weights.h5" in text and "does not fit" in text


@pytest.mark.parametrize("other", ["filters", "layers", "network"])
def test_weights_of_another_network(config: Configure, tmp_path: Path, other: str) -> None:
    path = tmp_path / "other.weights.h5"
    inputs = keras.Input((48, 48, 3))
    change = {"filters": "model.layers.block2.filters=7", "layers": "~model.layers.block3"}.get(other)
    if change:
        build(config(*CONVNET, "regime=bottleneck", change), {}).backbone.model.save_weights(path)
    else:
        keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs)).save_weights(path)
    text = failure(config(*CONVNET, "regime=bottleneck", f"model.weights={path}"))
    assert text.startswith("model.weights: ") and str(path) in text and "does not fit convnet" in text
    assert "block2_conv [(3, 3, 32, 32), (32,)]" in text  # the shapes that the network needs


def test_a_weights_file_is_loaded(config: Configure, tmp_path: Path) -> None:
    path = tmp_path / "body.weights.h5"
    saved = build(config(*CONVNET, "regime=bottleneck", "seed=5"), {}).backbone
    saved.model.save_weights(path)
    loaded = build(config(*CONVNET, "regime=bottleneck", f"model.weights={path}"), {}).backbone
    for weight, other in zip(saved.model.get_weights(), loaded.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    assert loaded.identity == saved.identity
    run_id = "0123456789abcdef" * 2
    by_run = build(config(*CONVNET, "regime=bottleneck", f"model.weights='{run_id}'"), {"model.weights": path})
    assert by_run.backbone.identity == saved.identity


def test_imagenet_offline_is_answered_at_once(config: Configure, offline: Path) -> None:
    began = time.perf_counter()
    text = failure(config("model=mobilenet_v2", "regime=bottleneck", "data.image_size=224"))
    assert time.perf_counter() - began < 10
    file = offline / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    assert text.startswith("model.weights: ") and str(file) in text
    assert "name resolution" in text
    for choice in ("model.weights=FILE", "run id", "null", "pretrained"):
        assert choice in text


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError(104, "Connection reset by peer")])
def test_a_download_that_breaks_off_is_a_clear_error(
    config: Configure, offline: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    from keras.src.utils import file_utils

    def breaks(*arguments: object) -> NoReturn:
        raise error

    monkeypatch.setattr(file_utils, "urlretrieve", breaks)
    text = failure(config("model=mobilenet_v2", "regime=bottleneck", "data.image_size=224"))
    assert text.startswith("model.weights: ") and str(error) in text and str(offline / "models") in text


def test_imagenet_is_not_for_the_convnet(config: Configure) -> None:
    text = failure(config("regime=bottleneck", "data.image_size=48", "model.weights=imagenet"))
    assert "model.weights" in text and "model=convnet" in text and "Allowed: pretrained" in text


def test_a_frozen_random_backbone_is_warned_of(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    for regime in ("bottleneck", "finetune"):
        with caplog.at_level(logging.WARNING):
            build(config(*CONVNET, f"regime={regime}"), {})
        assert "RANDOM" in caplog.text and f"regime={regime}" in caplog.text
        caplog.clear()
    build(config(*CONVNET, "regime=scratch"), {})
    assert not caplog.records


def test_scratch_reads_no_weights(config: Configure, tmp_path: Path) -> None:
    missing = f"model.weights={tmp_path / 'gone.weights.h5'}"
    scratch = build(config(*CONVNET, "regime=scratch", missing), {}).backbone
    assert scratch.identity == build(config(*CONVNET, "regime=scratch"), {}).backbone.identity


def test_the_shipped_body_loads(config: Configure) -> None:
    assert PRETRAINED.is_relative_to(paths.PACKAGE)
    for size in (48, 150):  # convolutions accept any image size
        trained = build(config("regime=finetune", f"data.image_size={size}"), {}).backbone
        random = build(config("regime=finetune", f"data.image_size={size}", "model.weights=null"), {}).backbone
        assert trained.identity != random.identity
        for weight, other in zip(trained.model.get_weights(), random.model.get_weights(), strict=True):
            assert np.isfinite(weight).all() and np.any(weight != other)
    assert PRETRAINED.stat().st_size < 400_000


# --- identity


def test_the_backbones_identity_follows_weights_and_architecture(config: Configure) -> None:
    def identity(*overrides: str) -> str:
        return build(config(*CONVNET, "regime=bottleneck", *overrides), {}).backbone.identity

    first = identity()
    assert identity() == first  # whatever this process built before
    keras.layers.Dense(3)
    assert identity("model.head.dropout=0.1", "optimizer=adam", "epochs=3") == first
    others = [
        identity(change)
        for change in ("seed=1", "model.layers.block1.activation=tanh", "model.preprocessing=tf", "data.image_size=50")
    ]
    assert len({first, *others}) == 5


def test_the_identity_of_a_run_follows_its_head_and_the_version(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(*CONVNET, "regime=finetune", f"regime.head_from={'a' * 32}")
    files = [tmp_path / f"{seed}.weights.h5" for seed in (0, 1)]
    for seed, file in enumerate(files):
        build(given.model_copy(update={"seed": seed}), {}).head(2).save_weights(file)

    def identity(fetched: dict[str, Path]) -> str:
        return build(given, fetched).identity(given, "data")

    identities = [identity({}), *(identity({"regime.head_from": file}) for file in files)]
    monkeypatch.setattr("experiments.regimes.build.__version__", "0")
    assert len({*identities, identity({})}) == 4


def test_mobilenets_identity_repeats(config: Configure) -> None:
    settings = config("model=mobilenet_v2", "regime=bottleneck", "data.image_size=64", "model.weights=null")
    assert build(settings, {}).backbone.identity == build(settings, {}).backbone.identity


def test_the_head_is_the_same_for_the_same_seed_whatever_was_built_before(config: Configure) -> None:
    def head(seed: int, before: Callable[[Any], object] = lambda components: None) -> list[np.ndarray]:
        components = build(config(*CONVNET, "regime=bottleneck", f"seed={seed}"), {})
        before(components)
        return list(components.head(2).get_weights())

    first = head(0)
    for again in (
        head(0),
        head(0, lambda components: (components.head(2), components.head(5), components.phase.optimizer())),
    ):
        assert all(np.array_equal(weight, other) for weight, other in zip(first, again, strict=True))
    assert any(np.any(weight != other) for weight, other in zip(first, head(1), strict=True))


# --- components


@pytest.mark.parametrize(
    "node, expected",
    [
        ("{factor:0.2}", "needs a _target_"),
        ("{_target_:keras.layers.RandomContrats,factor:0.2}", "there is no 'keras.layers.RandomContrats'"),
        ("{_target_:keras.layers.RandomContrast,factor:0.2,faktor:0.2}", "faktor"),
        ("{_target_:keras.layers.RandomContrast,factor:-3}", "augmentation.layers.0: "),
        ("{_target_:keras.layers.Lambda,function:f}", "Lambda runs code of its own"),
        ("{_target_:keras.optimizers.SGD}", "must name a keras"),
        ("{_target_:os.system,command:'touch HERE'}", "trusted_packages"),
        ("{_target_:keras.utils.get_file,fname:x}", "must name a keras"),
    ],
)
def test_augmentation_layers_that_cannot_be_built(config: Configure, node: str, expected: str) -> None:
    text = failure(config(*CONVNET, f"augmentation.layers=[{node}]"))
    assert "augmentation.layers.0" in text and expected in text


def test_augmentation_layers_are_built_in_order(config: Configure) -> None:
    layers = (
        "augmentation.layers=[{_target_:keras.layers.RandomContrast,factor:0.2},"
        "{_target_:keras.layers.RandomBrightness,factor:0.1,value_range:[0,255]}]"
    )
    built = build(config(*CONVNET, layers), {}).extra_layers
    assert [type(layer).__name__ for layer in built] == ["RandomContrast", "RandomBrightness"]
    assert list(built[1].value_range) == [0, 255]


def test_a_block_that_is_no_layer(config: Configure) -> None:
    text = failure(config(*CONVNET, "model.blocks=[block1,block4]"))
    assert text.startswith("model.blocks: ") and "'block4'" in text and "block3_conv" in text


def test_images_too_small_for_the_network(config: Configure) -> None:
    text = failure(config("data.image_size=16", "model.weights=null"))
    assert "model.layers.block" in text and "too small" in text
    text = failure(config("model=vgg16", "data.image_size=16", "model.weights=null"))
    assert "32" in text and "model" in text


@pytest.mark.parametrize("key", ["optimizer", "regime.head_optimizer"])
def test_an_optimizer_that_cannot_be_built(config: Configure, key: str) -> None:
    text = failure(config(*CONVNET, "regime=finetune", f"{key}.clipnorm=1", f"{key}.clipvalue=1"))
    assert text.startswith(f"{key}: ") and "clipvalue" in text


def test_optimizers_are_fresh_each_time(config: Configure) -> None:
    components = build(config(*CONVNET, "regime=finetune", "optimizer=adam"), {})
    first, second = components.phase.optimizer(), components.phase.optimizer()
    assert first is not second and type(first).__name__ == "Adam"
    assert type(components.head_phase.optimizer()).__name__ == "AdamW"


def test_build_backbone_maps_pixels_to_feature_maps(config: Configure) -> None:
    backbone = build_backbone(config(*CONVNET).model, 48, (), None)
    assert backbone.model.input_shape == (None, 48, 48, 3)
    assert backbone.model.output_shape == (None, 4, 4, 64)


@pytest.mark.parametrize("returned, issue", [
    ("keras.Model(input_tensor, maps)", "get_source_inputs(input_tensor)[0]"),  # without its preprocessing
    ("keras.Sequential([keras.Input((48, 48, 3)), layer])", "get_source_inputs(input_tensor)[0]"),
    ("maps", "return a functional keras.Model"),
    ("keras.Model(pixels, [maps, maps])", "return feature maps [B, h, w, channels], one tensor"),
    ("keras.Model(pixels, keras.layers.Flatten()(maps))", "return feature maps [B, h, w, channels], one tensor"),
    ("keras.Model(pixels, keras.layers.MaxPooling2D(name='pooling')(maps))", "have no layer called 'pooling'"),
    ("keras.Model(pixels, maps)", ""),
])  # fmt: skip
def test_a_network_of_ones_own_maps_the_pixels_to_feature_maps(
    returned: str, issue: str, config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownnetwork.py").write_text(
        "import keras\n"
        "def network(*, input_tensor, layers):\n"
        "    pixels, layer = keras.utils.get_source_inputs(input_tensor)[0], keras.layers.Conv2D(4, 3)\n"
        f"    maps = layer(input_tensor)\n    return {returned}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ownnetwork", raising=False)
    own = config("model.weights=null", "trusted_packages=[ownnetwork]", "model._target_=ownnetwork.network",
                 "model.blocks=null")  # fmt: skip
    if issue:
        with pytest.raises(ConfigError, match=f"^model: ownnetwork.network must .*{re.escape(issue)}"):
            build_backbone(own.model, 48, ["ownnetwork"], None)
    else:
        assert build_backbone(own.model, 48, ["ownnetwork"], None).model.get_layer("preprocessing")
