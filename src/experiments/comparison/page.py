"""Files of a comparison of runs: Markdown, CSV, figures, and one self-contained HTML page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from experiments.comparison import class_differences, plots, text
from experiments.comparison.class_differences import ClassComparison
from experiments.comparison.comparison import Comparison, Disagreement, GroupPrediction, disagreements
from experiments.errors import ConfigError
from experiments.reports import page
from experiments.reports.figure_style import save_figure
from experiments.runs.location import folder_of
from experiments.runs.run_directory import FIGURES, REPORT
from experiments.storage import atomic_files
from experiments.storage.csv_files import write_rows
from experiments.system.paths import default_outputs
from experiments.system.redaction import visible
from experiments.tracking.summary_runs import log_comparison

MOST_PREDICTIONS = 8  # number of groups whose predictions are listed under an image
UNREAD = "Keys that some do not read (–), because their regime or another choice of theirs has no use for them:"


def write(
    folder: Path, comparison: Comparison, classes: ClassComparison, images: int, data: Path | None = None,
    reports: Mapping[str, Path] | None = None,
) -> list[Path]:  # fmt: skip
    """Write comparison.md, .csv and .html, comparison_classes.csv, comparison_confusion.csv and figures/*.png.

    Args:
        images: how many of the images on which the groups disagree to show.
        data: the directory that holds the images; None for the directories from which the runs have read them.
        reports: MLflow id of a run -> its report, to which the page links.

    Returns:
        The paths of the files, the HTML page first.
    """
    links = {run_id: quote(os.path.relpath(path, folder)) for run_id, path in (reports or {}).items()}
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    drawn, unlike = draw(comparison), disagreements(comparison)
    values = content(comparison, classes, unlike, images)
    shown = unlike[:images]
    # Self-contained, with embedded figures and thumbnails and nothing to load.
    html = page.render(
        "comparison.html.j2",
        **values,
        figures={name: page.svg(figure) for name, figure in drawn.items()},
        without_curves=[run.facts.name for group in comparison.groups for run in group.evaluated if not run.curves],
        disagreements=[_gallery_item(image, data) for image in shown],
        runs=[(run.name, run.run_id, links.get(run.run_id)) for run in comparison.runs],
    )
    files: dict[str, bytes] = {
        "comparison.html": html.encode(),
        "comparison.md": markdown(comparison, values, shown, list(drawn)).encode(),
        **{f"{FIGURES}/{name}.png": save_figure(figure) for name, figure in drawn.items()},
    }
    for name, bytes_of_file in files.items():
        atomic_files.write_file(folder / name, bytes_of_file)
    tables = {
        "comparison.csv": text.group_rows(comparison),
        "comparison_classes.csv": class_differences.class_rows(classes),
        "comparison_confusion.csv": class_differences.confusion_rows(classes),  # may have no rows
    }
    for name in filter(tables.get, tables):
        write_rows(folder / name, tables[name])
    return [folder / name for name in (*files, *filter(tables.get, tables))]


def save(
    uri: str, comparison: Comparison, classes: ClassComparison, folder: Path | None, images: int,
    data: Path | None, *, log: bool,
) -> tuple[Path, str | None]:  # fmt: skip
    """Write a comparison, and log its files if `log` to the MLflow store, if that has all of the runs; see `write`.

    Return the page, and the id of the MLflow run to which the files were logged, if they were. Without a folder, they
    are written to outputs/compare/compare-.... Raise ConfigError if they are written, but cannot be logged.
    """
    folder = folder or Path(default_outputs()) / "compare" / f"compare-{comparison.digest}"
    places = {
        run.run_id: run.folder or folder_of(run.run_id, run.tags.get("run_folder"), uri) for run in comparison.runs
    }
    # Only the reports whose run directories are on this machine.
    reports = {run_id: place / REPORT for run_id, place in places.items() if place and (place / REPORT).is_file()}
    written = write(folder, comparison, classes, images, data, reports)
    if not log or any(run.folder for run in comparison.runs):
        return written[0], None
    markdown = (folder / "comparison.md").read_text(encoding="utf-8")
    try:
        run_id = log_comparison(uri, comparison.runs[0].experiment, comparison.digest, written, markdown)
    except ConfigError as error:
        raise ConfigError(f"{written[0]} is written, but not logged to MLflow (--no-log): {error}") from None
    return written[0], run_id


def draw(comparison: Comparison) -> dict[str, Figure]:
    """Draw the figures of a comparison: intervals, and learning curves if runs have logged any."""
    drawn = {
        "intervals": plots.intervals(
            comparison.names,
            [measures["accuracy"] for measures in comparison.measures],
            [difference.interval if difference else None for difference in comparison.differences],
            comparison.split,
        )
    }
    curves = {
        name: [run.curves for run in group.evaluated if run.curves]
        for name, group in zip(comparison.names, comparison.groups, strict=True)
    }
    if any(curves.values()):
        drawn["curves"] = plots.compared_curves(curves)
    return drawn


def content(
    comparison: Comparison, classes: ClassComparison, unlike: Sequence[Disagreement], most: int
) -> dict[str, Any]:
    """Return what the HTML page and the Markdown file both show, by the names in the page's template."""
    differing, unread = text.configuration_tables(comparison)
    runs = len(comparison.runs)
    several = len(comparison.groups) > 1
    heading = "There is no image on which they disagree"
    if unlike:
        more = f", the clearest {most} of {len(unlike)}" if len(unlike) > most else f" ({len(unlike)})"
        heading = f"The images on which they disagree{more}"
    return {
        "title": f"{runs} {'run' if runs == 1 else 'runs'} on {comparison.image_count} {comparison.split} images",
        "sentences": text.sentences(comparison),
        "scores": text.score_table(comparison),
        "pairs": text.paired_table(comparison) if several else None,
        "metric_tables": text.metric_tables(comparison),
        "decision": class_differences.decision_sentence(comparison),
        "class_tables": class_tables(classes),
        "differing": differing if len(differing) > 1 else None,
        "nothing_differs": "Nothing." if len(unread) == 1 else "No key that all read.",
        "unread": unread if len(unread) > 1 else None,
        "unread_about": UNREAD,
        "disagreements_title": heading if several else "",
        "hidden": max(len(unlike) - most, 0),
    }


def class_tables(classes: ClassComparison) -> list[tuple[str, list[list[str]]]]:
    """Return the tables about classes, each with its heading; that of confused pairs only if there are any."""
    shown = class_differences.shown_of(classes, class_differences.MOST_CLASSES)
    pairs = class_differences.confusion_table(classes)
    tables = [(f"By class{shown}", class_differences.class_table(classes))]
    if len(pairs) > 1:
        more = len(classes.pairs) - len(pairs) + 1
        shown = f": {len(pairs) - 1} of {len(classes.pairs)} pairs" if more else ""
        tables.append((f"Classes that are confused{shown}", pairs))
    return tables


def _prediction_text(prediction: GroupPrediction | None) -> str:
    if prediction is None:
        return "not evaluated"
    partly = f", {prediction.right:.0%} of the runs right" if 0 < prediction.right < 1 else ""
    return f"{prediction.predicted} {prediction.confidence:.0%}{partly}"


# --- Markdown


def markdown(
    comparison: Comparison, values: Mapping[str, Any], unlike: Sequence[Disagreement], drawn: Sequence[str]
) -> str:
    """Return the comparison as Markdown, which refers to the figures in `figures/`; `values` as from `content`."""
    parts = [f"# {values['title']}", *(f"* {markdown_text(line)}" for line in values["sentences"])]
    parts += [markdown_table(table) for table in (values["scores"], *values["metric_tables"])]
    parts += [markdown_text(values["decision"])] if values["decision"] else []
    if values["pairs"]:
        parts += ["## Behind the differences", markdown_table(values["pairs"])]
    for heading_text, table in values["class_tables"]:
        parts += [f"## {heading_text}", markdown_table(table)]
    parts.append("## What differs in configuration")
    parts.append(markdown_table(values["differing"]) if values["differing"] else values["nothing_differs"])
    if values["unread"]:
        parts += [UNREAD, markdown_table(values["unread"])]
    parts += [f"![{name}]({FIGURES}/{name}.png)" for name in drawn]
    if values["disagreements_title"]:
        parts.append(f"## {values['disagreements_title']}")
        header = ["image", "class", *(str(at) for at in range(1, len(comparison.groups) + 1))]
        rows = [[image.path, image.label, *map(_prediction_text, image.predictions)] for image in unlike]
        parts += [markdown_table([header, *rows])] if rows else []
    runs = [[run.name, run.run_id] for run in comparison.runs]
    parts += [
        "## Runs",
        markdown_table([["name", "MLflow run"], *runs]),
        "How it is computed stands in comparison.html.",
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in table]
    rows.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(rows)


def markdown_text(text: str) -> str:
    """Escape a text for one line of Markdown, including HTML, which Markdown may contain."""
    line = " ".join(visible(text).split())
    line = re.sub(r"([\\`*_\[\]|~$]|^[-+#=]|(?<=^\d)[.)])", r"\\\1", line)
    return escape(line, quote=False)


def markdown_code(text: str) -> str:
    """Return a Markdown code block; its fence has more backticks than any sequence of them in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def _gallery_item(image: Disagreement, data: Path | None) -> dict[str, Any]:
    """Return the template's data for an image: its thumbnail, and the prediction of each group with its text."""
    roots = [data] if data else [Path(folder) for folder in image.data]
    thumbnail, missing = page.recorded_thumbnail(image.path, image.sha256, roots, image.decoder_settings)
    return {
        "image": image,
        "thumbnail": thumbnail,
        "missing": missing,
        "predictions": [(one, _prediction_text(one)) for one in image.predictions[:MOST_PREDICTIONS]],
        "further": [one for one in image.predictions[MOST_PREDICTIONS:] if one],
    }
