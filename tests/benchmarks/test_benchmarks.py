"""The benchmark's arithmetic and its fairness; no time is asserted here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import images, report, rows, run  # noqa: E402
from benchmarks.report import Comparison, Row, Side  # noqa: E402

FACTS = {
    "date": "2026-11-23", "cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "os": "an OS", "python": "3.11",
    "commit": "abc", "packages": {"keras": "3.15.1"}, "load_average_at_start": [0.1, 0.1, 0.1],
}  # fmt: skip
OPTIONS = {"make": "bench", "rows": "r", "repeats": 3, "images": None, "minutes": 1.0}


def row(*comparisons: Comparison) -> Row:
    ours, peer = Side("ours", "ours", [3.0, 1.0, 2.0]), Side("peer", "a peer", [3.0, 8.0, 4.0])
    return Row("r", "A row", {"images": "40"}, [ours, peer], list(comparisons))


def test_median_and_fastest() -> None:
    assert (row().side("ours").median, row().side("ours").fastest) == (2.0, 1.0)
    assert Side("even", "", [1.0, 2.0, 4.0, 9.0]).median == 3.0


@pytest.mark.parametrize("kind, factor, extra, ratio, fastest, paired, limit, met", [
    ("faster", 2.0, 0.0, 2.0, 3.0, 2.0, 2.0, True),
    ("faster", 2.1, 0.0, 2.0, 3.0, 2.0, 2.1, False),
    ("faster", None, 0.0, 2.0, 3.0, 2.0, None, None),
    ("within", 0.5, 0.0, 0.5, 1 / 3, 0.5, 2.0, True),
    ("within", 0.25, 0.0, 0.5, 1 / 3, 0.5, 1.0, False),
    ("within", 0.25, 1.5, 0.5, 1 / 3, 0.5, 2.5, True),
])  # fmt: skip
def test_ratios_and_targets(
    kind: str, factor: float | None, extra: float, ratio: float, fastest: float, paired: float, limit: float, met: bool
) -> None:
    outcome = report.compare(row(), Comparison("ours", "peer", kind, factor, extra))  # type: ignore[arg-type]
    expected = (ratio, fastest, paired, limit, met)
    assert (outcome.ratio, outcome.fastest_ratio, outcome.paired_ratio, outcome.limit, outcome.met) == expected


def test_sides_that_did_different_work_are_not_compared() -> None:
    measured = row()
    for side, steps in zip(measured.sides, (3, 4), strict=True):
        side.images, side.steps = 40, steps
    with pytest.raises(ValueError, match="different work"):
        report.same_work(measured, ["ours", "peer"])


def test_a_report_comes_back_as_it_was_written_and_a_failed_row_costs_no_other(tmp_path: Path) -> None:
    good, failed = row(Comparison("ours", "peer", "faster", 1.5)), Row("f", "F", {}, error="it broke")
    written, markdown = report.write(tmp_path, "today", FACTS, OPTIONS, [failed, good])
    records = json.loads(written.read_text(encoding="utf-8"))
    assert [report.row_from(record) for record in records["rows"]] == [failed, good]
    assert records["machine"] == FACTS
    assert records["rows"][1]["comparisons"][0]["ratio"] == 2.0 and records["rows"][1]["comparisons"][0]["met"] is True
    text = markdown.read_text(encoding="utf-8")
    assert "it broke" in text and "2.00 x faster" in text and "at least 1.5 x faster: met" in text
    console = Console(width=200, record=True, quiet=True)
    for shown in (failed, good):
        report.show(console, shown)
    report.summary(console, [failed, good])


def test_what_makes_figures_worthless_is_reported() -> None:
    assert report.warnings(FACTS, OPTIONS) == []
    busy, few = report.warnings(FACTS | {"load_average_at_start": [1.0, 0, 0]}, OPTIONS | {"images": 40})
    assert "not idle" in busy and "40 images" in few


def test_the_machine_is_described() -> None:
    facts = report.machine()
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gb"] > 0 and facts["packages"]["keras"]
    json.dumps(facts)


@pytest.mark.parametrize("module", ["peers", "finetuning_peers"])
def test_peers_are_plain_keras(module: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith(("experiments", "benchmarks"))]


def test_time_as_a_power_of_images() -> None:
    points = [{"images": n, "whole": 3 * n**1.05} for n in (200, 640, 2000)]
    assert rows.exponent(points, "whole") == pytest.approx(1.05)
    points = [{"images": n, "whole": 20 + 3 * n**1.1} for n in (200, 2000, 20000)]
    assert rows.exponent(points, "whole") < 1.1
    assert rows.exponent_beyond_start(points) == pytest.approx(1.1)


def test_sharpness_falls_where_images_are_blurred() -> None:
    sharp = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    blurred = (sharp + np.roll(sharp, 1, axis=2)) / 2
    assert all(b < s for s, b in zip(rows.sharpness(sharp), rows.sharpness(blurred), strict=True))


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., rows.Setup]:
    """Twenty drawn training images, in a place without photographs."""
    monkeypatch.setenv("EXPERIMENTS_PHOTOS", str(tmp_path / "none"))
    monkeypatch.setattr(images, "DRAWN_SIZE", 48)

    def make(repeats: int) -> rows.Setup:
        return rows.Setup(repeats, repeats, full=False, images=20, cache=tmp_path / "data", work=tmp_path / "work")

    return make


@pytest.mark.slow
def test_all_sides_of_a_scratch_epoch_see_the_same_images_in_as_many_steps(
    setup: Callable[..., rows.Setup],
) -> None:
    measured = rows.scratch(setup(repeats=1))
    assert {(side.images, side.steps) for side in measured.sides} == {(20, 2)}
    assert [len(side.seconds) for side in measured.sides] == [1, 1, 1, 1], "the first epoch is dropped"
    assert "drawn" in measured.settings["images"]


@pytest.mark.slow
def test_evaluation_and_extraction_read_the_same_images(setup: Callable[..., rows.Setup]) -> None:
    measured = rows.ROWS["evaluate"](setup(repeats=1))
    assert {(side.images, side.steps) for side in measured.sides} == {(20, 1)}
    assert [len(side.seconds) for side in measured.sides] == [1, 1, 1], "the first repeat is dropped"
    assert report.compare(measured, measured.comparisons[0]).limit is not None


def test_both_augmentations_see_the_same_images_and_one_resampling_keeps_more_sharpness(
    setup: Callable[..., rows.Setup],
) -> None:
    measured = rows.augmentation(setup(repeats=1))
    assert {(side.images, side.steps) for side in measured.sides} == {(20, 2)}
    kept = measured.figures["high_frequency_energy_kept"]
    assert kept["Keras layers"] < kept["one resampling"] < 1


def test_more_images_are_made_with_pixels_of_their_own(setup: Callable[..., rows.Setup], tmp_path: Path) -> None:
    made = images.many(tmp_path / "data", setup(1).folder(), 40)
    for split, count in (("train", made.train), ("validation", made.validation)):
        contents = {path.read_bytes() for path in (made.root / split).rglob("*.jpg")}
        assert len(contents) == count


def test_help_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(
        name in done.stdout.replace("\n", "") for name in ("--full", "--rows", "--repeats", "--output", "scratch")
    )


def test_a_row_that_fails_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: rows.Setup) -> Row:
        setup.home("ours")
        raise RuntimeError("no such luck")

    monkeypatch.setattr(run, "ROWS", {"broken": broken})
    options = run.arguments(["--rows", "broken", "--worker", str(tmp_path / "row.json"), "--output", str(tmp_path)])
    assert run.work(options) == 1
    read = report.row_from(json.loads((tmp_path / "row.json").read_text(encoding="utf-8")))
    assert read.error is not None and "no such luck" in read.error
    assert not list((tmp_path / "work").iterdir()), "its scratch folder is gone"
