"""The parts that can be inspected, and their options."""

from __future__ import annotations

from typing import Any

# The options of each part with their defaults. Each part's module in `inspection` has the same name.
OPTIONS: dict[str, dict[str, Any]] = {
    "augmentation": {"images": 8, "views": 6},
    "data": {"images": 6},
    "model": {"classes": None, "layers": False},
    "schedule": {},
    "lr": {"lowest": 1e-6, "highest": 10.0, "batches": 100},
    "mistakes": {"split": "validation", "count": 12, "data": None},
    "labels": {"count": 24, "data": None},
}
LEAST = {"images": 1, "views": 1, "classes": 2, "count": 1, "batches": 1}  # the smallest values of whole numbers
OF_RUNS = ("mistakes", "labels")  # the parts that look at finished runs
