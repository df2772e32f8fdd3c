"""Checkpoints whose writer is killed, with flipped bits, truncated, and on a full disk."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.training.checkpoints import KEPT, Checkpoints, TrainingState

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Started = Callable[..., subprocess.Popen[str]]

SAVES = """
import sys
from pathlib import Path
import numpy as np
from experiments.training.checkpoints import Checkpoints, TrainingState
from experiments.training.types import EpochRecord

checkpoints = Checkpoints(Path(sys.argv[1]))
found = checkpoints.latest("phase")
epoch = len(found.history) if found else 0
print("ready", flush=True)
while True:
    epoch += 1
    history = tuple(EpochRecord(n, "phase", n, n, {"loss": 1.0 / (n + 1)}) for n in range(epoch))
    arrays = [np.full((100, 1000), epoch, "float32"), np.full(7, -epoch, "int64")]
    checkpoints.save("phase", TrainingState(arrays, [arrays[0] + 1], {"wait": epoch}, False, history))
"""


def epoch_of(state: TrainingState | None) -> int:
    """The epoch that a checkpoint of SAVES is of, all of it; 0 for none."""
    if state is None:
        return 0
    epoch = len(state.history)
    whole, counts = state.variables
    assert (whole == epoch).all() and (counts == -epoch).all() and (state.best[0] == epoch + 1).all()
    assert state.stopping == {"wait": epoch} and [record.epoch for record in state.history] == list(range(epoch))
    return epoch


def test_kills_while_a_checkpoint_is_saved(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    rng, folder = random.Random(0), tmp_path / "checkpoints"
    wanted, survived, last = tries(100, 6), 0, 0
    for _ in range(wanted):
        process = started("-c", SAVES, str(folder))
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        at_next_start = Checkpoints(folder)
        epoch = epoch_of(at_next_start.latest("phase"))
        left = [path for path in folder.rglob("*") if ".0" in path.name or path.name.startswith(".")]
        survived += epoch >= last and not left
        last = epoch
    assert last > wanted, "checkpoints were saved between the kills"
    # A process that is killed between a save and the deletions after it leaves one more; the next save deletes them.
    saved = at_next_start.latest("phase")
    assert saved is not None
    at_next_start.save("phase", replace(saved, history=(*saved.history, saved.history[-1])))
    assert len(list((folder / "phase").glob("*"))) == KEPT
    tally("kill -9 while a checkpoint is saved", wanted, survived)


def test_damage_to_the_last_checkpoint(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    made = tmp_path / "made"
    process = started("-c", SAVES, str(made))
    while len(list((made / "phase").glob("[0-9]*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    Checkpoints(made)
    newest = epoch_of(Checkpoints(made).latest("phase"))
    rng = random.Random(0)
    outcomes: dict[str, list[bool]] = {"bit flip": [], "truncation": []}
    for number in range(tries(200, 20)):
        folder = tmp_path / f"copy{number}"
        shutil.copytree(made, folder)
        victim = rng.choice(sorted((folder / "phase" / f"{newest:05}").iterdir()))
        content = bytearray(victim.read_bytes())
        what = "bit flip" if number % 2 else "truncation"
        at = rng.randrange(len(content))
        if number % 2:
            content[at] ^= 1 << rng.randrange(8)
        else:
            del content[at:]
        victim.write_bytes(content)
        # The previous checkpoint is loaded, or the last one with equal values where the flipped bit changes none of
        # them (such as E for e in a number).
        outcomes[what].append(epoch_of(Checkpoints(folder).latest("phase")) in (newest - 1, newest))
        shutil.rmtree(folder)
    for what, survived in outcomes.items():
        tally(f"{what} in the last checkpoint", len(survived), sum(survived))


def test_both_checkpoints_damaged_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save("phase", TrainingState([np.full(3, epoch)], [], {}, False, ()))
    for file in tmp_path.rglob("arrays.npz"):
        file.write_bytes(file.read_bytes()[:-1])
    assert Checkpoints(tmp_path).latest("phase") is None
