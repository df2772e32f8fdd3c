"""`experiments inspect WHAT`: show a part of a configuration before a run, or the mistakes of a finished run."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from experiments.cli.arguments import (
    add_config_dir,
    add_overrides,
    add_run,
    add_uri,
    ending,
    exit_on_error,
    number,
    positive,
    whole,
)
from experiments.inspection.parts import LEAST, OF_RUNS, OPTIONS

# Each part's module in `inspection` has the same name.
PARTS = {
    "augmentation": (
        "training images, and what the augmentation makes of them",
        "Draws training images, each in a row with what the augmentation makes of it in the first epochs. The draws "
        "are those of a run with this seed whose training images are these, in one batch. An image is 1.75 inches "
        "wide.",
    ),
    "data": (
        "classes, splits, sizes, and every invalid file",
        "Reads the data set as a run would, and reports its classes and splits, its files' sizes, and for every "
        "invalid file the reason (exit code 1 if a run would refuse them). Files that data.limit or data.fold "
        "excludes are not decoded, as in a run.",
    ),
    "model": (
        "layers, blocks, parameters, what is trained, and what an image costs",
        "Builds the network of a configuration and prints, block by block, its parameters and multiply-adds, what the "
        "regime trains of it, and before which layer features are cached. Neither images nor weights are read. "
        "How many images a second that is on this machine: experiments backbones NAME.",
    ),
    "schedule": (
        "the learning rate over the epochs to come",
        "Draws the learning rate of every epoch, with warm-up and phases, as the run will set it; for "
        "schedule=plateau, which depends on the run, the lowest and the highest possible rate.",
    ),
    "lr": (
        "range test: which learning rate this training takes",
        "Trains the run's last phase for some batches, with a learning rate that grows with each, until the loss "
        "diverges (Smith, 2017), and suggests one. What that phase starts from (cached features, for fine-tuning the "
        "trained head) is computed or read from the cache as by the run; the weights are discarded.",
    ),
    "mistakes": (
        "a run's most confident errors, with Grad-CAM",
        "Draws the images that a finished run got wrong with most confidence, each beside the regions that support "
        "the predicted class (Grad-CAM), into the run's figures.",
    ),
    "labels": (
        "the images whose labels a run doubts most, as a table and a figure",
        "Lists the validation and training images by the probability that the model gives their label, the lowest "
        "first (confident learning, Northcutt et al., 2021), and writes all as CSV and the first as a figure. For a "
        "sweep over data.fold, every image is rated by models that were not trained on it; of a single run that holds "
        "for the validation images only.",
    ),
}
rate = number("a learning rate above 0", lambda value: 0 < value < math.inf)
SHARED = ("part", "overrides", "config_dir", "run", "uri", "dpi", "output")  # the other options are the part's own


@exit_on_error(OSError)
def main() -> None:
    arguments = parse()
    from experiments.api.inspection import inspect_part

    options = {name: value for name, value in vars(arguments).items() if name not in SHARED}
    place = getattr(arguments, "config_dir", None)
    given = [*(["--config-dir", str(place)] if place else []), *getattr(arguments, "overrides", ())]
    instead = f"Inspect it by: experiments inspect {arguments.part} --run RUN"
    result, run = inspect_part(arguments.part, given, arguments.run, arguments.uri, options, instead)
    from experiments.inspection.inspection import show, write_figure  # after the error of a wrong configuration
    from experiments.tracking.summary_runs import add_file

    show(result)
    path = arguments.output or result.path(run)
    if result.table:
        from experiments.storage.csv_files import write_rows

        write_rows(path.with_suffix(".csv"), result.table)
        print(path.with_suffix(".csv"))
    if result.draw is not None:
        from experiments.runs.run_directory import FIGURES

        write_figure(result.draw(), path, arguments.dpi)
        print(path)
        if run and run.run_id:
            add_file(run.store, run.run_id, path)
            print(f"also in MLflow: run {run.run_id}, {FIGURES}/{path.name}")
    if result.is_refused:
        sys.exit(1)


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="experiments inspect",
        description="Shows one part of a configuration, given as for train or as a run had it (--run), as text and as "
        "a figure; or the mistakes, or the doubtful labels, of a finished run.",
    )
    components = parser.add_subparsers(dest="part", required=True, metavar="WHAT")
    parts = {}
    for name, (about, description) in PARTS.items():
        part = parts[name] = components.add_parser(name, help=about, description=description)
        if name in OF_RUNS:
            add_run(part)
        else:
            add_overrides(part)
            add_config_dir(part)
            part.add_argument(
                "--run", metavar="RUN", help="a finished run's configuration instead (its folder, id or name); the "
                "image goes to its figures, in MLflow too",
            )  # fmt: skip
            add_uri(part)
        part.add_argument("--dpi", type=positive, default=100, help="of the image (default: 100)")
        part.add_argument(
            "--output", type=ending(".png"), metavar="PATH",
            help="PNG file (default: inspect/ in outputs, of a run its figures/)",
        )  # fmt: skip
    for name, what in (("augmentation", "rows"), ("data", "of each class")):
        parts[name].add_argument(
            "--images", "--pictures", type=whole(LEAST["images"]), help=f"{what} (default: %(default)s)"
        )
    parts["augmentation"].add_argument(
        "--views", type=whole(LEAST["views"]), help="augmented images in a row (default: %(default)s)"
    )
    parts["model"].add_argument("--layers", action="store_true", help="print every layer, not only the blocks")
    parts["model"].add_argument(
        "--classes", type=whole(LEAST["classes"]), help="of the head (default: the run's, else 2)"
    )
    lr, mistakes = parts["lr"], parts["mistakes"]
    lr.add_argument("--batches", type=whole(LEAST["batches"]), help="at most (default: %(default)s)")
    lr.add_argument("--from", type=rate, dest="lowest", metavar="LR", help="(default: %(default)s)")
    lr.add_argument("--to", type=rate, dest="highest", metavar="LR", help="(default: %(default)s)")
    mistakes.add_argument("--split", choices=("validation", "test"))
    mistakes.add_argument("--count", type=whole(LEAST["count"]), help="at most (default: %(default)s)")
    parts["labels"].add_argument("--count", type=whole(LEAST["count"]), help="printed and drawn (default: %(default)s)")
    for part in (mistakes, parts["labels"]):
        part.add_argument("--data", type=Path, metavar="PATH", help="where the images are now (default: data.root)")
    for name, defaults in OPTIONS.items():
        parts[name].set_defaults(**defaults)
    arguments, more = parser.parse_known_args()
    # argparse accepts positional arguments only in one piece, but overrides may be given on both sides of an option.
    wrong = [argument for argument in more if argument.startswith("-") or "overrides" not in arguments]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if more:
        arguments.overrides += more
    if getattr(arguments, "overrides", None) and arguments.run:
        parser.error(f"--run: its configuration is inspected without overrides. Received: {arguments.overrides[0]}")
    return arguments
