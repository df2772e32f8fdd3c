"""What a run prints about its scores: a line per split, the classes as a table, and the most confused pairs."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.data.issues import printable
from experiments.evaluation.evaluate import METRICS, Report, majority_baseline, percent
from experiments.evaluation.per_class import worst_first
from experiments.evaluation.statistics import Interval
from experiments.evaluation.training_checks import best_epoch
from experiments.runs.run_directory import REPORT
from experiments.system.paths import tracking_uri
from experiments.system.progress import plain_table
from experiments.system.redaction import redact_credentials
from experiments.training.types import EpochRecord

MOST_ROWS = 20  # Up to this number of classes, the terminal shows all of them,
WORST = 10  # else those with the lowest F1.
MOST_PAIRS = 5
MOST_LOGGED = 40  # Up to this number of classes, MLflow has precision, recall and F1 of each as metrics.
LONGEST_NAME = 100  # characters of a class in the name of a metric; MLflow allows 250 in all
SUMMARY = ("balanced_accuracy", "macro_f1", "matthews", "top3_accuracy", "top5_accuracy")  # metrics over all classes
POSITIVE = ("precision", "recall", "f1", "roc_auc", "average_precision")  # of the positive one of two classes
RATIOS = ("matthews", "macro_f1", "f1", "roc_auc", "average_precision")  # metrics that are no shares of images


def other_store(uri: str | None) -> str | None:
    """Return the redacted address of a tracking store that commands have to name, as it is not the one in use here."""
    return None if uri in (None, tracking_uri()) else redact_credentials(str(uri))


def print_results(
    console: Console, folder: Path, reports: Mapping[str, Report], run_id: str | None, epochs: Sequence[str] = (),
    uri: str | None = None,
) -> None:  # fmt: skip
    """Print lines about the epochs, each split's scores, where to find the run, and commands that use it.

    The scores of the classes are printed for the last split; `uri` is the tracking store of the run. Nothing is printed
    in a notebook, where `api.train` returns the run.
    """
    if console.is_jupyter:
        return
    scores = [line for report in reports.values() for line in [accuracy_line(report), *metric_lines(report)]]
    places = [f"run folder  {folder}"]
    places += [f"report      {folder / REPORT}"] if (folder / REPORT).is_file() else []
    place = other_store(uri)
    where = f" --uri {shlex.quote(place)}" if place else ""
    places += [f"MLflow run  {run_id}   look at it: experiments ui{where}"] if run_id else []
    console.print("\n".join([*epochs, *scores]), highlight=False, markup=False, soft_wrap=True)
    print_classes(console, list(reports.values())[-1])
    console.print("\n".join([*places, *next_commands(folder)]), highlight=False, markup=False, soft_wrap=True)


def epoch_lines(candidates: Sequence[EpochRecord], monitor: str, best_weights: bool) -> list[str]:
    """Return a line about the best one of a run's `candidate_epochs`, if there is one, and whose weights are kept."""
    best = best_epoch(candidates, monitor)
    if best is None:
        return []
    first, last = candidates[0].epoch, candidates[-1]
    kept = "whose weights are the result" if best_weights or best is last else "the last one is the result"
    counted = f"; epochs before {first + 1} do not count" if first else ""
    value = f"{best.phase}, {monitor} {best.metrics[monitor]:.3f}"
    return [f"best epoch {best.epoch + 1} of {last.epoch + 1} ({value}{counted}), {kept}"]


def next_commands(folder: Path) -> list[str]:
    """Return lines with commands that use a finished run, by the shorter path of its directory.

    With a path they find the run in whatever store it is, which may be in another `outputs`.
    """
    run = shlex.quote(min(os.path.relpath(folder), str(folder), key=len))
    commands = (f"predict {run} IMAGE", f"inspect mistakes {run}", f"compare {run} OTHER_RUN")
    return [f"{'' if at else 'next':<11} experiments {command}" for at, command in enumerate(commands)]


def accuracy_line(report: Report) -> str:
    """Return a split's accuracy with its interval, beside that of the most frequent class."""
    metrics, baseline = report.metrics, majority_baseline(row.label for row in report.predictions)
    return (
        f"{report.split} accuracy {percent(metrics['accuracy'])} "
        f"(95 % interval {percent(metrics['accuracy_low'])} to {percent(metrics['accuracy_high'])}, "
        f"{len(report.predictions)} images), "
        + baseline.describe(metrics["accuracy"], metrics["accuracy_low"])
        + (f"; loss {metrics['loss']:.3f}" if "loss" in metrics else "")
    )


def metric_lines(report: Report) -> list[str]:
    """Return lines with further metrics of a split: over all classes; for two, those of the positive class."""
    lines = [f"{report.split} {_listed(report.metrics, SUMMARY)}"]
    if report.decision.positive is not None:
        lines.append(f"{report.split} {report.decision.text}: {_listed(report.metrics, POSITIVE)}")
    return lines


def _listed(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    known = [(name, metrics[name]) for name in names if name in metrics]
    return ", ".join(f"{METRICS[name]} {f'{value:.3f}' if name in RATIOS else percent(value)}" for name, value in known)


def format_score(metric: str, score: Interval | None) -> str:
    """Format a metric with its interval; an accuracy in per cent."""
    if score is None or math.isnan(score.value):
        return "–"
    if metric == "accuracy":
        value, bounds = f"{score.value:.1%}", f"[{100 * score.low:z.1f}, {100 * score.high:.1f}]"
    else:
        value, bounds = f"{score.value:.3f}", f"[{score.low:z.3f}, {score.high:.3f}]"
    return value if math.isnan(score.low) else f"{value} {bounds}".replace(" 100.0]", " 100]")


def print_classes(console: Console, report: Report) -> None:
    """Print the scores of the classes, of many classes the worst ones, and the pairs that are confused most."""
    shown, title = report.class_scores, f"{report.split}, by class [95 % interval]"
    if len(shown) > MOST_ROWS:
        shown = [score for score in worst_first(shown) if score.support][:WORST]
        title += f": the {len(shown)} classes with the lowest F1 of {len(report.class_scores)}"
    numbers = ("images", "precision", "recall", "F1")
    table = plain_table(("class", *numbers), numbers, pad_edge=False)
    for score in shown:
        cells = [str(score.support), _share(score.precision), _share(score.recall), _ratio(score.f1)]
        table.add_row(Text(printable(score.name)), *map(Text, cells))
    console.print(title, style="italic", highlight=False, markup=False)
    console.print(table)
    if report.confused_pairs:
        pairs = ", ".join(printable(str(pair)) for pair in report.confused_pairs[:MOST_PAIRS])
        console.print(f"most confused (true → predicted): {pairs}", highlight=False, markup=False, soft_wrap=True)


def _share(score: Interval) -> str:
    return "–" if math.isnan(score.value) else f"{score.value:.1%} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _ratio(score: Interval) -> str:
    return "–" if math.isnan(score.value) else f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def class_metrics(report: Report) -> dict[str, float]:
    """Return precision, recall and F1 of each class, named `validation.recall_by_class/CLASS`, for MLflow.

    MLflow's UI groups metrics by what stands before the slash. With more than MOST_LOGGED classes there are none, as
    thousands of metrics would make the UI unusable; undefined scores are omitted.
    """
    if len(report.classes) > MOST_LOGGED:
        return {}
    names = metric_names(report.classes)
    return {
        f"{report.split}.{metric}_by_class/{name}": value
        for metric in ("precision", "recall", "f1")
        for name, score in zip(names, report.class_scores, strict=True)
        if not math.isnan(value := getattr(score, metric).value)
    }


def metric_names(classes: Sequence[str]) -> list[str]:
    """Return for each class a distinct name that MLflow accepts as part of a metric's name.

    Characters other than letters, digits, `_`, `-`, `.`, `:` and the space are replaced by `_`.
    """
    names: list[str] = []
    for at, text in enumerate(classes):
        name = re.sub(r"[^\w.\- :]", "_", text)[:LONGEST_NAME]
        name = name if name.strip(". ") else f"class {at}"
        while name in names:
            name = f"{name}_{at}"
        names.append(name)
    return names
