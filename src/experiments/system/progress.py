"""Tables and texts on the terminal, and the progress of a run.

Progress is shown as bars on a terminal; elsewhere, as in a log file, as a few lines or not at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.system import signals
from experiments.system.redaction import visible

REFRESH = 0.2  # seconds between two updates of progress bars in a notebook


def plain_table(columns: Sequence[str], numbers: Collection[str], **options: Any) -> Table:
    """Return an empty table without vertical lines; its columns of `numbers` are not wrapped and stand on the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)
    for name in columns:
        is_number = name in numbers
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def fits(console: Console, table: Table, *, wrapped: bool = False) -> bool:
    """Return whether a console is wide enough for a table without wrapped cells, or with cells wrapped at words."""
    needed = console.measure(table, options=console.options.update(max_width=sys.maxsize))
    return (needed.minimum if wrapped else needed.maximum) <= console.width


class PlainConsole(Console):
    """A console that shows texts, and the names in them that others chose, without markup and control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def notebook_display(progress: Progress) -> Callable[..., None]:
    """Show progress bars in a notebook, without widgets; return a function that updates them in place.

    It updates them at most every REFRESH seconds, unless it is called with `last=True`.
    """
    from IPython.display import display

    handle = display(progress, display_id=True)
    shown = time.monotonic()

    def refresh(last: bool = False) -> None:
        nonlocal shown
        if last or time.monotonic() - shown >= REFRESH:
            handle.update(progress)
            shown = time.monotonic()

    return refresh


class Terminal:
    """Stages of a run as progress bars on a console.

    If it is no terminal, nothing is printed, or with `lines` a line at each stage's end, and one for each tenth of its
    steps that `advance` has a note for.
    """

    def __init__(self, console: Console, *, lines: bool = False) -> None:
        self.console, self.lines = console, lines

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Show the progress of a stage of `total` steps; yield `advance(steps=1, note="")`."""
        if self.lines and not self.console.is_terminal and not self.console.is_jupyter:
            began, advance = time.perf_counter(), self._tenths(label, total)
            yield advance
            self.console.print(f"{label}: finished in {time.perf_counter() - began:.1f} s", soft_wrap=True)
            return
        columns = (  # together within 80 characters, the usual width of a terminal
            TextColumn("{task.description}{task.fields[note]}", markup=False),
            BarColumn(bar_width=10),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(visible(label), total=total, note="")
            refresh = notebook_display(progress) if self.console.is_jupyter and not self.console.quiet else None

            def advance(steps: int = 1, note: str = "") -> None:
                signals.check()
                if note:
                    progress.update(task, note=f"  {visible(note)}")
                progress.advance(task, steps)
                if refresh:
                    refresh()

            yield advance
            if refresh:
                refresh(last=True)

    def _tenths(self, label: str, total: int) -> Callable[..., None]:
        """Return the function `advance` of a stage that prints a note whenever another tenth of its steps is done."""
        done = printed = 0

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, printed
            signals.check()
            done += steps
            tenths = 10 * done // total if total else 10
            if note and tenths > printed:
                printed = tenths
                self.console.print(f"{label}: {note}", soft_wrap=True)

        return advance
