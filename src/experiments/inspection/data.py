"""Data report of `experiments inspect data`: classes and splits, file sizes and modes, data issues, sample images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from rich.filesize import decimal
from rich.table import Table

from experiments.config.schema import Config
from experiments.config.targets import build_source
from experiments.data.issues import DataIssue, printable
from experiments.data.manifest import fingerprint
from experiments.data.pixel_cache import open_image
from experiments.data.types import SPLITS, ImageRecord, Manifest
from experiments.images.decoder_settings import Resize
from experiments.inspection import near_duplicates
from experiments.inspection.inspection import Inspection
from experiments.reports.figure_style import PALETTE, STYLE, literal, short
from experiments.run import read_manifest
from experiments.system.progress import plain_table

MOST_CLASSES = 20  # number of classes that a figure shows
THUMBNAIL = 240  # pixels of the longer side of a sample image
WIDE = 1.34  # 4:3, and what rounding of the sides adds
STRETCHED = 2.0  # ratio of sides that few photographs exceed
MANY = 0.1  # share of images beyond it from which on other ways of resizing are recommended
COLORS = dict(zip(SPLITS, PALETTE, strict=False))


class DataReport(NamedTuple):
    """The images of a data set that a run can use, and the issues of the others."""

    manifest: Manifest  # without invalid files; it may be empty
    issues: tuple[DataIssue, ...]  # all issues, independent of data.on_bad
    fatal: tuple[DataIssue, ...]  # the issues for which a run would stop


def inspect(config: Config, *, images: int) -> Inspection:
    """Show classes and splits, file sizes, and every invalid file."""
    report = inspect_data(config)
    found = report.manifest
    lines: list[str | Table] = [str(found.root), *found.notes]
    if found.entries:
        lines += [counts(found), *sentences(found, config.data.image_size, config.data.resize)]
    lines += issue_lines(report, config.data.on_bad)
    if found.warnings:
        lines.append(f"used, with a warning: {len(found.warnings)}")
        lines += [f"  {printable(warning.path)}: {warning.text}" for warning in found.warnings]
    lines += near_duplicates.lines(found, config.data.on_leak)
    facts = {"data": fingerprint(found), "faults": str(len(report.issues)), "images": str(images)}
    figure = (lambda: draw(report, images)) if found.entries else None
    return Inspection(config, f"data-{config.data.name}", lines, figure, facts, is_refused=bool(report.fatal))


def inspect_data(config: Config) -> DataReport:
    """Read the data set in the same way as a run, but collect the issues of its files instead of stopping."""
    issues: list[DataIssue] = []
    found = read_manifest(config, build_source(config)(), found=issues)
    fatal = [issue for issue in issues if config.data.on_bad == "error" or not issue.skippable]
    return DataReport(found, tuple(issues), tuple(fatal))


def counts(found: Manifest) -> Table:
    """Return the table of the numbers of images by class and split."""
    held = Counter((entry.class_name, entry.split) for entry in found.entries)
    dataset = [split for split in SPLITS if found.of(split)]
    table = plain_table((), (), show_footer=True)
    table.add_column("class", "all", no_wrap=True)
    for split in dataset:
        table.add_column(split, f"{len(found.of(split)):,}", justify="right")
    table.add_column("all", f"{len(found.entries):,}", justify="right")
    for name in found.classes:
        row = [held[name, split] for split in dataset]
        table.add_row(short(name, 40), *(f"{count:,}" for count in (*row, sum(row))))
    return table


def sentences(found: Manifest, image_size: int, resize: Resize = "squash") -> list[str]:
    """Return sentences about the files: sizes, proportions, modes, the smallest and the largest."""
    sides = np.array([(entry.width, entry.height) for entry in found.entries])
    sizes = np.array([entry.bytes for entry in found.entries])
    low, middle, high = (np.quantile(sides, share, axis=0).astype(int) for share in (0, 0.5, 1))
    modes = Counter(entry.mode for entry in found.entries)
    by_pixels = sorted(found.entries, key=lambda entry: (entry.width * entry.height, entry.path))
    below = int(np.count_nonzero(sides.min(axis=1) < image_size))
    return [
        f"width {low[0]} to {high[0]} pixels (median {middle[0]}), height {low[1]} to {high[1]} ({middle[1]}); "
        f"data.image_size is {image_size}" + (f": {below:,} images are enlarged" if below else ""),
        *proportions(sides, resize),
        f"files {decimal(sizes.min())} to {decimal(sizes.max())} (median {decimal(int(np.median(sizes)))}), "
        f"{decimal(sizes.sum())} in all",
        "modes " + ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common()),
        f"smallest {_format_count(by_pixels[0])}",
        f"largest  {_format_count(by_pixels[-1])}",
    ]


def proportions(sides: np.ndarray, resize: Resize) -> list[str]:
    """Return sentences about the proportions of images with sides [N, 2], and about what becomes of them."""
    aspects = sides.max(axis=1) / sides.min(axis=1)
    beyond = float(np.mean(aspects > WIDE))
    lost = f"{float(np.mean(1 - 1 / aspects)):.0%}"  # of an image by crop, of the square by pad: the same share
    text = (
        f"proportions (longer to shorter side) {aspects.min():.2f} to {aspects.max():.2f} "
        f"(median {float(np.median(aspects)):.2f}), {beyond:.0%} of the images beyond 4:3"
    )
    if resize == "crop":
        return [f"{text}; data.resize=crop cuts off {lost} of an image, on average"]
    if resize == "pad":
        return [f"{text}; data.resize=pad makes {lost} of the square black, on average"]
    stretched = float(np.mean(aspects > STRETCHED))
    if stretched < MANY:
        return [text]
    return [
        text,
        f"data.resize=squash distorts {stretched:.0%} of them by more than {STRETCHED:g} times: compare with "
        "data.resize=pad (all of an image, black borders) and crop (its largest centered square)",
    ]


def _format_count(entry: ImageRecord) -> str:
    return f"{entry.width} x {entry.height}  {decimal(entry.bytes)}  {printable(entry.path)}"


def issue_lines(report: DataReport, on_bad: str) -> list[str]:
    """Return every invalid file with its issue, and whether a run would skip these files or stop."""
    if not report.issues:
        return ["no issues: no file is damaged or a duplicate"]
    lines = [f"{printable(issue.path)}: {issue.text}" for issue in report.issues]
    number = f"{len(lines)} issue{'s' if len(lines) > 1 else ''}"
    if not report.fatal:
        return [f"{number}, skipped by a run (data.on_bad=skip):", *lines]
    skippable = sum(issue.skippable for issue in report.fatal)
    most = "all" if skippable == len(report.fatal) else f"{skippable}"
    hint = f". data.on_bad=skip would skip {most} of them" if skippable and on_bad == "error" else ""
    refused = "" if len(report.fatal) == len(lines) else f" {len(report.fatal)} of"
    return [f"{number}; a run with data.on_bad={on_bad} refuses{refused} them{hint}:", *lines]


@STYLE
def draw(report: DataReport, images: int) -> Figure:
    """Draw the numbers of images by class and split, the image sizes, and training images of each class.

    So many images of each class are shown, not resized to `data.image_size`, evenly spaced by path. There is at least
    one image.

    Raises:
        DataError: an image file has changed since it was read.
    """
    found = report.manifest
    classes = found.classes[:MOST_CLASSES]
    pairs = near_duplicates.shown(found)
    heights = [max(2.6, 1.2 + 0.26 * len(classes)), 1.45 * len(classes)]
    heights += [near_duplicates.PAIR_HEIGHT * math.ceil(len(pairs) / near_duplicates.PAIRS_IN_A_ROW)] if pairs else []
    figure = Figure(figsize=(max(9.0, 1.4 * images + 0.8), sum(heights) + 0.4), layout="constrained")
    charts, samples, *rest = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    left, right = charts.subplots(1, 2, width_ratios=(1.2, 1))
    _counts(left, found, classes)
    _sizes(right, found, classes)
    _samples(samples, found, classes, images)
    if pairs:
        near_duplicates.draw(rest[0], found, pairs)
    cut = "" if len(classes) == len(found.classes) else f"the first {len(classes)} of {len(found.classes)} classes, "
    issues = f"{len(report.issues)} issues" if report.issues else "no issues"
    figure.suptitle(f"{len(found.entries):,} images, {cut}{issues}", fontsize=11)
    return figure


def _counts(panel: Axes, found: Manifest, classes: Sequence[str]) -> None:
    """Draw the numbers of images by class and split."""
    start = np.zeros(len(classes))
    for split in SPLITS:
        members = Counter(entry.class_name for entry in found.of(split))
        width = np.array([members[name] for name in classes])
        if width.any():
            bars = panel.barh(range(len(classes)), width, left=start, color=COLORS[split], label=split, height=0.7)
            texts = [f"{count:,}" if count else "" for count in width]
            panel.bar_label(bars, texts, label_type="center", color="white")
            start += width
    panel.set_yticks(range(len(classes)), [literal(short(name, 18)) for name in classes])
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set(xlabel="images")
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _sizes(panel: Axes, found: Manifest, classes: Sequence[str]) -> None:
    """Draw widths and heights, with lines of equal proportions: square, and 4:3 both ways."""
    for at, name in enumerate(classes):
        members = [entry for entry in found.entries if entry.class_name == name]
        widths, heights = [entry.width for entry in members], [entry.height for entry in members]
        color = PALETTE[at % len(PALETTE)]
        panel.scatter(widths, heights, s=10, alpha=0.35, color=color, linewidths=0, label=literal(short(name, 18)))
    panel.set(xlabel="width of the file's image", ylabel="height", title="sizes in pixels")
    panel.margins(0.08)
    panel.set(xlim=(0, None), ylim=(0, None))
    (_, most_x), (_, most_y) = panel.get_xlim(), panel.get_ylim()
    for proportion, slope in (("4:3", 3 / 4), ("1:1", 1), ("3:4", 4 / 3)):
        panel.axline((0, 0), slope=slope, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
        end = min(most_x, most_y / slope)
        panel.annotate(proportion, (end, slope * end), xytext=(-2, -2), textcoords="offset points", ha="right",
                       va="top", fontsize=7, color="0.5")  # fmt: skip
    panel.set(xlim=(0, most_x), ylim=(0, most_y))
    if len(classes) <= len(PALETTE):
        for handle in filter(None, panel.legend(loc="best", markerscale=1.8).legend_handles):
            handle.set_alpha(1)


def _samples(figure: SubFigure, found: Manifest, classes: Sequence[str], count: int) -> None:
    """Draw a row of training images for each class, with their original aspect ratio."""
    panels = figure.subplots(len(classes), count, squeeze=False)
    for row, name in zip(panels, classes, strict=True):
        members = [entry for entry in found.of("train") if entry.class_name == name]
        chosen = dict.fromkeys(np.linspace(0, len(members) - 1, count).round().astype(int)) if members else {}
        for panel in row:
            panel.set_axis_off()
        row[0].set_title(literal(short(name, 18)), fontsize=9)
        for panel, at in zip(row, chosen, strict=False):
            image = open_image(found.root, members[at].path, members[at].sha256, found.decoder_settings)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            panel.imshow(np.asarray(image))
