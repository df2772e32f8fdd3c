"""The answers of a model for images, and their writers: as lines for a terminal, as CSV rows and as JSON lines.

The class of a rejected image is written as "none", with the probability of the class that is predicted otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from experiments.deploy.predict import FilePrediction
    from experiments.evaluation.decision import Decision

    Write = Callable[[FilePrediction], None]

NONE = "none"  # the class that is written for a rejected image
LONGEST = 40  # characters of a class name on the terminal


class Confidence(NamedTuple):
    """What is done with the confidence of predictions, and with images unlike the training images."""

    reject: float | None = None  # the wanted accuracy of the images that are not rejected, in (0, 1]
    calibrated: bool = False  # whether probabilities are scaled by the run's temperature
    unlike: float | None = None  # the share of the validation images that are to be like the training images
    data: Path | None = None  # where the training images are now; None for where they were


class Answer(NamedTuple):
    """What a model answers for one image."""

    name: str  # the predicted class; NONE if the image is rejected
    confidence: float  # the probability of the class that is predicted, or would be
    probabilities: list[float]  # of all classes
    unlike: bool  # whether it is rejected because it is unlike the training images


@dataclass
class Answers:
    """The answers of a model for its predictions; counts the rejected images."""

    classes: Sequence[str]
    decision: Decision  # how the run predicts a class
    temperature: float = 1.0  # divides the logits
    threshold: float = 0.0  # images of lower confidence are rejected
    farthest: float | None = None  # images of a larger distance from the training images are rejected; None for none
    rejected: int = 0

    @property
    def reject(self) -> bool:
        """Whether images may be rejected."""
        return self.threshold > 0 or self.farthest is not None

    def __call__(self, prediction: FilePrediction) -> Answer:
        """Return the answer for an image file that can be used."""
        probabilities, distance = prediction.probabilities, prediction.distance
        assert probabilities is not None
        # By the unscaled ones, which the run's threshold of a class belongs to.
        label = int(self.decision.predict(probabilities[None], self.classes)[0])
        if self.temperature != 1.0:
            from experiments.evaluation.calibration import scale

            probabilities = scale(probabilities[None], self.temperature)[0]
        shares = probabilities.tolist()
        unlike = self.farthest is not None and distance is not None and distance > self.farthest
        is_answered = shares[label] >= self.threshold and not unlike
        self.rejected += not is_answered
        return Answer(self.classes[label] if is_answered else NONE, shares[label], shares, unlike)

    @property
    def columns(self) -> list[str]:
        """The names of `cells`."""
        measured = ["distance", "unlike"] if self.farthest is not None else []
        return ["path", "class", "probability", *(f"p_{name}" for name in self.classes), *measured, "error"]

    def cells(self, prediction: FilePrediction) -> list[str | float | bool | None]:
        """Return the row of an image; of a file that cannot be used, all but path and error are None."""
        if prediction.probabilities is None:
            return [prediction.path, *[None] * (len(self.columns) - 2), prediction.error]
        answer = self(prediction)
        measured = [prediction.distance, answer.unlike] if self.farthest is not None else []
        return [prediction.path, answer.name, answer.confidence, *answer.probabilities, *measured, ""]


def terminal_rows(file: TextIO, answers: Answers) -> Write:
    """Return a writer of one line per image; errors of files go to standard error."""
    from rich.cells import cell_len

    from experiments.data.issues import printable

    shown = {}
    for name in (*answers.classes, *([NONE] if answers.reject else [])):
        text = printable(name)
        shown[name] = text if len(text) <= LONGEST else f"{text[: LONGEST - 10]}…{text[-9:]}"
    width = max(map(cell_len, shown.values()))

    def write(prediction: FilePrediction) -> None:
        if prediction.probabilities is None:
            file.flush()  # so that lines on both streams keep their order
            print(f"{printable(prediction.path)}: {prediction.error}", file=sys.stderr)
            return
        answer = answers(prediction)
        name, confidence = shown[answer.name], "unlike" if answer.unlike else f"{answer.confidence:6.1%}"
        file.write(f"{name}{' ' * (width - cell_len(name))}  {confidence}  {printable(prediction.path)}\n")

    return write


def csv_rows(file: TextIO, answers: Answers) -> Write:
    """Return a writer of CSV rows, see `Answers.columns`; `unlike` is true or false."""

    def write_row(cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(cells)  # with csv's own line end, so that names with a carriage return are quoted
        file.write(f"{line.getvalue().removesuffix(csv.excel.lineterminator)}\n")

    def write(prediction: FilePrediction) -> None:
        write_row([str(cell).lower() if isinstance(cell, bool) else cell for cell in answers.cells(prediction)])

    write_row(answers.columns)
    return write


def json_rows(file: TextIO, answers: Answers) -> Write:
    """Return a writer of a JSON object per line: a CSV row with the probabilities by class, or path and error."""

    def write(prediction: FilePrediction) -> None:
        row: dict[str, object] = {"path": prediction.path}
        if prediction.probabilities is None:
            row["error"] = prediction.error
        else:
            answer = answers(prediction)
            row |= {"class": answer.name, "probability": answer.confidence}
            row["probabilities"] = dict(zip(answers.classes, answer.probabilities, strict=True))
            if answers.farthest is not None:
                row |= {"distance": prediction.distance, "unlike": answer.unlike}
        file.write(f"{json.dumps(row)}\n")

    return write


WRITERS = {"terminal": terminal_rows, "csv": csv_rows, "json": json_rows}
