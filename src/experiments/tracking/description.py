"""Parameters and tags that describe a run in MLflow: its configuration, and the environment in which it ran."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import __version__
from experiments.config.choices import shipped
from experiments.config.identity import defining
from experiments.config.overrides import value_at
from experiments.config.schema import GROUPS
from experiments.system.paths import CONF, REPOSITORY
from experiments.system.redaction import redact_credentials

LONGEST_NAME = 250  # maximum length of an MLflow parameter's name, in characters
PACKAGES = ("tensorflow", "keras", "mlflow", "hydra-core", "numpy", "pillow")


def flat_parameters(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return those settings of a logged configuration that define the run as MLflow parameters: key -> text.

    `regime` and the other groups have the name of the choice, `regime.views` and the like its values. `_target_` is
    among them where it is a class of Keras or a function of the user's, and not that of the shipped choice.
    """
    kept = defining(plain)
    found = {key: value[:6000] for key, value in _flatten(kept).items()}
    for key, group in [*zip(GROUPS, GROUPS, strict=True), ("regime.head_optimizer", "optimizer")]:
        target = str(value_at(kept, f"{key}._target_", "experiments."))
        usual = shipped(group).get(str(value_at(kept, f"{key}.name")), {})
        if not target.startswith("experiments.") and target != usual.get("_target_"):
            found[f"{key}._target_"] = target
    return found


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in node.items():
        if key in ("_target_", "ignores"):
            continue
        if isinstance(value, Mapping) and all(
            re.fullmatch(r"[\w .:/-]+", name, re.ASCII) and len(prefix + key + name) < LONGEST_NAME for name in value
        ):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif key == "name":
            flat[prefix.rstrip(".")] = str(value)
        else:
            flat[prefix + key] = "null" if value is None else str(value)
    return flat


def environment_tags() -> dict[str, str]:
    """Return the tags that describe a run's environment: versions, host, command line, git commit."""
    tags = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    tags |= {
        "version.experiments": __version__,
        "version.python": platform.python_version(),
        "host": socket.gethostname(),
        "command": redact_credentials(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:5000],
    }
    if commit := _git("rev-parse", "HEAD"):
        tags["git.commit"] = commit
        if (changes := _git("status", "--porcelain")) is not None:
            tags["git.dirty"] = str(bool(changes)).lower()
    return tags


def _git(*arguments: str) -> str | None:
    """Return git's output for this package's checkout, else for the current directory; None if git fails."""
    place = REPOSITORY if CONF.parent == REPOSITORY else Path.cwd()
    try:
        done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def run_name(directory: Path) -> str:
    """Return the name of a run: that of its directory or, if that is a number as in a sweep, SWEEP-NUMBER."""
    return f"{directory.parent.name}-{directory.name}" if directory.name.isdigit() else directory.name
