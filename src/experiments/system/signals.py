"""Signals that end a run, raised as exceptions, so that a run is closed properly before its process ends."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """Raised when the process receives SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_HANDLED = [number for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None)) if number is not None]
_raised: BaseException | None = None


def end_while_loading() -> None:
    """Let Ctrl-C end the process with a one-line message while its modules load.

    `install`, or the verb, replaces this handler afterwards.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # No exception is raised, because the import machinery may drop it, and nothing needs to be closed yet.
    print("Stopped: Ctrl-C, before anything was done. Give the same command again", file=sys.stderr, flush=True)
    os._exit(128 + number)


def install() -> None:
    """Handle SIGTERM and SIGHUP by raising Stopped, and Ctrl-C by raising KeyboardInterrupt.

    After the first signal, a second one of the same kind, or Ctrl-C, ends the process at once. Signals of the other
    kinds are ignored then, because a closing terminal or a supervisor sends several. Signals that the process was
    started to ignore (nohup) stay ignored.
    """
    for number in _HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def check() -> None:
    """Raise the exception of a received signal again, in case it was lost: Python drops exceptions in finalizers."""
    if _raised is not None:
        raise _raised


def raised() -> BaseException | None:
    """Return the exception that a signal has raised, even if it was dropped or replaced; None if there is none."""
    return _raised


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    global _raised
    for other in [other for other in _HANDLED if signal.getsignal(other) != signal.SIG_IGN]:
        signal.signal(other, signal.SIG_DFL if other in (number, signal.SIGINT) else signal.SIG_IGN)
    _raised = KeyboardInterrupt("Ctrl-C") if number == signal.SIGINT else Stopped(number)
    raise _raised
