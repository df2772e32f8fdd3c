"""Writers of predictions: as lines for a terminal, as CSV rows and as JSON lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import numpy as np

    from experiments.deploy.predict import Prediction

    Write = Callable[[Sequence[Prediction]], None]
    Predicted = Callable[[np.ndarray], int]  # probabilities [classes] -> index of the predicted class

LONGEST = 40  # characters of a class name on the terminal


def most_probable(probabilities: np.ndarray) -> int:
    """Return the index of the most probable class."""
    return int(probabilities.argmax())


def terminal_rows(file: TextIO, classes: Sequence[str], predicted: Predicted = most_probable) -> Write:
    """Return a writer of one line per image; errors of files go to standard error."""
    from rich.cells import cell_len

    from experiments.data.issues import printable

    names = [
        name if len(name) <= LONGEST else f"{name[: LONGEST - 10]}…{name[-9:]}" for name in map(printable, classes)
    ]
    width = max(map(cell_len, names))
    padded = [name + " " * (width - cell_len(name)) for name in names]

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            if prediction.probabilities is None:
                file.flush()  # so that lines on both streams keep their order
                print(f"{printable(prediction.path)}: {prediction.error}", file=sys.stderr)
            else:
                best = predicted(prediction.probabilities)
                file.write(f"{padded[best]}  {prediction.probabilities[best]:6.1%}  {printable(prediction.path)}\n")

    return write


def csv_rows(file: TextIO, classes: Sequence[str], predicted: Predicted = most_probable) -> Write:
    """Return a writer of CSV rows: path, class, probability, the probability of every class (p_NAME), error."""
    columns = ("path", "class", "probability", *(f"p_{name}" for name in classes), "error")

    def write_row(cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(cells)  # with csv's own line end, so that names with a carriage return are quoted
        file.write(f"{line.getvalue().removesuffix(csv.excel.lineterminator)}\n")

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            if prediction.probabilities is None:
                write_row([prediction.path, *[""] * (len(columns) - 2), prediction.error])
            else:
                best, shares = predicted(prediction.probabilities), prediction.probabilities.tolist()
                write_row([prediction.path, classes[best], shares[best], *shares, ""])

    write_row(columns)

    return write


def json_rows(file: TextIO, classes: Sequence[str], predicted: Predicted = most_probable) -> Write:
    """Return a writer of one JSON object per line: path, class, probability, probabilities by class; or path, error."""

    def write(predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            row: dict[str, object] = {"path": prediction.path}
            if prediction.probabilities is None:
                row["error"] = prediction.error
            else:
                best, shares = predicted(prediction.probabilities), prediction.probabilities.tolist()
                row |= {"class": classes[best], "probability": shares[best]}
                row["probabilities"] = dict(zip(classes, shares, strict=True))
            file.write(f"{json.dumps(row)}\n")

    return write


WRITERS = {"terminal": terminal_rows, "csv": csv_rows, "json": json_rows}
