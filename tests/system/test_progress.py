"""The progress of a run where no terminal shows it: a line for a tenth of the epochs and for the end of a stage."""

from __future__ import annotations

import io

import pytest

from experiments.system.progress import PlainConsole, Terminal


def lines_of(total: int, *, epochs: int = 0, lines: bool = True) -> list[str]:
    file = io.StringIO()
    with Terminal(PlainConsole(file=file, width=40), lines=lines).stage("head", total) as advance:
        for at in range(total):
            advance()
            if epochs and (at + 1) % (total // epochs) == 0:
                advance(0, f"{(at + 1) * epochs // total}/{epochs} loss 0.1")
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("epochs", "noted"), [(50, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]), (3, [1, 2, 3]), (0, [])])
def test_lines_without_a_terminal(epochs: int, noted: list[int]) -> None:
    *notes, last = lines_of(150, epochs=epochs)
    assert notes == [f"head: {at}/{epochs} loss 0.1" for at in noted]
    assert last.startswith("head: finished in ")


def test_silence_by_default() -> None:
    assert lines_of(150, epochs=50, lines=False) == []
