"""How TensorFlow is loaded, and what standard error is spared: its chatter as it starts, passwords."""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


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
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            if first:
                gc.freeze()
                gc.enable()
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


def without_passwords(text: str) -> str:
    """The text with the passwords of addresses in it starred out: scheme://user:***@host."""
    # What follows a colon in a web address may be a port and a path with an @ in it.
    return re.sub(r"(\b(?!https?://[^\s:/@]*:\d+/)\w[\w+.-]*://[^\s:/@]*):\S+@", r"\1:***@", text)


class Starred:
    """A text stream that shows no passwords of addresses: Hydra tells the overrides of a job that failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(without_passwords(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
