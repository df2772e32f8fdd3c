"""Benchmark rows on fine-tuning: accuracy against the time of a whole process, and an epoch of the whole network."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import ours
from benchmarks.images import Folder, flowers
from benchmarks.report import Comparison, Row, Side
from benchmarks.rows import XLA, Setup, alternate, in_process, weights_override
from experiments.storage.csv_files import read_rows

# The overrides of each of our recipes, without data.root, the model and its weights. Measuring another preset of
# conf/experiment takes one more line.
OURS: Mapping[str, Sequence[str]] = {
    "regime=bottleneck": ["regime=bottleneck"],
    "experiment=finetune_fast": ["experiment=finetune_fast"],
    "regime=finetune": ["regime=finetune"],
    "experiment=finetune_best": ["experiment=finetune_best"],
}
# Each peer's name in `finetuning_peers.RECIPES`, and its candidate learning rates. The rate with the best validation
# accuracy on the first seed is used.
PEERS: Mapping[str, tuple[str, Sequence[float]]] = {
    "plain Keras": ("keras", (1e-4, 2e-4, 1e-3)),
    "fastai-like": ("fastai", (2e-3, 1e-2)),
}
WHOLE_NETWORK = "regime.unfrozen_blocks=all"


@dataclass(frozen=True)
class Result:
    """Result of one training process."""

    seconds: float  # of the whole process
    validation: float  # accuracy in [0, 1]
    correct: Mapping[str, bool]  # by a test image's path below the data root: whether it is classified correctly

    @property
    def test(self) -> float:
        return sum(self.correct.values()) / len(self.correct)


def accuracy_against_time(setup: Setup) -> Row:
    """Measure accuracy and the time of a whole process on flowers17, ours and both peers in turn, for several seeds."""
    folder = flowers(setup.cache, setup.images)
    weights, override = weights_override()
    if weights is None:
        raise ValueError("accuracy-against-time: random features mean nothing here. Give MobileNetV2's weights")
    measured: dict[str, list[Result]] = {label: [] for label in (*OURS, *PEERS)}
    rates = {label: list(tried) for label, (_, tried) in PEERS.items()}
    tried_rates: dict[str, dict[str, float]] = {label: {} for label in PEERS}
    seeds = range(setup.process_repeats)
    for seed in seeds:
        for label, overrides in OURS.items():
            command = [*overrides, "model=mobilenet_v2", override, "data=folder", f"data.root='{folder.root}'"]
            measured[label].append(train_ours([*command, f"seed={seed}"], setup.home("ours")))
        for label, (name, _) in PEERS.items():
            results = {
                lr: train_peer(name, folder, weights, seed, lr, setup.home("peer")) for lr in rates[label]
            }  # fmt: skip
            best = max(results, key=lambda lr: results[lr].validation)
            if seed == seeds[0]:
                tried_rates[label] = {f"{lr:g}": result.validation for lr, result in results.items()}
                rates[label] = [best]
            measured[label].append(results[best])
    row = Row(
        "accuracy-against-time",
        "Fine-tuning on flowers17, mobilenet_v2: accuracy against the time of a whole process",
        {"images": str(folder), "pixels": 224, "batch": 32, "seeds": ", ".join(map(str, seeds)), "weights": "ImageNet"},
        [
            *(Side(label, "python -m experiments.train, new outputs folder, as it ships") for label in OURS),
            *(Side(label, f"finetuning_peers.py {name}, lr {rates[label][0]:g}") for label, (name, _) in PEERS.items()),
        ],
        figures={"peers' validation accuracy by learning rate, first seed": tried_rates},
    )
    report_results(row, measured)
    plot = setup.work.parent.parent / "accuracy_against_time.png"
    draw(measured).savefig(plot, dpi=120)
    row.notes.append(f"Plot: {plot}")
    return row


def train_ours(command: Sequence[str], home: Path) -> Result:
    run = ours.train_process(command, home)
    (folder,) = (path.parent for path in (home / "runs").glob("*/metrics.json"))
    metrics = json.loads((folder / "metrics.json").read_bytes())
    correct = {line["path"]: line["correct"] == "True" for line in read_rows(folder / "predictions_test.csv")}
    return Result(run.seconds, metrics["validation.accuracy"], correct)


def train_peer(name: str, folder: Folder, weights: str, seed: int, lr: float, home: Path) -> Result:
    arguments = {"root": str(folder.root), "weights": weights, "seed": seed, "lr": lr}
    run = ours.process([sys.executable, "-m", "benchmarks.finetuning_peers", name, json.dumps(arguments)], home)
    found = json.loads(run.output.splitlines()[-1])
    return Result(run.seconds, found["validation_accuracy"], found["correct"])


def report_results(row: Row, measured: Mapping[str, Sequence[Result]]) -> None:
    """Fill in a row's seconds, comparisons and table from each recipe's results, one per seed."""
    from experiments.comparison.groups import Scores
    from experiments.comparison.significance import compare_runs

    for label, results in measured.items():
        row.side(label).seconds = [result.seconds for result in results]
    validation = {label: fmean(result.validation for result in results) for label, results in measured.items()}
    best = max(PEERS, key=lambda label: validation[label])
    row.comparisons = [
        Comparison(label, peer, "faster", 4.0 if (label, peer) == ("regime=finetune", best) else None)
        for label in OURS for peer in PEERS
    ]  # fmt: skip
    against = [*PEERS, "regime=bottleneck"]
    row.table = [["", "validation", "test", "test by seed", "s", *(f"points above {label}, test" for label in against)]]
    scores = {
        label: Scores({str(seed): dict[Any, float](result.correct) for seed, result in enumerate(results)}, {})
        for label, results in measured.items()
    }
    for label, results in measured.items():
        value, low, high = scores[label].interval()
        cells = [label, f"{validation[label]:.1%}", f"{value:.1%} [{low:.1%}, {high:.1%}]"]
        cells += [", ".join(f"{result.test:.1%}" for result in results), f"{row.side(label).median:.0f}"]
        differences = {}
        for other in against:
            if other == label:
                cells.append("")
                continue
            found = compare_runs(scores[other], scores[label])
            bounds = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            cells.append(f"{bounds}, p {found.p_value:.2g}")
            differences[other] = {
                "value": found.value, "low": found.low, "high": found.high, "p": found.p_value, "source": found.source
            }  # fmt: skip
        row.table.append(cells)
        row.figures[label] = {
            "validation": [result.validation for result in results], "test": [result.test for result in results],
            "mean": value, "low": low, "high": high, "above": differences,
        }  # fmt: skip
    row.notes += [
        "Intervals (95 %) are over images and seeds, differences are paired by image and seed. A peer's learning rate "
        "is the best of its rates on the first seed's validation images; the search for it is not in its time.",
        f"Asked: regime=finetune takes at most a quarter of the time of the best peer on validation, {best}.",
    ]


def draw(measured: Mapping[str, Sequence[Result]]) -> Any:
    """Return a plot of test accuracy against seconds, one point per recipe and seed, styled like a run's figures."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, PercentFormatter

    from experiments.reports.figure_style import STYLE

    @STYLE
    def drawn() -> Figure:
        figure = Figure(figsize=(7, 4), layout="constrained")
        panel = figure.subplots()
        for label, results in measured.items():
            seconds, accuracies = [result.seconds for result in results], [result.test for result in results]
            panel.plot(seconds, accuracies, "o" if label in OURS else "s", label=label)
        panel.set(xscale="log", xlabel="whole process, s", title="Test accuracy on flowers17, a point for each seed")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.margins(0.1)
        figure.legend(loc="outside right upper")
        return figure

    return drawn()


def whole_network_epoch(setup: Setup, quick: int) -> Row:
    """Measure a training epoch of the whole network: ours, plain Keras's, and the bare training steps alone."""
    folder = flowers(setup.cache, setup.images or (None if setup.full else quick))
    weights, override = weights_override()
    row = Row(
        "finetune-all",
        "Training epoch of the whole network, mobilenet_v2 at 224 pixels",
        {"images": str(folder), "pixels": 224, "batch": 32, "optimizer": "AdamW",
         "weights": "ImageNet" if weights else "random", "XLA": XLA},
        [
            Side("ours", f"{WHOLE_NETWORK} regime.views=0 augmentation=light: fresh augmentation"),
            Side("plain Keras", "image_dataset_from_directory, cached; Keras layers in dataset.map; fit"),
            Side("floor", "the bare TensorFlow train step on batches in memory: no input, no metrics, no callbacks"),
        ],
        [Comparison("ours", "plain Keras", "faster"), Comparison("ours", "floor", "within", 1.1)],
        ["Training time of an epoch, validation not counted; the first epoch of each is dropped; one of each in turn."],
    )  # fmt: skip
    overrides = ["regime=finetune", "data=folder", "model=mobilenet_v2", override, WHOLE_NETWORK, "regime.views=0",
                 "augmentation=light", "optimizer=adamw", "optimizer.lr=2e-4", "regime.head_epochs=1",
                 *in_process(folder, setup.home("ours"))]  # fmt: skip
    makers = {
        "plain Keras": lambda: keras_peer(folder, weights, bare=False),
        "floor": lambda: keras_peer(folder, weights, bare=True),
    }
    alternate(row, overrides, "finetune", setup.repeats, makers)
    return row


def keras_peer(folder: Folder, weights: str | None, bare: bool) -> Any:
    """Return a plain Keras training of the whole network or, if `bare`, only its training steps."""
    import keras

    from benchmarks import finetuning_peers as plain
    from benchmarks.peers import Peer, one_epoch

    images, paths = plain.read(str(folder.root), "train")
    model = plain.Classifier(plain.mobilenet(weights), len({Path(path).parent for path in paths}))
    optimizer = keras.optimizers.AdamW(2e-4)
    if bare:
        batches = list(images.shuffle(len(paths), seed=0).batch(plain.BATCH_SIZE))
        return Peer(len(paths), bare_epoch(model, optimizer, batches))
    model.compile(optimizer, **plain.TRAINED)
    batches = plain.training_batches(images, len(paths), plain.light_augmentation())
    return Peer(len(paths), lambda: one_epoch(model, batches))


def bare_epoch(model: Any, optimizer: Any, batches: Sequence[Any]) -> Callable[[], tuple[float, int]]:
    """Return a function that trains a model for one epoch of batches in memory and returns seconds and steps."""
    import keras
    import tensorflow as tf

    loss = keras.losses.SparseCategoricalCrossentropy()
    model(batches[0][0][:1])  # creates the variables of the head
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(pixels: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(labels, model(pixels, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return value

    def epoch() -> tuple[float, int]:
        began = time.perf_counter()
        for pixels, labels in batches:
            value = step(pixels, labels)
        float(value)  # waits for the last step
        return time.perf_counter() - began, len(batches)

    return epoch


ROWS: Mapping[str, Callable[[Setup], Row]] = {
    "finetune-all": functools.partial(whole_network_epoch, quick=170),
    "accuracy-against-time": accuracy_against_time,
}
ONLY_FULL = ("accuracy-against-time",)
