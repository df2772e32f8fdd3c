"""`experiments inspect WHAT`: show a part of a configuration before a run, or the mistakes of a finished run."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

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
from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.config.schema import Config
    from experiments.deploy.saved_run import Trained
    from experiments.inspection.inspection import Inspection

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
        "Draws the learning rate of every epoch, warm-up and phases with it, as the run will set it; of a schedule "
        "that watches the run, between which rates it will be.",
    ),
    "lr": (
        "range test: which learning rate this training takes",
        "Trains the run's last phase for some batches, with a learning rate that grows with each, until the loss runs "
        "away (Smith, 2017), and suggests one. What that phase starts from (cached features, for fine-tuning the "
        "trained head) is made or found in the cache as by the run; the weights are thrown away.",
    ),
    "mistakes": (
        "a run's most confident errors, with Grad-CAM",
        "Draws the images that a finished run got wrong with most confidence, each beside what in it "
        "spoke for the class that was predicted (Grad-CAM), into the run's figures.",
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
OF_RUNS = ("mistakes", "labels")  # the parts that look at finished runs
SHARED = ("part", "overrides", "config_dir", "run", "uri", "dpi", "output")  # the other options are the part's own


@exit_on_error()
def main() -> None:
    arguments = parse()
    result, run = inspect(arguments)
    show(result)
    path = arguments.output or result.path(run)
    if result.table:
        from experiments.storage.csv_files import write_rows

        write_rows(path.with_suffix(".csv"), result.table)
        print(path.with_suffix(".csv"))
    if result.draw is not None:
        from experiments.inspection.inspection import log_file, write_figure
        from experiments.runs.run_directory import FIGURES

        write_figure(result.draw(), path, arguments.dpi)
        print(path)
        if run and run.run_id:
            log_file(run, path)
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
            "--output",
            type=ending(".png"),
            metavar="PATH",
            help="PNG file (default: inspect/ in outputs, of a run its figures/)",
        )
    for name, count, what in (("augmentation", 8, "rows"), ("data", 6, "of each class")):
        parts[name].add_argument(
            "--images", "--pictures", type=positive, default=count, help=f"{what} (default: {count})"
        )
    parts["augmentation"].add_argument(
        "--views", type=positive, default=6, help="augmented images in a row (default: 6)"
    )
    parts["model"].add_argument("--layers", action="store_true", help="print every layer, not only the blocks")
    parts["model"].add_argument("--classes", type=whole(2), help="of the head (default: the run's, else 2)")
    lr, mistakes = parts["lr"], parts["mistakes"]
    lr.add_argument("--batches", type=positive, default=100, help="at most (default: 100)")
    lr.add_argument("--from", type=rate, default=1e-6, dest="lowest", metavar="LR", help="(default: 1e-6)")
    lr.add_argument("--to", type=rate, default=10.0, dest="highest", metavar="LR", help="(default: 10)")
    mistakes.add_argument("--split", default="validation", choices=("validation", "test"))
    mistakes.add_argument("--count", type=positive, default=12, help="at most (default: 12)")
    parts["labels"].add_argument("--count", type=positive, default=24, help="printed and drawn (default: 24)")
    for part in (mistakes, parts["labels"]):
        part.add_argument("--data", type=Path, metavar="PATH", help="where the images are now (default: data.root)")
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


def inspect(arguments: argparse.Namespace) -> tuple[Inspection, Trained | None]:
    """Inspect a part, and return the result and the run that it belongs to, if one is given."""
    from experiments.cli.composed import read
    from experiments.deploy import saved_run
    from experiments.system.startup import quiet_start

    options = {name: value for name, value in vars(arguments).items() if name not in SHARED}
    if arguments.part == "lr" and (options["lowest"] >= options["highest"] or options["batches"] < 2):
        raise ConfigError(
            f"--from must be below --to, with two batches or more between them. Received: --from "
            f"{options['lowest']:g} --to {options['highest']:g} --batches {options['batches']}"
        )
    if arguments.part == "labels":
        return inspect_labels(arguments.run, arguments.uri, **options)
    run = saved_run.find(arguments.run, arguments.uri) if arguments.run else None
    config = run.config if run else read(arguments.overrides, arguments.config_dir)
    if arguments.part == "model":
        options["classes"] = options["classes"] or (len(run.classes) if run else 2)
    with quiet_start():
        part = importlib.import_module(f"experiments.inspection.{arguments.part}")
    if arguments.part == "lr":
        return inspect_lr(config, **options), run
    result: Inspection = part.inspect(run if arguments.part == "mistakes" else config, **options)
    return result, run


def inspect_labels(named: str, uri: str | None, *, count: int, data: Path | None) -> tuple[Inspection, Trained | None]:
    """Inspect the labels of a run's images; those of all folds, for a sweep over folds or one of its jobs."""
    from experiments.deploy import saved_run
    from experiments.runs.run_directory import SWEEP
    from experiments.sweeps import summary, sweep_directory
    from experiments.system.startup import quiet_start
    from experiments.training.types import Status

    run = sweep = None
    try:
        sweep = sweep_directory.find(named)
    except ConfigError:
        run = saved_run.find(named, uri)
        if run.folder and run.config.data.fold is not None and (run.folder.parent / SWEEP).is_file():
            sweep = run.folder.parent
    runs = [run] if run else []
    if sweep:
        jobs = [row for row in summary.read(sweep)[1] if row.status == Status.FINISHED]
        if not jobs:
            raise ConfigError(f"{sweep}: no job of this sweep has finished")
        runs = [saved_run.of_folder(row.folder) for row in jobs]
    with quiet_start():
        from experiments.inspection import labels
    return labels.inspect(runs, sweep=sweep, count=count, data=data), None if sweep else run


def inspect_lr(config: Config, *, lowest: float, highest: float, batches: int) -> Inspection:
    """Run a learning rate range test of `batches` batches."""
    import numpy as np

    from experiments.inspection import lr
    from experiments.inspection.inspection import Inspection
    from experiments.system.progress import PlainConsole, Terminal
    from experiments.tracking import inputs
    from experiments.training import runtime

    rates = np.geomspace(lowest, highest, batches)
    with tempfile.TemporaryDirectory() as folder, runtime.apply(config.runtime):
        files = inputs.fetch(config, Path(folder))
        found = lr.range_test(config, files, rates, Terminal(PlainConsole(stderr=True)))
    name, facts = f"lr-{config.regime.name}-{config.optimizer.name}", {"rates": f"{lowest} {highest} {batches}"}
    return Inspection(config, name, lr.sentences(config, found), lambda: lr.draw(config, found), facts)


def show(result: Inspection) -> None:
    """Print the lines of an inspection; tables at least as wide as their cells, even on a narrow terminal."""
    from experiments.system.progress import PlainConsole

    for line in result.lines:
        if isinstance(line, str):
            print(line)
            continue
        width = PlainConsole(width=1000).measure(line).maximum
        PlainConsole(width=max(PlainConsole().width, width)).print(line)


if __name__ == "__main__":
    main()
