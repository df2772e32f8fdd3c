"""The report of a run: one self-contained HTML page, made from the run directory.

Images and Grad-CAM are shown if the data and the model are at hand; what is not shown is named on the page.
"""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.config import overrides
from experiments.data.types import SPLITS
from experiments.errors import ConfigError
from experiments.evaluation.decision import recorded
from experiments.evaluation.evaluate import METRICS, Report
from experiments.evaluation.per_class import confusion_shares, worst_first
from experiments.evaluation.training_checks import best_epoch, candidate_epochs
from experiments.reports import image_sections, label_section, page, plots
from experiments.reports.text import accuracy_line, epoch_lines, format_score
from experiments.reuse import like
from experiments.runs.command import arguments
from experiments.runs.continuation import KEY
from experiments.runs.run_directory import CONFIG, REPORT, RunDirectory, classes_of, predictions_file
from experiments.storage import atomic_files
from experiments.training.types import EpochRecord, PhaseName, last_phase

if TYPE_CHECKING:
    import keras

CONFIDENCE = {
    "aurc": "area under risk-coverage", "temperature": "temperature", "scaled_loss": "loss, scaled by temperature",
    "scaled_calibration_error": "calibration error, scaled by temperature",
}  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """What a finished run has left in its directory, read for its report."""

    directory: RunDirectory
    facts: Mapping[str, Any]
    plain: Mapping[str, Any]  # the configuration as logged
    images: Sequence[Mapping[str, str]]  # the rows of the manifest
    classes: tuple[str, ...]  # in label order
    history: Sequence[EpochRecord]
    reports: Mapping[str, Report]  # by split


def read(directory: RunDirectory) -> RunRecord:
    """Read the record of a run; raise ConfigError if its validation predictions are gone."""
    for name in directory.lacks([predictions_file("validation")]):
        raise ConfigError(f"{directory.folder}: its {name} is gone, without which there is no report")
    facts, metrics, images = directory.facts(), directory.metrics(), directory.images()
    classes = classes_of(images)
    decision = recorded(facts, classes)
    reports = {}
    for split in filter(directory.has_predictions, ("validation", "test")):
        own = {name.removeprefix(f"{split}."): value for name, value in metrics.items() if name.startswith(f"{split}.")}
        rows = tuple(directory.predictions(split))
        reports[split] = Report(split, classes, own, rows, decision)
    path = directory.folder / CONFIG
    plain = like.parse(path.read_bytes(), str(path))
    return RunRecord(directory, facts, plain, images, classes, directory.epochs(), reports)


def write(
    directory: RunDirectory, root: Path | None, model: Callable[[], keras.Model] | None, target: Path | None = None
) -> Path:
    """Write the report of a run that has its results, and return its path: by default REPORT in the run directory.

    The data root is None if it is not known. `model` returns the model, for Grad-CAM; None: it contradicts the scores.
    """
    target = target or directory.folder / REPORT
    atomic_files.write_file(target, html(read(directory), root, model).encode())
    return target


def html(run: RunRecord, root: Path | None, model: Callable[[], keras.Model] | None) -> str:
    """Return the page."""
    monitor = str(run.plain.get("monitor"))
    candidates = candidate_epochs(run.history, run.facts.get("first_candidate", 0))
    near_duplicates = run.directory.near_duplicates()
    ended = (run.facts.get("ended") or 0) / 1000  # seconds since 1970
    called = dict(run.facts["command"])
    if called.get("config_name") == "config":
        del called["config_name"]
    best = epoch_lines(candidates, monitor, bool(run.plain.get("best_weights")))
    gallery = image_sections.gallery(run.reports["validation"], run.plain, root, model)
    figures = {}
    if run.history:
        figures["curves"] = page.svg(plots.learning_curves(run.history, best_epoch(candidates, monitor)))
    for split, report in run.reports.items():
        if report.predictions[0].probabilities:  # which an old run lacks
            drawn = plots.ranking(report) | {"precision_recall": plots.precision_recall(report)}
            figures |= {f"{split}_{name}": page.svg(figure) for name, figure in drawn.items()}
    return page.render(
        "run_report.html.j2",
        title=f"Run {run.directory.folder.name}",
        sentences=[*map(accuracy_line, run.reports.values()), *best, *continued_sentences(run)],
        warnings=[*run.facts.get("warnings", []), *run.facts.get("failures", [])],
        when=datetime.datetime.fromtimestamp(ended, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC") if ended else "",
        command=f"python -m experiments.train {shlex.join(arguments(called))}".strip(),
        notes=run.plain.get("notes") or "",
        differing=differing(run),
        configuration=(run.directory.folder / CONFIG).read_text(encoding="utf-8"),
        data=data_table(run),
        data_facts=data_sentences(run),
        issues=run.directory.issues(),
        near_duplicates=near_duplicates,
        near_duplicates_found=near_duplicates_sentence(near_duplicates),
        metrics=metric_table(run),
        decision=run.reports["validation"].decision.text if len(run.classes) == 2 else "",
        splits=[(report, class_table(report), confusion_shares(report.confusion)) for report in run.reports.values()],
        figures=figures,
        gallery=gallery,
        labels=label_section.section(run.directory, run.classes, run.plain, root),
        cost=cost_table(run),
        folder=shlex.quote(str(run.directory.folder)),
        run_id=run.facts.get("run_id"),
        epochs=run.plain.get("epochs", 0),
    )


# --- Sentences


def continued_sentences(run: RunRecord) -> list[str]:
    """Return which run this one has trained further, if it has."""
    if not (folder := run.facts.get("continues")):
        return []
    epochs = sum(record.phase == run.history[-1].phase for record in continued_epochs(run))
    return [f"It continues {folder} after epoch {epochs}, whose epochs are part of the curves."]


def continued_epochs(run: RunRecord) -> list[EpochRecord]:
    """Return the epochs of the run that this one has trained further; an empty list if there is none."""
    return RunDirectory(run.directory.inputs(KEY)).epochs()


def data_sentences(run: RunRecord) -> list[str]:
    """Return where the images come from, how many there are, and their sizes."""
    sides = [sorted(int(row[name]) for row in run.images) for name in ("width", "height")]
    (least, middle, most) = (" × ".join(str(side[at]) for side in sides) for at in (0, len(run.images) // 2, -1))
    sizes = f"{middle} pixels" if least == most else f"from {least} to {most} pixels, the median {middle}"
    data = run.plain.get("data", {})
    modes = Counter(row["mode"] for row in run.images)
    kinds = ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
    origin = f" from {data['root']}" if data.get("root") else ""
    size = data.get("image_size")
    return [
        f"{len(run.images):,} images of {len(run.classes)} classes{origin} (data={data.get('name')}).",
        f"Width × height: {sizes}; the network sees {size} × {size}. Pixel formats: {kinds}.",
    ]


def near_duplicates_sentence(pairs: Sequence[Mapping[str, str]]) -> str:
    """Return how many pairs of near-duplicates there are, and what that means for the scores."""
    if not pairs:
        return "No two images are known to be near-duplicates."
    leaks = sum(row["split"] != row["other_split"] for row in pairs)
    count = f"{len(pairs):,} pair{'s' if len(pairs) > 1 else ''} of near-duplicates, {leaks:,} in two splits"
    return f"{count}: the scores may be too good." if leaks else f"{count}."


# --- Tables: rows of text, the header first


def differing(run: RunRecord) -> list[list[str]] | None:
    """Return the configuration keys whose values differ from the defaults; None if that cannot be found out."""
    try:
        lines, _ = like.overrides(run.plain, run.facts["command"].get("config_dir"))
    except (ConfigError, HydraException, OmegaConfBaseException, TypeError, ValueError):
        return None  # as of a user's own group, whose files are gone, or of another version
    rows = [["key", "value"]]
    for line in lines:
        key, is_set, value = line.lstrip("+").partition("=")
        if (key, value) != ("model.layers", "null"):  # a key that some models do not have
            rows.append([key, overrides.literal(value)] if is_set else [key.removeprefix("~"), "(removed)"])
    return rows


def data_table(run: RunRecord) -> list[list[str]]:
    """Return the number of images of each class in each split."""
    counts = Counter((row["class_name"], row["split"]) for row in run.images)
    splits = [split for split in SPLITS if any(row["split"] == split for row in run.images)]
    rows = [[name, *(f"{counts[name, split]:,}" for split in splits)] for name in run.classes]
    totals = [f"{sum(counts[name, split] for name in run.classes):,}" for split in splits]
    return [["class", *splits], *rows, ["all", *totals]]


def metric_table(run: RunRecord) -> list[list[str]]:
    """Return the metrics of each split."""
    rows = [["metric", *run.reports]]
    for name, title in {**METRICS, **CONFIDENCE}.items():
        values = [report.metrics.get(name) for report in run.reports.values()]
        if any(value is not None for value in values):
            rows.append([title, *("–" if value is None else f"{value:.3f}" for value in values)])
    return rows


def class_table(report: Report) -> list[list[str]]:
    """Return the scores of the classes of a split; of more than two, the one with the lowest F1 comes first."""
    scores = report.class_scores if len(report.classes) == 2 else worst_first(report.class_scores)
    rows = [["class", "precision", "recall", "F1", "images"]]
    for score in scores:
        shares = [format_score("accuracy", share) for share in (score.precision, score.recall)]
        rows.append([score.name, *shares, format_score("f1", score.f1), f"{score.support:,}"])
    return rows


def cost_table(run: RunRecord) -> list[list[str]]:
    """Return how long the run and its parts took, and what it did not have to compute."""
    facts, rows = run.facts, [["part", "cost"]]
    total, fit = facts.get("total_seconds"), facts.get("fit_seconds")
    if total is not None:
        rows.append(["from start to results", f"{total:,.1f} s"])
    if fit is not None:
        reused = [record for record in run.history if record.phase == PhaseName.HEAD and facts.get("reused_seconds")]
        epochs = len(run.history) - len(continued_epochs(run)) - len(reused)
        rows.append(["training (Keras's fit)", f"{fit:,.1f} s for {epochs} epochs"])
    if total is not None and fit is not None:
        rest = f"{max(total - fit, 0):,.1f} s"
        rows.append(["the rest: reading images, features of the frozen part, evaluation", rest])
    for title, name, pattern in (
        ("an epoch of the last phase (median)", "seconds", "{:.2f} s"),
        ("training images per second (median)", "images_per_second", "{:,.0f}"),
    ):
        values = [record.metrics[name] for record in last_phase(run.history) if name in record.metrics]
        if values:
            rows.append([title, pattern.format(np.median(values))])
    if facts.get("reused_seconds"):
        rows.append(["not spent, because the head was in the cache", f"{facts['reused_seconds']:,.1f} s"])
    return [*rows, ["CPU threads", str(facts.get("threads"))]]
