"""Tables, figures and pages as notebooks show them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.system.redaction import visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

HEIGHT = 600  # pixels of a page inside a notebook


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page, which a notebook shows in place."""

    path: Path  # its file

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        content = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe srcdoc="{content}" sandbox="allow-popups" '
            f'style="width: 100%; height: {HEIGHT}px; border: 1px solid #ccc"></iframe>'
        )


def text(sentence: str) -> str:
    """Return a sentence as an HTML paragraph, escaped."""
    return f"<p>{html.escape(visible(sentence), quote=False)}</p>"


def table(cells: Sequence[Sequence[str]]) -> str:
    """Return a header and rows of texts as an HTML table, escaped."""
    header, *rows = ([html.escape(visible(cell), quote=False) for cell in row] for row in cells)
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image(content: bytes) -> str:
    """Return the content of a PNG file as an HTML image."""
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def rich_table(printed: Table) -> str:
    """Return a table of the terminal as HTML."""
    from experiments.system.progress import PlainConsole

    console = PlainConsole(record=True, file=io.StringIO(), force_jupyter=False, width=1000)
    console.width = console.measure(printed).maximum
    console.print(printed)
    return console.export_html(
        inline_styles=True, code_format='<pre style="font-family: monospace; line-height: normal">{code}</pre>'
    )


def frame(content: Any, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return columns or rows as a data frame; `names` are those of the columns, if the content has none."""
    import pandas as pd

    return pd.DataFrame(content, columns=names)
