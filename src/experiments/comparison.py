"""Finished runs beside each other, as plain data: what differs, how well each does, whether the difference is real."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from experiments.evaluate import Prediction
from experiments.statistics import (
    Paired,
    mean_interval,
    paired_difference,
    pictures_needed,
    roc_auc_interval,
    unpaired_difference,
    wilson,
)
from experiments.tracking.stored import RunFacts, read_curves, read_predictions
from experiments.types import ConfigError, EpochRecord

CHOICES = ("regime", "model", "data", "augmentation", "optimizer")  # what a row is named by first
METRICS = {
    "accuracy": "accuracy", "loss": "loss", "roc_auc": "ROC AUC", "precision": "precision", "recall": "recall",
    "f1": "F1", "brier": "Brier score", "calibration_error": "calibration error",
}  # fmt: skip
FINGERPRINT = "data.fingerprint"  # no key that can be set: of the pictures that a run has met
APART = 0.5  # in shares of seeds that are right: from there on, groups disagree on a picture
SMALLEST = float(np.finfo(np.float32).eps)  # to which a probability is clipped in the loss, see `evaluate`

Key = tuple[str, str]  # a picture, by its content and its class: sha256, label


class Interval(NamedTuple):
    """A figure and its 95 % interval; nan where nothing is known of that."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Repeat:
    """One seed of a group: its run; or its runs, where each has validated another fold."""

    runs: tuple[RunFacts, ...]
    said: Mapping[Key, Prediction]
    curves: tuple[tuple[EpochRecord, ...], ...]  # of each run; empty where it has left none


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed, and in the fold that they validate, only."""

    params: Mapping[str, str]
    repeats: tuple[Repeat, ...]

    @property
    def runs(self) -> tuple[RunFacts, ...]:
        return tuple(run for repeat in self.repeats for run in repeat.runs)

    @cached_property
    def pictures(self) -> tuple[Key, ...]:
        """That every one of its repeats was judged on."""
        first, *others = (repeat.said for repeat in self.repeats)
        return tuple(key for key in first if all(key in other for other in others))

    def correct(self, pictures: Sequence[Key]) -> np.ndarray:
        """[S, N] bool: of each repeat, whether it got each picture right."""
        return np.array([[repeat.said[key].correct for key in pictures] for repeat in self.repeats], dtype=bool)

    @property
    def seconds(self) -> float:
        """Of a run, from start to report."""
        return float(np.mean([run.metrics.get("total_seconds", math.nan) for run in self.runs]))

    @cached_property
    def epoch_seconds(self) -> float:
        """Median over the epochs of the runs' last phase; nan where no run has left its curves."""
        curves = [curve for repeat in self.repeats for curve in repeat.curves if curve]
        epochs = [record for curve in curves for record in curve if record.phase == curve[-1].phase]
        seconds = [record.metrics["seconds"] for record in epochs if "seconds" in record.metrics]
        return float(np.median(seconds)) if seconds else math.nan


@dataclass(frozen=True)
class Difference:
    """How much better a group is than the first; accuracies, so in [-1, 1]."""

    value: float
    low: float
    high: float
    paired: Paired | None  # over the pictures that both were judged on; None: there are none, or too few
    partly: bool  # each was judged on further pictures, too
    runs: int  # of each that were compared, of the same seeds where both have such
    by_seed: tuple[float, ...]  # seed by seed, where they are paired and both have several

    @property
    def p_value(self) -> float | None:
        return self.paired.p_value if self.paired else None

    @property
    def real(self) -> bool:
        return self.paired.real if self.paired else not self.low <= 0 <= self.high

    @property
    def needed(self) -> int | None:
        """Pictures that would show a difference as large as this one; None where that cannot be said."""
        return pictures_needed(self.value, self.paired.discordant) if self.paired else None


class Verdict(NamedTuple):
    """What a group said of a picture."""

    predicted: str  # by most of its seeds
    confidence: float  # their mean
    right: float  # share of the seeds


@dataclass(frozen=True)
class Disagreement:
    """A picture that one group gets right and another wrong."""

    path: str
    sha256: str
    label: str
    verdicts: tuple[Verdict | None, ...]  # of each group; None: it was not judged on this picture
    data: tuple[str, ...]  # the folders that runs have read it from


@dataclass(frozen=True)
class Comparison:
    """The first group is what the others are compared with."""

    split: str
    groups: tuple[Group, ...]
    labels: tuple[tuple[str, ...], ...]  # key=value, of each group
    measures: tuple[Mapping[str, Interval], ...]  # of METRICS, those that all runs of the group have
    differences: tuple[Difference | None, ...]  # from the first; its own is None
    ranked: bool  # the order is that of their validation accuracies

    @property
    def runs(self) -> list[RunFacts]:
        return [run for group in self.groups for run in group.runs]

    @property
    def names(self) -> list[str]:
        """Numbered, because figures and tables refer to them."""
        return [f"{at} {called(label)}" for at, label in enumerate(self.labels, 1)]

    @property
    def digest(self) -> str:
        """Of what is compared: the same runs in the same order, on the same split."""
        text = "\n".join([self.split, *(run.run_id for run in self.runs)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def compare(uri: str, runs: Sequence[RunFacts], split: str, found: Sequence[RunFacts] = ()) -> Comparison:
    """Compares runs by what they have told MLflow.

    Args:
        uri: the tracking store.
        runs: named one by one: their groups stand first, in this order.
        split: validation or test.
        found: further runs, of a sweep or a query. On the validation split their groups are ordered by accuracy, the
            best first; by the test split nothing is ever ranked.

    Raises:
        ConfigError: a run named twice, or without predictions of this split, or seeds that share no picture.
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
            0.0 if named & {run.run_id for run in group.runs} else 1 - float(group.correct(group.pictures).mean())
        ))  # fmt: skip
    return of_groups(groups, split, ranked)


def of_groups(groups: Sequence[Group], split: str, ranked: bool = False) -> Comparison:
    """The comparison of groups in this order, the first with each other."""
    measures = [{name: measure(group, name, split) for name in METRICS} for group in groups]
    return Comparison(
        split,
        tuple(groups),
        tuple(labels(groups)),
        tuple({name: value for name, value in one.items() if value is not None} for one in measures),
        (None, *(difference(groups[0], group) for group in groups[1:])),
        ranked,
    )


def gather(uri: str, runs: Sequence[RunFacts], split: str) -> list[Group]:
    """Runs gathered by what they have in common, in the order given."""
    gathered: dict[tuple[tuple[str, str], ...], dict[tuple[str, int], list[RunFacts]]] = {}
    for run in runs:
        params = dict(run.params)
        seed, fold = params.pop("seed", ""), params.get("data.fold", "null")
        if fold != "null":
            params["data.fold"] = "one after the other"
        elif "data_fingerprint" in run.tags:  # the same configuration may have met other pictures
            params[FINGERPRINT] = run.tags["data_fingerprint"][:12]
        repeats = gathered.setdefault(tuple(sorted(params.items())), {})
        number = 0  # the same seed may have been run again
        while any(one.params.get("data.fold", "null") == fold for one in repeats.get((seed, number), [])):
            number += 1
        repeats.setdefault((seed, number), []).append(run)
    groups = []
    for key, repeats in gathered.items():
        group = Group(dict(key), tuple(_repeat(uri, members, split) for members in repeats.values()))
        if len(group.pictures) < 2:
            names = ", ".join(run.name for run in group.runs)
            raise ConfigError(
                f"{names}: runs that differ in their seed only have been judged on other {split} pictures"
            )
        groups.append(group)
    return groups


def _repeat(uri: str, runs: Sequence[RunFacts], split: str) -> Repeat:
    said: dict[Key, Prediction] = {}
    for run in runs:
        table = read_predictions(uri, run, split)
        classes = [name.removeprefix("p_") for name in table if name.startswith("p_")]
        shares = zip(*(table[f"p_{name}"] for name in classes), strict=True) if classes else [()] * len(table["path"])
        columns = {name: table[name] for name in ("path", "sha256", "label", "predicted", "confidence", "correct")}
        for values, row in zip(zip(*columns.values(), strict=True), shares, strict=True):
            one = dict(zip(columns, values, strict=True))
            probabilities = dict(zip(classes, row, strict=True))
            said[one["sha256"], one["label"]] = Prediction(**one, probabilities=probabilities)
    return Repeat(tuple(runs), said, tuple(tuple(read_curves(uri, run)) for run in runs))


def difference(first: Group, other: Group) -> Difference:
    """How much better `other` is than `first`, over the pictures and the seeds that both have.

    Where they have no seed in common, over as many runs of each as the smaller group holds; where they have no
    pictures in common, unpaired: of several seeds the mean accuracy counts like one run's.
    """
    known = set(other.pictures)
    common = [key for key in first.pictures if key in known]
    if len(common) < 2:
        counts = []
        for group in (first, other):
            total = len(group.pictures)
            counts += [round(float(group.correct(group.pictures).mean()) * total), total]
        return Difference(*unpaired_difference(*counts), paired=None, partly=False, runs=0, by_seed=())
    one, two = ({repeat.runs[0].params.get("seed"): at for at, repeat in enumerate(g.repeats)} for g in (first, other))
    seeds = [seed for seed in one if seed in two]
    least = range(min(len(one), len(two)))
    rows = [[group[seed] for seed in seeds] if seeds else list(least) for group in (one, two)]
    a, b = first.correct(common)[rows[0]], other.correct(common)[rows[1]]
    paired = paired_difference(a, b)
    by_seed = tuple((b.mean(axis=1) - a.mean(axis=1)).tolist()) if len(a) > 1 and seeds else ()
    partly = len(common) < max(len(first.pictures), len(known))
    return Difference(paired.difference, paired.low, paired.high, paired, partly, len(a), by_seed)


def labels(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """What sets groups apart: as few of the keys in which they differ as tell all of them from each other.

    The choices of groups come first, then short keys; what a regime ignores, some runs do not have.
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
    """A label for people: `finetune` for regime=finetune."""
    return " ".join(part.split("=", 1)[1] if part.split("=", 1)[0] in CHOICES else part for part in label)


def _distinct(groups: Sequence[Group], keys: Sequence[str]) -> int:
    return len({tuple(one.params.get(key) for key in keys) for one in groups})


def configuration(groups: Sequence[Group]) -> dict[str, list[str | None]]:
    """The keys in which groups differ, with the value of each group; None: it does not read this key."""
    keys = sorted({key for one in groups for key in one.params})
    every = {key: [one.params.get(key) for one in groups] for key in keys}
    return {key: values for key, values in every.items() if len(set(values)) > 1}


def measure(group: Group, name: str, split: str) -> Interval | None:
    """A metric of a group with its 95 % interval, None where a run does not have it.

    Over several seeds the mean with Student's interval. Of a single run: Wilson's of the accuracy; of loss and Brier
    score, which are means over pictures, Student's over them; of the ROC area (two classes) a bootstrap's; of others
    none.
    """
    if name == "accuracy":
        correct = group.correct(group.pictures)
        if len(correct) == 1:
            return Interval(float(correct.mean()), *wilson(int(correct.sum()), correct.size))
        mean, low, high = mean_interval(correct.mean(axis=1).tolist())
        return Interval(mean, max(0.0, low), min(1.0, high))
    key = f"{split}.{name}"
    if not all(key in run.metrics for run in group.runs):
        return None
    values = [float(np.mean([run.metrics[key] for run in repeat.runs])) for repeat in group.repeats]
    if len(values) > 1:
        return Interval(*mean_interval(values))
    return Interval(values[0], *_over_pictures(list(group.repeats[0].said.values()), name))


def _over_pictures(said: Sequence[Prediction], name: str) -> tuple[float, float]:
    """The interval of one run's metric; nan where there is none."""
    classes = list(said[0].probabilities)
    if name == "loss":
        losses = [-math.log(max(one.probabilities.get(one.label, math.nan), SMALLEST)) for one in said]
        return mean_interval(losses)[1:]
    if name == "brier" and classes:
        counted = classes[1:] if len(classes) == 2 else classes
        squares = [sum((one.probabilities[c] - (one.label == c)) ** 2 for c in counted) for one in said]
        return mean_interval(squares)[1:]
    if name == "roc_auc" and len(classes) == 2:
        scores = [[o.probabilities[classes[1]] for o in said if (o.label == classes[1]) is of] for of in (True, False)]
        if min(map(len, scores)) > 1:
            return roc_auc_interval(scores[0], scores[1])
    return math.nan, math.nan


def disagreements(comparison: Comparison) -> list[Disagreement]:
    """The pictures that some groups get right and others wrong: clear cases and confident mistakes first."""
    every = dict.fromkeys(key for group in comparison.groups for key in group.pictures)
    found = []
    for key in every:
        verdicts = tuple(_verdict(group, key) for group in comparison.groups)
        right = [one.right for one in verdicts if one]
        if max(right) - min(right) >= APART:
            one = next(
                said for group in comparison.groups for repeat in group.repeats if (said := repeat.said.get(key))
            )
            folders = dict.fromkeys(
                run.data for group in comparison.groups for repeat in group.repeats if key in repeat.said
                for run in repeat.runs if run.data
            )  # fmt: skip
            found.append(Disagreement(one.path, one.sha256, one.label, verdicts, tuple(folders)))

    def order(one: Disagreement) -> tuple[float, float, str]:
        known = [verdict for verdict in one.verdicts if verdict]
        right = [verdict.right for verdict in known]
        wrong = [verdict.confidence for verdict in known if verdict.predicted != one.label]
        return min(right) - max(right), -max(wrong, default=0.0), one.path

    return sorted(found, key=order)


def _verdict(group: Group, key: Key) -> Verdict | None:
    said = [repeat.said[key] for repeat in group.repeats if key in repeat.said]
    if len(said) < len(group.repeats):
        return None
    ((predicted, _),) = Counter(one.predicted for one in said).most_common(1)
    confidence = float(np.mean([one.confidence for one in said if one.predicted == predicted]))
    return Verdict(predicted, confidence, float(np.mean([one.correct for one in said])))
