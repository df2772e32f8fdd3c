"""The array cache, which holds features and pixels, with many processes at once, with file locks and without them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Started = Callable[..., subprocess.Popen[str]]

# Reads entries again and again, writing those that are missing; every value read must be the entry's.
WORKS = """
import random, sys, time
from pathlib import Path
from experiments.storage import array_cache, atomic_files

cache, seed, locks, until = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], time.time() + float(sys.argv[4])
if locks == "off":
    class NoLock:
        def __init__(self, *arguments, **options): raise NotImplementedError("no locks here")
    array_cache.FileLock = atomic_files.FileLock = NoLock
rng, reads = random.Random(seed), 0
print("ready", flush=True)
while time.time() < until:
    value = rng.randrange(5)
    def write(rows):
        for at in range(len(rows)):
            rows[at] = value + 10 * at
            if at % 50 == 0:
                time.sleep(0.001)
    folder = cache / "numbers" / array_cache.key({"value": value})
    found = array_cache.CacheEntry(folder, {"value": value}, (200, 50), "int32").load_or_create(write)
    for at in rng.sample(range(200), 20):
        if not (found[at] == value + 10 * at).all():
            print("WRONG", value, at, flush=True)
            sys.exit(1)
    reads += 1
    if rng.random() < 0.05:
        array_cache.remove(cache, folder)
print(reads)
"""


@pytest.mark.parametrize("locks", [pytest.param("on", marks=pytest.mark.slow), "off"])  # a lock only saves work
def test_a_race_of_four_processes_whose_writers_are_killed(
    started: Started, tries: Tries, tally: Tally, tmp_path: Path, locks: str
) -> None:
    rng = random.Random(0)
    seconds, kills = tries(30, 3), 0

    every: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        every.append(started("-c", WORKS, str(tmp_path), str(len(every)), locks, str(seconds)))
        return every[-1]

    running = [start(seconds) for _ in range(4)]
    until = time.time() + seconds  # after the starts, which take seconds themselves on a busy machine
    while time.time() < until - 1:
        time.sleep(rng.uniform(0.1, 0.4))
        at = rng.randrange(4)
        running[at].send_signal(signal.SIGKILL)
        kills += 1
        running[at] = start(until - time.time())
    wrong, reads = 0, 0
    for process in every:
        out, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), errors
        wrong += "WRONG" in out
        reads += sum(int(line) for line in out.splitlines() if line.isdigit())
    assert kills and reads > 10
    tally(f"store race of 4 processes, locks {locks}: writers killed", kills, kills - wrong)


def test_bit_flips_in_the_store(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    import numpy as np

    from experiments.storage import array_cache

    def write(rows: np.ndarray) -> None:
        rows[:] = np.arange(rows.size).reshape(rows.shape)

    rng, survived, wanted = random.Random(0), 0, tries(100, 10)
    for _ in range(wanted):
        folder = tmp_path / "numbers" / array_cache.key({"of": 1})
        entry = array_cache.CacheEntry(folder, {"of": 1}, (40, 10), "int32")
        found = np.array(entry.load_or_create(write))
        victim = rng.choice([folder / "array.npy", folder / "meta.json"])
        content = bytearray(victim.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
        array_cache._verified.clear()  # as a process that starts now
        again = np.array(entry.load_or_create(write))
        survived += bool((again == np.arange(400).reshape(40, 10)).all() and (found == again).all())
    tally("bit flip in the store", wanted, survived)
