"""What a run's folder knows of the run itself, so that it can be resumed: `run.json`, whole or not there.

`resume=RUN` runs the same command again in the same folder. Composition is repeated, not replayed from a file: what
differs since then, in configuration, data, weights or versions, is found by the run's identity and refused.
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

from experiments.config import unused, validation
from experiments.config.overrides import literal, quoted
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.storage import atomic_files
from experiments.system.paths import CONF, STORE, default_outputs, sqlite_file, sqlite_uri
from experiments.system.redaction import is_concealed, redacted, reveal

FILE, LOCK, CHECKPOINTS = "run.json", ".run.lock", "checkpoints"
FETCHED = "fetched.json"  # where only the results of a run are that is not on this machine: its identity
JOB, SWEEP = "job.json", "sweep.json"  # in a job's folder, in a sweep's
SWEEPER = "hydra_plugins.experiments.Sweeper"
AUTO = "auto"  # resume: what the folder holds, if anything
METRICS = "metrics.json"
PATIENCE = 60.0  # seconds that one waits for the one before it, which may just be ending
ALLOWED = ("runtime.", "tracking.", "runtime=", "tracking=", "progress=")
_ELSEWHERE = ("run.", "sweep.", "mode", "sweeper", "launcher", "output_subdir", "job.num", "job.id")


class _Command(BaseModel):
    directory: str = ""
    config_dir: str | None = None
    overrides: list[str] = []


class _Facts(BaseModel):
    """What `run.json` holds; there may be more."""

    model_config = ConfigDict(strict=True)
    command: _Command
    outputs: str = ""
    threads: int | None = None
    status: str = ""
    run_id: str | None = None
    store: str | None = None
    identity: str = ""


class ValidateBeforeRun(Callback):
    """Check configuration and folder of a run before Hydra makes that folder: a wrong one leaves nothing behind.

    Hydra turns a callback's exceptions into warnings; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        before = HydraConfig.instance().cfg
        try:
            # As Hydra does before it calls the task: ${hydra:...} has values from then on.
            HydraConfig.instance().set_config(config)
            folder = os.path.abspath(str(config.hydra.run.dir))
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = folder
            HydraConfig.instance().set_config(config)
            validation.conceal(config)
            checked = validation.read(config)
            if checked.resume is None:
                unused.check_weights([checked], config.hydra.overrides.task)
            check_vacant(Path(folder), checked)
        except ConfigError as error:
            raise SystemExit(str(error)) from None
        finally:
            HydraConfig.instance().cfg = before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse another sweeper: its jobs would be composed one by one, and run unplanned in folders of others."""
        target = OmegaConf.select(config, "hydra.sweeper._target_")
        if target != SWEEPER:
            raise SystemExit(
                "hydra/sweeper: must be experiments, which plans a sweep's jobs and runs them as planned. Leave it "
                f"out. For a search: sweep.search=random or tpe. Received: {target}"
            )


class RunDirectory:
    """The `run.json` of a run that is going on in this process.

    Args:
        folder: of the run.
        config: its configuration.

    Raises:
        ConfigError: the run is going on in another process.
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
        # A resumed run may have been moved since.
        self.facts |= {"outputs": outputs, "threads": config.runtime.threads or os.cpu_count(), "status": "RUNNING"}
        self._write()

    @property
    def run_id(self) -> str | None:
        """Of the MLflow run."""
        found: str | None = self.facts.get("run_id")
        return found

    def track(self, run_id: str | None, uri: str | None) -> None:
        """Note the MLflow run and its store; a new run has not got the model yet."""
        if run_id != self.run_id:
            self.facts.pop("model", None)
        self.note(run_id=run_id, store=uri)

    def note(self, **facts: str | float | Sequence[str] | None) -> None:
        """Adds what has become known; what was known before stays as it was where None is given."""
        self.facts |= {name: redacted(value) for name, value in facts.items() if value is not None}
        self._write()

    def check(self, identity: str, planned: str | None = None) -> None:
        """Notes the run's identity; of a resumed or a planned run, compares it.

        Args:
            planned: the identity that a sweep has planned.

        Raises:
            ConfigError: it is not the same run any more.
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
        """Notes how it ended, and lets go of it; a finished run needs its checkpoints no more."""
        try:
            self.note(status=status)
            if status == "FINISHED":
                shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        finally:
            self._lock.release()

    def _write(self) -> None:
        atomic_files.write_file(self.folder / FILE, json.dumps(self.facts, indent=1).encode())


def claim(folder: Path, name: str = LOCK, what: str = "run", wait: float = 0) -> FileLock:
    """The lock of a run's or a sweep's folder, taken where there are locks to be had.

    Args:
        name: of the lock's file.
        what: the folder is of, in a word.
        wait: seconds for a process that may just be ending.

    Raises:
        ConfigError: it is going on in another process.
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
    """Return what a run's folder records of its run; None where it has no `run.json`.

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
    """Return the error for a `run.json` that is not what this program writes."""
    return ConfigError(
        f"{folder / FILE}: is damaged ({reason[:300]}), so the run in this folder is not known. Restore the file from "
        "a copy; else move the folder away and train anew. A finished run that is in MLflow can be used by its MLflow "
        "id or name"
    )


def check_owner(folder: Path, config: Config) -> None:
    """Refuse a folder that belongs to another run or to a sweep: its files would be taken for this run's.

    A run that ended before its identity was known has left nothing that could be mistaken.

    Raises:
        ConfigError: naming what the folder belongs to.
    """
    remedy = "Leave hydra.run.dir out (every run gets a folder of its own), name another one"
    if (folder / SWEEP).exists():
        raise ConfigError(f"hydra.run.dir: {folder} is the folder of a sweep. {remedy}")
    facts = read_record(folder)
    if facts is None or "identity" not in facts or config.sweep.rerun:
        return
    named = f"run {facts['run_id']}, " if facts.get("run_id") else ""
    go_on = "" if facts.get("status") == "FINISHED" else ", go on with that run: resume=" + shlex.quote(str(folder))
    raise ConfigError(
        f"hydra.run.dir: {folder} belongs to another run ({named}{facts.get('status')}), whose files would be taken "
        f"for this one's. {remedy}{go_on}, or remove that folder"
    )


def check_vacant(folder: Path, config: Config) -> None:
    """Refuse the folder of a new run that holds other things: a run's folder is logged to MLflow whole.

    To be called before Hydra makes the folder.

    Raises:
        ConfigError: naming the folder and what it belongs to, or what is in it.
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
    """Remove what an earlier run has left in a folder that is used once more, but for logs and unsent messages."""
    if not (folder / FILE).exists():
        return
    for path in [path for path in folder.iterdir() if not _logs(path) and path.name != JOB]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith("unsent."):
            path.unlink()


def _logs(path: Path) -> bool:
    """Whether an entry of a folder is what Hydra, a launcher or a lock puts there before the run begins."""
    return path.name.startswith(".") or path.suffix == ".log"


def format_command(hydra: Any) -> dict[str, Any]:
    """How Hydra was called, by its own configuration: where, with which folder of choices, with which overrides."""
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
    """Return what `command` has recorded as it was typed."""
    options = {"--config-dir": "config_dir", "--config-path": "config_path", "--config-name": "config_name"}
    given = {option: called.get(name) for option, name in options.items()}
    return [*itertools.chain(*((option, str(value)) for option, value in given.items() if value)), *called["overrides"]]


def resume(given: Sequence[str]) -> list[str] | None:
    """The command line that goes on with the run that `resume=` names; the given one where none is named.

    Returns:
        None where that run is finished: there is nothing to do.

    Raises:
        ConfigError: no such run, or overrides that would make it another one.
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
    if facts.get("status") == "FINISHED":
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
    """Return the outputs/ that a run was started with."""
    return Path(facts["command"].get("directory", ""), facts.get("outputs") or default_outputs())


def outputs_of(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Return the outputs/ that a run's folder belongs to: the recorded one, or the one that it was moved into."""
    recorded = recorded_outputs(facts)
    if not folder.is_relative_to(recorded.resolve()):
        for place in folder.parents:
            if (place / STORE).is_file() or (place / "cache").is_dir():
                return place
    return recorded if recorded.is_dir() else Path(default_outputs())


def store_of_run(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """Return the tracking store of a run, where it is now; None: it is not tracked, or its password is not known.

    A run goes on in the store that it began in, whatever MLFLOW_TRACKING_URI says by now.
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
    """Return the metrics in a folder; None where they are not those of a finished run of this identity."""
    fetched = folder / FETCHED
    facts = json.loads(fetched.read_bytes()) if fetched.exists() else read_record(folder) or {}
    if not identity or facts.get("identity") != identity or facts.get("status") != "FINISHED":
        return None
    try:
        metrics: dict[str, float] = json.loads((folder / METRICS).read_bytes())
    except (OSError, ValueError):  # removed since
        return None
    return metrics


def check_same(folder: Path, before: str | None, now: str) -> None:
    """Raise ConfigError where a folder's run has another identity than the one that is to go on there."""
    if before not in (None, now):
        raise ConfigError(
            f"resume: {folder} was another run: its configuration, pictures, weights or version of this "
            f"program have changed since (identity {before} then, {now} now). Start a new run instead, in "
            "another folder (hydra.run.dir=..., or none given)"
        )


def find(named: str, overrides: Sequence[str]) -> Path:
    """The folder of a run: given as such, or by its MLflow id.

    Raises:
        ConfigError: neither.
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
    """Return the folder that a text names, as typed or in the quotes of Hydra's grammar; None where there is none."""
    for text in (named, named[1:-1] if len(named) > 2 and named[0] == named[-1] and named[0] in "'\"" else named):
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            return folder.resolve()
    return None


def folder_of(run_id: str, recorded: str | None, uri: str) -> Path | None:
    """Return the folder of an MLflow run: where it was recorded, or in the outputs/ of today where that was moved.

    Args:
        run_id: of the MLflow run; the folder's `run.json` must have it.
        recorded: where the folder was.
        uri: the store of the run, which lies in outputs/ where it is a file.
    """
    if not recorded:
        return None
    file, parts = sqlite_file(uri), Path(recorded).parts
    roots = [*([file.absolute().parent] if file else []), Path(default_outputs())]
    # outputs/runs/NAME, outputs/sweeps/SWEEP/NUMBER: the longest end of the old path that is there.
    moved = [root.joinpath(*parts[at:]) for root in roots for at in range(1, len(parts))]
    for place in [*moved, Path(recorded)]:
        if (place / FILE).is_file():
            with contextlib.suppress(ConfigError):  # a damaged file: of which run, it does not say
                if (read_record(place) or {}).get("run_id") == run_id:
                    return place
    return None


def store_of(overrides: Sequence[str]) -> str:
    """The tracking store in which a run is looked for: that of the command line, else this place's."""
    from experiments.tracking import queries

    uris = [override.partition("=")[2] for override in overrides if override.startswith("tracking.uri=")]
    return reveal(literal(uris[-1]), "tracking.uri") if uris else queries.local_store()
