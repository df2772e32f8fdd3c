"""Comparison of finished runs as plain data: differences in configuration, metrics, and significant differences."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np

from experiments.comparison.groups import Scores, gather_scores, metric_interval
from experiments.comparison.significance import Difference, compare_runs
from experiments.config.schema import LOWEST
from experiments.data.issues import printable
from experiments.errors import ConfigError
from experiments.evaluation.evaluate import IMAGE_METRICS, METRICS, Baseline, image_score, majority_baseline
from experiments.evaluation.statistics import Interval, roc_auc_interval
from experiments.images.decoder_settings import DEFAULTS, DecoderSettings
from experiments.runs.predictions import Prediction
from experiments.tracking.queries import RunFacts, read_curves, read_predictions
from experiments.training.types import EpochRecord, last_phase

CHOICES = ("regime", "model", "data", "augmentation", "optimizer")  # the keys that a row's name begins with
DATA_TAG = "data_fingerprint"  # the MLflow tag with the fingerprint of the images that a run has read
FINGERPRINT = "data.fingerprint"  # not a configuration key: the fingerprint of the images that a run has read
APART = 0.5  # Groups disagree on an image if the shares of their seeds that are right differ by at least this much.

Key = tuple[str, str]  # an image, identified by its content and its class: sha256, label


def fold_of(run: RunFacts) -> str:
    """Return the fold that a run holds out for validation; empty without folds."""
    fold = run.params.get("data.fold", "null")
    return "" if fold == "null" else fold


def repeat_of(run: RunFacts) -> tuple[str, str]:
    """Return the seed and the fold of a run, in which the runs of a group differ."""
    return run.params.get("seed", ""), fold_of(run)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with its predictions for one split, and its learning curves."""

    facts: RunFacts
    predictions: Mapping[Key, Prediction]
    curves: tuple[EpochRecord, ...] = ()  # empty if it has logged none


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed and in their validation fold."""

    params: Mapping[str, str]
    evaluated: tuple[EvaluatedRun, ...]
    duplicates: tuple[RunFacts, ...] = ()  # runs with a configuration, seed and fold of `evaluated`: no new evidence

    @property
    def runs(self) -> list[RunFacts]:
        return [run.facts for run in self.evaluated]

    @cached_property
    def by_seed(self) -> dict[str, dict[Key, Prediction]]:
        """The predictions of each seed, by image; a seed may have a run for each fold."""
        found: dict[str, dict[Key, Prediction]] = {}
        for run in self.evaluated:
            found.setdefault(repeat_of(run.facts)[0], {}).update(run.predictions)
        return found

    def scores(self, metric: str = "accuracy") -> Scores:
        """Return the scores of every image for a metric, one of IMAGE_METRICS, by seed."""
        return gather_scores(
            (*repeat_of(run.facts), {key: image_score(metric, row) for key, row in run.predictions.items()})
            for run in self.evaluated
        )

    @cached_property
    def accuracy(self) -> Scores:
        return self.scores()

    @cached_property
    def images(self) -> list[Key]:
        """The images on which all seeds were evaluated."""
        return cast("list[Key]", self.accuracy.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the first run in label order; of old records without probabilities none."""
        return tuple(next(iter(self.evaluated[0].predictions.values())).probabilities)

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
        epochs = [record for run in self.evaluated for record in last_phase(run.curves)]
        seconds = [record.metrics["seconds"] for record in epochs if "seconds" in record.metrics]
        return float(np.median(seconds)) if seconds else math.nan

    def predict(self, key: Key) -> GroupPrediction | None:
        """Return the prediction of the group for an image; None if a seed was not evaluated on it."""
        predictions = [of_seed[key] for of_seed in self.by_seed.values() if key in of_seed]
        if len(predictions) < len(self.by_seed):
            return None
        ((predicted, _),) = Counter(row.predicted for row in predictions).most_common(1)
        confidence = float(np.mean([row.confidence for row in predictions if row.predicted == predicted]))
        return GroupPrediction(predicted, confidence, float(np.mean([row.correct for row in predictions])))


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
    decoder_settings: DecoderSettings = DEFAULTS  # those of the first of these runs


@dataclass(frozen=True)
class Comparison:
    """The comparison of groups of runs with the first of them."""

    split: str
    groups: tuple[Group, ...]
    labels: tuple[tuple[str, ...], ...]  # for each group texts key=value that distinguish it
    measures: tuple[Mapping[str, Interval], ...]  # for each group those of METRICS that all of its runs have
    differences: tuple[Difference | None, ...]  # of each group from the first; None for the first itself
    ranked: bool  # whether the groups are ordered by their validation accuracy
    uri: str | None = None  # the MLflow tracking store of the runs that are in MLflow

    @property
    def runs(self) -> list[RunFacts]:
        return [run for group in self.groups for run in group.runs]

    @property
    def names(self) -> list[str]:
        """The names of the groups, with the numbers by which figures and tables refer to them."""
        return [f"{at} {called(label)}" for at, label in enumerate(self.labels, 1)]

    @property
    def image_count(self) -> str:
        """The number of images of a group as text; where groups differ, the lowest and the highest."""
        counts = [len(group.images) for group in self.groups]
        return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))

    @property
    def digest(self) -> str:
        """A short hash of the runs, their order and the split, the same for the same comparison."""
        text = "\n".join([self.split, *(run.run_id for run in self.runs)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def compare(uri: str, runs: Sequence[RunFacts], split: str, found: Sequence[RunFacts] = ()) -> Comparison:
    """Compare runs by what they have logged to MLflow.

    The groups of `runs`, which the user has named one by one, come first, in this order; then those of `found`, of a
    sweep or a query, ordered on the validation split by accuracy, the best first. Groups are never ordered by test
    accuracy.

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
    return of_groups(groups, split, ranked, uri)


def of_groups(groups: Sequence[Group], split: str, ranked: bool = False, uri: str | None = None) -> Comparison:
    """Compare each group with the first one, in the given order; `uri` is the tracking store of the runs."""
    return Comparison(
        split,
        tuple(groups),
        tuple(labels(groups)),
        tuple({name: found for name in METRICS if (found := measure(group, name, split))} for group in groups),
        (None, *(compare_runs(groups[0].accuracy, group.accuracy) for group in groups[1:])),
        ranked,
        uri,
    )


def gather(uri: str, runs: Sequence[RunFacts], split: str) -> list[Group]:
    """Group runs that differ only in seed and fold, in their order; raise ConfigError if they share no two images.

    Folds validate on images of their own, but share their test images: on these, each fold is a group of its own.
    """
    settings: dict[tuple[tuple[tuple[str, str], ...], str, str], list[RunFacts]] = {}
    for run in runs:
        params = _without_repeats(run, split)
        if not fold_of(run) and DATA_TAG in run.tags:
            params.pop("data.root", None)  # where the images are does not matter if it is known which they are
        setting = (tuple(sorted(params.items())), _weights_in_file(run), run.tags.get("setting", ""))
        settings.setdefault(setting, []).append(run)
    alike = Counter(given for given, _ in {(given, weights) for given, weights, _ in settings})
    groups = []
    for (given, weights, unlogged), members in settings.items():
        parts = _by_data(members)
        for part in parts:
            params = _without_repeats(part[0], split)
            if alike[given] > 1:
                params["model.weights"] += f" ({weights[:12]})"
            if unlogged:
                params["setting"] = unlogged[:12]
            if DATA_TAG in part[0].tags and (len(parts) > 1 or not fold_of(part[0])):
                params[FINGERPRINT] = part[0].tags[DATA_TAG][:12]
            groups.append(_evaluated_group(uri, params, part, split))
    return sorted(groups, key=lambda group: runs.index(group.runs[0]))


def _without_repeats(run: RunFacts, split: str) -> dict[str, str]:
    """Return the parameters of a run without those in which the runs of a group differ on a split; see `gather`."""
    params = {key: value for key, value in run.params.items() if key != "seed"}
    return params | ({"data.fold": "one after the other"} if fold_of(run) and split == "validation" else {})


def _weights_in_file(run: RunFacts) -> str:
    """Return the identity of the weights that a run has read from a file, which may have been overwritten since."""
    named = run.params.get("model.weights", "")
    is_file = named.endswith((".h5", ".keras")) or "${" in named  # whatever the environment named
    return run.tags.get("backbone_identity", "") if is_file else ""


def _by_data(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Split runs of the same configuration where they have read other images or labels.

    Each fold has a fingerprint of its own. A second one of the same fold shows that the data have changed; the runs
    that follow have read the changed data.
    """
    parts: list[tuple[dict[str, str], list[RunFacts]]] = []  # the fingerprints by fold, and the runs
    for run in runs:
        fold, fingerprint = fold_of(run), run.tags.get(DATA_TAG, "")
        same = [part for part in parts if part[0].get(fold) == fingerprint]
        if not same and (not parts or fold in parts[-1][0]):
            parts.append(({}, []))
        fingerprints, members = same[0] if same else parts[-1]
        fingerprints[fold] = fingerprint
        members.append(run)
    return [members for _, members in parts]


def _evaluated_group(uri: str, params: Mapping[str, str], runs: Sequence[RunFacts], split: str) -> Group:
    first: dict[tuple[str, str], RunFacts] = {}
    for run in runs:
        first.setdefault(repeat_of(run), run)
    evaluated = []
    for run in first.values():
        predictions = {(row.sha256, row.label): row for row in read_predictions(uri, run, split)}
        evaluated.append(EvaluatedRun(run, predictions, tuple(read_curves(uri, run))))
    _check_folds(evaluated)
    group = Group(params, tuple(evaluated), tuple(run for run in runs if run is not first[repeat_of(run)]))
    if len(group.images) < 2:
        names = ", ".join(run.name for run in group.runs)
        raise ConfigError(f"{names}: runs that differ in their seed only were evaluated on other {split} images")
    return group


def _check_folds(evaluated: Sequence[EvaluatedRun]) -> None:
    """Raise ConfigError if two folds have images in common: an image more or less in the data changes all folds."""
    seen: dict[tuple[str, Key], EvaluatedRun] = {}
    for run in evaluated:
        for key, row in run.predictions.items():
            other = seen.setdefault((repeat_of(run.facts)[0], key), run)
            if other is not run:
                raise ConfigError(
                    f"{other.facts.name} and {run.facts.name}: are runs of two folds, but both were validated with "
                    f"{printable(row.path)}: images were added or removed between them. Compare folds of the same "
                    "images, as a sweep over data.fold trains them"
                )


def labels(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Return for each group the texts key=value that distinguish it from the others, with as few keys as possible."""

    def order(key: str) -> tuple[bool, int, int, str]:
        return key == FINGERPRINT, CHOICES.index(key) if key in CHOICES else len(CHOICES), key.count("."), key

    distinctive: list[str] = []
    for key in sorted(configuration(groups), key=order):
        if _distinct(groups, [*distinctive, key]) > _distinct(groups, distinctive):
            distinctive.append(key)
    named = []
    for group in groups:
        keys, params = distinctive or list(CHOICES[:2] if len(group.runs) > 1 else ()), group.params
        named.append(tuple(f"{key}={params[key]}" for key in keys if key in params) or (group.runs[0].name,))
    return named


def called(label: Sequence[str]) -> str:
    """Return a short form of a label for display: `finetune` for regime=finetune."""
    pairs = (part.partition("=") for part in label)
    return " ".join(value if equals and key in CHOICES else key + equals + value for key, equals, value in pairs)


def _distinct(groups: Sequence[Group], keys: Sequence[str]) -> int:
    return len({tuple(group.params.get(key) for key in keys) for group in groups})


def configuration(groups: Sequence[Group]) -> dict[str, list[str | None]]:
    """Return the keys in which groups differ, with the value of each group; None if it does not read the key."""
    keys = sorted({key for group in groups for key in group.params})
    every = {key: [group.params.get(key) for group in groups] for key in keys}
    return {key: values for key, values in every.items() if len(set(values)) > 1}


def measure(group: Group, name: str, split: str) -> Interval | None:
    """Return a metric of a group with its 95 % interval; None if a run does not have the metric."""
    if name == "accuracy":
        return group.accuracy.interval()
    key = f"{split}.{name}"
    if not all(key in run.metrics for run in group.runs):
        return None
    if name == "roc_auc" and len(group.evaluated) == 1:
        predictions = list(group.evaluated[0].predictions.values())
        classes = list(predictions[0].probabilities)
        by_class = [[row.probabilities[classes[-1]] for row in predictions if row.label == label] for label in classes]
        if len(classes) == 2 and min(map(len, by_class)) > 1:
            return Interval(group.runs[0].metrics[key], *roc_auc_interval(by_class[1], by_class[0]))
    values = [(*repeat_of(run.facts), run.facts.metrics[key]) for run in group.evaluated]
    return metric_interval(values, group.scores(name) if name in IMAGE_METRICS else None, LOWEST.get(name, 0.0))


def disagreements(comparison: Comparison) -> list[Disagreement]:
    """Return the images that some groups classify correctly and others do not, the clearest disagreements first."""
    found = []
    for key in dict.fromkeys(key for group in comparison.groups for key in group.images):
        predictions = tuple(group.predict(key) for group in comparison.groups)
        known = [prediction for prediction in predictions if prediction]
        apart = max(prediction.right for prediction in known) - min(prediction.right for prediction in known)
        if apart < APART:
            continue
        runs = [run for group in comparison.groups for run in group.evaluated if key in run.predictions]
        stored = [run.facts for run in runs if run.facts.data]
        directories = tuple(dict.fromkeys(str(run.data) for run in stored))
        decoder_settings = DecoderSettings.logged(stored[0].params if stored else {})
        image = runs[0].predictions[key]
        sure = max((prediction.confidence for prediction in known if prediction.predicted != image.label), default=0.0)
        unlike = Disagreement(image.path, image.sha256, image.label, predictions, directories, decoder_settings)
        found.append(((-apart, -sure, image.path), unlike))
    return [unlike for _, unlike in sorted(found, key=lambda pair: pair[0])]
