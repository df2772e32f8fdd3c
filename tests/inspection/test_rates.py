"""Learning rates before a run: those of the schedule, and those that a range test suggests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from experiments.build import build_recipe
from experiments.data.pipeline import in_order, stored_batches
from experiments.fit import fit
from experiments.inspection import lr, schedule
from experiments.progress import Terminal
from experiments.schema import Config
from experiments.types import Recipe, Tried, Watch

Read = Callable[..., Config]
PROGRESS = Terminal(Console(quiet=True))


def test_the_schedule_is_what_a_run_has_logged(ended: Any, config: Read) -> None:
    phases = schedule.phases(config(*ended.overrides))
    told = [(phase.name, rate) for phase in phases for rate in phase.highest]
    assert told == [(row["phase"], float(row["learning_rate"])) for row in ended.curves]
    assert [phase.name for phase in phases] == ["head", "finetune"] and not any(phase.open for phase in phases)


@pytest.mark.parametrize("regime, names", [
    ("scratch", ["scratch"]), ("bottleneck", ["head"]), ("finetune", ["head", "finetune"])
])  # fmt: skip
def test_every_regime_has_its_phases(regime: str, names: list[str], config: Read) -> None:
    assert [phase.name for phase in schedule.phases(config(f"regime={regime}"))] == names


def test_another_runs_head_needs_no_phase(config: Read) -> None:
    read = config("regime=finetune", f"regime.head_from={'a' * 32}", "early_stopping=3")
    assert [phase.name for phase in schedule.phases(read)] == ["finetune"]
    said = schedule.sentences(read, schedule.phases(read))
    assert any("early_stopping=3" in line for line in said) and any("head_from" in line for line in said)


def test_a_schedule_that_watches_the_run_is_between_two_lines(config: Read) -> None:
    read = config("regime=scratch", "schedule=plateau", "schedule.patience=2", "epochs=9", "optimizer.lr=0.01")
    (phase,) = schedule.phases(read)
    assert phase.open and set(phase.highest) == {0.01}
    assert phase.lowest == (0.01,) * 3 + (0.005,) * 2 + (0.0025,) * 2 + (0.00125,) * 2
    recipe = build_recipe(read, "optimizer")
    for seed in range(20):
        monitored = np.random.default_rng(seed).normal(size=9).tolist()
        rates = [recipe.rate(epoch, monitored[:epoch]) for epoch in range(9)]
        within = zip(phase.lowest, rates, phase.highest, strict=True)
        assert all(low <= rate <= high for low, rate, high in within)
    assert "validation_loss" in schedule.sentences(read, [phase])[0]


class Bowl(keras.losses.Loss):
    """Half the mean square of the outputs."""

    def call(self, y_true: object, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.mean(keras.ops.square(y_pred), axis=-1) / 2


def test_a_range_test_stops_where_gradient_descent_is_known_to_diverge() -> None:
    """On the loss c w^2 / 2 it does so beyond a rate of 2 / c, and is fastest at 1 / c."""
    curvature = 100.0  # of inputs that are all 10
    inputs = np.full((64, 1), np.sqrt(curvature), "float32")
    labels = np.arange(64, dtype="int32") % 2
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    rates = np.geomspace(1e-6, 10, 100)
    recipe = Recipe(
        optimizer=functools.partial(keras.optimizers.SGD, 1.0), rate=lambda epoch, monitored: 1.0, epochs=1,
        loss=lambda classes: Bowl(), class_weights=None, monitor="validation_loss", early_stopping=None,
        best_weights=False, seed=0, xla=None, tried=list(rates),
    )  # fmt: skip
    batches = stored_batches([inputs], labels, batch_size=4, seed=0, epochs=range(10))
    with pytest.raises(Tried) as ended:
        fit(model, batches, in_order(inputs, labels, 4), recipe=recipe, classes=("a", "b"), phase="head",
            first_step=0, watch=Watch(PROGRESS, lambda _: None))  # fmt: skip
    losses = np.array(ended.value.losses)
    assert losses[0] == pytest.approx(curvature / 2), "of one batch, not the mean of all"
    found = lr.read(rates, losses)
    assert found.runaway is not None and 2 / curvature < found.runaway < 40 / curvature
    assert found.suggested is not None and 0.02 / curvature < found.suggested < 1 / curvature
    assert "falls fastest" in found.rule


def test_the_reading_of_made_up_losses() -> None:
    rates = np.geomspace(1e-6, 10, 100)
    decades = np.log10(rates)
    falling = 1 / (1 + np.exp(4 * (decades + 3))) + np.exp(5 * (decades - 0.0))  # falls fastest at 1e-3
    assert lr.read(rates, falling).suggested == pytest.approx(1e-3, rel=0.5)
    noise = np.random.default_rng(0).normal(scale=0.1, size=100)
    trained = lr.read(rates, 0.3 + noise + np.exp(5 * (decades - 0.0)))  # nothing to fall by
    assert trained.steepest is None and "tenth of where" in trained.rule
    assert trained.suggested is not None and 0.01 < trained.suggested < 0.2
    flat = lr.read(rates, 0.3 + noise)
    assert flat.suggested is None and "neither falls nor rises" in flat.rule
    few = lr.read(rates, np.ones(5))
    assert few.suggested is None and few.runaway == rates[5]


@pytest.mark.parametrize("regime, kernels", [
    ("scratch", 5), pytest.param("bottleneck", 2, marks=pytest.mark.slow), ("finetune", 3)
])  # fmt: skip
def test_the_real_training_is_tried_and_nothing_of_it_kept(
    regime: str, kernels: int, here: tuple[str, ...], config: Read, own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = config(*here, f"regime={regime}", "batch_size=8", "model.head.pooling=average", "regime.head_epochs=1",
                  "augmentation=light", "optimizer=adam", "model.weights=null", "epochs=50")  # fmt: skip
    rates = np.geomspace(1e-4, 1, 14)
    tried: list[tuple[str, int]] = []
    fitting = keras.Model.fit

    def listening(self: keras.Model, *arguments: object, **options: object) -> object:
        done = fitting(self, *arguments, **options)
        moved = [one for one in self.trainable_variables if "kernel" in one.path]
        tried.append((type(self.optimizer).__name__, len(moved)))
        return done

    monkeypatch.setattr(keras.Model, "fit", listening)
    found = lr.range_test(read, {}, rates, PROGRESS)
    assert tried[-1] == ("Adam", kernels), "the optimizer, and the layers, that the run would train"
    assert np.all(found.rates == rates[: len(found.losses)]) and len(found.losses) >= lr.LEAST
    heads = list(own_outputs.glob("cache/heads/*"))
    assert len(heads) == (regime == "finetune"), "only what the last phase starts from"
    if regime == "bottleneck":
        again = lr.range_test(read, {}, rates, PROGRESS)
        np.testing.assert_array_equal(again.losses, found.losses)
        assert "configured: optimizer.lr=0.001" in lr.sentences(read, found)[-1]
        assert lr.draw(read, found).axes[0].get_xscale() == "log"
