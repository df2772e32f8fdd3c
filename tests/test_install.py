"""The built distribution, in environments of its own, used from another directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments import __version__

ROOT = Path(__file__).resolve().parent.parent


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("EXPERIMENTS_HOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """uv, the wheel built from the source distribution, and the locked versions of its dependencies."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on PATH")
    folder = tmp_path_factory.mktemp("dist")
    call(uv, "build", "--out-dir", folder, cwd=ROOT)  # the wheel is built from the source distribution
    (wheel,) = folder.glob("*.whl")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".gitignore") == [
        f"image_experiments-{__version__}-py3-none-any.whl", f"image_experiments-{__version__}.tar.gz"
    ]  # fmt: skip
    constraints = folder / "constraints.txt"
    export = ("export", "--frozen", "--no-emit-project", "--no-dev", "--extra", "search", "--no-hashes")
    call(uv, *export, "-o", constraints, cwd=ROOT)
    return uv, wheel, constraints


@pytest.mark.slow
def test_the_console_script_is_used_without_an_environment_of_ones_own(
    tmp_path: Path, built: tuple[str, Path, Path]
) -> None:
    """`uvx` and `uv tool install`, which pipx does likewise; a failed command leaves its exit code."""
    uv, wheel, constraints = built
    locked = ("--constraints", constraints)
    assert "usage: experiments VERB" in call(
        uv, "tool", "run", *locked, "--from", wheel, "experiments", "--help", cwd=tmp_path
    )
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    call(uv, "tool", "install", *locked, wheel, cwd=tmp_path, **places)
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["experiments"]
    shown = call(tmp_path / "bin" / "experiments", "inspect", "schedule", "epochs=2", cwd=tmp_path)
    assert "epoch" in shown
    wrong = subprocess.run([tmp_path / "bin" / "experiments", "train", "epochs=0"], cwd=tmp_path, capture_output=True)
    assert wrong.returncode == 1 and b"epochs" in wrong.stderr
    assert "image-experiments" in call(uv, "tool", "list", cwd=tmp_path, **places)
    call(uv, "tool", "uninstall", "image-experiments", cwd=tmp_path, **places)
    assert not list((tmp_path / "bin").iterdir())


@pytest.mark.slow
def test_the_wheel_works_from_a_fresh_environment_with_the_users_own_conf(
    tmp_path: Path, drawn: Path, built: tuple[str, Path, Path]
) -> None:
    uv, wheel, constraints = built
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my_conf" / "model").mkdir(parents=True)
    call(uv, "venv", elsewhere / "env", cwd=elsewhere)
    python = elsewhere / "env" / "bin" / "python"
    install = (uv, "pip", "install", "--python", python, "--constraint", constraints)
    call(*install, wheel, cwd=elsewhere)

    (elsewhere / "my_conf" / "model" / "densenet.yaml").write_text(
        "name: densenet\n_target_: keras.applications.DenseNet121\nnative_size: 48\nweights: null\n"
        "preprocessing: torch\n"
        "head: {pooling: average, dropout: 0.5, l1: 0.0, l2: 0.0, dense: {}}\n"
    )
    experiments = elsewhere / "env" / "bin" / "experiments"
    assert "regime=finetune" in call(experiments, "train", "--help", cwd=elsewhere)
    settings = ["data=folder", f"data.root={drawn}", "debug=fast"]
    body = ["regime=finetune", "data.image_size=48", "model.head.pooling=average"]  # the shipped weights
    call(experiments, "train", *settings, *body, cwd=elsewhere)
    own = ["--config-dir", "my_conf", "model=densenet", "regime=bottleneck"]
    call(python, "-m", "experiments.train", *own, *settings, cwd=elsewhere)
    runs = sorted(path.name.split("-", 2)[2] for path in (elsewhere / "outputs" / "runs").iterdir())
    assert [name.rsplit("-", 1)[0] for name in runs] == ["bottleneck-densenet", "finetune-convnet"]
    assert (elsewhere / "outputs" / "mlflow.db").exists()

    search = ["-m", *settings, "sweep.search=tpe", "sweep.trials=1", "model.head.dropout=interval(0,0.5)"]
    absent = subprocess.run([experiments, "train", *search], cwd=elsewhere, capture_output=True, text=True)
    (requirement,) = re.findall(r"pip install '(.*?)'", absent.stderr)
    call(*install, requirement, cwd=elsewhere)  # as the message says: the installed distribution has that extra
    call(python, "-c", "import optuna", cwd=elsewhere)
