"""`experiments backbones [MODEL ...]`: parameters and speed of each backbone on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_config_dir, exit_on_error, positive
from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.config.schema import Config


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments backbones",
        description="Measures the choices of model=... on this machine, each at its native size with random weights: "
        "images a second from pixels to pooled features, as a first bottleneck run computes them. What the head "
        "costs is not in it. Nothing is downloaded.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="choices of the group model (default: all)")
    add_config_dir(parser)
    parser.add_argument("--batch", type=positive, help="images a batch (default: as features are computed)")
    parser.add_argument("--seconds", type=float, default=10, help="least time a backbone is measured (default: 10)")
    parser.add_argument("--threads", type=int, help="of TensorFlow (default: all cores)")
    arguments = parser.parse_args()
    folder, threads = arguments.config_dir, arguments.threads
    configs = [configuration(name, folder, threads) for name in choose(arguments.models, folder)]

    from experiments.system.progress import PlainConsole
    from experiments.system.startup import quiet_start

    with quiet_start():
        from experiments.inspection import backbones
        from experiments.regimes.feature_cache import BATCH
        from experiments.training import runtime
    batch = arguments.batch or BATCH
    runtime.apply(configs[0].runtime)
    progress = PlainConsole(stderr=True)
    costs = []
    for config in configs:
        with progress.status(config.model.name):
            costs.append(backbones.measure(config, batch, arguments.seconds))
    PlainConsole().print(backbones.cost_table(costs, batch, threads))


def choose(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Return the choices of the group `model` to measure: those named, else all of conf/ and of the user's folder."""
    from experiments.config.choices import shipped
    from experiments.config.messages import nearest_hint

    mine = [path.stem for path in sorted(folder.glob("model/*.yaml"))] if folder else []
    if folder and not mine:
        raise ConfigError(f"--config-dir: there is no model/*.yaml in it. Received: {folder}")
    allowed = list(dict.fromkeys([*shipped("model"), *mine]))
    if wrong := [name for name in names if name not in allowed]:
        hints = [f"{name!r}. Allowed: {', '.join(allowed)}{nearest_hint(name, allowed)}." for name in wrong]
        raise ConfigError("\n".join(f"no such model. Received: {hint}" for hint in hints))
    return list(dict.fromkeys(names)) or allowed


def configuration(name: str, folder: Path | None = None, threads: int | None = None) -> Config:
    """Return the validated configuration of a run from scratch with this backbone, which reads no weights."""
    from experiments.config.composing import read

    threaded = [] if threads is None else [f"runtime.threads={threads}"]
    return read([f"model={name}", "model.weights=null", "regime=scratch", *threaded], folder)
