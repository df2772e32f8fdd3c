"""Signals that end a run, raised as exceptions, so that a run is closed properly before its process ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """Raised when the process receives SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_raised: BaseException | None = None


def end_while_loading() -> None:
    """Let Ctrl-C end the process with a one-line message while its modules load; `install` replaces this handler."""
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


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise the exceptions of `install` for signals during the block, in a process that goes on after Ctrl-C.

    Every Ctrl-C (the stop button of a notebook) raises KeyboardInterrupt, even where a library drops the exception or
    replaces it. After the block, the handlers from before are restored, and a signal that ends a process is sent again.
    In threads other than the main one nothing is handled, because Python delivers signals to the main thread only.
    """
    global _raised
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in _HANDLED if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _interrupt) for number in handled}
    try:
        with preferred():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stopped, _raised = _raised, None
        if isinstance(stopped, Stopped):
            os.kill(os.getpid(), stopped.number)


@contextmanager
def loading() -> Iterator[None]:
    """Delay Ctrl-C until modules are loaded in the block, in a process that goes on after it.

    Libraries such as NumPy cannot be imported again in a process in which their import was interrupted.
    """
    handler = signal.getsignal(signal.SIGINT)
    goes_on = handler in (_interrupt, signal.default_int_handler)
    if not goes_on or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def preferred() -> Iterator[None]:
    """Raise a received signal's exception in place of the error that a library has raised instead of it."""
    try:
        yield
    except Exception as error:
        if _raised is None:
            raise
        for note in getattr(error, "__notes__", ()):
            _raised.add_note(note)
        raise _raised from error


def check() -> None:
    """Raise the exception of a received signal again, in case it was lost: Python drops exceptions in finalizers."""
    if _raised is not None:
        raise _raised


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _raised
    _raised = KeyboardInterrupt("Ctrl-C") if number == signal.SIGINT else Stopped(number)
    raise _raised


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: with SIG_IGN, Python reports a signal that has arrived at the same time as an ignored exception."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in [other for other in _HANDLED if signal.getsignal(other) != signal.SIG_IGN]:
        signal.signal(other, signal.SIG_DFL if other in (number, signal.SIGINT) else _ignore)
    _interrupt(number, frame)
