"""From probabilities to a predicted class: the positive one of two classes, and the threshold from which it counts.

Source of the choice: the precision-recall curve, `sklearn.metrics.precision_recall_curve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.config.messages import nearest_hint
from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError

FEWEST_CLASSES = {"top3_accuracy": 4, "top5_accuracy": 6}  # With fewer classes the metric says little or nothing.


@dataclass(frozen=True)
class Decision:
    """How a class is predicted from probabilities."""

    positive: str | None = None  # of two classes, the one that precision, recall, F1, ROC and PR are of
    threshold: float | None = None  # probability from which it is predicted; None: the most probable class is

    def predict(self, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Return the indices of the predicted classes, [N] int, for probabilities [N, C].

        Without a threshold, the first of equally probable classes is predicted.
        """
        if self.threshold is None or self.positive is None:
            predicted: np.ndarray = probabilities.argmax(axis=1)
            return predicted
        positive = tuple(classes).index(self.positive)
        return np.where(probabilities[:, positive] >= self.threshold, positive, 1 - positive)

    def facts(self) -> dict[str, Any]:
        """Return what is recorded with a run: `positive` and `threshold`, without those that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def text(self) -> str:
        """The positive class and its threshold, as reports name them."""
        return f"positive class '{self.positive}', threshold {0.5 if self.threshold is None else self.threshold:.4g}"


def recorded(facts: Mapping[str, Any], classes: Sequence[str]) -> Decision:
    """Return the decision that a run has recorded, in its directory or as MLflow tags; for runs of 0.1 the default."""
    threshold = facts.get("threshold")
    return Decision(facts.get("positive", default(classes).positive), None if threshold is None else float(threshold))


def default(classes: Sequence[str]) -> Decision:
    """Return the decision without settings: of two classes, the second is the positive one."""
    return Decision(classes[1] if len(classes) == 2 else None)


def decision_of(config: Config, dataset: Dataset) -> Decision:
    """Return the decision that is configured; a threshold that is chosen by validation images is not known yet.

    Raises:
        ConfigError: `positive`, `threshold` or `objective` does not fit the classes, or no validation image is of the
            positive class, so that no threshold can be chosen.
    """
    goal, classes = config.threshold, dataset.classes
    issues = []
    if len(classes) < (fewest := FEWEST_CLASSES.get(config.objective, 0)):
        issues.append(f"objective: {config.objective} needs {fewest} classes or more. Received: {len(classes)} classes")
    given = {"positive": config.positive} | {f"threshold.{name}": value for name, value in goal}
    given = {key: value for key, value in given.items() if value is not None}
    found = default(classes)
    if given and found.positive is None:
        issues += [
            f"{key}: needs a data set of two classes, and this one has {len(classes)}: leave it out. Every class has "
            f"its own precision, recall and F1 in the results. Received: {value}"
            for key, value in given.items()
        ]
    elif config.positive is not None and config.positive not in classes:
        hint = nearest_hint(config.positive, classes)
        issues.append(f"positive: no class is called {config.positive!r}. Allowed: {', '.join(classes)}{hint}")
    else:
        found = Decision(config.positive or found.positive, goal.fixed)
        occurring = {classes[label] for label in dataset.validation.labels}
        if (goal.recall or goal.precision) and found.positive not in occurring:
            key = "threshold.recall" if goal.recall else "threshold.precision"
            issues.append(
                f"{key}: the threshold is chosen by the validation images, and none is of the positive class "
                f"'{found.positive}'. Give validation images of it, positive=CLASS, or threshold.fixed=NUMBER"
            )
    if issues:
        raise ConfigError("\n".join(issues))
    return found


def choose_threshold(config: Config, scores: Mapping[str, np.ndarray], dataset: Dataset) -> Decision:
    """Return the configured decision, with a threshold that reaches the wanted recall or precision in validation.

    For a wanted recall it is the highest such threshold, which loses least precision; for a wanted precision the
    lowest, which loses least recall. It lies midway between two probabilities that occur, so that rounding errors
    change no prediction. If no threshold reaches the precision, there is none, see `threshold_warnings`. The scores of
    "validation" are probabilities [N, C] float. The errors raised are those of `decision_of`.
    """
    goal, decision = config.threshold, decision_of(config, dataset)
    if decision.positive is None or (goal.recall is None and goal.precision is None):
        return decision
    from sklearn.metrics import precision_recall_curve

    positive = dataset.classes.index(decision.positive)
    probabilities = scores["validation"].astype(np.float64)
    probabilities = probabilities[:, positive] / probabilities.sum(axis=1)
    precision, recall, thresholds = precision_recall_curve(dataset.validation.labels == positive, probabilities)
    if goal.recall is not None:
        at = int(np.flatnonzero(recall[:-1] >= goal.recall)[-1])
    elif (reaching := np.flatnonzero(precision[:-1] >= goal.precision)).size:
        at = int(reaching[0])
    else:
        return decision
    below = thresholds[at - 1] if at else 0.0
    return replace(decision, threshold=float((below + thresholds[at]) / 2))


def threshold_warnings(config: Config, decision: Decision) -> list[str]:
    """Return a warning if no threshold reaches the wanted precision on the validation images."""
    if config.threshold.precision is None or decision.threshold is not None:
        return []
    return [
        f"threshold.precision: no threshold reaches a precision of {config.threshold.precision:g} for the class "
        f"'{decision.positive}' on the validation images; the most probable class is predicted instead"
    ]
