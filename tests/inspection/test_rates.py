"""`inspect schedule` and `inspect lr`: the rates of the schedule, and those that a range test suggests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from benchmarks import learning_rates
from experiments.config.schema import Config
from experiments.data.input_pipeline import eval_batches, feature_batches
from experiments.inspection import lr, schedule
from experiments.regimes.build import build_phase
from experiments.system.progress import Terminal
from experiments.training.lr_finder import LRFinder, range_test
from experiments.training.types import PhaseInputs, TrainingPhase

Read = Callable[..., Config]
PROGRESS = Terminal(Console(quiet=True))


def test_the_schedule_is_what_a_run_has_logged(ended: Any, config: Read) -> None:
    phases = schedule.phases(config(*ended.overrides))
    reported = [(phase.name, rate) for phase in phases for rate in phase.highest]
    assert reported == [(row["phase"], float(row["learning_rate"])) for row in ended.curves]
    assert [phase.name for phase in phases] == ["head", "finetune"] and not any(phase.open for phase in phases)


@pytest.mark.parametrize("regime, names", [
    ("scratch", ["scratch"]), ("bottleneck", ["head"]), ("finetune", ["head", "finetune"])
])  # fmt: skip
def test_every_regime_has_its_phases(regime: str, names: list[str], config: Read) -> None:
    assert [phase.name for phase in schedule.phases(config(f"regime={regime}"))] == names


def test_another_runs_head_needs_no_phase(config: Read) -> None:
    read = config("regime=finetune", f"regime.head_from={'a' * 32}", "early_stopping=3")
    assert [phase.name for phase in schedule.phases(read)] == ["finetune"]
    printed = schedule.sentences(read, schedule.phases(read))
    assert any("early_stopping=3" in line for line in printed) and any("head_from" in line for line in printed)


def test_a_schedule_that_watches_the_run_is_between_two_lines(config: Read) -> None:
    read = config("regime=scratch", "schedule=plateau", "schedule.patience=2", "epochs=9", "optimizer.lr=0.01")
    (phase,) = schedule.phases(read)
    assert phase.open and set(phase.highest) == {0.01}
    assert phase.lowest == (0.01,) * 3 + (0.005,) * 2 + (0.0025,) * 2 + (0.00125,) * 2
    planned = build_phase(read, "optimizer")
    for seed in range(20):
        monitored = np.random.default_rng(seed).normal(size=9).tolist()
        rates = [planned.rate(epoch, monitored[:epoch]) for epoch in range(9)]
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
    phase = TrainingPhase(
        optimizer=functools.partial(keras.optimizers.SGD, 1.0), rate=lambda epoch, monitored: 1.0, epochs=1,
        loss=lambda classes: Bowl(), class_weights=None, monitor="validation_loss", early_stopping=None,
        best_weights=False, seed=0, xla=None,
    )  # fmt: skip
    batches = feature_batches([inputs], labels, batch_size=4, seed=0, epochs=range(10))
    prepared = PhaseInputs("head", model, batches, eval_batches(inputs, labels, 4), ("a", "b"))
    losses = np.array(range_test(prepared, phase, list(rates), PROGRESS)[0])
    assert losses[0] == pytest.approx(curvature / 2), "of one batch, not the mean of all"
    found = lr.suggest(rates, losses, guessing=curvature / 2)
    assert found.diverged is not None and 2 / curvature < found.diverged < 40 / curvature
    assert found.suggested is not None and 0.02 / curvature < found.suggested < 1 / curvature
    assert "55% of what it falls" in found.reason


RATES = np.geomspace(1e-6, 10, 100)
DECADES = np.log10(RATES)


def suggest(losses: Any, guessing: float = 1.0, trained: bool = False) -> lr.RangeTest:
    return lr.suggest(RATES, np.array(losses), guessing, trained)


def test_one_wrong_answer_of_a_head_that_fits_its_images_is_no_divergence() -> None:
    growing = LRFinder(RATES.tolist(), guessing=0.69, advance=lambda: None)
    growing.set_model(SimpleNamespace(stop_training=False))
    losses = np.where(np.arange(60) == 15, 0.5, 1e-4)
    for batch, loss in enumerate(losses):
        growing.on_train_batch_end(batch, {"loss": loss})
    assert not growing.model.stop_training
    found = suggest(growing.losses + np.geomspace(0.01, 3, 40).tolist(), guessing=0.69, trained=True)
    assert found.suggested is not None and RATES[50] / 10 <= found.suggested <= RATES[75] / 10
    growing.on_train_batch_end(60, {"loss": 9.0})
    assert growing.model.stop_training


def test_the_rate_that_made_up_losses_suggest() -> None:
    """Half of the fall of a logistic curve is in its middle, here at 1e-3."""
    fall, end = 1 / (1 + np.exp(4 * (DECADES + 3))), np.exp(5 * (DECADES - 0.0))
    assert suggest(fall + end).suggested == pytest.approx(1e-3, rel=0.5)
    for seed in range(20):  # noise at the left edge does not change the suggestion
        noise = np.random.default_rng(seed).normal(scale=0.1, size=100)
        assert 3e-4 <= (suggest(fall + end + noise).suggested or 0) <= 3e-3
        trained = suggest(0.3 + noise + end)  # the loss has no descent
        assert "tenth of where" in trained.reason and 0.005 < (trained.suggested or 0) < 0.1
        flat = suggest(0.3 + noise)
        untrained = suggest(np.log(2) + noise / 10 + end, guessing=np.log(2))
        assert untrained.suggested is None and "below that of guessing (0.69)" in untrained.reason
        unlike = suggest(1.6 - fall[::-1] + noise + end, guessing=0.69, trained=True)
        assert unlike.suggested is None and "although the head is trained" in unlike.reason
        assert flat.suggested is None and "neither falls nor rises" in flat.reason and "--batches 500" in flat.reason


@pytest.mark.parametrize("losses, advice", [
    ([], "not finite from the first batch"),
    (np.ones(5), "diverges after 5 batches, at 2e-06: begin lower (--from 2e-10)"),
    (1 - DECADES / 10, "still falls at the highest rate: go on higher (--to 1000)"),
    (
        1 / (1 + np.exp(9 * (DECADES + 5.8))) + np.exp(5 * DECADES),
        "falls from the lowest rates on: begin lower (--from 1e-09)",
    ),
    (0.5 * np.exp(9 * (DECADES[:40] + 5)), "rises from the lowest rates on: begin lower (--from 1e-09)"),
])  # fmt: skip
def test_losses_without_a_rate_have_the_reason_and_what_to_type(losses: Any, advice: str) -> None:
    found = suggest(losses)
    assert found.suggested is None and advice in found.reason


def test_a_configured_rate_far_from_the_suggestion_is_warned_of(config: Read) -> None:
    found = suggest(1 / (1 + np.exp(4 * (DECADES + 3))) + np.exp(5 * DECADES))
    assert found.suggested == 0.001

    def warning(rate: str) -> str:
        read = config(f"optimizer.lr={rate}")
        assert lr.draw(read, found).axes[0].get_xscale() == "log"
        return "".join(line for line in lr.sentences(read, found) if "WARNING" in line)

    assert [warning(rate) for rate in ("1e-4", "1e-3", "1e-2")] == [""] * 3
    assert warning("1e-5").endswith("100 times below the suggested one. To train with that: optimizer.lr=0.001")
    assert "50 times above the suggested one" in warning("0.05")
    highest = suggest(0.3 + np.exp(5 * DECADES))  # a lower rate may do as well
    assert highest.suggested is not None and 0.005 < highest.suggested < 0.02
    assert "WARNING" not in "".join(lr.sentences(config("optimizer.lr=1e-5"), highest))
    assert "above the suggested one" in "".join(lr.sentences(config("optimizer.lr=9"), highest))
    diverged = suggest(np.ones(5))
    assert "diverged at 2e-06, below the configured rate" in lr.sentences(config(), diverged)[-1]
    assert lr.draw(config(), suggest([])).axes


# --- recorded curves

CURVES = sorted(learning_rates.CURVES.glob("*.csv"))
BELOW_GUESSING = "does not get below that of guessing"
NONE = {  # curves without a suggestion, and a part of the reason
    "bottleneck-mobilenet-rmsprop-cats": BELOW_GUESSING,  # a test of 300 batches has a suggestion
    "scratch-batchnorm-adam-synthetic": BELOW_GUESSING,
    "scratch-batchnorm-sgd-cats": BELOW_GUESSING,
    "scratch-convnet-rmsprop-synthetic": BELOW_GUESSING,
    "scratch-convnet-sgd-synthetic": BELOW_GUESSING,
    "finetune-convnet-sgd-synthetic-augmented": "although the head is trained",
}


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_the_suggestion_trains_within_a_point_of_the_best_rate(path: Path) -> None:
    recorded = learning_rates.Recorded.read(path)
    guessing, trained = learning_rates.guessing(path.stem), path.stem.startswith("finetune")
    found = [lr.suggest(recorded.rates, losses, guessing, trained) for losses in recorded.losses.values()]
    assert len(found) == 3
    if path.stem in NONE:
        assert all(result.suggested is None and NONE[path.stem] in result.reason for result in found)
    else:
        lost = {result.suggested: recorded.lost(result.suggested) for result in found if result.suggested is not None}
        assert lost and all(result.suggested for result in found)
        assert max(lost.values()) <= 0.0105, lost


def test_at_least_twelve_curves_have_a_suggestion() -> None:
    assert len([path for path in CURVES if path.stem not in NONE]) >= 12
    assert NONE.keys() <= {path.stem for path in CURVES}


def test_where_training_hurts_no_rate_is_suggested() -> None:
    """The lowest rate, which changes nothing, is the best of the sweep."""
    recorded = learning_rates.Recorded.read(learning_rates.CURVES / "finetune-convnet-sgd-synthetic-augmented.csv")
    assert max(recorded.accuracies, key=lambda rate: recorded.accuracies[rate]) == min(recorded.accuracies)


@pytest.mark.parametrize("regime, kernels", [
    pytest.param("scratch", 5, marks=pytest.mark.slow), pytest.param("bottleneck", 2, marks=pytest.mark.slow),
    ("finetune", 3),
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
        moved = [variable for variable in self.trainable_variables if "kernel" in variable.path]
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
        assert "configured: optimizer.lr=0.001" in lr.sentences(read, found)
