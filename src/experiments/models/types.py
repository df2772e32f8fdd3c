"""Data class of a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from experiments.models.stages import Stage


@dataclass(frozen=True)
class Backbone:
    """A network without its head, with its preprocessing inside."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> feature maps [B, h, w, C]
    stages: tuple[Stage, ...]  # in order; a stage ends where the next begins
    identity: str  # hash of the architecture and the weights' values
