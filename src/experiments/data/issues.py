"""Issues of a data set's files: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.data.types import ImageWarning
from experiments.errors import DataError

_SHOWN = 20  # issues listed in one error


class DataIssue(NamedTuple):
    path: str
    text: str  # what is wrong; what to do
    skippable: bool  # whether data.on_bad=skip can skip this file
    class_name: str = ""  # the class of the file or folder, where it has one
    lacks_images: bool = False  # the class has no images there, which does not matter if it is merged with others


def raise_issues(root: Path, issues: Sequence[DataIssue], on_bad: str) -> None:
    """Raise an error for issues that cannot be skipped.

    Raises:
        DataError: If there are such issues, or nothing may be skipped.
    """
    fatal = [issue for issue in issues if on_bad == "error" or not issue.skippable]
    if fatal:
        raise DataError(format_issues(root, fatal, on_bad))


def format_issues(root: Path, issues: Sequence[DataIssue], on_bad: str) -> str:
    """Return the text of one error for all issues."""
    # Issues that cannot be skipped come first, so that they are among those shown.
    ordered = sorted(issues, key=lambda issue: (issue.skippable, issue.path, issue.text))
    lines = [f"{len(issues)} issue{'s' if len(issues) > 1 else ''} in the images of {printable(str(root))}:"]
    lines += _first_lines(ordered, _SHOWN)
    skippable = sum(issue.skippable for issue in issues)
    if on_bad == "error" and skippable:
        rest = len(issues) - skippable
        what = f"{skippable} of these; the other {rest} must be mended" if rest else "these files, and records which"
        lines.append(f"data.on_bad=skip leaves out {what}.")
    return "\n".join(lines)


def warning_lines(warnings: Sequence[ImageWarning]) -> list[str]:
    """Return a line for each warning, with the image's path."""
    return _first_lines(warnings, len(warnings))


def _first_lines(found: Sequence[DataIssue] | Sequence[ImageWarning], shown: int) -> list[str]:
    lines = [f"  {printable(issue.path)}: {issue.text}" for issue in found[:shown]]
    return [*lines, f"  and {len(found) - shown} more"] if len(found) > shown else lines


def printable(text: str) -> str:
    """Return a name as it is, or quoted and escaped if it has characters that a terminal or a log cannot show."""
    return text if text.isprintable() else repr(text)
