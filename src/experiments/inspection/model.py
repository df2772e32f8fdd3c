"""Model summary of `experiments inspect model`: layers and blocks with shapes, parameters and multiply-adds.

It shows which parts are frozen and which are trained; the weights are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.table import Table

from experiments.config.schema import Config
from experiments.config.targets import resolve
from experiments.inspection.inspection import Inspection
from experiments.models.backbone import build_backbone
from experiments.models.head import POOLING
from experiments.models.network import split_network
from experiments.models.stages import stage_numbers
from experiments.regimes.build import build_head
from experiments.regimes.declaration import Trains, declaration_of
from experiments.reports.figure_style import PALETTE, QUIET, STYLE
from experiments.system.progress import plain_table

TRAINED, FROZEN = PALETTE[1], "#9db4c8"
COSTS = ("parameters", "multiply-adds")  # columns of the tables
BEFORE, HEAD = "(input)", "(head)"  # names for the layers before the first block and after the last one


class LayerRow(NamedTuple):
    """One layer of the network, or the totals of a block."""

    block: str  # the backbone's block, BEFORE or HEAD
    name: str
    kind: str  # its class
    shape: tuple[int, ...]  # of its output for one image
    parameters: int
    trained: int  # the number of parameters that the optimizer changes in the last phase
    frozen: bool  # whether the layer belongs to the frozen part in that phase, even if it has no parameters
    operations: int | None  # multiply-adds of its kernels for one image; None for layer classes that are not counted
    layers: int = 1

    @property
    def state(self) -> str:
        return ("frozen" if self.frozen else "trained") if self.parameters else ""


class ModelSummary(NamedTuple):
    """The network in the state in which the last phase of a run trains it."""

    rows: tuple[LayerRow, ...]  # in the order of the graph, the head's last
    trains: Trains | None  # None: the regime does not declare it
    split_point: str | None  # the layer after the split point; POOLING: pooled features are cached; None: no split
    stored: tuple[int, ...]  # shape of the features of one image at the split point


def inspect(config: Config, *, classes: int, layers: bool) -> Inspection:
    """Show the network's blocks, or with `layers` its layers: parameters, multiply-adds, and what is trained."""
    summary = summarize_model(config, classes)
    lines: list[str | Table] = [
        layer_table(summary) if layers else block_table(summary),
        f"{config.model.name}, {config.data.image_size} pixels, {classes} classes; weights are not read",
        *sentences(config, summary),
    ]
    name, facts = f"model-{config.model.name}", {"classes": str(classes)}
    return Inspection(config, name, lines, lambda: draw(config, summary), facts)


def summarize_model(config: Config, classes: int) -> ModelSummary:
    """Build the network with random weights, and a head of so many classes, and return its summary.

    Raises:
        ConfigError: the network cannot be built, or cannot be split at the configured split point.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    # No weights are read, whatever the configuration names, as they do not change the structure.
    backbone = build_backbone(config.model, config.data.image_size, config.trusted_packages, None)
    trains = declaration_of(resolve(config.trusted_packages, "regime", config.regime.target)).trains
    divided = split_network(backbone, trains.unfrozen(config) if trains else "all", config.model.head.pooling)
    trained = {layer.name for layer in divided.trainable_part.layers}
    numbers = stage_numbers(backbone.model, backbone.stages)
    names = [*(stage.name for stage in backbone.stages), BEFORE]
    rows = [layer_row(layer, names[numbers[layer.name]], layer.name in trained) for layer in backbone.model.layers]
    head = build_head(config.model.head, backbone, config.seed, classes)
    pool = split_network(backbone, 0, config.model.head.pooling).frozen_part.get_layer(POOLING)
    rows += [layer_row(layer, HEAD, True) for layer in (pool, *head.layers)]
    if not divided.frozen:
        return ModelSummary(tuple(rows), trains, None, ())
    return ModelSummary(tuple(rows), trains, divided.split_point, tuple(divided.frozen_part.output_shape[1:]))


def layer_row(layer: keras.Layer, block: str, trained: bool) -> LayerRow:
    shape = tuple(layer.output.shape[1:])
    moved = sum(math.prod(weight.shape) for weight in layer.trainable_weights) if trained else 0
    cost = operations(layer, shape)
    return LayerRow(block, layer.name, type(layer).__name__, shape, layer.count_params(), moved, not trained, cost)


def operations(layer: keras.Layer, shape: Sequence[int]) -> int | None:
    """Return the multiply-adds of a layer's kernels for one image, as papers count them; None if that is unknown.

    Normalisation, activations, pooling and additions count as 0. The shape is that of the layer's output for one image.
    """
    if isinstance(layer, keras.Model):  # a nested network
        inner = [operations(part, part.output.shape[1:]) for part in layer.layers]
        known = [count for count in inner if count is not None]
        return sum(known) if len(known) == len(inner) else None
    if isinstance(layer, keras.layers.SeparableConv2D):
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    elif isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D | keras.layers.Dense):
        kernels = [layer.kernel]
    else:
        return None if any("kernel" in weight.name for weight in layer.weights) else 0
    return math.prod(shape[:-1]) * sum(math.prod(map(int, kernel.shape)) for kernel in kernels)


def blocks(summary: ModelSummary) -> list[LayerRow]:
    """Return the totals of the blocks in order, including BEFORE and HEAD."""
    found = []
    for name in dict.fromkeys(row.block for row in summary.rows):
        members = [row for row in summary.rows if row.block == name]
        parameters, trained = sum(row.parameters for row in members), sum(row.trained for row in members)
        operations = sum(row.operations or 0 for row in members)
        frozen = all(row.frozen for row in members)
        found.append(LayerRow(name, name, "", members[-1].shape, parameters, trained, frozen, operations, len(members)))
    return found


def split_block(summary: ModelSummary) -> str | None:
    """Return the block after the split point; None if there is no split point."""
    if summary.split_point == POOLING:
        return HEAD
    return next((row.block for row in summary.rows if row.name == summary.split_point), None)


def sentences(config: Config, summary: ModelSummary) -> list[str]:
    """Return sentences about the trained parameters, the split point, and the multiply-adds per image."""
    rows, regime = summary.rows, config.regime.name
    parameters, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    total = sum(row.operations or 0 for row in rows)
    below = sum(row.operations or 0 for row in rows if row.frozen)
    lines = [f"trained: {trained:,} of {parameters:,} parameters ({trained / parameters:.1%})"]
    if summary.split_point is None:
        what = "trains the whole network" if summary.trains else "does not declare what it trains: all, as it is shown"
        lines.append(f"split point: none, regime={regime} {what}")
        lines.append(f"forward: {readable(total)} multiply-adds an image, every epoch")
    else:
        where = "above the last block" if summary.split_point == POOLING else f"before {summary.split_point}"
        numbers = math.prod(summary.stored)
        lines.append(
            f"split point: {where}; stored there for each image: {_shape(summary.stored)}, "
            f"{numbers * np.dtype(config.regime.activations).itemsize:,} bytes"
        )
        lines.append(
            f"forward: {readable(total)} multiply-adds an image, {readable(below)} ({below / total:.1%}) of it below "
            "the split point: once for each image (and view); the rest every epoch"
        )
    unknown = [row.name for row in rows if row.operations is None]
    if unknown:
        lines.append(f"not counted: {', '.join(unknown)}")
    return lines


def readable(count: int) -> str:
    """Format a count with a unit, for example 12,300,000 as 12.3 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return str(count)


def block_table(summary: ModelSummary) -> Table:
    """Return the table with one row per block and a rule at the split point."""
    table = plain_table(("block", "layers", "output", *COSTS, ""), ("layers", *COSTS))
    edge = split_block(summary)
    for block in blocks(summary):
        if block.name == edge:
            table.add_section()
        counts = f"{block.layers}", _shape(block.shape), f"{block.parameters:,}", readable(block.operations or 0)
        table.add_row(block.name, *counts, block.state)
    return table


def layer_table(summary: ModelSummary) -> Table:
    """Return the table with one row per layer and rules between blocks."""
    table = plain_table(("layer", "kind", "block", "output", *COSTS, ""), COSTS)
    for _, rows in groupby(summary.rows, key=lambda row: row.block):
        table.add_section()
        for row in rows:
            cost = "not counted" if row.operations is None else readable(row.operations) if row.operations else ""
            values = _shape(row.shape), f"{row.parameters:,}" if row.parameters else "", cost, row.state
            table.add_row(row.name, row.kind, row.block, *values)
    return table


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@STYLE
def draw(config: Config, summary: ModelSummary) -> Figure:
    """Draw each block's parameters and multiply-adds as bars, coloured by frozen or trained, with the split point."""
    found = [block for block in blocks(summary) if block.parameters or block.operations]
    figure = Figure(figsize=(9, 1.9 + 0.27 * len(found)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [block.name for block in found]
    colors = [FROZEN if block.frozen else TRAINED for block in found]
    edge = split_block(summary)
    for panel, title, values in (
        (panels[0], "parameters", [block.parameters for block in found]),
        (panels[1], "multiply-adds for an image", [block.operations or 0 for block in found]),
    ):
        bars = panel.barh(range(len(found)), values, color=colors, height=0.72)
        panel.bar_label(bars, [readable(value) for value in values], padding=3, fontsize=8, color="#444444")
        panel.set(title=f"{title}: {readable(sum(values))}", xticks=[])
        panel.margins(x=0.18)
        panel.grid(visible=False)
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(axis="y", length=0)
        if edge in names:
            panel.axhline(names.index(edge) - 0.5, color=QUIET, linestyle="--", linewidth=1.2)
    panels[0].set_yticks(range(len(found)), names)
    panels[0].set_ylim(len(found) - 0.4, -0.6)  # The axis is reversed, so that the input is at the top.
    handles: list[Artist] = [Patch(color=TRAINED, label="trained")]
    if summary.split_point:
        line = Line2D([], [], color=QUIET, linestyle="--", linewidth=1.2, label="features are cached here")
        handles += [Patch(color=FROZEN, label="frozen"), line]
    figure.legend(handles=handles, loc="outside lower right", ncols=3)
    title = f"{config.model.name}, regime={config.regime.name}"
    if summary.split_point not in (None, POOLING):
        title += f", unfrozen_blocks={config.regime.unfrozen_blocks}"
    figure.suptitle(title, fontsize=11)
    return figure
