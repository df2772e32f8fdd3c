"""Comparison of finished runs as plain data: differences in configuration, metrics, and significant differences."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np

from experiments.errors import ConfigError
from experiments.evaluation.evaluate import IMAGE_METRICS, Baseline, image_score, majority_baseline
from experiments.evaluation.significance import Difference, Scores, compare_runs
from experiments.evaluation.statistics import mean_interval, roc_auc_interval
from experiments.runs.predictions import Prediction
from experiments.tracking.queries import RunFacts, read_curves, read_predictions
from experiments.training.types import EpochRecord

CHOICES = ("regime", "model", "data", "augmentation", "optimizer")  # the keys that a row's name begins with
METRICS = {
    "accuracy": "accuracy", "loss": "loss", "roc_auc": "ROC AUC", "precision": "precision", "recall": "recall",
    "f1": "F1", "brier": "Brier score", "calibration_error": "calibration error",
}  # fmt: skip
FINGERPRINT = "data.fingerprint"  # not a configuration key: the fingerprint of the images that a run has read
APART = 0.5  # Groups disagree on an image if the shares of their seeds that are right differ by at least this much.

Key = tuple[str, str]  # an image, identified by its content and its class: sha256, label


class Interval(NamedTuple):
    """A value and its 95 % interval, whose bounds are nan if it is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Repeat:
    """One seed of a group: its run, or several runs that each have another validation fold."""

    runs: tuple[RunFacts, ...]
    said: Mapping[Key, Prediction]
    curves: tuple[tuple[EpochRecord, ...], ...]  # of each run; empty if it has logged none
    folds: Mapping[Key, str] = field(default_factory=dict)  # image -> the fold in which it was held out


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed and in their validation fold."""

    params: Mapping[str, str]
    repeats: tuple[Repeat, ...]
    duplicates: tuple[RunFacts, ...] = ()  # runs with a configuration, seed and fold of `repeats`: no new evidence

    @property
    def runs(self) -> tuple[RunFacts, ...]:
        return tuple(run for repeat in self.repeats for run in repeat.runs)

    def scores(self, metric: str = "accuracy") -> Scores:
        """Return the scores of every image for a metric, one of IMAGE_METRICS, by seed."""
        by_seed: dict[str, dict[Hashable, float]] = {}
        for at, repeat in enumerate(self.repeats):
            seed = repeat.runs[0].params.get("seed", str(at))
            by_seed[seed] = {key: image_score(metric, one) for key, one in repeat.said.items()}
        return Scores(by_seed, {key: fold for repeat in self.repeats for key, fold in repeat.folds.items()})

    @cached_property
    def accuracy(self) -> Scores:
        return self.scores()

    @cached_property
    def images(self) -> list[Key]:
        """The images on which all repeats were evaluated."""
        return cast("list[Key]", self.accuracy.images)

    @cached_property
    def baseline(self) -> Baseline:
        return majority_baseline(label for _, label in self.images)

    @property
    def seconds(self) -> float:
        """The mean duration of a run in seconds, from its start to its report."""
        return float(np.mean([run.metrics.get("total_seconds", math.nan) for run in self.runs]))

    @cached_property
    def epoch_seconds(self) -> float:
        """The median duration of the epochs of the runs' last phase in seconds; nan if no run has curves."""
        curves = [curve for repeat in self.repeats for curve in repeat.curves if curve]
        epochs = [record for curve in curves for record in curve if record.phase == curve[-1].phase]
        seconds = [record.metrics["seconds"] for record in epochs if "seconds" in record.metrics]
        return float(np.median(seconds)) if seconds else math.nan


class GroupPrediction(NamedTuple):
    """The prediction of a group for an image."""

    predicted: str  # the class that most of its seeds predict
    confidence: float  # the mean confidence of these seeds
    right: float  # the share of all seeds that are right


@dataclass(frozen=True)
class Disagreement:
    """An image that one group classifies correctly and another does not."""

    path: str
    sha256: str
    label: str
    predictions: tuple[GroupPrediction | None, ...]  # of each group; None if it was not evaluated on this image
    data: tuple[str, ...]  # the directories from which runs have read the image
    gray_range: str = "null"  # `data.gray_range` as the first of these runs has logged it


@dataclass(frozen=True)
class Comparison:
    """The comparison of groups of runs with the first of them."""

    split: str
    groups: tuple[Group, ...]
    labels: tuple[tuple[str, ...], ...]  # for each group texts key=value that distinguish it
    measures: tuple[Mapping[str, Interval], ...]  # for each group those of METRICS that all of its runs have
    differences: tuple[Difference | None, ...]  # of each group from the first; None for the first itself
    ranked: bool  # whether the groups are ordered by their validation accuracy

    @property
    def runs(self) -> list[RunFacts]:
        return [run for group in self.groups for run in group.runs]

    @property
    def names(self) -> list[str]:
        """The names of the groups, with the numbers by which figures and tables refer to them."""
        return [f"{at} {called(label)}" for at, label in enumerate(self.labels, 1)]

    @property
    def digest(self) -> str:
        """A short hash of the runs, their order and the split, the same for the same comparison."""
        text = "\n".join([self.split, *(run.run_id for run in self.runs)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def compare(uri: str, runs: Sequence[RunFacts], split: str, found: Sequence[RunFacts] = ()) -> Comparison:
    """Compare runs by what they have logged to MLflow.

    Args:
        uri: the tracking store.
        runs: runs that the user has named one by one; their groups come first, in this order.
        split: validation or test.
        found: further runs, of a sweep or a query. On the validation split their groups are ordered by accuracy, the
            best first; groups are never ordered by test accuracy.

    Raises:
        ConfigError: a run is named twice or has no predictions of this split, or seeds of a group share no images.
    """
    named = {run.run_id for run in runs}
    if len(named) < len(runs):
        twice = next(run for at, run in enumerate(runs) if run in runs[:at])
        raise ConfigError(f"{twice.name} is named twice")
    further = {run.run_id: run for run in found if run.run_id not in named}
    groups = gather(uri, [*runs, *further.values()], split)
    ranked = not runs and split == "validation" and len(groups) > 1
    if split == "validation":
        groups.sort(key=lambda group: (
            0.0 if named & {run.run_id for run in group.runs} else 1 - group.accuracy.interval()[0]
        ))  # fmt: skip
    return of_groups(groups, split, ranked)


def of_groups(groups: Sequence[Group], split: str, ranked: bool = False) -> Comparison:
    """Compare each group with the first one, in the given order."""
    measures = [{name: measure(group, name, split) for name in METRICS} for group in groups]
    return Comparison(
        split,
        tuple(groups),
        tuple(labels(groups)),
        tuple({name: value for name, value in one.items() if value is not None} for one in measures),
        (None, *(compare_runs(groups[0].accuracy, group.accuracy) for group in groups[1:])),
        ranked,
    )


def gather(uri: str, runs: Sequence[RunFacts], split: str) -> list[Group]:
    """Group runs that differ only in seed and fold, in the order given.

    Raises:
        ConfigError: the runs of a group have fewer than two images in common.
    """
    gathered: dict[tuple[tuple[str, str], ...], dict[str, list[RunFacts]]] = {}
    duplicates: dict[tuple[tuple[str, str], ...], list[RunFacts]] = {}
    for run in runs:
        params = dict(run.params)
        seed, fold = params.pop("seed", ""), _fold(run)
        if fold is not None:
            params["data.fold"] = "one after the other"
        elif "data_fingerprint" in run.tags:  # The same configuration may have read other images.
            params[FINGERPRINT] = run.tags["data_fingerprint"][:12]
        key = tuple(sorted(params.items()))
        members = gathered.setdefault(key, {}).setdefault(seed, [])
        known = duplicates.setdefault(key, [])
        (known if any(_fold(member) == fold for member in members) else members).append(run)
    groups = []
    for key, repeats in gathered.items():
        repeated = tuple(_repeat(uri, members, split) for members in repeats.values())
        group = Group(dict(key), repeated, tuple(duplicates[key]))
        if len(group.images) < 2:
            names = ", ".join(run.name for run in group.runs)
            raise ConfigError(f"{names}: runs that differ in their seed only were evaluated on other {split} images")
        groups.append(group)
    return groups


def _fold(run: RunFacts) -> str | None:
    fold = run.params.get("data.fold", "null")
    return None if fold == "null" else fold


def _repeat(uri: str, runs: Sequence[RunFacts], split: str) -> Repeat:
    said: dict[Key, Prediction] = {}
    folds: dict[Key, str] = {}
    for run in runs:
        fold = _fold(run)
        for one in read_predictions(uri, run, split):
            said[one.sha256, one.label] = one
            if fold is not None:
                folds[one.sha256, one.label] = fold
    return Repeat(tuple(runs), said, tuple(tuple(read_curves(uri, run)) for run in runs), folds)


def labels(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Return for each group the texts key=value that distinguish it from the others, with as few keys as possible.

    The choices of configuration groups come first, then top-level keys. Some runs lack keys that their regime ignores.
    """
    keys = list(configuration(groups))
    keys.sort(
        key=lambda key: (
            key == FINGERPRINT, CHOICES.index(key) if key in CHOICES else len(CHOICES), key.count("."), key
        )
    )  # fmt: skip
    telling: list[str] = []
    for key in keys:
        if _distinct(groups, [*telling, key]) > _distinct(groups, telling):
            telling.append(key)
    named = []
    for one in groups:
        keys = telling or list(CHOICES[:2] if len(one.runs) > 1 else ())
        named.append(tuple(f"{key}={one.params[key]}" for key in keys if key in one.params) or (one.runs[0].name,))
    return named


def called(label: Sequence[str]) -> str:
    """Return a short form of a label for display: `finetune` for regime=finetune."""
    return " ".join(part.split("=", 1)[1] if part.split("=", 1)[0] in CHOICES else part for part in label)


def _distinct(groups: Sequence[Group], keys: Sequence[str]) -> int:
    return len({tuple(one.params.get(key) for key in keys) for one in groups})


def configuration(groups: Sequence[Group]) -> dict[str, list[str | None]]:
    """Return the keys in which groups differ, with the value of each group; None if it does not read the key."""
    keys = sorted({key for one in groups for key in one.params})
    every = {key: [one.params.get(key) for one in groups] for key in keys}
    return {key: values for key, values in every.items() if len(set(values)) > 1}


def measure(group: Group, name: str, split: str) -> Interval | None:
    """Return a metric of a group with its 95 % interval; None if a run does not have the metric.

    Means over images (IMAGE_METRICS) have the interval of `statistics.score_interval`, over images and seeds. The other
    metrics have Student's interval over several seeds, for these images; the ROC area of a single run with two classes
    has a bootstrap interval.
    """
    if name == "accuracy":
        return Interval(*group.accuracy.interval())
    key = f"{split}.{name}"
    if not all(key in run.metrics for run in group.runs):
        return None
    values = [float(np.mean([run.metrics[key] for run in repeat.runs])) for repeat in group.repeats]
    if name in IMAGE_METRICS:
        mean, low, high = group.scores(name).interval()
        value = float(np.mean(values))
        return Interval(value, value - mean + low, value - mean + high)
    if len(values) > 1:
        mean, low, high = mean_interval(values)
        return Interval(mean, max(0.0, low), min(1.0, high))
    said = list(group.repeats[0].said.values())
    classes = list(said[0].probabilities)
    if name == "roc_auc" and len(classes) == 2:
        scores = [[o.probabilities[classes[1]] for o in said if (o.label == classes[1]) is of] for of in (True, False)]
        if min(map(len, scores)) > 1:
            return Interval(values[0], *roc_auc_interval(scores[0], scores[1]))
    return Interval(values[0])


def disagreements(comparison: Comparison) -> list[Disagreement]:
    """Return the images that some groups classify correctly and others do not.

    They are ordered by how much the groups disagree, then by the confidence of the wrong predictions.
    """
    every = dict.fromkeys(key for group in comparison.groups for key in group.images)
    found = []
    for key in every:
        predictions = tuple(_group_prediction(group, key) for group in comparison.groups)
        right = [one.right for one in predictions if one]
        if max(right) - min(right) >= APART:
            one = next(
                said for group in comparison.groups for repeat in group.repeats if (said := repeat.said.get(key))
            )
            runs = [
                run for group in comparison.groups for repeat in group.repeats if key in repeat.said
                for run in repeat.runs if run.data
            ]  # fmt: skip
            folders = tuple(dict.fromkeys(run.data for run in runs if run.data))
            gray_range = runs[0].params.get("data.gray_range", "null") if runs else "null"
            found.append(Disagreement(one.path, one.sha256, one.label, predictions, folders, gray_range))

    def order(one: Disagreement) -> tuple[float, float, str]:
        known = [prediction for prediction in one.predictions if prediction]
        right = [prediction.right for prediction in known]
        wrong = [prediction.confidence for prediction in known if prediction.predicted != one.label]
        return min(right) - max(right), -max(wrong, default=0.0), one.path

    return sorted(found, key=order)


def _group_prediction(group: Group, key: Key) -> GroupPrediction | None:
    said = [repeat.said[key] for repeat in group.repeats if key in repeat.said]
    if len(said) < len(group.repeats):
        return None
    ((predicted, _),) = Counter(one.predicted for one in said).most_common(1)
    confidence = float(np.mean([one.confidence for one in said if one.predicted == predicted]))
    return GroupPrediction(predicted, confidence, float(np.mean([one.correct for one in said])))
