"""The scheduler of jobs, with a launcher that only pretends to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from experiments.sweeps.launchers.scheduler import JobLauncher, run_jobs


class PretendedLauncher(JobLauncher):
    """A launcher whose jobs end at the first check, unless they are in `endless`."""

    def __init__(self, slots: int, endless: Sequence[int] = (), queued: Sequence[int] = ()) -> None:
        super().__init__()
        self.slots, self.endless, self.queued = slots, endless, queued
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.most = 0

    def threads(self) -> int | None:
        return None

    def start(self, jobs: Sequence[Any]) -> list[int]:
        self.started += jobs
        return list(jobs)

    def wait(self, running: Mapping[int, int], seconds: float) -> dict[int, str | None]:
        self.most = max(self.most, len(running))
        return {at: None for at, job in running.items() if job not in self.endless or job in self.stopped}

    def stop(self, handles: Iterable[int]) -> None:
        self.stopped += handles

    def is_queued(self, handle: int) -> bool:
        return handle in self.queued


def run(
    launcher: PretendedLauncher, count: int, stop: Callable[[dict[int, str | None]], str | None] = lambda results: None
) -> dict[int, str | None]:
    results: dict[int, str | None] = {}
    jobs: Any = range(count)
    run_jobs(launcher, jobs, lambda: stop(results), lambda at, seconds, failure: results.update({at: failure}))
    return results


def test_jobs_start_in_their_order_and_at_most_slots_at_a_time() -> None:
    launcher = PretendedLauncher(slots=2)
    assert run(launcher, 5) == dict.fromkeys(range(5))
    assert launcher.started == list(range(5)) and launcher.most == 2


def test_no_further_job_starts_once_there_is_a_reason_and_the_running_ones_end() -> None:
    launcher = PretendedLauncher(slots=2)
    assert run(launcher, 6, lambda results: "enough" if results else None) == {0: None, 1: None}
    assert launcher.stopped == []


def test_jobs_that_wait_for_a_machine_are_withdrawn() -> None:
    launcher = PretendedLauncher(slots=3, endless=[1], queued=[1])
    assert run(launcher, 3, lambda results: "enough" if results else None) == {0: None, 2: None}
    assert launcher.stopped == [1]


def test_a_job_that_takes_too_long_is_stopped_with_the_timeout_as_its_reason() -> None:
    launcher = PretendedLauncher(slots=2, endless=[0])
    launcher.timeout = 0.05
    assert run(launcher, 3) == {0: "timeout: it took longer than 0.05 s", 1: None, 2: None}
    assert launcher.stopped == [0]


def test_running_jobs_are_stopped_if_the_sweep_is_interrupted() -> None:
    def interrupt(results: dict[int, str | None]) -> str | None:
        if results:
            raise KeyboardInterrupt
        return None

    launcher = PretendedLauncher(slots=2, endless=[1])
    with pytest.raises(KeyboardInterrupt):
        run(launcher, 3, interrupt)
    assert launcher.stopped == [1]
