"""The private API of other libraries still exists and does what this project needs."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, cast

import keras
import tensorflow as tf
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.system import paths
from experiments.system.private_api import (
    KERAS_GET_FILE,
    CachingConfigRepository,
    Callbacks,
    flatten_layers,
    get_args_parser,
    is_deterministic,
)


def test_layers_are_found_at_any_depth() -> None:
    inner = keras.Sequential([keras.layers.Dense(2, name="deep")])
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1, name="top")])
    names = [layer.name for layer in flatten_layers(model)]
    assert {"deep", "top", inner.name} <= set(names) and len(names) == len(set(names))


def test_determinism_is_off_unless_it_was_enabled() -> None:
    assert is_deterministic() is False
    assert callable(tf.config.experimental.enable_op_determinism)


def test_the_download_of_keras_can_be_replaced() -> None:
    module, _, name = KERAS_GET_FILE.rpartition(".")
    assert list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)[:2] == ["fname", "origin"]
    assert "file_utils.get_file" in inspect.getsource(importlib.import_module("keras.src.applications.vgg16"))


def test_hydra_parses_arguments_and_caches_its_repository(tmp_path: Path) -> None:
    parsed = get_args_parser().parse_args(["-m", "seed=1", "--config-dir", str(tmp_path)])
    assert parsed.multirun and parsed.overrides == ["seed=1"] and parsed.config_dir == str(tmp_path)
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        compose("config")
        cached = CachingConfigRepository(cast(Any, GlobalHydra.instance().config_loader()).repository)
        first, second = cached.load_config("config"), cached.load_config("config")
    assert first is not None and first is second and "epochs" in first.config


def test_callbacks_of_a_configuration_are_called() -> None:
    callback = {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}
    found = Callbacks(OmegaConf.create({"hydra": {"callbacks": {"log": callback}}}))
    assert [type(one).__name__ for one in found.callbacks] == ["LogJobReturnCallback"]
    found.on_run_start(config=OmegaConf.create({}))
