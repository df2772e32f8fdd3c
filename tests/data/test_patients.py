"""Images of patients with random labels: what is read of them with and without groups (docs/your_data.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.storage.csv_files import read_rows

PATIENTS, IMAGES, FOLDS = 24, 8, 5


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Draw eight alike images of each of 24 patients: a few colored spots, which move a little. Labels are random."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(["healthy", "ill"] * (PATIENTS // 2))
    for patient, label in enumerate(labels):
        spots = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        for number in range(IMAGES):
            image = np.asarray(Image.fromarray(spots).resize((72, 72), Image.Resampling.BICUBIC), dtype=float)
            y, x = rng.integers(0, 8, 2)
            noisy = np.clip(image[y : y + 64, x : x + 64] + rng.normal(0, 12, (64, 64, 3)), 0, 255).astype("uint8")
            path = tmp_path / "scans" / label / f"patient{patient:02}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path)
    return tmp_path / "scans"


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, r"patient(\d+)"])
def test_random_labels_are_read_from_known_patients_only(
    group: str | None, patients: Path, tmp_path: Path, run_here: Callable[..., None]
) -> None:
    correct = []
    for fold in range(FOLDS):
        run = tmp_path / f"run{fold}"
        grouped = [] if group is None else [f"data.group='{group}'"]
        run_here(
            f"data.root={patients}", f"data.fold={fold}", "data.fractions={train: 0.9, validation: 0.1, test: 0.0}",
            "regime=bottleneck", "data.image_size=64", "tracking=none", "progress=none", "hydra/job_logging=none",
            f"hydra.run.dir={run}", *grouped,
        )  # fmt: skip
        correct += [row["correct"].lower() in ("true", "1") for row in read_rows(run / "predictions_validation.csv")]
    accuracy = np.mean(correct)
    print(f"\ngroup={group}: {accuracy:.1%} of {len(correct)} images")
    if group is None:
        assert accuracy > 0.95, "what a random split of the images reads"
    else:
        assert 0.28 < accuracy < 0.72, "of 21 new patients, chance gives 6 to 15 in 95 of 100 cases"
