"""`experiments cache`: listing, verifying and pruning the cache's entries."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from damage import flip_bit
from rich.filesize import decimal

from experiments.cli import cache as verb
from experiments.inspection import cache as inspection
from experiments.storage import array_cache, atomic_files, named_arrays
from experiments.training import checkpoints
from experiments.training.types import EpochRecord

DAY = 24 * 60 * 60
Call = Callable[..., list[str]]


@pytest.fixture
def cache(own_outputs: Path) -> Path:
    """A cache with one entry of every kind, last used 1, 2, ... 6 days ago; all but the manifest a few kilobytes."""
    place = own_outputs / "cache"
    pixels(place)
    for start, stop in ((0, 256), (256, 512)):
        shard(place, start, stop)
    inputs = keras.Input((30,))
    model = keras.Model(inputs, keras.layers.Dense(30)(inputs))
    history = [EpochRecord(n, "head", n, 0, {"validation_accuracy": 0.5 + n / 10}) for n in range(3)]
    checkpoints.save(place / "heads" / "abc", model, history)
    facts = json.dumps([[4, 4, "RGB", []], [5, 5, "L", []]]).encode()
    arrays = {"sha256": np.array(["a" * 64, "b" * 64], "S64"), "facts": np.array(facts)}
    named_arrays.write(place / "manifests" / "abc.npz", arrays)
    atomic_files.write_file(place / "drawn" / "abc" / "train" / "cats" / "cats.0.jpg", bytes(5000))
    atomic_files.write_file(place / "pixels" / ".abc.1.ff" / "array.npy", bytes(6000))  # of a killed process
    for age, path in enumerate(entries(place), 1):
        os.utime(path, (time.time() - age * DAY, time.time() - age * DAY))
    return place


def entries(cache: Path) -> list[Path]:
    """Last used first."""
    return [
        cache / "pixels" / array_cache.key({"n": 1}), cache / "activations" / "0f", cache / "heads" / "abc",
        cache / "manifests" / "abc.npz", cache / "drawn" / "abc", cache / "pixels" / ".abc.1.ff",
    ]  # fmt: skip


def pixels(cache: Path) -> np.ndarray:
    folder = cache / "pixels" / array_cache.key({"n": 1})
    entry = array_cache.CacheEntry(folder, {"n": 1}, (10, 8, 8, 3), "uint8", {"split": "validation"})
    return entry.load_or_create(lambda array: array.fill(3))


def shard(cache: Path, start: int, stop: int) -> None:
    about = {"network": "vgg16", "boundary": "block5_conv1", "split": "train", "view": 3, "rows": 600}
    folder = cache / "activations" / "0f" / f"{start:07}"
    array_cache.CacheEntry(folder, {"rows": [start, stop]}, (stop - start, 2), "float16", about).make(
        lambda array: array.fill(2)
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("list")`: the lines that `experiments cache list` prints, on a wide terminal."""

    def run(*arguments: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", "140")
        monkeypatch.setattr(sys, "argv", ["experiments cache", *arguments])
        verb.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_the_list_shows_size_age_and_purpose(cache: Path, call: Call) -> None:
    lines = call()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if re.search(r"\d d ", line)]
    assert [row[:2] for row in rows] == [
        ["activations", "vgg16 at block5_conv1, train view 4 512 of 600 x 2 float16"],
        ["drawn", "files: 1"],
        ["heads", "3 epochs, validation accuracy 70.0%"],
        ["manifests", "2 images validated"],
        ["pixels", "validation 10 x 8x8x3 uint8"],
        ["pixels", "unfinished"],
    ]
    by_purpose = {row[1]: row for row in rows}
    assert by_purpose["files: 1"][2:4] == ["5.0 kB", "5 d"] and by_purpose["unfinished"][2:4] == ["6.0 kB", "6 d"]
    assert sum(line.strip().startswith("activations") for line in lines) == 1, "shards of one table in one line"
    total = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks")
    assert lines[-1] == f"6 entries, {decimal(total)} in {cache}"
    assert call("list") == lines


def test_an_empty_cache_is_no_error(call: Call, own_outputs: Path) -> None:
    for part in ("list", "verify"):
        if part == "verify":
            with pytest.raises(SystemExit) as ended:
                call(part)
            assert ended.value.code == 0
        else:
            assert call(part) == [f"0 entries, 0 bytes in {own_outputs / 'cache'}"]
    assert call("prune", "--to", "0")[-1].startswith("0 entries removed, 0 bytes remain")


def test_other_outputs_may_be_named_on_either_side(cache: Path, call: Call, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pixels(other / "cache")
    for arguments in (["--outputs", str(other), "list"], ["list", "--outputs", str(other)], ["--outputs", str(other)]):
        assert call(*arguments)[-1].startswith("1 entries, ")


def verified(call: Call, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, list[str]]:
    with pytest.raises(SystemExit) as ended:
        call("verify", *arguments)
    return ended.value.code, capsys.readouterr().out.splitlines()


def test_verify_finds_every_damage_and_removes_it_with_the_option(
    cache: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(call, capsys) == (0, ["5 hashes checked, 0 damaged; 2 entries were stored without one"])
    files = [
        cache / "pixels" / array_cache.key({"n": 1}) / "array.npy",
        cache / "activations" / "0f" / "0000256" / "array.npy",
        cache / "heads" / "abc" / "arrays.npz", cache / "manifests" / "abc.npz",
    ]  # fmt: skip
    for file in files[:3]:
        flip_bit(file)
    files[3].write_bytes(files[3].read_bytes().replace(b"RGB", b"RGX"))
    code, lines = verified(call, capsys)
    assert code == 1 and lines[-1] == "5 hashes checked, 4 damaged; 2 entries were stored without one"
    damaged = [*(file.parent for file in files[:3]), files[3]]
    assert {line.partition(": ")[0] for line in lines[:-1]} == {str(path) for path in damaged}
    assert all(path.exists() for path in damaged)
    code, lines = verified(call, capsys, "--remove")
    assert code == 1 and all(line.endswith("(removed)") for line in lines[:-1])
    assert not any(path.exists() for path in damaged)
    assert (cache / "activations" / "0f" / "0000000").is_dir(), "the sound shard stays"
    assert verified(call, capsys) == (0, ["1 hashes checked, 0 damaged; 2 entries were stored without one"])
    (cache / "activations" / "0f" / "0000000" / "meta.json").unlink()
    assert verified(call, capsys, "--remove")[0] == 1
    nothing = verified(call, capsys)
    assert nothing == (0, ["0 hashes checked, 0 damaged; 3 entries were stored without one"]), "an empty table is sound"


def test_prune_by_age(cache: Path, call: Call) -> None:
    kept, gone = entries(cache)[:3], entries(cache)[3:]
    printed = call("prune", "--older", "3.5", "--dry-run")
    assert printed[-1].startswith("3 entries would be removed, ") and all(path.exists() for path in kept + gone)
    removed = call("prune", "--older", "3.5")
    assert removed[:-1] == [line.replace("would remove", "removed") for line in printed[:-1]]
    assert [path.exists() for path in kept + gone] == [True] * 3 + [False] * 3
    assert "removed 5.0 kB drawn: files: 1, last used 5 d ago" in removed
    assert not list(cache.glob("*/.*")), "nothing half removed"


def test_prune_to_a_size_takes_the_longest_unused_first(cache: Path, call: Call) -> None:
    sizes = {held.path: held.size for held in inspection.scan(cache)}
    order = entries(cache)[::-1]
    total = sum(sizes.values())
    call("prune", "--to", str(total - sizes[order[0]] - 1))
    assert [path.exists() for path in order] == [False, False, True, True, True, True]
    call("prune", "--to", str(sum(sizes[path] for path in order[2:])))
    assert order[2].exists(), "it fits already"
    call("prune", "--older", "2.5", "--to", "1MB")
    assert [path.exists() for path in order] == [False] * 4 + [True] * 2


def test_use_is_what_counts_and_what_is_pruned_is_made_again(cache: Path, call: Call) -> None:
    os.utime(entries(cache)[0], (0, 0))
    before = pixels(cache)[:].copy()  # used now
    call("prune", "--older", "0.5")
    assert [path.exists() for path in entries(cache)] == [True] + [False] * 5
    call("prune", "--to", "0")
    assert not entries(cache)[0].exists()
    np.testing.assert_array_equal(pixels(cache), before)


def _uses(cache: Path, part: str, ready: Any, done: Any) -> None:
    if part == "reads":
        array = pixels(cache)
        ready.set()
        done.wait(30)
        assert array[0, 0, 0, 0] == 3
    else:
        with array_cache.writing(cache, "activations", "0f"):
            ready.set()
            done.wait(30)


@pytest.mark.parametrize("part, at", [("reads", 0), ("writes", 1)])
def test_what_another_process_uses_stays(cache: Path, call: Call, part: str, at: int) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_uses, args=(cache, part, ready, done))
    other.start()
    assert ready.wait(30)
    printed = call("prune", "--to", "0")
    assert [path.exists() for path in entries(cache)] == [place == at for place in range(6)]
    assert sum(line.startswith("in use, kept: ") for line in printed) == 1
    assert printed[-1] == "that is more than 0 bytes: what remains is in use"
    done.set()
    other.join(30)
    assert other.exitcode == 0
    call("prune", "--to", "0")
    assert not entries(cache)[at].exists()


def _prunes(cache: Path, start: Any) -> None:
    start.wait()
    for _ in range(50):
        list(inspection.prune(cache, older=None, to=0, dry_run=False))


def _makes(cache: Path, start: Any, results: Any) -> None:
    start.wait()
    results.put([int(pixels(cache).sum()) for _ in range(100)])


def test_pruning_beside_runs_does_them_no_harm(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    pruners = [context.Process(target=_prunes, args=(cache, start)) for _ in range(2)]
    makers = [context.Process(target=_makes, args=(cache, start, results)) for _ in range(2)]
    for process in pruners + makers:
        process.start()
    start.set()
    for _ in makers:
        assert results.get(timeout=60) == [10 * 8 * 8 * 3 * 3] * 100
    for process in pruners + makers:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("arguments, printed", [
    (["prune"], "give --older DAYS, --to SIZE or both"),
    (["prune", "--to", "5XB"], "must be a size such as 5GB, 500MB or 0. Received: '5XB'"),
    (["prune", "--older", "-1"], "must be a number of days, 0 or more. Received: '-1'"),
    (["prune", "--older", "soon"], "Received: 'soon'"),
    (["prune", "--older", "nan"], "Received: 'nan'"),
    (["purge"], "invalid choice: 'purge'"),
    (["--outputs", "/nowhere"], "--outputs: no such folder. Received: /nowhere"),
])  # fmt: skip
def test_wrong_arguments_are_refused(
    arguments: list[str], printed: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2 and printed in capsys.readouterr().err


@pytest.mark.parametrize("text, size", [
    ("0", 0), ("800000", 800_000), ("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5g", 15 * 10**8), ("2kB", 2000),
])  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert verb.size(text) == size


def test_help_imports_nothing_heavy_and_work_no_framework(cache: Path) -> None:
    heavy = ("numpy", "rich.console", "pydantic", "keras", "tensorflow", "mlflow")
    code = (
        "import sys; from experiments.__main__ import main\n"
        f"try: main()\nfinally: print(*(name for name in {heavy} if name in sys.modules))"
    )
    for arguments, allowed in (
        (["--help"], set()), (["prune", "--help"], set()),
        (["list"], {"numpy", "rich.console"}), (["verify"], {"numpy"}), (["prune", "--to", "0"], {"numpy"}),
    ):  # fmt: skip
        command = [sys.executable, "-c", code, "cache", *arguments]
        loaded = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1]
        assert set(loaded.split()) <= allowed, arguments


def test_of_a_link_the_link_alone_goes(tmp_path: Path) -> None:
    cache, kept = tmp_path / "cache", tmp_path / "elsewhere" / "folder"
    atomic_files.write_file(kept / "a.jpg", bytes(7000))
    (cache / "drawn").mkdir(parents=True)
    (cache / "drawn" / "linked").symlink_to(kept, target_is_directory=True)
    (cache / "drawn" / "broken").symlink_to(tmp_path / "nowhere")
    (cache / "photographs").symlink_to(kept.parent, target_is_directory=True)  # no kind of the cache's
    (cache / "pixels").symlink_to(tmp_path / "large disk", target_is_directory=True)
    atomic_files.write_file(tmp_path / "large disk" / "abc" / "array.npy", bytes(3000))
    reported = "\n".join(inspection.prune(cache, older=None, to=0, dry_run=False))
    assert f"a link to {kept}, which stays" in reported and "3 entries removed, 0 bytes remain" in reported
    assert [path.name for path in (cache / "drawn").iterdir()] == []
    assert list((tmp_path / "large disk").iterdir()) == [], "a kind of the cache may lie on another disk"
    assert (kept / "a.jpg").stat().st_size == 7000
    assert (cache / "photographs").is_symlink()
