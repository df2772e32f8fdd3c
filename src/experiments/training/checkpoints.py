"""Checkpoints: states of training as directories, each complete or absent, and verified by a sha256 of its content.

`Checkpoints` saves the state of a run as epochs end, so that an interrupted run can be resumed. `save` and `load` keep
trained heads in the same form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.storage.array_cache import mark_used
from experiments.storage.atomic_files import file_hash, sync, write_file, writing_directory
from experiments.training.types import EpochRecord

if TYPE_CHECKING:
    import keras

ARRAYS, META = "arrays.npz", "meta.json"
KEPT = 2  # number of checkpoints that are kept per phase
# The last checkpoint of a finished run is kept for `continue=` up to so many bytes. A sweep has many jobs.
LARGEST_KEPT, LARGEST_KEPT_OF_JOB = 100e6, 10e6


@dataclass(frozen=True)
class TrainingState:
    """The state of training at the end of an epoch."""

    # The variables of the model and its optimizer, in Keras's order; the model's only if the optimizer starts anew.
    variables: Sequence[np.ndarray]
    best: Sequence[np.ndarray] = ()  # the weights of the best epoch; empty if they are not kept
    stopping: Mapping[str, Any] = field(default_factory=dict)  # the counters of early stopping
    stopped: bool = False  # true if early stopping has ended the phase
    history: tuple[EpochRecord, ...] = ()  # the records of the phase's epochs


def save(folder: Path, model: keras.Model, history: Sequence[EpochRecord]) -> None:
    """Write a model's weights and its training history to a directory, replacing an existing one."""
    _write(folder, TrainingState(model.get_weights(), history=tuple(history)))


def load(folder: Path, model: keras.Model) -> tuple[EpochRecord, ...] | None:
    """Load the weights of a directory into a model of the same shape and return their history.

    Return None if the directory is missing or damaged; damage is logged as a warning.
    """
    state = _undamaged(folder) if folder.is_dir() else None
    if state is None:
        return None
    model.set_weights(state.variables)
    mark_used(folder, model)
    return state.history


def read(folder: Path) -> TrainingState | str:
    """Return the state that a directory holds, or, as a string, the reason why the directory cannot be used."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        sha256 = meta.pop("sha256")
        if _hash(folder / ARRAYS, meta) != sha256:
            return "its content does not match its sha256"
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            variables, best = ([arrays[key] for key in arrays if key.startswith(name)] for name in ("variable", "best"))
        history = tuple(EpochRecord(**record) for record in meta["history"])
        return TrainingState(variables, best, meta["stopping"], meta["stopped"], history)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


class Checkpoints:
    """The training checkpoints of a run: one directory per phase, which holds the last KEPT checkpoints.

    Args:
        folder: the directory of the run's checkpoints; nothing is written to it before an epoch ends.
        share: the largest share of the run time that saving may take; if epochs are too short for a checkpoint each,
            one is saved every few epochs.
    """

    def __init__(self, folder: Path, share: float = 0.1) -> None:
        self.folder, self.share = folder, share
        self._saved, self._cost = time.monotonic(), 0.0  # the time of the last save, and how many seconds it took
        self._found: dict[str, TrainingState | None] = {}
        self._saved_epochs: dict[str, int] = {}  # phase -> number of epochs that its latest checkpoint holds
        # A run has one process at a time, so that a temporary directory can only be left from one that was killed.
        for torn in folder.glob("*/.*"):
            shutil.rmtree(torn, ignore_errors=True)

    def latest(self, phase: str) -> TrainingState | None:
        """Return the last undamaged checkpoint of a phase; damaged ones are logged as warnings and skipped."""
        if phase not in self._found:
            folders = sorted((self.folder / phase).glob("[0-9]*"), reverse=True)
            state = next((state for state in map(_undamaged, folders) if state), None)
            self._found[phase] = state
            self._saved_epochs[phase] = len(state.history) if state else 0
        return self._found[phase]

    def holds(self, record: EpochRecord) -> bool:
        """Return whether a checkpoint holds this epoch, so that a resumed run does not train it again."""
        if record.phase not in self._saved_epochs:
            self.latest(record.phase)
        return record.epoch < self._saved_epochs[record.phase]

    def epochs(self, phase: str, epochs: int) -> range:
        """Return the epochs of a phase that are still to be trained."""
        state = self.latest(phase)
        return range(0 if state is None else epochs if state.stopped else len(state.history), epochs)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint, given `share`."""
        return (time.monotonic() - self._saved) * self.share >= self._cost * (1 - self.share)

    def save(self, phase: str, state: TrainingState) -> None:
        """Write a checkpoint after the last epoch in `state.history`, and delete all but the last KEPT up to it.

        Later ones are damaged: otherwise training would have continued from them.
        """
        began = time.monotonic()
        written = self.folder / phase / f"{len(state.history):05}"
        _write(written, state)
        self._found.pop(phase, None)  # The cached checkpoint is no longer the latest.
        self._saved_epochs[phase] = len(state.history)
        found = sorted(written.parent.glob("[0-9]*"))
        kept = [folder for folder in found if folder <= written][-KEPT:]
        for other in set(found) - set(kept):
            shutil.rmtree(other, ignore_errors=True)
        self._saved = time.monotonic()
        self._cost = self._saved - began


def keep_last(folder: Path, phase: str | None, largest: float) -> None:
    """Remove the checkpoints of a finished run, except the last one of its last phase if it is small enough.

    Args:
        folder: the directory of the run's checkpoints.
        phase: the last phase; None to keep none.
        largest: number of bytes.
    """
    last = max(folder.glob(f"{phase}/[0-9]*"), default=None) if phase else None
    if last is None or sum(path.stat().st_size for path in last.iterdir()) > largest:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in [*folder.iterdir(), *last.parent.iterdir()]:
        if path not in (last, last.parent):
            shutil.rmtree(path, ignore_errors=True)


def _undamaged(folder: Path) -> TrainingState | None:
    """Return the state that a directory holds; None if it is damaged, which is logged as a warning."""
    state = read(folder)
    if isinstance(state, TrainingState):
        return state
    logging.getLogger(__name__).warning("%s is damaged (%s) and is not used", folder, state)
    return None


def _write(folder: Path, state: TrainingState) -> None:
    """Write a state to a directory atomically, replacing an existing one."""
    arrays = {f"variable{at}": array for at, array in enumerate(state.variables)}
    arrays |= {f"best{at}": array for at, array in enumerate(state.best)}
    meta = {
        "history": [dataclasses.asdict(record) for record in state.history],
        "stopping": dict(state.stopping),
        "stopped": state.stopped,
    }
    with writing_directory(folder) as draft:
        np.savez(draft / ARRAYS, **arrays)  # type: ignore[arg-type]  # No key is one of savez's own keywords.
        sync(draft / ARRAYS)
        write_file(draft / META, json.dumps({"sha256": _hash(draft / ARRAYS, meta), **meta}).encode())
        # What is replaced is damaged, or the same: a process that reads it meanwhile finds it damaged or gone.
        shutil.rmtree(folder, ignore_errors=True)


def _hash(arrays: Path, meta: Mapping[str, Any]) -> str:
    """Return the sha256 over the file of the arrays and the metadata."""
    return hashlib.sha256(f"{file_hash(arrays)} {json.dumps(meta, sort_keys=True)}".encode()).hexdigest()
