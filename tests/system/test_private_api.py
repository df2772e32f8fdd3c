"""The private API of other libraries still exists and does what this project needs."""

from __future__ import annotations

import importlib
import inspect
import logging
import logging.config
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.system import paths
from experiments.system.private_api import (
    KERAS_GET_FILE,
    CachingConfigRepository,
    Callbacks,
    accumulated_gradients,
    batch_counter,
    config_root,
    flatten_layers,
    get_args_parser,
    is_deterministic,
    open_log_handlers,
    replaced_convolutions,
    variable_index,
    without_hydra,
    wrap_update_step,
)


def test_the_root_of_a_configuration_is_found_from_a_node() -> None:
    whole = OmegaConf.create({"model": {"head": {"dropout": 0.5}}})
    assert config_root(whole.model.head) is whole


def test_a_running_hydra_is_set_aside_and_goes_on() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        running = GlobalHydra.instance().hydra
        with without_hydra(), initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
            assert compose("config", ["epochs=3"]).epochs == 3
        assert GlobalHydra.instance().hydra is running and compose("config", ["epochs=4"]).epochs == 4


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


def test_an_optimizer_updates_each_variable_by_what_wraps_its_update() -> None:
    optimizer, variables = keras.optimizers.SGD(1.0), [keras.Variable([1.0]), keras.Variable([2.0, 3.0])]
    optimizer.build(variables)
    factors = [2.0, 10.0]
    wrap_update_step(
        optimizer,
        lambda update, gradient, variable, rate: update(
            gradient, variable, rate * factors[variable_index(optimizer, variable)]
        ),
    )
    tf.function(lambda: optimizer.apply([np.ones(1, "float32"), np.ones(2, "float32")], variables))()
    assert [np.asarray(variable).tolist() for variable in variables] == [[-1.0], [-8.0, -7.0]]


def test_an_optimizer_counts_batches_and_sums_their_gradients() -> None:
    optimizer, variable = keras.optimizers.SGD(1.0, gradient_accumulation_steps=3), keras.Variable([1.0])
    optimizer.build([variable])
    for gradient in (0.5, 0.25):
        optimizer.apply([np.array([gradient], "float32")], [variable])
    assert int(batch_counter(optimizer)) == 2 and int(optimizer.iterations) == 0
    assert [np.asarray(total).tolist() for total in accumulated_gradients(optimizer)] == [[0.75]]
    batch_counter(optimizer).assign_add(0)  # `LeftoverGradients` moves it


def test_a_convolution_is_replaced_inside_the_context_only() -> None:
    layer, images = keras.layers.Conv2D(1, 1, kernel_initializer="ones"), np.ones((1, 2, 2, 1), "float32")
    layer(images)
    with replaced_convolutions([layer], lambda direct, inputs, kernel: 5 * direct(inputs, kernel)):
        assert np.all(np.asarray(layer(images)) == 5)
    assert np.all(np.asarray(layer(images)) == 1)


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
    assert [type(callback).__name__ for callback in found.callbacks] == ["LogJobReturnCallback"]
    found.on_run_start(config=OmegaConf.create({}))


def test_configuring_logging_closes_no_handler(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "own.log", mode="w")
    with open_log_handlers():
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    handler.handle(logging.makeLogRecord({"msg": "afterwards"}))
    handler.close()
    assert (tmp_path / "own.log").read_text() == "afterwards\n"
