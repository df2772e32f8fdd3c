"""Reports against hand-computed values and scikit-learn."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from experiments.data.types import Dataset, ImageRecord, ImageSet, Manifest
from experiments.evaluation.evaluate import IMAGE_METRICS, Report, evaluate, image_score
from experiments.evaluation.statistics import wilson
from experiments.runs.predictions import to_table
from experiments.storage.array_cache import Rows

PETS = ("cat", "dog")
FLOWERS = ("daisy", "rose", "tulip")
BY_HAND = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]  # true: cat, cat, dog, dog; right: first and last


def splits_of(classes: tuple[str, ...], validation: list[int], test: list[int] | None = None) -> Dataset:
    def images(split: str, labels: list[int]) -> ImageSet:
        entries = tuple(
            ImageRecord(f"{split}/{classes[label]}/{row}.jpg", 1, f"{row:064x}", 8, 8, "RGB", classes[label], split)
            for row, label in enumerate(labels)
        )
        return ImageSet(
            split, entries, np.array(labels, np.int32), 8, lambda: Rows([np.zeros((len(entries), 8, 8, 3), "uint8")])
        )

    return Dataset(
        classes=classes,
        train=images("train", [0]),
        validation=images("validation", validation),
        test=None if test is None else images("test", test),
        manifest=Manifest(Path("/data"), classes, ()),
        fingerprint="fingerprint",
    )


def random_scores(labels: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]
    return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), np.float32)


def random_report(classes: tuple[str, ...], count: int = 200) -> Report:
    labels = np.random.default_rng(0).integers(0, len(classes), count)
    scores = random_scores(labels, len(classes))
    return evaluate({"validation": scores}, splits_of(classes, labels.tolist()))["validation"]


def test_binary_metrics_by_hand() -> None:
    report = evaluate({"validation": np.array(BY_HAND)}, splits_of(PETS, [0, 0, 1, 1]))["validation"]
    low, high = wilson(2, 4)
    expected = {
        "accuracy": 0.5,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_baseline": 0.5,
        "loss": -(math.log(0.9) + math.log(0.2) + math.log(0.4) + math.log(0.7)) / 4,
        "precision": 0.5,  # dog is predicted twice, once correctly
        "recall": 0.5,  # two dogs, one found
        "f1": 0.5,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.5,
        "matthews": 0.0,
        "average_precision": 0.5 * 1 / 2 + 0.5 * 2 / 3,  # the dogs are found second and third
        "roc_auc": 0.5,  # of the 4 (cat, dog) pairs 2 are ordered rightly
        "brier": (0.1**2 + 0.8**2 + 0.6**2 + 0.3**2) / 4,
        # bins of 1/15: 0.9 right; 0.8 wrong; 0.6 wrong; 0.7 right; one image each
        "calibration_error": (0.1 + 0.8 + 0.6 + 0.3) / 4,
    }
    assert report.metrics == pytest.approx(expected, rel=1e-6)
    assert report.confusion.tolist() == [[1, 1], [1, 1]]
    assert report.split == "validation"


def test_binary_metrics_as_sklearn() -> None:
    labels = np.random.default_rng(1).integers(0, 2, 200)
    scores = random_scores(labels, 2).astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    metrics = evaluate({"validation": scores}, splits_of(PETS, labels.tolist()))["validation"].metrics
    predicted = scores.argmax(axis=1)
    assert metrics["brier"] == pytest.approx(brier_score_loss(labels, scores[:, 1]))
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert metrics["precision"] == pytest.approx(precision_score(labels, predicted))
    assert metrics["recall"] == pytest.approx(recall_score(labels, predicted))
    assert metrics["f1"] == pytest.approx(f1_score(labels, predicted))
    assert metrics["loss"] == pytest.approx(log_loss(labels, scores), rel=1e-5)


def test_multi_class_metrics_as_sklearn() -> None:
    labels = np.random.default_rng(4).integers(0, 7, 400)
    scores = random_scores(labels, 7).astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    predicted = scores.argmax(axis=1)
    report = evaluate({"validation": scores}, splits_of(tuple("abcdefg"), labels.tolist()))["validation"]
    metrics = report.metrics
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr", average="macro"))
    assert metrics["f1"] == metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["brier"] == pytest.approx(np.mean(np.sum((scores - np.eye(7)[labels]) ** 2, axis=1)))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert metrics["average_precision"] == pytest.approx(average_precision_score(np.eye(7)[labels], scores))
    assert metrics["top3_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=3))
    assert metrics["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert metrics["accuracy"] < metrics["top3_accuracy"] < metrics["top5_accuracy"] < 1
    assert report.confusion.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert report.confusion.trace() / 400 == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize("count, known", [(3, []), (4, ["top3_accuracy"]), (5, ["top3_accuracy"]),
                                          (6, ["top3_accuracy", "top5_accuracy"])])  # fmt: skip
def test_top_k_needs_more_classes_than_k(count: int, known: list[str]) -> None:
    labels = np.arange(count)
    dataset = splits_of(tuple("abcdef"[:count]), labels.tolist())
    metrics = evaluate({"validation": random_scores(labels, count)}, dataset)["validation"].metrics
    assert [name for name in metrics if name.startswith("top")] == known


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    report = evaluate({"validation": np.array([[0.1, 0.2, 0.7]])}, splits_of(FLOWERS, [0]))["validation"]
    assert report.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_predictions_keep_the_order_and_ids_of_the_images() -> None:
    dataset = splits_of(PETS, [0, 0, 1, 1])
    predictions = evaluate({"validation": np.array(BY_HAND)}, dataset)["validation"].predictions
    assert [row.path for row in predictions] == dataset.validation.ids
    assert [row.sha256 for row in predictions] == [entry.sha256 for entry in dataset.validation.entries]
    second = predictions[1]
    assert (second.label, second.predicted, second.correct) == ("cat", "dog", False)
    assert second.confidence == pytest.approx(0.8)
    assert second.probabilities == pytest.approx({"cat": 0.2, "dog": 0.8})


def test_the_table_has_a_column_per_class_and_a_row_per_image() -> None:
    table = to_table(
        evaluate({"validation": np.array(BY_HAND)}, splits_of(PETS, [0, 0, 1, 1]))["validation"].predictions
    )
    assert list(table) == ["path", "sha256", "label", "predicted", "correct", "confidence", "p_cat", "p_dog"]
    assert table["label"] == ["cat", "cat", "dog", "dog"]
    assert table["predicted"] == ["cat", "dog", "cat", "dog"]
    assert table["correct"] == [True, False, False, True]
    assert table["p_dog"] == pytest.approx([0.1, 0.8, 0.4, 0.7])
    assert all(type(value) in (str, bool, float) for column in table.values() for value in column)


def test_validation_always_test_when_scored_train_never() -> None:
    scores = np.array(BY_HAND)
    dataset = splits_of(PETS, [0, 0, 1, 1], test=[1, 1, 1, 0])
    assert list(evaluate({"train": np.ones((1, 2)), "validation": scores}, dataset)) == ["validation"]
    reports = evaluate({"test": scores, "validation": scores}, dataset)
    assert list(reports) == [report.split for report in reports.values()] == ["validation", "test"]
    assert [row.label for row in reports["test"].predictions] == ["dog", "dog", "dog", "cat"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("classes", "labels", "missing"),
    [
        (PETS, [0, 0, 0, 0], {"roc_auc", "recall", "average_precision"}),
        (PETS, [1, 1, 1, 1], {"roc_auc"}),
        (FLOWERS, [0, 0, 2, 2], {"roc_auc"}),
        (FLOWERS, [1], {"roc_auc"}),
    ],
)
def test_a_split_without_some_class_leaves_undefined_metrics_out(
    classes: tuple[str, ...], labels: list[int], missing: set[str]
) -> None:
    scores = random_scores(np.array(labels), len(classes), seed=5)
    scores[0] = np.eye(len(classes))[-1]  # the last class is predicted at least once
    metrics = evaluate({"validation": scores}, splits_of(classes, labels))["validation"].metrics
    everything = {
        "accuracy", "accuracy_low", "accuracy_high", "accuracy_baseline", "loss", "precision", "recall", "f1",
        "balanced_accuracy", "macro_f1", "matthews", "average_precision", "roc_auc", "brier", "calibration_error",
    }  # fmt: skip
    assert set(metrics) == everything - missing
    assert np.isfinite(list(metrics.values())).all()


def test_macro_averages_are_over_the_classes_that_occur() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    metrics = evaluate({"validation": scores}, splits_of(FLOWERS, [0, 0, 2, 2]))["validation"].metrics
    assert metrics["recall"] == pytest.approx((1 + 0.5) / 2)
    assert metrics["precision"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.filterwarnings("error")
def test_a_model_that_predicts_one_class_only_has_precision_and_recall_zero() -> None:
    metrics = evaluate({"validation": np.tile([0.9, 0.1], (4, 1))}, splits_of(PETS, [0, 0, 1, 1]))["validation"].metrics
    assert (metrics["precision"], metrics["recall"], metrics["f1"], metrics["roc_auc"]) == (0, 0, 0, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_certain_mistake_costs_a_finite_loss() -> None:
    metrics = evaluate({"validation": np.array([[1.0, 0.0]], np.float32)}, splits_of(PETS, [1]))["validation"].metrics
    assert metrics["loss"] == pytest.approx(-math.log(np.finfo(np.float32).eps))


@pytest.mark.filterwarnings("error")
def test_rows_that_rounding_left_off_one_are_rescaled() -> None:
    exact = np.array(BY_HAND)
    dataset = splits_of(PETS, [0, 0, 1, 1])
    expected, report = (evaluate({"validation": rows}, dataset)["validation"] for rows in (exact, exact * 1.0009))
    assert report.metrics == pytest.approx(dict(expected.metrics), rel=1e-6)
    assert sum(report.predictions[0].probabilities.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("classes", [PETS, FLOWERS])
def test_scores_that_only_rank_get_no_figure_that_judges_probabilities(classes: tuple[str, ...]) -> None:
    labels = np.arange(12) % len(classes)
    dataset = splits_of(classes, labels.tolist(), test=labels.tolist())
    scores = {split: random_scores(labels, len(classes), seed) for seed, split in enumerate(("validation", "test"))}
    whole, ranked = evaluate(scores, dataset), evaluate(scores, dataset, probabilities=False)
    assert list(ranked) == ["validation", "test"]
    for split in ranked:
        left_out = {"loss", "brier", "calibration_error"}
        assert left_out < set(whole[split].metrics)
        kept = {name: value for name, value in whole[split].metrics.items() if name not in left_out}
        assert ranked[split].metrics == kept and "roc_auc" in kept
        assert_array_equal(ranked[split].confusion, whole[split].confusion)
        assert ranked[split].predictions == whole[split].predictions


@pytest.mark.parametrize("classes", [PETS, FLOWERS])
def test_metrics_that_are_means_over_images_are_those_of_their_scores(classes: tuple[str, ...]) -> None:
    labels = np.arange(40) % len(classes)
    scores = random_scores(labels, len(classes))
    scores[0] = np.eye(len(classes))[1]  # a certain mistake
    report = evaluate({"validation": scores}, splits_of(classes, labels.tolist()))["validation"]
    for metric in IMAGE_METRICS:
        mean = np.mean([image_score(metric, row) for row in report.predictions])
        assert report.metrics[metric] == pytest.approx(mean, rel=1e-5)


def test_scores_are_left_as_they_were() -> None:
    scores = np.array(BY_HAND) * 1.0005
    before = scores.copy()
    evaluate({"validation": scores}, splits_of(PETS, [0, 0, 1, 1]))
    assert_array_equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (np.ones((3, 2)) / 2, r"validation: expected shape \(4, 2\).* Received: \(3, 2\)"),
        (np.ones((4, 1)), r"validation: expected shape \(4, 2\).* Received: \(4, 1\)"),
        (np.array([[0.5, 0.5]] * 3 + [[np.nan, 1.0]]), r"validation: expected finite .* 1 rows .* row 3: \[nan, 1.0\]"),
        (np.array([[0.5, 0.5]] * 3 + [[-0.5, 1.5]]), r"validation: expected finite values >= 0.* row 3"),
        (np.array([[0.5, 0.5]] * 2 + [[0.5, 0.6]] * 2), r"validation: .* sum to 1 .* 2 rows .* row 2 sums to 1.1"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(scores: np.ndarray, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        evaluate({"validation": scores}, splits_of(PETS, [0, 0, 1, 1]))


def test_all_faults_are_named_at_once() -> None:
    dataset = splits_of(PETS, [0, 0, 1, 1], test=[0, 1])
    with pytest.raises(ValueError, match=r"validation: .*\(4, 2\)[\s\S]*test: .*\(2, 2\)"):
        evaluate({"validation": np.ones((1, 2)), "test": np.ones((1, 2))}, dataset)
    with pytest.raises(ValueError, match=r"scores of validation. Received: \['holdout'\][\s\S]*Received: 'holdout'"):
        evaluate({"holdout": np.ones((1, 2))}, dataset)
    with pytest.raises(ValueError, match="no test split"):
        evaluate({"validation": np.array(BY_HAND), "test": np.ones((1, 2))}, splits_of(PETS, [0, 0, 1, 1]))
    with pytest.raises(ValueError, match="test: expected at least one image"):
        evaluate({"validation": np.array(BY_HAND), "test": np.ones((0, 2))}, splits_of(PETS, [0, 0, 1, 1], test=[]))
