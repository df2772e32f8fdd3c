"""The state with which a continued run begins: what it takes over from the finished run, and what begins anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from experiments.config.identity import dump_yaml
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.images.decoder_settings import DecoderSettings
from experiments.regimes import continuation
from experiments.regimes.bottleneck import bottleneck
from experiments.regimes.build import build_phase
from experiments.runs.run_directory import RunDirectory
from experiments.storage.csv_files import write_rows
from experiments.training.callbacks import build_variables
from experiments.training.checkpoints import Checkpoints, TrainingState, keep_last
from experiments.training.types import EpochRecord

IMAGES = [("train", "a", "x"), ("train", "b", "y"), ("validation", "c", "x"), ("validation", "d", "y")]
COUNTERS = {"wait": 2, "best": 0.25}


class Finished(NamedTuple):
    """The files and the last state of a finished run; and a function that continues it."""

    state: TrainingState
    continued: Callable[..., TrainingState]


def network(*layers: keras.layers.Layer) -> keras.Model:
    keras.utils.clear_session()
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), *layers, keras.layers.Dense(1)])


def dataset(images: Sequence[tuple[str, ...]], resize: str = "squash") -> Any:
    entries = [SimpleNamespace(split=split, sha256=sha256, class_name=name) for split, sha256, name in images]
    settings = DecoderSettings(resize=resize)  # type: ignore[arg-type]
    return SimpleNamespace(manifest=SimpleNamespace(entries=entries, decoder_settings=settings))


@pytest.fixture
def finished(config: Callable[..., Config], tmp_path: Path) -> Callable[..., Finished]:
    """Return a function that makes a finished run from a command line: its state has random moments and weights."""

    def make(*given: str, stopped: bool = False) -> Finished:
        before, rng = config(*given), np.random.default_rng(0)
        (tmp_path / "config.yaml").write_text(dump_yaml(before.model_dump(by_alias=True, mode="json")))
        rows = [{"split": split, "sha256": sha256, "class_name": name} for split, sha256, name in IMAGES]
        write_rows(tmp_path / "manifest.csv", rows)
        model = network()
        model.compile(optimizer=build_phase(before, "optimizer").optimizer())
        values = [rng.normal(size=variable.shape).astype(variable.dtype) for variable in build_variables(model)]
        state = TrainingState(values, [np.ones(2)], COUNTERS, stopped, ())

        def continued(
            *more: str, images: Any = None, layers: Sequence[keras.layers.Layer] = (), state: TrainingState = state
        ) -> TrainingState:
            now = config(*given, *more)
            components: Any = SimpleNamespace(config=now, phase=build_phase(now, "optimizer"))
            data = images or dataset(IMAGES)
            return continuation.continued_state(state, components, data, network(*layers), RunDirectory(tmp_path))

        return Finished(state, continued)

    return make


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_all_is_taken_over_if_only_numbers_and_training_images_change(finished: Callable[..., Finished]) -> None:
    state, continued = finished("optimizer=adam", "best_weights=true")
    images = dataset([*IMAGES, ("train", "e", "x"), ("test", "f", "y")])
    found = continued("optimizer.lr=1e-5", "optimizer.beta_1=0.5", "seed=7", "batch_size=3", images=images)
    assert_equal(found.variables, state.variables)
    assert_equal(found.best, state.best)
    assert found.stopping == COUNTERS and not found.stopped


@pytest.mark.parametrize("before, now", [
    ("adam", ["optimizer=adamw"]),  # whose variables have the same shapes
    ("sgd optimizer.momentum=0", ["optimizer.momentum=0.9"]),
    ("adam", ["optimizer.use_ema=true"]),
    ("adam", ["optimizer.gradient_accumulation_steps=2"]),
    ("sgd", ["optimizer.momentum=0", "optimizer.use_ema=true"]),  # as many, of the same shapes, but of another meaning
])  # fmt: skip
def test_the_optimizer_starts_anew_if_its_variables_are_others(
    before: str, now: list[str], finished: Callable[..., Finished]
) -> None:
    state, continued = finished(*f"optimizer={before}".split())
    found = continued(*now)
    assert_equal(found.variables, state.variables[:4])
    assert found.stopping == COUNTERS


@pytest.mark.parametrize("change, named", [
    ({"more": ["monitor=validation_accuracy"]}, "monitor"),
    ({"more": ["best_weights=false"]}, "best_weights"),
    ({"more": ["loss=mse"]}, "loss"),
    ({"images": dataset([*IMAGES, ("validation", "e", "x")])}, "validation images"),
    ({"images": dataset([*IMAGES[:3], ("validation", "d", "x")])}, "validation images"),
    ({"images": dataset(IMAGES, resize="crop")}, "data.resize or data.gray_range"),
])  # fmt: skip
def test_best_epoch_and_patience_begin_anew_if_scores_are_not_comparable(
    change: dict[str, Any], named: str, finished: Callable[..., Finished], caplog: pytest.LogCaptureFixture
) -> None:
    state, continued = finished("optimizer=adam", "best_weights=true")
    found = continued(*change.pop("more", []), **change)
    assert_equal(found.variables, state.variables)
    assert not found.best and not found.stopping and caplog.text.strip().endswith(f"has changed: {named}")


@pytest.mark.parametrize("more, images, first", [
    (["best_weights=true"], IMAGES, 2),  # the best weights before were not kept
    (["monitor=validation_accuracy"], IMAGES, 1),
    ([], [*IMAGES, ("train", "e", "x")], 1),
    ([], [*IMAGES, ("validation", "e", "x")], 2),
])  # fmt: skip
def test_the_best_epoch_is_one_that_could_be_chosen(
    more: list[str], images: Any, first: int, finished: Callable[..., Finished], config: Callable[..., Config],
    tmp_path: Path,
) -> None:  # fmt: skip
    finished()
    source = RunDirectory(tmp_path)
    source.write_facts({"command": {}, "first_candidate": 1})
    components: Any = SimpleNamespace(config=config(*more), continued=source)
    state = TrainingState([], history=(EpochRecord(0, "head", 0, 0, {}), EpochRecord(1, "head", 1, 0, {})))
    assert continuation.first_candidate(state, components, dataset(images)) == first


def test_the_patience_begins_anew_after_it_has_ended_the_finished_run(finished: Callable[..., Finished]) -> None:
    state, continued = finished("optimizer=adam", stopped=True)
    found = continued()
    assert found.stopping == {**COUNTERS, "wait": 0} and not found.stopped
    assert_equal(found.best, state.best)
    assert continued(state=dataclasses.replace(state, stopping={})).stopping == {}


def test_dropout_may_be_added_and_removed(finished: Callable[..., Finished]) -> None:
    state, continued = finished("optimizer=adam")
    found = continued(layers=[keras.layers.Dropout(0.5)])
    assert found.variables[2].dtype == "int64" and found.variables[2].shape == (2,), "the state of the dropout layer"
    assert_equal([*found.variables[:2], *found.variables[3:]], state.variables)
    assert_equal(continued(state=found).variables, state.variables)


def test_weights_of_another_network_are_refused(finished: Callable[..., Finished]) -> None:
    state, continued = finished("optimizer=adam")
    for values in (state.variables[:1], [np.ones((4, 2)), *state.variables[1:]]):
        with pytest.raises(ConfigError, match=r"continue: the trained weights do not fit this network, at .*: keep"):
            continued(state=dataclasses.replace(state, variables=values))


def test_frozen_weights_that_the_finished_run_did_not_have_are_refused(
    config: Callable[..., Config], finished: Callable[..., Finished], tmp_path: Path
) -> None:
    finished()
    source = RunDirectory(tmp_path)
    source.write_facts({"command": {}, "continued": "a-run", "state": None, "backbone_identity": "imagenet"})
    components: Any = SimpleNamespace(
        config=config("regime=bottleneck"), continued=source, regime=bottleneck,
        backbone=SimpleNamespace(identity="random"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"continue: the frozen weights are not those of a-run\. Allowed: its model"):
        continuation.write_first_checkpoint(components, dataset(IMAGES), Checkpoints(tmp_path / "checkpoints"))


def test_the_last_state_is_kept_up_to_a_size(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def saved() -> list[str]:
        return sorted(path.parent.relative_to(checkpoints.folder).as_posix() for path in tmp_path.rglob("meta.json"))

    records = tuple(EpochRecord(epoch, "head", epoch, 0, {}) for epoch in range(2))
    for phase in ("head", "finetune"):
        for epochs in (1, 2):
            checkpoints.save(phase, TrainingState([np.ones(9)], [], {}, False, records[:epochs]))
    assert len(saved()) == 4
    size = sum(path.stat().st_size for path in (checkpoints.folder / "finetune" / "00002").iterdir())
    keep_last(checkpoints.folder, "finetune", size)
    assert saved() == ["finetune/00002"]
    keep_last(checkpoints.folder, "finetune", size - 1)
    assert not checkpoints.folder.exists()
