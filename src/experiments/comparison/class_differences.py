"""Comparison of runs class by class: recall with its differences, precision and F1, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np

from experiments.comparison.comparison import Comparison, Group, Key
from experiments.comparison.groups import Scores
from experiments.comparison.significance import Difference, compare_runs
from experiments.comparison.text import points, signed
from experiments.evaluation.decision import recorded
from experiments.evaluation.per_class import confusion_of
from experiments.evaluation.statistics import UNKNOWN, Interval
from experiments.reports.text import format_score

MOST_CLASSES, MOST_PAIRS = 40, 20  # rows of the tables in the page; the CSV files have all
MOST_GROUPS = 8  # groups in these tables
BRIEF_CLASSES, BRIEF_PAIRS, BRIEF_GROUPS = 10, 5, 4  # the same on a terminal


class ClassResult(NamedTuple):
    """The results of one group for one class."""

    images: int
    recall: Interval  # the accuracy on the images of the class
    precision: float  # over all seeds; nan if no image is assigned to the class
    f1: float
    difference: Difference | None  # in recall, from the first group; None for itself, or if images are too few


@dataclass(frozen=True)
class ClassComparison:
    """The comparison of groups by class, and the classes that they confuse."""

    labels: tuple[tuple[str, ...], ...]  # [groups], see `Comparison`
    names: tuple[str, ...]  # [C], in label order
    results: tuple[tuple[ClassResult, ...], ...]  # [C, groups]
    confusion: tuple[np.ndarray, ...]  # for each group [C, C] float: number of images, mean over seeds

    def largest(self, most: int) -> list[int]:
        """Return the labels with the largest differences between groups; of one group, those with the lowest recall."""

        def key(label: int) -> float:
            recall = [result.recall.value for result in self.results[label] if not math.isnan(result.recall.value)]
            if not recall:
                return math.inf
            return recall[0] if len(self.results[label]) == 1 else min(recall) - max(recall)

        return sorted(sorted(range(len(self.names)), key=key)[:most])

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs (true, predicted) that any group confuses, those with the largest differences first."""
        counts = np.stack(self.confusion)
        spread = counts.max(axis=0) - counts.min(axis=0) if len(counts) > 1 else counts[0]
        wrong = counts.sum(axis=0)
        np.fill_diagonal(wrong, 0)
        found = zip(*(axis.tolist() for axis in np.nonzero(wrong)), strict=True)
        return sorted(found, key=lambda pair: (-spread[pair], -wrong[pair], pair))

    def share(self, group: int, pair: tuple[int, int]) -> float:
        """Return the share of the true class's images that a group assigns to another class; nan without images."""
        total = float(self.confusion[group][pair[0]].sum())
        return float(self.confusion[group][pair]) / total if total else math.nan


def compare_classes(comparison: Comparison) -> ClassComparison:
    """Compare the groups class by class, each with the first one in recall, the accuracy on the images of a class."""
    names = class_names(comparison.groups)
    confusion = tuple(
        confusion_of([row for of_seed in group.by_seed.values() for row in of_seed.values()], names)
        / len(group.by_seed)
        for group in comparison.groups
    )
    scores = [scores_by_class(group, names) for group in comparison.groups]
    sides = list(zip(scores, confusion, strict=True))
    results = tuple(
        tuple(_result(scores[0][label], own[label], counts, label) for own, counts in sides)
        for label in range(len(names))
    )
    return ClassComparison(comparison.labels, names, results, confusion)


def class_names(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the classes of all groups, in the label order of the first group that has them."""
    predictions = [row for group in groups for run in group.evaluated for row in run.predictions.values()]
    known = [name for group in groups for name in group.classes]
    return tuple(dict.fromkeys([*known, *sorted({name for row in predictions for name in (row.label, row.predicted)})]))


def scores_by_class(group: Group, names: Sequence[str]) -> list[Scores]:
    """Return the scores (correct or not) of a group's images for each class."""
    scores = group.accuracy
    by_class = {name: {seed: dict[Hashable, float]() for seed in scores.by_seed} for name in names}
    for seed, of_seed in scores.by_seed.items():
        for image, score in of_seed.items():
            by_class[cast("Key", image)[1]][seed][image] = score
    return [Scores(by_seed, scores.folds) for by_seed in by_class.values()]


def _result(first: Scores, own: Scores, confusion: np.ndarray, label: int) -> ClassResult:
    """Return the results for one class from the scores of its images and a confusion matrix."""
    images, recall = own.images, UNKNOWN
    if images:
        recall = own.interval() if len(images) > 1 else Interval(float(own.matrix(images).mean()))
    right, support, predicted = confusion[label, label], confusion[label].sum(), confusion[:, label].sum()
    comparable = own is not first and min(len(images), len(first.images)) > 1
    precision = float(right / predicted) if predicted else math.nan
    f1 = float(2 * right / (support + predicted)) if support + predicted else math.nan
    return ClassResult(len(images), recall, precision, f1, compare_runs(first, own) if comparable else None)


# --- Tables of texts: a header and rows


def class_table(found: ClassComparison) -> list[list[str]]:
    """Return the table of the classes: recall with interval and difference, precision and F1 of every group."""
    numbers = range(1, min(len(found.labels), MOST_GROUPS) + 1)
    header = ["class", "images"]
    for number in numbers:
        header += [f"recall {number}", *([f"{number} from first"] if number > 1 else [])]
    header += [f"{metric} {number}" for metric in ("precision", "F1") for number in numbers]
    rows = []
    for label in found.largest(MOST_CLASSES):
        results = found.results[label][:MOST_GROUPS]
        row = [found.names[label], str(max(result.images for result in results))]
        for at, result in enumerate(results):
            row += [format_score("accuracy", result.recall), *([points(result.difference) or "–"] if at else [])]
        row += [format_score("accuracy", Interval(result.precision)) for result in results]
        row += [format_score("f1", Interval(result.f1)) for result in results]
        rows.append(row)
    return [header, *rows]


def brief_class_table(found: ClassComparison) -> list[list[str]]:
    """Return the table of recall by class for a terminal: with intervals for two groups, else with an asterisk."""
    numbers = range(1, len(found.labels) + 1)
    rows = []
    for label in found.largest(BRIEF_CLASSES):
        results = found.results[label]
        row = [found.names[label], str(max(result.images for result in results))]
        for result in results:
            star = "*" if result.difference and result.difference.significant and len(results) > 2 else ""
            row.append(format_score("accuracy", Interval(result.recall.value)) + star)
        rows.append([*row, points(results[1].difference) or "–"] if len(results) == 2 else row)
    header = ["class", "images", *map(str, numbers)]
    return [[*header, "from first"] if len(numbers) == 2 else header, *rows]


def confusion_table(found: ClassComparison, most: int = MOST_PAIRS) -> list[list[str]]:
    """Return the table of the pairs of classes whose confusion differs most between the groups.

    A cell has the number of images, the mean over seeds, and their share of the true class's images; behind that of
    each group but the first the difference of the shares in percentage points.
    """
    rows = []
    for pair in found.pairs[:most]:
        row = [f"{found.names[pair[0]]} → {found.names[pair[1]]}"]
        for at in range(min(len(found.labels), MOST_GROUPS)):
            share = found.share(at, pair)
            cell = "–" if math.isnan(share) else f"{found.confusion[at][pair]:.3g} ({share:.1%})"
            difference = round(share - found.share(0, pair), 12)  # equal shares may differ by floating-point error
            row.append(cell if at == 0 or math.isnan(difference) else f"{cell} {signed(difference)}")
        rows.append(row)
    return [["true → predicted", *map(str, range(1, min(len(found.labels), MOST_GROUPS) + 1))], *rows]


def shown_of(found: ClassComparison, most: int) -> str:
    """Return what the title of a table of classes adds if it does not show all of them, or not on all their images."""
    text = ""
    if len(found.names) > most:
        which = "largest differences" if len(found.labels) > 1 else "lowest recall"
        text = f": the {most} of {len(found.names)} with the {which}"
    compared = (result.difference for results in found.results for result in results if result.difference)
    return text + ", compared on the images in common" * any(difference.partly for difference in compared)


def decision_sentence(comparison: Comparison) -> str:
    """Return a sentence that names the positive one of two classes, and the thresholds; empty for more classes."""
    found = [recorded(run.tags, group.classes) for group in comparison.groups for run in group.runs]
    positives, thresholds = [one.positive for one in found], [one.threshold for one in found]
    if None in positives:
        return ""
    named = [f"'{name}'" for name in dict.fromkeys(positives)]
    text = f"Precision, recall, F1, ROC AUC and average precision are of the positive class: {' or '.join(named)}"
    text += ", which differs between the rows" if len(named) > 1 else ""
    values = sorted({threshold for threshold in thresholds if threshold is not None})
    if values:
        shown = f"{values[0]:.3g}" + (f" to {values[-1]:.3g}" if len(values) > 1 else "")
        some = "" if None not in thresholds else " of some runs"
        text += f"; the threshold{'s' * (len(values) > 1)}{some} from which it is predicted: {shown}"
    return f"{text}."


# --- Tables of values, as `text.group_rows`


def class_rows(found: ClassComparison) -> list[dict[str, Any]]:
    return [
        {
            "class": name, "number": at, "label": " ".join(label), "images": result.images,
            **result.recall.columns("recall"), "precision": result.precision, "f1": result.f1,
            "recall_difference": change and change.value, "difference_low": change and change.low,
            "difference_high": change and change.high, "p_value": change and change.p_value,
        }
        for name, results in zip(found.names, found.results, strict=True)
        for at, (label, result) in enumerate(zip(found.labels, results, strict=True), 1)
        for change in [result.difference]
    ]  # fmt: skip


def confusion_rows(found: ClassComparison) -> list[dict[str, Any]]:
    """Return a row per confused pair and group; the share is that of the true class's images."""
    return [
        {
            "true": found.names[pair[0]], "predicted": found.names[pair[1]], "number": at + 1, "label": " ".join(label),
            "images": counts[pair], "share": found.share(at, pair),
            "share_difference": found.share(at, pair) - found.share(0, pair),
        }
        for pair in found.pairs
        for at, (label, counts) in enumerate(zip(found.labels, found.confusion, strict=True))
    ]  # fmt: skip
