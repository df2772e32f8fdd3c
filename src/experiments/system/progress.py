"""Progress display of a run: live on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from experiments.system import signals
from experiments.system.redaction import visible


class PlainConsole(Console):
    """A console that shows texts as they are: no markup, no emoji codes, no control characters.

    Printed sentences and table cells contain names that others chose (of classes, files, runs), which must not be
    interpreted.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class Terminal:
    """Stages of a run as progress bars; silent if `console` is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Show the progress of a stage of `total` steps; yield `advance(steps=1, note="")`."""
        columns = (  # together within 80 characters, the usual width of a terminal
            TextColumn("{task.description}{task.fields[note]}", markup=False),
            BarColumn(bar_width=10),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(visible(label), total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                signals.check()
                if note:
                    progress.update(task, advance=steps, note=f"  {visible(note)}")
                else:
                    progress.advance(task, steps)

            yield advance
