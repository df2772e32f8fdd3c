"""fit: one record an epoch, and random draws that follow from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest

from experiments.data.pipeline import in_order, stored_batches
from experiments.fit import EpochSeeds, fit
from experiments.models.head import dense_head
from experiments.schema import Dense, Head
from experiments.types import EpochRecord, Watch

COUNT, FEATURES = 20, 6
METRICS = {
    "loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds", "pictures_per_second"
}  # fmt: skip
TIMES = ("seconds", "pictures_per_second")


class Listener:
    """A progress display that counts."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps = 0
        self.records: list[EpochRecord] = []

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        self.stages.append((label, total))

        def advance(steps: int = 1, note: str = "") -> None:
            self.steps += steps

        yield advance


def train(
    classes: int = 2, epochs: int = 3, first_step: int = 0, seed: int = 0, dropout: float = 0.5
) -> tuple[tuple[EpochRecord, ...], keras.Model, Listener]:
    """A head trained on rows that tell their class."""
    keras.utils.set_random_seed(7)
    head = Head(pooling="average", dropout=dropout, l1=0.0, l2=0.0, dense={"dense1": Dense(units=8)})
    model = dense_head(FEATURES, head, classes)
    labels = (np.arange(COUNT) % classes).astype("int32")
    rows = np.random.default_rng(0).normal(0, 0.3, (COUNT, FEATURES)).astype("float32")
    rows[np.arange(COUNT), labels] += 2
    listener = Listener()
    history = fit(
        model,
        stored_batches([rows], labels, batch_size=8, seed=seed, epochs=range(epochs)),
        in_order(rows, labels, 8),
        optimizer=keras.optimizers.RMSprop(0.02),
        classes=classes,
        phase="head",
        epochs=epochs,
        first_step=first_step,
        seed=seed,
        watch=Watch(listener, listener.records.append),
    )
    return history, model, listener


def test_one_record_an_epoch() -> None:
    history, model, listener = train(first_step=5)
    assert [record.step for record in history] == [5, 6, 7]
    assert [record.epoch for record in history] == [0, 1, 2]
    assert {record.phase for record in history} == {"head"}
    assert tuple(listener.records) == history  # told as they came
    for record in history:
        assert set(record.metrics) == METRICS
        assert all(type(value) is float and np.isfinite(value) for value in record.metrics.values())
        assert record.metrics["learning_rate"] == pytest.approx(0.02)
        assert record.metrics["seconds"] > 0 and record.metrics["pictures_per_second"] > 0
    assert [record.timestamp for record in history] == sorted(record.timestamp for record in history)
    assert listener.stages == [("head", 9)] and listener.steps == 9
    assert int(model.optimizer.iterations) == 9  # the small last batch counts


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_and_scores_what_it_says(classes: int) -> None:
    history, model, _ = train(classes, epochs=15)
    assert history[-1].metrics["validation_loss"] < history[0].metrics["validation_loss"] / 2
    assert history[-1].metrics["validation_accuracy"] >= 0.9
    labels = np.arange(COUNT) % classes
    rows = np.random.default_rng(0).normal(0, 0.3, (COUNT, FEATURES)).astype("float32")
    rows[np.arange(COUNT), labels] += 2
    logits = np.asarray(model(rows), "float64")
    if classes == 2:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(COUNT), labels]).mean()
    assert history[-1].metrics["validation_loss"] == pytest.approx(loss, rel=1e-3)
    assert history[-1].metrics["validation_accuracy"] == pytest.approx((shares.argmax(axis=1) == labels).mean())


def test_the_same_seed_trains_to_the_same_bits_and_another_does_not() -> None:
    def outcome(seed: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
        history, model, _ = train(seed=seed)
        curves = [{name: value for name, value in one.metrics.items() if name not in TIMES} for one in history]
        return model.get_weights(), curves

    first, again, other = outcome(0), outcome(0), outcome(1)
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


def test_a_shorter_training_is_the_beginning_of_a_longer_one() -> None:
    long, short = train(epochs=3)[0], train(epochs=2)[0]
    for one, other in zip(long, short, strict=False):
        assert one.metrics["loss"] == other.metrics["loss"]
        assert one.metrics["validation_loss"] == other.metrics["validation_loss"]
