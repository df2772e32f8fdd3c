"""Learning curves of a run: every epoch is written to curves.csv, and logged to MLflow once a checkpoint holds it."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.storage import atomic_files
from experiments.training.types import EPOCH_METRICS, EpochRecord, PhaseName

PHASES = tuple(PhaseName)  # The metric `phase` is an index into these.
RENAMED = {"pictures_per_second": "images_per_second"}  # columns of version 0.1
CLOCKED = ("seconds", "images_per_second", "input_wait")  # metrics that differ if the same epoch is trained again
COLUMNS = ("step", "phase", "epoch", "timestamp", *EPOCH_METRICS)


class Curves:
    """Writer of the curves: every epoch goes to curves.csv at once, and to MLflow once it is committed.

    MLflow stores a second value of a metric for the same step unless its timestamp equals the first one's. Therefore an
    epoch is logged only when no resumed run can train it again. If an epoch is trained again nevertheless (after a
    damaged checkpoint, or when a head was removed from the cache) with the same losses, it keeps the row of its first
    training, with its timestamp and durations.

    Args:
        path: of curves.csv, which already has rows if the run is resumed.
        log: logs an epoch to MLflow.
        committed: returns whether an epoch will not be trained again, whatever happens to this process.
    """

    def __init__(
        self, path: Path, log: Callable[[EpochRecord], None], committed: Callable[[EpochRecord], bool]
    ) -> None:
        self.path, self.log, self.committed = path, log, committed
        self.rows = read(path)
        self.count = 0  # number of rows that this process has added or confirmed
        self.waiting: list[EpochRecord] = []
        if path.exists():
            self._replace(self.rows)

    def add(self, record: EpochRecord) -> None:
        known = self.rows[self.count] if self.count < len(self.rows) else None
        if known and same(known, record):
            record = known
        else:
            if known:
                self._replace(self.rows[: self.count])
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(format_rows([record], header=not self.rows))
            self.rows.append(record)
        self.count += 1
        self.waiting.append(record)
        if self.committed(record):
            self._log_waiting()

    def finish(self) -> None:
        """Log the remaining epochs, as no later process will train them again, and delete outdated rows."""
        if len(self.rows) > self.count:
            self._replace(self.rows[: self.count])
        self._log_waiting()

    def _log_waiting(self) -> None:
        while self.waiting:
            self.log(self.waiting[0])
            del self.waiting[0]

    def _replace(self, rows: Sequence[EpochRecord]) -> None:
        self.rows = list(rows)
        if rows:
            atomic_files.write_file(self.path, format_rows(rows, header=True).encode())
        else:
            self.path.unlink(missing_ok=True)


def same(one: EpochRecord, other: EpochRecord) -> bool:
    """Return whether two records are of the same epoch with the same metrics, apart from durations."""
    compared = [name for name in EPOCH_METRICS if name not in CLOCKED]
    ours, theirs = ((row.step, row.phase, row.epoch, *map(row.metrics.get, compared)) for row in (one, other))
    return ours == theirs


def read(path: Path) -> list[EpochRecord]:
    """Return the epochs in a curves.csv; an empty list if there is no such file."""
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []


def parse(text: str) -> list[EpochRecord]:
    """Return the epochs in the text of a curves.csv, up to an incomplete row, which a killed process may leave."""
    found: list[EpochRecord] = []
    with contextlib.suppress(KeyError, TypeError, ValueError, csv.Error):
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
            row |= {new: row[old] for old, new in RENAMED.items() if old in row}
            metrics = {name: float(row[name]) for name in EPOCH_METRICS if row.get(name)}
            at = int(row["step"]), row["phase"], int(row["epoch"]), int(row["timestamp"])
            found.append(EpochRecord(*at, metrics))
    return found


def format_rows(records: Sequence[EpochRecord], *, header: bool) -> str:
    """Return records as lines of CSV.

    Every row has all columns, because records from the head cache may have fewer metrics, in another order.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(map(as_row, records))
    return text.getvalue()


def as_row(record: EpochRecord) -> dict[str, Any]:
    place = {"step": record.step, "phase": record.phase, "epoch": record.epoch, "timestamp": record.timestamp}
    return {**place, **record.metrics}


def metric_points(record: EpochRecord) -> list[list[Any]]:
    """Return an epoch's points in the order of MLflow's Metric: name, value, timestamp, step."""
    phase = {"phase": float(PHASES.index(record.phase))} if record.phase in PHASES else {}
    return [[name, value, record.timestamp, record.step] for name, value in {**record.metrics, **phase}.items()]
