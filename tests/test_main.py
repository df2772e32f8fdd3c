"""`experiments VERB`: the usage, unknown verbs, completion in the shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    ("experiments train regime=finetune schedule.",
     {"schedule.name=", "schedule._target_=", "schedule.warmup=", "schedule.final="}),
    ("experiments compare ", set()),
])  # fmt: skip
def test_completion_in_the_shell(line: str, expected: set[str]) -> None:
    done = experiments("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_the_shells_function_is_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    done = experiments("-sc", "install=bash")
    assert done.returncode == 0 and "complete -o nospace -o default -F hydra_bash_completion" in done.stdout


# --- standard streams


def shell(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which "$@" is Python with arguments."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", sys.executable, *arguments],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_listing_ends_well_where_its_reader_has_seen_enough_and_badly_where_it_is_lost() -> None:
    listing = ("-m", "experiments", "--help")
    for script in ('"$@" | true', '"$@" | head -c 10', '"$@" >&-', '"$@" >&- 2>&- <&-', '"$@" 2>/dev/full'):
        done = shell(script, *listing)
        assert (done.returncode, done.stderr) == (0, ""), script
    done = shell('"$@" >/dev/full', *listing)
    assert done.returncode == 1
    assert done.stderr == "Standard output cannot be written: No space left on device. What follows is lost\n"
    done = shell('"$@" >/dev/full', "-m", "experiments", "inspect", "--help")
    assert done.returncode == 1 and "No space left" in done.stderr


PRINTING = """
import sys
from experiments.system import redaction
redaction.install()
with open(sys.argv[1], "w") as file:
    file.write("a result")
    print("\\u732b \\u2192 K\\udcffse", flush=True)
    print("K\\u00e4se", file=sys.stderr, flush=True)
    import subprocess
    subprocess.run(["echo", "of a child"])
"""


@pytest.mark.parametrize("script", ['"$@"', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-', '"$@" | true', '"$@" >/dev/full'])
def test_nothing_printed_fails_or_gets_into_a_file(script: str, tmp_path: Path) -> None:
    result = tmp_path / "result"
    done = shell(script, "-c", PRINTING, str(result))
    assert done.returncode == 0, done.stderr
    assert result.read_text() == "a result"
    if script == '"$@"':
        assert done.stdout == "猫 → K\\udcffse\nof a child\n" and done.stderr == "Käse\n"


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    program = "from experiments.system import redaction\nredaction.install()\nfor n in range(20000): print('line', n)"
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        time.sleep(1)  # until the pipe is full
        with open(ours, encoding="utf-8") as file:
            lines = file.read().splitlines()
        assert process.wait() == 0, process.stderr and process.stderr.read()
    assert lines == [f"line {n}" for n in range(20000)]


def test_characters_that_a_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in (plain, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}):
        done = subprocess.run(
            [sys.executable, "-c", PRINTING, str(tmp_path / "result")],
            capture_output=True, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"\\u732b \\u2192 K\\udcffse\nof a child\n"
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, str(tmp_path / "result")],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii:replace"},
    )  # fmt: skip
    assert done.stdout == b"? ? K?se\nof a child\n", "as it was asked for"


@pytest.mark.slow  # a listing's is above
def test_a_run_whose_output_is_lost_is_finished_and_has_its_files(drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = shell(
        '"$@" >/dev/full', "-m", "experiments", "train", "data=folder", f"data.root={drawn}", "data.image_size=48",
        "regime=bottleneck", "model.weights=null", "model.head.pooling=average", "epochs=1", "batch_size=8",
        "evaluate.test=false", "tracking=none", "notes='猫 →'", f"hydra.run.dir={run}", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Standard output cannot be written: No space left on device" in done.stderr
    assert json.loads((run / "run.json").read_text())["status"] == "FINISHED"
    assert (run / "predictions_validation.csv").stat().st_size and list((run / "weights").iterdir())
    assert "notes: 猫 →" in (run / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("module, arguments", [("experiments", ["compare", "x"]), ("experiments.train", ["epochs=0"])])
def test_a_directory_that_was_removed_is_named(module: str, arguments: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    program = f"import os, runpy; os.rmdir(os.getcwd()); runpy.run_module({module!r}, run_name='__main__')"
    line = [sys.executable, "-Pc", program, *arguments]
    gone.mkdir()
    done = subprocess.run(line, cwd=gone, capture_output=True, text=True, env={**os.environ, "PWD": str(gone)})
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("The current directory cannot be used") and f"{gone} was removed" in done.stderr


@pytest.mark.parametrize("module", ["experiments", "experiments.train"])
def test_ctrl_c_while_modules_load_is_a_sentence(module: str) -> None:
    """The module runpy is the last one that Python itself loads; ours take longer than the rest."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", module, *(["train"] if module == "experiments" else []), "epochs=0"],
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "omegaconf" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 128 + signal.SIGINT and "Traceback" not in rest
    assert rest.rstrip().endswith("Stopped: Ctrl-C, before anything was done. Give the same command again")
