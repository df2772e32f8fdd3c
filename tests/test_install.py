"""The wheel in an environment of its own, used from another directory: conf/ and the shipped weights come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("EXPERIMENTS_HOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_from_a_fresh_environment_with_the_users_own_conf(tmp_path: Path, drawn: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on PATH")
    call(uv, "build", "--wheel", "--out-dir", tmp_path / "dist", cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my_conf" / "model").mkdir(parents=True)
    constraints = tmp_path / "constraints.txt"
    call(uv, "export", "--frozen", "--no-emit-project", "--no-dev", "--no-hashes", "-o", constraints, cwd=ROOT)
    call(uv, "venv", elsewhere / "env", cwd=elsewhere)
    python = elsewhere / "env" / "bin" / "python"
    call(uv, "pip", "install", "--python", python, "--constraint", constraints, wheel, cwd=elsewhere)

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
