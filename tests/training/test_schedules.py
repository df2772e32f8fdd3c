"""Learning rates: those of Keras's own schedules and callback, as functions of the epoch and the past alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from experiments.config import schema
from experiments.config.identity import head_run
from experiments.data.input_pipeline import eval_batches, feature_batches
from experiments.regimes.build import build_phase
from experiments.system.progress import Terminal
from experiments.training import schedules
from experiments.training.fit import fit
from experiments.training.types import EpochRecord, PhaseInputs, TrainingContext, TrainingPhase

Read = Callable[..., schema.Config]


@pytest.mark.parametrize(
    "given, epochs, taken",
    [(0, 7, 0), (2, 7, 2), (0.1, 15, 1), (0.1, 9, 0), (0.5, 7, 3), (0.9, 1, 0), (0.58, 50, 29), (0.57, 50, 28)],
)
def test_a_warmup_below_one_is_a_share_of_the_epochs(given: float, epochs: int, taken: int) -> None:
    assert schedules.warmup_epochs(given, epochs) == taken


def curve(schedule: Callable[..., float], *, lr: float, epochs: int, warmup: int = 0) -> list[float]:
    """The rates of all epochs, the monitored value the same throughout."""
    return [
        schedules.rate(schedule, epoch, [1.0] * epoch, lr=lr, epochs=epochs, warmup=warmup) for epoch in range(epochs)
    ]


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("epochs, warmup", [(1, 0), (7, 0), (30, 0), (30, 5), (6, 5)])
def test_cosine_is_keras_s_stepped_by_epoch(epochs: int, warmup: int, final: float) -> None:
    lr = 0.02
    rise = {"warmup_target": lr, "warmup_steps": warmup} if warmup else {}
    reference = keras.optimizers.schedules.CosineDecay(lr / (warmup + 1), epochs - warmup, alpha=final, **rise)
    found = curve(functools.partial(schedules.cosine, final=final), lr=lr, epochs=epochs, warmup=warmup)
    np.testing.assert_allclose(found, [float(reference(epoch)) for epoch in range(epochs)], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("decay", [0.5, 0.95, 1.0])
def test_exponential_is_keras_s_stepped_by_epoch(decay: float) -> None:
    reference = keras.optimizers.schedules.ExponentialDecay(0.02, 1, decay)
    found = curve(functools.partial(schedules.exponential, decay=decay), lr=0.02, epochs=20)
    np.testing.assert_allclose(found, [float(reference(epoch)) for epoch in range(20)], rtol=1e-5)


def test_constant_is_constant() -> None:
    assert curve(schedules.constant, lr=0.3, epochs=4) == [0.3] * 4


def test_cosine_by_hand() -> None:
    found = curve(functools.partial(schedules.cosine, final=0.2), lr=10.0, epochs=4)
    np.testing.assert_allclose(found, [10, 2 + 8 * (1 + 0.5**0.5) / 2, 6, 2 + 8 * (1 - 0.5**0.5) / 2])


def test_warm_up_rises_in_equal_steps_to_the_schedule_s_first_rate() -> None:
    np.testing.assert_allclose(curve(schedules.constant, lr=8.0, epochs=6, warmup=3), [2, 4, 6, 8, 8, 8])
    halving = functools.partial(schedules.exponential, decay=0.5)
    np.testing.assert_allclose(curve(halving, lr=9.0, epochs=5, warmup=2), [3, 6, 9, 4.5, 2.25])


def test_a_plateau_does_not_count_the_warm_up() -> None:
    plateau = functools.partial(schedules.plateau, factor=0.5, patience=1, min_delta=0.0, cooldown=0, floor=0.0)
    values = [0.1, 0.2, 5.0, 5.0, 5.0, 4.0]  # the warm-up's are better than all that follow
    found = [schedules.rate(plateau, at, values[:at], lr=6.0, epochs=7, warmup=2) for at in range(7)]
    np.testing.assert_allclose(found, [2, 4, 6, 6, 3, 1.5, 1.5])


def keras_plateau(values: Sequence[float], lr: float, mode: str, **options: Any) -> list[float]:
    """The rate before every epoch and after the last, as Keras's callback sets it."""
    options["min_lr"] = options.pop("floor")
    callback = keras.callbacks.ReduceLROnPlateau(monitor="value", mode=mode, **options)
    optimizer = SimpleNamespace(learning_rate=np.float32(lr))
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    rates = [float(optimizer.learning_rate)]
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"value": value})
        optimizer.learning_rate = np.float32(optimizer.learning_rate)  # as an optimizer keeps it
        rates.append(float(optimizer.learning_rate))
    return rates


def test_plateau_is_keras_s_callback_on_random_values() -> None:
    lowered = stopped = rested = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "factor": float(rng.choice([0.1, 0.5, 0.9])),
            "patience": int(rng.integers(1, 5)),
            "min_delta": float(rng.choice([0.0, 1e-4, 0.25])),
            "cooldown": int(rng.integers(0, 4)),
            "floor": float(rng.choice([0.0, 1e-3, 0.05])),
        }
        values = (rng.integers(-6, 6, 25) / 4 - rng.choice([0, 0.1]) * np.arange(25)).tolist()  # many ties
        up = bool(seed % 2)
        expected = keras_plateau([-value for value in values] if up else values, 0.1, "max" if up else "min", **options)
        found = [schedules.plateau(schedules.Epoch(epoch, values[:epoch], 0.1, 26), **options) for epoch in range(26)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"seed {seed}: {options} {values}")
        lowered += len(set(found)) > 2
        stopped += options["floor"] > 0 and found[-1] == options["floor"]
        rested += options["cooldown"] > 0 and len(set(found)) > 2
    assert min(lowered, stopped, rested) > 20, "the sequences must reach every branch"


def test_a_rate_follows_from_the_past_alone() -> None:
    """Not from the calls before it: a resumed run sets the same rates."""
    plateau = functools.partial(schedules.plateau, factor=0.5, patience=2, min_delta=0.0, cooldown=1, floor=0.0)
    values = np.random.default_rng(0).integers(0, 4, 30).tolist()
    rate = functools.partial(schedules.rate, plateau, lr=1.0, epochs=30, warmup=3)
    forward = [rate(epoch, values[:epoch]) for epoch in range(30)]
    backward = [rate(epoch, values[:epoch]) for epoch in reversed(range(30))][::-1]
    assert forward == backward and len(set(forward[3:])) > 2


def trained(phase: TrainingPhase) -> tuple[EpochRecord, ...]:
    """The history of one dense layer on noise, trained in one phase."""
    rng = np.random.default_rng(1)
    rows, labels = rng.normal(size=(12, 3)).astype("float32"), (np.arange(12) % 2).astype("int32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    prepared = PhaseInputs(
        "scratch",
        keras.Model(inputs, keras.layers.Dense(1)(inputs)),
        feature_batches([rows[:6]], labels[:6], batch_size=6, seed=0, epochs=range(phase.epochs)),
        eval_batches(rows[6:], labels[6:], 6),
        ("a", "b"),
    )
    return fit(prepared, phase, TrainingContext(Terminal(Console(quiet=True)), lambda record: None))


def rates(history: tuple[EpochRecord, ...]) -> list[float]:
    return [record.metrics["learning_rate"] for record in history]


@pytest.mark.parametrize("overrides, expected", [
    (["schedule=constant", "schedule.warmup=3"], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]),
    (["schedule=cosine", "schedule.warmup=2"],
     [0.4 / 3, 0.8 / 3, 0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5]),
    (["schedule=cosine", "schedule.warmup=2", "schedule.final=0.5"],
     [0.4 / 3, 0.8 / 3, 0.4, 0.3 + 0.1 * 0.5**0.5, 0.3, 0.3 - 0.1 * 0.5**0.5]),
    (["schedule=exponential", "schedule.warmup=1", "schedule.decay=0.5"], [0.2, 0.4, 0.2, 0.1, 0.05, 0.025]),
    # Nothing is better by 10 than the first value after the warm-up.
    (["schedule=plateau", "schedule.warmup=1", "schedule.patience=1", "schedule.min_delta=10"],
     [0.2, 0.4, 0.4, 0.2, 0.1, 0.05]),
    (["schedule=plateau", "schedule.patience=1", "schedule.min_delta=10", "schedule.cooldown=2", "schedule.factor=0.1",
      "monitor=validation_accuracy"], [0.4, 0.4, 0.04, 0.04, 0.004, 0.004]),
    (["schedule=plateau", "schedule.patience=1", "schedule.min_delta=10", "schedule.floor=0.15"],
     [0.4, 0.4, 0.2, 0.15, 0.15, 0.15]),
])  # fmt: skip
def test_a_phase_has_the_rates_of_its_schedule(overrides: list[str], expected: list[float], config: Read) -> None:
    """That it trains at them, the tests below show."""
    phase = build_phase(config("optimizer=sgd", "optimizer.lr=0.4", "epochs=6", *overrides), "optimizer")
    values = [0.5, 0.4, 0.6, 0.3, 0.2]
    found = [phase.rate(epoch, values[:epoch]) for epoch in range(phase.epochs)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("monitor", [pytest.param("validation_loss", marks=pytest.mark.slow), "validation_accuracy"])
def test_a_run_s_plateau_is_keras_s_on_its_own_curve(monitor: str, config: Read) -> None:
    settings = ("schedule=plateau", "schedule.warmup=2", "schedule.patience=2", f"monitor={monitor}", "epochs=14",
                "optimizer=sgd", "optimizer.lr=20")  # fmt: skip
    history = trained(build_phase(config(*settings), "optimizer"))
    values = [record.metrics[monitor] for record in history]
    mode = "min" if monitor == "validation_loss" else "max"
    expected = keras_plateau(
        values[2:-1], 20, mode, factor=0.5, patience=2, min_delta=1e-4, cooldown=0, floor=0.0
    )  # fmt: skip
    np.testing.assert_allclose(rates(history), [20 / 3, 40 / 3, *expected], rtol=1e-6)
    assert len(set(expected)) > 2, "it must have lowered the rate"


def test_a_head_trains_at_a_constant_rate_whatever_fine_tuning_does(config: Read) -> None:
    read = config("regime=finetune", "schedule=cosine", "schedule.warmup=2", "regime.head_epochs=3",
                  "regime.head_optimizer.lr=0.25")  # fmt: skip
    assert rates(trained(build_phase(head_run(read), "regime.head_optimizer"))) == [0.25] * 3
