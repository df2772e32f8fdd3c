"""`fit`: one record per epoch, random draws that depend on (seed, epoch) alone, and every setting of a phase."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from damage import flip_bit

from experiments.config import schema
from experiments.config.schema import Dense, Head
from experiments.data.input_pipeline import Batches, eval_batches, feature_batches
from experiments.errors import ConfigError
from experiments.models.head import dense_head
from experiments.regimes.build import build_phase
from experiments.training import checkpoints
from experiments.training.callbacks import EpochLogger, EpochSeeds
from experiments.training.checkpoints import Checkpoints, TrainingState
from experiments.training.fit import fit
from experiments.training.losses import build_loss
from experiments.training.types import EpochRecord, PhaseInputs, TrainingContext, TrainingPhase

COUNT, FEATURES = 20, 6
METRICS = {
    "loss", "total_loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds",
    "images_per_second", "input_wait",
}  # fmt: skip
TIMES = ("seconds", "images_per_second", "input_wait")


class Listener:
    """A progress display that counts."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.calls: list[int] = []  # steps in each
        self.records: list[EpochRecord] = []
        self.weights: list[list[np.ndarray]] = []  # as every epoch left them

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        self.stages.append((label, total))

        def advance(steps: int = 1, note: str = "") -> None:
            self.calls.append(steps)

        yield advance

    @property
    def steps(self) -> int:
        return sum(self.calls)


PHASE = TrainingPhase(
    optimizer=functools.partial(keras.optimizers.RMSprop, 0.02),
    rate=lambda epoch, monitored: 0.02,
    epochs=3,
    loss=functools.partial(build_loss, "cross_entropy", 0.0),
    class_weights=None,
    monitor="validation_loss",
    early_stopping=None,
    best_weights=False,
    seed=0,
    xla=None,
)


class Died(BaseException):
    pass


def data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that tell their class, and the labels."""
    labels = (np.arange(COUNT) % classes).astype("int32")
    rows = np.random.default_rng(0).normal(0, 0.3, (COUNT, FEATURES)).astype("float32")
    rows[np.arange(COUNT), labels] += 2
    return rows, labels


def train(
    classes: int = 2,
    first_step: int = 0,
    dropout: float = 0.5,
    batch_size: int = 8,
    shares: np.ndarray | None = None,
    checkpoints: Checkpoints | None = None,
    interrupted_at: int | None = None,
    images: bool = False,
    **phase: Any,
) -> tuple[tuple[EpochRecord, ...], keras.Model, Listener]:
    """A head trained by PHASE with some of it replaced; on `shares` of classes [COUNT, classes] where given.

    With `interrupted_at` the process "dies" when that epoch is recorded. With `images` the rows are those of
    plain images, and a convolution comes first.
    """
    trained = dataclasses.replace(PHASE, **phase)
    keras.utils.set_random_seed(7)
    head = Head(pooling="average", dropout=dropout, l1=0.0, l2=0.0, dense={"dense1": Dense(units=8)})
    model = dense_head(FEATURES, head, classes)
    rows, labels = data(classes)
    if images:
        rows = np.tile(rows[:, None, None], (1, 8, 8, 1))
        convolution = keras.layers.Conv2D(FEATURES, 3, padding="same")
        model = keras.Sequential([keras.Input(rows.shape[1:]), convolution, keras.layers.GlobalMaxPooling2D(), model])
    listener = Listener()

    def record(epoch: EpochRecord) -> None:
        listener.records.append(epoch)
        listener.weights.append(model.get_weights())
        if epoch.epoch == interrupted_at:
            raise Died

    context = TrainingContext(listener, record, checkpoints)
    epochs = context.remaining("head", trained.epochs)
    batches = feature_batches([rows], labels, batch_size=batch_size, seed=trained.seed, epochs=epochs)
    if shares is not None:
        mixed = tf.data.Dataset.from_tensors((rows, shares.astype("float32"))).repeat()
        batches = Batches(mixed, labels, COUNT)
    inputs = PhaseInputs(
        "head", model, batches, eval_batches(rows, labels, 8), tuple("abcdef"[:classes]), first_step=first_step
    )
    history = fit(inputs, trained, context)
    return history, model, listener


Trained = tuple[tuple[EpochRecord, ...], keras.Model, Listener]


@pytest.fixture(scope="module")
def usual() -> Trained:
    """A training by PHASE, the sixth epoch of a run its first, for tests that only look at it."""
    return train(first_step=5)


def test_one_record_an_epoch(usual: Trained) -> None:
    history, model, listener = usual
    assert [record.step for record in history] == [5, 6, 7]
    assert [record.epoch for record in history] == [0, 1, 2]
    assert {record.phase for record in history} == {"head"}
    assert tuple(listener.records) == history  # recorded in order
    for record in history:
        assert set(record.metrics) == METRICS
        assert all(type(value) is float and np.isfinite(value) for value in record.metrics.values())
        assert record.metrics["learning_rate"] == pytest.approx(0.02)
        assert record.metrics["seconds"] > 0 and record.metrics["images_per_second"] > 0
    assert [record.timestamp for record in history] == sorted(record.timestamp for record in history)
    assert listener.stages == [("head", 9)] and listener.steps == 9
    assert int(model.optimizer.iterations) == 9  # the small last batch counts


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_it_learns_and_the_recorded_scores_are_its_own(classes: int) -> None:
    history, model, _ = train(classes, epochs=8, rate=lambda epoch, monitored: 0.05)
    assert history[-1].metrics["validation_loss"] < history[0].metrics["validation_loss"] / 2
    assert history[-1].metrics["validation_accuracy"] >= 0.9
    rows, labels = data(classes)
    logits = np.asarray(model(rows), "float64")
    if classes == 2:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(COUNT), labels]).mean()
    assert history[-1].metrics["validation_loss"] == pytest.approx(loss, rel=1e-3)
    assert history[-1].metrics["validation_accuracy"] == pytest.approx((shares.argmax(axis=1) == labels).mean())


def test_the_time_that_training_waits_for_its_batches_is_recorded() -> None:
    def share(pause: float) -> float:
        rows, labels = data(2)

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for at in range(0, 10 * COUNT, COUNT):
                time.sleep(pause if at else 0)  # the first batch is ready before training needs it
                yield rows, labels

        spec = (tf.TensorSpec((None, FEATURES), tf.float32), tf.TensorSpec((None,), tf.int32))
        model = dense_head(FEATURES, Head(pooling="average", dropout=0.0, l1=0.0, l2=0.0, dense={}), 2)
        generated = Batches(tf.data.Dataset.from_generator(batches, output_signature=spec), labels, COUNT // 4)
        inputs = PhaseInputs("scratch", model, generated, eval_batches(rows, labels, COUNT), ("a", "b"))
        context = TrainingContext(Listener(), lambda record: None)
        history = fit(inputs, dataclasses.replace(PHASE, epochs=2), context)
        return history[1].metrics["input_wait"]  # the first epoch traces

    assert share(0.0) < 0.5 < share(0.1)


def test_an_epoch_in_one_call_trains_to_the_same_bits_as_steps_of_their_own(
    usual: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert usual[2].calls == [3, 0] * 3
    monkeypatch.setattr(Batches, "steps_per_execution", 1)
    one_by_one = train()
    assert one_by_one[2].calls == [1, 1, 1, 0] * 3
    assert_same(usual[1], one_by_one[1].get_weights())
    assert curve(usual[0], "validation_loss") == curve(one_by_one[0], "validation_loss")


def test_the_same_seed_trains_to_the_same_bits_and_another_does_not(usual: Trained) -> None:
    def outcome(trained: Trained) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
        history, model, _ = trained
        curves = [{name: value for name, value in epoch.metrics.items() if name not in TIMES} for epoch in history]
        return model.get_weights(), curves

    first, again, other = outcome(usual), outcome(train(seed=0)), outcome(train(seed=1))
    assert first[1] == again[1] != other[1]
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(first[0], other[0], strict=True))


def test_dropout_masks_follow_from_seed_and_epoch() -> None:
    inputs = keras.Input((64,))
    inner = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))  # nested, as backbones and heads are
    outer = keras.Input((64,))
    model = keras.Model(outer, [inner(outer), keras.layers.Dropout(0.5)(outer)])
    ones = np.ones((4, 64), "float32")

    def masks(epoch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        callback = EpochSeeds(seed)
        callback.set_model(model)
        callback.on_epoch_begin(epoch)
        first, second = model(ones, training=True)
        return np.asarray(first), np.asarray(second)

    third = masks(3)
    for epoch in (0, 1, 2):
        masks(epoch)
        model(ones, training=True)
    again = masks(3)
    np.testing.assert_array_equal(third[0], again[0])
    np.testing.assert_array_equal(third[1], again[1])
    assert np.any(third[0] != third[1])  # two layers, two masks
    assert np.any(third[0] != masks(4)[0])
    assert np.any(third[0] != masks(3, seed=1)[0])
    callback = EpochSeeds(0)
    callback.set_model(model)
    callback.on_epoch_begin(3)
    assert np.any(np.asarray(model(ones, training=True)[0]) != np.asarray(model(ones, training=True)[0]))


def test_a_shorter_training_is_the_beginning_of_a_longer_one(usual: Trained) -> None:
    long, short = usual[0], train(epochs=2)[0]
    for epoch, other in zip(long, short, strict=False):
        assert epoch.metrics["loss"] == other.metrics["loss"]
        assert epoch.metrics["validation_loss"] == other.metrics["validation_loss"]


# --- the settings of a training phase


def there_and_back(epoch: int, monitored: Any) -> float:
    """Three epochs downhill, then uphill: the third is the best."""
    return 0.02 if epoch < 3 else -0.02


def curve(history: tuple[EpochRecord, ...], name: str) -> list[float]:
    return [record.metrics[name] for record in history]


def assert_same(model: keras.Model, weights: list[np.ndarray], **tolerance: Any) -> None:
    for a, b in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0.0, "atol": 0.0} | tolerance))


def differ(model: keras.Model, weights: list[np.ndarray], by: float = 0.0) -> bool:
    return any(float(np.abs(a - b).max()) > by for a, b in zip(model.get_weights(), weights, strict=True))


def losses(model: keras.Model, classes: int, smoothing: float = 0.0) -> np.ndarray:
    """The cross entropy of every row, [COUNT] float64, computed from the logits."""
    rows, labels = data(classes)
    return cross_entropy(model, np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes, rows)


def cross_entropy(model: keras.Model, shares: np.ndarray, rows: np.ndarray) -> np.ndarray:
    logits = np.asarray(model(rows), "float64")
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return np.asarray(-(shares * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1))


def test_the_rate_is_what_the_optimizer_steps_by() -> None:
    _, model, listener = train(epochs=3, rate=lambda epoch, monitored: 0.02 if epoch == 2 else 0.0)
    first, second, _ = listener.weights
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert differ(model, second)


@pytest.mark.parametrize("monitor", [pytest.param("validation_loss", marks=pytest.mark.slow), "validation_accuracy"])
def test_the_schedule_is_called_with_the_monitored_values_so_far(monitor: str) -> None:
    asked: list[tuple[int, list[float]]] = []

    def rate(epoch: int, monitored: list[float]) -> float:
        asked.append((epoch, list(monitored)))
        return 0.02

    history, _, _ = train(rate=rate, monitor=monitor)
    sign = 1 if monitor == "validation_loss" else -1  # lower is better
    values = [sign * value for value in curve(history, monitor)]
    assert asked == [(0, []), (1, values[:1]), (2, values[:2])]


@pytest.fixture(scope="module")
def whole() -> Callable[[int], Trained]:
    """Eight epochs there and back with batches of a size, nothing stopped or brought back."""
    return functools.cache(lambda batch: train(rate=there_and_back, epochs=8, dropout=0.0, batch_size=batch))


@pytest.mark.parametrize("patience, epochs", [
    (1, 4), *(pytest.param(*given, marks=pytest.mark.slow) for given in ((4, 7), (9, 8))),
])  # fmt: skip
def test_early_stopping_ends_after_patience(
    patience: int, epochs: int, whole: Callable[[int], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tells of no epoch more, nor of another than a training that goes on has; its last one is always saved."""
    monkeypatch.setattr(Checkpoints, "due", False)
    history, model, listener = train(
        rate=there_and_back, epochs=8, dropout=0.0, early_stopping=patience, checkpoints=Checkpoints(tmp_path)
    )
    state = Checkpoints(tmp_path).latest("head")
    assert state is not None and state.history == history and state.stopped == (patience < 9)
    assert not Checkpoints(tmp_path).epochs("head", 8)
    full, _, on = whole(8)
    assert np.argmin(curve(full, "validation_loss")) == 2, "the third epoch must be the best"
    assert [record.epoch for record in history] == list(range(epochs))
    assert tuple(listener.records) == history and listener.steps == 3 * epochs
    assert curve(history, "validation_loss") == curve(full, "validation_loss")[:epochs]
    assert_same(model, on.weights[epochs - 1])  # the last epoch's, because best_weights is off


@pytest.mark.parametrize("early_stopping", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_best_weights_are_those_of_the_best_epoch(early_stopping: int | None, whole: Callable[[int], Trained]) -> None:
    history, model, _ = train(
        rate=there_and_back, epochs=6, best_weights=True, early_stopping=early_stopping, dropout=0.0
    )
    assert len(history) == (6 if early_stopping is None else 5)
    assert np.argmin(curve(history, "validation_loss")) == 2
    assert_same(model, whole(8)[2].weights[2])
    assert losses(model, 2).mean() == pytest.approx(min(curve(history, "validation_loss")), rel=1e-4)


def test_the_monitor_decides_what_is_best() -> None:
    """Accuracy is at its best before the loss is, by which the tests above stop; of equal epochs the first counts."""

    def rate(epoch: int, monitored: Any) -> float:
        return -0.02 if epoch == 0 else 0.02

    full, _, on = train(rate=rate, epochs=6, dropout=0.0)
    best = int(np.argmax(curve(full, "validation_accuracy")))
    assert 0 < best < int(np.argmin(curve(full, "validation_loss"))) - 1, "else this tells nothing"
    history, model, _ = train(
        rate=rate, epochs=6, dropout=0.0, best_weights=True, early_stopping=2, monitor="validation_accuracy"
    )
    assert len(history) == best + 3
    assert_same(model, on.weights[best])


MOMENTUM = 0.6
AVERAGED: dict[str, Any] = {
    "optimizer": functools.partial(keras.optimizers.RMSprop, 0.02, use_ema=True, ema_momentum=MOMENTUM),
    "rate": there_and_back, "batch_size": COUNT, "dropout": 0.0,
}  # fmt: skip


def averages(steps: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The averaged weights after every step, from the weights of a training without averaging."""
    means = [steps[0]]
    for step in steps[1:]:
        means.append([MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(means[-1], step, strict=True)])
    return means


def test_averaged_weights_are_validated_and_kept(whole: Callable[[int], Trained]) -> None:
    history, model, _ = train(**AVERAGED, epochs=6)
    plain, _, on = whole(COUNT)
    expected = averages(on.weights)[:6]
    assert_same(model, expected[-1], atol=1e-5)
    assert differ(model, on.weights[5], by=1e-3)
    np.testing.assert_allclose(curve(history, "loss"), curve(plain, "loss")[:6], rtol=1e-4)  # trains on as without
    seen = []
    for weights in expected:
        model.set_weights(weights)
        seen.append(losses(model, 2).mean())
    np.testing.assert_allclose(curve(history, "validation_loss"), seen, rtol=1e-4)


@pytest.mark.parametrize("early_stopping, best_weights", [
    *(pytest.param(1, best, marks=pytest.mark.slow) for best in (False, True)), (None, True),
])  # fmt: skip
def test_of_averaged_weights_the_last_or_the_best_are_kept(
    early_stopping: int | None, best_weights: bool, whole: Callable[[int], Trained]
) -> None:
    history, model, _ = train(**AVERAGED, epochs=8, best_weights=best_weights, early_stopping=early_stopping)
    seen = curve(history, "validation_loss")
    best = int(np.argmin(seen))
    assert len(history) == (8 if early_stopping is None else best + 2)
    assert 1 < best < len(history) - 1
    kept = best if best_weights else len(history) - 1
    assert_same(model, averages(whole(COUNT)[2].weights)[kept], atol=1e-5)
    assert losses(model, 2).mean() == pytest.approx(seen[kept], rel=1e-4)


ONE_STEP: dict[str, Any] = {"epochs": 1, "batch_size": COUNT, "dropout": 0.0}


@pytest.fixture(scope="module")
def fresh() -> Callable[[int], keras.Model]:
    """The model that every training of `classes` starts from."""
    return functools.cache(lambda classes: train(classes, **ONE_STEP, rate=lambda epoch, monitored: 0.0)[1])


@pytest.mark.parametrize("classes, setting, weights", [
    pytest.param(2, {"b": 3.0}, [1.0, 3.0], marks=pytest.mark.slow),
    (2, {"a": 0.25, "b": 2.0}, [0.25, 2.0]),
    pytest.param(3, {"c": 5.0, "a": 0.5}, [0.5, 1.0, 5.0], marks=pytest.mark.slow),
    (3, "balanced", [20 / 21, 20 / 21, 20 / 18]),  # 7, 7 and 6 rows
])  # fmt: skip
def test_class_weights_weigh_the_training_loss(
    classes: int, setting: Any, weights: list[float], fresh: Callable[[int], keras.Model]
) -> None:
    history, model, _ = train(classes, **ONE_STEP, class_weights=setting)
    each = losses(fresh(classes), classes)
    expected = (np.array(weights)[data(classes)[1]] * each).sum() / COUNT
    assert history[0].metrics["total_loss"] == pytest.approx(expected, rel=1e-5)
    assert history[0].metrics["loss"] == pytest.approx(each.mean(), rel=1e-5)
    assert abs(history[0].metrics["total_loss"] - each.mean()) > 1e-4
    unweighted = losses(model, classes).mean()
    assert history[0].metrics["validation_loss"] == pytest.approx(unweighted, rel=1e-4)  # validation is not weighted


@pytest.mark.parametrize("classes, weights", [
    (2, {"b": 3.0}), (3, {"c": 5.0, "a": 0.5}), pytest.param(3, None, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_mixed_image_weighs_its_shares_of_the_class_weights(
    classes: int, weights: Any, fresh: Callable[[int], keras.Model]
) -> None:
    shares = np.random.default_rng(3).dirichlet(np.ones(classes), COUNT)
    history, _, _ = train(classes, **ONE_STEP, class_weights=weights, shares=shares)
    each = cross_entropy(fresh(classes), shares, data(classes)[0])
    of_class = [(weights or {}).get(name, 1.0) for name in "abc"[:classes]]
    assert history[0].metrics["total_loss"] == pytest.approx(((shares @ of_class) * each).mean(), rel=1e-5)
    assert history[0].metrics["loss"] == pytest.approx(each.mean(), rel=1e-5)
    logits = np.asarray(fresh(classes)(data(classes)[0]))
    printed = logits[:, 0] > 0 if classes == 2 else logits.argmax(axis=1)
    assert history[0].metrics["accuracy"] == pytest.approx((printed == shares.argmax(axis=1)).mean())


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_label_smoothing_is_in_what_is_minimised_only(classes: int, fresh: Callable[[int], keras.Model]) -> None:
    smoothed = functools.partial(build_loss, "cross_entropy", 0.3)
    history, model, _ = train(classes, **ONE_STEP, loss=smoothed)
    assert history[0].metrics["total_loss"] == pytest.approx(losses(fresh(classes), classes, 0.3).mean(), rel=1e-5)
    assert history[0].metrics["loss"] == pytest.approx(losses(fresh(classes), classes).mean(), rel=1e-5)
    assert history[0].metrics["validation_loss"] == pytest.approx(losses(model, classes).mean(), rel=1e-4)
    _, plain, _ = train(classes, **ONE_STEP)
    assert differ(model, plain.get_weights())


@pytest.mark.parametrize("classes, name", [
    (3, "mse"), *(pytest.param(*given, marks=pytest.mark.slow) for given in ((2, "mse"), (2, "hinge"), (3, "hinge"))),
])  # fmt: skip
def test_every_loss_learns(name: str, classes: int) -> None:
    history, _, _ = train(classes, epochs=15, dropout=0.0, loss=functools.partial(build_loss, name, 0.0))
    assert history[-1].metrics["loss"] < history[0].metrics["loss"] / 2
    assert history[-1].metrics["accuracy"] == history[-1].metrics["validation_accuracy"] == 1


Read = Callable[..., schema.Config]


def step(config: Read, fresh: keras.Model, *overrides: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The weights before and after one step of plain gradient descent by 0.5, as the configuration says besides."""
    settings = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.5", *overrides)
    phase = build_phase(config(*settings), "optimizer")
    names = ("optimizer", "rate", "decay_bias_and_norm")
    _, model, _ = train(**ONE_STEP, **{name: getattr(phase, name) for name in names})
    return fresh.get_weights(), model.get_weights()


@pytest.mark.parametrize("phase, advice", [
    ("optimizer", "Lower optimizer.lr (now 0), set optimizer.clipnorm, or give schedule.warmup"),
    ("regime.head_optimizer", "Lower regime.head_optimizer.lr (now 0), or set regime.head_optimizer.clipnorm"),
])  # fmt: skip
def test_the_error_of_a_phase_that_diverges_names_the_keys_of_its_own_optimizer(
    phase: str, advice: str, config: Read
) -> None:
    """Whichever of its losses is not finite first."""
    inputs: Any = types.SimpleNamespace(name="head")
    logger = EpochLogger(inputs, build_phase(config(), phase), 1, None, lambda *_: None)
    finite = dict.fromkeys(("loss", "data_loss", "val_loss", "val_data_loss"), 1.0)
    for name in finite:
        with pytest.raises(ConfigError, match=f"{re.escape(advice)}$"):
            logger.on_epoch_end(0, {**finite, name: np.nan})


def test_gradients_are_clipped_as_configured(config: Read, fresh: Callable[[int], keras.Model]) -> None:
    start, free = step(config, fresh(2))
    _, clipped = step(config, fresh(2), "optimizer.clipnorm=0.01")
    for before, unclipped, after in zip(start, free, clipped, strict=True):
        gradient = (before - unclipped) / 0.5
        norm = np.linalg.norm(gradient)
        assert norm > 0.01, "else there is nothing to clip"
        np.testing.assert_allclose((before - after) / 0.5, gradient * 0.01 / norm, atol=1e-6)


def test_weights_decay_as_configured(
    config: Read, fresh: Callable[[int], keras.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "experiments.training.compiled_updates.LARGE", 1
    )  # so that every update is one of `compile_updates`
    model = fresh(2)
    for variable in model.trainable_variables:  # biases begin at 0, which no decay changes
        variable.assign_add(np.full(variable.shape, 0.5, "float32"))
    start = model.get_weights()
    rows, labels = data(2)
    decay = "optimizer.weight_decay=0.1"
    results = []
    for settings in (["optimizer.weight_decay=null"], [decay], [decay, "optimizer.decay_bias_and_norm=true"]):
        model.set_weights(start)
        given = config("optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.5", *settings)
        phase = build_phase(given, "optimizer")
        batches = feature_batches([rows], labels, batch_size=COUNT, seed=0, epochs=range(1))
        phase = dataclasses.replace(PHASE, epochs=1, **{
            name: getattr(phase, name) for name in ("optimizer", "rate", "decay_bias_and_norm")
        })  # fmt: skip
        inputs = PhaseInputs("head", model, batches, eval_batches(rows, labels, COUNT), ("a", "b"))
        fit(inputs, phase, TrainingContext(Listener(), lambda record: None))
        results.append(model.get_weights())
    without, *decayed = results
    for found, vectors in zip(decayed, (0.0, 0.1), strict=True):
        for variable, before, plain, after in zip(model.variables, start, without, found, strict=False):
            share = 0.1 if len(variable.shape) > 1 else vectors
            np.testing.assert_allclose(after, plain - 0.5 * share * before, atol=1e-6)


@pytest.mark.parametrize("overrides", [
    ("optimizer=sgd", "optimizer.momentum=0"),
    ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"),
    ("optimizer=sgd", "optimizer.momentum=1", "optimizer.clipnorm=1"),
    ("optimizer=rmsprop", "optimizer.momentum=0", "optimizer.rho=0"),
    ("optimizer=rmsprop", "optimizer.momentum=1", "optimizer.weight_decay=0", "optimizer.clipvalue=1"),
    ("optimizer=adamw", "optimizer.weight_decay=null"),
    ("optimizer=adamw", "optimizer.weight_decay=0", "optimizer.use_ema=true", "optimizer.ema_momentum=1"),
    ("optimizer=adam", "optimizer.lr=1", "optimizer.beta_1=0", "optimizer.use_ema=true", "optimizer.ema_momentum=0"),
    ("optimizer=adagrad", "optimizer.initial_accumulator_value=0", "optimizer.global_clipnorm=1"),
], ids=" ".join)  # fmt: skip
def test_numbers_at_their_bounds_train(overrides: tuple[str, ...], config: Read) -> None:
    phase = build_phase(config(*overrides), "optimizer")
    optimizer, weight = phase.optimizer(), keras.Variable([[1.0, 2.0]])
    assert not optimizer.weight_decay
    optimizer.apply([np.ones((1, 2), "float32")], [weight])
    assert np.isfinite(weight).all() and np.all(np.asarray(weight) < [[1.0, 2.0]])


@pytest.mark.parametrize("optimizer", [
    functools.partial(keras.optimizers.SGD, 0.5, clipnorm=0.05, weight_decay=0.1, loss_scale_factor=8.0),
    pytest.param(
        functools.partial(keras.optimizers.Adam, 0.05, use_ema=True, ema_momentum=0.5), marks=pytest.mark.slow
    ),
], ids=["sgd", "adam"])  # fmt: skip
def test_accumulated_gradients_that_are_left_over_make_a_step(optimizer: Callable[..., Any]) -> None:
    """Batches of 5 whose gradients are collected four at a time: an epoch of 20 rows in one step, as in one batch."""
    options: dict[str, Any] = {"dropout": 0.0, "rate": lambda epoch, monitored: 0.05}
    several = functools.partial(optimizer, gradient_accumulation_steps=4)
    _, whole, by_epoch = train(batch_size=20, epochs=2, optimizer=optimizer, **options)
    collected = train(batch_size=5, epochs=2, optimizer=several, **options)[1]
    assert_same(collected, whole.get_weights(), atol=1e-6)
    # Six would make a step, of which an epoch has four: the mean of these four is what is left over.
    fewer = functools.partial(optimizer, gradient_accumulation_steps=6)
    left_over = train(batch_size=5, epochs=1, optimizer=fewer, **options)[1]
    if not left_over.optimizer.use_ema:  # averages are taken after every batch
        assert_same(left_over, by_epoch.weights[0], atol=1e-6)
    assert int(left_over.optimizer.iterations) == 1
    assert all(not np.any(gathered) for gathered in left_over.optimizer._accumulated_gradients)


def test_gradients_are_left_over_in_the_optimizer_that_keras_wraps_for_half_precision() -> None:
    several = functools.partial(keras.optimizers.SGD, 0.05, gradient_accumulation_steps=6)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = train(batch_size=5, epochs=1, optimizer=several)[1]
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert int(model.optimizer.inner_optimizer.iterations) == 1


def test_gradients_that_early_stopping_leaves_over_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    sgd = functools.partial(keras.optimizers.SGD, 5.0, gradient_accumulation_steps=5)
    history, _, _ = train(epochs=9, optimizer=sgd, rate=there_and_back, early_stopping=1)
    assert len(history) * 3 % 5 and len(history) < 9, "or nothing is left over"
    assert f"last {len(history) * 3 % 5} batches made no step: 5 batches make one" in caplog.text


@pytest.mark.slow  # that it is configured is below
def test_xla_trains_to_the_same_losses() -> None:
    plain, interpreted, _ = train(3, xla=False, dropout=0.0)
    fused, compiled, _ = train(3, xla=True, dropout=0.0)
    assert compiled.jit_compile is True and interpreted.jit_compile is False
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(curve(fused, name), curve(plain, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("xla, only_cpus, serves", [
    (None, True, True), (False, True, False), (True, True, False), (None, False, False),
])  # fmt: skip
def test_xla_compiles_parts_where_nothing_is_configured_and_keras_leaves_it_off(
    xla: bool | None, only_cpus: bool, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[Any] = []
    convolutions: list[Any] = []

    def noted(model: keras.Model) -> nullcontext[None]:
        convolutions.append(model)
        return nullcontext()

    monkeypatch.setattr("experiments.training.fit.only_cpus", lambda: only_cpus)
    monkeypatch.setattr("experiments.training.fit.compile_updates", updates.append)
    monkeypatch.setattr("experiments.training.fit.faster_convolutions", noted)
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: None)
    _, model, _ = train(1, xla=xla)
    assert [updates, convolutions] == ([[model.optimizer], [model]] if serves else [[], []])
    assert xla is None or model.jit_compile is xla


@pytest.mark.slow  # the parts are in test_compiled_updates.py and tests/models/test_winograd.py
def test_parts_compiled_learn_the_same_and_resume_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.training.compiled_updates.LARGE", 100)  # the convolution's kernel
    monkeypatch.setattr("experiments.models.winograd.CHANNELS", 1)
    optimizer = functools.partial(keras.optimizers.Adam, 0.02, gradient_accumulation_steps=2)
    run = functools.partial(train, images=True, dropout=0.0, epochs=3, optimizer=optimizer)
    plain, interpreted, _ = run(xla=False)
    whole, compiled, _ = run()
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(curve(whole, name), curve(plain, name), rtol=1e-3)
    pairs = zip(compiled.get_weights(), interpreted.get_weights(), strict=True)
    assert any(not np.array_equal(weight, other) for weight, other in pairs), "else nothing was compiled"
    with pytest.raises(Died):
        run(checkpoints=Checkpoints(tmp_path, share=1), interrupted_at=1)
    _, resumed, _ = run(checkpoints=Checkpoints(tmp_path, share=1))
    for model, other in ((resumed, compiled), (resumed.optimizer, compiled.optimizer)):
        for weight, expected in zip(model.variables, other.variables, strict=True):
            np.testing.assert_array_equal(weight, expected)


# --- resuming


Outcome = tuple[list[Any], list[np.ndarray]]
RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "adam": {"optimizer": functools.partial(keras.optimizers.Adam, 0.02)},
    "momentum": {"optimizer": functools.partial(keras.optimizers.SGD, 0.02, momentum=0.9)},
    "averages": {"optimizer": functools.partial(keras.optimizers.RMSprop, 0.02, use_ema=True, ema_momentum=0.9)},
    "schedule": {"rate": lambda epoch, monitored: 0.02 / (1 + sum(monitored))},
    "best weights": {"best_weights": True},
    "patience": {
        "early_stopping": 2, "best_weights": True, "optimizer": functools.partial(keras.optimizers.SGD, 5.0),
        "rate": lambda epoch, monitored: 5.0,
    },
    "all at once": {
        "optimizer": functools.partial(
            keras.optimizers.Adam, 0.02, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=4
        ),
        "rate": lambda epoch, monitored: (0.02 if epoch < 3 else -0.02) / (1 + sum(monitored)), "epochs": 9,
        "best_weights": True, "early_stopping": 3,
    },
}  # fmt: skip


def resumable(name: str, **options: Any) -> tuple[Outcome, Listener]:
    """Six epochs of a phase; curves and variables, the optimizer's too."""
    phase = {"epochs": 6, "rate": lambda epoch, monitored: 0.05, **RESUMED[name]}
    history, model, listener = train(**phase, **options)
    curves = [{k: value for k, value in epoch.metrics.items() if k not in TIMES} for epoch in history]
    return (curves, [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]), listener


@pytest.fixture(scope="module")
def never_stopped() -> Callable[[str], Outcome]:
    return functools.cache(lambda name: resumable(name)[0])


# "all at once" has the states of the slow ones together, in one training.
APART = ("plain", "adam", "momentum", "averages", "schedule", "best weights")


@pytest.mark.parametrize("name, died", [
    *(pytest.param(name, [1, 3], marks=pytest.mark.slow) for name in APART),
    ("all at once", [0, 3, 5]), pytest.param("patience", [1, 3, 5], marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_training_that_is_resumed_ends_as_if_it_had_never_stopped(
    name: str, died: list[int], tmp_path: Path, never_stopped: Callable[[str], Outcome]
) -> None:
    curves, variables = never_stopped(name)
    for epoch in died:
        keras.utils.clear_session()
        try:
            resumable(name, checkpoints=Checkpoints(tmp_path, share=1), interrupted_at=epoch)
        except Died:
            pass
        else:
            assert len(curves) <= epoch, "only early stopping comes before it"
    found, listener = resumable(name, checkpoints=Checkpoints(tmp_path, share=1))
    assert found[0] == curves
    for weight, other in zip(found[1], variables, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert [record.epoch for record in listener.records] == list(range(len(curves))), "all are recorded again"
    if "early_stopping" in RESUMED[name]:
        assert len(curves) < RESUMED[name].get("epochs", 6), "or this tests nothing"


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    usual: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Died):
        train(checkpoints=Checkpoints(tmp_path, share=1), interrupted_at=1)
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["00001", "00002"]
    arrays = tmp_path / "head" / "00002" / "arrays.npz"
    flip_bit(arrays, arrays.stat().st_size // 2)
    checkpoints = Checkpoints(tmp_path, share=1)
    assert checkpoints.epochs("head", 3) == range(1, 3)
    assert str(arrays.parent) in caplog.text and "damaged" in caplog.text
    resumed = train(checkpoints=checkpoints)
    assert_same(resumed[1], usual[1].get_weights())


def test_saving_takes_no_more_than_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which an epoch takes a second and a checkpoint half a second, so one every five epochs."""
    save, rate, clock, saved = Checkpoints.save, PHASE.rate, [0.0], list[int]()

    def slow(self: Checkpoints, phase: str, state: TrainingState) -> None:
        saved.append(len(state.history))
        save(self, phase, dataclasses.replace(state, variables=Taking(state.variables, clock)))

    def ticking(epoch: int, monitored: Any) -> float:
        clock[0] += 1
        return rate(epoch, monitored)

    monkeypatch.setattr(Checkpoints, "save", slow)
    monkeypatch.setattr(checkpoints, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(Died):
        train(epochs=13, checkpoints=Checkpoints(tmp_path), interrupted_at=8, rate=ticking)
    assert saved == [1, 6]
    resumed = train(epochs=13, checkpoints=Checkpoints(tmp_path), rate=ticking)
    assert saved[2:] == [7, 12, 13], "the last one always"
    again = train(epochs=13, checkpoints=Checkpoints(tmp_path))
    assert_same(resumed[1], again[1].get_weights())


class Taking(list[np.ndarray]):
    """Arrays that take half a second to go through."""

    def __init__(self, arrays: Sequence[np.ndarray], clock: list[float]) -> None:
        super().__init__(arrays)
        self.clock = clock

    def __iter__(self) -> Iterator[np.ndarray]:
        self.clock[0] += 0.5
        return super().__iter__()
