"""The feature cache: written in shards, resumed, filled in one pass; no wrong row, no silent overflow."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import composition
import keras
import numpy as np
import psutil
import pytest
from damage import flip_bit

from experiments.data import augmentation
from experiments.data.pixel_cache import select
from experiments.data.types import ImageRecord, ImageSet
from experiments.errors import ConfigError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.models import network, stages
from experiments.models.network import NetworkSplit, split_network
from experiments.models.stages import Backbone
from experiments.regimes import feature_cache
from experiments.regimes.feature_cache import BATCH, SHARD_ROWS, FeatureRequest, extract
from experiments.storage import array_cache
from experiments.storage.array_cache import Rows

SIZE = 16
COUNT = 2 * SHARD_ROWS + 88  # three shards
Forward = Callable[[Sequence[keras.Model]], Callable[[np.ndarray], list[np.ndarray]]]


class Told:
    """A progress display that counts."""

    def __init__(self, then: Callable[[int], None] = lambda done: None) -> None:
        self.then = then
        self.stages: list[tuple[str, int]] = []
        self.steps: list[int] = []

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        self.stages.append((label, total))

        def advance(steps: int = 1, note: str = "") -> None:
            self.steps.append(steps)
            self.then(sum(self.steps))

        yield advance


def tiny(outputs: Path, *overrides: str, filters: int = 4) -> Any:
    """The parts that extraction reads, with a network of two blocks; the same weights every time."""
    settings = ("regime=finetune", "augmentation=light", f"data.image_size={SIZE}", f"outputs={outputs}")
    config = composition.configured(*settings, *overrides)
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name="block1_conv")(x)
    x = keras.layers.MaxPooling2D(name="block1_pool")(x)
    x = keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="block2_conv")(x)
    model = keras.Model(inputs, x)
    augment = augmentation.affine(**config.augmentation.arguments)
    return SimpleNamespace(
        config=config, cache=config.cache, augmentation=augment, extra_layers=(),
        backbone=Backbone(model, stages.named_stages(model, ["block1", "block2"]), f"tiny {filters}"),
    )  # fmt: skip


def images_of(count: int = COUNT, split: str = "train") -> ImageSet:
    pixels = np.random.default_rng(len(split)).integers(0, 256, (count, SIZE, SIZE, 3)).astype("uint8")
    entries = tuple(ImageRecord(f"{n}.jpg", 1, f"{split}{n:064x}", SIZE, SIZE, "RGB", "a", split) for n in range(count))
    return ImageSet(split, entries, np.zeros(count, "int32"), SIZE, lambda: Rows([pixels]))


def cuts(components: Any) -> tuple[NetworkSplit, NetworkSplit]:
    """All frozen, and the last block not."""
    return split_network(components.backbone, 0, "average"), split_network(components.backbone, 1, "average")


def wants_of(components: Any, images: ImageSet) -> list[FeatureRequest]:
    """What fine-tuning asks for: features for the head, and two views at the boundary."""
    frozen, network_split = cuts(components)
    return [
        FeatureRequest(frozen, images),
        FeatureRequest(network_split, images),
        FeatureRequest(network_split, images, 0),
        FeatureRequest(network_split, images, 1),
    ]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Images and tables of every batch that went through the network."""
    seen: list[tuple[int, int]] = []
    right: Forward = network.inference_functions

    def counting(models: Sequence[keras.Model]) -> Callable[[np.ndarray], list[np.ndarray]]:
        run = right(models)

        def counted(inputs: np.ndarray) -> list[np.ndarray]:
            assert inputs.dtype == np.float32 and len(inputs) <= BATCH, "never more images than a batch as floats"
            seen.append((len(inputs), len(models)))
            return run(inputs)

        return counted

    monkeypatch.setattr(feature_cache, "inference_functions", counting)
    return seen


def contents(cache: Path) -> dict[str, bytes]:
    """Every array in a store, by its place; fails on anything unfinished."""
    assert not list(cache.rglob(".*"))
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("array.npy")}


def in_fold(images: ImageSet, fold: int) -> ImageSet:
    """Return the images, of which every third from `fold` on is a validation image."""
    splits = ["validation" if row % 3 == fold else "train" for row in range(len(images))]
    entries = [dataclasses.replace(entry, split=split) for entry, split in zip(images.entries, splits, strict=True)]
    return dataclasses.replace(images, entries=tuple(entries))


def test_folds_and_training_without_them_share_one_extraction(tmp_path: Path, passes: list[tuple[int, int]]) -> None:
    components, images = tiny(tmp_path), images_of(BATCH + 10)
    frozen, network_split = cuts(components)
    requests = [FeatureRequest(frozen, images), FeatureRequest(network_split, images, 0)]
    found = []
    for fold in range(3):
        train, validation = (select(in_fold(images, fold), split) for split in ("train", "validation"))
        assert len(validation) == 14 and len(train) == 28
        of_fold = [FeatureRequest(frozen, train), FeatureRequest(frozen, validation)]
        found.append(extract(components, [*of_fold, FeatureRequest(network_split, train, 0)], Told()))
    features, view = extract(components, requests, Told())
    assert sum(count for count, _ in passes) == 2 * len(images)
    for fold, (train_rows, validation_rows, view_rows) in enumerate(found):
        held = np.arange(len(images)) % 3 == fold
        np.testing.assert_array_equal(validation_rows[:], features[:][held])
        np.testing.assert_array_equal(train_rows[:], features[:][~held])
        np.testing.assert_array_equal(view_rows[5:9], view[:][~held][5:9])


@pytest.mark.parametrize("foreign", ["layer", "augmentation"])
def test_no_validation_image_is_in_a_batch_that_foreign_code_augments(
    tmp_path: Path, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    components, images = tiny(tmp_path), in_fold(images_of(BATCH), 0)
    if foreign == "layer":
        components.extra_layers = (keras.layers.RandomContrast(0.1),)
    else:
        foreign_one = components.config.augmentation.model_copy(update={"target": "mine.mixing"})
        components.config = components.config.model_copy(update={"augmentation": foreign_one})
        monkeypatch.setattr(feature_cache, "own_code", lambda *given: {})
    wanted = FeatureRequest(cuts(components)[1], select(images, "train"), 0)
    table = feature_cache.FeatureTable(components, wanted)
    assert [entry.split for entry in table.images.entries] == ["train"] * len(wanted.images)
    told = Told()
    (rows,) = extract(components, [wanted], told)
    assert len(rows) == len(wanted.images) == sum(told.steps)


def test_rows_are_what_the_network_makes_of_the_images(tmp_path: Path) -> None:
    components, images = tiny(tmp_path), images_of()
    features, rows, *views = extract(components, wants_of(components, images), Told())
    for table, prefix in ((features, cuts(components)[0].frozen_part), (rows, cuts(components)[1].frozen_part)):
        expected = prefix.predict(images.pixels[:].astype("float32"), verbose=0)
        assert table.shape == expected.shape and table.dtype == np.float32
        np.testing.assert_allclose(table[:], expected, atol=1e-5)
        order = np.random.default_rng(0).permutation(COUNT)[:40]
        np.testing.assert_array_equal(table[order], table[:][order])
    pixels = [feature_cache.reader(components, images, view)(slice(64, 96)) for view in (0, 1)]
    for view, augmented in zip(views, pixels, strict=True):
        np.testing.assert_allclose(view[64:96], cuts(components)[1].frozen_part(augmented), atol=1e-5)
    assert np.any(views[0][:] != views[1][:]) and np.any(views[0][:] != rows[:])
    other = feature_cache.reader(tiny(tmp_path, "augmentation.seed=1"), images, 0)(slice(64, 96))
    assert np.any(other != pixels[0])
    files = sorted(path.parent.name for path in (tmp_path / "cache").rglob("array.npy"))
    assert files == sorted(["0000000", "0000256", "0000512"] * 4)


def test_boundaries_share_a_pass_and_views_a_sweep(
    tmp_path: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    components, images = tiny(tmp_path), images_of()
    read: list[tuple[int | None, int]] = []
    reader = feature_cache.reader

    def listening(components: Any, images: ImageSet, view: int | None) -> Callable[[slice], np.ndarray]:
        give = reader(components, images, view)
        return lambda at: (read.append((view, at.start)), give(at))[1]

    monkeypatch.setattr(feature_cache, "reader", listening)
    reported = Told()
    extract(components, wants_of(components, images), reported)
    assert sum(rows for rows, _ in passes) == 3 * COUNT, "once as they are, for both tables, and once a view"
    assert sum(rows for rows, tables in passes if tables == 2) == COUNT
    firsts = [start // SHARD_ROWS for _, start in read]
    assert firsts == sorted(firsts), "all views of a shard's images, then the next images"
    assert reported.stages == [("features of train, 3 views", 3 * COUNT)] and sum(reported.steps) == 3 * COUNT
    passes.clear()
    reported = Told()
    extract(components, wants_of(components, images), reported)
    assert not passes and not reported.stages, "nothing is left to do"


def test_an_interruption_costs_the_shard_it_fell_into(tmp_path: Path, passes: list[tuple[int, int]]) -> None:
    components, images = tiny(tmp_path / "broken"), images_of()
    wants = wants_of(components, images)

    def stop(done: int) -> None:
        if done >= 4 * SHARD_ROWS + 64:  # three views of the first images, one of the next, and a bit
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(components, wants, Told(stop))
    assert len(contents(tmp_path / "broken")) == 4 + 2
    passes.clear()
    reported = Told()
    extract(components, wants, reported)
    assert sum(rows for rows, _ in passes) == 3 * COUNT - 4 * SHARD_ROWS
    assert reported.steps[0] == 4 * SHARD_ROWS and sum(reported.steps) == 3 * COUNT, (
        "what was stored is counted at once"
    )
    extract(tiny(tmp_path / "whole"), wants, Told())
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole"), "bit for bit"


def _killed(outputs: Path) -> None:
    """Runs in a process of its own: killed when half of the fifth shard is on disk."""
    written = []
    make = array_cache.CacheEntry.make

    def half(entry: array_cache.CacheEntry, write: Callable[[np.ndarray], object]) -> np.ndarray:
        def partly(rows: np.ndarray) -> None:
            written.append(1)
            rows[: len(rows) // 2] = 7
            if len(written) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            write(rows)

        return make(entry, partly)

    array_cache.CacheEntry.make = half  # type: ignore[assignment, method-assign]
    components = tiny(outputs)
    extract(components, wants_of(components, images_of()), Told())


@pytest.mark.slow  # an interruption in one process is above, tests/reliability kills whole runs
def test_a_killed_extraction_resumes_and_ends_the_same(tmp_path: Path, passes: list[tuple[int, int]]) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(tmp_path / "killed",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = tmp_path / "killed" / "cache" / "activations"
    assert list(left.rglob(".*")) and len(list(left.glob("*/0*"))) == 4  # shards; a key may begin with 0, too
    components, images = tiny(tmp_path / "killed"), images_of()
    extract(components, wants_of(components, images), Told())
    assert sum(rows for rows, _ in passes) == 3 * COUNT - 3 * SHARD_ROWS
    whole = tiny(tmp_path / "whole")
    extract(whole, wants_of(whole, images), Told())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_damaged_shard_is_made_again_alone(
    tmp_path: Path, passes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    components, images = tiny(tmp_path), images_of()
    wants = wants_of(components, images)
    extract(components, wants, Told())
    before = contents(tmp_path)
    shard = feature_cache.FeatureTable(components, wants[1]).folder / "0000256" / "array.npy"
    flip_bit(shard)
    passes.clear()
    with caplog.at_level(logging.WARNING):
        extract(components, wants, Told())
    assert passes == [(BATCH, 1)] * (SHARD_ROWS // BATCH)
    assert str(shard.parent) in caplog.text
    assert contents(tmp_path) == before


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    components = tiny(tmp_path, filters=64)
    count = 32 * SHARD_ROWS
    few = images_of(1)
    many = ImageSet(
        "train",
        tuple(dataclasses.replace(few.entries[0], sha256=str(n)) for n in range(count)),
        np.zeros(count, "int32"),
        SIZE,
        lambda: Rows([np.broadcast_to(few.pixels[:], (count, SIZE, SIZE, 3))]),
    )
    memory: list[int] = []
    reported = Told(lambda done: memory.append(psutil.Process().memory_info().rss))
    (rows,) = extract(components, [FeatureRequest(cuts(components)[1], many)], reported)
    stored = count * 8 * 8 * 64 * 4
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("array.npy")) > stored > 130e6
    settled = 2 * SHARD_ROWS // BATCH  # batches; a shard is 4 MB
    assert max(memory[settled:]) - max(memory[:settled]) < 24e6
    before = memory[-1]
    assert rows[np.arange(0, count, 1024)].shape == (8, 8, 8, 64)
    assert psutil.Process().memory_info().rss - before < 8e6


def test_shards_are_smaller_where_rows_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components, images = tiny(tmp_path), images_of(100)
    frozen, network_split = cuts(components)
    whole = extract(components, [FeatureRequest(network_split, images)], Told())[0][:]
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 70 * 8 * 8 * 4 * 4)  # 70 rows at the split point
    tables = [
        feature_cache.FeatureTable(components, FeatureRequest(split, images)) for split in (frozen, network_split)
    ]
    assert [table.step for table in tables] == [SHARD_ROWS, 64]
    features, rows = extract(
        components, [FeatureRequest(frozen, images), FeatureRequest(network_split, images)], Told()
    )
    np.testing.assert_array_equal(rows[:], whole)
    np.testing.assert_allclose(features[:], frozen.frozen_part(images.pixels[:].astype("float32")), atol=1e-5)
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    assert feature_cache.FeatureTable(components, FeatureRequest(network_split, images)).step == BATCH


def test_float16_is_half_the_size_and_close(tmp_path: Path) -> None:
    images = images_of(40)
    exact, half = (
        extract(components, [FeatureRequest(cuts(components)[1], images)], Told())[0]
        for components in (tiny(tmp_path), tiny(tmp_path, "regime.activations=float16"))
    )
    assert (exact.dtype, half.dtype) == (np.dtype("float32"), np.dtype("float16"))
    np.testing.assert_allclose(half[:], exact[:], rtol=1e-3, atol=1e-4)


def test_numbers_beyond_float16_are_an_error(tmp_path: Path) -> None:
    components, images = tiny(tmp_path, "regime.activations=float16"), images_of(40)
    _, network_split = cuts(components)
    network_split.frozen_part.get_layer("block1_conv").bias.assign([0, 0, 0, 70_000.0])
    with pytest.raises(ConfigError, match=r"regime\.activations: float16 .* 65,504.*block2_conv reach 7\d,.*=float32"):
        extract(components, [FeatureRequest(network_split, images)], Told())
    with pytest.raises(ConfigError, match="reach 70,000"):
        feature_cache.FeatureTable(components, FeatureRequest(network_split, images)).narrowed(np.array([[-7e4]]))
    assert contents(tmp_path) == {}
    exact = tiny(tmp_path)
    assert extract(exact, [FeatureRequest(cuts(exact)[1], images)], Told())[0].shape == (40, 8, 8, 4)


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_runs(
    tmp_path: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    components, images = tiny(tmp_path), images_of()
    frozen, network_split = cuts(components)
    with caplog.at_level(logging.INFO):
        extract(components, [FeatureRequest(frozen, images)], Told())
    assert f"Features to be cached: 14.4 kB, in {components.cache}" in caplog.text
    passes.clear()
    usage = namedtuple("usage", "total used free")
    needed = 2 * COUNT * 8 * 8 * 4 * 4
    wants = [
        FeatureRequest(frozen, images),
        FeatureRequest(network_split, images),
        FeatureRequest(network_split, images, 0),
    ]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, feature_cache.RESERVE + needed - 1))
    with pytest.raises(ConfigError) as raised:
        extract(components, wants, Told())
    for printed in (
        "1.2 MB",
        "269.7 MB free",
        str(components.cache),
        "cache prune",
        "outputs=",
        "views",
        "float16",
        "600 x 1,024",
    ):
        assert printed in str(raised.value), printed
    assert not passes
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, feature_cache.RESERVE + needed))
    extract(components, wants, Told())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 0))
    extract(components, wants, Told())  # everything is cached, so no disk space is needed


def test_the_key_moves_with_all_that_the_numbers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(40)

    def name(components: Any, view: int | None = None, images: ImageSet = images, unfrozen: int = 1) -> str:
        return feature_cache.FeatureTable(
            components, FeatureRequest(split_network(components.backbone, unfrozen, "average"), images, view)
        ).name

    def arrange(order: list[int]) -> ImageSet:
        return dataclasses.replace(images, entries=tuple(images.entries[at] for at in order))

    components = tiny(tmp_path)
    names = [
        name(components), name(components, 0), name(components, 1), name(components, unfrozen=0),
        name(components, unfrozen=2),
        name(tiny(tmp_path, "regime.activations=float16")), name(tiny(tmp_path, "augmentation.seed=1"), 0),
        name(tiny(tmp_path, "augmentation.rotation=3"), 0), name(tiny(tmp_path, filters=5)),
        name(components, images=arrange([1, 0, *range(2, 40)])), name(components, images=arrange(list(range(39)))),
        name(components, images=dataclasses.replace(images, decoder_settings=DecoderSettings(resize="crop"))),
        *(name(tiny(tmp_path, f"model.head.pooling={pool}"), unfrozen=0) for pool in ("average", "max")),
    ]  # fmt: skip
    changed = ((augmentation, "VERSION"), (decoder, "VERSION"), (network, "VERSION"), (feature_cache, "BATCH"))
    for module, version in changed:
        with monkeypatch.context() as patch:
            patch.setattr(module, version, vars(module)[version] + 1)
            names.append(name(components, 0))
    for function, value in (("versions", {"pillow": "0"}), ("own_code", {"own_code": ["0"]})):
        with monkeypatch.context() as patch:
            patch.setattr(feature_cache, function, lambda *_, value=value: value)
            names.append(name(components, 0))
    assert len(set(names)) == len(names)
    assert name(tiny(tmp_path, "seed=5", "epochs=3", "augmentation.rotation=3")) == names[0]
    assert name(tiny(tmp_path, "seed=5")) == names[0] and name(tiny(tmp_path), 1) == names[2]
    assert name(tiny(tmp_path, "model.head.pooling=max")) == names[0], "the head's pooling is above the split point"


def test_an_entry_records_its_purpose(tmp_path: Path) -> None:
    components, images = tiny(tmp_path), images_of(40, "validation")
    extract(components, [FeatureRequest(cuts(components)[1], images, 2)], Told())
    (meta,) = (tmp_path / "cache").rglob("meta.json")
    assert json.loads(meta.read_text())["about"] == {
        "network": "convnet", "boundary": "block2_conv", "split": "validation", "view": 2, "rows": 40
    }  # fmt: skip


def _extracts(outputs: Path, together: Any) -> tuple[int, list[float]]:
    components, reported = tiny(outputs), Told()
    wants = wants_of(components, images_of())
    together.wait(120)
    rows = extract(components, wants, reported)
    return sum(reported.steps), [float(table[:].sum()) for table in rows]


def _extracts_into(results: Any, outputs: Path, together: Any) -> None:
    results.put(_extracts(outputs, together))


def test_extractions_at_the_same_time_share_the_work(tmp_path: Path) -> None:
    """By two threads; the locks are those of processes."""
    components, images, together = tiny(tmp_path), images_of(), threading.Barrier(2)

    def extracted(reported: Told) -> list[float]:
        together.wait(60)
        return [float(table[:].sum()) for table in extract(components, wants, reported)]

    wants, reported = wants_of(components, images), (Told(), Told())
    with ThreadPoolExecutor(2) as threads:
        sums, same = threads.map(extracted, reported)
    assert sorted(sum(each.steps) for each in reported) == [0, 3 * COUNT], "the second found everything there"
    assert sums == same
    assert len(contents(tmp_path)) == 12


@pytest.mark.slow
def test_processes_that_want_the_same_share_the_work(tmp_path: Path) -> None:
    """By this process and another one."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(2), context.Queue()
    worker = context.Process(target=_extracts_into, args=(results, tmp_path, together))
    worker.start()
    first, sums = _extracts(tmp_path, together)
    other, same = results.get(timeout=120)
    worker.join(60)
    assert sorted((first, other)) == [0, 3 * COUNT], "the second found everything there"
    assert sums == same
    assert len(contents(tmp_path)) == 12


def test_tables_in_use_are_not_removed(tmp_path: Path) -> None:
    components, images = tiny(tmp_path), images_of(40)
    want = FeatureRequest(cuts(components)[1], images)
    folder = feature_cache.FeatureTable(components, want).folder

    def in_the_middle(done: int) -> None:
        if done:
            assert not array_cache.remove(components.cache, folder)

    (rows,) = extract(components, [want], Told(in_the_middle))
    assert not array_cache.remove(components.cache, folder)
    before = rows[:]
    del rows
    assert array_cache.remove(components.cache, folder) and not folder.exists()
    np.testing.assert_array_equal(extract(components, [want], Told())[0][:], before)


def test_a_failed_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fails)
    components = tiny(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        extract(components, [FeatureRequest(cuts(components)[1], images_of(40))], Told())
    assert contents(tmp_path) == {}
