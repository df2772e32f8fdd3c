"""Record the data of the learning-rate finder's test: range tests, and accuracies of short trainings at each rate.

    python -m benchmarks.learning_rates compare
    python -m benchmarks.learning_rates SHARED [NAME ...]

The first command prints the table of docs/learning_rates.md: the finder's rule beside published ones, on all curves.
The second trains at the rates listed here and at those that the range tests suggest, and writes
tests/inspection/curves/NAME.csv. SHARED is the directory that holds cats_dogs/, flowers17/ and weights/.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

LOWEST, HIGHEST = 1e-6, 10.0  # rates of a range test

CURVES = Path(__file__).resolve().parent.parent / "tests" / "inspection" / "curves"
SEEDS = (0, 1, 2)  # of the range tests; with each seed another head is trained, and the images come in another order
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
BATCHES = {"bottleneck-mobilenet-rmsprop-cats-300": 300}  # of a range test, where the number is not 100
FINETUNE = (  # the defaults when the curves were recorded; an optimizer override after it replaces sgd
    "regime=finetune optimizer=sgd optimizer@regime.head_optimizer=rmsprop schedule=constant schedule.warmup=0 "
    "regime.views=1"
)
TUTORIAL_HEAD = "model.head.pooling=flatten +model.head.dense.dense1={units:256,activation:relu}"
BATCH_NORM = " ".join(f"model.layers.block{number}.batch_norm=true" for number in (1, 2, 3))

# Name: overrides, the number of seeds trained at each rate, the rates.
RECORDED = {
    "bottleneck-convnet-rmsprop-synthetic": (
        f"regime=bottleneck optimizer=rmsprop {SYNTHETIC} epochs=15", 8, HEAD
    ),
    "bottleneck-convnet-adamw-cats": (
        f"regime=bottleneck optimizer=adamw {CATS} data.image_size=96 epochs=15", 8, HEAD
    ),
    "bottleneck-mobilenet-rmsprop-cats": (
        f"regime=bottleneck optimizer=rmsprop {MOBILENET} {CATS} data.image_size=128 epochs=15", 8, HEAD
    ),
    "bottleneck-mobilenet-rmsprop-cats-300": (
        f"regime=bottleneck optimizer=rmsprop {MOBILENET} {CATS} data.image_size=128 epochs=15", 8, HEAD
    ),
    "bottleneck-mobilenet-adam-flowers": (f"regime=bottleneck optimizer=adam {MOBILENET} {FLOWERS} epochs=30", 8, HEAD),
    "bottleneck-mobilenet-sgd-flowers": (
        f"regime=bottleneck optimizer=sgd {MOBILENET} {FLOWERS} epochs=30", 8, HEAD_SGD
    ),
    "bottleneck-hidden-adamw-flowers": (
        "regime=bottleneck optimizer=adamw +model.head.dense.dense1={units:256,activation:relu} "
        f"{MOBILENET} {FLOWERS} epochs=20", 3, HEAD
    ),
    "finetune-convnet-sgd-synthetic": (f"{FINETUNE} {SYNTHETIC} epochs=8 augmentation=none", 3, TUNED_SGD),
    "finetune-convnet-sgd-synthetic-augmented": (
        f"{FINETUNE} {SYNTHETIC} epochs=8 augmentation=tutorial", 2, (1e-6, 1e-4, 1e-3, 1e-2, 3e-2)
    ),
    "finetune-convnet-adamw-cats": (
        f"{FINETUNE} optimizer=adamw {CATS} data.image_size=96 epochs=8 augmentation=none", 1, TUNED
    ),
    "finetune-mobilenet-sgd-flowers": (
        f"{FINETUNE} {MOBILENET} {FLOWERS} epochs=8 augmentation=none", 3, TUNED_SGD
    ),
    "finetune-mobilenet-adam-flowers": (
        f"{FINETUNE} optimizer=adam {MOBILENET} {FLOWERS} epochs=8 augmentation=none", 3, TUNED
    ),
    "finetune-mobilenet-rmsprop-cats": (
        f"{FINETUNE} optimizer=rmsprop regime.unfrozen_blocks=2 {MOBILENET} {CATS} data.image_size=128 epochs=6 "
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
        f"{FINETUNE} {TUTORIAL_HEAD} {VGG} {CATS} data.limit={{train:100,validation:100,test:null}} data.image_size=96 "
        "epochs=5 augmentation=none", 1, (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ),
}  # fmt: skip


def gather(shared: Path, images: Path) -> None:
    """Copy photographs into splits with a larger validation split, so that a point of accuracy is several images."""
    for name, sources in {
        "cats_dogs": {"train": [("train", 0, 300)], "validation": [("train", 300, 700), ("validation", 0, 200)]},
        "flowers17": {"train": [("train", 0, 40)], "validation": [("validation", 0, 20), ("test", 0, 20)]},
    }.items():
        for split, components in sources.items():
            for source, first, last in components:
                for folder in sorted((shared / name / source).iterdir()):
                    target = images / name / split / folder.name
                    target.mkdir(parents=True, exist_ok=True)
                    for path in sorted(folder.iterdir())[first:last]:
                        shutil.copy(path, target)


class Recorded(NamedTuple):
    """Range tests of several seeds, and the mean validation accuracy of short trainings at each rate."""

    losses: dict[int, np.ndarray]  # by seed
    rates: np.ndarray  # planned for a range test, which may stop earlier
    accuracies: dict[float, float]  # by rate, in increasing order

    @classmethod
    def read(cls, path: Path) -> Recorded:
        losses: dict[int, list[float]] = {}
        accuracies: dict[float, list[float]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["what"] == "loss":
                    losses.setdefault(int(row["seed"]), []).append(float(row["value"]))
                else:
                    accuracies.setdefault(float(row["rate"]), []).append(float(row["value"]))
        means = {rate: float(np.mean(values)) for rate, values in sorted(accuracies.items())}
        rates = np.geomspace(LOWEST, HIGHEST, BATCHES.get(path.stem, 100))
        return cls({seed: np.array(values) for seed, values in losses.items()}, rates, means)

    def lost(self, rate: float) -> float:
        """Return how far the accuracy at a rate is below the best; beyond the trained rates, the whole best accuracy.

        Between two trained rates the accuracy is interpolated linearly in the logarithm of the rate.
        """
        trained = np.log10(list(self.accuracies))
        reached = np.interp(np.log10(rate), trained, list(self.accuracies.values()))
        measured = trained[0] - 0.01 <= np.log10(rate) <= trained[-1] + 0.01
        return max(self.accuracies.values()) - (float(reached) if measured else 0.0)


def guessing(name: str) -> float:
    """Return the cross entropy of guessing the classes of a recorded curve, which are balanced."""
    return float(np.log(17 if "flowers" in name else 2))


# --- the rules of other finders, functions of rates [N] and losses [N]


def averaged(losses: np.ndarray, kept: float = 0.98) -> np.ndarray:
    """Return the exponential average that fastai and PyTorch Lightning smooth losses with."""
    weights = kept ** np.arange(len(losses))
    return np.convolve(losses, weights)[: len(losses)] / np.cumsum(weights)


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate where the smoothed loss falls fastest; the edges do not count, as in PyTorch Lightning."""
    return float(rates[10:-1][np.gradient(averaged(losses))[10:-1].argmin()])


def last_descent(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate where the smoothed loss falls fastest on its last descent to the minimum."""
    smoothed = averaged(losses)
    bottom = int(smoothed.argmin())
    rising = np.flatnonzero(np.diff(smoothed[: bottom + 1]) > 0)
    top = min(int(rising.max(initial=-1)) + 1, max(bottom - 1, 0))
    return float(rates[top + np.diff(smoothed[top : bottom + 2]).argmin()])


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the middle of the longest falling subsequence of the smoothed loss, as fastai's valley does."""
    smoothed = averaged(losses)
    length = np.ones(len(smoothed), int)
    for last in range(1, len(smoothed)):
        length[last] += max((length[first] for first in range(last) if smoothed[first] > smoothed[last]), default=0)
    last = int(length.argmax())
    return float(rates[last - int(length[last]) + int(length[last]) // 2])


def tenth_of_the_minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return a tenth of the rate with the lowest smoothed loss."""
    return float(rates[averaged(losses).argmin()]) / 10


def tenth_of_the_rise(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return a tenth of the last tried rate, beyond which the loss explodes."""
    return float(rates[-1]) / 10


PUBLISHED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "steepest point": steepest,
    "steepest point of the last descent": last_descent,
    "valley": valley,
    "a tenth of the minimum": tenth_of_the_minimum,
    "a tenth of where the loss explodes": tenth_of_the_rise,
}


def compare() -> None:
    """Print for each curve and rule how many points of accuracy each seed's suggestion loses against the best rate."""
    from experiments.inspection import lr

    within = dict.fromkeys(["ours", *PUBLISHED], 0)
    missed = dict.fromkeys(within, 0)
    count = 0
    print(f"| curve | best rate | ours: suggested | {' | '.join(within)} |")
    print("|---|---|---|" + "---|" * len(within))
    for path in sorted(CURVES.glob("*.csv")):
        recorded = Recorded.read(path)
        suggestions: dict[str, list[float | None]] = {rule: [] for rule in within}
        for losses in recorded.losses.values():
            found = lr.suggest(recorded.rates, losses, guessing(path.stem), path.stem.startswith("finetune"))
            suggestions["ours"].append(found.suggested)
            for rule, function in PUBLISHED.items():
                suggestions[rule].append(function(recorded.rates[: len(losses)], losses))
            count += 1
        cells = []
        for rule, rates in suggestions.items():
            lost = [None if rate is None else 100 * recorded.lost(rate) for rate in rates]
            within[rule] += sum(points is not None and points <= 1.05 for points in lost)
            missed[rule] += sum(points is not None and points > 1.05 for points in lost)
            cells.append(", ".join("none" if points is None else f"{points:.1f}" for points in lost))
        best = max(recorded.accuracies, key=lambda rate: recorded.accuracies[rate])
        ours = ", ".join("none" if rate is None else f"{rate:g}" for rate in suggestions["ours"])
        print(f"| {path.stem} | {best:g} ({100 * recorded.accuracies[best]:.1f} %) | {ours} | {' | '.join(cells)} |")
    print(f"| **within a point**, of {count} | | | {' | '.join(str(number) for number in within.values())} |")
    print(f"| **further below** | | | {' | '.join(str(number) for number in missed.values())} |")


def main() -> None:
    if sys.argv[1:] == ["compare"]:
        compare()
        return
    shared, *names = sys.argv[1:]
    for name in names or RECORDED:
        overrides, seeds, rates = RECORDED[name]
        images = Path(os.environ["EXPERIMENTS_HOME"]) / "images"
        if not images.exists():
            gather(Path(shared), images)
        given = overrides.replace("{shared}", shared).replace("{images}", str(images)).split()
        record(name, [*given, "evaluate.test=false", "tracking=none", "best_weights=true"], seeds, rates)


def record(name: str, overrides: list[str], seeds: int, rates: tuple[float, ...]) -> None:
    from rich.console import Console

    from benchmarks.ours import Quiet, prepare
    from experiments.errors import ConfigError
    from experiments.inspection import lr
    from experiments.training.types import TrainingContext

    rows: list[tuple[str, int, float, float]] = []
    tried = np.geomspace(LOWEST, HIGHEST, BATCHES.get(name, 100))
    suggested = set[float]()
    console = Console(width=100)
    for seed in SEEDS:
        components, _ = prepare([*overrides, f"seed={seed}"])
        found = lr.range_test(components.config, {}, tried, Quiet())
        rows += [("loss", seed, rate, loss) for rate, loss in zip(found.rates, found.losses, strict=True)]
        console.print(f"{name} seed {seed}: {len(found.losses)} losses, {found.suggested}, {found.reason}")
        if found.suggested is not None:
            suggested.add(found.suggested)
    for rate in sorted({*rates, *suggested}):
        for seed in range(seeds):
            components, dataset = prepare([*overrides, f"seed={seed}", f"optimizer.lr={rate}"])
            try:
                scores = components.regime(components, dataset, TrainingContext(Quiet(), lambda _: None)).scores[
                    "validation"
                ]
                accuracy = float(np.mean(scores.argmax(axis=1) == dataset.validation.labels))
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
