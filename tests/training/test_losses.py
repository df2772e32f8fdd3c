"""Losses, targets and class weights against values computed without Keras or by hand."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_sample_weight

from experiments.errors import ConfigError
from experiments.training.losses import accuracy, build_loss, class_weights, loss_of_guessing, reported_loss, targets

LN2 = math.log(2)
CASES = [("cross_entropy", 0.0), ("cross_entropy", 0.2), ("mse", 0.0), ("mse", 0.2), ("hinge", 0.0)]


def drawn(classes: int, soft: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shares of classes [9, classes] and logits [9, 1 or classes], float64."""
    rng = np.random.default_rng([seed, classes])
    shares = rng.dirichlet(np.ones(classes), 9) if soft else np.eye(classes)[rng.integers(0, classes, 9)]
    return shares, rng.normal(0, 3, (9, 1 if classes == 2 else classes))


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits [B, C]; of [B, 1] the two shares that its sigmoid gives."""
    both = np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits
    return np.asarray(np.exp(both) / np.exp(both).sum(axis=1, keepdims=True))


def by_hand(name: str, smoothing: float, shares: np.ndarray, logits: np.ndarray) -> float:
    classes = shares.shape[1]
    binary = classes == 2
    if name == "hinge":
        if binary:
            return float(np.maximum(0, 1 - (2 * shares[:, 1] - 1) * logits[:, 0]).mean())
        right = (shares * logits).sum(axis=1)
        wrong = ((1 - shares) * logits).max(axis=1)
        return float(np.maximum(0, 1 + wrong - right).mean())
    smoothed = (1 - smoothing) * shares + smoothing / classes
    rows = probabilities_of(logits)
    if name == "mse":
        squares = (smoothed - rows) ** 2
        return float(squares[:, 1].mean() if binary else squares.mean())
    return float(-(smoothed * np.log(rows)).sum(axis=1).mean())


def loss_of(name: str, smoothing: float, wanted: Any, logits: Any, classes: int) -> float:
    found = build_loss(name, smoothing, classes)(np.asarray(wanted, "float32"), np.asarray(logits, "float32"))
    assert keras.backend.is_float_dtype(found.dtype.name)
    return float(found)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "name, smoothing, soft",
    [(*case, False) for case in CASES] + [(*case, True) for case in CASES if case[0] != "hinge"],
)
def test_a_loss_is_that_of_its_name(name: str, smoothing: float, soft: bool, classes: int) -> None:
    """Of whole labels and, but for hinge, of shares of classes as MixUp makes them."""
    shares, logits = drawn(classes, soft)
    wanted = targets(tf.constant(shares, tf.float32), classes)
    assert loss_of(name, smoothing, wanted, logits, classes) == pytest.approx(
        by_hand(name, smoothing, shares, logits), rel=1e-5
    )


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_of_one_class_has_the_same_hinge(label: float) -> None:
    """Keras guesses from the values whether labels are {0, 1} or {-1, 1}; all ones could be either."""
    logits = np.array([[0.25], [-2.0], [3.0]])
    expected = np.maximum(0, 1 - (2 * label - 1) * logits).mean()
    assert loss_of("hinge", 0.0, np.full((3, 1), label), logits, 2) == pytest.approx(expected)


@pytest.mark.parametrize("name, smoothing, wanted, logits, expected", [
    ("cross_entropy", 0.0, [[1]], [[0]], LN2),
    ("cross_entropy", 0.0, [[1]], [[math.log(3)]], -math.log(0.75)),
    ("cross_entropy", 0.0, [[0]], [[math.log(3)]], -math.log(0.25)),
    ("cross_entropy", 0.2, [[1]], [[math.log(3)]], -0.9 * math.log(0.75) - 0.1 * math.log(0.25)),
    ("cross_entropy", 0.0, [[0.5]], [[math.log(3)]], -0.5 * math.log(0.75) - 0.5 * math.log(0.25)),
    ("cross_entropy", 0.0, [[0, 1, 0]], [[0, 0, 0]], math.log(3)),
    ("cross_entropy", 0.3, [[0, 1, 0]], [[0, LN2, 0]], -0.8 * math.log(0.5) - 0.2 * math.log(0.25)),
    ("mse", 0.0, [[1]], [[math.log(3)]], 0.25**2),
    ("mse", 0.5, [[1]], [[math.log(3)]], 0.0),  # the smoothed target is 0.75
    ("mse", 0.0, [[0, 1, 0]], [[0, LN2, 0]], (0.25**2 + 0.5**2 + 0.25**2) / 3),
    ("mse", 0.75, [[0, 1, 0]], [[0, LN2, 0]], 0.0),
    ("hinge", 0.0, [[1]], [[0.3]], 0.7),
    ("hinge", 0.0, [[0]], [[0.3]], 1.3),
    ("hinge", 0.0, [[1], [0]], [[2], [-3]], 0.0),
    ("hinge", 0.0, [[0, 1, 0]], [[0.5, 1.2, -3]], 0.3),
    ("hinge", 0.0, [[0, 1, 0]], [[0, 5, 0]], 0.0),
])  # fmt: skip
def test_losses_by_hand(name: str, smoothing: float, wanted: Any, logits: Any, expected: float) -> None:
    classes = max(2, len(wanted[0]))
    assert loss_of(name, smoothing, wanted, logits, classes) == pytest.approx(expected, abs=1e-6)


def test_a_loss_is_of_every_image_by_itself() -> None:
    """So that class weights can weigh them: [B], not one number."""
    for name, classes in (("cross_entropy", 2), ("mse", 2), ("hinge", 2), ("mse", 3), ("hinge", 3)):
        shares, logits = drawn(classes, soft=False)
        wanted = (shares[:, 1:] if classes == 2 else shares).astype("float32")
        each = build_loss(name, 0.0, classes).call(tf.constant(wanted), tf.constant(logits, tf.float32))
        assert each.shape == (9,)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name, smoothing", CASES)
def test_extreme_logits_have_finite_losses_and_gradients(name: str, smoothing: float, classes: int) -> None:
    rows = np.array([[1e4], [-1e4], [0]]) if classes == 2 else np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 0]])
    logits = tf.constant(rows, tf.float32)
    wanted = targets(tf.constant([0, 0, 1]), classes)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = build_loss(name, smoothing, classes)(wanted, logits)
    gradient = np.asarray(tape.gradient(value, logits))
    assert np.isfinite(float(value)) and np.isfinite(gradient).all()
    assert np.any(gradient[2] != 0)
    if name != "mse":  # whose gradient vanishes there
        wrong = 0 if classes == 2 else 1
        assert np.any(gradient[wrong] != 0), "a certain mistake is still corrected"


@pytest.mark.parametrize("classes", [2, 3])
def test_the_cross_entropy_of_the_curves_is_clipped_as_that_of_the_report(classes: int) -> None:
    rows = [[1e4], [-1e4], [0.5]] if classes == 2 else [[1e4, -1e4, 0], [-1e4, 1e4, 0], [0.1, 0.5, 0.2]]
    wanted, logits = targets(tf.constant([0, 0, 1]), classes), np.array(rows, "float32")
    found = reported_loss(build_loss("mse", 0.0, classes))(wanted, tf.constant(logits))
    right = probabilities_of(np.clip(logits, -99, 99).astype("float64"))[range(3), [0, 0, 1]]
    epsilon = np.finfo("float32").eps
    np.testing.assert_allclose(found, -np.log(np.clip(right, epsilon, 1 - epsilon)), rtol=1e-5)


def test_targets_of_labels_and_of_shares() -> None:
    labels = tf.constant([0, 1, 1], tf.int32)
    assert targets(labels, 2).numpy().tolist() == [[0], [1], [1]]
    assert targets(labels, 3).numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    shares = tf.constant([[0.25, 0.75], [1, 0]], tf.float32)
    assert targets(shares, 2).numpy().tolist() == [[0.75], [0]]
    three = tf.constant([[0.25, 0.5, 0.25]], tf.float32)
    assert targets(three, 3).numpy().tolist() == [[0.25, 0.5, 0.25]]
    assert {targets(given, classes).dtype for given, classes in ((labels, 2), (labels, 3), (shares, 2))} == {tf.float32}


@pytest.mark.parametrize("wanted, logits, hits", [
    ([[1], [0], [1], [0]], [[0.1], [0.1], [-5], [-5]], [1, 0, 0, 1]),
    ([[0.7], [0.3], [0.7], [0.3]], [[2], [2], [-2], [-2]], [1, 0, 0, 1]),
    ([[1], [0]], [[0], [0]], [0, 1]),  # undecided is class 0, as the first of equal probabilities
    ([[0, 0, 1], [1, 0, 0]], [[-3, -2, -1], [1, 2, 0]], [1, 0]),
    ([[0.2, 0.5, 0.3], [0.6, 0, 0.4]], [[0, 1, 0], [0, 0, 1]], [1, 0]),
])  # fmt: skip
def test_accuracy_is_of_the_largest_logit_and_the_largest_share(wanted: Any, logits: Any, hits: list[int]) -> None:
    found = accuracy(tf.constant(wanted, tf.float32), tf.constant(logits, tf.float32))
    assert found.numpy().tolist() == hits and found.dtype == tf.float32


def test_no_class_weights() -> None:
    assert class_weights(None, np.array([0, 1], "int32"), ("cats", "dogs")) is None


def test_balanced_class_weights() -> None:
    labels = np.array([2, 0, 0, 1, 0, 0, 1, 0, 0], "int32")
    weights = class_weights("balanced", labels, ("cats", "dogs", "owls"))
    assert weights is not None and weights.dtype == np.float32
    np.testing.assert_allclose(weights, [9 / (3 * 6), 9 / (3 * 2), 9 / (3 * 1)])
    np.testing.assert_allclose(weights[labels], compute_sample_weight("balanced", labels), rtol=1e-6)
    np.testing.assert_allclose(np.bincount(labels, weights[labels]), 3)  # every class weighs alike
    even = class_weights("balanced", np.array([0, 1, 1, 0], "int32"), ("cats", "dogs"))
    assert even is not None and even.tolist() == [1, 1]


def test_class_weights_by_name() -> None:
    labels = np.array([0, 1, 2], "int32")
    weights = class_weights({"owls": 2.5, "cats": 0.5}, labels, ("cats", "dogs", "owls"))
    assert weights is not None and weights.dtype == np.float32
    assert weights.tolist() == [0.5, 1.0, 2.5]


def test_class_weights_of_no_class_are_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        class_weights({"dgos": 2.0, "cats": 1.0, "birds": 3.0}, np.array([0, 1], "int32"), ("cats", "dogs"))
    assert str(raised.value) == (
        "class_weights: no class is called 'birds', 'dgos'. Allowed: cats, dogs, or balanced. "
        "Received: {'dgos': 2.0, 'cats': 1.0, 'birds': 3.0}"
    )


@pytest.mark.parametrize("name, counts, setting, expected", [
    ("cross_entropy", (10, 10), None, math.log(2)),
    ("cross_entropy", (190, 10), None, -0.95 * math.log(0.95) - 0.05 * math.log(0.05)),
    ("cross_entropy", (190, 10), "balanced", math.log(2)),
    ("cross_entropy", (5,) * 17, None, math.log(17)),
    ("cross_entropy", (30, 10, 10), "balanced", math.log(3)),
    ("mse", (10, 10), None, 0.25),
    ("hinge", (10, 10), None, 1.0),
    ("hinge", (10, 10, 10), None, 1.0),
])  # fmt: skip
def test_the_loss_of_predicting_the_class_frequencies(
    name: str, counts: tuple[int, ...], setting: str | None, expected: float
) -> None:
    labels = np.repeat(np.arange(len(counts), dtype="int32"), counts)
    weights = class_weights(setting, labels, [str(number) for number in range(len(counts))])
    loss = build_loss(name, 0.0, len(counts))
    assert loss_of_guessing(loss, labels, weights, len(counts)) == pytest.approx(expected, rel=1e-5)
