"""A tracking server that is absent, goes away, and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Started = Callable[..., subprocess.Popen[str]]

# The tracking of a run of many quick epochs: each line of standard input logs one epoch.
TELLS = """
import sys
from pathlib import Path
from hydra import compose, initialize_config_dir
import experiments.train
from experiments.tracking import mlflow_run
from experiments.config import validation
from experiments.runs import run_directory
from experiments.system import paths
from experiments.training.types import EpochRecord
home, uri = Path(sys.argv[1]), sys.argv[2]
with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
    config = validation.validate(compose("config", [f"outputs={home}", "tracking=server", f"tracking.uri={uri}"]))
folder = home / "runs" / "reported"
folder.mkdir(parents=True)
(folder / "metrics.json").write_text("{}")
from experiments.tracking import buffer
buffer.SHARE = 0.5
with mlflow_run.track(config, folder) as tracker:
    (folder / "run.json").write_text('{"command": {}, "run_id": "%s", "store": "%s"}' % (tracker.run_id, uri))
    print(tracker.run_id, flush=True)
    tracker.buffer.put("parameters", {"seed": "0"})
    for step, line in enumerate(sys.stdin):
        tracker.epoch(EpochRecord(step, "scratch", step, 1000 + step, {"loss": float(step)}))
        print(step, flush=True)
    tracker.results({"validation.accuracy": 0.5}, {"regime": "scratch"}, 5000)
    tracker.artifacts({"predictions_validation": {"path": ["a"], "correct": [True]}})
print("ended", flush=True)
"""


class Server:
    """An MLflow server of a folder, on one port whenever it runs."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.home, self.uri = home, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = [f"sqlite:///{self.home}/server.db", "--artifacts-destination", str(self.home / "artifacts")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
             "--workers", "1", "--backend-store-uri", *store],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"{self.uri}/health", timeout=2)
                return
            except requests.RequestException:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    home = tmp_path / "server"
    home.mkdir()
    server = Server(home)
    yield server
    server.kill()


def say(process: subprocess.Popen[str], epochs: int) -> None:
    """Lets a run of TELLS go on for so many epochs."""
    assert process.stdin is not None and process.stdout is not None
    for _ in range(epochs):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip().isdigit()


@pytest.mark.slow  # test-reliability has it
def test_a_server_that_is_killed_and_comes_back(
    server: Server, started: Started, tries: Tries, tally: Tally, tmp_path: Path
) -> None:
    """First it comes back only after the run has ended, then while the run goes on."""
    for name in ("after its end", "during the run")[: tries(2, 1)]:
        server.start()
        home = tmp_path / name.replace(" ", "-")
        process = started("-c", TELLS, str(home), server.uri)
        assert process.stdout is not None and process.stdin is not None
        run_id = process.stdout.readline().strip()
        say(process, 20)
        time.sleep(1.5)
        say(process, 20)
        server.kill()
        time.sleep(1.5)
        say(process, 20)  # no epoch waits for the server
        unsent = home / "runs" / "reported" / "unsent.jsonl"
        assert unsent.exists()
        if name == "during the run":
            server.start()
            say(process, 20)
            process.stdin.close()
        else:
            say(process, 20)
            process.stdin.close()
            process.wait(timeout=120)
            assert unsent.exists()
            server.start()
        assert process.wait(timeout=120) == 0, process.stderr and process.stderr.read()
        if name == "after its end":
            done = started("-m", "experiments", "sync", EXPERIMENTS_HOME=str(home))
            out, errors = done.communicate(timeout=120)
            assert done.returncode == 0 and f"all is in {server.uri}" in out, errors
            again = started("-m", "experiments", "sync", EXPERIMENTS_HOME=str(home))
            assert again.communicate(timeout=120)[0].startswith("Nothing to upload"), "nothing waits any more"
        assert not unsent.exists()
        client = mlflow.MlflowClient(server.uri)
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED" and "failure" not in run.data.tags
        assert run.data.metrics["validation.accuracy"] == 0.5 and run.data.params == {"seed": "0"}
        files = {artifact.path for artifact in client.list_artifacts(run_id)}
        assert files == {"metrics.json", "predictions_validation.json"}
        right = sum(points.count((step, float(step))) == 1 for step in range(80))
        server.kill()
        assert len(points) == 80
        tally(f"tracking server killed, back {name}: points", 80, right)


def test_a_server_that_is_not_there_is_a_clear_error_within_ten_seconds(
    run_here: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """That is at most seven more than the imports, which take three on a machine that is not busy."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    seconds = []
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as refusing:
        ports = [server.getsockname()[1] for server in (refusing, silent)]  # the silent one accepts and never answers
        refusing.close()
        for host in [*(f"127.0.0.1:{port}" for port in ports), f"nowhere.invalid:{ports[1]}"]:
            began = time.monotonic()
            with pytest.raises(SystemExit) as ended:
                run_here("tracking=server", f"tracking.uri=http://someone:secret@{host}")
            seconds.append(time.monotonic() - began)
            message = str(ended.value)
            assert f"tracking.uri: the MLflow store at http://someone:***@{host} cannot be used: " in message
            assert "or use tracking=none, or another store: tracking.uri=" in message
            assert "Check the address and that the server runs" in message and "secret" not in message
    tally("server unreachable: a clear error within 10 s", len(seconds), sum(second < 7 for second in seconds))


SECRET = "S3cr-et%2Fpw"  # as it is typed; a URL's user is decoded by whoever sends it
SMALL = ("data.per_class={train:8,validation:8,test:8}", "data.image_size=48", "batch_size=8", "regime=bottleneck",
         "epochs=1", "tracking=server")  # fmt: skip


@pytest.mark.slow
def test_nothing_that_runs_write_holds_the_password_of_their_store(server: Server, tmp_path: Path) -> None:
    """A sweep, a run that fails, one that is resumed with and without the password, and the summary once more."""
    server.start()
    home = tmp_path / "home"
    uri = f"http://me@corp.com:{SECRET}@127.0.0.1:{server.port}"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    reported = []

    def call(*arguments: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "experiments", *arguments], capture_output=True, text=True, cwd=tmp_path,
            env=environment | {"EXPERIMENTS_HOME": str(home)} | variables, timeout=300,
        )  # fmt: skip
        reported.append(done.stdout + done.stderr)
        return done.returncode, reported[-1]

    failing = home / "runs" / "failing"
    typed = f"tracking.uri={uri}"
    code, text = call("train", "-m", *SMALL, typed, "seed=0,1")
    assert code == 0 and "2 jobs, 2 to run" in text, text
    (sweep,) = (home / "sweeps").iterdir()
    code, text = call("train", *SMALL, typed, "must_reach=1", "optimizer.lr=1e-9", f"hydra.run.dir={failing}")
    assert code == 1 and "must_reach" in text and f"http://me@corp.com:***@127.0.0.1:{server.port}/#/" in text, text
    code, text = call("train", f"resume={failing}")
    assert code == 1 and "tracking.uri: its password is missing" in text, text
    for given, variables in ((typed,), {}), ((), {"MLFLOW_TRACKING_URI": uri}):
        code, text = call("train", f"resume={failing}", *given, **variables)
        assert code == 1 and "must_reach: after 1 epochs" in text, text
    assert call("summarize", sweep.name)[0] == 1
    assert call("summarize", sweep.name, MLFLOW_TRACKING_URI=uri)[0] == 0
    runs = mlflow.MlflowClient(server.uri).search_runs(["1"])
    assert len(runs) == 6, "two jobs, the winner with both seeds, the sweep, the one that failed"
    secrets = [text.encode() for text in (SECRET, "S3cr-et/pw", "S3cr-et")]
    for path in (path for root in (home, server.home) for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    assert "S3cr-et" not in "".join(reported)
