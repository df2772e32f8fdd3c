"""Start of several runs, one after the other, for verbs that train."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.config.composing import read
from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.tracking.queries import RunFacts


def start(jobs: Sequence[Sequence[str]], tag: str) -> tuple[str, list[RunFacts]]:
    """Train each list of overrides in a process of its own, one after the other.

    Args:
        jobs: the overrides of each run.
        tag: name of the MLflow tag by which the runs are found afterwards.

    Returns:
        The URI of the tracking store, and the runs in order.

    Raises:
        ConfigError: the overrides cannot be used, name several tracking stores, or contain tracking=none.
        SystemExit: a run failed; later ones are not started.
    """
    from experiments.tracking.queries import find_runs

    uris = {read(job).tracking.uri for job in jobs}
    uri = uris.pop()
    if uris or uri is None:
        raise ConfigError("tracking: these runs are found again in one MLflow store. Allowed: tracking=sqlite, server")
    token = f"t{secrets.token_hex(4)}"  # starts with a letter, because Hydra parses 12345678 as a number
    for job in jobs:
        command = ["-m", "experiments.train", *job]
        print(f"\n$ python {shlex.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command, f"+tags.{tag}={token}"])
        if done.returncode:
            sys.exit(done.returncode)
    return uri, find_runs(uri, (), tag=(tag, token))
