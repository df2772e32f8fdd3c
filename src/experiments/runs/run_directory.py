"""The run directory, its record `run.json` (written atomically), and how a run is resumed from it.

`resume=RUN` runs the same command again in the same directory. The configuration is composed again, not read from a
file. If configuration, data, weights or versions have changed since, the run's identity differs and the run is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.config import credentials, unused, validation
from experiments.config.overrides import literal, quoted
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.storage import atomic_files
from experiments.system.paths import CONF, STORE, default_outputs, sqlite_file, sqlite_uri
from experiments.system.redaction import is_concealed, redacted, reveal
from experiments.training.types import Status

FILE, LOCK, CHECKPOINTS = "run.json", ".run.lock", "checkpoints"
FETCHED = "fetched.json"  # identity of a run on another machine, in a directory with only its results
JOB, SWEEP = "job.json", "sweep.json"  # in a job's directory, in a sweep's directory
SWEEPER = "hydra_plugins.experiments.Sweeper"
AUTO = "auto"  # value of `resume`: the run in the directory, if there is one
METRICS = "metrics.json"
PATIENCE = 60.0  # seconds to wait for the previous process of the run, which may just be ending
ALLOWED = ("runtime.", "tracking.", "runtime=", "tracking=", "progress=")
_ELSEWHERE = ("run.", "sweep.", "mode", "sweeper", "launcher", "output_subdir", "job.num", "job.id")


class _Command(BaseModel):
    directory: str = ""
    config_dir: str | None = None
    overrides: list[str] = []


class _Facts(BaseModel):
    """The keys of `run.json` that are validated; it may have others."""

    model_config = ConfigDict(strict=True)
    command: _Command
    outputs: str = ""
    threads: int | None = None
    status: str = ""
    run_id: str | None = None
    store: str | None = None
    identity: str = ""


class ValidateBeforeRun(Callback):
    """Hydra callback that validates a run before Hydra creates its directory, so that an error leaves nothing behind.

    Errors are raised as SystemExit, because Hydra turns all other exceptions of a callback into warnings.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        before = HydraConfig.instance().cfg
        try:
            # Hydra does the same before it calls the task; from then on ${hydra:...} can be resolved.
            HydraConfig.instance().set_config(config)
            folder = os.path.abspath(str(config.hydra.run.dir))
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = folder
            HydraConfig.instance().set_config(config)
            credentials.conceal(config)
            checked = validation.validate(config)
            if checked.resume is None:
                unused.check_weights([checked], config.hydra.overrides.task)
            check_vacant(Path(folder), checked)
        except ConfigError as error:
            raise SystemExit(str(error)) from None
        finally:
            HydraConfig.instance().cfg = before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise SystemExit for any sweeper but ours.

        Another one would compose the jobs one by one, and run them unplanned, in directories of other runs.
        """
        target = OmegaConf.select(config, "hydra.sweeper._target_")
        if target != SWEEPER:
            raise SystemExit(
                "hydra/sweeper: must be experiments, which plans a sweep's jobs and runs them as planned. Leave it "
                f"out. For a search: sweep.search=random or tpe. Received: {target}"
            )


class RunDirectory:
    """The directory of the run that this process executes: its lock and its `run.json`.

    Args:
        folder: the directory.
        config: the run's configuration.

    Raises:
        ConfigError: another process executes the run, or the directory belongs to another run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self._lock = claim(folder, wait=PATIENCE if config.resume == AUTO else 0)
        if not config.resume:
            check_owner(folder, config)
            clear(folder)
        begun = read_record(folder)
        if begun is None:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            (folder / "curves.csv").unlink(missing_ok=True)
        outputs = os.path.abspath(config.outputs)
        self.facts: dict[str, Any] = begun or {"command": format_command(HydraConfig.get()), "outputs": outputs}
        # The directory of a resumed run may have been moved.
        self.facts |= {
            "outputs": outputs,
            "threads": config.runtime.threads or os.cpu_count(),
            "status": Status.RUNNING,
        }
        self._write()

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, if there is one."""
        found: str | None = self.facts.get("run_id")
        return found

    def track(self, run_id: str | None, uri: str | None) -> None:
        """Record the MLflow run and its tracking URI; to a new MLflow run, no model has been logged yet."""
        if run_id != self.run_id:
            self.facts.pop("model", None)
        self.note(run_id=run_id, store=uri)

    def note(self, **facts: str | float | Sequence[str] | None) -> None:
        """Add facts to `run.json`; a fact that is None keeps its previous value."""
        self.facts |= {name: redacted(value) for name, value in facts.items() if value is not None}
        self._write()

    def check(self, identity: str, planned: str | None = None) -> None:
        """Record the run's identity, after comparing it with that of the resumed or planned run.

        Args:
            identity: the identity of this run.
            planned: the identity that a sweep has planned.

        Raises:
            ConfigError: the identity has changed.
        """
        if planned not in (None, identity):
            raise ConfigError(
                f"{self.folder}: this job is not what was planned any more: the data, the weights or the version of "
                f"this program have changed since (identity {planned} then, {identity} now). Nothing was trained. "
                "Give the same command again"
            )
        check_same(self.folder, self.facts.get("identity"), identity)
        self.note(identity=identity)

    def end(self, status: str) -> None:
        """Record the final status and release the lock; the checkpoints of a finished run are removed."""
        try:
            self.note(status=status)
            if status == Status.FINISHED:
                shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        finally:
            self._lock.release()

    def _write(self) -> None:
        atomic_files.write_file(self.folder / FILE, json.dumps(self.facts, indent=1).encode())


def claim(folder: Path, name: str = LOCK, what: str = "run", wait: float = 0) -> FileLock:
    """Acquire and return the lock of a run's or a sweep's directory, unless locks are not supported there.

    Args:
        folder: the directory.
        name: name of the lock file.
        what: "run" or "sweep", for the message.
        wait: seconds to wait for a process that may just be ending.

    Raises:
        ConfigError: another process holds the lock.
    """
    lock = FileLock(folder / name, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise ConfigError(f"{folder}: this {what} is still going on, in another process") from None
    except (OSError, NotImplementedError):
        pass
    return lock


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the contents of a directory's `run.json`; None if there is none.

    Raises:
        ConfigError: the file cannot be read, or is not what this program writes.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ValueError("it is no file")
        content = path.read_bytes()
        _Facts.model_validate_json(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise damaged(folder, f"{key}: {first['msg']}" if key else first["msg"]) from None
    except ValueError as error:
        raise damaged(folder, str(error)) from None
    facts: dict[str, Any] = json.loads(content)
    return facts


def damaged(folder: Path, reason: str) -> ConfigError:
    """Return the error for a `run.json` that is not as this program writes it."""
    return ConfigError(
        f"{folder / FILE}: is damaged ({reason[:300]}), so the run in this folder is not known. Restore the file from "
        "a copy; else move the folder away and train anew. A finished run that is in MLflow can be used by its MLflow "
        "id or name"
    )


def check_owner(folder: Path, config: Config) -> None:
    """Refuse a directory that belongs to another run or to a sweep, whose files would be mistaken for this run's.

    A run that ended before its identity was known has left no files that could be mistaken.

    Raises:
        ConfigError: the directory belongs to another run or to a sweep, which the message names.
    """
    remedy = "Leave hydra.run.dir out (every run gets a folder of its own), name another one"
    if (folder / SWEEP).exists():
        raise ConfigError(f"hydra.run.dir: {folder} is the folder of a sweep. {remedy}")
    facts = read_record(folder)
    if facts is None or "identity" not in facts or config.sweep.rerun:
        return
    named = f"run {facts['run_id']}, " if facts.get("run_id") else ""
    go_on = (
        "" if facts.get("status") == Status.FINISHED else ", go on with that run: resume=" + shlex.quote(str(folder))
    )
    raise ConfigError(
        f"hydra.run.dir: {folder} belongs to another run ({named}{facts.get('status')}), whose files would be taken "
        f"for this one's. {remedy}{go_on}, or remove that folder"
    )


def check_vacant(folder: Path, config: Config) -> None:
    """Refuse a directory for a new run that holds other files, as everything in a run directory is logged to MLflow.

    Must be called before Hydra creates the directory.

    Raises:
        ConfigError: the directory belongs to another run or to a sweep, or holds other files; the message names them.
    """
    if config.resume not in (None, AUTO):
        return
    if config.resume is None:
        check_owner(folder, config)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"hydra.run.dir: must be a folder. Received: {folder}, which is a file")
    others = sorted(path.name for path in folder.iterdir() if not _logs(path)) if folder.is_dir() else []
    if others and not {FILE, JOB} & set(others):
        raise ConfigError(
            f"hydra.run.dir: {folder} is not empty, and no run's folder: it has {', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}. All that is in a run's folder is taken for the run's and logged to "
            "MLflow. Leave hydra.run.dir out (every run gets a folder of its own), or name an empty or a new one"
        )


def clear(folder: Path) -> None:
    """Remove the files of an earlier run from a directory that is used again, except logs and the tracking buffer."""
    if not (folder / FILE).exists():
        return
    for path in [path for path in folder.iterdir() if not _logs(path) and path.name != JOB]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith("unsent."):
            path.unlink()


def _logs(path: Path) -> bool:
    """Return whether a file is one that Hydra, a launcher or a lock creates before the run begins."""
    return path.name.startswith(".") or path.suffix == ".log"


def format_command(hydra: Any) -> dict[str, Any]:
    """Return how Hydra was called: the working directory, the configuration directory and name, and the overrides."""
    kept = [
        override for override in hydra.overrides.hydra
        if not override.lstrip("+~").removeprefix("hydra").lstrip("./").startswith(_ELSEWHERE)
    ]  # fmt: skip
    folders = {source.provider: source.path for source in hydra.runtime.config_sources}
    return {
        "directory": hydra.runtime.cwd,
        "config_dir": folders.get("command-line"),
        "config_path": None if folders.get("main") == str(CONF) else folders.get("main"),
        "config_name": hydra.job.config_name,
        "overrides": [*hydra.overrides.task, *kept],
    }


def arguments(called: Mapping[str, Any]) -> list[str]:
    """Return the command-line arguments of a command that `format_command` has recorded."""
    options = {"--config-dir": "config_dir", "--config-path": "config_path", "--config-name": "config_name"}
    given = {option: called.get(name) for option, name in options.items()}
    return [*itertools.chain(*((option, str(value)) for option, value in given.items() if value)), *called["overrides"]]


def resume(given: Sequence[str]) -> list[str] | None:
    """Return the command line that resumes the run named by `resume=`; the given one if it names none.

    The current directory is changed to that in which the run was started, if it still exists.

    Returns:
        The arguments; None if the run is finished, so that there is nothing to resume.

    Raises:
        ConfigError: there is no such run, or the other overrides would change it.
    """
    named = [argument.partition("=")[2] for argument in given if argument.startswith("resume=")]
    if not named or named[-1] == AUTO:
        return list(given)
    extra = [argument for argument in given if not argument.startswith("resume=")]
    wrong = [argument for argument in extra if not argument.startswith(ALLOWED)]
    if wrong:
        raise ConfigError(
            f"resume: a run is resumed as it was. Allowed beside it: {', '.join(f'{name}...' for name in ALLOWED)}. "
            f"Received: {' '.join(wrong)}"
        )
    folder = find(named[-1], extra)
    facts = read_record(folder)
    if facts is None:
        raise ConfigError(f"resume: {folder} is no run's folder: it has no {FILE}")
    if facts.get("status") == Status.FINISHED:
        return None
    lacking = [key for key in ("directory", "config_dir", "overrides") if key not in facts["command"]]
    if lacking or "outputs" not in facts:
        raise damaged(folder, f"it has no {', '.join(lacking) or 'outputs'}")
    called, outputs = facts["command"], outputs_of(folder, facts)
    try:
        os.chdir(called["directory"])
    except OSError as error:
        print(
            f"resume: this run was started in {called['directory']}, which cannot be entered ({error.strerror}): its "
            "relative paths, if it has any, are read from the current directory",
            file=sys.stderr,
        )
    given_keys = {argument.partition("=")[0] for argument in extra}
    threads = facts.get("threads") if "runtime.threads" not in given_keys else None
    uri = store_of_run(folder, facts) if not given_keys & {"tracking", "tracking.uri"} else None
    return [
        *arguments(called),
        f"outputs={quoted(str(outputs))}",
        f"hydra.run.dir={quoted(str(folder))}",
        f"resume={quoted(str(folder))}",
        *([f"runtime.threads={threads}"] if threads else []),
        *([f"tracking.uri={quoted(uri)}"] if uri else []),
        *extra,
    ]


def recorded_outputs(facts: Mapping[str, Any]) -> Path:
    """Return the outputs/ directory that a run was started with."""
    return Path(facts["command"].get("directory", ""), facts.get("outputs") or default_outputs())


def outputs_of(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Return the outputs/ directory of a run: the one that it was moved to, else the recorded one, else the default."""
    recorded = recorded_outputs(facts)
    if not folder.is_relative_to(recorded.resolve()):
        for place in folder.parents:
            if (place / STORE).is_file() or (place / "cache").is_dir():
                return place
    return recorded if recorded.is_dir() else Path(default_outputs())


def store_of_run(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """Return a run's present tracking URI; None if it is not tracked, or if the URI's password is not known.

    A run is resumed in the tracking store in which it began, whatever MLFLOW_TRACKING_URI is by now.
    """
    uri = reveal(facts.get("store") or "", "tracking.uri")
    if not uri or is_concealed(uri):
        return None
    file = sqlite_file(uri)
    if file is None:
        return uri
    file = Path(facts["command"].get("directory", ""), file)
    recorded, outputs = recorded_outputs(facts), outputs_of(folder, facts)
    moved = outputs != recorded and file.is_relative_to(recorded)
    return sqlite_uri(outputs / file.relative_to(recorded) if moved else file)


def finished(folder: Path, identity: str) -> dict[str, float] | None:
    """Return the metrics in a directory; None unless they are those of a finished run with this identity."""
    fetched = folder / FETCHED
    facts = json.loads(fetched.read_bytes()) if fetched.exists() else read_record(folder) or {}
    if not identity or facts.get("identity") != identity or facts.get("status") != Status.FINISHED:
        return None
    try:
        metrics: dict[str, float] = json.loads((folder / METRICS).read_bytes())
    except (OSError, ValueError):  # removed or damaged since
        return None
    return metrics


def check_same(folder: Path, before: str | None, now: str) -> None:
    """Raise ConfigError if the identity of a directory's run differs from that of the run to be resumed there."""
    if before not in (None, now):
        raise ConfigError(
            f"resume: {folder} was another run: its configuration, images, weights or version of this "
            f"program have changed since (identity {before} then, {now} now). Start a new run instead, in "
            "another folder (hydra.run.dir=..., or none given)"
        )


def find(named: str, overrides: Sequence[str]) -> Path:
    """Return the directory of a run, which is named by its directory or its MLflow id.

    Raises:
        ConfigError: there is no such run, or its directory is not on this machine.
    """
    folder = folder_named(named)
    if folder is not None:
        return folder
    from experiments.tracking import queries

    uri = store_of(overrides)
    recorded = queries.recorded_folder(uri, named)
    found = folder_of(named, recorded, uri)
    if found is None:
        raise ConfigError(
            f"resume: the folder of run {named} is not on this machine, or belongs to another run by now: {recorded}. "
            "Give the folder where it is: resume=FOLDER"
        )
    return found


def folder_named(named: str) -> Path | None:
    """Return the directory that a text names, plain or in the quotes of Hydra's grammar; None if there is none."""
    for text in (named, named[1:-1] if len(named) > 2 and named[0] == named[-1] and named[0] in "'\"" else named):
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            return folder.resolve()
    return None


def folder_of(run_id: str, recorded: str | None, uri: str) -> Path | None:
    """Return the directory of an MLflow run: below the present outputs/, if that was moved, or where it was recorded.

    Args:
        run_id: the id of the MLflow run, which the directory's `run.json` must have.
        recorded: the path that was recorded for the directory.
        uri: the tracking URI of the run; a SQLite file lies in outputs/.
    """
    if not recorded:
        return None
    file, parts = sqlite_file(uri), Path(recorded).parts
    roots = [*([file.absolute().parent] if file else []), Path(default_outputs())]
    # A moved directory keeps the end of its path, such as runs/NAME or sweeps/SWEEP/NUMBER; the longest match is used.
    moved = [root.joinpath(*parts[at:]) for root in roots for at in range(1, len(parts))]
    for place in [*moved, Path(recorded)]:
        if (place / FILE).is_file():
            with contextlib.suppress(ConfigError):  # a damaged file does not identify its run
                if (read_record(place) or {}).get("run_id") == run_id:
                    return place
    return None


def store_of(overrides: Sequence[str]) -> str:
    """Return the tracking URI in which to search for a run: that of the command line, else the local one."""
    from experiments.tracking import queries

    uris = [override.partition("=")[2] for override in overrides if override.startswith("tracking.uri=")]
    return reveal(literal(uris[-1]), "tracking.uri") if uris else queries.local_store()
