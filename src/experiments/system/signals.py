"""Signals that end a run, as exceptions: what is under way is closed before the process goes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """The process was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_HANDLED = [number for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None)) if number is not None]
_raised: BaseException | None = None


def end_while_loading() -> None:
    """Let Ctrl-C end the process in a sentence while its modules load; `install` or the verb takes over after that."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Import machinery may drop an exception, and nothing is open yet.
    print("Stopped: Ctrl-C, before anything was done. Give the same command again", file=sys.stderr, flush=True)
    os._exit(128 + number)


def install() -> None:
    """SIGTERM and SIGHUP raise Stopped, Ctrl-C raises KeyboardInterrupt; a second one ends the process at once.

    What the process was started to ignore (nohup) stays ignored. Signals of the other kinds are ignored while the first
    is obeyed (a closing terminal, or a supervisor, sends several); but Ctrl-C always ends the process then.
    """
    for number in _HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def check() -> None:
    """Raises again what a signal has raised, where that was lost: in a finalizer Python drops exceptions."""
    if _raised is not None:
        raise _raised


def raised() -> BaseException | None:
    """Return what a signal has raised, whatever became of it."""
    return _raised


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    global _raised
    for other in [one for one in _HANDLED if signal.getsignal(one) != signal.SIG_IGN]:
        signal.signal(other, signal.SIG_DFL if other in (number, signal.SIGINT) else signal.SIG_IGN)
    _raised = KeyboardInterrupt("Ctrl-C") if number == signal.SIGINT else Stopped(number)
    raise _raised
