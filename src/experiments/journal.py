"""What a run's folder knows of the run itself, so that it can be resumed: `run.json`, whole or not there.

`resume=RUN` runs the same command again in the same folder. Composition is repeated, not replayed from a file: what
differs since then, in configuration, data, weights or versions, is found by the run's identity and refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

from experiments import store
from experiments.redaction import redacted, reveal
from experiments.schema import Config
from experiments.types import ConfigError

FILE, LOCK, CHECKPOINTS = "run.json", ".run.lock", "checkpoints"
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

    def check(self, identity: str) -> None:
        """Notes the run's identity; of a resumed run, compares it.

        Raises:
            ConfigError: it is not the same run any more.
        """
        before = self.facts.get("identity")
        if before not in (None, identity):
            raise ConfigError(
                f"resume: {self.folder} was another run: its configuration, pictures, weights or version of this "
                f"program have changed since (identity {before} then, {identity} now). Start a new run instead"
            )
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
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return {
        "directory": hydra.runtime.cwd,
        "config_dir": folders[0] if folders else None,
        "overrides": [*hydra.overrides.task, *kept],
    }


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
        *(["--config-dir", called["config_dir"]] if called["config_dir"] else []),
        *called["overrides"],
        f"outputs={quoted(facts['outputs'])}",
        f"hydra.run.dir={quoted(str(folder))}",
        f"resume={quoted(str(folder))}",
        *threads,
        *extra,
    ]


def finished(folder: Path, objective: str) -> float | None:
    """The validation metric of the run that a folder holds, where that is finished; None where there is work to do."""
    facts = read(folder)
    if facts is None or facts.get("status") != "FINISHED":
        return None
    metrics: dict[str, float] = json.loads((folder / METRICS).read_bytes())
    return metrics.get(f"validation.{objective}", math.nan)


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
