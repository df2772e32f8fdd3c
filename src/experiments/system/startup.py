"""Standard streams that can always be written to, and loading of TensorFlow without its first log lines."""

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

from experiments.errors import ConfigError, DataError
from experiments.system import keras_settings


@contextmanager
def quiet_start() -> Iterator[None]:
    """Hold back what native libraries write to standard error while they load or work; show it only if that fails.

    TensorFlow writes its first lines before its own log level can be set. Keras's global settings are those of every
    run afterwards, see `keras_settings`.

    The garbage collector is off meanwhile, and everything that was loaded is frozen (`gc.freeze`): it is never garbage,
    collections that go through it took a fifth of a short run's time, and forked processes go on sharing its memory.
    If TensorFlow is loaded already, nothing is frozen, because garbage of this process's earlier jobs would be kept.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    keras_settings.choose_backend()
    replaced = keras_settings.pin()
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        first, collecting = "tensorflow" not in sys.modules, gc.isenabled()
        if first:
            gc.disable()
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
            replaced |= keras_settings.pin()
        except (ConfigError, DataError):  # their messages say enough
            raise
        except Exception:  # no BaseException: the output does not explain why a process was stopped
            kept.seek(0)
            with contextlib.suppress(OSError):  # an error here would hide the reason
                os.write(terminal, kept.read())
            raise
        finally:
            if first:
                gc.freeze()
                if collecting:
                    gc.enable()
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
    keras_settings.warn(replaced)


class StandardFile(io.FileIO):
    """The descriptor of a standard stream, which is replaced by /dev/null once a write to it fails.

    So neither a closed pipe (`| head`) nor a full disk behind a redirection ends a run before it has written its files.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a non-blocking pipe that is full
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
    """Replace standard output and error by streams to which every text can be written at any time.

    A closed standard stream (`>&-`) is opened on /dev/null, before a file of the run gets its descriptor number.
    Characters that the terminal cannot show are escaped. A stream that was replaced already (by a test) stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
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
    """Return the error of writing to standard output; None without one, or if it is not a `StandardFile`."""
    with contextlib.suppress(ValueError, AttributeError):  # the stream is closed, or was replaced by a test
        sys.stdout.flush()
        if isinstance(raw := getattr(sys.stdout.buffer, "raw", None), StandardFile):
            return raw.failure
    return None
