"""Tables as CSV files."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.storage.csv_files import read_rows, write_rows


def test_names_that_are_not_utf8_are_written_as_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.jpg")
    write_rows(tmp_path / "table.csv", [{"path": name, "reason": "ä, damaged"}])
    assert read_rows(tmp_path / "table.csv") == [{"path": "a\\udcff.jpg", "reason": "ä, damaged"}]


def test_undefined_numbers_are_empty_cells(tmp_path: Path) -> None:
    write_rows(tmp_path / "table.csv", [{"accuracy": 0.5, "auc": float("nan")}])
    assert read_rows(tmp_path / "table.csv") == [{"accuracy": "0.5", "auc": ""}]
