"""How TensorFlow is loaded, without its first lines on standard error."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


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
