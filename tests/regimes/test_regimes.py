"""The three regimes on small synthetic images: only the right layers train; the joined model's scores are reported."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import composition
import keras
import numpy as np
import pytest
from damage import flip_bit
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console

from experiments.config import schema
from experiments.config.identity import head_run
from experiments.data.types import Dataset
from experiments.images import decoder
from experiments.models import network
from experiments.regimes import bottleneck, feature_cache, finetune
from experiments.regimes.build import build
from experiments.regimes.declaration import declaration_of
from experiments.run import read_data
from experiments.system.private_api import flatten_layers
from experiments.system.progress import Terminal
from experiments.training import checkpoints
from experiments.training.types import EpochRecord, PhaseInputs, RunComponents, TrainingContext, TrainingResult

TIMES = ("seconds", "images_per_second", "input_wait")
CONVNET = ("model=convnet", "data.image_size=48", "model.head.pooling=average")
NETWORKS = {
    "convnet": CONVNET,
    "normalised": (*CONVNET, "model.layers.block3.batch_norm=true"),
    "mobilenet_v2": ("model=mobilenet_v2", "data.image_size=64"),
}
LARGE = pytest.param("mobilenet_v2", marks=pytest.mark.slow)
PARTS = ("expand", "expand_BN", "depthwise", "depthwise_BN", "project", "project_BN")
# By name, written down here and not computed: the layers of the last stages.
LAST = {f"block_{number}_{part}" for number in range(13, 17) for part in PARTS} | {"Conv_1", "Conv_1_bn"}
UNFROZEN = {
    ("normalised", 1): {"block3_conv", "block3_norm"},
    ("normalised", 2): {"block2_conv", "block3_conv", "block3_norm"},
    ("normalised", "all"): {"block1_conv", "block2_conv", "block3_conv", "block3_norm"},
    ("mobilenet_v2", 1): LAST,
    ("mobilenet_v2", 2): LAST | {f"block_{number}_{part}" for number in range(6, 13) for part in PARTS},
    ("mobilenet_v2", "block_16"): {"Conv_1", "Conv_1_bn"} | {f"block_16_{part}" for part in PARTS},
}
STATISTICS = ("moving_mean", "moving_variance")
Weights = dict[str, np.ndarray]  # "layer/weight" -> value


class Done(NamedTuple):
    """A regime that has run."""

    components: RunComponents
    dataset: Dataset
    result: TrainingResult
    received: list[EpochRecord]
    before: Weights  # of the backbone
    ran: list[int]  # images in each batch that passed a frozen part to fill the feature cache

    @property
    def after(self) -> Weights:
        return weights_of(self.components.backbone.model)

    @property
    def head(self) -> Weights:
        return weights_of(self.result.model.get_layer("head"))


def weights_of(model: keras.Model) -> Weights:
    return {f"{layer.name}/{variable.name}": variable.numpy() for layer in model.layers for variable in layer.weights}


def configured(root: Path, outputs: Path, *overrides: str) -> schema.Config:
    return composition.configured(
        "data=folder", f"data.root={root}", f"outputs={outputs}", "tracking=none", "model.weights=null",
        "batch_size=8", "epochs=2", "regime.head_epochs=2", "regime.views=2", *overrides,
    )  # fmt: skip


def built(root: Path, outputs: Path, *overrides: str) -> RunComponents:
    return build(configured(root, outputs, *overrides), {})


def run_regime(root: Path, outputs: Path, *overrides: str) -> Done:
    """Builds, reads and trains in this process, with random backbone weights unless the overrides give some."""
    components = built(root, outputs, *overrides)
    dataset = read_data(components)
    received: list[EpochRecord] = []
    ran: list[int] = []
    before = weights_of(components.backbone.model)
    with pytest.MonkeyPatch.context() as patch:

        def listening(models: Sequence[keras.Model]) -> Callable[[np.ndarray], list[np.ndarray]]:
            run = network.inference_functions(models)

            def heard(inputs: np.ndarray) -> list[np.ndarray]:
                ran.append(len(inputs))
                return run(inputs)

            return heard

        patch.setattr(feature_cache, "inference_functions", listening)
        result = components.regime(components, dataset, TrainingContext(Terminal(Console(quiet=True)), received.append))
    return Done(components, dataset, result, received, before, ran)


@pytest.fixture(scope="module")
def once(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """`once("normalised", "regime=finetune", ...)`: that run, one for all who ask; one store."""
    outputs = tmp_path_factory.mktemp("regimes")

    @functools.cache
    def body(name: str) -> Path:
        """Random weights, but statistics as after training: without, so deep a network lets no signal through."""
        path = outputs / f"{name}.weights.h5"
        model = built(drawn, outputs, *NETWORKS[name], "regime=bottleneck").backbone.model
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0  # takes a batch's statistics as they are
        model(np.random.default_rng(0).uniform(0, 255, (24, *model.input_shape[1:])).astype("float32"), training=True)
        model.save_weights(path)
        return path

    @functools.cache
    def run(name: str, *overrides: str) -> Done:
        return run_regime(drawn, outputs, *NETWORKS[name], f"model.weights={body(name)}", *overrides)

    return run


def finetuned(
    once: Callable[..., Done], name: str = "normalised", unfrozen: int | str = 1, views: int = 2, *overrides: str
) -> Done:
    settings = [f"regime.unfrozen_blocks={unfrozen}", f"regime.views={views}", *overrides]
    return once(name, "regime=finetune", "optimizer.lr=0.05", "augmentation=light", *settings)


def curves(history: tuple[EpochRecord, ...]) -> list[tuple[int, str, int, dict[str, float]]]:
    """A history without its times."""
    return [
        (epoch.step, epoch.phase, epoch.epoch, {key: value for key, value in epoch.metrics.items() if key not in TIMES})
        for epoch in history
    ]


def changed(before: Weights, after: Weights) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def assert_sound(done: Done) -> None:
    """Scores are those of the joined model, for every split; the history is what was recorded."""
    trains_on_features = done.components.config.regime.name == "bottleneck"  # whose training images' scores are free
    assert set(done.result.scores) == {"validation", "test"} | ({"train"} if trains_on_features else set())
    for images in (done.dataset.validation, done.dataset.test, *([done.dataset.train] * trains_on_features)):
        assert images is not None
        scores = done.result.scores[images.split]
        assert scores.shape == (len(images), len(done.dataset.classes)) and scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
        whole = done.result.model.predict_on_batch(images.pixels[:].astype("float32"))
        np.testing.assert_allclose(scores, whole, atol=1e-4)
        assert scores.std() > 1e-6  # the scores differ between images
    assert curves(tuple(done.received)) == curves(done.result.history)
    last = done.result.history[-1].metrics["validation_accuracy"]
    accuracy = (done.result.scores["validation"].argmax(axis=1) == done.dataset.validation.labels).mean()
    assert accuracy == pytest.approx(last)


@pytest.mark.parametrize("name", ["normalised", LARGE])
def test_scratch_trains_everything(once: Callable[..., Done], name: str) -> None:
    done = once(name, "regime=scratch", "augmentation=light")
    assert_sound(done)
    assert changed(done.before, done.after) == set(done.before)  # BatchNorm's statistics, too
    assert [(epoch.step, epoch.phase) for epoch in done.result.history] == [(0, "scratch"), (1, "scratch")]
    assert any(key.endswith(STATISTICS) for key in done.before)


@pytest.mark.parametrize("name", ["normalised", LARGE])
def test_bottleneck_trains_the_head_only(once: Callable[..., Done], name: str) -> None:
    done = once(name, "regime=bottleneck")
    assert_sound(done)
    assert changed(done.before, done.after) == set()
    fresh = weights_of(done.components.head(2))
    moved = changed(fresh, done.head)
    assert {key for key in moved if "/seed" not in key} == {key for key in fresh if "/seed" not in key}
    assert [(epoch.step, epoch.phase) for epoch in done.result.history] == [(0, "head"), (1, "head")]


@pytest.mark.parametrize(
    "name, unfrozen, views",
    [
        ("normalised", 1, 0), pytest.param("normalised", 2, 1, marks=pytest.mark.slow), ("normalised", 1, 2),
        ("normalised", "all", 1),
        *(pytest.param("mobilenet_v2", *given, marks=pytest.mark.slow) for given in ((1, 2), (2, 0), ("block_16", 1))),
    ],
)  # fmt: skip
def test_finetune_moves_the_last_stages_and_no_others(
    once: Callable[..., Done], name: str, unfrozen: int | str, views: int
) -> None:
    bottleneck_head = once(name, "regime=bottleneck").head
    done = finetuned(once, name, unfrozen, views)
    assert_sound(done)
    wanted = {
        key for key in done.before if key.split("/")[0] in UNFROZEN[name, unfrozen] and not key.endswith(STATISTICS)
    }
    assert changed(done.before, done.after) == wanted
    assert unfrozen != "all" or not done.ran, "nothing is stored"
    assert [(epoch.step, epoch.phase, epoch.epoch) for epoch in done.result.history] == [
        (0, "head", 0), (1, "head", 1), (2, "finetune", 0), (3, "finetune", 1),
    ]  # fmt: skip
    moved = changed(bottleneck_head, done.head)
    assert {key for key in moved if "/seed" not in key} == {key for key in done.head if "/seed" not in key}


@pytest.mark.slow  # that nothing is stored is above
def test_where_nothing_is_frozen_nothing_is_stored_and_every_epoch_is_augmented_anew(once: Callable[..., Done]) -> None:
    once("normalised", "regime=bottleneck")  # which leaves the head
    whole, fresh = finetuned(once, unfrozen="all", views=1), finetuned(once, unfrozen=3, views=0)
    assert not whole.ran and not fresh.ran
    assert changed(whole.after, fresh.after) == changed(whole.head, fresh.head) == set()


@pytest.mark.usefixtures("heads_stay_new")
def test_each_stage_learns_slower_than_the_one_above_it(small: Callable[..., Done]) -> None:
    """Plain gradient descent, one step: every weight moves by its gradient times its own rate."""
    one_step = ("regime=finetune", "augmentation=none", "regime.unfrozen_blocks=all", "epochs=1", "batch_size=32",
                "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.01")  # fmt: skip
    alike, decayed = small(*one_step), small(*one_step, "regime.lr_decay=0.5")
    assert changed(alike.head, decayed.head) == set()
    for block, factor in (("block1", 0.25), ("block2", 0.5), ("block3", 1.0)):
        for weight in ("kernel", "bias"):
            name = f"{block}_conv/{weight}"
            moved, slower = (done.after[name] - done.before[name] for done in (alike, decayed))
            assert np.abs(moved).max() > 1e-7
            np.testing.assert_allclose(slower, moved * factor, rtol=1e-3, atol=1e-8)


def test_layers_before_the_first_stage_learn_as_slowly_as_it(drawn: Path, store: Path) -> None:
    backbone = built(drawn, store, *NETWORKS["convnet"], "model.blocks=[block2,block3]").backbone
    factors = finetune.rate_factors(backbone, 0.25)
    found = [factors.get(id(backbone.model.get_layer(f"block{number}_conv").kernel), 1) for number in (1, 2, 3)]
    assert found == [0.25, 0.25, 1]


def test_finetune_finds_the_head_that_bottleneck_trained(once: Callable[..., Done]) -> None:
    head = once("normalised", "regime=bottleneck")
    tuned = finetuned(once)
    assert tuned.result.facts == {"head_source": "head cache"}
    assert tuned.result.history[:2] == head.result.history  # with its own timestamps
    assert tuned.result.head_scores is not None
    np.testing.assert_allclose(tuned.result.head_scores, head.result.scores["validation"], atol=1e-5)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def small(drawn: Path, store: Path) -> Callable[..., Done]:
    """A run of the convnet with a store of its own."""
    return lambda *overrides: run_regime(drawn, store, *NETWORKS["convnet"], "optimizer.lr=0.05", *overrides)


@pytest.fixture
def heads_stay_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take heads as trained that are as they were made: for tests of something else."""
    monkeypatch.setattr(bottleneck, "fit", lambda *_: ())


@pytest.fixture(scope="module")
def tuned(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finetune run of the convnet, the first in its store."""
    outputs = tmp_path_factory.mktemp("tuned")
    return run_regime(drawn, outputs, *NETWORKS["convnet"], "optimizer.lr=0.05", "regime=finetune")


@pytest.fixture
def first(tuned: Done, store: Path) -> Done:
    """That run, with a copy of what it has stored as this test's store."""
    shutil.copytree(tuned.components.cache, store / "cache")
    return tuned


def test_a_second_finetune_finds_head_and_activations(first: Done, small: Callable[..., Done]) -> None:
    second = small("regime=finetune")
    assert first.result.facts == {"head_source": "trained in this run"}
    assert second.result.facts == {"head_source": "head cache"}
    assert first.ran and not second.ran  # the frozen part did not run again
    assert second.result.history[:2] == first.result.history[:2]
    assert curves(second.result.history) == curves(first.result.history)
    assert len(second.received) == 4  # the head's epochs are reported, too
    for split in ("validation", "test"):
        np.testing.assert_array_equal(second.result.scores[split], first.result.scores[split])
    assert changed(first.after, second.after) == changed(first.head, second.head) == set()


@pytest.fixture
def prepared(drawn: Path, store: Path, heads_stay_new: None) -> Callable[..., PhaseInputs]:
    """What a regime trains in its last phase."""

    def call(*overrides: str) -> PhaseInputs:
        components = built(drawn, store, *NETWORKS["convnet"], *overrides)
        prepare = declaration_of(components.regime).prepare
        assert prepare is not None
        context = TrainingContext(Terminal(Console(quiet=True)), lambda record: None)
        return prepare(components, read_data(components), context)

    return call


def test_batch_statistics_follow_the_batches_of_the_whole_training(prepared: Callable[..., PhaseInputs]) -> None:
    model = prepared("regime=scratch", "model.layers.block3.batch_norm=true", "epochs=10").model
    (norm,) = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert norm.momentum == pytest.approx(1 - 20 / 30), "of ten epochs of three batches"


@pytest.mark.parametrize("regime", ["scratch", "bottleneck", "finetune"])
def test_the_order_of_the_images_follows_from_the_seed(regime: str, prepared: Callable[..., PhaseInputs]) -> None:
    def order(seed: int) -> list[int]:
        batches = prepared(f"regime={regime}", "augmentation=none", f"seed={seed}").batches
        return [label for _, labels in batches.dataset.take(batches.steps) for label in labels.numpy().tolist()]

    first, other = order(0), order(1)
    assert sorted(first) == sorted(other) and first != other


@pytest.mark.parametrize("settings", [
    ["regime=scratch"], ["regime=finetune", "regime.views=2"], ["regime=finetune", "regime.views=0"]
])  # fmt: skip
def test_layers_of_the_augmentation_are_applied_to_what_is_trained_on_and_to_that_alone(
    settings: list[str], prepared: Callable[..., PhaseInputs]
) -> None:
    blank = "augmentation.layers=[{_target_: keras.layers.Rescaling, scale: 0.0}]"
    inputs = prepared(*settings, "augmentation=none", blank)
    (trained, _), (validated, _) = (next(iter(dataset)) for dataset in (inputs.batches.dataset, inputs.validation))
    assert np.ptp(trained, axis=0).max() == 0 < np.ptp(validated, axis=0).max(), "black images are all alike"


def test_a_head_that_another_run_has_trained_meanwhile_is_not_trained_again(
    drawn: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = built(drawn, store, *NETWORKS["convnet"], "regime=finetune")
    dataset = read_data(components)

    @contextmanager
    def waiting(*lock: object) -> Iterator[None]:
        folder = bottleneck.head_folder(bottleneck.head_components(components), dataset)
        checkpoints.save(folder, components.head(2), ())
        yield

    monkeypatch.setattr(finetune, "writing", waiting)
    context = TrainingContext(Terminal(Console(quiet=True)), lambda record: None)
    assert finetune.train_new_head(components, dataset, context).source == "head cache"


def test_a_head_is_that_of_the_run_that_has_trained_it_and_found_for_every_other(drawn: Path, store: Path) -> None:
    components = built(drawn, store, *NETWORKS["convnet"], "regime=finetune")
    dataset = read_data(components)

    def source(name: str) -> str:
        run = TrainingContext(Terminal(Console(quiet=True)), lambda record: None, checkpoints.Checkpoints(store / name))
        return finetune.prepare(components, dataset, run)[0].source

    trained, resumed, other = source("first"), source("first"), source("second")
    assert trained == resumed == "trained in this run" and other == "head cache"


@pytest.mark.usefixtures("heads_stay_new")
def test_every_image_goes_through_the_network_once(small: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the head's features and those at the boundary, as it is; and once for every view."""
    monkeypatch.setattr(finetune, "fit", lambda *_: ())
    train, validation, test, views = 24, 12, 8, 2
    done = small("regime=finetune", "augmentation=light", "evaluate.test=true")
    assert sum(done.ran) == train + validation + test + train * views
    assert len(done.ran) == 3 + views, "each split fits into a batch"
    deeper = small("regime=finetune", "augmentation=light", "regime.unfrozen_blocks=2", "regime.views=3", "epochs=1")
    assert deeper.result.facts == {"head_source": "head cache"}
    assert sum(deeper.ran) == validation + test + train, "the head's features are not asked for"
    plain = small("regime=finetune", "augmentation=none", "seed=1")
    assert sum(plain.ran) == train + validation + test, "random weights of another seed; one pass for both phases"


@pytest.mark.slow  # the features themselves are in test_feature_cache.py
@pytest.mark.parametrize("name", ["normalised", "mobilenet_v2"])
def test_float16_is_close(once: Callable[..., Done], name: str) -> None:
    exact, half = once(name, "regime=bottleneck"), once(name, "regime=bottleneck", "regime.activations=float16")
    np.testing.assert_allclose(half.result.scores["test"], exact.result.scores["test"], atol=0.02)
    assert np.any(half.result.scores["test"] != exact.result.scores["test"])


@pytest.mark.slow
def test_float16_is_close_in_finetuning_and_stored_as_such(once: Callable[..., Done]) -> None:
    tuned = finetuned(once, "normalised", 1, 2, "regime.activations=float16")
    np.testing.assert_allclose(tuned.result.scores["test"], finetuned(once).result.scores["test"], atol=0.02)
    metas = (tuned.components.cache / "activations").glob("*/*/meta.json")
    assert {json.loads(meta.read_text())["dtype"] for meta in metas} == {"<f2", "<f4"}


@pytest.mark.usefixtures("heads_stay_new")
def test_a_head_is_kept_by_what_its_pixels_and_numbers_come_from(
    small: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved under its lock: whoever obtains that removes what a process that died has left of it."""
    locked: list[bool] = []
    right = checkpoints.save

    def save(folder: Path, *content: Any) -> None:
        lock = FileLock(folder.parent.parent / "locks" / f"heads-{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            locked.append(True)
        right(folder, *content)

    monkeypatch.setattr(checkpoints, "save", save)
    done = small("regime=bottleneck")
    assert locked == [True]
    assert bottleneck.head_folder(done.components, done.dataset).is_dir()
    for module in (decoder, network, bottleneck):  # the last one's is that of `fit`
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            assert bottleneck.cached_head(done.components, done.dataset) is None
    for function, value in (("versions", {"keras": "9"}), ("own_code", {"own_code": ["0"]})):
        with monkeypatch.context() as patch:
            patch.setattr(bottleneck, function, lambda *_, value=value: value)
            assert bottleneck.cached_head(done.components, done.dataset) is None


def test_the_head_is_shared_by_runs_that_would_train_the_same(drawn: Path, tmp_path: Path) -> None:
    components = built(drawn, tmp_path, *NETWORKS["convnet"], "regime=finetune")

    def head(*settings: str) -> str:
        config = configured(drawn, tmp_path, *NETWORKS["convnet"], *settings)
        return components.identity(head_run(config), "data")

    first = head("regime=finetune")
    for setting in ("seed=1", "regime.head_epochs=1", "model.head.dropout=0.4", "regime.head_optimizer.lr=2e-3",
                    "batch_size=4", "data.image_size=50"):  # fmt: skip
        assert head("regime=finetune", setting) != first, setting
    for setting in ("epochs=1", "optimizer.beta_1=0.5", "regime.unfrozen_blocks=2", "augmentation=none",
                    "regime.views=1", "evaluate.test=false", "tracking=sqlite"):  # fmt: skip
        assert head("regime=finetune", setting) == first, setting
    bottleneck = configured(drawn, tmp_path, *NETWORKS["convnet"], "regime=bottleneck")
    assert components.identity(bottleneck, "data") == first != components.identity(bottleneck, "other data")


@pytest.mark.parametrize("pattern", [
    "cache/heads/*/arrays.npz", pytest.param("cache/activations/*/*/array.npy", marks=pytest.mark.slow),
])  # fmt: skip
def test_damage_in_the_cache_is_reported_and_repaired(
    first: Done, small: Callable[..., Done], store: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    damaged = sorted(store.glob(pattern))
    assert damaged
    for path in damaged:
        flip_bit(path)
    with caplog.at_level(logging.WARNING):
        second = small("regime=finetune")
    assert "damaged" in caplog.text.lower()
    heads = "heads" in pattern
    assert second.result.facts == {"head_source": "trained in this run" if heads else "head cache"}
    assert bool(second.ran) is not heads
    np.testing.assert_array_equal(second.result.scores["validation"], first.result.scores["validation"])


@pytest.mark.usefixtures("heads_stay_new")
@pytest.mark.parametrize("views", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_stored_activations_train_as_the_whole_network_does(views: int, small: Callable[..., Done]) -> None:
    plain = ("regime=finetune", "epochs=1", "model.head.dropout=0", "augmentation=none")
    stored = small(*plain, "regime.views=1")
    # A rotation too small to see still counts as augmentation: images stream through the frozen part, or it is a view.
    other = small(*plain, f"regime.views={views}", "augmentation.rotation=1e-9")
    for weights, two in ((stored.after, other.after), (stored.head, other.head)):
        assert weights.keys() == two.keys()
        for name in weights:
            np.testing.assert_allclose(weights[name], two[name], atol=1e-4, err_msg=name)
    moved = changed(stored.before, stored.after)
    assert moved and all(np.abs(stored.before[name] - stored.after[name]).max() > 1e-3 for name in moved)


def test_views_are_what_training_sees(once: Callable[..., Done]) -> None:
    outcomes = [finetuned(once, views=views).after["block3_conv/kernel"] for views in (0, 1, 2)]
    for at, outcome in enumerate(outcomes):
        assert all(np.any(outcome != other) for other in outcomes[at + 1 :])


def test_seeds_share_one_extraction(once: Callable[..., Done]) -> None:
    """Of loaded weights; random ones follow the seed."""
    first = finetuned(once)
    entries = sorted((first.components.cache / "activations").iterdir())
    other = finetuned(once, "normalised", 1, 2, "seed=1")
    assert other.result.facts == {"head_source": "trained in this run"}
    assert not other.ran
    assert sorted((first.components.cache / "activations").iterdir()) == entries


@pytest.fixture(scope="module")
def three_classes(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The drawn images and a third class: plain grey."""
    root = tmp_path_factory.mktemp("three") / "data"
    shutil.copytree(drawn, root)
    rng = np.random.default_rng(1)
    for split, count in (("train", 12), ("validation", 6), ("test", 4)):
        folder = root / split / "greys"
        folder.mkdir()
        for n in range(count):
            pixels = np.clip(rng.normal(128, 10, (48, 48, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / f"grey.{n}.jpg")
    yield root


@pytest.mark.slow  # tests/test_experiments.py has them with another loss
@pytest.mark.parametrize("regime", ["scratch", "finetune"])
def test_three_classes(three_classes: Path, tmp_path: Path, regime: str) -> None:
    done = run_regime(
        three_classes, tmp_path, *NETWORKS["convnet"], f"regime={regime}", "augmentation=light", "epochs=20",
        "regime.head_epochs=20", "optimizer.lr=0.01" if regime == "finetune" else "optimizer.lr=2e-3",
    )  # fmt: skip
    assert done.dataset.classes == ("blobs", "greys", "stripes")
    assert_sound(done)
    assert done.result.scores["validation"].shape == (18, 3)
    assert done.result.history[-1].metrics["validation_accuracy"] > 0.6  # 1/3 by chance
