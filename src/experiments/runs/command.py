"""The recorded command of a run: how Hydra was called, and the arguments that call it in the same way again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.system.paths import CONF

# Hydra's settings that say where and how a run is executed, not what it is.
_ELSEWHERE = ("run.", "sweep.", "mode", "sweeper", "launcher", "output_subdir", "job.num", "job.id")


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
    given = [(option, str(called[name])) for option, name in options.items() if called.get(name)]
    return [*(word for pair in given for word in pair), *called["overrides"]]
