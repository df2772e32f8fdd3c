"""A full disk, too little memory and a refused path are messages, whichever library raises the error."""

from __future__ import annotations

import errno

import pytest
import tensorflow as tf

from experiments.cli.arguments import exit_on_error
from experiments.system.machine_errors import exhausted, explain


def test_a_path_that_the_system_refuses_is_named() -> None:
    error = OSError(errno.EROFS, "Read-only file system", "/mnt/outputs/runs")
    text = explain(error)
    assert text is not None and text.startswith("/mnt/outputs/runs: Read-only file system. ")
    assert "outputs=... or EXPERIMENTS_HOME" in text
    assert explain(OSError(errno.EIO, "Input/output error", "x")) is None


def test_a_full_disk_is_recognised_by_hdf5s_message_too() -> None:
    of_hdf5 = OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')")
    for error in (OSError(errno.ENOSPC, "No space left on device"), of_hdf5):
        assert "the disk is full" in str(exhausted(error))
    assert exhausted(OSError("Can't write data (file write failed: errno = 5, error message = 'I/O error')")) is None


def test_too_little_memory_is_recognised_whichever_library_says_it() -> None:
    of_numpy = "Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000) and data type float64"
    of_tensorflow = (
        "Graph execution error:\n\nDetected at node conv\nOOM when allocating tensor with shape[64,1024,3] and type "
        "float on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
    )
    assert f"too little memory ({of_numpy}). " in str(exhausted(MemoryError(of_numpy)))
    assert "too little memory. " in str(exhausted(MemoryError()))
    caused = RuntimeError("in a thread")
    caused.__cause__ = tf.errors.ResourceExhaustedError(None, None, of_tensorflow)
    assert "too little memory (for a tensor [64,1024,3] of float on GPU:0). " in str(exhausted(caused))
    assert exhausted(RuntimeError(of_tensorflow)) is None


def test_a_verb_ends_with_the_message_and_without_a_traceback() -> None:
    with pytest.raises(SystemExit, match="too little memory"), exit_on_error():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(SystemExit, match="x: there is no room to write"), exit_on_error(OSError):
        raise OSError(errno.ENOSPC, "No space left on device", "x")
    with pytest.raises(RuntimeError, match="a defect"), exit_on_error():
        raise RuntimeError("a defect")
