"""Messages for errors of the machine: no room on the disk, too little memory, a path that it refuses."""

from __future__ import annotations

import errno
import re


def explain(error: BaseException) -> str | None:
    """Return the message for an error of the machine that users can act on; None for any other error."""
    return exhausted(error) or _refused(error)


def exhausted(error: BaseException) -> str | None:
    """Return the message for a lack of disk space or memory; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and _no_room(cause):
            where = f"{cause.filename}: " if cause.filename else ""
            return (
                f"{where}there is no room to write ({cause.strerror or cause}): the disk is full, or a quota or a "
                "limit of file sizes is reached. What was written before is whole. Make room (experiments cache "
                "prune), then go on"
            )
        # TensorFlow's class is known by its name, as this module does not import TensorFlow.
        if isinstance(cause, MemoryError) or type(cause).__name__ == "ResourceExhaustedError":
            tensor = re.search(r"tensor with shape(\[[\d,]*\]) and type (\w+) on \S*?device:(\w+:\d+)", str(cause))
            what = f"for a tensor {tensor[1]} of {tensor[2]} on {tensor[3]}" if tensor else str(cause).strip()
            return (
                f"there is too little memory{f' ({what})' if what else ''}. End what else uses it, such as other jobs "
                "(sweep.jobs), and go on; or use less: batch_size (optimizer.gradient_accumulation_steps keeps the "
                "effective one), data.image_size, the head's layers, on a GPU runtime.precision=mixed_float16"
            )
        cause = cause.__cause__
    return None


def _no_room(error: OSError) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # HDF5 gives the error number only in its message.
    return error.errno in numbers or any(f"errno = {number}," in str(error) for number in numbers)


def _refused(error: BaseException) -> str | None:
    """Return the message for a path that the operating system refuses; None for any other error."""
    numbers = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
    if not isinstance(error, OSError) or error.errno not in numbers:
        return None
    return (
        f"{error.filename}: {error.strerror}. What is written lies below outputs/ (another: outputs=... or "
        "EXPERIMENTS_HOME) and in a run's folder (hydra.run.dir): folders that this user must be able to write to"
    )
