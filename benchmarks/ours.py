"""Our side of each benchmark row: the functions and processes of a run, called as a run calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import keras

    from experiments.data.types import Dataset
    from experiments.training.types import RunComponents

ROOT = Path(__file__).resolve().parent.parent


# --- in this process; TensorFlow is imported only where it is used


def prepare(overrides: Sequence[str]) -> tuple[RunComponents, Dataset]:
    """Return a run's components and its validated dataset, as `experiments.run` has them before training."""
    from hydra import compose, initialize_config_dir

    from experiments.config import validation
    from experiments.regimes.build import build
    from experiments.run import read_data
    from experiments.system import paths
    from experiments.training import runtime

    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        config = validation.validate(compose("config", list(overrides)))
    runtime.apply(config.runtime)
    components = build(config, {})
    return components, read_data(components)


@dataclass
class Epoch:
    seconds: float  # of training, without validation
    steps: int


class Quiet:
    """A progress display that shows nothing, as without a terminal, and counts the steps of the current stage."""

    def __init__(self) -> None:
        self.steps = 0

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        self.steps = 0

        def advance(steps: int = 1, note: str = "") -> None:
            self.steps += steps

        yield advance


def train_epochs(overrides: Sequence[str], phase: str, between: Callable[[], object]) -> tuple[list[Epoch], int]:
    """Run a regime and call `between` after each epoch of a phase.

    Returns:
        That phase's epochs, including the first one, and the number of training images.
    """
    from experiments.training.types import EpochRecord, TrainingContext

    components, dataset = prepare(overrides)
    progress, epochs = Quiet(), list[Epoch]()

    def record(made: EpochRecord) -> None:
        if made.phase == phase:
            # The rate is measured from the start of the epoch to the end of its last batch.
            seconds = len(dataset.train) / made.metrics["images_per_second"]
            epochs.append(Epoch(seconds, progress.steps - sum(epoch.steps for epoch in epochs)))
            between()

    components.regime(components, dataset, TrainingContext(progress, record))
    return epochs, len(dataset.train)


def augmented_epoch(components: RunComponents, dataset: Dataset) -> Callable[[], tuple[float, int]]:
    """Return a function that reads an epoch of augmented batches without training and returns seconds and batches.

    The batches are those of `regime=scratch`.
    """
    from experiments.regimes.scratch import augmented_batches

    def epoch() -> tuple[float, int]:
        batches = augmented_batches(components, dataset, range(1))
        began = time.perf_counter()
        steps = sum(1 for _ in batches.dataset)
        return time.perf_counter() - began, steps

    return epoch


def extract(components: RunComponents, dataset: Dataset) -> float:
    """Return the seconds from a filled pixel cache to the training images' features in the feature cache.

    The features must not be cached yet.
    """
    dataset.train.pixels[:1]
    return activate(components, dataset)


def read_and_extract(components: RunComponents) -> float:
    """Return the seconds from image files to the training images' features on disk, starting with an empty cache."""
    from experiments.run import read_data

    shutil.rmtree(components.cache, ignore_errors=True)
    began = time.perf_counter()
    dataset = read_data(components)
    dataset.train.pixels[:1]
    read = time.perf_counter() - began
    return read + activate(components, dataset)


def activate(components: RunComponents, dataset: Dataset) -> float:
    """Return the seconds for running the frozen backbone over the training images and caching its features."""
    from experiments.regimes.bottleneck import frozen_backbone
    from experiments.regimes.feature_cache import cached_features

    frozen = frozen_backbone(components)
    began = time.perf_counter()
    stored = cached_features(components, frozen, dataset.train, Quiet())
    seconds = time.perf_counter() - began
    assert len(stored) == len(dataset.train)
    return seconds


def predict(components: RunComponents, dataset: Dataset) -> float:
    """Return the seconds from the training images' files to the whole model's predictions."""
    from experiments.deploy.predict import predictions

    model, manifest = whole_model(components, dataset), dataset.manifest
    files = [str(manifest.root / entry.path) for entry in manifest.of("train")]
    began = time.perf_counter()
    predicted = [prediction for some in predictions(model, files, 32) for prediction in some]
    seconds = time.perf_counter() - began
    assert len(predicted) == len(files) and all(prediction.probabilities is not None for prediction in predicted)
    return seconds


def evaluate(components: RunComponents, dataset: Dataset) -> float:
    """Return the seconds from the training images' files to the report of the whole model on them."""
    from types import SimpleNamespace

    from experiments.deploy import evaluate as evaluations
    from experiments.deploy.labelled_images import LabelledFiles
    from experiments.evaluation.decision import default

    model, manifest = whole_model(components, dataset), dataset.manifest
    files = [(entry.path, entry.class_name) for entry in manifest.of("train")]
    run: Any = SimpleNamespace(
        classes=dataset.classes, decision=default(dataset.classes), metrics={}, images=lambda split: [],
        plain={"data": components.config.data.model_dump()}, predictions=lambda split: [],
    )  # fmt: skip
    began = time.perf_counter()
    found = evaluations.evaluate(run, model, LabelledFiles(manifest.root, manifest.root, files, []), 32, lambda _: None)
    seconds = time.perf_counter() - began
    assert len(found.report.predictions) == len(files)
    return seconds


def whole_model(components: RunComponents, dataset: Dataset) -> keras.Model:
    """Return the backbone joined with an untrained head."""
    from experiments.models.network import join

    return join(components.backbone, components.config.model.head.pooling, components.head(len(dataset.classes)))


# --- whole processes


@dataclass
class Run:
    """A finished process."""

    seconds: float  # wall clock, from start to end
    peak: int  # resident bytes with its children, memory maps included
    private: int  # the same without memory that is shared with files and other processes
    output: str


def process(command: Sequence[str], home: Path) -> Run:
    """Run a command with its outputs under `home` and measure its memory.

    Raises:
        RuntimeError: the command failed; the message has the end of its output.
    """
    environment = os.environ | {"EXPERIMENTS_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    with subprocess.Popen(
        list(command), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        watched = Memory(child.pid)
        output, errors = child.communicate()
        seconds = time.perf_counter() - began
        watched.stop()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {(errors or output)[-2000:]}")
    return Run(seconds, watched.peak, watched.private, output)


class Memory:
    """Peak memory of a process and its children, sampled five times a second."""

    def __init__(self, pid: int) -> None:
        self.peak = self.private = 0
        self._pid, self._end = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            resident = private = 0
            try:
                parent = psutil.Process(self._pid)
                for process in (parent, *parent.children(recursive=True)):
                    memory = process.memory_info()
                    resident += memory.rss
                    private += memory.rss - getattr(memory, "shared", 0)
            except psutil.Error:  # the process has ended
                continue
            self.peak, self.private = max(self.peak, resident), max(self.private, private)


def train_process(overrides: Sequence[str], home: Path) -> Run:
    """Run `python -m experiments.train ...` with everything that ships: MLflow, figures, reports."""
    return process([sys.executable, "-m", "experiments.train", *overrides], home)


def import_keras(home: Path) -> float:
    """Return the seconds of a process that imports Keras and ends."""
    return process([sys.executable, "-c", "import keras"], home).seconds
