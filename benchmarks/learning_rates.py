"""Record what the learning-rate finder's test reads: range tests, and what short trainings reach at each rate.

    python -m benchmarks.learning_rates SHARED [NAME ...]

writes tests/inspection/curves/NAME.csv. SHARED is the directory that holds cats_dogs/, flowers17/ and weights/.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

CURVES = Path(__file__).resolve().parent.parent / "tests" / "inspection" / "curves"
SEEDS = (0, 1, 2)  # of the range tests; each of them trains another head and reads the images in another order
HEAD = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
HEAD_SGD = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SCRATCH = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SCRATCH_SGD = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
TUNED = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
TUNED_SGD = (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

SYNTHETIC = "data.per_class={train:200,validation:500,test:1} data.image_size=64"
MORE = "data.per_class={train:400,validation:300,test:1} data.image_size=64 augmentation=none"
CATS = "data=folder data.root={images}/cats_dogs"
FLOWERS = "data=folder data.root={images}/flowers17 data.image_size=128"
MOBILENET = "model=mobilenet_v2 model.weights={shared}/weights/mobilenet_v2_0.35_224_notop.weights.h5"
VGG = "model=vgg16 model.weights={shared}/weights/vgg16_notop.weights.h5"
BATCH_NORM = " ".join(f"model.layers.block{number}.batch_norm=true" for number in (1, 2, 3))

# Name: overrides, how many seeds train at each rate, the rates.
RECORDED = {
    "bottleneck-convnet-rmsprop-synthetic": (f"regime=bottleneck {SYNTHETIC} epochs=15", 8, HEAD),
    "bottleneck-convnet-adamw-cats": (
        f"regime=bottleneck optimizer=adamw {CATS} data.image_size=96 epochs=15", 8, HEAD
    ),
    "bottleneck-mobilenet-rmsprop-cats": (
        f"regime=bottleneck {MOBILENET} {CATS} data.image_size=128 epochs=15", 8, HEAD
    ),
    "bottleneck-mobilenet-adam-flowers": (f"regime=bottleneck optimizer=adam {MOBILENET} {FLOWERS} epochs=30", 8, HEAD),
    "bottleneck-mobilenet-sgd-flowers": (
        f"regime=bottleneck optimizer=sgd {MOBILENET} {FLOWERS} epochs=30", 8, HEAD_SGD
    ),
    "bottleneck-hidden-adamw-flowers": (
        "regime=bottleneck optimizer=adamw +model.head.dense.dense1={units:256,activation:relu} "
        f"{MOBILENET} {FLOWERS} epochs=20", 8, HEAD
    ),
    "finetune-convnet-sgd-synthetic": (f"regime=finetune {SYNTHETIC} epochs=8 augmentation=none", 3, TUNED_SGD),
    "finetune-convnet-adamw-cats": (
        f"regime=finetune optimizer=adamw {CATS} data.image_size=96 epochs=8 augmentation=none", 1, TUNED
    ),
    "finetune-mobilenet-sgd-flowers": (
        f"regime=finetune {MOBILENET} {FLOWERS} epochs=8 augmentation=none", 3, TUNED_SGD
    ),
    "finetune-mobilenet-adam-flowers": (
        f"regime=finetune optimizer=adam {MOBILENET} {FLOWERS} epochs=8 augmentation=none", 3, TUNED
    ),
    "finetune-mobilenet-rmsprop-cats": (
        f"regime=finetune optimizer=rmsprop regime.unfrozen_blocks=2 {MOBILENET} {CATS} data.image_size=128 epochs=6 "
        "augmentation=none", 3, TUNED
    ),
    "scratch-convnet-sgd-synthetic": (f"regime=scratch optimizer=sgd {MORE} epochs=12", 1, SCRATCH_SGD),
    "scratch-convnet-rmsprop-synthetic": (f"regime=scratch {MORE} epochs=12", 1, SCRATCH),
    "scratch-batchnorm-adam-synthetic": (f"regime=scratch optimizer=adam {BATCH_NORM} {MORE} epochs=12", 1, SCRATCH),
    "scratch-batchnorm-sgd-cats": (
        f"regime=scratch optimizer=sgd {BATCH_NORM} {CATS} data.image_size=64 epochs=12 augmentation=none "
        "batch_size=16",
        1, SCRATCH_SGD
    ),
    "finetune-vgg16-sgd-cats": (
        f"regime=finetune {VGG} {CATS} data.limit={{train:100,validation:100,test:null}} data.image_size=96 epochs=5 "
        "augmentation=none", 1, (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ),
}  # fmt: skip


def gather(shared: Path, images: Path) -> None:
    """Copy photographs into splits with more of them for validation, so that a point of accuracy is several images."""
    for name, sources in {
        "cats_dogs": {"train": [("train", 0, 300)], "validation": [("train", 300, 700), ("validation", 0, 200)]},
        "flowers17": {"train": [("train", 0, 40)], "validation": [("validation", 0, 20), ("test", 0, 20)]},
    }.items():
        for split, parts in sources.items():
            for source, first, last in parts:
                for folder in sorted((shared / name / source).iterdir()):
                    target = images / name / split / folder.name
                    target.mkdir(parents=True, exist_ok=True)
                    for path in sorted(folder.iterdir())[first:last]:
                        shutil.copy(path, target)


def main() -> None:
    shared, *names = sys.argv[1:]
    for name in names or RECORDED:
        overrides, seeds, rates = RECORDED[name]
        images = Path(os.environ["EXPERIMENTS_HOME"]) / "images"
        if not images.exists():
            gather(Path(shared), images)
        given = overrides.replace("{shared}", shared).replace("{images}", str(images)).split()
        record(name, [*given, "evaluate.test=false", "tracking=none", "best_weights=true"], seeds, rates)


def record(name: str, overrides: list[str], seeds: int, rates: tuple[float, ...]) -> None:
    import numpy as np
    from rich.console import Console

    from benchmarks.ours import Quiet, prepare
    from experiments.inspection import lr
    from experiments.types import ConfigError, Watch

    rows: list[tuple[str, int, float, float]] = []
    tried = np.geomspace(1e-6, 10, 100)
    console = Console(width=100)
    for seed in SEEDS:
        parts, _ = prepare([*overrides, f"seed={seed}"])
        found = lr.range_test(parts.config, {}, tried, Quiet())
        rows += [("loss", seed, rate, loss) for rate, loss in zip(found.rates, found.losses, strict=True)]
        console.print(f"{name} seed {seed}: {len(found.losses)} losses")
    for rate in rates:
        for seed in range(seeds):
            parts, splits = prepare([*overrides, f"seed={seed}", f"optimizer.lr={rate}"])
            try:
                scores = parts.regime(parts, splits, Watch(Quiet(), lambda _: None)).scores["validation"]
                accuracy = float(np.mean(scores.argmax(axis=1) == splits.validation.labels))
            except ConfigError:  # the loss is not finite
                accuracy = 0.0
            rows.append(("accuracy", seed, rate, accuracy))
            console.print(f"{name} rate {rate:g} seed {seed}: {accuracy:.3f}")
    CURVES.mkdir(parents=True, exist_ok=True)
    with (CURVES / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "seed", "rate", "value"])
        writer.writerows((what, seed, f"{rate:.4g}", f"{value:.5g}") for what, seed, rate, value in rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("EXPERIMENTS_HOME", home)
        main()
