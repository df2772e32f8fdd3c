"""The notebooks, and the Python examples of the pages, run as they are printed; progress in a notebook."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.system import progress
from experiments.system.progress import PlainConsole, Terminal

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def executed(notebook: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a notebook in a kernel of its own, and return it with its outputs."""
    monkeypatch.setenv("EXPERIMENTS_HOME", str(home))
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(
        content, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(home.parent)}}
    ).execute()
    return content


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = executed(ROOT / "notebooks" / "quick_start.ipynb", tmp_path / "home", monkeypatch).cells
    shown = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in shown]
    assert any("<iframe srcdoc" in page for page in pages), "the report"
    assert any("<th>from first</th>" in page for page in pages), "the comparison"
    bars = [output for output in shown if "head" in "".join(output.get("data", {}).get("text/plain", ""))]
    assert 1 <= len(bars) <= 4, "a bar for each training of a head, updated in place"
    assert list((tmp_path / "home" / "runs").glob("*/report.html"))


@pytest.mark.slow
def test_the_question_about_dropout_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = executed(ROOT / "notebooks" / "dropout.ipynb", tmp_path / "home", monkeypatch).cells
    text = "".join(str(cell.get("outputs", "")) for cell in cells)
    assert "3 seeds of each" in text and "Sweep bottleneck-convnet-" in text and "test" in text


class Display:
    """What IPython's `display` returns: a handle that counts its updates."""

    def __init__(self, shown: Any, display_id: bool) -> None:
        assert display_id
        self.texts = [self.text(shown)]
        handles.append(self)

    def text(self, shown: Any) -> str:
        return str(shown._repr_mimebundle_([], [])["text/plain"])

    def update(self, shown: Any) -> None:
        self.texts.append(self.text(shown))


handles: list[Display] = []


def test_progress_in_a_notebook_is_updated_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IPython.display.display", Display)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    handles.clear()
    for quiet in (False, True):
        with Terminal(PlainConsole(force_jupyter=True, quiet=quiet), lines=True).stage("head", 4) as advance:
            for _ in range(4):
                advance(note="loss 0.5")
    (handle,) = handles
    assert len(handle.texts) == 6 and all("head" in text for text in handle.texts)
    assert "loss" not in handle.texts[0] and "loss 0.5" in handle.texts[1] and handle.texts[1] != handle.texts[-1]


# A script without a `if __name__ == "__main__"`, which processes that a sweep starts must not execute again.
SCRIPT = """
import sys
from pathlib import Path
import experiments as ex
print("started")
{example}
print("candidates", len(sweep.summary), sweep.summary.runs.sum())
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/notebooks.md"])
def test_the_examples_of_a_sweep_run_in_a_script(page: str, drawn: Path, tmp_path: Path) -> None:
    import subprocess

    (example,) = [text for text in examples(page) if "ex.sweep(" in text]
    if page != "README.md":
        example = "\n".join([examples(page)[0].replace("run =", "run = 0 #"), example])
    text = textwrap.dedent(SCRIPT).format(example=example.replace("PATH", str(drawn)).replace("epochs=10", "epochs=1"))
    (tmp_path / "script.py").write_text(text)
    environment = os.environ | {"EXPERIMENTS_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started") == 1 and re.search(r"candidates 2 [46]", done.stdout), done.stdout
