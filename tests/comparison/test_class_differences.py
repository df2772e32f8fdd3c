"""Comparison of runs by class: differences in recall, precision, F1, and the pairs of classes that are confused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from experiments.comparison import class_differences as by_class
from experiments.comparison.class_differences import compare_classes
from experiments.comparison.comparison import Comparison, EvaluatedRun, Group, disagreements, of_groups
from experiments.comparison.significance import tango
from experiments.comparison.text import metric_tables, paired_table, sentences
from experiments.evaluation.statistics import wilson
from experiments.runs.predictions import Prediction
from experiments.tracking.queries import RunFacts

FLOWERS = ("daisy", "rose", "tulip")
LABELS = ("daisy",) * 10 + ("rose",) * 6 + ("tulip",)
# Of ten daisies, the first finds 9, the second 5 of the same; the others they call tulips.
FIRST = ("daisy",) * 9 + ("tulip",) + ("rose",) * 6 + ("daisy",)
SECOND = ("daisy",) * 5 + ("tulip",) * 5 + ("rose",) * 5 + ("daisy",) + ("tulip",)


def evaluated(
    name: str, predicted: Sequence[str], seed: int = 0, tags: Mapping[str, str] | None = None,
    classes: Sequence[str] = FLOWERS, probabilities: bool = True, labels: Sequence[str] = LABELS,
) -> EvaluatedRun:  # fmt: skip
    predictions = {}
    for at, (label, found) in enumerate(zip(labels, predicted, strict=True)):
        shares = {other: float(other == found) for other in classes} if probabilities else {}
        predictions[str(at), label] = Prediction(f"{at}.jpg", str(at), label, found, 1.0, found == label, shares)
    facts = RunFacts(f"{name}{seed}", name, {"name": name, "seed": str(seed)}, {}, dict(tags or {}), "1", "")
    return EvaluatedRun(facts, predictions)


def comparison(*groups: Sequence[EvaluatedRun]) -> Comparison:
    params = [{key: value for key, value in runs[0].facts.params.items() if key != "seed"} for runs in groups]
    return of_groups([Group(named, tuple(runs)) for named, runs in zip(params, groups, strict=True)], "validation")


@pytest.fixture(scope="module")
def two() -> Comparison:
    return comparison([evaluated("a", FIRST)], [evaluated("b", SECOND)])


def test_the_difference_of_a_class_is_that_on_its_images(two: Comparison) -> None:
    found = compare_classes(two)
    assert found.names == FLOWERS
    first, second = found.results[0]
    assert (first.images, first.difference) == (10, None)
    assert first.recall == (0.9, *wilson(9, 10)) and second.recall == (0.5, *wilson(5, 10))
    assert second.difference is not None
    assert second.difference.value == pytest.approx(-0.4) and second.difference.images == 10
    assert (second.difference.low, second.difference.high) == pytest.approx(tango(0, 4, 10))
    assert (first.precision, second.precision) == (9 / 10, 5 / 6)
    assert (first.f1, second.f1) == (18 / 20, 10 / 16)


def test_the_counts_of_images_are_in_the_order_of_numbers() -> None:
    groups = [[evaluated(str(count), LABELS[:count], labels=LABELS[:count])] for count in (10, 9, 17)]
    assert (comparison(groups[0]).image_count, comparison(*groups).image_count) == ("10", "9 to 17")


def test_groups_disagree_where_half_of_the_seeds_of_one_are_right_and_all_of_the_other() -> None:
    both = comparison(*([evaluated(name, LABELS), evaluated(name, found, seed=1)]
                        for name, found in (("a", LABELS), ("b", FIRST))))  # fmt: skip
    assert [image.path for image in disagreements(both)] == ["16.jpg", "9.jpg"], "the two that FIRST has wrong"


def test_an_image_on_which_a_seed_was_not_evaluated_has_no_prediction_of_the_group() -> None:
    second = evaluated("a", LABELS, seed=1)
    fewer = replace(second, predictions=dict(list(second.predictions.items())[1:]))
    (group,) = comparison([evaluated("a", LABELS), fewer]).groups
    assert group.predict(("0", "daisy")) is None and ("0", "daisy") not in group.images
    assert group.predict(("1", "daisy")) == ("daisy", 1.0, 1.0)


def test_a_single_image_has_no_interval_and_no_difference(two: Comparison) -> None:
    first, second = compare_classes(two).results[2]
    assert (first.recall.value, second.recall.value, second.images) == (0, 1, 1)
    assert math.isnan(second.recall.low) and second.difference is None
    assert first.f1 == 0


def test_seeds_are_averaged_and_give_a_claim_about_the_setting() -> None:
    found = compare_classes(
        comparison(
            [evaluated("a", FIRST), evaluated("a", LABELS, seed=1)],
            [evaluated("b", SECOND), evaluated("b", SECOND, seed=1)],
        )
    )
    first, second = found.results[0]
    assert first.recall.value == pytest.approx(0.95)
    assert second.difference and second.difference.about_setting
    assert second.difference.value == pytest.approx(-0.45)
    assert found.confusion[0][0].tolist() == [9.5, 0, 0.5]
    assert found.share(1, (0, 2)) == 0.5


def test_pairs_with_the_largest_difference_come_first(two: Comparison) -> None:
    found = compare_classes(two)
    assert found.pairs == [(0, 2), (1, 0), (2, 0)]
    table = by_class.confusion_table(found)
    assert table[0] == ["true → predicted", "1", "2"]
    assert table[1] == ["daisy → tulip", "1 (10.0%)", "5 (50.0%) +40.0"]
    assert len(by_class.confusion_table(found, 1)) == 2


def test_the_tables_have_intervals_and_differences(two: Comparison) -> None:
    found = compare_classes(two)
    header, daisy, *_ = by_class.class_table(found)
    assert header[2:5] == ["recall 1", "recall 2", "2 from first"]
    assert header[5:] == ["precision 1", "precision 2", "F1 1", "F1 2"]
    assert daisy[:4] == ["daisy", "10", "90.0% [59.6, 98.2]", "50.0% [23.7, 76.3]"]
    assert daisy[4].startswith("-40.0 [") and daisy[5:] == ["90.0%", "83.3%", "0.900", "0.625"]
    brief = by_class.brief_class_table(found)
    assert brief[0] == ["class", "images", "1", "2", "from first"] and brief[1][:4] == ["daisy", "10", "90.0%", "50.0%"]
    assert brief[3] == ["tulip", "1", "0.0%", "100.0%", "–"]


def test_of_many_groups_an_asterisk_marks_significant_differences() -> None:
    runs = [evaluated("a", LABELS), evaluated("b", ("tulip",) * 10 + LABELS[10:]), evaluated("c", FIRST)]
    made = comparison(*([run] for run in runs))
    header, daisy, *_ = by_class.brief_class_table(compare_classes(made))
    assert header == ["class", "images", "1", "2", "3"] and daisy == ["daisy", "10", "100.0%", "0.0%*", "90.0%"]


def test_of_many_classes_those_that_differ_most_are_shown() -> None:
    classes = [f"c{at:02}" for at in range(50)]
    labels = [name for name in classes for _ in range(2)]
    other = labels.copy()
    other[60] = other[61] = "c00"  # both images of c30
    runs = [evaluated(name, row, classes=classes, labels=labels) for name, row in (("a", labels), ("b", other))]
    made = comparison(*([run] for run in runs))
    found = compare_classes(made)
    assert 30 in found.largest(1) and len(by_class.class_table(found)) == 41
    assert by_class.shown_of(found, 10) == ": the 10 of 50 with the largest differences"
    rows = by_class.class_rows(found)
    assert len(rows) == 100 and rows[61]["recall_difference"] == -1


def test_csv_files_hold_every_class_and_pair_as_numbers(two: Comparison) -> None:
    found = compare_classes(two)
    classes = by_class.class_rows(found)
    assert [(row["class"], row["number"]) for row in classes] == [(name, at) for name in FLOWERS for at in (1, 2)]
    assert classes[1]["recall_difference"] == pytest.approx(-0.4) and classes[0]["p_value"] is None
    assert (classes[1]["difference_low"], classes[1]["difference_high"]) == pytest.approx(tango(0, 4, 10))
    assert paired_table(two)[1][1:3] == ["two models", "17 images"]
    assert by_class.confusion_rows(found)[1] == {
        "true": "daisy", "predicted": "tulip", "number": 2, "label": "name=b", "images": 5.0, "share": 0.5,
        "share_difference": pytest.approx(0.4),
    }  # fmt: skip


def test_old_records_without_probabilities_have_the_classes_that_occur() -> None:
    made = comparison([evaluated("a", FIRST, probabilities=False)], [evaluated("b", SECOND)])
    found = compare_classes(made)
    assert found.names == FLOWERS and found.results[0][1].difference is not None
    assert by_class.decision_sentence(made) == ""


def test_accuracies_of_other_classes_are_called_those_of_different_tasks() -> None:
    fewer = evaluated("b", SECOND[:16], labels=LABELS[:16], classes=FLOWERS[:2])
    reordered = evaluated("c", FIRST, classes=FLOWERS[::-1])
    old = evaluated("d", FIRST, probabilities=False)
    first = [evaluated("a", FIRST)]
    found = [text for text in sentences(comparison(first, [fewer], [reordered], [old])) if "different tasks" in text]
    assert len(found) == 1 and found[0].startswith("Row 2: other classes than in row 1. ")
    assert "different tasks" not in " ".join(sentences(comparison(first, [reordered], [old])))


def test_the_positive_class_is_named() -> None:
    labels, classes = ("cat",) * 3 + ("dog",) * 3, ("cat", "dog")
    old = evaluated("old", labels, labels=labels, classes=classes)  # of version 0.1, without tags
    tags = {"positive": "dog", "threshold": "0.25"}
    chosen = evaluated("new", labels, tags=tags, labels=labels, classes=classes)
    text = "Precision, recall, F1, ROC AUC and average precision are of the positive class: 'dog'"
    assert by_class.decision_sentence(comparison([old])) == f"{text}."
    assert by_class.decision_sentence(comparison([old], [chosen])) == (
        f"{text}; the threshold of some runs from which it is predicted: 0.25."
    )
    other = replace(chosen, facts=replace(chosen.facts, tags={"positive": "cat"}))
    assert "'dog' or 'cat', which differs between the rows." in by_class.decision_sentence(comparison([old], [other]))


def test_metrics_are_tables_of_a_few_columns_and_equal_columns_are_shown_once() -> None:
    metrics = {"loss": 0.5, "recall": 0.75, "balanced_accuracy": 0.75, "precision": 0.8, "f1": 0.7, "macro_f1": 0.7,
               "roc_auc": 0.9, "brier": 0.3, "calibration_error": 0.1, "matthews": -0.2}  # fmt: skip
    run = evaluated("a", FIRST)
    named = {f"validation.{name}": value for name, value in metrics.items()}
    run = replace(run, facts=replace(run.facts, metrics=named))
    first, second = metric_tables(comparison([run]))
    assert first[0] == ["run", "loss ↓", "ROC AUC ↑", "precision ↑", "recall ↑", "F1 ↑", "Brier score ↓"]
    assert second[0] == ["run", "calibration error ↓", "Matthews correlation ↑"]
    assert second[1][1:] == ["0.100", "-0.200"]


def test_shares_that_are_equal_but_for_floating_point_error_do_not_differ() -> None:
    options: Any = {"classes": "abcd", "labels": "b" * 10}
    several = [
        evaluated("a", found, seed, **options) for seed, found in enumerate(("abbbbbbbbd", "cbbbbbbbbd", "bbbbbbbbbd"))
    ]
    both = comparison(several, [evaluated("b", "bbbbbbbbbd", **options)])
    found = compare_classes(both)
    assert 0.1 != found.share(0, (1, 3)) == pytest.approx(0.1)
    (row,) = (row for row in by_class.confusion_table(found) if row[0] == "b → d")
    assert row == ["b → d", "1 (10.0%)", "1 (10.0%) +0.0"]


def test_classes_that_are_compared_on_common_images_only_are_marked(two: Comparison) -> None:
    first, second = two.groups[0].evaluated[0], two.groups[1].evaluated[0]
    fewer = replace(second, predictions=dict(list(second.predictions.items())[2:]))
    found = compare_classes(comparison([first], [fewer]))
    assert by_class.shown_of(found, 3) == ", compared on the images in common"
    assert by_class.shown_of(compare_classes(two), 3) == ""
