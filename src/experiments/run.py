"""One run, from its configuration to its report, as a sequence of calls into the other modules."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from experiments.config import schema
from experiments.config.identity import dump_yaml, logged, unlogged_setting
from experiments.data import manifest
from experiments.data.issues import DataIssue
from experiments.data.listing import Listing
from experiments.data.pixel_buffer import PixelBuffer
from experiments.data.pixel_cache import splits_of
from experiments.data.types import Dataset, Manifest, SplitSettings
from experiments.errors import ConfigError, DataError, Pruned
from experiments.evaluation import training_checks
from experiments.evaluation.calibration import confidence_metrics
from experiments.evaluation.decision import Decision, choose_threshold, threshold_warnings
from experiments.evaluation.evaluate import Report, evaluate, report_on
from experiments.evaluation.per_class import class_columns
from experiments.evaluation.training_checks import best_epoch, candidate_epochs, keep_error
from experiments.images.decoder_settings import DecoderSettings
from experiments.regimes import continuation
from experiments.regimes.build import build
from experiments.regimes.data_checks import check_data, check_origins
from experiments.regimes.declaration import declaration_of
from experiments.regimes.trained_weights import facts_of, restore, save_weights
from experiments.reports import run_report
from experiments.reports.figures import save_figures
from experiments.reports.text import class_metrics, epoch_lines, print_results
from experiments.runs import predictions
from experiments.runs.active_run import ActiveRun, open_run
from experiments.runs.curves import Curves
from experiments.runs.run_directory import CURVES, RunDirectory, class_scores_stem
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redacted
from experiments.tracking import inputs, mlflow_run
from experiments.training import pruning, runtime
from experiments.training.checkpoints import Checkpoints
from experiments.training.types import EpochRecord, PhaseName, RunComponents, TrainingContext, TrainingResult

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
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    console = PlainConsole(quiet=config.progress == "none")
    with (
        runtime.apply(config.runtime),
        open_run(directory, config) as active,
        mlflow_run.track(config, directory.folder, active.run_id) as tracker,
    ):
        active.note(threads=runtime.threads())
        active.track(tracker.run_id, config.tracking)
        components, dataset = prepare(config, active, tracker, planned)
        result, known = train(components, dataset, active, tracker, console)
        active.note(weights=save_weights(directory, components, result))
        try:
            decision = choose_threshold(config, result.scores, dataset)
            reports = evaluate(result.scores, dataset, probabilities=config.loss != "hinge", decision=decision)
        except Exception:
            tracker.artifacts({})  # so that the trained weights are not lost
            raise
        seconds, ended = times(active, result, known, began)
        # No failing check, figure or upload may lose the results: errors are raised after everything is written.
        errors: list[Exception] = []
        warnings: list[str] = []
        candidates = candidate_epochs(result.history, active.facts.get("first_candidate", 0))
        best = best_epoch(candidates, config.monitor)
        with keep_error(errors, "the warnings"):
            labels = dataset.validation.labels
            warnings = known.get("warnings") or training_checks.warnings_of(config, result, best, labels)
            warnings += [warning for warning in threshold_warnings(config, decision) if warning not in warnings]
        reused = known.get("reused_seconds", reused_seconds(result))
        active.note(**seconds, ended=ended, warnings=warnings, reused_seconds=reused, **decision.facts())
        metrics = {
            f"{split}.{name}": value for split, report in reports.items() for name, value in report.metrics.items()
        }
        metrics |= confidence_metrics(reports) | seconds
        write_results(directory, reports, metrics)
        of_classes = {name: value for report in reports.values() for name, value in class_metrics(report).items()}
        facts = {**result.facts, **decision.facts(), **({"warnings": "\n".join(warnings)} if warnings else {})}
        tracker.results(metrics | of_classes, facts, ended)
        errors += finish(components, dataset, result, best, reports, active, tracker)
        active.note(failures=[f"{type(error).__name__}: {error}" for error in errors])
        for sentence in warnings:
            _log.warning(sentence)
        epochs = epoch_lines(candidates, config.monitor, config.best_weights)
        print_results(console, directory.folder, reports, tracker.run_id, epochs, config.tracking.uri)
        for error in errors[1:]:
            _log.error("%s", error, exc_info=error)
        if errors:
            raise errors[0]
    return metrics.get(f"validation.{config.objective}", math.nan)


def prepare(
    config: schema.Config, active: ActiveRun, tracker: mlflow_run.MlflowRun, planned: str | None
) -> tuple[RunComponents, Dataset]:
    """Build a run's components, read its data, and record both with the identity of the run.

    Raises:
        ConfigError, DataError: the run cannot be trained as it was configured or planned.
    """
    directory = active.directory
    files = inputs.fetch(config, directory.folder)
    components = build(config, files)
    dataset = read_data(components)
    directory.write_earlier(check_origins({key: directory.inputs(key) for key in files}, dataset))
    identity = components.identity(config, dataset.fingerprint)
    active.check(identity, planned)
    root = None if "data.root" in config.unresolved else str(dataset.manifest.root)
    active.note(backbone_identity=components.backbone.identity, data_root=root, continues=config.continue_from,
                data_fingerprint=dataset.fingerprint, setting=unlogged_setting(config))  # fmt: skip
    write_description(components, dataset, directory, tracker, identity)
    return components, dataset


def train(
    components: RunComponents, dataset: Dataset, active: ActiveRun, tracker: mlflow_run.MlflowRun, console: Console
) -> tuple[TrainingResult, dict[str, Any]]:
    """Train by the run's regime, or restore the result of the finished run that `sweep.trained` names.

    Returns:
        The result; and what is known about its training, as from `facts_of`: times in `seconds`, `earlier` of them
        before a resume, and if the result was restored, `warnings` and `reused_seconds` of the run that was trained.
    """
    config, trained, began = components.config, components.config.sweep.trained, time.time()
    checkpoints = Checkpoints(active.directory.checkpoints)
    if state := continuation.write_first_checkpoint(components, dataset, checkpoints):
        active.note(first_candidate=continuation.first_candidate(state, components, dataset))
    curves = Curves(active.directory.folder / CURVES, tracker.epoch, checkpoints.holds)
    try:
        record = pruning.reporting(config, curves.add, declaration_of(components.regime).last_phase)
        context = TrainingContext(Terminal(console, lines=True), record, checkpoints)
        if trained is None:
            result, known = components.regime(components, dataset, context), dict[str, Any]()
        else:
            known = facts_of(Path(trained), active.facts["identity"])
            active.note(first_candidate=known["first_candidate"])
            result = restore(components, dataset, context, Path(trained))
    except (ConfigError, DataError, Pruned):  # after any other error the run can be resumed, which goes on with them
        curves.finish()
        raise
    curves.finish()
    earlier = 0.0 if trained else earlier_seconds(components, result, began)
    seconds = {"fit_seconds": context.fit_seconds + earlier} | known.get("seconds", {})
    return result, known | {"seconds": seconds, "earlier": earlier}


def times(
    active: ActiveRun, result: TrainingResult, known: Mapping[str, Any], began: float
) -> tuple[dict[str, float], int]:
    """Return a run's times in seconds, and the end of its training in milliseconds since 1970.

    Those that were recorded before a resume are kept, because a metric logged to MLflow cannot be replaced.
    """
    spent = {"total_seconds": time.perf_counter() - began + known["earlier"]} | known["seconds"]
    ended = result.history[-1].timestamp if result.history else int(time.time() * 1000)
    return {name: active.facts.get(name, value) for name, value in spent.items()}, active.facts.get("ended", ended)


def finish(
    components: RunComponents, dataset: Dataset, result: TrainingResult, best: EpochRecord | None,
    reports: Mapping[str, Report], active: ActiveRun, tracker: mlflow_run.MlflowRun,
) -> list[Exception]:  # fmt: skip
    """Check the result, draw the figures, log files and model; return the errors of steps that failed."""
    config, errors = components.config, list[Exception]()
    with keep_error(errors, "the comparison of the joined model with the reported scores"):
        training_checks.check_joined(config, result, dataset)
    is_sound = not errors
    with keep_error(errors, "must_reach"):
        training_checks.check_reached(config, result)
    with keep_error(errors, "the figures"):
        save_figures(active.directory.figures, components, dataset, result.history, best, reports)
    if not config.sweep.job:  # the winner of a sweep has a report
        with keep_error(errors, "the predictions for the training images"):
            write_training_predictions(active.directory, dataset, result, reports["validation"].decision)
        with keep_error(errors, "the report"):
            model = (lambda: result.model) if is_sound else None
            run_report.write(active.directory, dataset.manifest.root, model)
    with keep_error(errors, "logging the files"):
        tracker.artifacts(
            {predictions.stem(split): predictions.to_table(report.predictions) for split, report in reports.items()}
            | {class_scores_stem(split): class_columns(report.class_scores) for split, report in reports.items()}
        )
    if is_sound and config.tracking.log_model and not active.facts.get("model"):  # already before a resume
        with keep_error(errors, "logging the model"):
            tracker.model(result.model, dataset.classes)
            active.note(model="logged")
    return errors


def read_data(components: RunComponents, *, keep: bool = True) -> Dataset:
    """Return the validated data set of a configuration.

    Args:
        components: the components of the run.
        keep: True for a run: images that are decoded for validation are also written to the pixel cache, and what is
            noteworthy about images is logged.
    """
    config = components.config
    size, memory = config.data.image_size, config.runtime.memory * 1e9
    buffer = PixelBuffer(size, memory, components.cache, config.data.resize) if keep else None
    read = read_manifest(config, components.source(), buffer)
    in_folds = config.data.fold is not None
    dataset = splits_of(read, size, components.cache, memory, buffer, in_folds=in_folds)
    check_data(config, dataset)
    if buffer:
        for sentence in manifest.warning_sentences([dataset.manifest]):
            _log.warning("%s", sentence)
        for images in (dataset.train, *dataset.scored(config.evaluate.test)):
            if buffer.holds_any(images.entries):
                _ = images.pixels
        buffer.clear()  # frees images that this run does not read
    return dataset


def read_manifest(
    config: schema.Config,
    source: Path | Listing,
    buffer: PixelBuffer | None = None,
    found: list[DataIssue] | None = None,
) -> Manifest:
    """Return the validated manifest of a configuration's images.

    Args:
        config: the validated configuration.
        source: what the data source provides: a directory, or the listing of its images.
        buffer: receives the images that are decoded for validation.
        found: receives every data issue, instead of an error being raised.
    """
    data = config.data.model_dump() | {"classes": config.data.merged_classes}
    return manifest.read(
        source,
        SplitSettings.of(data),
        decoder_settings=DecoderSettings.of(data),
        cache=config.cache,
        buffer=buffer,
        found=found,
    )


def write_description(
    components: RunComponents, dataset: Dataset, directory: RunDirectory, tracker: mlflow_run.MlflowRun, identity: str
) -> None:
    """Write the configuration, the manifest, data issues and the identity of a run to its directory and MLflow."""
    config = components.config
    directory.write_config(dump_yaml(redacted(logged(config))))
    directory.write_images(
        manifest.to_rows(dataset.manifest),
        [{"path": skipped.path, "reason": skipped.reason} for skipped in dataset.manifest.skipped],
        [{"path": warning.path, "warning": warning.text} for warning in dataset.manifest.warnings],
        manifest.near_duplicate_rows(dataset.manifest),
    )
    facts = {
        "identity": identity,
        "data_fingerprint": dataset.fingerprint,
        "backbone_identity": components.backbone.identity,
        "regime": config.regime.name,
        "backbone": config.model.name,
    }
    if setting := unlogged_setting(config):
        facts["setting"] = setting
    if components.continued is not None:
        continued = components.continued.facts()
        facts["continues"] = continued.get("run_id") or continued["continued"]
    tracker.describe(config, dataset, facts)


def write_results(directory: RunDirectory, reports: Mapping[str, Report], metrics: Mapping[str, float]) -> None:
    """Write metrics and predictions to the run directory."""
    directory.write_metrics(metrics)
    for split, report in reports.items():
        directory.write_predictions(split, report.predictions)
        pairs = [pair._asdict() for pair in report.confused_pairs]
        directory.write_class_scores(split, class_columns(report.class_scores), pairs)


def write_training_predictions(
    directory: RunDirectory, dataset: Dataset, result: TrainingResult, decision: Decision
) -> None:
    """Write the predictions for the training images, of which some labels may be wrong, if the regime returns scores.

    They are no evaluation: the model was trained on these labels.
    """
    if (scores := result.scores.get("train")) is not None:
        files = [(entry.path, entry.sha256) for entry in dataset.train.entries]
        report = report_on("train", files, dataset.train.labels, scores, dataset.classes, decision)
        directory.write_predictions("train", report.predictions)


def reused_seconds(result: TrainingResult) -> float:
    """Return the training time in seconds of a head from the head cache; 0 if the head was not taken from there."""
    return sum(record.metrics.get("seconds", 0.0) for record in result.history if _is_reused(record, result))


def earlier_seconds(components: RunComponents, result: TrainingResult, began: float) -> float:
    """Return the training time in seconds of the epochs that a resumed run has trained in earlier processes.

    Args:
        components: of the run; the epochs of a run that this one continues do not count.
        result: of the run; the epochs of a head from the head cache do not count.
        began: when this process began to train, in seconds since 1970.
    """
    source = (
        {(record.phase, record.epoch) for record in components.continued.epochs()} if components.continued else set()
    )
    return sum(
        record.metrics.get("seconds", 0.0) for record in result.history
        if record.timestamp < 1000 * began and (record.phase, record.epoch) not in source
        and not _is_reused(record, result)
    )  # fmt: skip


def _is_reused(record: EpochRecord, result: TrainingResult) -> bool:
    return record.phase == PhaseName.HEAD and result.facts.get("head_source") == "head cache"
