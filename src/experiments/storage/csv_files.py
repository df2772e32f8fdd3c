"""CSV files with a header line, as mappings of column names to values."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.storage import atomic_files


def encodable(text: str) -> str:
    """Return a text with the bytes of file names that are not UTF-8 as backslash escapes."""
    return text.encode(errors="backslashreplace").decode()


def recorded_path(root: Path, path: str) -> str:
    """Return the path, relative to a directory, of the file whose path was recorded as `encodable` returns it."""
    if (root / path).exists():
        return path
    return re.sub(r"\\udc([0-9a-f]{2})", lambda byte: chr(0xDC00 + int(byte[1], 16)), path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, of which there must be at least one, to a CSV file with a header line.

    Texts are written as `encodable` returns them; undefined numbers (nan) are empty cells.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    atomic_files.write_file(path, encodable(text.getvalue()).encode())
