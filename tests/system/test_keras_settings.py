"""Keras's global settings of the user do not change a run, and are the user's again afterwards."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

from experiments.api.process import unchanged_libraries
from experiments.errors import ConfigError
from experiments.system import keras_settings
from experiments.system.startup import quiet_start

OTHERS = {
    "floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first", "max_epochs": 1,
    "max_steps_per_epoch": 2,
}  # fmt: skip
LOADED = """
from experiments.system import keras_settings
from experiments.system.startup import quiet_start

with quiet_start():
    import keras
print(keras.config.backend(), keras_settings.current() == keras_settings.SETTINGS)
keras_settings.restore({})
print(keras.config.epsilon(), keras.config.max_epochs())
"""


@pytest.fixture
def others() -> Iterator[None]:
    before = keras_settings.current()
    keras_settings.assign(OTHERS)
    yield
    keras_settings.assign(before)


def test_all_settings_are_those_of_every_run_and_restored(others: None, caplog: pytest.LogCaptureFixture) -> None:
    assert keras_settings.current() == OTHERS
    with caplog.at_level(logging.WARNING), unchanged_libraries():
        with quiet_start():
            assert keras_settings.current() == keras_settings.SETTINGS, "before the block, too"
        assert keras_settings.current() == keras_settings.SETTINGS
    assert keras_settings.current() == OTHERS
    assert [record.args[:2] for record in caplog.records if isinstance(record.args, tuple)] == [*OTHERS.items()]
    caplog.clear()
    keras_settings.assign(keras_settings.SETTINGS)
    with quiet_start():
        pass
    assert not caplog.records


def test_the_file_and_the_environment_of_another_project_have_no_effect(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch", "epsilon": 0.5, "floatx": "float64"}))
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "3"}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tensorflow True", "0.5 3"]
    for text in ("floatx=float64", "epsilon=0.5", "max_epochs=3"):
        assert f"Keras's {text}, from keras.json, the environment or a notebook, has no effect" in done.stderr


def test_keras_that_is_loaded_with_another_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="KERAS_BACKEND: .*Allowed: tensorflow. Received: jax. Set"), quiet_start():
        pytest.fail("nothing is loaded")
