"""Backbones and their stages, found from the graph: a stage holds all layers of one resolution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import keras

from experiments.config.messages import nearest_hint
from experiments.errors import ConfigError

SHRINKS = 1.5  # A stage begins where the resolution falls by this factor; convolutions without padding reduce it less.


class Stage(NamedTuple):
    """A part of a network that can be trained while everything before it is frozen."""

    name: str  # that of its first layer, or of the block in model.blocks
    position: int  # of its first operation in `model.operations`
    # [B, h, w, C]: the tensor that every path into the stage crosses. None: there is none, and no split is possible.
    entering: keras.KerasTensor | None


@dataclass(frozen=True)
class Backbone:
    """A network without its head, with its preprocessing inside."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> feature maps [B, h, w, C]
    stages: tuple[Stage, ...]  # in order; a stage ends where the next begins
    identity: str  # hash of the architecture and the weights' values


def find_stages(model: keras.Model) -> tuple[Stage, ...]:
    """Return the stages of a convolutional network, in order.

    A stage begins where the resolution has fallen. A split is possible at a tensor that every path from input to
    output crosses; where a network has no such tensor between two resolutions, they are one stage.
    """
    ways, operations, producers = split_tensors(model), list(model.operations), _producers(model)
    stages: list[Stage] = []
    resolution = 0.0
    for (start, entering), (stop, leaving) in pairwise(ways.items()):
        trained = [
            operation for operation in operations[start + 1 : stop + 1] if getattr(operation, "trainable_weights", None)
        ]
        if not trained or len(leaving.shape) != 4:
            continue
        height = max(leaving.shape[1] or 1, 1)
        if not stages or height * SHRINKS <= resolution:
            entering = _block_input(model, entering, trained[0])
            stages.append(Stage(consumers(model, entering)[0].name, producers[id(entering)] + 1, entering))
            resolution = height
    return tuple(stages)


def named_stages(model: keras.Model, blocks: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages that `model.blocks` names, in order.

    Raises:
        ConfigError: if no layer is named after a block, or if the blocks are out of order.
    """
    owners = [owner(operation.name, blocks) for operation in model.operations]
    if missing := [block for block in blocks if block not in owners]:
        raise ConfigError(
            f"model.blocks: no layer of {model.name} is named {missing[0]!r} or begins with '{missing[0]}_'. "
            f"Its layers: {', '.join(layer.name for layer in model.layers)}"
        )
    positions = [owners.index(block) for block in blocks]
    if positions != sorted(positions):
        raise ConfigError(f"model.blocks: must be in the network's order. Received: {', '.join(blocks)}")
    stages = []
    for number, (block, at) in enumerate(zip(blocks, positions, strict=True)):
        stage = _stage_at(model, block, at)
        before, after = owners[: stage.position], owners[stage.position :]
        # Layers of other blocks may be in a parallel branch, between the same two tensors.
        if {*before} & {*blocks[number:]} or {*after} & {*blocks[:number]}:
            stage = stage._replace(entering=None)
        stages.append(stage)
    return tuple(stages)


def _stage_at(model: keras.Model, name: str, at: int) -> Stage:
    """Return the stage that begins with an operation and with those between it and the tensor that enters it."""
    entering = _inputs(model.operations[at])
    if len(entering) == 1 and any(entering[0] is tensor for tensor in split_tensors(model).values()):
        return Stage(name, _producers(model)[id(entering[0])] + 1, entering[0])
    return Stage(name, at, None)


def stage_of(model: keras.Model, stages: Sequence[Stage], unfrozen: int | str) -> Stage:
    """Return the first stage that is trained; the whole network if no layer before the stage has weights.

    Args:
        unfrozen: `regime.unfrozen_blocks`: how many stages from the last, `all`, or the name of a layer or block.

    Raises:
        ConfigError: if there are fewer stages, no such layer, or no split is possible there; the message has what is
            possible.
    """
    whole = Stage("pixels", 0, model.inputs[0])
    if unfrozen == "all":
        return whole
    if shared := [layer["name"] for layer in model.get_config().get("layers", ()) if len(layer["inbound_nodes"]) > 1]:
        raise ConfigError(
            f"regime.unfrozen_blocks: {model.name} calls its layer {shared[0]!r} more than once, and the parts before "
            "and after a split would share it. Use regime.unfrozen_blocks=all, or a layer of its own for every call. "
            f"Received: {unfrozen}"
        )
    if isinstance(unfrozen, int):
        if unfrozen > len(stages):
            names = ", ".join(stage.name for stage in stages)
            raise ConfigError(
                f"regime.unfrozen_blocks: must be at most {len(stages)}, as {model.name} has {len(stages)} stages "
                f"({names}), or all, or the name of a layer. Received: {unfrozen}"
            )
        stage = stages[len(stages) - unfrozen]
    else:
        stage = _named(model, stages, unfrozen)
    if stage.entering is None:
        possible = [(at, tensor) for at, tensor in split_tensors(model).items() if at < stage.position]
        name = consumers(model, possible[-1][1])[0].name if len(possible) > 1 else "all"
        raise ConfigError(
            f"regime.unfrozen_blocks: {model.name} cannot be split before {stage.name!r}: a branch passes it by, or "
            f"several tensors enter it. The next possible split before it: regime.unfrozen_blocks={name}. "
            f"Received: {unfrozen}"
        )
    return stage if any(map(_has_weights, list(model.operations)[: stage.position])) else whole


def _named(model: keras.Model, stages: Sequence[Stage], name: str) -> Stage:
    """Return the part of a network that begins at a layer or block, which need not begin a stage."""
    if known := [stage for stage in stages if stage.name == name]:
        return known[0]
    names = {at: operation.name for at, operation in enumerate(model.operations) if _inputs(operation)}
    found = [at for at in names if names[at] == name] or [at for at in names if names[at].startswith(f"{name}_")]
    if not found:
        hint = nearest_hint(name, [layer.name for layer in model.layers])
        raise ConfigError(
            "regime.unfrozen_blocks: must be a number of stages, all, or the name of a layer or block of "
            f"{model.name}. Received: {name!r}{hint}. `experiments inspect model --layers` with the same overrides "
            "lists the layers"
        )
    return _stage_at(model, names[found[0]], found[0])


def stage_numbers(model: keras.Model, stages: Sequence[Stage]) -> dict[str, int]:
    """Return each operation's stage by the operation's name: an index into `stages`, -1 before the first."""
    return {
        operation.name: sum(stage.position <= at for stage in stages) - 1
        for at, operation in enumerate(model.operations)
    }


def owner(layer: str, blocks: Iterable[str]) -> str | None:
    """Return the longest of the blocks whose name is that of a layer, or begins it and is followed by an underscore."""
    return max((block for block in blocks if f"{layer}_".startswith(f"{block}_")), key=len, default=None)


def split_tensors(model: keras.Model) -> dict[int, keras.KerasTensor]:
    """Return the tensors that every path crosses, by the position in `model.operations` of what outputs them."""
    operations = list(model.operations)
    last = {id(tensor): at for at, operation in enumerate(operations) for tensor in _inputs(operation)}
    last |= {id(tensor): len(operations) for tensor in model.outputs}
    live: dict[int, keras.KerasTensor] = {}
    found = {}
    for at, operation in enumerate(operations):
        live |= {id(tensor): tensor for tensor in _outputs(operation)}
        live = {key: tensor for key, tensor in live.items() if last.get(key, -1) > at}
        if len(live) == 1:
            (found[at],) = live.values()
    return found


def consumers(model: keras.Model, tensor: keras.KerasTensor) -> list[keras.Operation]:
    """Return the operations that have a tensor as an input."""
    return [operation for operation in model.operations if any(tensor is other for other in _inputs(operation))]


def _block_input(model: keras.Model, tensor: keras.KerasTensor, first: keras.Operation) -> keras.KerasTensor:
    """Return the tensor that enters a stage's first block, which may begin before the resolution falls.

    Padding belongs to the convolution after it, and the 1x1 expansion of an inverted residual to its depthwise
    convolution: the input of the expansion is linear.
    """
    operations, producers = list(model.operations), _producers(model)

    def producer(of: keras.KerasTensor) -> keras.Operation:
        return operations[producers[id(of)]]

    while isinstance(producer(tensor), keras.layers.ZeroPadding2D):
        (tensor,) = _inputs(producer(tensor))
    if isinstance(first, keras.layers.DepthwiseConv2D):
        layer = producer(tensor)
        while isinstance(layer, keras.layers.Activation | keras.layers.ReLU | keras.layers.BatchNormalization):
            layer = producer(_inputs(layer)[0])
        if isinstance(layer, keras.layers.Conv2D) and set(layer.kernel_size) == {1}:
            (linear,) = _inputs(layer)
            if isinstance(producer(linear), keras.layers.BatchNormalization | keras.layers.Add):
                return linear
    return tensor


def _producers(model: keras.Model) -> dict[int, int]:
    """Return the position of the operation that outputs each tensor, by the id of the tensor."""
    return {id(tensor): at for at, operation in enumerate(model.operations) for tensor in _outputs(operation)}


def _inputs(operation: keras.Operation) -> list[keras.KerasTensor]:
    if isinstance(operation, keras.layers.InputLayer):  # whose input is its own output
        return []
    # The attribute `input` of a nested model is the tensor inside of that model.
    found: list[keras.KerasTensor] = keras.tree.flatten(keras.Operation.input.fget(operation))
    return found


def _outputs(operation: keras.Operation) -> list[keras.KerasTensor]:
    found: list[keras.KerasTensor] = keras.tree.flatten(keras.Operation.output.fget(operation))
    return found


def _has_weights(operation: keras.Operation) -> bool:
    """Return whether an operation has weights to train; a split must not depend on whether they are frozen now."""
    return bool(getattr(operation, "weights", None)) and not isinstance(operation, keras.layers.Normalization)
