"""Scores of labels, by hand and on labels that were flipped."""

from __future__ import annotations

import numpy as np

from experiments.evaluation.label_quality import Labelled, count_wrong, label_quality, rank


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.5, 0.1]])
    quality = label_quality(np.array([0, 0, 1, 1]), probabilities)
    np.testing.assert_allclose(quality.self_confidence, [0.9, 0.3, 0.8, 0.5])
    np.testing.assert_allclose(quality.margin, [0.8, -0.4, 0.6, 0.1])
    assert quality.likely.tolist() == [1, 1, 0, 0]
    # The thresholds are 0.6 and 0.65. The last image reaches neither, so it is not counted; no image has class 2.
    assert quality.probably_wrong.tolist() == [False, True, False, False]


def test_flipped_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 400)
    logits = rng.normal(0, 1, (400, 5))
    logits[np.arange(400), true] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = true.copy()
    flipped = rng.choice(400, 20, replace=False)
    labels[flipped] = (true[flipped] + rng.integers(1, 5, 20)) % 5
    quality = label_quality(labels, probabilities)
    for score in (quality.self_confidence, quality.margin):
        assert len(set(np.argsort(score)[:20]) & set(flipped)) >= 18
    assert set(flipped[:5]) <= set(np.flatnonzero(quality.probably_wrong))
    assert (quality.likely[flipped] == true[flipped]).mean() > 0.9


def test_doubts_of_a_model_that_has_learned_nothing_are_said_to_mean_little() -> None:
    def sentences(share: float) -> list[str]:
        """Return those on 20 images of two classes, whose labels the model gives this probability."""
        images = [
            Labelled(f"{n}", "", "validation", "ab"[n % 2], (1 - share, share) if n % 2 else (share, 1 - share), True)
            for n in range(20)
        ]
        return count_wrong(rank(images, ("a", "b")))

    assert sentences(0.9) == ["0 of 20 labels are probably wrong, as confident learning counts them"]
    assert "0.0 % are predicted correctly, not above always predicting 'a' (50.0 %)" in sentences(0.4)[1]
