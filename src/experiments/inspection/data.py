"""What a data set holds: classes and splits, the files' sizes and kinds, what is at fault, and how pictures look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure, SubFigure
from rich import box
from rich.table import Table

from experiments.config.schema import Config
from experiments.data.listing import DataIssue, printable
from experiments.data.manifest import warning_lines
from experiments.data.pixel_cache import open_picture
from experiments.data.types import SPLITS, ImageRecord, Manifest
from experiments.evaluation.plots import PALETTE, STYLE, literal, short
from experiments.regimes.build import build_source
from experiments.run import read_manifest
from experiments.storage.atomic_files import readable

MOST_CLASSES = 20  # of which a figure shows pictures, or names in a chart
THUMBNAIL = 240  # pixels of a shown picture's longer side
COLORS = dict(zip(SPLITS, PALETTE, strict=False))


class DataReport(NamedTuple):
    """A data set as a run of the configuration finds it."""

    manifest: Manifest  # without what is at fault; without any picture where nothing can be used
    faults: tuple[DataIssue, ...]  # every one, whatever data.on_bad says
    fatal: tuple[DataIssue, ...]  # those that a run would refuse


def inspect_data(config: Config) -> DataReport:
    """Reads the data set as a run would, but for faults, which do not end it.

    Raises:
        ConfigError, DataError: as the data source and `manifest.read`, of all that is no picture's fault.
    """
    faults: list[DataIssue] = []
    found = read_manifest(config, build_source(config)(), found=faults)
    fatal = [fault for fault in faults if config.data.on_bad == "error" or not fault.skippable]
    return DataReport(found, tuple(faults), tuple(fatal))


def counts(found: Manifest) -> Table:
    """Pictures of every class in every split."""
    held = Counter((entry.class_name, entry.split) for entry in found.entries)
    splits = [split for split in SPLITS if found.of(split)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("class", "all", no_wrap=True)
    for split in splits:
        table.add_column(split, f"{len(found.of(split)):,}", justify="right")
    table.add_column("all", f"{len(found.entries):,}", justify="right")
    for name in found.classes:
        row = [held[name, split] for split in splits]
        table.add_row(short(name, 40), *(f"{count:,}" for count in (*row, sum(row))))
    return table


def sentences(found: Manifest, image_size: int) -> list[str]:
    """The files in words: their sizes and modes, the smallest and the largest; nothing of an empty data set."""
    if not found.entries:
        return []
    sides = np.array([(entry.width, entry.height) for entry in found.entries])
    sizes = np.array([entry.bytes for entry in found.entries])
    low, middle, high = (np.quantile(sides, share, axis=0).astype(int) for share in (0, 0.5, 1))
    modes = Counter(entry.mode for entry in found.entries)
    by_pixels = sorted(found.entries, key=lambda entry: (entry.width * entry.height, entry.path))
    below = int(np.count_nonzero(sides.min(axis=1) < image_size))
    return [
        f"width {low[0]} to {high[0]} pixels (median {middle[0]}), height {low[1]} to {high[1]} ({middle[1]}); "
        f"data.image_size is {image_size}" + (f": {below:,} pictures are enlarged" if below else ""),
        f"files {readable(sizes.min())} to {readable(sizes.max())} (median {readable(float(np.median(sizes)))}), "
        f"{readable(float(sizes.sum()))} in all",
        "modes " + ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common()),
        f"smallest {_told(by_pixels[0])}",
        f"largest  {_told(by_pixels[-1])}",
    ]


def _told(entry: ImageRecord) -> str:
    return f"{entry.width} x {entry.height}  {readable(entry.bytes)}  {printable(entry.path)}"


def fault_lines(looked: DataReport, on_bad: str) -> list[str]:
    """Every file at fault with its reason, and what a run would make of them."""
    if not looked.faults:
        return ["no file is at fault: none damaged, none twice"]
    lines = [f"{printable(fault.path)}: {fault.text}" for fault in looked.faults]
    number = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
    if not looked.fatal:
        return [f"{number}, left out by a run (data.on_bad=skip):", *lines]
    skippable = sum(fault.skippable for fault in looked.fatal)
    most = "all" if skippable == len(looked.fatal) else f"{skippable}"
    hint = f". data.on_bad=skip would leave out {most} of them" if skippable and on_bad == "error" else ""
    refused = "" if len(looked.fatal) == len(lines) else f" {len(looked.fatal)} of"
    return [f"{number}; a run with data.on_bad={on_bad} refuses{refused} them{hint}:", *lines]


def image_warning_lines(found: Manifest) -> list[str]:
    """Return every image that a run uses, but that its owner should look at, and why; nothing if there is none."""
    if not found.warnings:
        return []
    return [f"used, with a warning: {len(found.warnings)}", *warning_lines(found.warnings, len(found.warnings))]


@STYLE
def draw(looked: DataReport, pictures: int) -> Figure:
    """Counts of classes and splits, the pictures' sizes, and some training pictures of each class as their files are.

    Args:
        looked: a survey with pictures in it.
        pictures: how many of a class to show, evenly from the first to the last by path.

    Raises:
        DataError: a picture that has changed since.
    """
    found = looked.manifest
    classes = found.classes[:MOST_CLASSES]
    above, below = max(2.6, 1.2 + 0.26 * len(classes)), 1.45 * len(classes)
    figure = Figure(figsize=(max(9.0, 1.4 * pictures + 0.8), above + below + 0.4), layout="constrained")
    charts, samples = figure.subfigures(2, 1, squeeze=False, height_ratios=(above, below))[:, 0]
    left, right = charts.subplots(1, 2, width_ratios=(1.2, 1))
    start = np.zeros(len(classes))
    for split in SPLITS:
        width = np.array([sum(entry.class_name == name for entry in found.of(split)) for name in classes])
        if width.any():
            bars = left.barh(range(len(classes)), width, left=start, color=COLORS[split], label=split, height=0.7)
            left.bar_label(bars, [f"{count:,}" if count else "" for count in width], label_type="center", color="white")
            start += width
    left.set_yticks(range(len(classes)), [literal(short(name, 18)) for name in classes])
    left.invert_yaxis()
    left.grid(visible=False, axis="y")
    left.set(xlabel="pictures")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    for at, name in enumerate(classes):
        sides = np.array(
            [(entry.width, entry.height) for entry in found.entries if entry.class_name == name], int
        ).reshape(-1, 2)  # of a class without a usable image none
        color = PALETTE[at % len(PALETTE)]
        right.scatter(*sides.T, s=10, alpha=0.35, color=color, linewidths=0, label=literal(short(name, 18)))
    right.set(xlabel="width of the file's picture", ylabel="height", title="sizes in pixels")
    right.margins(0.08)
    right.set(xlim=(0, None), ylim=(0, None))
    if len(classes) <= len(PALETTE):
        legend = right.legend(loc="best", markerscale=1.8)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    _samples(samples, found, classes, pictures)
    cut = "" if len(classes) == len(found.classes) else f"the first {len(classes)} of {len(found.classes)} classes, "
    faults = f"{len(looked.faults)} faults" if looked.faults else "no faults"
    figure.suptitle(f"{len(found.entries):,} pictures, {cut}{faults}", fontsize=11)
    return figure


def _samples(figure: SubFigure, found: Manifest, classes: Sequence[str], count: int) -> None:
    """A row of training pictures for each class, in their own proportions."""
    panels = figure.subplots(len(classes), count, squeeze=False)
    for row, name in zip(panels, classes, strict=True):
        members = [entry for entry in found.of("train") if entry.class_name == name]
        chosen = dict.fromkeys(np.linspace(0, len(members) - 1, count).round().astype(int)) if members else {}
        for panel in row:
            panel.set_axis_off()
        row[0].set_title(literal(short(name, 18)), fontsize=9)
        for panel, at in zip(row, chosen, strict=False):
            picture = open_picture(found.root, members[at].path, members[at].sha256, found.gray_range)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            panel.imshow(np.asarray(picture))
