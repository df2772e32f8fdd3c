"""`experiments backbones [MODEL ...]`: parameters and speed of each backbone on this machine."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.config.schema import Config


class Cost(NamedTuple):
    """Size and speed of one choice of the group `model`, without its head."""

    name: str
    size: int  # side length of the input [pixels]
    stages: int
    parameters: int
    last_stage: int  # parameters that unfrozen_blocks=1 trains besides the head
    images_per_second: float  # of the forward pass


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments backbones",
        description="Measures the choices of model=... on this machine, each at its native size with random weights: "
        "images a second from pixels to pooled features, as a first bottleneck run computes them. What the head "
        "costs is not in it. Nothing is downloaded.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="choices of the group model (default: all)")
    parser.add_argument("--config-dir", type=Path, help="folder with further choices, in model/, as train takes it")
    parser.add_argument("--batch", type=int, help="images a batch (default: as features are computed)")
    parser.add_argument("--seconds", type=float, default=10.0, help="least time a backbone is measured (default: 10)")
    parser.add_argument("--threads", type=int, help="of TensorFlow (default: all cores)")
    arguments = parser.parse_args()
    if arguments.batch is not None and arguments.batch < 1:
        parser.error(f"--batch: must be 1 or more. Received: {arguments.batch}")
    folder, threads = arguments.config_dir, arguments.threads
    try:
        configs = [configuration(name, folder, threads) for name in choose(arguments.models, folder)]
    except ConfigError as error:
        sys.exit(str(error))

    from experiments.system.startup import quiet_start

    with quiet_start():
        from experiments.regimes.feature_cache import BATCH
        from experiments.training import runtime
    batch = arguments.batch or BATCH
    runtime.apply(configs[0].runtime)
    from experiments.system.progress import PlainConsole

    console, progress = PlainConsole(), PlainConsole(stderr=True)
    costs = []
    try:
        for config in configs:
            with progress.status(config.model.name):
                costs.append(measure(config, batch, arguments.seconds))
    except ConfigError as error:
        sys.exit(str(error))
    console.print(cost_table(costs, batch, threads))


def choose(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Return the choices of the group `model` to measure: those named, else all of conf/ and of the user's folder.

    Raises:
        ConfigError: the folder has no choices, or a name is not a choice.
    """
    from experiments.config.messages import nearest
    from experiments.config.schema import shipped

    mine = [path.stem for path in sorted(folder.glob("model/*.yaml"))] if folder else []
    if folder and not mine:
        raise ConfigError(f"--config-dir: there is no model/*.yaml in it. Received: {folder}")
    allowed = list(dict.fromkeys([*shipped("model"), *mine]))
    lines = []
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            hint = f" Nearest: {close}." if close else ""
            lines.append(f"no such model. Received: {name!r}. Allowed: {', '.join(allowed)}.{hint}")
    if lines:
        raise ConfigError("\n".join(lines))
    return list(dict.fromkeys(names)) or allowed


def configuration(name: str, folder: Path | None = None, threads: int | None = None) -> Config:
    """Return the validated configuration of a run from scratch with this backbone, which reads no weights.

    Raises:
        ConfigError: the configuration cannot be composed or is invalid.
    """
    from experiments.cli.composed import read

    threaded = [] if threads is None else [f"runtime.threads={threads}"]
    return read([f"model={name}", "model.weights=null", "regime=scratch", *threaded], folder)


def measure(config: Config, batch: int, seconds: float) -> Cost:
    """Build a backbone with random weights and measure its speed on noise.

    Args:
        config: configuration of a run with this backbone.
        batch: images per batch.
        seconds: least time to measure. At least three batches are measured, after a first one that is not counted.

    Raises:
        ConfigError: the backbone cannot be built, or split before its last block.
    """
    import keras
    import numpy as np

    from experiments.models.network import inference_function, split_network
    from experiments.regimes.build import build_backbone

    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    backbone = build_backbone(config, None)
    run = inference_function(split_network(backbone, 0, config.model.head.pooling).frozen_part)  # as feature_cache does
    size = config.data.image_size
    pixels = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 3)).astype("float32")
    run(pixels)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - began)
    return Cost(
        name=config.model.name,
        size=size,
        stages=len(backbone.stages),
        parameters=backbone.model.count_params(),
        last_stage=split_network(backbone, 1, config.model.head.pooling).trainable_part.count_params(),
        images_per_second=batch / statistics.median(times),
    )


def cost_table(costs: Iterable[Cost], batch: int, threads: int | None) -> Table:
    """Return a table with a row per backbone; speeds are medians over its batches."""
    import os

    from rich import box
    from rich.table import Table

    used = f"{threads} thread{'s' if threads > 1 else ''}" if threads else f"all {os.cpu_count()} cores"
    title = f"forward without the head, {batch} images a batch, {used}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("pixels", "stages", "parameters", "of the last stage", "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        speed = cost.images_per_second
        table.add_row(
            cost.name,
            str(cost.size),
            str(cost.stages),
            f"{cost.parameters:,}",
            f"{cost.last_stage:,}",
            f"{speed:.1f}" if speed < 100 else f"{speed:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
