"""Atomic saving of a finished model's weights, and of training checkpoints.

Each is one directory, which is written under a temporary name, fsynced and then renamed, and holds a sha256 of its
content. `save` and `load` handle the weights and history of a finished model; `Checkpoints` saves the state of training
as epochs end, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.storage.array_cache import mark_used
from experiments.storage.atomic_files import draft, sync
from experiments.training.types import EpochRecord

if TYPE_CHECKING:
    import keras

WEIGHTS, ARRAYS, META = "model.weights.h5", "arrays.npz", "meta.json"
KEPT = 2  # number of checkpoints that are kept per phase
# The last checkpoint of a finished run is kept for `continue=` up to so many bytes. A sweep has many jobs.
LARGEST_KEPT, LARGEST_KEPT_OF_JOB = 100e6, 10e6


def save(folder: Path, model: keras.Model, history: Sequence[EpochRecord]) -> None:
    """Write a model's weights and its training history to a directory, replacing an existing one."""
    _commit(folder, WEIGHTS, model.save_weights, {"history": [dataclasses.asdict(record) for record in history]})


def load(folder: Path, model: keras.Model) -> tuple[EpochRecord, ...] | None:
    """Load the weights of a directory into a model of the same shape and return their history.

    Return None if the directory is missing or damaged; damage is logged as a warning.
    """
    if not folder.is_dir():
        return None
    history = read(folder)
    if isinstance(history, str):
        _report(folder, history)
        return None
    try:
        model.load_weights(folder / WEIGHTS)
    except FileNotFoundError:  # Another process is replacing the directory.
        return None
    mark_used(folder, model)
    return history


def read(folder: Path) -> tuple[EpochRecord, ...] | str:
    """Return the history that a directory holds, or, as a string, the reason why the directory cannot be used.

    The weights are hashed to verify the directory.
    """
    meta = _meta(folder, WEIGHTS)
    if isinstance(meta, str):
        return meta
    try:
        return _history(meta)
    except (KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class State:
    """The state of training at the end of an epoch."""

    # The variables of the model and its optimizer, in Keras's order; the model's only if the optimizer starts anew.
    variables: Sequence[np.ndarray]
    best: Sequence[np.ndarray]  # the weights of the best epoch; empty if they are not kept
    stopping: Mapping[str, Any]  # the counters of early stopping
    stopped: bool  # true if early stopping has ended the phase
    history: tuple[EpochRecord, ...]  # the records of the phase's epochs


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
        self._found: dict[str, State | None] = {}
        self._saved_epochs: dict[str, int] = {}  # phase -> number of epochs that its latest checkpoint holds
        # A run has one process at a time, so that a temporary directory can only be left from one that was killed.
        for torn in folder.glob("*/.*"):
            shutil.rmtree(torn, ignore_errors=True)

    def latest(self, phase: str) -> State | None:
        """Return the last undamaged checkpoint of a phase; damaged ones are logged as warnings and skipped."""
        if phase not in self._found:
            folders = sorted((self.folder / phase).glob("[0-9]*"), reverse=True)
            state = next((state for state in map(_state, folders) if state), None)
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
        if state is None:
            return range(epochs)
        return range(epochs if state.stopped else len(state.history), epochs)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint, given `share`."""
        return (time.monotonic() - self._saved) * self.share >= self._cost * (1 - self.share)

    def save(self, phase: str, state: State) -> None:
        """Write a checkpoint after the last epoch in `state.history`, and delete all but the last KEPT up to it.

        Later ones are damaged: otherwise training would have continued from them.
        """
        began = time.monotonic()
        folder = self.folder / phase
        arrays = {f"variable{at}": array for at, array in enumerate(state.variables)}
        arrays |= {f"best{at}": array for at, array in enumerate(state.best)}
        meta = {
            "history": [dataclasses.asdict(record) for record in state.history],
            "stopping": dict(state.stopping),
            "stopped": state.stopped,
        }

        def write(path: Path) -> None:
            with path.open("xb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # No key is one of savez's own keywords.

        _commit(folder / f"{len(state.history):05}", ARRAYS, write, meta)
        self._found.pop(phase, None)  # The cached checkpoint is no longer the latest.
        self._saved_epochs[phase] = len(state.history)
        found = sorted(folder.glob("[0-9]*"))
        kept = [checkpoint for checkpoint in found if checkpoint.name <= f"{len(state.history):05}"][-KEPT:]
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


def _state(folder: Path) -> State | None:
    meta = _meta(folder, ARRAYS)
    if not isinstance(meta, str):
        try:
            with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
                names = {name: [key for key in arrays if key.startswith(name)] for name in ("variable", "best")}
                variables, best = ([arrays[f"{name}{at}"] for at in range(len(keys))] for name, keys in names.items())
            return State(variables, best, meta["stopping"], meta["stopped"], _history(meta))
        except (OSError, ValueError, KeyError, TypeError) as error:
            meta = f"{type(error).__name__}: {error}"
    _report(folder, meta)
    return None


def _report(folder: Path, reason: str) -> None:
    logging.getLogger(__name__).warning("%s is damaged (%s) and is not used", folder, reason)


def _history(meta: Mapping[str, Any]) -> tuple[EpochRecord, ...]:
    return tuple(EpochRecord(**record) for record in meta["history"])


def _commit(folder: Path, name: str, write: Callable[[Path], object], meta: Mapping[str, Any]) -> None:
    """Write a directory atomically, replacing an existing one.

    It holds the file `name`, which `write` creates, and META: the values of `meta` and a sha256 over both.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = draft(folder)
    aside.mkdir()
    try:
        write(aside / name)
        text = json.dumps(meta, sort_keys=True)
        (aside / META).write_text(json.dumps({"sha256": _hash(aside / name, text), **meta}), encoding="utf-8")
        for file in (name, META):
            sync(aside / file)
        _replace(aside, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _meta(folder: Path, name: str) -> dict[str, Any] | str:
    """Return the verified metadata of a directory, or, as a string, the reason why the directory cannot be used.

    The sha256 covers the file `name` and the metadata.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        sha256 = meta.pop("sha256")
        if _hash(folder / name, json.dumps(meta, sort_keys=True)) != sha256:
            return "its content does not match its sha256"
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _replace(source: Path, target: Path) -> None:
    """Rename a directory over another, retrying if other processes replace the same target concurrently.

    A directory that is not empty cannot be overwritten by a rename; it is moved away first.
    """
    while True:
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        old = draft(target)
        with contextlib.suppress(FileNotFoundError):  # Another process has already moved it away.
            os.rename(target, old)
        shutil.rmtree(old, ignore_errors=True)


def _hash(file: Path, meta: str) -> str:
    return hashlib.sha256(f"{file_hash(file)} {meta}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
