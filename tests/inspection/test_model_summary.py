"""`inspect model`: its summary agrees with what a run trains, and with the counts of papers and libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from experiments.config.schema import Config
from experiments.inspection import model
from experiments.models.backbone import build_backbone

Read = Callable[..., Config]


def test_what_is_frozen_is_what_a_run_freezes(ended: Any, config: Read) -> None:
    summary = model.summarize_model(config(*ended.overrides), 2)
    reported = {row.name: not row.frozen for row in summary.rows if row.block != model.HEAD}
    del ended.trainable["pooling"]
    assert reported == ended.trainable and len(set(reported.values())) == 2
    assert summary.split_point == "block2_conv"


@pytest.mark.parametrize("regime, split_point, frozen", [
    ("scratch", None, []),
    ("bottleneck", "pooling", ["(input)", "block1", "block2", "block3"]),
    ("finetune", "block3_conv", ["(input)", "block1", "block2"]),
])  # fmt: skip
def test_blocks_are_in_order_and_the_regime_decides_which_are_frozen(
    regime: str, split_point: str | None, frozen: list[str], config: Read
) -> None:
    summary = model.summarize_model(config(f"regime={regime}", "model=convnet", "data.image_size=48"), 3)
    blocks = model.blocks(summary)
    assert [block.name for block in blocks] == ["(input)", "block1", "block2", "block3", "(head)"]
    assert [block.name for block in blocks if block.frozen] == frozen and summary.split_point == split_point
    head = blocks[-1]
    assert head.shape == (3,) and head.trained == head.parameters > 0
    (conv,) = [row for row in summary.rows if row.name == "block1_conv"]
    assert conv.shape == (46, 46, 32) and conv.parameters == 3 * 3 * 3 * 32 + 32
    assert conv.operations == 46 * 46 * 32 * 3 * 3 * 3
    assert conv.trained == (conv.parameters if regime == "scratch" else 0)


def test_the_sentences_have_what_is_trained_and_what_is_stored(config: Read) -> None:
    read = config("regime=finetune", "model=convnet", "data.image_size=48", "regime.activations=float16")
    summary = model.summarize_model(read, 3)
    trained, stored, forward = model.sentences(read, summary)
    moved, parameters = sum(row.trained for row in summary.rows), sum(row.parameters for row in summary.rows)
    assert trained == f"trained: {moved:,} of {parameters:,} parameters ({moved / parameters:.1%})"
    height, width, channels = summary.stored
    assert "before block3_conv; " in stored
    assert stored.endswith(f"{height} x {width} x {channels}, {2 * height * width * channels:,} bytes")
    below, total = (sum(row.operations or 0 for row in summary.rows if row.frozen or every) for every in (False, True))
    assert f"{model.readable(total)} multiply-adds an image, {model.readable(below)} ({below / total:.1%})" in forward


def test_weights_that_are_not_there_are_not_required(config: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", "/nowhere")
    read = config("regime=finetune", "model=mobilenet_v2", "model.weights=/nowhere/none.weights.h5")
    summary = model.summarize_model(read, 2)
    # TensorFlow's own table of MobileNetV2 has 59.2 million at this width and size, 1,000 classes among them.
    body = sum(row.operations or 0 for row in summary.rows if row.block != model.HEAD)
    assert body + 1280 * 1000 == pytest.approx(59.2e6, rel=0.005)
    normalised = [row for row in summary.rows if row.name == "Conv_1_bn"]
    assert normalised[0].trained == normalised[0].parameters / 2, "its statistics stay"
    assert model.blocks(summary)[-2].name == "block_13_expand" and not model.blocks(summary)[-2].frozen


@pytest.mark.parametrize("overrides", [
    ("model=convnet", "data.image_size=48", "model.layers.block2.separable=true"),
    pytest.param(("model=mobilenet_v2", "data.image_size=64"), marks=pytest.mark.slow),
    pytest.param(("model=efficientnet_v2_b0", "data.image_size=64"), marks=pytest.mark.slow),
    pytest.param(("model=resnet50", "data.image_size=64"), marks=pytest.mark.slow),
    pytest.param(("model=vgg16", "data.image_size=64"), marks=pytest.mark.slow),
])  # fmt: skip
def test_multiply_adds_are_half_of_what_tensorflows_profiler_counts(overrides: tuple[str, ...], config: Read) -> None:
    read = config("regime=scratch", *overrides)
    summary = model.summarize_model(read, 2)
    assert not [row.name for row in summary.rows if row.operations is None]
    network = build_backbone(read.model, read.data.image_size, read.trusted_packages, None).model
    run = tf.function(lambda pixels: network(pixels, training=False))
    traced = run.get_concrete_function(tf.TensorSpec((1, *network.input_shape[1:])))
    graph = convert_variables_to_constants_v2(traced).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation())
    kinds = ["Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2"]
    options.with_accounted_types(kinds).select(["float_ops"]).with_empty_output()
    counted = tf.compat.v1.profiler.profile(graph, cmd="op", options=options.build()).total_float_ops
    ours = sum(row.operations or 0 for row in summary.rows if row.block != model.HEAD)
    assert 2 * ours == pytest.approx(counted, rel=1e-3)


@pytest.mark.slow
def test_networks_inside_the_network_are_counted(config: Read) -> None:
    """Of its grouped convolutions TensorFlow's profiler sees nothing; Liu et al. (2022) give 4.5 G in their table 1."""
    summary = model.summarize_model(config("regime=scratch", "model=convnext_tiny"), 1000)
    assert not [row.name for row in summary.rows if row.operations is None]
    assert sum(row.operations or 0 for row in summary.rows) == pytest.approx(4.5e9, rel=0.02)


def test_tables_name_every_block_and_every_layer(config: Read) -> None:
    summary = model.summarize_model(config("regime=finetune", "model=convnet", "data.image_size=48"), 2)
    assert list(model.block_table(summary).columns[0].cells) == ["(input)", "block1", "block2", "block3", "(head)"]
    table = model.layer_table(summary)
    assert list(table.columns[0].cells) == [row.name for row in summary.rows]
    assert list(table.columns[6].cells)[-1] == "trained"
