"""Entries of the array cache are complete and verified or made again, also when several processes write at once."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import filelock
import numpy as np
import psutil
import pytest
from damage import flip_bit

from experiments.storage import array_cache, atomic_files, named_arrays

SPEC = {"files": ["a", "b"], "image_size": 4}
SHAPE = (3, 5)


def fill(array: np.ndarray) -> None:
    array[:] = np.arange(array.size).reshape(array.shape)


def never(array: np.ndarray) -> NoReturn:
    raise AssertionError("written again")


def no_locks(*arguments: object, **options: object) -> NoReturn:
    raise NotImplementedError("no locks here")


def entry_of(cache: Path, spec: dict[str, Any], shape: tuple[int, ...], dtype: str) -> array_cache.CacheEntry:
    return array_cache.CacheEntry(cache / "numbers" / array_cache.key(spec), spec, shape, dtype)


def make(cache: Path, write: Callable[[np.ndarray], None] = fill, spec: dict[str, Any] = SPEC) -> np.ndarray:
    return entry_of(cache, spec, SHAPE, "float32").load_or_create(write)


def entry(cache: Path) -> Path:
    return cache / "numbers" / array_cache.key(SPEC)


def is_damaged(cache: Path) -> bool:
    return array_cache.find_damage(entry(cache)) is not None


def assert_clean(cache: Path, entries: int = 1) -> None:
    assert len(list((cache / "numbers").iterdir())) == entries


def test_key_depends_on_content_only() -> None:
    key = array_cache.key({"b": 1, "a": (1, 2)})
    assert key == array_cache.key({"a": [1, 2], "b": 1})
    assert key != array_cache.key({"a": [2, 1], "b": 1})
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")


def test_key_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises(TypeError):
        array_cache.key({"a": object()})
    with pytest.raises(ValueError):
        array_cache.key({"a": float("nan")})


def test_written_once_then_found(tmp_path: Path) -> None:
    first = make(tmp_path)
    assert not is_damaged(tmp_path)
    second = make(tmp_path, never)
    for array in (first, second):
        assert isinstance(array, np.memmap) and not array.flags.writeable
        assert array.shape == SHAPE and array.dtype == np.float32
        np.testing.assert_array_equal(array, np.arange(15).reshape(SHAPE))
    meta = json.loads((entry(tmp_path) / "meta.json").read_text())
    assert meta["spec"] == SPEC and meta["shape"] == [3, 5] and np.dtype(meta["dtype"]) == np.float32
    assert set(meta) == {"spec", "shape", "dtype", "about", "sha256"}
    assert_clean(tmp_path)


def test_other_specifications_are_other_entries(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, lambda array: array.fill(7), {**SPEC, "image_size": 5})
    assert make(tmp_path, never)[0, 1] == 1
    assert_clean(tmp_path, entries=2)


@pytest.mark.parametrize("seen", [True, False], ids=["verified before", "new process"])
def test_damaged_byte_is_found_and_mended(
    tmp_path: Path, seen: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    if not seen:
        monkeypatch.setattr(array_cache, "_verified", {})
    flip_bit(entry(tmp_path) / "array.npy")
    assert is_damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        array = make(tmp_path)
    np.testing.assert_array_equal(array, np.arange(15).reshape(SHAPE))
    assert str(entry(tmp_path)) in caplog.text
    assert_clean(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "array.npy").unlink(),
        lambda entry: (entry / "meta.json").write_text("{"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: os.truncate(entry / "array.npy", 100),
        lambda entry: os.truncate(entry / "array.npy", 0),
    ],
)
def test_partial_entries_are_made_again(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path)
    harm(entry(tmp_path))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(make(tmp_path), np.arange(15).reshape(SHAPE))
    assert str(entry(tmp_path)) in caplog.text
    make(tmp_path, never)
    assert_clean(tmp_path)


def test_entry_of_another_shape_is_not_used(tmp_path: Path) -> None:
    make(tmp_path)
    array = entry_of(tmp_path, SPEC, (2, 2), "uint8").load_or_create(fill)
    np.testing.assert_array_equal(array, [[0, 1], [2, 3]])


def test_entry_of_another_specification_is_not_used(tmp_path: Path) -> None:
    make(tmp_path)
    other = {**SPEC, "image_size": 5}
    entry(tmp_path).rename(entry(tmp_path).with_name(array_cache.key(other)))
    assert (make(tmp_path, lambda array: array.fill(7), other) == 7).all()


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(array: np.ndarray) -> None:
        array[0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, fail)
    assert_clean(tmp_path, entries=0)
    make(tmp_path)
    assert_clean(tmp_path)


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, never)
    assert_clean(tmp_path, entries=0)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "numbers" / f".{array_cache.key(SPEC)}.123.abc"
    left.mkdir(parents=True)
    (left / "array.npy").write_bytes(b"half")
    make(tmp_path)
    assert_clean(tmp_path)


def test_an_entry_is_hashed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(hashlib, "file_digest", never)
    make(tmp_path, never)
    assert not is_damaged(tmp_path)


@pytest.mark.parametrize("error", [OSError, NotImplementedError])
def test_works_without_locks(tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise error("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    np.testing.assert_array_equal(make(tmp_path), np.arange(15).reshape(SHAPE))
    make(tmp_path, never)
    assert_clean(tmp_path)


def test_a_lost_race_uses_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files, "FileLock", no_locks)

    def overtaken(array: np.ndarray) -> None:
        make(tmp_path)  # another writer, done first
        array.fill(99)

    np.testing.assert_array_equal(make(tmp_path, overtaken), np.arange(15).reshape(SHAPE))
    assert_clean(tmp_path)


def _many(cache: Path, locks: bool, start: Any, results: Any) -> None:
    if not locks:
        vars(array_cache)["FileLock"] = vars(atomic_files)["FileLock"] = no_locks
    start.wait()
    sums = []
    for number in range(8):

        def write(array: np.ndarray, number: int = number) -> None:
            array.fill(number)

        sums.append(int(entry_of(cache, {"number": number}, (50_000,), "int32").load_or_create(write).sum()))
    results.put(sums)


@pytest.mark.parametrize("locks", [True, False])
def test_processes_writing_at_once(tmp_path: Path, locks: bool) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    writers = [context.Process(target=_many, args=(tmp_path, locks, start, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    found = [results.get(timeout=30) for _ in writers]
    for writer in writers:
        writer.join()
    assert found == [[50_000 * number for number in range(8)]] * 4
    assert_clean(tmp_path, entries=8)


@pytest.mark.parametrize("rows", [
    slice(None), slice(2, 7), slice(3, 100), slice(9, 2, -2), slice(4, 4),
    np.array([6, 0, 9, 3, 3, 5]), np.arange(10) % 2 == 0, np.array([], "int64"),
])  # fmt: skip
def test_rows_are_those_of_one_array(tmp_path: Path, rows: Any) -> None:
    whole = np.random.default_rng(0).normal(size=(10, 2, 3)).astype("float16")

    def mapped(name: str, part: np.ndarray) -> np.ndarray:
        np.save(tmp_path / f"{name}.npy", part)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    files = [mapped("a", whole[:4]), mapped("b", whole[4:5]), mapped("c", whole[5:])]
    part_of_map, without_name = mapped("d", whole)[5:], mapped("e", whole[:4])
    (tmp_path / "e.npy").unlink()
    for parts in (files, [whole], [whole[:4], whole[4:]], [without_name, files[1], part_of_map]):
        joined = array_cache.Rows(parts)
        assert (len(joined), joined.shape, joined.dtype) == (10, (10, 2, 3), np.dtype("float16"))
        np.testing.assert_array_equal(joined[rows], whole[rows])
        assert type(joined[rows]) is np.ndarray and joined[rows].flags.writeable, "a copy in memory"


def test_rows_are_not_made_up_where_a_file_was_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    rows = array_cache.Rows([np.load(tmp_path / "a.npy", mmap_mode="r")])
    os.truncate(tmp_path / "a.npy", (tmp_path / "a.npy").stat().st_size - 8)
    assert rows[:3].all()
    with pytest.raises(OSError, match=r"a\.npy is shorter than it was"):
        _ = rows[2:]


def test_rows_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    whole = np.arange(2000 * 50).reshape(2000, 50)
    np.save(tmp_path / "a.npy", whole)
    rows = array_cache.Rows([np.load(tmp_path / "a.npy", mmap_mode="r")])
    orders = [np.random.default_rng(seed).permutation(2000) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(rows.__getitem__, orders), strict=True):
            np.testing.assert_array_equal(found, whole[order])


def test_reading_all_of_a_map_takes_little_memory_and_holding_it_takes_all(tmp_path: Path) -> None:
    size = 3 * array_cache.RESIDENT
    entry = entry_of(tmp_path, {"n": 1}, (size // 2**16, 2**16), "uint8")
    stored = entry.load_or_create(lambda array: array.fill(7))
    array_cache.release([stored])
    resident = psutil.Process().memory_info().rss
    mapped = array_cache.Rows([stored])
    rows = np.random.default_rng(0).permutation(len(stored))
    most = 0
    for at in range(0, len(rows), 16):
        assert (mapped[rows[at : at + 16]] == 7).all()
        most = max(most, psutil.Process().memory_info().rss - resident)
    assert most < array_cache.RESIDENT / 8
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = mapped[:]
    assert psutil.Process().memory_info().rss - resident > size * 0.9
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < size * 1.2, "copied, not held twice"
    np.testing.assert_array_equal(held[[3, 0]], mapped[[3, 0]])


def test_what_cannot_be_opened_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = array_cache.CacheEntry(tmp_path / "pixels" / "a", {"n": 1}, (3,), "uint8")
    entry.make(lambda array: array.fill(1))

    def too_many(*arguments: object, **options: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", too_many)
        for use in (entry.find, lambda: entry.make(lambda array: array.fill(2))):
            with pytest.raises(OSError, match="Too many open files"):
                use()
    found = entry.find()
    assert found is not None and found.tolist() == [1, 1, 1]


def test_waiting_for_another_process_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "locks" / "pixels-abc.lock"
    path.parent.mkdir()
    program = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]): print(flush=True); time.sleep(1.5)"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with caplog.at_level(logging.INFO), atomic_files.hold(path) as locked:
            assert locked
    assert "Waiting for another process" in caplog.text and "pixels-abc" in caplog.text


def test_releasing_loses_nothing_that_was_written(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.dtype("uint8"), (2**20,))
    array[:] = 9
    array_cache.release([array, np.zeros(3)])
    assert (array == 9).all()
    array.flush()
    assert (np.load(tmp_path / "a.npy") == 9).all()


def test_what_is_used_is_not_removed(tmp_path: Path) -> None:
    array = make(tmp_path)
    os.utime(entry(tmp_path), (0, 0))
    again = make(tmp_path, never)
    assert entry(tmp_path).stat().st_mtime > 1e9, "its last use"
    part = array[1:]  # keeps the file mapped
    del array, again
    assert not array_cache.remove(tmp_path, entry(tmp_path))
    del part
    assert array_cache.remove(tmp_path, entry(tmp_path))
    assert_clean(tmp_path, entries=0)
    assert array_cache.remove(tmp_path, entry(tmp_path)), "gone is gone"


def test_named_arrays_in_use_are_not_removed(tmp_path: Path) -> None:
    file, holder = tmp_path / "manifests" / "abc.npz", {SHAPE}
    named_arrays.write(file, {"numbers": np.arange(3)})
    assert named_arrays.load(file, holder)["numbers"].tolist() == [0, 1, 2]
    assert not array_cache.remove(tmp_path, file)
    del holder
    assert array_cache.remove(tmp_path, file)


def test_named_arrays_with_a_wrong_bit_raise_nothing(tmp_path: Path) -> None:
    """A bit can make an archive one that is encrypted, or one of a version to come."""
    file, reasons = tmp_path / "abc.npz", set[str]()
    named_arrays.write(file, {"numbers": np.arange(3)})
    whole = file.read_bytes()
    for at, bit in itertools.product(range(len(whole)), (1, 64)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        found = named_arrays.read(file)
        reasons |= {found} if isinstance(found, str) else set()
    assert any("encrypted" in reason for reason in reasons) and any("version" in reason for reason in reasons)


def test_what_is_written_is_not_removed(tmp_path: Path) -> None:
    def write(array: np.ndarray) -> None:
        (draft,) = entry(tmp_path).parent.iterdir()
        assert not array_cache.remove(tmp_path, draft)
        fill(array)

    make(tmp_path, write)
    draft = entry(tmp_path).with_name(f".{entry(tmp_path).name}.1.ab")
    draft.mkdir()
    assert array_cache.remove(tmp_path, draft), "whoever wrote it is dead"


def test_removal_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(array_cache, "FileLock", no_locks)
    assert array_cache.remove(tmp_path, entry(tmp_path))


def test_write_file_replaces_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.json"
    atomic_files.write_file(path, b"old")
    atomic_files.write_file(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(*_: object) -> NoReturn:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_files.write_file(path, b"newer")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_that_cannot_be_renamed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError), atomic_files.writing_directory(tmp_path / "new"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_is_flushed_before_it_appears_and_its_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "file", list[tuple[bool, int, bool]]()

    def fsync(number: int) -> None:
        status = os.fstat(number)
        flushed.append((stat.S_ISDIR(status.st_mode), status.st_size if not flushed else 0, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_files.write_file(path, b"new")
    assert flushed == [(False, 3, False), (True, 0, True)]
