"""What a run's folder knows of the run itself, so that it can be resumed: `run.json`, whole or not there.

`resume=RUN` runs the same command again in the same folder. Composition is repeated, not replayed from a file: what
differs since then, in configuration, data, weights or versions, is found by the run's identity and refused.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

from experiments import store
from experiments.paths import CONF
from experiments.redaction import redacted, reveal
from experiments.schema import Config
from experiments.types import ConfigError

FILE, LOCK, CHECKPOINTS = "run.json", ".run.lock", "checkpoints"
FETCHED = "fetched.json"  # where only the results of a run are that is not on this machine: its identity
AUTO = "auto"  # resume: what the folder holds, if anything
METRICS = "metrics.json"
PATIENCE = 60.0  # seconds that one waits for the one before it, which may just be ending
ALLOWED = ("runtime.", "tracking.", "runtime=", "tracking=", "progress=")
_ELSEWHERE = ("run.", "sweep.", "mode", "sweeper", "launcher", "output_subdir", "job.num", "job.id")


class Journal:
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
        begun = read(folder) if config.resume else None
        self.facts: dict[str, Any] = begun or {"command": command(HydraConfig.get()), "outputs": config.outputs}
        if begun is None:  # in a folder that another run has used it begins anew
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            (folder / "curves.csv").unlink(missing_ok=True)
        self.facts |= {"threads": config.runtime.threads or os.cpu_count(), "status": "RUNNING"}
        self._write()

    @property
    def run_id(self) -> str | None:
        """Of the MLflow run."""
        found: str | None = self.facts.get("run_id")
        return found

    def note(self, **facts: str | float | None) -> None:
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
        store.write_file(self.folder / FILE, json.dumps(self.facts, indent=1).encode())


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


def read(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says of its run; None where it says nothing."""
    try:
        facts = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / FILE}: cannot be read: {error}") from None
    if not isinstance(facts, dict) or "command" not in facts:
        raise ConfigError(f"{folder / FILE}: is not what this program writes")
    return facts


def command(hydra: Any) -> dict[str, Any]:
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
    facts = read(folder)
    if facts is None:
        raise ConfigError(f"resume: {folder} is no run's folder: it has no {FILE}")
    if facts.get("status") == "FINISHED":
        return None
    called = facts["command"]
    os.chdir(called["directory"])
    threads = (
        [] if any(one.startswith("runtime.threads=") for one in extra) else [f"runtime.threads={facts['threads']}"]
    )
    return [
        *arguments(called),
        f"outputs={quoted(facts['outputs'])}",
        f"hydra.run.dir={quoted(str(folder))}",
        f"resume={quoted(str(folder))}",
        *threads,
        *extra,
    ]


def finished(folder: Path, identity: str) -> dict[str, float] | None:
    """Return the metrics in a folder; None where they are not those of a finished run of this identity."""
    fetched = folder / FETCHED
    facts = json.loads(fetched.read_bytes()) if fetched.exists() else read(folder) or {}
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
            f"program have changed since (identity {before} then, {now} now). Start a new run instead"
        )


def find(named: str, overrides: Sequence[str]) -> Path:
    """The folder of a run: given as such, or by its MLflow id.

    Raises:
        ConfigError: neither.
    """
    folder = Path(named).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from experiments.tracking import stored

    return stored.run_folder(store_of(overrides), named)


def store_of(overrides: Sequence[str]) -> str:
    """The tracking store in which a run is looked for: that of the command line, else this place's."""
    from experiments.tracking import stored

    uris = [override.partition("=")[2] for override in overrides if override.startswith("tracking.uri=")]
    return reveal(uris[-1].strip("'\""), "tracking.uri") if uris else stored.local_store()


def quoted(text: str) -> str:
    """A value as Hydra's grammar reads it literally: backslashes are its own only before a quote."""
    before_quotes = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    whole = re.sub(r"(\\+)$", lambda found: found[1] * 2, before_quotes)
    return f"'{whole}'"
