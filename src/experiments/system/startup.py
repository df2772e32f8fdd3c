"""Standard streams that no reader can break, and how TensorFlow is loaded without its first lines there."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps what native libraries write to standard error while they load; shown only if loading fails.

    TensorFlow's first lines are written before its own log level can be set.

    What is loaded is never garbage: it is not looked through for such, now or later, which took a fifth of a short
    run's time, and processes that are forked go on sharing its memory. Not where TensorFlow is there already: what
    earlier jobs of this process left behind is garbage, and must not be kept.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        first = "tensorflow" not in sys.modules
        if first:
            gc.disable()
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:  # of a process that is stopped meanwhile it explains nothing
            kept.seek(0)
            with contextlib.suppress(OSError):  # else it would hide the reason
                os.write(terminal, kept.read())
            raise
        finally:
            if first:
                gc.freeze()
                gc.enable()
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


class StandardFile(io.FileIO):
    """The descriptor of a standard stream; once it cannot be written, /dev/null takes its place.

    So a reader that has seen enough (`| head`) or a full disk behind a redirection ends no run, and no file that is
    still to be written stays unwritten. Children of the process inherit the replacement.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self], [])
            return written
        except OSError as error:
            self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                print(f"Standard output cannot be written: {error.strerror}. What follows is lost", file=sys.stderr)
            return super().write(data)


def protect_streams() -> None:
    """Make standard output and error streams to which every text can be written at any time.

    A closed one (`>&-`) is opened on /dev/null, before a file of the run takes its number. Characters that the terminal
    cannot show are escaped. A stream that has been replaced already (by a test) stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(null, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is not None:
            stream.flush()
        encoding, lines = (stream.encoding, stream.line_buffering) if stream else ("utf-8", False)
        given = stream.errors if stream else "strict"
        errors = "backslashreplace" if given in ("strict", "surrogateescape") else given
        binary = io.BufferedWriter(StandardFile(number, "wb", closefd=False))
        setattr(sys, name, io.TextIOWrapper(binary, encoding=encoding, errors=errors, line_buffering=lines))


def output_failure() -> OSError | None:
    """Return why standard output could not be written whole; None: it was, or is no stream of `protect_streams`."""
    with contextlib.suppress(ValueError, AttributeError):  # closed, or a test's
        sys.stdout.flush()
        raw = getattr(sys.stdout.buffer, "raw", None)
        return raw.failure if isinstance(raw, StandardFile) else None
    return None
