"""What one part of a configuration looks like: lines to print, and a figure for outputs/ or for a run's directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from matplotlib.figure import Figure
from rich.table import Table

from experiments.config.identity import run_identity
from experiments.config.schema import Config
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.reports.figure_style import save_figure
from experiments.runs.run_directory import RunDirectory
from experiments.storage import atomic_files
from experiments.system.progress import PlainConsole

LARGEST = 2**16  # pixels of a side of a figure, which Matplotlib cannot draw any more


@dataclass(frozen=True)
class Inspection:
    """A part of a configuration, or the mistakes of a run."""

    config: Config
    name: str  # of the figure's file
    lines: Sequence[str | Table]  # to print
    draw: Callable[[], Figure] | None  # None: there is nothing to draw
    facts: Mapping[str, str] = field(default_factory=dict)  # on which the figure depends besides the configuration
    is_refused: bool = False  # whether a run would refuse what was inspected
    table: Sequence[Mapping[str, Any]] = ()  # rows for a CSV file beside the figure; none for no file
    folder: Path | None = None  # of the sweep that was inspected; None if it was a configuration or a run

    def path(self, run: Trained | None) -> Path:
        """Return the default path of the figure: in the directory of a run or sweep, or else in outputs/inspect/."""
        if folder := self.folder or (run and run.folder):
            return RunDirectory(folder).figures / f"{self.name}.png"
        # The name is derived from the content, so that the same command always writes the same file.
        identity = run_identity(self.config, run=run.name if run else None, **self.facts)[:8]
        return Path(self.config.outputs) / "inspect" / f"{self.name}-{identity}.png"


def show(result: Inspection, file: TextIO | None = None) -> None:
    """Print the lines of an inspection; tables at least as wide as their cells, even on a narrow terminal."""
    options: dict[str, Any] = {"file": file, "force_jupyter": False, "color_system": None} if file else {}
    for line in result.lines:
        if isinstance(line, str):
            print(line, file=file)
            continue
        width = PlainConsole(width=1000, **options).measure(line).maximum
        PlainConsole(width=max(PlainConsole(**options).width, width), **options).print(line)


def write_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as a PNG file, atomically; raise ConfigError if it is larger than Matplotlib can draw."""
    if (side := dpi * max(figure.get_size_inches())) >= LARGEST:
        raise ConfigError(
            f"{path}: is not written: the figure would have {side:,.0f} pixels a side, at most {LARGEST:,} are "
            "possible. Show fewer images (--count, --images), or give a lower --dpi"
        )
    atomic_files.write_file(path, save_figure(figure, "png", dpi))
