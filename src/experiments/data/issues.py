"""Issues of a data set's files: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import DataError

_SHOWN = 20  # issues listed in one error


class DataIssue(NamedTuple):
    path: str
    text: str  # what is wrong; what to do
    skippable: bool  # whether data.on_bad=skip can skip this file
    class_name: str = ""  # the class of the file or folder, where it has one
    lacks_images: bool = False  # the class has no images there, which does not matter if it is merged with others


def raise_issues(root: Path, issues: Sequence[DataIssue], on_bad: str = "error") -> None:
    """Raise one DataError for all issues that cannot be skipped, or for all of them, if there are any."""
    fatal = [issue for issue in issues if on_bad == "error" or not issue.skippable]
    if not fatal:
        return
    # Issues that cannot be skipped come first, so that they are among those shown.
    fatal.sort(key=lambda issue: (issue.skippable, issue.path, issue.text))
    lines = [f"{len(fatal)} issue{'s' if len(fatal) > 1 else ''} in the images of {printable(str(root))}:"]
    lines += [f"  {printable(issue.path)}: {issue.text}" for issue in fatal[:_SHOWN]]
    if len(fatal) > _SHOWN:
        lines.append(f"  and {len(fatal) - _SHOWN} more")
    if skippable := sum(issue.skippable for issue in fatal):
        rest = len(fatal) - skippable
        what = f"{skippable} of these; the other {rest} must be mended" if rest else "these files, and records which"
        lines.append(f"data.on_bad=skip leaves out {what}.")
    raise DataError("\n".join(lines))


def printable(text: str) -> str:
    """Return a name as it is, or quoted and escaped if it has characters that a terminal or a log cannot show."""
    return text if text.isprintable() else repr(text)
