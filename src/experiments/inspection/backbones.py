"""Parameters and speed of backbones on this machine, for `experiments backbones`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
from rich.table import Table

from experiments.config.schema import Config
from experiments.models.backbone import build_backbone
from experiments.models.network import inference_function, split_network
from experiments.system import hardware
from experiments.system.progress import plain_table


class Cost(NamedTuple):
    """Size and speed of one choice of the group `model`, without its head."""

    name: str
    size: int  # side length of the input [pixels]
    stages: int
    parameters: int
    last_stage: int  # parameters that unfrozen_blocks=1 trains besides the head
    images_per_second: float  # of the forward pass


def measure(config: Config, batch: int, seconds: float) -> Cost:
    """Build a configuration's backbone with random weights and measure its speed on noise.

    It is measured for at least so many seconds, and three batches, after a first one that is not counted.

    Raises:
        ConfigError: the backbone cannot be built, or split before its last block.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    backbone = build_backbone(config.model, config.data.image_size, config.trusted_packages, None)
    run = inference_function(split_network(backbone, 0, config.model.head.pooling).frozen_part)  # as feature_cache does
    size = config.data.image_size
    pixels = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 3)).astype("float32")
    run(pixels)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - began)
    last_stage = split_network(backbone, 1, config.model.head.pooling).trainable_part.count_params()
    parameters = backbone.model.count_params()
    speed = batch / statistics.median(times)
    return Cost(config.model.name, size, len(backbone.stages), parameters, last_stage, speed)


def cost_table(costs: Iterable[Cost], batch: int, threads: int | None) -> Table:
    """Return a table with a row per backbone; speeds are medians over its batches."""
    used = f"{threads} thread{'s' if threads > 1 else ''}" if threads else f"all {hardware.cores()} cores"
    title = f"forward without the head, {batch} images a batch, {used}"
    numbers = ("pixels", "stages", "parameters", "of the last stage", "images/s")
    table = plain_table(("model", *numbers), numbers, title=title, title_justify="left")
    for name, size, stages, parameters, last_stage, speed in costs:
        shown = f"{speed:.1f}" if speed < 100 else f"{speed:.0f}"
        table.add_row(name, str(size), str(stages), f"{parameters:,}", f"{last_stage:,}", shown)
    return table
