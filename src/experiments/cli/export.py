"""`experiments export RUN --output FOLDER`: export a trained model to other programs' formats, and verify each file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_run, exit_on_error, positive
from experiments.deploy import export_formats

if TYPE_CHECKING:
    from experiments.deploy.export import Parity


@exit_on_error(OSError, RuntimeError)
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments export",
        description="Writes a finished run's model as files for other programs, with model.json (class names in order, "
        "image size, how an image file becomes pixels). Preprocessing is inside: all take pixels in [0, 255]. Each "
        "file is read back and compared with the model on the run's validation images; where one differs nothing is "
        "written.",
    )
    add_run(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--format", default=export_formats.DEFAULT, metavar="NAMES",
        help=f"separated by commas: {', '.join([*export_formats.FORMATS, *export_formats.GROUPS])}; tflite: at all "
        f"three precisions (default: {export_formats.DEFAULT})",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export has written there")
    parser.add_argument(
        "--images", "--pictures", type=positive, default=500, metavar="N",
        help="validation images to compare on, at most (default: 500)",
    )  # fmt: skip
    arguments = parser.parse_args()
    formats = export_formats.parse(arguments.format)
    folder = arguments.output
    from experiments.deploy import saved_run
    from experiments.system.startup import quiet_start

    export_formats.check_output(folder, arguments.overwrite)
    run = saved_run.find(arguments.run, arguments.uri)
    folder.parent.mkdir(parents=True, exist_ok=True)  # fails now, not after the minutes that the conversion takes
    with quiet_start():
        from experiments.deploy import export as exports

        model = run.model()
    compared_on = exports.sample(run, int(model.input_shape[1]), arguments.images)
    print(f"Writing {', '.join(formats)}; each is compared with the model on {compared_on.description}", flush=True)
    with quiet_start():  # the converters and runtimes log their steps
        found = exports.export(run, model, compared_on, folder, formats, arguments.overwrite)
    print("\n".join(table(found, formats)))
    if ranges := json.loads((folder / export_formats.MODEL_JSON).read_bytes())["int8_ranges_from"]:
        print(f"{export_formats.INT8} takes the ranges of activations from {ranges}")
    print(
        f"They are in {folder}, with {export_formats.MODEL_JSON}: the classes ({', '.join(run.classes)}), "
        "how to read an image file"
    )


def table(found: Sequence[Parity], formats: Sequence[str]) -> list[str]:
    """Return the lines of a table of comparisons, of which the first is that of the run's own model."""
    rows = [("", "difference", "same class", "accuracy", "size", "")]
    for name, parity in zip(["the model", *formats], found, strict=True):
        accuracy = "-" if parity.accuracy is None else f"{parity.accuracy:.2%}"
        agreement = (f"{parity.difference:.1e}", f"{parity.same:.2%}") if parity.file else ("", "")
        size = f"{parity.size / 1e6:.2f} MB" if parity.file else ""
        rows.append((name, *agreement, accuracy, size, parity.file))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if 0 < at < 5 else cell.ljust(width)
                  for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
