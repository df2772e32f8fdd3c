"""Compiled updates give the results of Keras's own, of Keras's own optimizers only."""

from __future__ import annotations

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.training.compiled_updates import compile_updates, only_cpus


# The first are those of conf/optimizer.
@pytest.mark.parametrize("name", [
    "SGD", "RMSprop", "Adam", "AdamW", "Adagrad",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("Adadelta", "Adamax", "Nadam", "Ftrl", "Lion", "Lamb", "Muon")),
])  # fmt: skip
def test_updates_compiled_in_one_are_the_optimizers_own(name: str) -> None:
    """Of a variable that is large and one that is left to Keras, in three steps."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape).astype("float32") for shape in ((512, 512), (512, 3))]
    gradients = [[rng.normal(size=start.shape).astype("float32") for start in starts] for _ in range(3)]

    def trained(compile_them: bool) -> tuple[list[np.ndarray], int]:
        """The variables after the steps, and how many updates of a step are compiled."""
        optimizer = getattr(keras.optimizers, name)(0.01)
        variables = [keras.Variable(start) for start in starts]
        optimizer.build(variables)
        if compile_them:
            compile_updates(optimizer)
        step = tf.function(lambda *given: optimizer.apply(given, variables))
        for given in gradients:
            step(*given)
        operations = step.get_concrete_function(*gradients[0]).graph.get_operations()
        compiled = sum("_XlaMustCompile" in operation.node_def.attr for operation in operations)
        return [np.asarray(variable) for variable in variables], compiled

    (own, none), (in_one, compiled) = trained(False), trained(True)
    assert (none, compiled) == (0, 1)
    for start, expected, found in zip(starts, own, in_one, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.abs(found - start).max() > 1e-5


def test_updates_of_somebody_elses_optimizer_are_left_to_it() -> None:
    class Own(keras.optimizers.SGD):
        pass

    for optimizer, is_changed in ((Own(0.1), False), (keras.optimizers.SGD(0.1), True)):
        compile_updates(optimizer)
        assert ("update_step" in vars(optimizer)) == is_changed


@pytest.mark.parametrize("kinds, only", [(["CPU"], True), (["CPU", "GPU"], False), (["CPU", "TPU"], False)])
def test_only_cpus_are_distinguished_from_other_devices(
    kinds: list[str], only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [types.SimpleNamespace(device_type=kind) for kind in kinds]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda: devices)
    assert only_cpus() == only
