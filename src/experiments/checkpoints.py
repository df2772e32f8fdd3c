"""Weights and history on disk, whole or not at all: one folder each, written aside, fsynced, renamed, with a sha256."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.store import sync, use
from experiments.types import EpochRecord

if TYPE_CHECKING:
    import keras

WEIGHTS, META = "model.weights.h5", "meta.json"


def save(folder: Path, model: keras.Model, history: Sequence[EpochRecord]) -> None:
    """Writes a model's weights and the history that led to them; a folder already there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        model.save_weights(aside / WEIGHTS)
        records = json.dumps([dataclasses.asdict(record) for record in history], sort_keys=True)
        meta = {"sha256": _hash(aside / WEIGHTS, records), "history": json.loads(records)}
        (aside / META).write_text(json.dumps(meta), encoding="utf-8")
        for name in (WEIGHTS, META):
            sync(aside / name)
        _replace(aside, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path, model: keras.Model) -> tuple[EpochRecord, ...] | None:
    """Loads weights into a model of the same shape; returns their history.

    None where there is nothing, or nothing sound: damage is reported, and the folder is not used.
    """
    if not folder.is_dir():
        return None
    history = read(folder)
    if isinstance(history, str):
        logging.getLogger(__name__).warning("%s is damaged (%s) and is not used", folder, history)
        return None
    try:
        model.load_weights(folder / WEIGHTS)
    except FileNotFoundError:  # another process is replacing it
        return None
    use(folder, model)
    return history


def read(folder: Path) -> tuple[EpochRecord, ...] | str:
    """The history kept in a folder, its weights hashed with it; or why neither can be used."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if _hash(folder / WEIGHTS, json.dumps(meta["history"], sort_keys=True)) != meta["sha256"]:
            return "its weights and history do not match their sha256"
        return tuple(EpochRecord(**record) for record in meta["history"])
    except (OSError, ValueError, KeyError, TypeError) as error:
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
        old = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(target, old)
        shutil.rmtree(old, ignore_errors=True)


def _hash(weights: Path, history: str) -> str:
    return hashlib.sha256(f"{file_hash(weights)} {history}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    """A file's sha256, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
