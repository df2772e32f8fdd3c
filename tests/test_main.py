"""`experiments VERB`: the usage, unknown verbs, completion in the shell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.__main__ import VERBS


def experiments(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_usage_names_every_verb() -> None:
    done = experiments("--help")
    assert done.returncode == 0 and all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert experiments().returncode == 2


def test_an_unknown_verb_is_answered_with_the_nearest() -> None:
    done = experiments("compere")
    assert done.returncode == 1 and "Received: 'compere'" in done.stderr and "Nearest: compare" in done.stderr


@pytest.mark.parametrize("line, expected", [
    ("experiments ", set(VERBS)),
    ("experiments train", set(VERBS)),
    ("experiments train regime=", {"regime=bottleneck", "regime=finetune", "regime=scratch"}),
    ("experiments train regime=finetune schedule.", {"schedule.name=", "schedule._target_=", "schedule.warmup="}),
    ("experiments compare ", set()),
])  # fmt: skip
def test_completion_in_the_shell(line: str, expected: set[str]) -> None:
    done = experiments("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_the_shells_function_is_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    done = experiments("-sc", "install=bash")
    assert done.returncode == 0 and "complete -o nospace -o default -F hydra_bash_completion" in done.stdout
