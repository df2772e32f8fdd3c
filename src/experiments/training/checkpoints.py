"""Weights and history on disk, whole or not at all: one folder each, written aside, fsynced, renamed, with a sha256.

`save` and `load` keep a model that is finished; `Checkpoints` keeps training itself, after every epoch.
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

from experiments.storage.array_cache import use
from experiments.storage.atomic_files import draft, sync
from experiments.training.types import EpochRecord

if TYPE_CHECKING:
    import keras

WEIGHTS, ARRAYS, META = "model.weights.h5", "arrays.npz", "meta.json"
KEPT = 2  # checkpoints of a phase


def save(folder: Path, model: keras.Model, history: Sequence[EpochRecord]) -> None:
    """Writes a model's weights and the history that led to them; a folder already there is replaced."""
    _commit(folder, WEIGHTS, model.save_weights, {"history": [dataclasses.asdict(record) for record in history]})


def load(folder: Path, model: keras.Model) -> tuple[EpochRecord, ...] | None:
    """Loads weights into a model of the same shape; returns their history.

    None where there is nothing, or nothing sound: damage is reported, and the folder is not used.
    """
    if not folder.is_dir():
        return None
    history = read(folder)
    if isinstance(history, str):
        _report(folder, history)
        return None
    try:
        model.load_weights(folder / WEIGHTS)
    except FileNotFoundError:  # another process is replacing it
        return None
    use(folder, model)
    return history


def read(folder: Path) -> tuple[EpochRecord, ...] | str:
    """The history kept in a folder, its weights hashed with it; or why neither can be used."""
    meta = _meta(folder, WEIGHTS)
    if isinstance(meta, str):
        return meta
    try:
        return _history(meta)
    except (KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class State:
    """Training as an epoch leaves it."""

    variables: Sequence[np.ndarray]  # of the model and its optimizer, in Keras's order
    best: Sequence[np.ndarray]  # the best epoch's weights, where they are kept
    stopping: Mapping[str, Any]  # what early stopping has counted so far
    stopped: bool  # no further epoch wanted
    history: tuple[EpochRecord, ...]  # of the phase


class Checkpoints:
    """A run's own checkpoints: a folder a phase, in it one of each of the last KEPT epochs.

    Args:
        folder: of the run; nothing is written there before an epoch ends.
        share: of the time, that saving may take: epochs that are too short for one each share a checkpoint.
    """

    def __init__(self, folder: Path, share: float = 0.1) -> None:
        self.folder, self.share = folder, share
        self._saved, self._cost = time.monotonic(), 0.0  # when the last one was, and its seconds
        self._found: dict[str, State | None] = {}
        self._saved_epochs: dict[str, int] = {}  # by phase
        for torn in folder.glob("*/.*"):  # of a process that was killed: a run has one at a time
            shutil.rmtree(torn, ignore_errors=True)

    def latest(self, phase: str) -> State | None:
        """The last sound checkpoint of a phase; those that are damaged are reported and passed over."""
        if phase not in self._found:
            folders = sorted((self.folder / phase).glob("[0-9]*"), reverse=True)
            state = next((state for state in map(_state, folders) if state), None)
            self._found[phase] = state
            self._saved_epochs[phase] = len(state.history) if state else 0
        return self._found[phase]

    def holds(self, record: EpochRecord) -> bool:
        """Whether a checkpoint holds this epoch, so that no resumed run trains it again."""
        if record.phase not in self._saved_epochs:
            self.latest(record.phase)
        return record.epoch < self._saved_epochs[record.phase]

    def epochs(self, phase: str, epochs: int) -> range:
        """Those of a phase that are still to be trained."""
        state = self.latest(phase)
        if state is None:
            return range(epochs)
        return range(epochs if state.stopped else len(state.history), epochs)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return (time.monotonic() - self._saved) * self.share >= self._cost * (1 - self.share)

    def save(self, phase: str, state: State) -> None:
        """Writes the checkpoint of the phase's last epoch; the oldest beyond KEPT goes."""
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
                np.savez(file, **arrays)  # type: ignore[arg-type]  # of its own keywords none is among them

        _commit(folder / f"{len(state.history):05}", ARRAYS, write, meta)
        self._found.pop(phase, None)  # no longer the latest
        self._saved_epochs[phase] = len(state.history)
        for old in sorted(folder.glob("[0-9]*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._saved = time.monotonic()
        self._cost = self._saved - began


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
    """Makes a folder with one file that `write` fills, and what is to be said of it; one already there is replaced."""
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
    """What a folder says of its file, hashed with it; or why neither can be used."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        sha256 = meta.pop("sha256")
        if _hash(folder / name, json.dumps(meta, sort_keys=True)) != sha256:
            return "its content does not match its sha256"
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _replace(source: Path, target: Path) -> None:
    """Renames a folder over another; what was there is moved away first, whoever else does the same at this moment."""
    while True:
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        old = draft(target)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(target, old)
        shutil.rmtree(old, ignore_errors=True)


def _hash(file: Path, meta: str) -> str:
    return hashlib.sha256(f"{file_hash(file)} {meta}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    """A file's sha256, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
