"""`experiments report RUN` on a run that was trained here."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import report
from experiments.cli.arguments import exit_on_error
from experiments.deploy import saved_run
from experiments.errors import ConfigError
from experiments.inspection import report as making
from experiments.reports import run_report
from experiments.tracking import queries


@pytest.fixture(scope="module")
def trained(drawn: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tracked run that is certain of wrong classes, so that there are mistakes to explain."""
    outputs = tmp_path_factory.mktemp("reported") / "outputs"
    folder = outputs / "runs" / "reported"
    train_here(
        "data=folder", f"data.root={drawn}", "data.image_size=48", "model.weights=null", "regime=bottleneck",
        "epochs=1", "optimizer.lr=0.5", "progress=none", f"outputs={outputs}", f"hydra.run.dir={folder}",
        "hydra/job_logging=none", "tracking.log_model=false",
    )  # fmt: skip
    return folder


def reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that the command prints."""
    monkeypatch.setattr("sys.argv", ["experiments report", *arguments])
    report.main()
    return capsys.readouterr().out.splitlines()


def test_the_page_is_made_again_and_logged(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "report.html"
    assert path.is_file(), "the run has made one"
    uri = f"sqlite:///{trained.parents[1] / 'mlflow.db'}"
    (run,) = queries.find_runs(uri, [trained.name])
    before = queries.artifact(uri, run.run_id, path.name)
    assert before is not None and before.read_bytes() == path.read_bytes()
    path.unlink()
    lines = reported(monkeypatch, capsys, str(trained))
    assert lines[0] == str(path) and lines[1].startswith(f"also in MLflow: run {run.run_id}")
    text = path.read_text(encoding="utf-8")
    assert "images are wrong" in text and text.count('alt="Grad-CAM of validation/') >= 3
    again = queries.artifact(uri, run.run_id, path.name)
    assert again is not None and again.read_bytes() == path.read_bytes()


def test_the_command_writes_nothing_but_its_lines(trained: Path, tmp_path: Path) -> None:
    """TensorFlow's first lines stood above them where the page shows Grad-CAM."""
    command = [sys.executable, "-m", "experiments", "report", str(trained), "--output", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(tmp_path / "page.html")] and not done.stderr
    assert "Grad-CAM of validation/" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("place, remedy", [("runs/a/report.html", "--output PATH"), ("compare", "EXPERIMENTS_HOME=")])
def test_a_folder_that_refuses_the_user_is_answered_with_what_helps(
    place: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of a run is in the run's folder, whatever EXPERIMENTS_HOME names."""
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as raised, exit_on_error(OSError):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / place))
    text = str(raised.value)
    assert remedy in text and ("--output" in text) != ("EXPERIMENTS_HOME" in text)


def test_the_images_may_have_moved_and_the_page_be_elsewhere(
    trained: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn, tmp_path / "moved")
    written = (trained / "report.html").stat().st_mtime_ns
    target = tmp_path / "page.html"
    lines = reported(monkeypatch, capsys, str(trained), "--data", str(tmp_path / "moved"), "--output", str(target))
    assert lines == [str(target)] and "data:image/jpeg" in target.read_text(encoding="utf-8")
    assert (trained / "report.html").stat().st_mtime_ns == written


def test_the_logged_report_of_a_run_on_another_machine_is_written_where_it_was_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saved_run, "folder_of", lambda *arguments: None)
    uri, target = f"sqlite:///{trained.parents[1] / 'mlflow.db'}", tmp_path / "new" / "page.html"
    assert reported(monkeypatch, capsys, trained.name, "--uri", uri, "--output", str(target)) == [str(target)]
    assert target.read_bytes() == (trained / "report.html").read_bytes()


def test_a_report_that_cannot_be_logged_is_there(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(*arguments: object) -> None:
        raise ConfigError("the store does not answer")

    monkeypatch.setattr(making, "add_file", unavailable)
    monkeypatch.setattr(run_report, "html", lambda *arguments: "the page")
    with pytest.raises(SystemExit, match=r"report.html: the report is written.*not in MLflow: the store does not ans"):
        reported(monkeypatch, capsys, str(trained))
    assert (trained / "report.html").read_text(encoding="utf-8") == "the page"


def test_the_typed_store_wins_over_that_of_the_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_report, "html", lambda *arguments: "the page")
    with pytest.raises(SystemExit, match=r"not in MLflow: .*other\.db"):
        reported(monkeypatch, capsys, str(trained), "--uri", f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No runs yet"),
        (["RUN", "--data", "/no/such"], "--data: no such folder. Received: /no/such"),
        (["RUN", "--output", "page.txt"], "must end in .html. Received: 'page.txt'"),
    ],
)
def test_what_cannot_be_reported_is_named(
    arguments: list[str], message: str, trained: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [str(trained) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        reported(monkeypatch, capsys, *given)
    assert message in f"{ended.value.code} {capsys.readouterr().err}"
