"""One run, from its configuration to its report, as a sequence of calls into the other modules."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import logging
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from experiments.config import schema
from experiments.config.identity import dump_yaml, logged
from experiments.data import manifest
from experiments.data.decoder import gray_range
from experiments.data.input_pipeline import image_batches
from experiments.data.listing import DataIssue
from experiments.data.pixel_cache import Decoded, splits_of
from experiments.data.types import Dataset, ImageSet, Manifest, SplitSettings
from experiments.errors import ConfigError, DataError, Pruned
from experiments.evaluation import plots
from experiments.evaluation.evaluate import Report, evaluate, percent, predictions_table
from experiments.models.network import split_network
from experiments.models.weights import save
from experiments.regimes.bottleneck import bottleneck
from experiments.regimes.build import build, head_record, network_record
from experiments.regimes.finetune import finetune
from experiments.regimes.restored import facts_of, restore
from experiments.runs import run_directory
from experiments.runs.training_checks import check_joined, check_reached, keep_error, training_warnings
from experiments.storage import atomic_files
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redacted
from experiments.tracking import inputs, mlflow_run
from experiments.tracking.curves import FILE as CURVES
from experiments.tracking.curves import Curves
from experiments.training import pruning, runtime
from experiments.training.checkpoints import Checkpoints
from experiments.training.losses import class_weights
from experiments.training.types import PhaseName, RunComponents, Status, TrainingContext, TrainingResult

_log = logging.getLogger(__name__)


def run(config: schema.Config, planned: str | None = None) -> float:
    """Run one experiment; its files are written to the Hydra job's directory and logged to MLflow.

    Args:
        config: the validated configuration.
        planned: the identity that the run must have, if a sweep has planned it.

    Returns:
        The validation metric that `objective` names; nan if it is undefined on the split (see `evaluate`).
    """
    began = time.perf_counter()
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = PlainConsole(quiet=config.progress == "none")
    with (
        runtime.apply(config.runtime),
        open_run_directory(folder, config) as directory,
        mlflow_run.track(config, folder, directory.run_id) as tracker,
    ):
        directory.track(tracker.run_id, config.tracking.uri)
        files = inputs.fetch(config, folder)
        components = build(config, files)
        dataset = read_data(components)
        check_origins({key: folder / "inputs" / key for key in files}, dataset)
        identity = components.identity(config, dataset.fingerprint)
        directory.check(identity, planned)
        directory.note(backbone_identity=components.backbone.identity)
        write_description(components, dataset, folder, tracker, identity)
        checkpoints = Checkpoints(folder / run_directory.CHECKPOINTS)
        with open_curves(folder, tracker, checkpoints) as curves:
            context = TrainingContext(Terminal(console), pruning.reporting(config, curves.add), checkpoints)
            trained = Path(config.sweep.trained) if config.sweep.trained else None
            known = facts_of(trained, identity) if trained else {}
            result = (
                restore(components, dataset, context, trained)
                if trained
                else components.regime(components, dataset, context)
            )
        write_weights(folder / "weights", components, result)
        try:
            reports = evaluate(result.scores, dataset, probabilities=config.loss != "hinge")
        except Exception:
            tracker.artifacts({})  # logs the trained weights, the only results so far
            raise
        # Times that were recorded before a resume are kept, because a metric logged to MLflow cannot be replaced.
        spent = {"total_seconds": time.perf_counter() - began, "fit_seconds": sum(context.fitting.values())}
        spent |= known.get("seconds", {})  # the times of the run that did the training, if this one restored its result
        seconds = {name: directory.facts.get(name, value) for name, value in spent.items()}
        ended = result.history[-1].timestamp if result.history else int(time.time() * 1000)
        ended = directory.facts.get("ended", ended)
        # No failing check, figure or upload may lose the results: errors are raised after everything is written.
        errors: list[Exception] = []
        warnings: list[str] = []
        with keep_error(errors, "the warnings"):
            warnings = known.get("warnings") or training_warnings(config, result, dataset.validation.labels)
        directory.note(**seconds, ended=ended, warnings=warnings, reused_seconds=reused_seconds(result))
        metrics: dict[str, float] = flat_metrics(reports) | seconds
        tables = {f"predictions_{name}": predictions_table(report) for name, report in reports.items()}
        write_results(folder, tables, metrics)
        tracker.results(metrics, {**result.facts, **({"warnings": "\n".join(warnings)} if warnings else {})}, ended)
        before = len(errors)
        with keep_error(errors, "the comparison of the joined model with the reported scores"):
            check_joined(config, result, dataset)
        is_sound = len(errors) == before
        with keep_error(errors, "must_reach"):
            check_reached(config, result)
        with keep_error(errors, "the figures"):
            save_figures(folder / "figures", components, dataset, result, reports)
        with keep_error(errors, "logging the files"):
            tracker.artifacts(tables)
        if is_sound and config.tracking.log_model and not directory.facts.get("model"):  # already before a resume
            with keep_error(errors, "logging the model"):
                tracker.model(result.model, dataset.classes)
                directory.note(model="logged")
        directory.note(failures=[f"{type(error).__name__}: {error}" for error in errors])
        for sentence in warnings:
            _log.warning(sentence)
        if errors:
            print_results(console, folder, reports, tracker.run_id)
            for error in errors[1:]:
                _log.error("%s", error, exc_info=error)
            raise errors[0]
    print_results(console, folder, reports, tracker.run_id)
    return metrics.get(f"validation.{config.objective}", math.nan)


@contextmanager
def open_run_directory(folder: Path, config: schema.Config) -> Iterator[run_directory.RunDirectory]:
    """Yield the run directory and record how the run ends; add to an error how the run can be resumed."""
    directory = run_directory.RunDirectory(folder, config)
    try:
        yield directory
    except Pruned:
        directory.end(Status.PRUNED)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full
            directory.end(Status.FAILED if isinstance(error, Exception | SystemExit) else Status.KILLED)
        if not isinstance(error, (ConfigError, DataError)):
            error.add_note(f"Go on with it: python -m experiments.train resume={shlex.quote(str(folder))}")
        raise
    directory.end(Status.FINISHED)


@contextmanager
def open_curves(folder: Path, tracker: mlflow_run.Tracker, checkpoints: Checkpoints) -> Iterator[Curves]:
    """Yield the run's curves, and log what is left of them unless the run was interrupted and can be resumed."""
    curves = Curves(folder / CURVES, tracker, checkpoints.holds)
    try:
        yield curves
    except (ConfigError, DataError, Pruned):
        curves.finish()
        raise
    curves.finish()


def read_data(components: RunComponents, *, keep: bool = True) -> Dataset:
    """Return the validated data set of a configuration.

    Args:
        components: the components of the run.
        keep: True for a run: images that are decoded for validation are also written to the pixel cache.
    """
    config = components.config
    size, memory = config.data.image_size, config.runtime.memory * 1e9
    decoded = Decoded(size, memory, components.cache) if keep else None
    dataset = splits_of(read_manifest(config, components.source(), decoded), size, components.cache, memory, decoded)
    # Errors that depend on the data are also raised before training.
    class_weights(config.class_weights, dataset.train.labels, dataset.classes)
    sizes = {"train": len(dataset.train), "validation": len(dataset.validation)}
    runtime.check_shares(config.runtime.devices, sizes)
    check_accumulation(config, len(dataset.train))
    if decoded:
        for images in (dataset.train, *dataset.scored(config.evaluate.test)):
            if decoded.holds(images.entries):
                _ = images.pixels
        decoded.pixels.clear()  # frees images that this run does not read
    return dataset


def check_accumulation(config: schema.Config, images: int) -> None:
    """Compare the number of batches per optimizer step with the number of batches of each training phase.

    Args:
        config: the validated configuration.
        images: number of training images.

    Raises:
        ConfigError: a phase would end before its first step.
    """
    phases = [("optimizer", config.optimizer, "epochs", config.epochs)]
    if "regime.head_optimizer" not in config.regime.ignores and config.regime.head_from is None:
        head = config.regime
        phases.append(("regime.head_optimizer", head.head_optimizer, "regime.head_epochs", head.head_epochs))
    for key, optimizer, epochs_key, epochs in phases:
        steps, batches = optimizer.gradient_accumulation_steps, epochs * math.ceil(images / config.batch_size)
        if steps is not None and steps > batches:
            raise ConfigError(
                f"{key}.gradient_accumulation_steps: must be at most {batches}, the batches of {epochs} epochs "
                f"({epochs_key}) of {images} images at batch_size={config.batch_size}: more would train nothing. "
                f"Received: {steps}"
            )


def read_manifest(
    config: schema.Config,
    root: Path,
    decoded: Decoded | None = None,
    found: list[DataIssue] | None = None,
) -> Manifest:
    """Return the validated manifest of a configuration's images.

    Args:
        config: the validated configuration.
        root: the directory that the data source provides.
        decoded: receives the images that are decoded for validation.
        found: receives every data issue, instead of an error being raised.
    """
    data = config.data
    settings = SplitSettings(
        data.fractions.model_dump(), data.split_seed, data.fold, data.folds, data.limit.model_dump(), data.on_bad
    )
    return manifest.read(
        root, settings, gray_range=gray_range(data.gray_range), cache=config.cache, decoded=decoded, found=found
    )


def write_description(
    components: RunComponents, dataset: Dataset, folder: Path, tracker: mlflow_run.Tracker, identity: str
) -> None:
    """Write the configuration, the manifest, data issues and the identity of a run to its directory and MLflow."""
    config = components.config
    text = dump_yaml(redacted(logged(config)))
    atomic_files.write_file(folder / "config.yaml", text.encode())
    write_csv(folder / inputs.MANIFEST, manifest.to_rows(dataset.manifest))
    if dataset.manifest.left_out:
        rows = [{"path": left.path, "reason": left.reason} for left in dataset.manifest.left_out]
        write_csv(folder / "left_out.csv", rows)
    if dataset.manifest.warnings:
        rows = [{"path": warning.path, "warning": warning.text} for warning in dataset.manifest.warnings]
        write_csv(folder / "image_warnings.csv", rows)
    facts = {
        "identity": identity,
        "data_fingerprint": dataset.fingerprint,
        "backbone_identity": components.backbone.identity,
        "regime": config.regime.name,
        "backbone": config.model.name,
    }
    tracker.describe(config, dataset, facts)


def check_origins(origins: Mapping[str, Path], dataset: Dataset) -> None:
    """Compare the images that other runs' weights were trained on with those that this run is evaluated on.

    Args:
        origins: for each key that names a run, the directory with that run's manifest.
        dataset: the data set of this run.

    Raises:
        DataError: another run was trained on images that this run validates or tests with.
        ConfigError: the head of another run has other classes.
    """
    judged = {entry.sha256: entry.path for entry in dataset.manifest.entries if entry.split != "train"}
    for key, origin in origins.items():
        with (origin / inputs.MANIFEST).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        known = sorted(judged[row["sha256"]] for row in rows if row["split"] == "train" and row["sha256"] in judged)
        if known:
            raise DataError(
                f"{key}: the run it names was trained on {len(known)} of the images that this run validates or tests "
                f"with, such as {known[0]}: its scores would mean nothing. Use a run on the same split (data.fold, "
                "data.split_seed, data.fractions), or train the weights anew"
            )
        classes = tuple(sorted({row["class_name"] for row in rows}))
        if key == "regime.head_from" and classes != dataset.classes:
            raise ConfigError(
                f"{key}: that run's head was trained for {', '.join(classes)}. Allowed: a head for "
                f"{', '.join(dataset.classes)}"
            )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, of which there must be at least one, to a CSV file with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def flat_metrics(reports: Mapping[str, Report]) -> dict[str, float]:
    """Return the metrics of all reports, named `split.metric`."""
    return {f"{split}.{name}": value for split, report in reports.items() for name, value in report.metrics.items()}


def write_results(folder: Path, tables: Mapping[str, Mapping[str, list[Any]]], metrics: Mapping[str, float]) -> None:
    """Write metrics and predictions to files in the run directory."""
    atomic_files.write_file(folder / "metrics.json", json.dumps(dict(metrics), indent=1).encode())
    for name, table in tables.items():
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        write_csv(folder / f"{name}.csv", rows)


def reused_seconds(result: TrainingResult) -> float:
    """Return the training time in seconds of a head from the head cache; 0 if the head was not taken from there."""
    if result.facts.get("head_source") != "head cache":
        return 0.0
    return sum(record.metrics.get("seconds", 0.0) for record in result.history if record.phase == PhaseName.HEAD)


def write_weights(weights: Path, components: RunComponents, result: TrainingResult) -> None:
    """Write the trained weights to a directory; called before the evaluation, whose failure must not lose them."""
    weights.mkdir(exist_ok=True)
    config, job = components.config, components.config.sweep.job
    if job and components.regime is finetune:  # a sweep of VGG16 would store a gigabyte of frozen weights
        unfrozen = split_network(
            components.backbone, config.regime.unfrozen_blocks, config.model.head.pooling
        ).trainable_part
        unfrozen.save_weights(weights / "unfrozen.weights.h5")
    elif not (job and components.regime is bottleneck):
        save(
            components.backbone.model,
            weights / "backbone.weights.h5",
            network_record(config, components.backbone.model),
        )
    head: keras.Model = result.model.get_layer("head")
    save(head, weights / "head.weights.h5", head_record(config, components.backbone, head, result.model))


def save_figures(
    folder: Path, components: RunComponents, dataset: Dataset, result: TrainingResult, reports: Mapping[str, Report]
) -> None:
    """Write the figures of a run as PNG files; of a sweep's job only the curves, as the winner has all figures."""
    folder.mkdir(exist_ok=True)
    drawn = {"learning_curves": plots.learning_curves(result.history)} if result.history else {}
    if "augmentation" not in components.config.regime.ignores and not components.config.sweep.job:
        drawn["augmented"] = augmented_sample(components, dataset)
    for split, report in reports.items() if not components.config.sweep.job else ():
        images = dataset.validation if split == "validation" else dataset.test
        assert images is not None
        drawn |= {
            f"{split}_confusion": plots.confusion_matrix(report, dataset.classes),
            f"{split}_roc": plots.roc(report, dataset.classes),
            f"{split}_mistakes": plots.mistakes(report, functools.partial(rows_of, images)),
        }
        if "calibration_error" in report.metrics:
            drawn[f"{split}_calibration"] = plots.calibration(report)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def rows_of(images: ImageSet, rows: list[int]) -> np.ndarray:
    return images.pixels[rows]


def augmented_sample(components: RunComponents, dataset: Dataset) -> Any:
    """Return a figure of the first augmented training images of epoch 0, as fresh augmentation produces them."""
    batches = image_batches(
        dataset.train,
        classes=len(dataset.classes),
        augmentation=components.augmentation,
        extra_layers=components.extra_layers,
        batch_size=18,
        seed=components.config.seed,
        epochs=range(1),
    )
    pixels, labels = next(iter(batches.dataset))
    titles = [plots.label_title(label, dataset.classes) for label in np.asarray(labels)]
    return plots.image_grid(np.asarray(pixels), titles)


def print_results(console: Console, folder: Path, reports: Mapping[str, Report], run_id: str | None) -> None:
    """Print each split's accuracy beside that of the most frequent class, and where to find the run."""
    for split, report in reports.items():
        metrics = report.metrics
        console.print(
            f"{split} accuracy {percent(metrics['accuracy'])} "
            f"(95 % interval {percent(metrics['accuracy_low'])} to {percent(metrics['accuracy_high'])}, "
            f"{len(report.predictions)} images), "
            + report.baseline.beside(metrics["accuracy"], metrics["accuracy_low"])
            + (f"; loss {metrics['loss']:.3f}" if "loss" in metrics else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(f"run folder  {folder}", highlight=False, soft_wrap=True)
    if run_id:
        console.print(f"MLflow run  {run_id}   look at it: experiments ui", highlight=False, soft_wrap=True)
