"""The predictions of a run on a split: one row per image, as a CSV file and as a table in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("path", "sha256", "label", "predicted", "correct", "confidence")  # followed by p_CLASS for each class


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image."""

    path: str  # relative to the data root; the image's id; bytes that are not UTF-8 as backslash escapes
    sha256: str  # of the file
    label: str  # the true class
    predicted: str  # the most probable class, of equally probable ones the first; with a threshold what follows from it
    confidence: float  # the probability of the predicted class
    correct: bool
    probabilities: Mapping[str, float]  # class -> probability, in label order


def mistakes(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Return the wrong predictions, most confident first."""
    return sorted((row for row in predictions if not row.correct), key=lambda row: -row.confidence)


def stem(split: str) -> str:
    """Return the name of a split's predictions: of the file with the suffix .csv, of MLflow's table with .json."""
    return f"predictions_{split}"


def to_table(predictions: Sequence[Prediction]) -> dict[str, list[Any]]:
    """Return predictions as columns of equal length, for a table or a CSV file.

    Returns:
        The columns path, sha256, label, predicted (str), correct (bool), confidence (float), then p_<class> (float)
        for each class.
    """
    table: dict[str, list[Any]] = {name: [getattr(row, name) for row in predictions] for name in COLUMNS}
    for class_name in predictions[0].probabilities:
        table[f"p_{class_name}"] = [row.probabilities[class_name] for row in predictions]
    return table


def to_rows(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table of columns."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Prediction]:
    """Return the predictions in rows of text, as in a CSV file, or of values; old files lack some columns."""
    return [
        Prediction(
            path=row["path"],
            sha256=row["sha256"],
            label=row.get("label", ""),
            predicted=row.get("predicted", ""),
            confidence=float(row.get("confidence", "nan")),
            correct=str(row["correct"]) == "True",
            probabilities={name.removeprefix("p_"): float(row[name]) for name in row if name.startswith("p_")},
        )
        for row in rows
    ]
