"""VGG16 with random weights at the tutorial's 150 pixels: the right layers move, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.config import schema
from experiments.regimes.build import build
from experiments.run import read_data
from experiments.system.progress import Terminal
from experiments.training.types import EpochRecord, RunComponents, TrainingContext

LAST_BLOCKS = {
    1: ["block5_conv1", "block5_conv2", "block5_conv3"],
    2: ["block4_conv1", "block4_conv2", "block4_conv3", "block5_conv1", "block5_conv2", "block5_conv3"],
}


def weights_by_layer(components: RunComponents) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in components.backbone.model.layers if layer.weights}


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["bottleneck", "finetune-1", "finetune-2"])
def test_two_epochs_move_the_unfrozen_blocks_and_no_others(
    regime: str, config: Callable[..., schema.Config], photographs: Path
) -> None:
    from rich.console import Console

    name, _, unfrozen = regime.partition("-")
    overrides = [f"regime.unfrozen_blocks={unfrozen}", "regime.views=1"] if unfrozen else []
    checked = config(
        "model=vgg16", "model.weights=null", "data=folder", f"data.root={photographs}", f"regime={name}", "epochs=2",
        "regime.head_epochs=2", "data.limit.train=30", "data.limit.validation=10", *overrides,
    )  # fmt: skip
    components = build(checked, {})
    assert components.backbone.model.count_params() == 14_714_688
    assert checked.data.image_size == 150
    before = weights_by_layer(components)
    records: list[EpochRecord] = []
    dataset = read_data(components)
    result = components.regime(components, dataset, TrainingContext(Terminal(Console(quiet=True)), records.append))

    after = weights_by_layer(components)
    moved = [
        layer
        for layer, values in after.items()
        if any(not np.array_equal(old, new) for old, new in zip(before[layer], values, strict=True))
    ]
    assert moved == (LAST_BLOCKS[int(unfrozen)] if unfrozen else [])
    assert [record.phase for record in records] == ["head"] * 2 + (["finetune"] * 2 if unfrozen else [])
    joined = result.model.predict_on_batch(dataset.validation.pixels[:].astype("float32"))
    np.testing.assert_allclose(joined, result.scores["validation"], atol=1e-4)
