"""Scores of labels, by hand and on labels that were flipped."""

from __future__ import annotations

import numpy as np

from experiments.evaluation.label_quality import Doubt, LabelledImage, count_wrong, rank


def doubts_by_image(labels: np.ndarray, probabilities: np.ndarray) -> list[Doubt]:
    """Return the doubts of images in their given order; the classes are "0", "1", ..."""
    images = [
        LabelledImage(f"{n:03}", "", "validation", str(label), tuple(shares))
        for n, (label, shares) in enumerate(zip(labels, probabilities.tolist(), strict=True))
    ]
    found = rank(images, [str(label) for label in range(probabilities.shape[1])])
    assert [doubt.self_confidence for doubt in found] == sorted(doubt.self_confidence for doubt in found)
    return sorted(found, key=lambda doubt: doubt.image.path)


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.5, 0.1]])
    doubts = doubts_by_image(np.array([0, 0, 1, 1]), probabilities)
    np.testing.assert_allclose([doubt.self_confidence for doubt in doubts], [0.9, 0.3, 0.8, 0.5])
    np.testing.assert_allclose([doubt.margin for doubt in doubts], [0.8, -0.4, 0.6, 0.1])
    assert [(doubt.likely, doubt.probability) for doubt in doubts] == [("1", 0.1), ("1", 0.7), ("0", 0.2), ("0", 0.4)]
    # The thresholds are 0.6 and 0.65. The last image reaches neither, so it is not counted; no image has class 2.
    assert [doubt.probably_wrong for doubt in doubts] == [False, True, False, False]


def test_the_only_image_of_a_class_reaches_the_threshold_that_it_sets() -> None:
    """The thresholds are 0.3 and 0.6; the last image is above the first of them as well."""
    doubts = doubts_by_image(np.array([0, 0, 1]), np.array([[0.5, 0.5], [0.1, 0.9], [0.4, 0.6]]))
    assert [doubt.probably_wrong for doubt in doubts] == [False, True, False]


def test_flipped_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 400)
    logits = rng.normal(0, 1, (400, 5))
    logits[np.arange(400), true] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = true.copy()
    flipped = rng.choice(400, 20, replace=False)
    labels[flipped] = (true[flipped] + rng.integers(1, 5, 20)) % 5
    doubts = doubts_by_image(labels, probabilities)
    for score in ([doubt.self_confidence for doubt in doubts], [doubt.margin for doubt in doubts]):
        assert len(set(np.argsort(score)[:20]) & set(flipped)) >= 18
    assert all(doubts[at].probably_wrong for at in flipped[:5])
    assert np.mean([doubts[at].likely == str(true[at]) for at in flipped]) > 0.9


def test_doubts_of_a_model_that_has_learned_nothing_are_reported_to_mean_little() -> None:
    def labelled(share: float, split: str) -> list[LabelledImage]:
        """Return 20 images of two classes, whose labels the model gives this probability."""
        return [
            LabelledImage(f"{split}{n}", "", split, "ab"[n % 2], (1 - share, share) if n % 2 else (share, 1 - share))
            for n in range(20)
        ]

    def sentences(share: float) -> list[str]:
        """Return those on such validation images, beside training images that the model has learned by heart."""
        return count_wrong(rank(labelled(share, "validation") + labelled(1.0, "train"), ("a", "b")))

    assert sentences(0.9) == ["0 of 40 labels are probably wrong, as confident learning counts them"]
    assert (
        "held-out images 0.0 % are predicted correctly, not above always predicting 'a' (50.0 %)" in sentences(0.4)[1]
    )
