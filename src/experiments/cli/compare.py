"""`experiments compare RUN RUN ...`: scores of runs, their differences in configuration, and significance tests."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_data, add_uri, exit_on_error, whole
from experiments.errors import ConfigError
from experiments.runs.location import folder_named
from experiments.system.paths import tracking_uri

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from experiments.comparison.class_differences import ClassComparison
    from experiments.comparison.comparison import Comparison

IMAGES = 24  # default number of images in the gallery
MOST_COLUMNS = 4  # groups whose configurations are shown side by side on a terminal
LONGEST = 40  # characters of a value on a terminal; the files contain the whole value
BRIEF = ("loss", "roc_auc", "brier")  # the metrics that fit on a terminal; the files contain all


def arguments_of() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="experiments compare",
        description="Compares finished runs. Runs that differ in their seed only are one row: their mean, with its "
        "interval over seeds and images. The first row is what the others are compared with, image by image. Single "
        "runs are compared as trained models (McNemar's test, Tango's interval); whether a setting is better takes "
        "several seeds or folds of each (seed=0,1,2). Runs that are named keep their order; after "
        "them come those of --sweep and --query, the best validation accuracy first. Nothing is ranked by the test "
        "split. Writes comparison.html (one page, to be viewed without a network), .md and .csv, and logs them to "
        "MLflow, unless one of the runs is not there (tracking=none; given by its folder).",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run ids, their beginnings, run names, their ends (280729), or folders"
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="SWEEP",
        help="the jobs of a sweep: its name, folder, or MLflow run id; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--query", metavar="TEXT", help="finished runs that fit, in MLflow's syntax: \"params.regime = 'finetune'\""
    )
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument(
        "--images", "--pictures", type=whole(0), default=IMAGES, metavar="N",
        help=f"how many images to show on which the runs disagree (default: {IMAGES})",
    )  # fmt: skip
    add_data(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default: outputs/compare/compare-...)")
    parser.add_argument("--no-log", action="store_true", help="write files only, nothing to MLflow")
    add_uri(parser)
    arguments = parser.parse_args()
    if not (arguments.runs or arguments.sweep or arguments.query):
        parser.error("give runs, --sweep SWEEP or --query TEXT")
    return arguments


@exit_on_error()
def main() -> None:
    arguments = arguments_of()
    from experiments.comparison import page
    from experiments.comparison.class_differences import compare_classes
    from experiments.comparison.comparison import compare
    from experiments.sweeps import sweep_directory
    from experiments.system.progress import PlainConsole
    from experiments.tracking.queries import find_runs, search_runs

    names, stores = in_mlflow(arguments.runs)
    uri = arguments.uri or next(iter(stores), tracking_uri())
    named = find_runs(uri, names)
    found = [run for sweep in arguments.sweep for run in sweep_directory.finished_runs(uri, sweep)]
    if arguments.query:
        fitting = search_runs(uri, arguments.query)
        if not fitting:
            raise ConfigError(f"--query: no finished run fits. Received: {arguments.query!r}")
        found += fitting
    comparison = compare(uri, named, arguments.split, found)
    console, classes = PlainConsole(), compare_classes(comparison)
    show(console, comparison, classes)
    try:
        path, run_id = page.save(
            uri, comparison, classes, arguments.output, arguments.images, arguments.data, log=not arguments.no_log
        )
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}. Give a folder that can be written: --output FOLDER --no-log")
    console.print(f"page     {path.resolve()}", highlight=False, markup=False, soft_wrap=True)
    if run_id:
        console.print(f"MLflow   {run_id}", highlight=False, soft_wrap=True)


def in_mlflow(runs: Sequence[str]) -> tuple[list[str | Path], list[str]]:
    """Return runs as `find_runs` takes them, with ids in place of the directories of tracked runs, and their stores."""
    names, stores = list[str | Path](runs), []
    for at, text in enumerate(runs):
        if folder := folder_named(text):
            from experiments.deploy import saved_run

            found = saved_run.of_folder(folder)
            names[at] = found.run_id or folder
            stores += [found.store] if found.run_id else []
    return names, stores


def show(console: Console, comparison: Comparison, classes: ClassComparison) -> None:
    """Print a comparison; names that the table of scores has no room for are printed above it."""
    from experiments.comparison import text as comparison_text
    from experiments.system.progress import fits

    title = f"{comparison.split}: accuracy on {comparison.image_count} images [95 % interval], differences in points"
    scores = comparison_text.score_table(comparison)
    for row in scores[1:]:
        row[0] = row[0].replace(" ", "\n  ").replace("\n  ", " ", 1)  # one key per line
    if not fits(console, made(scores)):
        for name in comparison.names:
            console.print(name)
        console.print()
        scores = numbered(scores)
    table(console, scores, title)
    metrics = comparison_text.metric_table(comparison, BRIEF)
    if len(metrics[0]) > 1:
        table(console, numbered(metrics))
    show_classes(console, comparison, classes)
    if len(comparison.groups) > 1:
        valued, unread = comparison_text.configuration_tables(comparison)
        columns, by_values = shortened(valued), shortened(by_value(valued))
        is_wide = len(comparison.groups) > MOST_COLUMNS or not fits(console, made(columns, numbers=False))
        if len(valued) > 1:
            table(console, by_values if is_wide else columns, "what differs in configuration", numbers=False)
        for line in comparison_text.unread_keys(unread):
            console.print(line)
        console.print()
    for sentence in comparison_text.sentences(comparison):
        console.print(sentence)


def show_classes(console: Console, comparison: Comparison, found: ClassComparison) -> None:
    """Print the positive class, and for a few groups the recall of each class and the pairs that are confused."""
    from experiments.comparison import class_differences as comparison_classes

    if sentence := comparison_classes.decision_sentence(comparison):
        console.print(sentence, highlight=False, markup=False)
        console.print()
    if not 1 < len(comparison.groups) <= comparison_classes.BRIEF_GROUPS:
        return
    title = f"recall by class{comparison_classes.shown_of(found, comparison_classes.BRIEF_CLASSES)}"
    title += "; * significantly different from the first" if len(comparison.groups) > 2 else ", differences in points"
    table(console, comparison_classes.brief_class_table(found), title)
    pairs = comparison_classes.confusion_table(found, comparison_classes.BRIEF_PAIRS)
    if len(pairs) > 1:
        show_confusions(console, pairs)


def show_confusions(console: Console, pairs: list[list[str]]) -> None:
    """Print which classes are confused; beside long names there is no room for the differences, which the page has."""
    from experiments.system.progress import fits

    title, whole = "confused images (share of the class)", made(pairs)
    for column, cells in zip(whole.columns, zip(*pairs, strict=True), strict=True):
        column.min_width = max(map(len, cells if column.no_wrap else " ".join(cells).split()))
    if fits(console, whole, wrapped=True):
        title += ", difference of the shares in points"
    else:
        pairs = [[name, *(re.sub(r"\).*", ")", cell) for cell in cells)] for name, *cells in pairs]
    table(console, pairs, title)


def shortened(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell if len(cell) <= LONGEST else f"{cell[: LONGEST - 1]}…" for cell in line] for line in lines]


def by_value(differing: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the configuration differences of many groups: a row per value, with the numbers of the groups with it."""
    lines = [["key", "value", "of"]]
    for key, *values in differing[1:]:
        for value in dict.fromkeys(values):
            numbers = [str(at) for at, other in enumerate(values, 1) if other == value]
            lines.append([key, value, " ".join(numbers)])
    return lines


def numbered(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table of groups with their numbers only, without their names."""
    return [[line[0].split()[0], *line[1:]] for line in lines]


def table(console: Console, lines: Sequence[Sequence[str]], title: str | None = None, numbers: bool = True) -> None:
    """Print a table; see `made`."""
    if title:  # printed apart, because rich wraps a table's own title to the table's width
        console.print(title, style="italic", highlight=False)
    console.print(made(lines, numbers))


def made(lines: Sequence[Sequence[str]], numbers: bool = True) -> Table:
    """Return a table whose first column is wrapped; the other columns are wrapped as well unless they hold numbers."""
    from experiments.system.progress import plain_table

    table = plain_table(lines[0], lines[0][1:] if numbers else (), pad_edge=False)
    for line in lines[1:]:
        table.add_row(*line)
    return table
