"""Networks are preprocessed, split at any block, and joined again without changing what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.applications.imagenet_utils import preprocess_input

from experiments.config.choices import shipped
from experiments.config.schema import ConvBlock, Dense, Head
from experiments.errors import ConfigError
from experiments.models import network, stages
from experiments.models.convnet import convnet
from experiments.models.head import dense_head, probabilities
from experiments.models.stages import Backbone

SIZE = 64
KINDS = ("rescale", "tf", "torch", "caffe", "none")
NAMES = ("convnet", "vgg16", "mobilenet_v2")


def images(count: int = 2) -> np.ndarray:
    """[count, 64, 64, 3] float32 in [0, 255]."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype("float32")


def head_config(dense: Mapping[str, Dense | None] | None = None, **values: float) -> Head:
    return Head(**{"pooling": "average", "dropout": 0.5, "l1": 0.0, "l2": 0.0, "dense": dense or {}, **values})  # type: ignore[arg-type]


def backbone_of(name: str, kind: str | None = None) -> Backbone:
    """A shipped backbone with random weights on 64-pixel images."""
    keras.utils.set_random_seed(0)
    yaml = shipped("model")[name]
    inputs = keras.Input((SIZE, SIZE, 3), name="pixels")
    tensor = network.preprocess(inputs, kind or yaml["preprocessing"])
    if name == "convnet":
        layers = {block: ConvBlock(**values) for block, values in yaml["layers"].items()}
        return Backbone(
            model := convnet(input_tensor=tensor, layers=layers), stages.named_stages(model, list(layers)), ""
        )
    options = {"input_tensor": tensor, "input_shape": (SIZE, SIZE, 3), "include_top": False, "weights": None}
    if name == "mobilenet_v2":
        model = keras.applications.MobileNetV2(alpha=yaml["alpha"], **options)
        for layer in model.layers:  # as after training: normalisation that does something, and no vanishing signal
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_variance.assign(np.full(layer.moving_variance.shape, 0.05))
                layer.moving_mean.assign(np.full(layer.moving_mean.shape, 0.01))
    else:
        model = keras.applications.VGG16(**options)
    return Backbone(model, stages.find_stages(model), "")


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {name: backbone_of(name) for name in NAMES}


@pytest.mark.parametrize("kind", ["tf", "torch", "caffe"])
def test_preprocessing_is_that_of_keras_applications(kind: str) -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    ours = np.asarray(keras.Model(inputs, network.preprocess(inputs, kind))(images()))
    np.testing.assert_allclose(ours, preprocess_input(images(), mode=kind), rtol=1e-4, atol=1e-4)


def test_rescale_divides_by_255_and_none_leaves_pixels() -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    ours = np.asarray(keras.Model(inputs, network.preprocess(inputs, "rescale"))(images()))
    np.testing.assert_allclose(ours, images() / 255, rtol=1e-5)
    assert network.preprocess(inputs, "none") is inputs


def test_a_stage_is_what_vgg_calls_a_block(backbones: dict[str, Backbone]) -> None:
    names = {name: [stage.name for stage in backbone.stages] for name, backbone in backbones.items()}
    assert names == {
        "convnet": ["block1", "block2", "block3"],
        "vgg16": [f"block{number}_conv1" for number in range(1, 6)],
        "mobilenet_v2": ["Conv1", "block_1_expand", "block_3_expand", "block_6_expand", "block_13_expand"],
    }


def test_a_block_is_not_mistaken_for_one_whose_name_begins_alike() -> None:
    inputs = x = keras.Input((4,))
    for name in ("block_16_a", "block_1_a", "block_1_b"):
        x = keras.layers.Dense(4, name=name)(x)
    model = keras.Model(inputs, x, name="tower")
    found = stages.named_stages(model, ["block_16", "block_1"])
    assert [(stage.name, stages.consumers(model, stage.entering)[0].name) for stage in found] == [
        ("block_16", "block_16_a"), ("block_1", "block_1_a"),
    ]  # fmt: skip
    assert stages.stage_of(model, found, "block_1_b").name == "block_1_b"
    with pytest.raises(ConfigError, match="model.blocks: must be in the network's order. Received: block_1, block_16"):
        stages.named_stages(model, ["block_1", "block_16"])
    with pytest.raises(ConfigError) as caught:
        stages.named_stages(model, ["block_2"])
    assert "'block_2'" in str(caught.value) and "tower" in str(caught.value) and "block_1_b" in str(caught.value)


@pytest.mark.parametrize(
    "normalises, most, stay", [(True, network.CONSTANTS, True), (True, 0, False), (False, network.CONSTANTS, False)]
)
def test_forward_is_the_output_of_the_model_and_where_it_normalises_its_weights_are_constants(
    normalises: bool, most: int, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    model = keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 3),
        *([keras.layers.BatchNormalization()] if normalises else []),
        keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(4),
    ])  # fmt: skip
    model.set_weights([rng.uniform(0.1, 1, array.shape) for array in model.get_weights()])
    given = rng.normal(size=(5, 8, 8, 3)).astype("float32")
    expected = np.asarray(model(given, training=False))
    assert expected.std() > 1
    monkeypatch.setattr(network, "CONSTANTS", most)
    run = network.inference_function(model)
    np.testing.assert_allclose(run(given), expected, rtol=1e-5)
    model.set_weights([np.zeros_like(array) for array in model.get_weights()])
    np.testing.assert_allclose(run(given[:2]), expected[:2] if stay else 0, rtol=1e-5)


@pytest.mark.parametrize(
    "name, unfrozen, first",
    [pytest.param(name, count, first, marks=pytest.mark.slow if name == "vgg16" and count else [])
     for name, firsts in {
        "convnet": ("pooling", "block3_conv", "block2_conv", "pixels"),
        "vgg16": ("pooling", "block5_conv1", "block4_conv1", "block3_conv1", "block2_conv1", "pixels"),
        "mobilenet_v2": ("pooling", "block_13_expand", "block_6_expand", "block_3_expand", "block_1_expand", "pixels"),
    }.items() for count, first in enumerate(firsts)]
    + [("vgg16", "all", "pixels"), ("vgg16", "block1", "pixels"), ("vgg16", "block5_conv2", "block5_conv2"),
       ("convnet", "block2", "block2_conv")]
    + [pytest.param("mobilenet_v2", f"block_{number}", f"block_{number}_expand",
                    marks=[] if number in (10, 16) else pytest.mark.slow) for number in range(1, 17)],
)  # fmt: skip
def test_split_at_every_stage_and_block(
    backbones: dict[str, Backbone], name: str, unfrozen: int | str, first: str
) -> None:
    backbone = backbones[name]
    whole = network.pooled(backbone, "average")
    prefix, suffix, network_split = network.split_network(backbone, unfrozen, "average")

    expected = np.asarray(whole(images(), training=False))
    assert expected.std() > 1e-4  # with constant outputs any network would pass
    np.testing.assert_allclose(suffix(prefix(images(), training=False), training=False), expected, atol=1e-4)

    assert network_split == first
    below, above = ({id(weight) for weight in part.weights} for part in (prefix, suffix))
    assert below | above == {id(weight) for weight in backbone.model.weights}
    assert not below & above
    assert prefix.count_params() + suffix.count_params() == backbone.model.count_params()
    assert bool(above) == (unfrozen != 0) and bool(below) == (network_split != "pixels")


def branches() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, name="one")(inputs)
    left, right = (keras.layers.Conv2D(3, 1, name=f"{name}_conv")(x) for name in ("left", "right"))
    x = keras.layers.Conv2D(3, 1, name="two")(keras.layers.Add(name="add")([left, right]))
    return keras.Model(inputs, keras.layers.Add(name="sum")([x, keras.layers.Conv2D(3, 1, name="past")(inputs)]))


@pytest.mark.parametrize("blocks, unfrozen, remedy", [
    (["one", "two"], 1, "cannot be split before 'two': .* unfrozen_blocks=all. Received: 1"),
    (None, "two", "cannot be split before 'two'"),
    (None, "add", "cannot be split before 'add'"),
    (None, 2, "must be at most 1, as functional has 1 stages "),
    (None, "three", "must be a number of stages, all, or .* Received: 'three'. .*inspect model --layers"),
    (None, "block_two", "Received: 'block_two'. Nearest: two."),
])  # fmt: skip
def test_where_no_split_is_possible_the_next_one_is_named(
    blocks: list[str] | None, unfrozen: int | str, remedy: str
) -> None:
    keras.utils.clear_session()
    model = branches()
    found = stages.named_stages(model, blocks) if blocks else stages.find_stages(model)
    with pytest.raises(
        ConfigError, match=rf"^regime.unfrozen_blocks: .*{remedy.replace(' unfrozen', ' regime.unfrozen')}"
    ):
        network.split_network(Backbone(model, found, ""), unfrozen, "average")
    assert network.split_network(Backbone(model, found, ""), "all", "average").split_point == "pixels"


def test_a_network_that_calls_a_layer_twice_is_trained_whole_or_not_at_all() -> None:
    """The features of the part before a split would be cached, and change with the part after it."""
    inputs = keras.Input((32, 32, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    maps = keras.layers.Conv2D(3, 3, strides=2, padding="same", name="below")(shared(inputs))
    maps = keras.layers.Conv2D(3, 3, strides=2, padding="same", name="above")(shared(maps))
    model = keras.Model(inputs, maps, name="mine")
    found = stages.find_stages(model)
    for unfrozen in (1, "above"):
        with pytest.raises(ConfigError, match="^regime.unfrozen_blocks: mine calls its layer 'shared' more than once"):
            stages.stage_of(model, found, unfrozen)
    assert stages.stage_of(model, found, "all").entering is model.inputs[0]


@pytest.mark.parametrize("pool", ["average", "max", "flatten"])
def test_features_are_pooled_in_the_precision_of_their_network(backbones: dict[str, Backbone], pool: str) -> None:
    """A sweep builds the networks of all jobs, each in its precision, before it computes their features."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        below, above = (network.split_network(backbones["convnet"], count, pool) for count in (0, 1))
        half = backbone_of("convnet")
    finally:
        keras.config.set_dtype_policy("float32")
    for model in (below.frozen_part, above.trainable_part):
        assert model.get_layer("pooling").compute_dtype == "float32"
    assert network.pooled(half, pool).get_layer("pooling").compute_dtype == "bfloat16"


def test_a_split_is_the_same_once_a_part_is_frozen() -> None:
    backbone = backbone_of("convnet")
    first = network.split_network(backbone, 1, "average")
    first.frozen_part.trainable = False
    again = network.split_network(backbone, 1, "average")
    assert again.split_point == first.split_point == "block3_conv"
    assert [layer.name for layer in again.trainable_part.layers[1:]] == ["block3_conv", "block3_pool", "pooling"]


def test_vgg16_has_the_parameters_of_the_paper(backbones: dict[str, Backbone]) -> None:
    assert backbones["vgg16"].model.count_params() == 14_714_688


@pytest.mark.parametrize("pool, features", [("flatten", 6 * 6 * 64), ("average", 64), ("max", 64)])
def test_pooling(backbones: dict[str, Backbone], pool: str, features: int) -> None:
    maps = np.asarray(backbones["convnet"].model(images()))
    expected = {"flatten": maps.reshape(2, -1), "average": maps.mean((1, 2)), "max": maps.max((1, 2))}[pool]
    pooled = network.pooled(backbones["convnet"], pool)
    assert pooled.output_shape == (None, features)
    np.testing.assert_allclose(pooled(images()), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_join_gives_probabilities(backbones: dict[str, Backbone], classes: int) -> None:
    head = dense_head(64, head_config(), classes)
    model = network.join(backbones["convnet"], "average", head)
    rows = np.asarray(model(images(5)))
    assert rows.shape == (5, classes)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    logits = np.asarray(head(network.pooled(backbones["convnet"], "average")(images(5))))
    if classes == 2:
        np.testing.assert_allclose(rows[:, 1], 1 / (1 + np.exp(-logits[:, 0])), atol=1e-6)
    else:
        np.testing.assert_allclose(rows, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-6)
    model = network.stack(network.pooled(backbones["convnet"], "average"), head, training=False)
    scores = network.predict_probabilities(model, images(5), batch_size=2)
    np.testing.assert_allclose(scores, rows, atol=1e-5)


def test_extreme_logits_give_finite_probabilities() -> None:
    for logits in (np.array([[200.0], [-200.0]], "float32"), np.array([[300.0, -300.0, 0.0]], "float32")):
        rows = np.asarray(probabilities(keras.ops.convert_to_tensor(logits)))
        np.testing.assert_allclose(rows.sum(axis=1), 1)


@pytest.mark.parametrize("training, moves", [(None, True), (False, False)])
def test_stack_decides_whether_batch_statistics_move(training: bool | None, moves: bool) -> None:
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization(name="norm")
    below = keras.Model(inputs, keras.layers.Dropout(0.5)(norm(inputs)))
    model = network.stack(below, dense_head(4, head_config(dropout=0.0), 2), training=training)
    assert {id(weight) for weight in model.trainable_variables} >= {id(norm.gamma), id(norm.beta)}
    statistics, gamma = norm.moving_mean.numpy(), norm.gamma.numpy()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.random.default_rng(0).normal(3, 1, (8, 4)), np.ones((8, 1)), verbose=0)
    assert bool(np.any(norm.moving_mean.numpy() != statistics)) is moves
    assert np.any(norm.gamma.numpy() != gamma)
    pair = [np.asarray(model(np.ones((2, 4), "float32") * [[1], [2]], training=True)) for _ in range(2)]
    assert bool(np.any(pair[0] != pair[1])) is moves  # the dropout below the head


def test_each_head_layer_may_set_its_own_dropout_and_penalties() -> None:
    dense = {"wide": Dense(units=8, dropout=0.1, l1=0.3, l2=0.0, activation="tanh"), "narrow": Dense(units=4)}
    head = dense_head(6, head_config(dense, dropout=0.5, l1=0.01, l2=0.02), 3)
    assert head.get_layer("wide_dropout").rate == 0.1 and head.get_layer("narrow_dropout").rate == 0.5

    def penalties(name: str) -> tuple[float, float]:
        regularizer = head.get_layer(name).kernel_regularizer
        return round(float(regularizer.l1), 6), round(float(regularizer.l2), 6)

    assert penalties("wide") == (0.3, 0.0)
    assert penalties("narrow") == penalties("logits") == (0.01, 0.02)
    assert head.get_layer("wide").activation is keras.activations.tanh
    assert head.output_shape == (None, 3)
    zero = dense_head(6, head_config({"wide": Dense(units=8, dropout=0.0, l1=0.0, l2=0.0)}, l2=0.02), 2)
    assert zero.get_layer("wide").kernel_regularizer is None and zero.get_layer("wide_dropout").rate == 0.0


def test_logits_are_float32_in_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        head = dense_head(6, head_config({"wide": Dense(units=8)}), 3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [head.get_layer(name).compute_dtype for name in ("wide", "logits")] == ["bfloat16", "float32"]
    assert head.output.dtype == "float32"


def test_a_head_without_hidden_layers_is_dropout_and_logits() -> None:
    head = dense_head(6, head_config(dropout=0.25), 2)
    assert [layer.name for layer in head.layers] == ["features", "dropout", "logits"]
    assert head.get_layer("dropout").rate == 0.25
    assert head.output_shape == (None, 1)
    assert head.count_params() == 7


def test_a_layer_of_the_head_that_is_null_is_left_out() -> None:
    dense = {"wide": None, "narrow": Dense(units=4)}
    names = ["features", "narrow", "narrow_dropout", "logits"]
    assert [layer.name for layer in dense_head(6, head_config(dense), 2).layers] == names
    alone = dense_head(6, head_config({"wide": None}, dropout=0.25), 2)
    assert [layer.name for layer in alone.layers] == ["features", "dropout", "logits"]
    assert alone.get_layer("dropout").rate == 0.25 and alone.count_params() == 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_predicts_the_same(tmp_path: Path, kind: str) -> None:
    model = network.join(backbone_of("convnet", kind), "average", dense_head(64, head_config(), 2))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.asarray(model(images())).std() > 0
    np.testing.assert_allclose(loaded(images()), model(images()), atol=1e-6)


def test_weights_hash_follows_values(backbones: dict[str, Backbone]) -> None:
    first, again = backbone_of("convnet").model, backbone_of("convnet").model
    assert network.weights_hash(first) == network.weights_hash(again)
    kernel = again.get_layer("block2_conv").kernel
    values = kernel.numpy()
    values[0, 0, 0, 0] = np.nextafter(values[0, 0, 0, 0], np.float32(9))
    kernel.assign(values)
    assert network.weights_hash(first) != network.weights_hash(again)
