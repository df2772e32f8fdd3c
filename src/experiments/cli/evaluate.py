"""`experiments evaluate RUN FOLDER`: evaluate a trained model on further labelled images."""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import accuracy, add_run, exit_on_error, positive
from experiments.data.issues import printable
from experiments.errors import ConfigError
from experiments.runs.predictions import mistakes
from experiments.runs.run_directory import EVALUATIONS, SKIPPED
from experiments.storage.csv_files import encodable
from experiments.system.startup import quiet_start

if TYPE_CHECKING:
    from experiments.deploy.evaluate import Evaluation
    from experiments.deploy.labelled_images import LabelledFiles
    from experiments.deploy.saved_run import Trained

SOME_FAILED, NOT_REACHED = 3, 4
SHOWN = 10  # mistakes, and files that cannot be used, that are printed


@exit_on_error(OSError)
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments evaluate",
        description="Evaluates the model of a finished run on labelled images that the run did not have: metrics with "
        "intervals, scores by class, figures and a prediction for each image; compared with the accuracy on the run's "
        "validation images. Images that the model was trained on are reported. The results are logged to MLflow, as a "
        "child of the run.",
        epilog=f"Exit code: 0 where every image was evaluated, {SOME_FAILED} where files could not be used, "
        f"{NOT_REACHED} where the accuracy is below --must-reach, 1 where nothing was evaluated, 2 for wrong "
        "arguments.",
    )
    add_run(parser)
    parser.add_argument(
        "images", type=Path, metavar="FOLDER", help="a folder with one for each class; or a CSV file: path and class"
    )
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="the split of FOLDER, if it has splits"
    )
    parser.add_argument("--ignore-unknown", action="store_true", help="leave out classes that the model does not have")
    parser.add_argument("--must-reach", type=accuracy, metavar="ACCURACY", help="fail below this accuracy: 0.95")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"a new folder (default: one in {EVALUATIONS}/ of the run's)"
    )
    parser.add_argument("--no-log", action="store_true", help="write files only, nothing to MLflow")
    parser.add_argument("--batch-size", type=positive, default=32, help="images that the network takes at once (32)")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"--output: exists already, give a new folder. Received: {arguments.output}")
    evaluation = evaluate(arguments)
    reached = evaluation.report.metrics["accuracy"]
    if arguments.must_reach is not None and reached < arguments.must_reach:
        print(f"--must-reach: the accuracy {reached:.1%} is below {arguments.must_reach:.1%}", file=sys.stderr)
        sys.exit(NOT_REACHED)
    sys.exit(SOME_FAILED if evaluation.skipped else 0)


def evaluate(arguments: argparse.Namespace) -> Evaluation:
    """Evaluate a run's model, write the results to a directory, and print them."""
    from experiments.deploy import labelled_images, saved_run
    from experiments.system.progress import PlainConsole, Terminal

    run = saved_run.find(arguments.run, arguments.uri)
    labelled = labelled_images.find(
        arguments.images, run.classes, arguments.split, arguments.ignore_unknown, run.merged_classes
    )
    output = arguments.output or default_output(run, arguments.images, arguments.split)
    check_writable(output)
    for note in labelled.notes:
        print(note, file=sys.stderr)
    with quiet_start():
        from experiments.deploy import evaluate as evaluations

        model = run.model()
    began = time.perf_counter()
    with Terminal(PlainConsole(stderr=True)).stage("evaluating", len(labelled.files)) as advance:
        found = evaluations.evaluate(run, model, labelled, arguments.batch_size, advance)
    rate = len(found.report.predictions) / (time.perf_counter() - began)
    report(found)
    evaluations.write(found, run, labelled, int(model.input_shape[1]), output)
    print(f"results  {output}")
    if run.run_id and not arguments.no_log:
        log(run, found, labelled, output, arguments.split)
    counts = f"{len(found.report.predictions)} images evaluated, {len(found.skipped)} files could not be used"
    print(f"{counts}, {rate:.0f} a second", file=sys.stderr)
    return found


def log(run: Trained, found: Evaluation, labelled: LabelledFiles, output: Path, split: str | None) -> None:
    """Log an evaluation to MLflow, as a child of the run; if that fails, its files are still there."""
    from experiments.deploy.evaluate import digest
    from experiments.reports.text import accuracy_line
    from experiments.tracking.summary_runs import log_evaluation

    assert run.run_id is not None
    name = encodable("_".join(filter(None, (labelled.place.stem, split))))
    data = {"name": name, "digest": digest(found.report), "source": encodable(str(labelled.place))}
    text = "\n\n".join([accuracy_line(found.report), *found.sentences])
    try:
        child = log_evaluation(run.store, run.run_id, f"evaluate-{name}", data, found.metrics, output, text)
    except ConfigError as error:
        print(f"The evaluation is not in MLflow: {error}", file=sys.stderr)
    else:
        print(f"MLflow   {child}, a child of run {run.run_id}")


def default_output(run: Trained, images: Path, split: str | None) -> Path:
    """Return a new directory for an evaluation, below the run's directory, which has to be on this machine."""
    if run.folder is None:
        raise ConfigError(f"{run.name}: its folder is not on this machine. Say where to write: --output FOLDER")
    name = "_".join(filter(None, (time.strftime("%Y-%m-%d_%H-%M-%S"), images.absolute().stem, split)))
    place = run.folder / EVALUATIONS
    return next(path for at in count(1) if not (path := place / (name if at == 1 else f"{name}_{at}")).exists())


def check_writable(output: Path) -> None:
    """Raise ConfigError if the results cannot be written to a directory, before the minutes that they take."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(output.parent, os.W_OK | os.X_OK) else "no permission, or a read-only disk"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f"{output}: cannot be written ({reason}). Say where to write: --output FOLDER")


def report(found: Evaluation) -> None:
    """Print metrics, scores by class, comparisons and the most confident mistakes."""
    from experiments.deploy.evaluate import SPLIT
    from experiments.reports.text import accuracy_line, metric_lines, print_classes
    from experiments.system.progress import PlainConsole

    console = PlainConsole(soft_wrap=True)
    lines = [accuracy_line(found.report), *metric_lines(found.report)]
    if (scaled := found.metrics.get(f"{SPLIT}.scaled_loss")) is not None:
        error, before = found.metrics[f"{SPLIT}.scaled_calibration_error"], found.metrics[f"{SPLIT}.calibration_error"]
        loss = found.metrics[f"{SPLIT}.loss"]
        lines.append(f"{SPLIT} with the run's temperature: loss {loss:.3f} → {scaled:.3f}, "
                     f"calibration error {before:.3f} → {error:.3f}")  # fmt: skip
    for line in lines:
        console.print(line)
    print_classes(console, found.report)
    for line in found.sentences:
        console.print(line)
    if wrong := mistakes(found.report.predictions):
        which = f"the {SHOWN} most confident" if len(wrong) > SHOWN else "most confident first"
        console.print(f"{len(wrong)} mistakes, {which} (true → predicted):")
    for mistake in wrong[:SHOWN]:
        names = f"{printable(mistake.label)} → {printable(mistake.predicted)}"
        console.print(f"{mistake.confidence:6.1%}  {names}  {printable(mistake.path)}")
    for issue in found.skipped[:SHOWN]:
        print(f"{printable(issue.path)}: {issue.text}", file=sys.stderr)
    if len(found.skipped) > SHOWN:
        print(f"and {len(found.skipped) - SHOWN} more: {SKIPPED} in the results lists all", file=sys.stderr)
