"""`experiments predict RUN PATH ...`: predict the classes of image files with a trained model."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from experiments.cli.arguments import accuracy, add_run, exit_on_error, positive, share
from experiments.deploy.prediction_writers import WRITERS, Confidence

SOME_FAILED = 3


@exit_on_error(OSError)
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments predict",
        description="The class of image files and its probability, by the model of a finished run and the decoder it "
        "was trained with. A file that cannot be used is reported with the reason, and the others are still predicted.",
        epilog=f"Exit code: 0 where every file was predicted, {SOME_FAILED} where some could not be, 1 where nothing "
        "was (no such run or path), 2 for wrong arguments.",
    )
    add_run(parser)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image files, folders (with all below), patterns such as 'd/**/*.jpg'"
    )
    parser.add_argument(
        "--format", choices=tuple(WRITERS),
        help="terminal: a line each, issues on standard error; csv; json: an object a line. csv and json have the "
        "probabilities of all classes, and issues among the rows (default: as --output ends, else terminal)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="there instead of on standard output; whole or not")
    parser.add_argument("--batch-size", type=positive, default=32, help="images that the network takes at once (32)")
    parser.add_argument(
        "--reject", type=accuracy, metavar="ACCURACY",
        help="answer 'none' for images of low confidence, so that the answers have this accuracy on the validation "
        "images of the run: 0.99",
    )  # fmt: skip
    parser.add_argument(
        "--unlike", type=share, metavar="SHARE",
        help="answer 'none' for images unlike the training images: those farther from them, in the features that the "
        "head receives, than this share of the validation images: 0.99. csv and json have the distance, too",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="PATH",
        help="with --unlike: where the images that the run was trained on are now (default: data.root)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrated", action="store_true", help="scale the probabilities by the run's temperature; the classes stay"
    )
    arguments = parser.parse_args()
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"--output: no such folder. Received: {arguments.output.parent}")
    if arguments.output and arguments.output.exists() and not arguments.output.is_file():
        parser.error(f"--output: must be a file, no folder or device. Received: {arguments.output}")
    from experiments.data.listing import is_image

    if arguments.output and is_image(arguments.output.name):  # as of `--output *.jpg`, which would replace an image
        parser.error(f"--output: has the name of an image, and predictions are text. Received: {arguments.output}")
    if arguments.data and arguments.unlike is None:
        parser.error("--data: only --unlike reads the images of the run")
    suffix = arguments.output.suffix.lower().removeprefix(".").replace("jsonl", "json") if arguments.output else ""
    form = arguments.format or (suffix if suffix in WRITERS else "terminal")
    sys.exit(SOME_FAILED if predict(arguments, form) else 0)


def predict(arguments: argparse.Namespace, form: str) -> int:
    """Predict image files, write the predictions, and return the number of files that could not be used."""
    from experiments.deploy import saved_run
    from experiments.deploy.predict import list_files, predictions
    from experiments.system.progress import PlainConsole, Terminal
    from experiments.system.startup import output_failure

    files, others = list_files(arguments.paths)
    if others:
        number = f"{others} file{'' if others == 1 else 's'}"
        print(f"Passed over in these folders, as of no image type: {number}", file=sys.stderr)
    from experiments.deploy.rejection import prepare  # imported after the paths are known to exist: it takes time

    run = saved_run.find(arguments.run, arguments.uri)
    output = arguments.output
    confidence = Confidence(arguments.reject, arguments.calibrated, arguments.unlike, arguments.data)
    # No progress bar if the predictions themselves are printed on the terminal.
    console = PlainConsole(stderr=True, force_terminal=False if output is None and sys.stdout.isatty() else None)
    done = failed = 0
    with opened(output, form) as file:
        model, distances, answers, sentences = prepare(run, confidence, run.model, Terminal(console))
        for sentence in sentences:
            print(sentence, file=sys.stderr)
        write, began = WRITERS[form](file, answers), time.perf_counter()
        with Terminal(console).stage("predicting", len(files)) as advance:
            for batch in predictions(model, files, arguments.batch_size, run.decoder_settings, distances):
                for prediction in batch:
                    write(prediction)
                advance(len(batch))
                done, failed = done + len(batch), failed + sum(row.probabilities is None for row in batch)
                if output is None and output_failure():  # the reader of standard output is gone
                    break
        rate = (done - failed) / (time.perf_counter() - began)
    rejections = f" ({answers.rejected} of them as none)" if answers.reject else ""
    predicted = f"{done - failed} image{'' if done - failed == 1 else 's'} predicted{rejections}"
    unused = f"{failed} file{'' if failed == 1 else 's'} could not be used"
    print(f"{predicted}, {unused}, {rate:.0f} a second", file=sys.stderr)
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
