"""Fixtures of the reliability tests, which count injected faults, tries and survivals for the table at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

Tally = Callable[[str, int, int], None]


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Return `tries(full, quick)`, which gives the number of tries in `make test-reliability` or in `make test`."""
    full = request.config.getoption("--full")
    return lambda many, few: many if full else few


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return `tally(fault, tries, survived)`, which adds a line to the table and fails unless all were survived."""

    def count(fault: str, tried: int, survived: int) -> None:
        record_property("reliability", [fault, tried, survived])
        assert tried > 0 and survived == tried, f"{fault}: {survived} of {tried} survived"

    return count


class Started:
    """Starter of Python programs in separate processes, none of which outlives its test."""

    def __init__(self) -> None:
        self.every: list[subprocess.Popen[str]] = []

    @staticmethod
    def heed_signals() -> None:
        """Reset the signal handlers, so that no signal is ignored if the tests run under nohup or in the background."""
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def __call__(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=self.heed_signals,
        )  # fmt: skip
        self.every.append(process)
        return process

    def end(self) -> None:
        for process in self.every:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe and not pipe.closed:
                    pipe.close()
            process.wait()


@pytest.fixture
def started() -> Iterator[Started]:
    every = Started()
    yield every
    every.end()
