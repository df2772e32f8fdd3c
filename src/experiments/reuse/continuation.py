"""Expansion of `continue=RUN` to `like=RUN` and the configuration key that names the folder of that run."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.overrides import quoted, split_key
from experiments.errors import ConfigError
from experiments.reuse import resume
from experiments.runs.continuation import KEY


def expand(given: Sequence[str]) -> list[str]:
    """Return the command line with `continue=RUN` replaced; one without it is returned unchanged.

    Raises:
        ConfigError: there is no such run, or `like=` names another one.
    """
    named, rest = split_key(given, "continue")
    if not named:
        return rest
    likes = [argument for argument in rest if argument.startswith("like=")]
    if len(named) > 1 or likes:
        received = [*(f"continue={name}" for name in named), *likes]
        raise ConfigError(
            f"continue: one run at a time, whose configuration is taken over. Received: {' '.join(received)}"
        )
    folder = quoted(str(resume.find(named[0], rest, "continue")))
    return [f"like={folder}", *rest, f"++{KEY}={folder}"]
