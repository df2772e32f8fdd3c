"""The run directory: what its files are named, and how they are read and written. No other code knows their formats.

The directory is the truth about a run; MLflow mirrors it. The files of a run on another machine may be fetched into a
directory, which then has only its results and FETCHED.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.errors import ConfigError
from experiments.runs import curves, predictions
from experiments.runs.predictions import Prediction
from experiments.storage import atomic_files
from experiments.storage.csv_files import read_rows, write_rows
from experiments.training.types import EpochRecord, Status

FACTS = "run.json"  # what the run is, where it began, how it ended
FETCHED = "fetched.json"  # of a run on another machine: its identity and status
CONFIG = "config.yaml"  # the configuration as logged
CONFIG_END = "outputs"  # a key near its end in every version, without which the file has been cut
MANIFEST = "manifest.csv"  # one row per image
CURVES = "curves.csv"  # one row per epoch
METRICS = "metrics.json"
REPORT = "report.html"
SKIPPED, WARNINGS = "left_out.csv", "image_warnings.csv"  # images that were not used; images used with a warning
EARLIER = "earlier_training_images.csv"  # those that the weights had been trained on with which the run began
NEAR_DUPLICATES = "near_duplicates.csv"  # pairs of images, one of which is a copy of the other
WEIGHTS, FIGURES, CHECKPOINTS = "weights", "figures", "checkpoints"  # directories
INPUTS = "inputs"  # directory of the files that were fetched from other runs, by key of the configuration
EVALUATIONS = "evaluations"  # directory of evaluations on further images, each in a directory of its own
TRAINING_FEATURES = "training_features.npz"  # of the images that it was trained on, once `predict --unlike` needs them
JOB, SWEEP = "job.json", "sweep.json"  # in a job's directory, in a sweep's directory


class _Command(BaseModel):
    directory: str = ""
    config_dir: str | None = None
    overrides: list[str] = []


class _Facts(BaseModel):
    """The keys of FACTS that are validated; it may have others."""

    model_config = ConfigDict(strict=True)
    command: _Command
    outputs: str = ""
    threads: int | None = None
    status: str = ""
    run_id: str | None = None
    store: str | None = None
    mlflow_experiment: str | None = None
    identity: str = ""


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Raise ConfigError for what reading a file raises that is damaged, or that another program has changed."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: is not as this program has written it ({type(error).__name__}: {error}). It is damaged, or "
            "another program, such as a spreadsheet, has saved it. Restore it from a copy"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file of this program; raise ConfigError if it is damaged."""
    with as_written(path):
        return dict(json.loads(path.read_bytes()))


def weights_file(name: str) -> str:
    """Return the name of a file in WEIGHTS: that of the "head", of the "backbone", or of its "unfrozen" part."""
    return f"{name}.weights.h5"


def class_scores_stem(split: str) -> str:
    """Return the name of a split's scores by class: of the file with the suffix .csv, of MLflow's table with .json."""
    return f"per_class_{split}"


def classes_of(images: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the class names in the rows of MANIFEST, in the order of their labels."""
    names = {int(row["label"]): row["class_name"] for row in images}
    return tuple(names[label] for label in sorted(names))


def job_records(sweep: Path) -> list[dict[str, Any]]:
    """Return the job records in a sweep's directory, in the order of the jobs' numbers."""
    found = [read_json(path) for path in sweep.glob(f"[0-9]*/{JOB}")]
    return sorted(found, key=lambda job: int(job["number"]))


def predictions_file(split: str) -> str:
    """Return the name of the file with the predictions for a split."""
    return f"{predictions.stem(split)}.csv"


def job_directory(sweep: Path, number: int, folder: Path, identity: str) -> RunDirectory | None:
    """Return the directory with the results of a sweep's job; None if its run has not finished, or is damaged.

    It is the run's `folder` or, if that is on another machine or was moved, the job's, with files fetched from MLflow.
    """
    for place in (RunDirectory(folder), RunDirectory(sweep / str(number))):
        with contextlib.suppress(ConfigError, ValueError):
            if place.finished(identity) is not None:
                return place
    return None


@dataclass(frozen=True)
class RunDirectory:
    """The files in a run's directory; each is read or written when a method is called."""

    folder: Path

    def facts(self) -> dict[str, Any]:
        """Return the contents of FACTS, empty if there is no such file.

        Raises:
            ConfigError: the file cannot be read, or is not what this program writes.
        """
        path = self.folder / FACTS
        try:
            if not path.exists():
                return {}
            if not path.is_file():  # reading a pipe would wait
                raise self.damaged("it is no file")
            content = path.read_bytes()
            _Facts.model_validate_json(content)
            return dict(json.loads(content))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise self.damaged(f"{key}: {first['msg']}" if key else first["msg"]) from None

    def facts_of_finished(self, files: Iterable[str]) -> dict[str, Any]:
        """Return the contents of FACTS of a finished run.

        Raises:
            ConfigError: it is no run directory, the run is not finished, or one of these files does not exist any more.
        """
        facts = self.facts()
        if not facts:
            is_sweep = (self.folder / SWEEP).is_file()
            hint = ". It is a sweep's: give that of one of its jobs, such as 0 in it" if is_sweep else ""
            raise ConfigError(f"{self.folder}: is no run's folder: it has no {FACTS}{hint}")
        if facts.get("status") != Status.FINISHED:
            raise ConfigError(
                f"{self.folder}: this run is not finished ({facts.get('status')}). Go on with it: python -m "
                f"experiments.train resume={shlex.quote(str(self.folder))}"
            )
        if gone := self.lacks(files):
            raise ConfigError(f"{self.folder}: its {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone")
        return facts

    def damaged(self, reason: str) -> ConfigError:
        """Return the error for a FACTS that is not as this program writes it."""
        return ConfigError(
            f"{self.folder / FACTS}: is damaged ({reason[:300]}), so the run in this folder is not known. Restore the "
            "file from a copy; else move the folder away and train anew. A finished run that is in MLflow can be used "
            "by its MLflow id or name"
        )

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        atomic_files.write_json(self.folder / FACTS, dict(facts))

    def finished(self, identity: str) -> dict[str, float] | None:
        """Return the metrics in this directory; None unless they are those of a finished run with this identity."""
        facts = self._fetched() or self.facts()
        if not identity or facts.get("identity") != identity or facts.get("status") != Status.FINISHED:
            return None
        try:
            return self.metrics()
        except (OSError, ValueError):  # removed or damaged since
            return None

    def fetched_from(self) -> str | None:
        """Return the id of the MLflow run whose results were fetched into this directory; None if none were."""
        return self._fetched().get("run_id")

    def _fetched(self) -> dict[str, str]:
        path = self.folder / FETCHED
        return read_json(path) if path.exists() else {}

    def write_fetched(self, files: Mapping[str, bytes], identity: str, run_id: str) -> None:
        """Write files that were fetched of a finished run on another machine, by name, and then FETCHED."""
        for name, content in files.items():
            atomic_files.write_file(self.folder / name, content)
        facts = {"identity": identity, "run_id": run_id, "status": Status.FINISHED}
        atomic_files.write_json(self.folder / FETCHED, facts)

    def metrics(self) -> dict[str, float]:
        """Return the final metrics, named split.metric.

        Raises:
            OSError, ConfigError: the file cannot be read, or is damaged.
        """
        return read_json(self.folder / METRICS)

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        atomic_files.write_json(self.folder / METRICS, dict(metrics))

    def predictions(self, split: str) -> list[Prediction]:
        """Return the predictions for a split's images.

        Raises:
            FileNotFoundError: the run was not evaluated on them.
            ConfigError: the file is damaged.
        """
        path = self.folder / predictions_file(split)
        with as_written(path):
            if found := predictions.from_rows(read_rows(path)):
                return found
            raise ValueError("it has no rows")

    def has_predictions(self, split: str) -> bool:
        """Return whether the run was evaluated on a split, and its predictions are still there."""
        return (self.folder / predictions_file(split)).is_file()

    def write_predictions(self, split: str, rows: Sequence[Prediction]) -> None:
        write_rows(self.folder / predictions_file(split), predictions.to_rows(predictions.to_table(rows)))

    def write_class_scores(
        self, split: str, scores: Mapping[str, Sequence[Any]], pairs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write per_class_SPLIT.csv from columns, and confused_SPLIT.csv from rows, if any classes are confused."""
        write_rows(self.folder / f"{class_scores_stem(split)}.csv", predictions.to_rows(scores))
        if pairs:
            write_rows(self.folder / f"confused_{split}.csv", pairs)

    def epochs(self) -> list[EpochRecord]:
        """Return the epochs in CURVES; an empty list if there is no such file."""
        return curves.read(self.folder / CURVES)

    def config(self) -> dict[str, Any]:
        """Return the configuration that the run has logged, as plain values; ConfigError if the file is damaged."""
        with as_written(self.folder / CONFIG):
            plain = dict(yaml.safe_load((self.folder / CONFIG).read_bytes()))
            if not plain.get(CONFIG_END):
                raise ValueError(f"it ends before {CONFIG_END}")
            return plain

    def write_config(self, text: str) -> None:
        atomic_files.write_file(self.folder / CONFIG, text.encode())

    def images(self) -> list[dict[str, str]]:
        """Return the rows of MANIFEST, with the columns of `data.manifest.to_rows`; ConfigError if it is damaged."""
        with as_written(self.folder / MANIFEST):
            rows = read_rows(self.folder / MANIFEST)
            if not rows or "split" not in rows[0] or None in rows[-1].values():
                raise ValueError("it lacks rows or columns")
            return rows

    def write_images(
        self, images: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, str]],
        warnings: Sequence[Mapping[str, str]], near_duplicates: Sequence[Mapping[str, Any]],
    ) -> None:  # fmt: skip
        """Write MANIFEST, and tables of skipped images, of warnings and of near-duplicates, if there are any."""
        tables = {MANIFEST: images, SKIPPED: left_out, WARNINGS: warnings, NEAR_DUPLICATES: near_duplicates}
        for name, rows in tables.items():
            if rows:
                write_rows(self.folder / name, rows)

    def trained_on(self) -> set[str]:
        """Return the SHA-256 of every image that the run's weights were trained on, by it or by a run before it."""
        trained = [row for row in self.images() if row["split"] == "train"]
        return {row["sha256"] for row in (*trained, *self._optional_rows(EARLIER))}

    def copy_records(self, names: Iterable[str], target: Path) -> None:
        """Copy files, and EARLIER if there is one, to another directory; OSError if one cannot be read."""
        for name in (*names, *([] if self.lacks([EARLIER]) else [EARLIER])):
            atomic_files.write_file(target / name, (self.folder / name).read_bytes())

    def write_earlier(self, hashes: Iterable[str]) -> None:
        """Write the SHA-256 of the images that the weights were trained on with which the run begins, if any were."""
        if rows := [{"sha256": image} for image in sorted(hashes)]:
            write_rows(self.folder / EARLIER, rows)

    def issues(self) -> list[tuple[str, str]]:
        """Return path and text of issues: images that were not used, and images with a warning."""
        tables = ((SKIPPED, "reason"), (WARNINGS, "warning"))
        return [(row["path"], row[column]) for name, column in tables for row in self._optional_rows(name)]

    def near_duplicates(self) -> list[dict[str, str]]:
        """Return the rows of NEAR_DUPLICATES, those in two splits first; see `data.manifest.near_duplicate_rows`."""
        return sorted(self._optional_rows(NEAR_DUPLICATES), key=lambda row: row["split"] == row["other_split"])

    def _optional_rows(self, name: str) -> list[dict[str, str]]:
        return [] if self.lacks([name]) else read_rows(self.folder / name)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Return the names of those files that do not exist."""
        return [name for name in names if not (self.folder / name).is_file()]

    def weights(self, name: str) -> Path:
        """Return the path of a weights file, see `weights_file`; a sweep's job stores only what it has trained."""
        return self.folder / WEIGHTS / weights_file(name)

    @property
    def figures(self) -> Path:
        return self.folder / FIGURES

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def inputs(self, key: str) -> Path:
        """Return the directory for the MANIFEST and the weights of the run that a key of the configuration names."""
        return self.folder / INPUTS / key
