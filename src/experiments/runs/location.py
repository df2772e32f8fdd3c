"""Where the directory, the outputs/ and the tracking store of a run are now, as outputs/ may have been moved."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.overrides import split_key
from experiments.errors import ConfigError
from experiments.runs.run_directory import FACTS, RunDirectory
from experiments.system.paths import STORE, default_outputs, sqlite_file, sqlite_uri, tracking_uri
from experiments.system.redaction import is_concealed, reveal


def recorded_outputs(facts: Mapping[str, Any]) -> Path:
    """Return the outputs/ directory that a run was started with."""
    return Path(facts["command"].get("directory", ""), facts.get("outputs") or default_outputs())


def outputs_of(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Return the outputs/ directory of a run: the one that it was moved to, else the recorded one, else the default.

    A run whose directory was chosen outside outputs/ has not moved: above it there may be a `cache` of something else.
    """
    recorded = recorded_outputs(facts)
    if not folder.is_relative_to(recorded.resolve()):
        for place in folder.parents:
            usual = folder.relative_to(place).parts[0] in ("runs", "sweeps")
            marked = (place / STORE).is_file() or (place / "cache").is_dir()
            if marked and (usual or not recorded.is_dir()):
                return place
    return recorded if recorded.is_dir() else Path(default_outputs())


def store_of_run(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """Return a run's present tracking URI; None if it is not tracked, or if the URI's password is not known.

    A run is resumed in the tracking store in which it began, whatever MLFLOW_TRACKING_URI is by now.
    """
    uri = reveal(facts.get("store") or "", "tracking.uri")
    if not uri or is_concealed(uri):
        return None
    if (file := sqlite_file(uri)) is None:
        return uri
    file = Path(facts["command"].get("directory", ""), file)
    recorded, outputs = recorded_outputs(facts), outputs_of(folder, facts)
    moved = outputs != recorded and file.is_relative_to(recorded)
    return sqlite_uri(outputs / file.relative_to(recorded) if moved else file)


def folder_named(named: str) -> Path | None:
    """Return the directory that a text names; None if there is none."""
    folder = Path(named).expanduser()
    return folder.resolve() if named and folder.is_dir() else None


def local_folder(named: str) -> Path | None:
    """Return the directory that a text names: by its path, or as the end, after a dash, of one run's name."""
    if folder := folder_named(named):
        return folder
    end = f"-{named.removeprefix('-')}"
    folders = [path.parent for path in Path(default_outputs()).glob(f"runs/*/{FACTS}")] if len(end) > 1 else []
    fitting = [folder for folder in folders if f"-{folder.name}".endswith(end)]
    return fitting[0].resolve() if len(fitting) == 1 else None


def folder_of(run_id: str, recorded: str | None, uri: str) -> Path | None:
    """Return the directory of an MLflow run: below the present outputs/, if that was moved, or where it was recorded.

    Args:
        run_id: the id of the MLflow run, which the directory must record.
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
        if (place / FACTS).is_file():
            with contextlib.suppress(ConfigError):  # a damaged file does not identify its run
                if RunDirectory(place).facts().get("run_id") == run_id:
                    return place
    return None


def store_of(overrides: Sequence[str]) -> str:
    """Return the tracking URI in which to search for a run: that of the command line, else the local one."""
    uris, _ = split_key(overrides, "tracking.uri")
    return reveal(uris[-1], "tracking.uri") if uris else tracking_uri()
