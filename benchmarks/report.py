"""Results of the benchmark and the machine they were measured on, as a terminal table, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

from experiments import __version__
from experiments.storage import atomic_files
from experiments.system.hardware import cores, cpu_model

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "pillow", "mlflow", "hydra-core")


@dataclass
class Side:
    """One way to do a row's work, and the seconds of each repeat."""

    label: str
    what: str  # a full description, so that a reader can see whether the comparison is fair
    seconds: list[float] = field(default_factory=list)
    images: int | None = None  # processed in a repeat
    steps: int | None = None  # batches in a repeat, as counted

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)


@dataclass
class Comparison:
    """Two sides that are compared, and the target of the comparison.

    `faster`: the ratio is the peer's seconds divided by ours and must be at least `factor`. `within`: the ratio is our
    seconds divided by the peer's, and ours must be at most `factor` x the peer's + `extra` seconds. Without a factor
    the ratio is only shown.
    """

    ours: str  # a side's label
    peer: str
    kind: Literal["faster", "within"]
    factor: float | None = None
    extra: float = 0.0


@dataclass
class Row:
    """One row of the benchmark."""

    name: str
    title: str
    settings: dict[str, Any]  # the same on all sides: images, batch size, optimizer, ...
    sides: list[Side] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # results other than seconds
    table: list[list[str]] = field(default_factory=list)  # header first; for rows with a table of their own
    error: str | None = None  # why the row could not be measured

    def side(self, label: str) -> Side:
        return next(side for side in self.sides if side.label == label)

    def add_repeat(self, *seconds: float) -> None:
        """Add the seconds of each side in one repeat."""
        for side, took in zip(self.sides, seconds, strict=True):
            side.seconds.append(took)


@dataclass(frozen=True)
class Outcome:
    """Result of a comparison."""

    ratio: float  # of the medians
    fastest_ratio: float  # of the fastest repeats
    paired_ratio: float  # median of each repeat's ratio, whose two sides were measured one after the other
    limit: float | None  # for the ratio (faster) or for our seconds (within)
    met: bool | None


def compare(row: Row, comparison: Comparison) -> Outcome:
    """Return the ratios of a comparison and whether the medians reach its target."""
    ours, peer = row.side(comparison.ours), row.side(comparison.peer)
    above, below = (peer, ours) if comparison.kind == "faster" else (ours, peer)
    paired = [a / b for a, b in zip(above.seconds, below.seconds, strict=True)]
    ratio = above.median / below.median
    limit: float | None
    met: bool | None
    if comparison.factor is None:
        limit = met = None
    elif comparison.kind == "faster":
        limit, met = comparison.factor, ratio >= comparison.factor
    else:
        limit = comparison.factor * peer.median + comparison.extra
        met = ours.median <= limit
    return Outcome(ratio, above.fastest / below.fastest, statistics.median(paired), limit, met)


def target(comparison: Comparison) -> str:
    """Return the target of a comparison in words."""
    if comparison.factor is None:
        return "no target"
    if comparison.kind == "faster":
        return f"at least {comparison.factor:g} x faster"
    extra = f" + {comparison.extra:g} s" if comparison.extra else ""
    return f"at most {comparison.factor:g} x{extra}"


def same_work(row: Row, labels: list[str]) -> None:
    """Check that sides did the same work.

    Raises:
        ValueError: they processed different numbers of images or batches, so that their times cannot be compared.
    """
    seen = {label: (row.side(label).images, row.side(label).steps) for label in labels}
    if len(set(seen.values())) > 1:
        raise ValueError(f"{row.name}: the sides did different work (images, steps). Received: {seen}")


# --- the machine


def machine() -> dict[str, Any]:
    """Return facts about the machine, the packages and the commit that are measured."""
    memory = psutil.virtual_memory()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(memory.total / 2**30, 1),
        "memory_available_gb": round(memory.available / 2**30, 1),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {
            "experiments": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "commit": commit(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("TF_EN", "OMP_"))},
    }


def commit() -> str:
    """Return the commit that is measured, with a plus sign where the checkout differs from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--", "src", "conf", "benchmarks"]
        dirty = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
    return head.stdout.strip()[:12] + ("+" if dirty.stdout.strip() else "")


def warnings(facts: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Return the reasons why the figures may not be worth quoting."""
    found = []
    load = facts["load_average_at_start"][0]
    if load >= 0.5 * facts["cores"]:
        found.append(f"The machine was not idle at the start: load {load:.1f} on {facts['cores']} cores.")
    if options["images"]:
        found.append(f"A try-out on {options['images']} images: the targets are not meant for so few.")
    return found


# --- the report on the terminal and in files


def show(console: Console, row: Row) -> None:
    """Print one row on the terminal."""
    console.print(f"\n[bold]{row.title}[/bold]", highlight=False)
    if row.error:
        console.print(f"  could not be measured: {row.error}", style="red", highlight=False, markup=False)
        return
    console.print("  same for all: " + settings(row), highlight=False, markup=False)
    if row.sides:
        shown = Table("", "median s", "fastest s", "repeats", box=None, pad_edge=True)
        for at in (1, 2, 3):
            shown.columns[at].justify = "right"
        for side in row.sides:
            shown.add_row(side.label, f"{side.median:.2f}", f"{side.fastest:.2f}", str(len(side.seconds)))
        console.print(shown)
    for comparison in row.comparisons:
        line, met = verdict_line(row, comparison)
        console.print(f"  {line}", style={True: "green", False: "red", None: ""}[met], highlight=False, markup=False)
    if row.table:
        shown = Table(*row.table[0], box=None)
        for cells in row.table[1:]:
            shown.add_row(*cells)
        console.print(shown)
    for note in row.notes:
        console.print(f"  {note}", highlight=False, markup=False)


def verdict_line(row: Row, comparison: Comparison) -> tuple[str, bool | None]:
    outcome = compare(row, comparison)
    relation = "faster" if comparison.kind == "faster" else "of its time"
    line = f"{comparison.ours} vs {comparison.peer}: {outcome.ratio:.2f} x {relation} "
    line += f"(fastest {outcome.fastest_ratio:.2f}, repeat by repeat {outcome.paired_ratio:.2f})"
    if outcome.met is None:
        return line, None
    line += f"; asked: {target(comparison)}"
    if comparison.kind == "within":
        line += f" = {outcome.limit:.1f} s"
    return f"{line}: {'met' if outcome.met else 'NOT met'}", outcome.met


def settings(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.settings.items())


def summary(console: Console, rows: list[Row]) -> None:
    """Print all comparisons in one table."""
    title = "Summary: ratios of medians"
    shown = Table("row", "ours", "peer", "ratio", "asked", "met", title=title, title_justify="left")
    for row in rows:
        if row.error:
            shown.add_row(row.name, "", "", "", "", "failed")
        for comparison in row.comparisons if not row.error else []:
            outcome = compare(row, comparison)
            met = {True: "yes", False: "NO", None: ""}[outcome.met]
            shown.add_row(
                row.name, comparison.ours, comparison.peer, f"{outcome.ratio:.2f}", target(comparison), met
            )  # fmt: skip
    if shown.rows:
        console.print()
        console.print(shown)


def to_json(facts: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> str:
    measured = []
    for row in rows:
        sides = [] if row.error else [compare(row, comparison) for comparison in row.comparisons]
        record = dataclasses.asdict(row)
        for side, known in zip(record["sides"], row.sides, strict=True):
            if known.seconds:
                side |= {"median": known.median, "fastest": known.fastest}
        for comparison, outcome in zip(record["comparisons"], sides, strict=False):
            comparison |= dataclasses.asdict(outcome)
        measured.append(record)
    return json.dumps({"machine": facts, "options": options, "rows": measured}, indent=1)


def row_from(record: dict[str, Any]) -> Row:
    """Return the row of a record that `to_json` wrote, without the computed values, which are computed again."""

    def known(kind: Any, fields: dict[str, Any]) -> Any:
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: fields[name] for name in fields if name in names})

    row: Row = known(Row, record)
    row.sides = [known(Side, side) for side in record["sides"]]
    row.comparisons = [known(Comparison, comparison) for comparison in record["comparisons"]]
    return row


def to_markdown(facts: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        f"# Benchmarks, {facts['date']}",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['os']}; Python {facts['python']}, "
        f"{packages}; commit {facts['commit']}; load at the start {facts['load_average_at_start'][0]}.",
        "",
        f"`make {options['make']}`: {options['rows']}; {options['repeats']} repeats, {options['minutes']} minutes.",
    ]
    for warning in warnings(facts, options):
        lines += ["", f"**{warning}**"]
    for row in rows:
        lines += ["", f"## {row.title}", ""]
        if row.error:
            lines += [f"Could not be measured: {row.error}"]
            continue
        lines += [f"Same for all: {settings(row)}.", ""]
        if row.sides:
            lines += ["| | median s | fastest s | repeats | what it is |", "|---|---|---|---|---|"]
            lines += [
                f"| {side.label} | {side.median:.2f} | {side.fastest:.2f} | {len(side.seconds)} | {side.what} |"
                for side in row.sides
            ]
            lines += [""]
        lines += [f"* {verdict_line(row, comparison)[0]}" for comparison in row.comparisons]
        if row.table:
            lines += ["| " + " | ".join(row.table[0]) + " |", "|" + "---|" * len(row.table[0])]
            lines += ["| " + " | ".join(cells) + " |" for cells in row.table[1:]] + [""]
        lines += [f"* {note}" for note in row.notes]
    return "\n".join(lines) + "\n"


def write(folder: Path, stem: str, facts: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> list[Path]:
    """Write the report of the rows measured so far as JSON and Markdown, each file atomically."""
    contents = {"json": to_json(facts, options, rows), "md": to_markdown(facts, options, rows)}
    written = {folder / f"{stem}.{suffix}": content for suffix, content in contents.items()}
    for path, content in written.items():
        atomic_files.write_file(path, content.encode())
    return list(written)
