"""`experiments predict RUN PATH ...`: predict the classes of image files with a trained model."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from experiments.cli.arguments import add_uri, positive
from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.deploy.predict import Prediction

    Write = Callable[[Sequence[Prediction]], None]

FORMATS = ("terminal", "csv", "json")
SOME_FAILED = 3
LONGEST = 40  # characters of a class name on the terminal
LINE_END = csv.excel.lineterminator


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments predict",
        description="The class of image files and its probability, by the model of a finished run and the decoder it "
        "was trained with. A file that cannot be used is reported with the reason, and the others are still predicted.",
        epilog=f"Exit code: 0 where every file was predicted, {SOME_FAILED} where some could not be, 1 where nothing "
        "was (no such run or path), 2 for wrong arguments.",
    )
    parser.add_argument("run", metavar="RUN", help="its folder, MLflow id, the beginning of that, or name")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image files, folders (with all below), patterns such as 'd/**/*.jpg'",
    )
    parser.add_argument(
        "--format", choices=FORMATS,
        help="terminal: a line each, issues on standard error; csv; json: an object a line. csv and json have the "
        "probabilities of all classes, and issues among the rows (default: as --output ends, else terminal)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="there instead of on standard output; whole or not")
    parser.add_argument("--batch-size", type=positive, default=32, help="images that the network takes at once (32)")
    add_uri(parser)
    arguments = parser.parse_args()
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"--output: no such folder. Received: {arguments.output.parent}")
    suffix = arguments.output.suffix.removeprefix(".").replace("jsonl", "json") if arguments.output else ""
    form = arguments.format or (suffix if suffix in FORMATS else "terminal")
    try:
        failed = predict(arguments.run, arguments.paths, form, arguments.output, arguments.batch_size, arguments.uri)
    except (ConfigError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(SOME_FAILED if failed else 0)


def predict(named: str, paths: Sequence[str], form: str, output: Path | None, batch_size: int, uri: str | None) -> int:
    """Predict image files, write the predictions, and return the number of files that could not be used.

    Args:
        named: the run's folder, MLflow id, the beginning of that, or name.
        paths: image files, folders or patterns.
        form: one of `FORMATS`.
        output: the file to write; None: standard output.
        batch_size: images per batch.
        uri: the MLflow tracking store; None: the default one.

    Raises:
        ConfigError: no such run or files; nothing was written.
        OSError: the predictions cannot be written.
    """
    from experiments.data.decoder import gray_range
    from experiments.deploy import saved_run
    from experiments.deploy.predict import list_files, predictions
    from experiments.system.progress import PlainConsole, Terminal
    from experiments.system.startup import output_failure, quiet_start

    files, others = list_files(paths)
    if others:
        print(f"Passed over in these folders, as of no image type: {others} files", file=sys.stderr)
    run = saved_run.find(named, uri)
    grays = gray_range(run.plain["data"].get("gray_range"))
    # No progress bar if the predictions themselves are printed on the terminal.
    console = PlainConsole(stderr=True, force_terminal=False if output is None and sys.stdout.isatty() else None)
    done = failed = 0
    with opened(output, form) as file:
        with quiet_start():
            model = run.model()
        write, began = WRITERS[form](file, run.classes), time.perf_counter()
        with Terminal(console).stage("predicting", len(files)) as advance:
            for some in predictions(model, files, batch_size, grays):
                write(some)
                advance(len(some))
                done, failed = done + len(some), failed + sum(one.probabilities is None for one in some)
                if output is None and output_failure():  # the reader of standard output is gone
                    break
        rate = (done - failed) / (time.perf_counter() - began)
    print(f"{done - failed} images predicted, {failed} files could not be used, {rate:.0f} a second", file=sys.stderr)
    return failed


@contextmanager
def opened(output: Path | None, form: str) -> Iterator[TextIO]:
    """Open the file `output`, which is written atomically, or standard output if it is None."""
    if output is None:
        # CSV and JSON are data, so names in them are not redacted; messages on the terminal are.
        yield sys.stdout if form == "terminal" else getattr(sys.stdout, "stream", sys.stdout)
        return
    from experiments.storage.atomic_files import writing_file

    with writing_file(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        yield text
        text.detach()  # flushes without closing the file, which writing_file closes


def terminal_rows(file: TextIO, classes: Sequence[str]) -> Write:
    """Return a writer of one line per image; errors of files go to standard error."""
    from rich.cells import cell_len

    from experiments.data.listing import printable

    names = [
        name if len(name) <= LONGEST else f"{name[: LONGEST - 10]}…{name[-9:]}" for name in map(printable, classes)
    ]
    width = max(map(cell_len, names))
    padded = [name + " " * (width - cell_len(name)) for name in names]

    def write(some: Sequence[Prediction]) -> None:
        for one in some:
            if one.probabilities is None:
                file.flush()  # so that lines on both streams keep their order
                print(f"{printable(one.path)}: {one.error}", file=sys.stderr)
            else:
                best = int(one.probabilities.argmax())
                file.write(f"{padded[best]}  {one.probabilities[best]:6.1%}  {printable(one.path)}\n")

    return write


def csv_rows(file: TextIO, classes: Sequence[str]) -> Write:
    """Return a writer of CSV rows: path, class, probability, the probability of every class (p_NAME), error."""
    columns = ("path", "class", "probability", *(f"p_{name}" for name in classes), "error")

    def write_row(cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(cells)  # with csv's own line end, so that names with a carriage return are quoted
        file.write(f"{line.getvalue().removesuffix(LINE_END)}\n")

    def write(some: Sequence[Prediction]) -> None:
        for one in some:
            if one.probabilities is None:
                write_row([one.path, *[""] * (len(columns) - 2), one.error])
            else:
                best, shares = int(one.probabilities.argmax()), one.probabilities.tolist()
                write_row([one.path, classes[best], shares[best], *shares, ""])

    write_row(columns)

    return write


def json_rows(file: TextIO, classes: Sequence[str]) -> Write:
    """Return a writer of one JSON object per line: path, class, probability, probabilities by class; or path, error."""

    def write(some: Sequence[Prediction]) -> None:
        for one in some:
            row: dict[str, object] = {"path": one.path}
            if one.probabilities is None:
                row["error"] = one.error
            else:
                best, shares = int(one.probabilities.argmax()), one.probabilities.tolist()
                row |= {"class": classes[best], "probability": shares[best]}
                row["probabilities"] = dict(zip(classes, shares, strict=True))
            file.write(f"{json.dumps(row)}\n")

    return write


WRITERS = {"terminal": terminal_rows, "csv": csv_rows, "json": json_rows}


if __name__ == "__main__":
    main()
