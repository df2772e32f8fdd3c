"""Shipped component YAMLs fit their constructors, and nothing else gets constructed."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest

from experiments.config import choices, schema, targets
from experiments.config.arguments import ARGUMENTS, Species
from experiments.data.drawing.species import SPECIES
from experiments.data.types import Dataset, ImageRecord, ImageSet, Manifest
from experiments.errors import ConfigError
from experiments.evaluation.evaluate import evaluate
from experiments.regimes import build
from experiments.storage.array_cache import Rows

Read = Callable[..., schema.Config]
OPTIMIZERS = choices.shipped("optimizer")


def arguments(target: str) -> set[str]:
    module, _, name = target.rpartition(".")
    return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def own(group: str, node: dict[str, Any]) -> set[str]:
    """The keys of a shipped component that are no fields of the schema: its constructor's arguments."""
    fields = {field.alias or name for name, field in schema.GROUPS[group].model_fields.items()}
    return set(node) - fields


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_list_exactly_the_constructors_arguments(name: str) -> None:
    ours = {"name", "_target_", "decay_bias_and_norm"}  # the last chooses the variables that `fit` leaves without decay
    assert ours <= OPTIMIZERS[name].keys()
    listed = {"learning_rate" if key == "lr" else key for key in OPTIMIZERS[name]} - ours
    assert listed == arguments(OPTIMIZERS[name]["_target_"]) - {"self", "name", "kwargs"}


@pytest.mark.parametrize("group, name", [
    (group, name) for group in ("augmentation", "data") for name in choices.shipped(group)])  # fmt: skip
def test_sources_and_augmentations_list_exactly_their_factorys_arguments(group: str, name: str) -> None:
    node = choices.shipped(group)[name]
    assert own(group, node) == arguments(node["_target_"]) - {"cache"}


@pytest.mark.parametrize("name", choices.shipped("model"))
def test_models_list_arguments_that_their_constructor_has(name: str) -> None:
    node = choices.shipped("model")[name]
    assert own("model", node) <= arguments(node["_target_"])


@pytest.mark.parametrize("name", choices.shipped("regime"))
def test_regimes_are_functions_of_one_signature(name: str) -> None:
    assert arguments(choices.shipped("regime")[name]["_target_"]) == {"components", "dataset", "context"}


def test_every_argument_of_a_shipped_component_is_checked() -> None:
    """A type in ARGUMENTS that no shipped YAML has a key for would check nothing."""
    for group in schema.GROUPS:
        listed = {key for node in choices.shipped(group).values() for key in own(group, node)}
        assert set(ARGUMENTS.get(group, {})) == listed


def test_the_schemas_choices_are_those_of_the_code() -> None:
    assert set(get_args(Species)) == set(SPECIES)
    for name in get_args(schema.Activation):
        keras.activations.get(name)


def test_every_objective_is_a_metric_of_the_evaluation() -> None:
    entries = tuple(ImageRecord(f"{n}.jpg", 1, str(n), 1, 1, "RGB", "ab"[n % 2], "validation") for n in range(4))
    images = ImageSet(
        "validation", entries, np.array([0, 1, 0, 1], "int32"), 1, lambda: Rows([np.zeros((4, 1, 1, 3), "uint8")])
    )
    splits = Dataset(("a", "b"), images, images, None, Manifest(Path(), ("a", "b"), entries), "")
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], "float32")
    metrics = evaluate({"validation": scores}, splits)["validation"].metrics
    beside = {"accuracy_low", "accuracy_high", "accuracy_baseline"}
    # Two classes have no top-k accuracy; tests/evaluation/test_decision.py and test_evaluate.py have those of more.
    assert set(metrics) - beside == set(get_args(schema.Metric)) - {"top3_accuracy", "top5_accuracy"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_built_with_the_values_given(name: str, config: Read) -> None:
    read = config(f"optimizer={name}", "optimizer.lr=0.0625", "optimizer.clipnorm=2", "regime=finetune")
    built = build.build_optimizer(read.optimizer, "optimizer", ())
    expected = getattr(keras.optimizers, OPTIMIZERS[name]["_target_"].rpartition(".")[2])
    assert type(built) is expected
    assert float(built.learning_rate) == 0.0625 and built.clipnorm == 2
    defaults = expected(learning_rate=0.0625, clipnorm=2).get_config()
    differs = {key for key, value in built.get_config().items() if value != defaults[key]} - {"name"}
    averaged = {"use_ema", "ema_momentum"}
    own = {"sgd": {"momentum"}, "adamw_head": {"weight_decay", *averaged}, "adamw_finetune": averaged}
    assert differs == own.get(name, set()), "the other shipped optimizers have Keras's defaults"
    other = build.build_optimizer(read.regime.head_optimizer, "regime.head_optimizer", ())
    assert type(other) is keras.optimizers.AdamW


def test_the_augmentations_build_what_their_names_say(config: Read) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 16, 16, 3)).astype("uint8")
    for name in choices.shipped("augmentation"):
        augmentation = build.build_augmentation(config(f"augmentation={name}").augmentation, ())
        changed = np.asarray(augmentation(pixels, augmentation.draw(rng, 2, 16)))
        assert changed.shape == pixels.shape and changed.dtype == np.float32
        assert np.array_equal(changed, pixels) == (name == "none")


def refused(config: schema.Config, key: str, target: str, kind: type | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        targets.resolve(config.trusted_packages, key, target, kind)
    assert str(raised.value).startswith(f"{key}._target_: ") and target in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("key, target", [
    ("data", "os.system"), ("data", "subprocess.run"), ("model", "subprocess.Popen"), ("regime", "builtins.eval"),
    ("data", "experiments.models.convnet.convnet"), ("data", "kerasevil.source"),
    ("data", "experiments.database.source"), ("augmentation", "shutil.rmtree"), ("model", "keras"), ("data", "system"),
    ("data", "experiments.data.os.system"),
    ("data", "experiments.data.sources.folder.os.system"), ("data", "experiments.data.sources.folder.difflib"),
])  # fmt: skip
def test_targets_outside_keras_and_this_slots_factories_are_refused(key: str, target: str, config: Read) -> None:
    refused(config(), key, target)


@pytest.mark.parametrize("key, target", [
    ("data", "keras.utils.get_file"), ("regime", "keras.config.enable_unsafe_deserialization"),
    ("model", "keras.models.load_model"), ("augmentation", "keras.layers.Lambda"),
    ("data", "experiments.data.sources.synthetic.ThreadPoolExecutor"), ("regime", "experiments.regimes.bottleneck.fit"),
])  # fmt: skip
def test_slots_that_take_a_function_take_factories_only(key: str, target: str, config: Read) -> None:
    refused(config(), key, target)


@pytest.mark.parametrize("target", ["keras.optimizers.Lion2", "keras.nowhere.SGD", "keras.optimizers."])
def test_unknown_names_are_refused(target: str, config: Read) -> None:
    assert "there is no" in refused(config(), "optimizer", target, keras.optimizers.Optimizer)


@pytest.mark.parametrize("target", ["keras.layers.Dense", "keras.losses.get", "json.JSONEncoder"])
def test_what_is_of_another_kind_is_refused(target: str, config: Read) -> None:
    trusting = config("trusted_packages=[json]")
    assert "must name a" in refused(trusting, "optimizer", target, keras.optimizers.Optimizer)


@pytest.mark.parametrize("target", ["os.system", "experiments.regimes.build.build_optimizer", "kerasevil.SGD"])
def test_a_keras_slot_takes_nothing_but_keras(target: str, config: Read) -> None:
    assert "must begin with keras." in refused(config(), "optimizer", target, keras.optimizers.Optimizer)


@pytest.mark.parametrize("name", ["Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"])
def test_layers_that_run_code_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"augmentation\.layers\.0\._target_: {name} .*not allowed"):
        build.build_layer({"_target_": f"keras.layers.{name}"}, 0, ())


def test_a_layer_is_built_with_its_arguments_and_faults_name_its_place() -> None:
    built = build.build_layer({"_target_": "keras.layers.RandomContrast", "factor": 0.25}, 0, ())
    assert isinstance(built, keras.layers.RandomContrast) and built.get_config()["factor"] == (0, 0.25)
    with pytest.raises(
        ConfigError, match=r"augmentation\.layers\.1\.factr: .*Nearest: augmentation\.layers\.1\.factor"
    ):
        build.build_layer({"_target_": "keras.layers.RandomContrast", "factor": 0.25, "factr": 1}, 1, ())
    with pytest.raises(ConfigError, match=r"augmentation\.layers\.2: needs a _target_"):
        build.build_layer({"factor": 0.25}, 2, ())


def test_untrusted_packages_are_not_even_imported_and_trusted_ones_are_used(
    config: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("myimages", "myimages2"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("def source(*, cache):\n    return cache / 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = refused(config(), "data", "myimages.source")
    assert "trusted_packages=[NAME]" in text and "myimages" not in sys.modules

    trusting = config("trusted_packages=[myimages]", "data._target_=myimages.source")
    refused(trusting, "data", "myimages2.source")
    assert "myimages2" not in sys.modules, "the name of a package is no prefix of another's"
    source = targets.resolve(trusting.trusted_packages, "data", trusting.data.target)
    assert source(cache=tmp_path) == tmp_path / "mine"
    monkeypatch.delitem(sys.modules, "myimages")


def test_an_own_components_unknown_argument_names_the_nearest(config: Read) -> None:
    def network(*, input_tensor: Any, width: int) -> None:
        """Stands for a user's constructor."""

    with pytest.raises(ConfigError, match=r"model\.widht: nothing reads this key.*Nearest: model\.width"):
        targets.construct("model", network, {"input_tensor": None, "widht": 3})


def test_an_error_within_an_own_component_names_its_line() -> None:
    def source(*, cache: Any) -> Any:
        return int(cache)

    with pytest.raises(ConfigError, match=rf"data: invalid literal .*: 'x' \({re.escape(__file__)}, line \d+\)$"):
        targets.construct("data", source, {"cache": "x"})
    with pytest.raises(ConfigError, match="data: .* missing 1 required keyword-only argument: 'cache'$"):
        targets.construct("data", source, {})
