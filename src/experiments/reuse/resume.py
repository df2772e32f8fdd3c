"""Expansion of `resume=RUN` to the command that began a run, which then goes on in the same directory.

The configuration is composed again, not read from a file. If configuration, data, weights or versions have changed
since, the run's identity differs and the run is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.overrides import quoted, split_key
from experiments.errors import ConfigError
from experiments.runs.active_run import AUTO
from experiments.runs.command import arguments
from experiments.runs.location import folder_of, local_folder, outputs_of, store_of, store_of_run
from experiments.runs.run_directory import FACTS, RunDirectory
from experiments.tracking import queries
from experiments.training.types import Status

ALLOWED = ("runtime.", "tracking.", "runtime=", "tracking=", "progress=")


def expand(given: Sequence[str]) -> list[str] | None:
    """Return the command line that resumes the run named by `resume=`; the given one if it names none.

    The current directory is changed to that in which the run was started, if it still exists. Return None if the run is
    finished, so that there is nothing to resume.

    Raises:
        ConfigError: there is no such run, or the other overrides would change it.
    """
    named, extra = split_key(given, "resume")
    if not named or named[-1] in (AUTO, "null"):
        return list(given)
    wrong = [argument for argument in extra if not argument.startswith(ALLOWED)]
    if wrong:
        raise ConfigError(
            f"resume: a run is resumed as it was. Allowed beside it: {', '.join(f'{name}...' for name in ALLOWED)}. "
            f"Received: {' '.join(wrong)}"
        )
    folder = find(named[-1], extra, "resume")
    directory = RunDirectory(folder)
    facts = directory.facts()
    if not facts:
        raise ConfigError(f"resume: {folder} is no run's folder: it has no {FACTS}")
    if facts.get("status") == Status.FINISHED:
        return None
    lacking = [key for key in ("directory", "config_dir", "overrides") if key not in facts["command"]]
    if lacking or "outputs" not in facts:
        raise directory.damaged(f"it has no {', '.join(lacking) or 'outputs'}")
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
    experiment = facts.get("mlflow_experiment")
    return [
        *arguments(called),
        f"outputs={quoted(str(outputs))}",
        f"hydra.run.dir={quoted(str(folder))}",
        f"resume={quoted(str(folder))}",
        *([f"runtime.threads={threads}"] if threads else []),
        *([f"tracking.uri={quoted(uri)}"] if uri else []),
        *([f"tracking.experiment={quoted(experiment)}"] if experiment else []),
        *extra,
    ]


def find(named: str, overrides: Sequence[str], key: str) -> Path:
    """Return the directory of a run, which is named by its directory, its MLflow id, or the end of its name.

    The other overrides of the command line may name the tracking store; `key` is for messages.

    Raises:
        ConfigError: there is no such run, or its directory is not on this machine.
    """
    if folder := local_folder(named):
        return folder
    uri = store_of(overrides)
    run = queries.get_run(uri, named, key, trash=True)
    recorded = run.data.tags.get("run_folder")
    found = folder_of(run.info.run_id, recorded, uri)
    if found is None:
        raise ConfigError(
            f"{key}: the folder of run {named} is not on this machine, or belongs to another run by now: {recorded}. "
            f"Give the folder where it is: {key}=FOLDER"
        )
    return found
