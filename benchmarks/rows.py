"""Rows of the benchmark: the sides that each compares, and the conditions of the measurement."""

from __future__ import annotations

import functools
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import ours
from benchmarks.images import Folder, images, many, mobilenet_weights
from benchmarks.report import Comparison, Row, Side, same_work
from experiments.storage.csv_files import read_rows

BUDGET = 2.0  # GB, as in conf/runtime/default.yaml
XLA = "Keras's own choice (none on a CPU); ours as shipped: resampling, large updates and convolutions in part"


@dataclass(frozen=True)
class Setup:
    """Conditions under which the rows are measured."""

    repeats: int  # that count; rows that drop the first, slower repeat make one more
    process_repeats: int  # of the rows that start new processes
    full: bool
    images: int | None  # training images in every row, instead of the row's own number, to try it out
    cache: Path  # keeps subsets of the images
    work: Path  # scratch directory of this row, removed after it

    def folder(self, quick: int | None = None) -> Folder:
        """Return the images: `quick` of them in `make bench`, all in `make bench-full`."""
        return images(self.cache, self.images or (None if self.full else quick))

    def home(self, name: str) -> Path:
        """Return an empty directory for outputs."""
        home = self.work / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        return home


def weights_override() -> tuple[str | None, str]:
    """Return MobileNetV2's weights file or None, and the override that selects these weights."""
    file = mobilenet_weights()
    return (None, "model.weights=null") if file is None else (str(file), f"model.weights='{file}'")


def in_process(folder: Folder, home: Path, *overrides: str) -> list[str]:
    return [f"data.root='{folder.root}'", f"outputs='{home}'", "tracking=none", *overrides]


def alternate(
    row: Row, overrides: Sequence[str], phase: str, repeats: int, makers: Mapping[str, Callable[[], Any]]
) -> None:
    """Train ours and every peer one epoch in turn and fill in the row's seconds.

    The first epoch of each, which includes tracing, is dropped.

    Args:
        row: the row to fill in. Its first side is ours, the others are named by the keys of `makers`.
        overrides: the overrides of our run, without its epochs.
        phase: the phase of our run whose epochs are measured.
        makers: functions that build the peers, called after our first epoch, once our run has set up TensorFlow.
    """
    peers: dict[str, Any] = {}

    def between() -> None:
        if not peers:
            peers.update({label: make() for label, make in makers.items()})
        for label, peer in peers.items():
            side = row.side(label)
            seconds, steps = peer.epoch()
            side.seconds.append(seconds)
            side.images, side.steps = peer.images, steps

    epochs, count = ours.train_epochs([*overrides, f"epochs={repeats + 1}"], phase, between)
    first = row.sides[0]
    first.seconds = [epoch.seconds for epoch in epochs]
    first.images, first.steps = count, epochs[-1].steps
    for side in row.sides:
        side.seconds = side.seconds[1:]
    same_work(row, [side.label for side in row.sides])


def scratch(setup: Setup) -> Row:
    """Measure a scratch epoch with the tutorial's augmentation."""
    from benchmarks import peers

    folder, size, batch_size = setup.folder(), 150, 16
    row = Row(
        "scratch",
        "Scratch epoch, the tutorial's network and augmentation",
        {"images": str(folder), "pixels": size, "batch": batch_size, "optimizer": "RMSprop", "XLA": XLA},
        [
            Side("ours", "regime=scratch of experiment=tutorial_scratch; its epochs' training time"),
            Side("(a) ImageDataGenerator", "the tutorial's script: legacy ImageDataGenerator.flow_from_directory"),
            Side("(b) Keras layers", "image_dataset_from_directory, cached decoded; Keras layers in dataset.map"),
            Side("(c) floor", "the same network fed from float32 arrays in memory, nothing augmented"),
        ],
        [
            Comparison("ours", "(a) ImageDataGenerator", "faster", 1.4),
            Comparison("ours", "(b) Keras layers", "faster"),
            Comparison("ours", "(c) floor", "within", 1.2),
        ],
        ["Training time of an epoch, validation not counted; the first epoch of each is dropped; one of each in turn."],
    )
    arguments = (folder.root, size, batch_size)
    alternate(
        row,
        ["experiment=tutorial_scratch", *in_process(folder, setup.home("ours"))],
        "scratch",
        setup.repeats,
        {
            "(a) ImageDataGenerator": lambda: peers.legacy_generator(*arguments),
            "(b) Keras layers": lambda: peers.directory_and_layers(*arguments),
            "(c) floor": lambda: peers.from_memory(*arguments),
        },
    )
    return row


def augmentation(setup: Setup) -> Row:
    """Measure the augmentation alone, and how much sharpness is lost by resampling several times."""
    import tensorflow as tf

    from benchmarks import peers

    folder, batch_size = setup.folder(), 16
    row = Row(
        "augmentation",
        "Augmentation alone: one resampling vs Keras layers in a row",
        {"images": str(folder), "pixels": 150, "batch": batch_size, "XLA": "in our resampling"},
        [
            Side("ours", "the input pipeline of regime=scratch, read to an epoch's end: one affine resampling"),
            Side(
                "Keras layers",
                "tf.data over uint8 images in memory; RandomFlip, RandomRotation, RandomTranslation, RandomShear, "
                "RandomZoom in a parallel dataset.map",
            ),
        ],
        [Comparison("ours", "Keras layers", "faster", 4.0)],
        ["An epoch of batches, read and thrown away; a first epoch of each is dropped."],
    )
    components, dataset = ours.prepare(["experiment=tutorial_scratch", *in_process(folder, setup.home("ours"))])
    pixels = dataset.train.pixels[:]
    epoch = ours.augmented_epoch(components, dataset)
    layered = peers.augmented_batches(pixels, batch_size)
    for repeat in range(setup.repeats + 1):
        first, second = epoch(), peers.read_through(layered)
        if repeat:
            row.add_repeat(first[0], second[0])
    for side, (_, steps) in zip(row.sides, (first, second), strict=True):
        side.images, side.steps = len(pixels), steps
    same_work(row, ["ours", "Keras layers"])

    layers, few = peers.augmentation_layers(), pixels[:512]
    rng = np.random.default_rng(0)
    energies = []
    for at in range(0, len(few), 64):
        batch = tf.constant(few[at : at + 64])
        numbers = components.augmentation.draw(rng, len(batch), batch.shape[1])
        once = np.asarray(components.augmentation(batch, tf.constant(numbers)))
        several = np.asarray(layers(tf.cast(batch, tf.float32), training=True))
        energies.append([sharpness(version) for version in (np.asarray(batch, "float32"), once, several)])
    plain, once, several = np.mean(energies, axis=0)
    row.figures = {
        "gradient_energy_kept": {"one resampling": once[0] / plain[0], "Keras layers": several[0] / plain[0]},
        "high_frequency_energy_kept": {"one resampling": once[1] / plain[1], "Keras layers": several[1] / plain[1]},
        "lost_against_one_resampling": {
            "gradient_energy": 1 - several[0] / once[0], "high_frequency_energy": 1 - several[1] / once[1]
        },
    }  # fmt: skip
    row.notes.append(
        f"Sharpness kept of {len(few)} images' own, by the same ranges: gradient energy "
        f"{once[0] / plain[0]:.0%} after one resampling, {several[0] / plain[0]:.0%} after four in a row; energy above "
        f"half the highest frequency {once[1] / plain[1]:.0%} and {several[1] / plain[1]:.0%}. The extra resamplings "
        f"cost {1 - several[0] / once[0]:.0%} of the one and {1 - several[1] / once[1]:.0%} of the other."
    )
    return row


def sharpness(batch: np.ndarray) -> tuple[float, float]:
    """Return the mean gradient energy and energy above half the Nyquist frequency of images [B, H, W, 3], as grey."""
    grey = batch.mean(axis=-1)
    gradient = np.square(np.diff(grey, axis=1)).mean() + np.square(np.diff(grey, axis=2)).mean()
    window = np.hanning(grey.shape[1])[:, None] * np.hanning(grey.shape[2])
    spectrum = np.square(np.abs(np.fft.fft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window)))
    frequency = np.hypot(np.fft.fftfreq(grey.shape[1])[:, None], np.fft.fftfreq(grey.shape[2]))
    return float(gradient), float(spectrum[:, frequency > 0.25].sum(axis=1).mean())


def extraction(setup: Setup, name: str, size: int, quick: int | None) -> Row:
    """Measure running the frozen backbone over every image and writing its features to disk."""
    from benchmarks import peers

    folder = setup.folder(quick)
    weights, override = weights_override() if name == "mobilenet_v2" else (None, "model.weights=null")
    row = Row(
        f"extraction-{name}",
        f"Extraction, {name} at {size} pixels",
        {"images": str(folder), "pixels": size, "batch": 32, "weights": "ImageNet" if weights else "random"},
        [
            Side("ours", "cached_features() from the filled pixel store to features committed on disk, with hashes"),
            Side("predict", "model.predict over float32 images in memory; its first call, as ours is in a run"),
            Side("predict again", "the same model's second call, its graph built already"),
        ],
        [Comparison("ours", "predict", "within", 1.15), Comparison("ours", "predict again", "within", 1.15)],
        [
            "The first repeat of each is dropped. Building the graph, once a run, is counted for ours and for predict; "
            "predict again is spared it, so that this comparison is the stricter."
        ],
    )
    home = setup.home("ours")
    components, dataset = ours.prepare(["regime=bottleneck", f"model={name}", "data=folder", override,
                                  *in_process(folder, home)])  # fmt: skip
    model, preprocess = peers.backbone(name, weights, size)
    pixels = preprocess(peers.in_memory(folder.root, "train", size)[0])
    for repeat in range(setup.repeats + 1):
        shutil.rmtree(components.cache / "activations", ignore_errors=True)
        seconds = [ours.extract(components, dataset), *peers.predict_twice(model, pixels, batch_size=32)]
        if repeat:
            row.add_repeat(*seconds)
    for side in row.sides:
        side.images, side.steps = len(pixels), math.ceil(len(pixels) / 32)
    row.sides[0].images = len(dataset.train)
    same_work(row, [side.label for side in row.sides])
    return row


def reading(setup: Setup, name: str, quick: int | None = None) -> Row:
    """Measure `experiments predict` or `evaluate` on image files, beside reading and extraction of the same files."""
    folder, size = setup.folder(quick), 224
    weights, override = weights_override()
    about = {
        "predict": "predictions() of experiments predict: files read and decoded, the whole model",
        "evaluate": "evaluate() of experiments evaluate: files hashed, read and decoded, the whole model, the report",
    }
    row = Row(
        name,
        f"experiments {name} over image files, mobilenet_v2 at {size} pixels",
        {"images": str(folder), "pixels": size, "batch": 32, "weights": "ImageNet" if weights else "random"},
        [
            Side("ours", about[name]),
            Side("read and extract", "read_data() and cached_features() of a bottleneck run with an empty cache"),
            Side("extract", "cached_features() from the filled pixel store: nothing is decoded"),
        ],
        [Comparison("ours", "read and extract", "within", 1 / 0.9), Comparison("ours", "extract", "within")],
        ["The first repeat of each is dropped. The graph is built in each. Ten validation images are read as well."],
    )
    components, dataset = ours.prepare(["regime=bottleneck", "model=mobilenet_v2", "data=folder", override,
                                  "data.limit.validation=10", *in_process(folder, setup.home("ours"))])  # fmt: skip
    files = dataset.manifest.of("train")
    for repeat in range(setup.repeats + 1):
        measure = ours.predict if name == "predict" else ours.evaluate
        seconds = [measure(components, dataset), ours.read_and_extract(components)]
        shutil.rmtree(components.cache / "activations")
        seconds.append(ours.extract(components, dataset))
        if repeat:
            row.add_repeat(*seconds)
    for side in row.sides:
        side.images, side.steps = len(files), math.ceil(len(files) / 32)
    same_work(row, [side.label for side in row.sides])
    return row


def finetuning(setup: Setup, unfrozen: int, factor: float, quick: int) -> Row:
    """Measure a fine-tuning epoch of VGG16 from cached features and through the whole network."""
    from benchmarks import peers

    folder, size, batch_size = setup.folder(quick), 150, 16
    row = Row(
        f"finetune-{unfrozen}",
        f"VGG16 training epoch, unfrozen_blocks={unfrozen}: stored boundary vs whole network",
        {"images": str(folder), "pixels": size, "batch": batch_size, "optimizer": "SGD, lr 1e-4, momentum 0.9",
         "weights": "random", "XLA": XLA},
        [
            Side("ours", "regime=finetune of experiment=tutorial_finetune, regime.views=1: activations read from disk"),
            Side("whole network", "plain Keras: the lower blocks trainable=False, fed from arrays in memory"),
        ],
        [Comparison("ours", "whole network", "faster", factor)],
        [
            "Training time of an epoch; the first of each is dropped. Neither side augments while it trains. Computing "
            "the stored activations, once an image and view, is not counted here: see the extraction rows."
        ],
    )  # fmt: skip
    trained = tuple(f"block{5 - at}" for at in range(unfrozen))
    overrides = ["experiment=tutorial_finetune", "model.weights=null", "regime.views=1", "regime.head_epochs=1",
                 f"regime.unfrozen_blocks={unfrozen}", *in_process(folder, setup.home("ours"))]  # fmt: skip
    makers = {"whole network": lambda: peers.whole_network(folder.root, size, batch_size, trained)}
    alternate(row, overrides, "finetune", setup.repeats, makers)
    return row


def bottleneck(setup: Setup) -> Row:
    """Measure a bottleneck run as a whole process, with an empty and with a filled feature cache."""
    folder, epochs, batch_size = setup.folder(), 30, 32
    weights, override = weights_override()
    row = Row(
        "bottleneck",
        "Bottleneck run, mobilenet_v2 at 224 pixels: whole processes",
        {"images": str(folder), "batch": batch_size, "epochs": epochs, "optimizer": "RMSprop", "XLA": XLA,
         "weights": "ImageNet" if weights else "random"},
        [
            Side("ours, empty store", "experiments.train experiment=mobilenet_bottleneck, new outputs folder"),
            Side("predict + head fit", "only these two of a plain Keras process, its images already in memory"),
            Side("ours, filled store", "the same command once more with another epsilon, minus `import keras`"),
            Side("head fit", "only this of the plain Keras process"),
            Side("import keras", "python -c 'import keras'"),
            Side("ours, filled store, whole", "before the import is taken off"),
        ],
        [
            Comparison("ours, empty store", "predict + head fit", "within", 1.15, 15.0),
            Comparison("ours, filled store", "head fit", "within", 1.0, 8.0),
        ],
        ["Every repeat is new processes, in turn. Ours with all that ships: MLflow in SQLite, reports, figures."],
    )  # fmt: skip
    arguments = {"root": str(folder.root), "name": "mobilenet_v2", "weights": weights, "size": 224,
                 "batch_size": batch_size, "epochs": epochs, "dense": False}  # fmt: skip
    command = ["experiment=mobilenet_bottleneck", f"data.root='{folder.root}'", override,
               f"epochs={epochs}", f"batch_size={batch_size}"]  # fmt: skip
    for _ in range(setup.process_repeats):
        home = setup.home("ours")
        empty = ours.train_process([*command, "optimizer.epsilon=1e-7"], home).seconds
        plain = peer_process("bare", arguments, home)[1]
        filled = ours.train_process([*command, "optimizer.epsilon=2e-7"], home).seconds
        imported = ours.import_keras(home)
        row.add_repeat(
            empty, plain["predict"] + plain["head_fit"], filled - imported, plain["head_fit"], imported, filled
        )
        ran = sum(1 for _ in (home / "runs").glob("*/metrics.json"))
        if ran != 2 or [plain["images"], plain["epochs"]] != [folder.train, epochs]:
            raise ValueError(f"bottleneck: not the same work on both sides. Received: {ran} runs, {plain}")
    return row


def tutorials_way(setup: Setup, quick: int) -> Row:
    """Measure a bottleneck run of VGG16 with a filled feature cache, and the tutorial's script."""
    folder, size, batch_size, epochs = setup.folder(quick), 150, 16, 50
    row = Row(
        "tutorial-bottleneck",
        "Bottleneck run, vgg16 at 150 pixels: filled store vs the tutorial's way",
        {"images": str(folder), "batch": batch_size, "epochs": epochs, "optimizer": "RMSprop", "weights": "random",
         "XLA": XLA},
        [
            Side("ours, filled store", "experiments.train experiment=tutorial_bottleneck, minus `import keras`"),
            Side("the tutorial's way", "predict through ImageDataGenerator, np.save, np.load, fit; minus the same"),
            Side("import keras", "python -c 'import keras'"),
        ],
        [Comparison("ours, filled store", "the tutorial's way", "faster", 3.0)],
        ["Every repeat is new processes, in turn. Ours with all that ships; a run before them fills the store."],
    )  # fmt: skip
    home = setup.home("ours")
    command = ["experiment=tutorial_bottleneck", f"data.root='{folder.root}'", "model.weights=null",
               f"epochs={epochs}", f"batch_size={batch_size}"]  # fmt: skip
    ours.train_process([*command, "epochs=1"], home)
    for repeat in range(setup.process_repeats):
        # Another epsilon makes the run train a new head, which is not cached. Another seed would give the backbone
        # other random weights.
        filled = ours.train_process([*command, f"optimizer.epsilon={repeat + 1}e-7"], home).seconds
        arguments = {"root": str(folder.root), "folder": str(setup.home("tutorial")), "size": size,
                     "batch_size": batch_size, "epochs": epochs}  # fmt: skip
        whole, done = peer_process("tutorial_bottleneck", arguments, home)
        imported = ours.import_keras(home)
        row.add_repeat(filled - imported, whole - imported, imported)
        if done != {"images": folder.train, "epochs": epochs}:
            raise ValueError(f"tutorial-bottleneck: not the same work on both sides. Received: {done}")
    return row


def sweeping(setup: Setup) -> Row:
    """Measure the 18 jobs of experiment=above_95 against as many separate scripts, of which two are run."""
    folder, head_epochs, epochs, batch_size = setup.folder(), 30, 3, 32
    weights, override = weights_override()
    if weights is None:
        raise ValueError("sweep: a sweep over random features means nothing. Give MobileNetV2's weights")
    jobs = 18
    row = Row(
        "sweep",
        "The grid of experiment=above_95 with mobilenet_v2: 18 jobs",
        {"images": str(folder), "batch": batch_size, "epochs": f"{head_epochs} of the head, {epochs} of fine-tuning",
         "XLA": XLA, "weights": "ImageNet"},
        [
            Side("ours, a job", "python -m experiments.train -m, new outputs folder: the whole sweep over 18"),
            Side("a script each", "extract, train the head, fine-tune through the whole network; 2 of 18 run"),
            Side("a caching script each", "the same, but it stores what enters the unfrozen blocks; 2 of 18 run"),
            Side("outside fit", "of every job of ours, process and all, what is not spent in Keras's fit"),
        ],
        [
            Comparison("ours, a job", "a script each", "faster", 4.0),
            Comparison("ours, a job", "a caching script each", "faster"),
        ],
        ["Whole processes, measured once. The scripts: dropout 0.5, L2 1e-4, one and two unfrozen blocks."],
    )  # fmt: skip
    home = setup.home("ours")
    command = ["-m", "experiment=above_95", "model=mobilenet_v2", override, f"data.root='{folder.root}'",
               f"epochs={epochs}", f"regime.head_epochs={head_epochs}", f"batch_size={batch_size}"]  # fmt: skip
    whole = ours.train_process(command, home).seconds
    (sweep,) = (home / "sweeps").iterdir()
    numbers = sorted(int(path.parent.name) for path in sweep.glob("*/job.json"))
    for number in numbers[:jobs]:
        record = json.loads((sweep / str(number) / "job.json").read_bytes())
        metrics = json.loads((sweep / str(number) / "metrics.json").read_bytes())
        config = yaml.safe_load((sweep / str(number) / "config.yaml").read_text())
        row.sides[3].seconds.append(record["seconds"] - metrics["fit_seconds"])
        assert config["epochs"] == epochs
    for unfrozen in (1, 2):
        row.sides[0].seconds.append(whole / jobs)
        for side, cached in ((row.sides[1], False), (row.sides[2], True)):
            arguments = {
                "root": str(folder.root), "weights": weights, "unfrozen": unfrozen, "dropout": 0.5, "l2": 1e-4,
                "cached": cached, "batch_size": batch_size, "head_epochs": head_epochs, "epochs": epochs,
            }  # fmt: skip
            seconds, done = peer_process("tuned", arguments, home)
            side.seconds.append(seconds)
            if (done["images"], done["epochs"]) != (folder.train, epochs):
                raise ValueError(f"sweep: not the same work on both sides. Received: {done}")
    row.notes.append(f"Outside fit, median over the jobs: {statistics.median(row.sides[3].seconds):.1f} s; asked: 4 s.")
    return row


def peer_process(name: str, arguments: Mapping[str, Any], home: Path) -> tuple[float, dict[str, Any]]:
    """Run a peer's process and return its seconds and the result that it printed."""
    run = ours.process([sys.executable, "-m", "benchmarks.peers", name, json.dumps(arguments)], home)
    return run.seconds, json.loads(run.output.splitlines()[-1])


def scaling(setup: Setup) -> Row:
    """Measure time and memory from 2,000 to 20,000 images."""
    largest = max(100, setup.images or 20_000)
    base = images(setup.cache, min(2000, largest))
    counts = [largest // 10, round(largest / math.sqrt(10) / 10) * 10, largest]
    override = weights_override()[1]
    commands = {
        "scratch": ["experiment=tutorial_scratch", "epochs=3"],
        "bottleneck": ["experiment=mobilenet_bottleneck", override, "epochs=5"],
        "finetune": ["experiment=mobilenet_finetune", override, "regime.views=1", "regime.head_epochs=5", "epochs=3"],
    }
    row = Row(
        "scaling",
        f"{counts[0]:,} to {counts[-1]:,} images: time and memory",
        {"images": f"random crops of {base}, another brightness, encoded anew, as many again / 5 for validation",
         "memory for images": f"{BUDGET:g} GB (runtime.memory)"},
        notes=[f"Whole processes, new outputs folder each, the three numbers in turn, {setup.process_repeats} times: "
               "medians of seconds (fastest), the largest memory. Resident memory counts pages of memory maps that the "
               "system may take back; private memory does not."],
        table=[["regime", "images", "whole s", "epoch s", "resident MB", "private MB"]],
    )  # fmt: skip
    measured: dict[str, list[dict[str, float]]] = {}
    for regime, overrides in commands.items():
        runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for _ in range(setup.process_repeats):
            for count in counts:
                folder = many(setup.cache, base, count)
                home = setup.home("ours")
                own = [f"data.root='{folder.root}'", "evaluate.test=false", f"runtime.memory={BUDGET}"]
                run = ours.train_process([*overrides, *own], home)
                epoch = statistics.median(float(line["seconds"]) for line in last_phase(home))
                runs[count].append({"whole": run.seconds, "epoch": epoch, "peak": run.peak, "private": run.private})
        points = [summary(count, runs[count]) for count in counts]
        measured[regime] = points
        for point in points:
            seconds = [f"{point[what]:.2f} ({point[f'fastest {what}']:.2f})" for what in ("whole", "epoch")]
            memory = [f"{point[what] / 2**20:.0f}" for what in ("peak", "private")]
            row.table.append([regime, f"{point['images']:,}", *seconds, *memory])
        exponents = {what: exponent(points, what) for what in ("whole", "epoch")}
        exponents["beyond start"] = exponent_beyond_start(points)
        grown = points[-1]["peak"] - points[0]["peak"]
        row.figures[regime] = {
            "points": points,
            "runs": runs,
            "exponents": {what: None if math.isnan(value) else value for what, value in exponents.items()},
            "memory_grown": grown,
        }
        row.notes.append(
            f"{regime}: time grows with images to the power {exponents['whole']:.2f} (whole process), "
            f"{exponents['epoch']:.2f} (epoch), {exponents['beyond start']:.2f} (whole process without what every one "
            "takes to start and end); asked: at most 1.05: "
            + ("met." if max(value for value in exponents.values() if not math.isnan(value)) <= 1.05 else "NOT met.")
            + f" Resident memory grew by {grown / 1e9:.2f} GB; asked: at most the {BUDGET:g} GB for images: "
            + ("met." if grown <= BUDGET * 1e9 else "NOT met.")
        )
    plot = setup.work.parent.parent / "scaling.png"
    draw_scaling(measured, plot)
    row.notes.append(f"Plot: {plot}")
    return row


def summary(images: int, runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median and smallest seconds and the largest memory of repeated runs."""
    point: dict[str, float] = {"images": images}
    for what in ("whole", "epoch"):
        point[what] = statistics.median(run[what] for run in runs)
        point[f"fastest {what}"] = min(run[what] for run in runs)
    return point | {what: max(run[what] for run in runs) for what in ("peak", "private")}


def last_phase(home: Path) -> list[dict[str, str]]:
    """Return the curves of the only run under `home`: the epochs of its last phase."""
    (path,) = (home / "runs").glob("*/curves.csv")
    lines = read_rows(path)
    return [line for line in lines if line["phase"] == lines[-1]["phase"]]


def exponent(points: Sequence[Mapping[str, float]], what: str) -> float:
    """Return the p of time = b n^p for n images, which is the slope of a line through the logarithms."""
    images, seconds = (np.log([point[key] for point in points]) for key in ("images", what))
    return float(np.polyfit(images, seconds, 1)[0])


def exponent_beyond_start(points: Sequence[Mapping[str, float]]) -> float:
    """Return the p of time = a + b n^p through three points whose n grow by one factor; nan where time does not grow.

    The constant a is the time that every process takes to start and end.
    """
    first, second, third = (point["whole"] for point in points)
    if not first < second < third:
        return math.nan
    factor = math.sqrt(points[2]["images"] / points[0]["images"])
    return math.log((third - second) / (second - first)) / math.log(factor)


def draw_scaling(measured: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for regime, points in measured.items():
        x = [point["images"] for point in points]
        time.loglog(x, [point["whole"] for point in points], "o-", label=regime)
        (line,) = memory.semilogx(x, [point["peak"] / 2**20 for point in points], "o-", label=f"{regime}, resident")
        private = [point["private"] / 2**20 for point in points]
        memory.semilogx(x, private, "o:", color=line.get_color(), label=f"{regime}, private")
    time.set(xlabel="training images", ylabel="whole process, s", title="Time")
    memory.set(xlabel="training images", ylabel="peak memory, MB", title="Memory", ylim=(0, None))
    x = sorted({point["images"] for points in measured.values() for point in points})
    for axes in (time, memory):
        axes.set_xticks(x, [f"{count:,}" for count in x])
        axes.set_xticks([], minor=True)
    time.yaxis.set_major_formatter("{x:g}")
    time.yaxis.set_minor_formatter("{x:g}")
    time.legend()
    memory.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def price(setup: Setup) -> Row:
    """Measure validation accuracy and seconds per epoch for different numbers of cached views."""
    from experiments.evaluation.statistics import mean_interval

    folder, seeds = setup.folder(), (0, 1, 2)
    weights, override = weights_override()
    row = Row(
        "views",
        "Accuracy for the price: finetune, mobilenet_v2, stored views",
        {"images": str(folder), "seeds": "0, 1, 2", "weights": "ImageNet" if weights else "random",
         "command": "experiment=mobilenet_finetune"},
        notes=["Intervals are Student's over the seeds (95 %), of the last epoch's validation accuracy.",
               "The first seed's whole run pays for decoding and extraction."],
        table=[["views", "validation accuracy", "by seed", "s / epoch", "whole run s: first seed (median)"]],
    )  # fmt: skip
    for views in (0, 1, 4, 8):
        accuracies, epochs, whole = [], [], []
        home = setup.home("ours")
        for seed in seeds:
            run = ours.train_process(
                ["experiment=mobilenet_finetune", override, f"data.root='{folder.root}'", f"regime.views={views}",
                 f"seed={seed}", "tracking=none"],
                home,
            )  # fmt: skip
            lines = last_phase(home)
            shutil.rmtree(home / "runs")
            accuracies.append(float(lines[-1]["validation_accuracy"]))
            epochs.append(statistics.median(float(line["seconds"]) for line in lines))
            whole.append(run.seconds)
        mean, low, high = mean_interval(accuracies)
        row.figures[str(views)] = {"accuracies": accuracies, "mean": mean, "low": low, "high": high,
                                   "epoch_seconds": epochs, "whole_seconds": whole}  # fmt: skip
        row.table.append([
            str(views), f"{mean:.1%} [{low:.1%}, {high:.1%}]", ", ".join(f"{accuracy:.1%}" for accuracy in accuracies),
            f"{statistics.median(epochs):.2f}", f"{whole[0]:.0f} ({statistics.median(whole):.0f})",
        ])  # fmt: skip
    return row


ROWS: Mapping[str, Callable[[Setup], Row]] = {
    "scratch": scratch,
    "augmentation": augmentation,
    "extraction-mobilenet_v2": functools.partial(extraction, name="mobilenet_v2", size=224, quick=640),
    "extraction-vgg16": functools.partial(extraction, name="vgg16", size=150, quick=64),
    "finetune-1": functools.partial(finetuning, unfrozen=1, factor=4.5, quick=64),
    "finetune-2": functools.partial(finetuning, unfrozen=2, factor=1.8, quick=64),
    "bottleneck": bottleneck,
    "tutorial-bottleneck": functools.partial(tutorials_way, quick=256),
    "evaluate": functools.partial(reading, name="evaluate", quick=640),
    "predict": functools.partial(reading, name="predict"),
    "sweep": sweeping,
    "scaling": scaling,
    "views": price,
}
ONLY_FULL = ("predict", "sweep", "scaling", "views")
