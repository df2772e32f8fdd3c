"""Labels of a folder with some of them flipped, and the share of the flipped that a list of doubtful labels finds.

python benchmarks/flipped_labels.py flip FOLDER LABELS.csv [SHARE] [SEED]
experiments train -m data=csv data.labels=LABELS.csv data.images=FOLDER data.fold=0,1,2,3,4 ...
experiments inspect labels SWEEP
python benchmarks/flipped_labels.py score LABELS.csv SWEEP_FOLDER/figures/labels.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from experiments.storage.csv_files import read_rows

FOUND = ("self_confidence", "margin")  # the scores that are compared


def flip(folder: Path, target: Path, share: float = 0.05, seed: int = 0) -> None:
    """Write path, label and the original label of the images in train/ and validation/ of a folder."""
    paths = sorted(path for split in ("train", "validation") for path in (folder / split).glob("*/*.*"))
    classes = sorted({path.parent.name for path in paths})
    rng = np.random.default_rng(seed)
    flipped = set(rng.choice(len(paths), round(share * len(paths)), replace=False).tolist())
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "original"])
        for at, path in enumerate(paths):
            original = path.parent.name
            others = [name for name in classes if name != original]
            label = others[rng.integers(len(others))] if at in flipped else original
            writer.writerow([path.relative_to(folder).as_posix(), label, original])


def score(labels: Path, listed: Path) -> None:
    """Print for each score how many of the flipped labels are among the first 5 % and 10 % of the images."""
    flipped = {row["path"] for row in read_rows(labels) if row["label"] != row["original"]}
    rows = read_rows(listed)
    flipped &= {row["path"] for row in rows}  # test images are not listed
    for name in FOUND:
        order = sorted(rows, key=lambda row: float(row[name]))
        for share in (0.05, 0.1):
            first = {row["path"] for row in order[: round(share * len(rows))]}
            print(f"{name}: {len(first & flipped)} of {len(flipped)} flipped among the first {share:.0%} listed")
    counted = [row["path"] for row in rows if row["probably_wrong"] == "True"]
    print(f"probably wrong: {len(counted)} images, {len(flipped & set(counted))} of them flipped")


if __name__ == "__main__":
    command, first, second, *rest = sys.argv[1:]
    if command == "flip":
        flip(Path(first), Path(second), *(kind(text) for kind, text in zip((float, int), rest, strict=False)))
    else:
        score(Path(first), Path(second))
