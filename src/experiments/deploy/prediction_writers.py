"""Writers of predictions: as lines for a terminal, as CSV rows and as JSON lines.

The class of a rejected image is written as "none", with the probability of the class that is predicted otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    import numpy as np

    from experiments.deploy.predict import Prediction

    Write = Callable[[Sequence[Prediction]], None]
    Predicted = Callable[[np.ndarray], int]  # probabilities [classes] -> index of the predicted class

NONE = "none"  # the class that is written for a rejected image
LONGEST = 40  # characters of a class name on the terminal


def most_probable(probabilities: np.ndarray) -> int:
    """Return the index of the most probable class."""
    return int(probabilities.argmax())


class Answer(NamedTuple):
    """What a model answers for one image."""

    label: int  # index of the predicted class; -1: none, the image is rejected
    confidence: float  # the probability of the class that is predicted, or would be
    probabilities: list[float]  # of all classes
    unlike: bool  # whether it is rejected because it is unlike the training images


@dataclass
class Answers:
    """The answers of a model for its probabilities; counts the rejected images."""

    predicted: Predicted = most_probable
    temperature: float = 1.0  # divides the logits
    threshold: float = 0.0  # images of lower confidence are rejected
    farthest: float | None = None  # images of a larger distance from the training images are rejected; None for none
    rejected: int = 0

    @property
    def reject(self) -> bool:
        """Whether images may be rejected."""
        return self.threshold > 0 or self.farthest is not None

    def __call__(self, probabilities: np.ndarray, distance: float | None = None) -> Answer:
        """Return the answer for the unscaled probabilities [classes] and the distance of one image."""
        label = self.predicted(probabilities)  # by the unscaled ones, which the run's threshold of a class belongs to
        if self.temperature != 1.0:
            from experiments.evaluation.calibration import scale

            probabilities = scale(probabilities[None], self.temperature)[0]
        shares = probabilities.tolist()
        unlike = self.farthest is not None and distance is not None and distance > self.farthest
        is_answered = shares[label] >= self.threshold and not unlike
        self.rejected += not is_answered
        return Answer(label if is_answered else -1, shares[label], shares, unlike)


def terminal_rows(file: TextIO, classes: Sequence[str], answers: Answers) -> Write:
    """Return a writer of one line per image; errors of files go to standard error."""
    from rich.cells import cell_len

    from experiments.data.issues import printable

    names = [
        name if len(name) <= LONGEST else f"{name[: LONGEST - 10]}…{name[-9:]}"
        for name in map(printable, (*classes, NONE)[: len(classes) + answers.reject])
    ]
    width = max(map(cell_len, names))
    padded = [name + " " * (width - cell_len(name)) for name in names]

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            if prediction.probabilities is None:
                file.flush()  # so that lines on both streams keep their order
                print(f"{printable(prediction.path)}: {prediction.error}", file=sys.stderr)
            else:
                answer = answers(prediction.probabilities, prediction.distance)
                confidence = "unlike" if answer.unlike else f"{answer.confidence:6.1%}"
                file.write(f"{padded[answer.label]}  {confidence}  {printable(prediction.path)}\n")

    return write


def csv_rows(file: TextIO, classes: Sequence[str], answers: Answers) -> Write:
    """Return a writer of CSV rows: path, class, probability, the probability of every class (p_NAME), error.

    With distances, also distance and unlike (true or false), before the error.
    """
    named = (*classes, NONE)
    measured = ("distance", "unlike") if answers.farthest is not None else ()
    columns = ("path", "class", "probability", *(f"p_{name}" for name in classes), *measured, "error")

    def write_row(cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(cells)  # with csv's own line end, so that names with a carriage return are quoted
        file.write(f"{line.getvalue().removesuffix(csv.excel.lineterminator)}\n")

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            if prediction.probabilities is None:
                write_row([prediction.path, *[""] * (len(columns) - 2), prediction.error])
            else:
                answer = answers(prediction.probabilities, prediction.distance)
                cells = [prediction.path, named[answer.label], answer.confidence, *answer.probabilities]
                write_row([*cells, *([prediction.distance, str(answer.unlike).lower()] if measured else []), ""])

    write_row(columns)

    return write


def json_rows(file: TextIO, classes: Sequence[str], answers: Answers) -> Write:
    """Return a writer of one JSON object per line: path, class, probability, probabilities by class; or path, error.

    With distances, also distance and unlike.
    """
    named = (*classes, NONE)

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            row: dict[str, object] = {"path": prediction.path}
            if prediction.probabilities is None:
                row["error"] = prediction.error
            else:
                answer = answers(prediction.probabilities, prediction.distance)
                row |= {"class": named[answer.label], "probability": answer.confidence}
                row["probabilities"] = dict(zip(classes, answer.probabilities, strict=True))
                if answers.farthest is not None:
                    row |= {"distance": prediction.distance, "unlike": answer.unlike}
            file.write(f"{json.dumps(row)}\n")

    return write


WRITERS = {"terminal": terminal_rows, "csv": csv_rows, "json": json_rows}
