"""The run that this process executes in a directory: its lock, its facts, and what may be in the directory before."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from experiments.config.schema import Config, Tracking
from experiments.errors import ConfigError, DataError, Pruned
from experiments.runs.command import format_command
from experiments.runs.run_directory import CURVES, FACTS, JOB, SWEEP, RunDirectory
from experiments.storage.atomic_files import PATIENCE, claim
from experiments.system.redaction import redacted
from experiments.training.checkpoints import LARGEST_KEPT, LARGEST_KEPT_OF_JOB, keep_last
from experiments.training.types import Status

AUTO = "auto"  # value of `resume`: the run in the directory, if there is one


class ActiveRun:
    """The run that this process executes: the lock of its directory, and its facts, which are written as they change.

    Raises:
        ConfigError: another process executes the run, or the directory belongs to another run.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        self.directory, folder = directory, directory.folder
        self._largest_kept = LARGEST_KEPT_OF_JOB if config.sweep.job else LARGEST_KEPT
        self._lock = claim(folder, wait=PATIENCE if config.resume == AUTO else 0)
        if not config.resume:
            check_owner(folder, config)
            clear(folder)
        begun = directory.facts()
        if not begun:
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
            (folder / CURVES).unlink(missing_ok=True)
        self.facts: dict[str, Any] = begun or {"command": format_command(HydraConfig.get())}
        # The directory of a resumed run may have been moved.
        self.facts |= {"outputs": os.path.abspath(config.outputs), "status": Status.RUNNING}
        self.directory.write_facts(self.facts)

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, if there is one."""
        return self.facts.get("run_id")

    def track(self, run_id: str | None, tracking: Tracking) -> None:
        """Record the MLflow run, its store and its experiment; to a new MLflow run, no model has been logged yet."""
        if run_id != self.run_id:
            self.facts.pop("model", None)
        experiment = None if tracking.uri is None else tracking.experiment
        self.note(run_id=run_id, store=tracking.uri, mlflow_experiment=experiment)

    def note(self, **facts: str | float | Sequence[str] | None) -> None:
        """Add facts; a fact that is None keeps its previous value."""
        self.facts |= {name: redacted(value) for name, value in facts.items() if value is not None}
        self.directory.write_facts(self.facts)

    def check(self, identity: str, planned: str | None = None) -> None:
        """Record the run's identity; one that is not that of the resumed or planned run is a ConfigError."""
        if planned not in (None, identity):
            raise ConfigError(
                f"{self.directory.folder}: this job is not what was planned any more: the data, the weights or the "
                f"version of this program have changed since (identity {planned} then, {identity} now). Nothing was "
                "trained. Give the same command again"
            )
        check_same(self.directory.folder, self.facts.get("identity"), identity)
        self.note(identity=identity)

    def end(self, status: str) -> None:
        """Record the final status and release the lock; a finished run keeps its last checkpoint if that is small."""
        try:
            self.note(status=status)
            if status == Status.FINISHED:
                epochs = self.directory.epochs()
                keep_last(self.directory.checkpoints, epochs[-1].phase if epochs else None, self._largest_kept)
        finally:
            self._lock.release()


@contextmanager
def open_run(directory: RunDirectory, config: Config) -> Iterator[ActiveRun]:
    """Yield the active run and record how it ends; add to an error how the run can be resumed."""
    active = ActiveRun(directory, config)
    try:
        yield active
    except Pruned:
        active.end(Status.PRUNED)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full
            active.end(Status.FAILED if isinstance(error, Exception | SystemExit) else Status.KILLED)
        if not isinstance(error, (ConfigError, DataError)):
            if not isinstance(error, Exception):  # a signal
                last = next(reversed(directory.epochs()), None)
                after = f"It stopped after epoch {last.epoch + 1} of phase {last.phase}" if last else None
                error.add_note(after or "No epoch was finished")
            error.add_note(f"Go on with it: python -m experiments.train resume={shlex.quote(str(directory.folder))}")
        raise
    active.end(Status.FINISHED)


def check_owner(folder: Path, config: Config) -> None:
    """Raise ConfigError for a directory of another run or a sweep, whose files would be mistaken for this run's.

    A run that ended before its identity was known has left no files that could be mistaken.
    """
    remedy = "Leave hydra.run.dir out (every run gets a folder of its own), name another one"
    if (folder / SWEEP).exists():
        raise ConfigError(f"hydra.run.dir: {folder} is the folder of a sweep. {remedy}")
    facts = RunDirectory(folder).facts()
    if "identity" not in facts or config.sweep.rerun:
        return
    named = f"run {facts['run_id']}, " if facts.get("run_id") else ""
    finished = facts.get("status") == Status.FINISHED
    go_on = "" if finished else f", go on with that run: resume={shlex.quote(str(folder))}"
    raise ConfigError(
        f"hydra.run.dir: {folder} belongs to another run ({named}{facts.get('status')}), whose files would be taken "
        f"for this one's. {remedy}{go_on}, or remove that folder"
    )


def check_vacant(folder: Path, config: Config) -> None:
    """Raise ConfigError for a directory that holds anything but this run, as all in it is logged to MLflow.

    Also if `resume` names a run without being expanded to its command. Must be called before Hydra creates the
    directory.
    """
    if config.resume not in (None, AUTO):
        # Otherwise it does not come from `resume.expand`: a new run would be trained, and none resumed.
        if Path(os.path.abspath(config.resume)) != folder:
            raise ConfigError(
                f"resume: to go on with a run, type resume={shlex.quote(config.resume)} on the command line, without a "
                "plus. Received with a plus, or from a YAML file"
            )
        return
    if config.resume is None:
        check_owner(folder, config)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"hydra.run.dir: must be a folder. Received: {folder}, which is a file")
    others = sorted(path.name for path in folder.iterdir() if not _logs(path)) if folder.is_dir() else []
    if others and not {FACTS, JOB} & set(others):
        raise ConfigError(
            f"hydra.run.dir: {folder} is not empty, and no run's folder: it has {', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}. All that is in a run's folder is taken for the run's and logged to "
            "MLflow. Leave hydra.run.dir out (every run gets a folder of its own), or name an empty or a new one"
        )


def clear(folder: Path) -> None:
    """Remove the files of an earlier run from a directory that is used again, except logs and the tracking buffer."""
    if not (folder / FACTS).exists():
        return
    for path in [path for path in folder.iterdir() if not _logs(path) and path.name != JOB]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith("unsent."):
            path.unlink()


def _logs(path: Path) -> bool:
    """Return whether a file is one that Hydra, a launcher or a lock creates before the run begins."""
    return path.name.startswith(".") or path.suffix == ".log"


def check_same(folder: Path, before: str | None, now: str) -> None:
    """Raise ConfigError if the identity of a directory's run differs from that of the run to be resumed there."""
    if before not in (None, now):
        raise ConfigError(
            f"resume: {folder} was another run: its configuration, images, weights or version of this "
            f"program have changed since (identity {before} then, {now} now). Start a new run instead, in "
            "another folder (hydra.run.dir=..., or none given)"
        )
