"""Comparisons of finished runs, from a store that holds what runs write; TensorFlow is not needed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from mlflow import MlflowClient
from rich.console import Console

from experiments.commands.compare import comparison_table, difference, group_by_seed, label, sentences
from experiments.tracking.stored import find_runs
from experiments.types import ConfigError

PICTURES = 40
BASE = {"regime": "scratch", "model": "convnet", "optimizer": "rmsprop", "optimizer.lr": "0.001"}


def right(count: int) -> list[bool]:
    """The first `count` of the pictures predicted correctly."""
    return [at < count for at in range(PICTURES)]


def fake_run(
    client: MlflowClient, experiment: str, name: str, params: dict[str, str], correct: Sequence[bool],
    pictures: str = "same", seconds: float = 10.0,
) -> str:  # fmt: skip
    """A finished run with parameters, metrics and validation predictions."""
    run = client.create_run(experiment, run_name=name)
    run_id: str = run.info.run_id
    for key, value in (BASE | {"seed": "0"} | params).items():
        client.log_param(run_id, key, value)
    client.log_metric(run_id, "total_seconds", seconds)
    table = {
        "path": [f"validation/a/{at}.jpg" for at in range(len(correct))],
        "sha256": [f"{pictures}{at}" for at in range(len(correct))],
        "correct": list(correct),
    }
    client.log_table(run_id, table, "predictions_validation.json")
    client.set_terminated(run_id)
    return run_id


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with three seeds each of scratch and finetune, and runs that cannot be compared with them."""
    folder = tmp_path_factory.mktemp("compare")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("experiments", (folder / "artifacts").as_uri())
    for seed, (low, high) in enumerate([(20, 34), (22, 36), (24, 38)]):
        fake_run(client, experiment, f"scratch{seed}", {"seed": str(seed)}, right(low), seconds=10.0 + seed)
        tuned = {"seed": str(seed), "regime": "finetune", "regime.views": "4"}
        fake_run(client, experiment, f"tuned{seed}", tuned, right(high))
    fake_run(client, experiment, "adam", {"optimizer": "adam"}, right(20))
    fake_run(client, experiment, "elsewhere", {"regime": "bottleneck"}, right(30), pictures="other")
    fake_run(client, experiment, "fewer", {"regime": "bottleneck"}, right(30)[:39])
    running = client.create_run(experiment, run_name="running").info.run_id
    client.log_param(running, "regime", "scratch")
    return uri


def test_runs_that_differ_in_their_seed_are_one_group(uri: str) -> None:
    names = ("scratch0", "tuned1", "scratch2", "tuned0", "scratch1", "tuned2")
    first, second = group_by_seed(uri, find_runs(uri, names), "validation")
    assert [run.name for run in first.runs] == ["scratch0", "scratch2", "scratch1"]
    assert [run.name for run in second.runs] == ["tuned1", "tuned0", "tuned2"]
    assert "seed" not in first.params and first.params["regime"] == "scratch"
    assert first.correct.shape == second.correct.shape == (3, PICTURES)
    assert list(first.correct.sum(axis=1)) == [20, 24, 22]


def test_the_difference_is_other_minus_first(uri: str) -> None:
    scratch, tuned = group_by_seed(uri, find_runs(uri, ("scratch0", "tuned0")), "validation")
    paired = difference(scratch, tuned)
    assert paired.difference == pytest.approx(14 / PICTURES) and 0 < paired.low < paired.high
    assert (paired.only_a, paired.only_b) == (0, 14) and paired.p_value == pytest.approx(2 * 0.5**14)
    back = difference(tuned, scratch)
    assert back.difference == pytest.approx(-14 / PICTURES) and back.high < 0


def test_groups_of_unequal_size_are_compared_over_the_seeds_that_both_have(uri: str) -> None:
    names = ("scratch0", "scratch1", "scratch2", "tuned2")
    scratch, tuned = group_by_seed(uri, find_runs(uri, names), "validation")
    assert difference(scratch, tuned).difference == pytest.approx((38 - 24) / PICTURES)  # seed 2 with seed 2
    scratch, tuned = group_by_seed(uri, find_runs(uri, ("scratch0", "scratch1", "tuned2")), "validation")
    assert difference(scratch, tuned).difference == pytest.approx((38 - 20) / PICTURES)  # none in common: in order


def test_labels_name_what_differs(uri: str) -> None:
    groups = group_by_seed(uri, find_runs(uri, ("scratch0", "scratch1", "tuned0", "adam")), "validation")
    assert [label(group, groups) for group in groups] == [
        "regime=scratch optimizer=rmsprop", "regime=finetune optimizer=rmsprop", "regime=scratch optimizer=adam",
    ]  # fmt: skip
    (alone,) = group_by_seed(uri, find_runs(uri, ("scratch0",)), "validation")
    assert label(alone, [alone]) == "scratch0"


def test_the_table_and_its_sentences(uri: str) -> None:
    names = ("scratch0", "scratch1", "scratch2", "tuned0", "tuned1", "tuned2")
    groups = group_by_seed(uri, find_runs(uri, names), "validation")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_table(groups, "validation"))
    text = console.export_text()
    first, second = (line for line in text.splitlines() if "regime=" in line)
    assert "55.0%" in first and "11" in first and "90.0%" in second and "+35.0" in second
    (sentence,) = sentences(groups)
    assert "regime=finetune is better than regime=scratch by 35.0 points" in sentence
    assert sentence.endswith("a real difference.")
    (worse,) = sentences(groups[::-1])
    assert "is worse than" in worse
    same = group_by_seed(uri, find_runs(uri, ("scratch0", "adam")), "validation")
    assert "neither better nor worse" in sentences(same)[0] and "not distinguishable" in sentences(same)[0]


def test_what_cannot_be_compared(uri: str) -> None:
    for name in ("elsewhere", "fewer"):
        with pytest.raises(ConfigError, match=f"{name} was judged on other validation pictures than scratch0"):
            group_by_seed(uri, find_runs(uri, ("scratch0", name)), "validation")
    with pytest.raises(ConfigError, match="scratch0 is named twice"):
        group_by_seed(uri, find_runs(uri, ("scratch0", "scratch0")), "validation")
    with pytest.raises(ConfigError, match="no predictions of split 'test'"):
        group_by_seed(uri, find_runs(uri, ("scratch0",)), "test")
    for name in ("running", "unheard-of"):
        with pytest.raises(ConfigError, match=f"{name}: no finished run fits.*The latest runs: .*adam"):
            find_runs(uri, (name,))


def compare(uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`experiments compare`, in a process that tells whether it imported TensorFlow."""
    program = (
        "import atexit, sys; from experiments.__main__ import main; "
        "atexit.register(lambda: print('heavy:', {'tensorflow', 'keras'} & set(sys.modules))); main()"
    )
    command = [sys.executable, "-c", program, "compare", "--uri", uri, *arguments]
    environment = os.environ | {"COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_the_command_prints_the_comparison_without_tensorflow(uri: str) -> None:
    done = compare(uri, "scratch0", "tuned0")
    assert done.returncode == 0, done.stderr
    assert "+35.0" in done.stdout and "a real difference" in done.stdout and "heavy: set()" in done.stdout


def test_the_command_answers_an_unknown_run_in_one_line(uri: str) -> None:
    done = compare(uri, "scratch0", "nobody")
    assert done.returncode == 1
    assert "nobody: no finished run fits" in done.stderr and "Traceback" not in done.stderr
