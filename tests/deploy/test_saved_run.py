"""Loading of finished runs: for every kind of run, the loaded model is the one that made the run's predictions."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import mlflow
import numpy as np
import psutil
import pytest
import requests
from mlflow.models import Model
from PIL import Image
from sklearn.preprocessing import normalize

from experiments.cli import export, predict, register
from experiments.deploy import export as exports
from experiments.deploy import saved_run
from experiments.deploy.export_formats import FORMATS, read_saved_model
from experiments.errors import ConfigError
from experiments.evaluation.decision import Decision
from experiments.images import decoder
from experiments.images.resizing import resize
from experiments.models import network
from experiments.models.head import probabilities
from experiments.runs.run_directory import RunDirectory
from experiments.storage.csv_files import read_rows
from experiments.tracking import queries

SMALL = ("data=folder", "data.image_size=48", "model.head.pooling=average", "epochs=1", "batch_size=8", "progress=none",
         "regime.head_epochs=1", "evaluate.test=false", "hydra/job_logging=none")  # fmt: skip


class Place(NamedTuple):
    outputs: Path
    root: Path
    train_here: Callable[..., None]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.outputs}/mlflow.db"

    def folder(self, name: str) -> Path:
        return self.outputs / "runs" / name

    def train(self, name: str, *overrides: str) -> None:
        own = (f"data.root={self.root}", f"outputs={self.outputs}", f"hydra.run.dir={self.folder(name)}")
        self.train_here(*SMALL, *own, *overrides)

    def logged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A run's validation images [N, 48, 48, 3] float32, and what it says of them [N, 2]."""
        rows = read_rows(self.folder(name) / "predictions_validation.csv")
        images = [resize(decoder.decode((self.root / row["path"]).read_bytes()), 48) for row in rows]
        shares = np.array([[row["p_blobs"], row["p_stripes"]] for row in rows], float)
        return np.stack(images).astype("float32"), shares


@pytest.fixture(scope="module")
def place(drawn: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tracked run with its model; a sweep's job that started from its weights and keeps only what it trained."""
    place = Place(tmp_path_factory.mktemp("trained") / "outputs", drawn, train_here)
    place.train("whole", "regime=bottleneck")
    whole = saved_run.find("whole", place.uri).run_id
    place.train("job", "regime=finetune", f"model.weights='{whole}'", "sweep.job=true", "tracking.log_model=false")
    return place


def check(place: Place, name: str, run: saved_run.Trained) -> None:
    pixels, shares = place.logged(name)
    np.testing.assert_allclose(np.asarray(run.model()(pixels)), shares, atol=1e-5)
    assert run.classes == ("blobs", "stripes") and shares.std() > 1e-3
    assert run.metrics["validation.accuracy"] == np.mean(shares.argmax(axis=1) == np.repeat([0, 1], 6))


def test_a_tracked_run_gives_the_model_of_its_folder_and_without_weights_there_the_one_it_logged(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run.find("whole", place.uri)
    fetch, fetched = queries.logged_model, list[Path | None]()

    def logged_model(uri: str, run_id: str) -> Path | None:
        fetched.append(fetch(uri, run_id))
        return fetched[-1]

    monkeypatch.setattr(queries, "logged_model", logged_model)
    check(place, "whole", run)
    assert not fetched, "what is on this machine is not downloaded"
    check(place, "whole", replace(run, folder=tmp_path))
    assert len(fetched) == 1
    assert run.folder == place.folder("whole") and run.plain["regime"]["name"] == "bottleneck"


def test_a_folder_gives_the_model_of_a_sweep_s_job(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, join = saved_run.find(str(place.folder("job"))), saved_run.join

    def loud(trained: saved_run.Trained) -> keras.Model:
        os.write(2, b"TensorFlow's first lines")
        return join(trained)

    monkeypatch.setattr(saved_run, "join", loud)
    check(place, "job", run)
    assert "first lines" not in capfd.readouterr().err, "they are not printed, whoever loads the model"
    assert run.uri is None and run.config.regime.name == "finetune" and run.config.data.image_size == 48


def test_a_store_gives_the_model_without_the_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has the store, but not the runs' folders."""
    monkeypatch.setattr("experiments.runs.run_directory.RunDirectory.facts", lambda directory: {})
    (facts,) = queries.find_runs(place.uri, ["job"])
    run = saved_run.find(facts.run_id[:12], place.uri)
    assert run.folder is None and run.name == "job"
    check(place, "job", run)


def test_what_is_downloaded_from_a_server_goes_with_the_process(tmp_path: Path) -> None:
    """MLflow would leave each download in the folder of temporary files."""
    program = "from experiments.tracking.queries import _place_for; print(_place_for('mlflow-artifacts:/1'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(tempfile.gettempdir()) and not Path(done.stdout.strip()).exists()
    assert queries._place_for(str(tmp_path)) is queries._place_for(tmp_path.as_uri()) is None


def test_the_directory_of_fetched_results_gives_the_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a sweep's job whose run another machine has trained."""
    whole = saved_run.find("whole", place.uri)
    assert whole.run_id
    RunDirectory(tmp_path).write_fetched({"metrics.json": b"{}"}, "identity", whole.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    assert saved_run.of_folder(tmp_path) == whole


def test_a_threshold_that_validation_has_chosen_is_recorded_and_used(
    place: Place, run_verb: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold is chosen for a recall of 1: every validation image of the class is found."""
    place.train("picky", "regime=bottleneck", "positive=blobs", "threshold.recall=1", "evaluate.test=true")
    _, shares = place.logged("picky")
    folder = place.folder("picky")
    threshold = json.loads((folder / "run.json").read_bytes())["threshold"]
    lowest = shares[:6, 0].min()  # of the blobs
    assert 0 < threshold < lowest and not ((shares[:, 0] >= threshold) & (shares[:, 0] < lowest)).any()
    run = saved_run.find("picky", place.uri)
    assert run.decision == Decision("blobs", threshold) and run.metrics["validation.recall"] == 1
    for split in ("validation", "test"):
        for row in RunDirectory(folder).predictions(split):
            assert (row.predicted == "blobs") == (row.probabilities["blobs"] >= threshold)
        (blobs, stripes) = read_rows(folder / f"per_class_{split}.csv")
        assert (blobs["class"], stripes["class"]) == ("blobs", "stripes")
        assert float(blobs["recall"]) == run.metrics[f"{split}.recall"]
        assert float(blobs["precision"]) == run.metrics[f"{split}.precision"]

    output = tmp_path / "predicted.csv"
    rows = RunDirectory(folder).predictions("test")
    run_verb(predict, "picky", *(place.root / row.path for row in rows), "--output", output, "--uri", place.uri)
    assert [row["class"] for row in read_rows(output)] == [row.predicted for row in rows]
    about = exports.about(run, run.model())
    assert (about["positive"], about["threshold"]) == ("blobs", threshold)

    assert run.run_id
    client = mlflow.MlflowClient(place.uri)
    logged = client.get_run(run.run_id).data
    assert logged.tags["positive"] == "blobs" and float(logged.tags["threshold"]) == threshold
    assert logged.metrics["test.recall_by_class/stripes"] == pytest.approx(float(stripes["recall"]))
    metadata = Model.load(str(queries.logged_model(place.uri, run.run_id))).metadata or {}
    assert (metadata["positive"], metadata["threshold"]) == ("blobs", threshold)
    monkeypatch.setattr("experiments.runs.run_directory.RunDirectory.facts", lambda directory: {})
    assert saved_run.find(run.run_id, place.uri).decision == run.decision, "without the folder"


def test_what_cannot_be_used_is_reported(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nobody: no finished run fits.*whole"):
        saved_run.find("nobody", place.uri)
    with pytest.raises(ConfigError, match=r"is no run's folder"):
        saved_run.find(str(tmp_path))
    copy = shutil.copytree(place.folder("job"), tmp_path / "copy")
    facts = json.loads((copy / "run.json").read_bytes())
    (copy / "run.json").write_text(json.dumps({**facts, "backbone_identity": "other"}))
    with pytest.raises(ConfigError, match=r"copy: this job .* has changed since"):
        saved_run.find(str(copy)).model()
    check_rebuilt(place, tmp_path)
    (copy / "weights" / "head.weights.h5").unlink()
    with pytest.raises(ConfigError, match=r"copy: its weights are gone"):
        saved_run.find(str(copy)).model()
    (copy / "run.json").write_text(json.dumps({**facts, "status": "KILLED"}))
    with pytest.raises(ConfigError, match=r"not finished \(KILLED\).*resume="):
        saved_run.find(str(copy))


def check_rebuilt(place: Place, folder: Path) -> None:
    """A run's configuration, weights or program that has changed since gives no model, rather than another one."""
    copy = shutil.copytree(place.folder("whole"), folder / "changed")
    plain = (copy / "config.yaml").read_text(encoding="utf-8")
    for there, here, named in (
        ("preprocessing: rescale", "preprocessing: tf", "model.preprocessing: 'rescale' there, 'tf' here"),
        ("pooling: average", "pooling: max", "model.head.pooling: 'average' there, 'max' here"),
        ("image_size: 48", "image_size: 64", "data.image_size: 48 there, 64 here"),
    ):
        assert there in plain
        (copy / "config.yaml").write_text(plain.replace(there, here), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            saved_run.find(str(copy)).model()
        assert named in str(caught.value) and "changed" in str(caught.value)
    (copy / "config.yaml").write_text(plain, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # as if this version of Keras computed something else
        patch.setattr(network, "probabilities", lambda logits: probabilities(1.5 * logits + 1))
        with pytest.raises(ConfigError, match="probabilities differ by .* on the reference images"):
            saved_run.find(str(copy)).model()


def test_images_unlike_the_training_images_are_rejected(
    place: Place, run_verb: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder, held_out = place.folder("whole"), place.root / "validation"
    Image.effect_noise((48, 48), 90).convert("RGB").save(tmp_path / "noise.png")

    def predicted(name: str, *options: object) -> list[dict[str, str]]:
        images = held_out, tmp_path / "noise.png"
        run_verb(predict, folder, *images, "--output", tmp_path / name, "--batch-size", 8, *options)
        return read_rows(tmp_path / name)

    unlike = ("--unlike", 0.9)
    plain, rows = predicted("plain.csv"), predicted("unlike.csv", *unlike)
    pixels = {
        row["path"]: resize(decoder.decode((place.root / row["path"]).read_bytes()), 48)
        for row in RunDirectory(folder).images()
        if row["split"] != "test"
    }
    frozen = saved_run.find(str(folder)).model().get_layer("frozen")
    features = normalize(np.asarray(frozen(np.stack(list(pixels.values())).astype("float32"))))
    trained = np.array([path.startswith("train/") for path in pixels])
    tenth = np.sort(1 - features[~trained] @ features[trained].T, axis=1)[:, 9]
    distances = [float(row["distance"]) for row in rows]
    np.testing.assert_allclose(distances[:12], tenth, atol=2e-3)
    assert [row["unlike"] == "true" for row in rows] == [
        distance > sorted(distances[:12])[10] + 1e-6 for distance in distances
    ]
    assert [row["class"] for row in rows[:12]].count("none") == 1 and rows[12]["class"] == "none"
    kept = {name: [row[name] for row in plain] for name in ("path", "probability", "p_blobs", "error")}
    assert {name: [row[name] for row in rows] for name in kept} == kept
    assert "of 12 validation images, 11 (91.7 %) are not" in capsys.readouterr().err

    records, features_file = [folder / "config.yaml", folder / "run.json"], folder / "training_features.npz"
    before = {path: path.read_text() for path in records}
    for path, text in before.items():
        path.write_text(text.replace(str(place.root), str(tmp_path / "gone")))
    assert predicted("again.csv", *unlike) == rows, "the features are kept"
    features_file.write_bytes(features_file.read_bytes()[:-50])
    with pytest.raises(SystemExit, match=r"--unlike: .* not as they were: .*/gone.* --data FOLDER names"):
        predicted("gone.csv", *unlike)
    assert f"{features_file} is damaged (BadZipFile: " in caplog.text
    moved = Path(shutil.copytree(place.root, tmp_path / "moved" / "drawn"))
    changed = moved / "train" / "blobs" / "blobs.0.jpg"
    changed.write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"were: train/blobs/blobs\.0\.jpg: has changed since it was checked\. --data"):
        predicted("changed.csv", *unlike, "--data", moved)
    shutil.copy(place.root / "train" / "blobs" / "blobs.0.jpg", changed)
    features_file.unlink()
    features_file.mkdir()  # A file cannot replace it.
    assert predicted("moved.csv", *unlike, "--data", moved) == rows
    assert f"{features_file}: cannot be written (Is a directory)" in caplog.text
    features_file.rmdir()
    for path, text in before.items():
        path.write_text(text)


def test_an_export_gives_what_the_model_gives(
    place: Place, run_verb: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    given = (export, "whole", "--format", "keras,saved_model", "--images", 5, "--uri", place.uri)
    run_verb(*given, "--output", folder)
    printed = capsys.readouterr().out
    assert "on 5 of 12 images of the run's validation split" in printed and "saved_model" in printed
    assert {path.name for path in folder.iterdir()} == {"model.keras", "saved_model", "model.json"}
    about = json.loads((folder / "model.json").read_bytes())
    assert about["classes"] == ["blobs", "stripes"] and about["image_size"] == 48
    pixels, shares = place.logged("whole")
    np.testing.assert_allclose(read_saved_model(folder / "saved_model")(pixels), shares, atol=1e-5)
    np.testing.assert_allclose(keras.models.load_model(folder / "model.keras").predict(pixels), shares, atol=1e-5)

    with pytest.raises(SystemExit, match="is there already. Give --overwrite"):
        run_verb(*given, "--output", folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(SystemExit, match="is there already. Give another"):
        run_verb(*given, "--output", mine, "--overwrite")


def test_an_export_that_differs_is_none(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run.find("whole", place.uri)
    wrong = FORMATS["saved_model"]._replace(read=lambda path: lambda pixels: np.full((len(pixels), 2), 0.5))
    monkeypatch.setitem(FORMATS, "saved_model", wrong)
    images = exports.sample(run, 48, 3)
    with pytest.raises(RuntimeError, match=r"does not give the model's probabilities: saved_model by "):
        exports.export(run, run.model(), images, tmp_path / "exported", ["keras", "saved_model"])
    assert list(tmp_path.iterdir()) == []


def test_images_to_compare_on_are_drawn_where_the_run_s_are_gone(place: Place) -> None:
    run = saved_run.find("whole", place.uri)
    run = replace(run, facts={**run.facts, "data_root": "gone"})
    pixels, labels, what = exports.sample(run, 48, 4)
    assert pixels.shape == (4, 48, 48, 3) and labels is None and what.startswith("4 random images")
    assert pixels.min() >= 0 and pixels.max() <= 255 and pixels.std() > 30


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(run: str, name: str, *options: str) -> None:
        monkeypatch.setattr("sys.argv", ["experiments register", run, "--name", name, *options])
        register.main()

    return call


def test_a_registered_model_is_loaded_by_its_alias(
    place: Place, registered: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The job's, which had logged none."""
    for _ in range(2):  # the same version
        registered("job", "pets", "--alias", "champion", "--uri", place.uri)
    registered(str(place.folder("job")), "pets", "--alias", "champion")  # the store that its folder has recorded
    printed = capsys.readouterr()
    assert printed.out.count("job is version 1 of pets, and its champion") == 3 and printed.err == ""
    assert 'mlflow.keras.load_model("models:/pets@champion")' in printed.out
    mlflow.set_tracking_uri(place.uri)
    pixels, shares = place.logged("job")
    model = mlflow.keras.load_model("models:/pets@champion")
    np.testing.assert_allclose(np.asarray(model(pixels)), shares, atol=1e-5)
    registered("job", "my pets", "--uri", place.uri)
    assert "  mlflow models serve -m 'models:/my pets/1' --env-manager local" in capsys.readouterr().out
    for name, alias in (("pets", "latest"), ("pe/ts", "champion"), ("pe'ts", "champion")):
        with pytest.raises(SystemExit, match="registry does not take it"):
            registered("whole", name, "--alias", alias, "--uri", place.uri)


def test_a_run_without_mlflow_is_not_registered(place: Place, registered: Callable[..., None], tmp_path: Path) -> None:
    copy = shutil.copytree(place.folder("whole"), tmp_path / "alone")
    facts = json.loads((copy / "run.json").read_bytes())
    (copy / "run.json").write_text(json.dumps({name: facts[name] for name in ("command", "status")}))
    with pytest.raises(SystemExit, match="alone: was not tracked"):
        registered(str(copy), "pets", "--uri", place.uri)


@pytest.mark.slow
def test_a_logged_model_is_served_over_http(place: Place, run_verb: Callable[..., None], tmp_path: Path) -> None:
    """`mlflow models serve` from another directory, without this package on the path, to this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = f"runs:/{saved_run.find('whole', place.uri).run_id}/model"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # MLflow calls uvicorn
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log, cwd=tmp_path,
            env={**environment, "MLFLOW_TRACKING_URI": place.uri}, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        check_served(place, f"http://127.0.0.1:{port}/invocations")
        check_many(place, run_verb, f"http://127.0.0.1:{port}/invocations", tmp_path / "many")
        connections = [
            connection
            for child in children(process)
            for connection in child.net_connections()
            if connection.status == "LISTEN"
        ]
        assert {connection.laddr.ip for connection in connections} == {"127.0.0.1"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and those that it has started."""
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, "the server has ended"
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.5)
    raise AssertionError("the server does not answer")


def check_served(place: Place, url: str) -> None:
    """What a server answers to image files and pixels, against the run's own predictions."""
    pixels, shares = place.logged("whole")
    rows = read_rows(place.folder("whole") / "predictions_validation.csv")
    files = [base64.b64encode((place.root / row["path"]).read_bytes()).decode() for row in rows]
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[path] for path in files]}},
        {"dataframe_records": [{"image": path} for path in files]},
        {"inputs": {"image": files}},
        {"instances": [{"image": path} for path in files]},
        {"inputs": pixels.tolist()},
        {"instances": pixels.tolist()},
    ):
        answer = requests.post(url, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        reported = answer.json()["predictions"]
        assert [prediction["class"] for prediction in reported] == [row["predicted"] for row in rows]
        np.testing.assert_allclose(
            [prediction["probability"] for prediction in reported], shares.max(axis=1), atol=1e-5
        )
    bad = [{"image": files[0]}, {"image": base64.b64encode(b"text").decode()}]
    answer = requests.post(url, json={"dataframe_records": bad}, timeout=60)
    assert answer.status_code == 400 and "1 of 2 images cannot be used: row 1 is no JPEG" in answer.json()["message"]
    answer = requests.post(url, json={"inputs": pixels[:, :40].tolist()}, timeout=60)
    assert answer.status_code == 400 and "[N, 48, 48, 3]" in answer.json()["message"]


def check_many(place: Place, run_verb: Callable[..., None], url: str, folder: Path) -> None:
    """500 different images in one request get the probabilities that `experiments predict` writes for them."""
    folder.mkdir()
    images = sorted(place.root.glob("*/*/*.jpg"))
    for number in range(500):
        image = Image.open(images[number % len(images)])
        image.crop((0, 0, 48, 48 - number // len(images))).save(folder / f"{number:03}.jpg", quality=95)
    output = folder / "predicted.csv"
    run_verb(predict, "whole", folder, "--output", output, "--uri", place.uri)
    expected = read_rows(output)
    files = [base64.b64encode(Path(row["path"]).read_bytes()).decode() for row in expected]
    answer = requests.post(url, json={"dataframe_split": {"columns": ["image"], "data": [[path] for path in files]}})
    served = answer.json()["predictions"]
    assert len(served) == len(expected) == 500 and [prediction["class"] for prediction in served] == [
        row["class"] for row in expected
    ]
    for name in ("blobs", "stripes"):
        given = [prediction["probabilities"][name] for prediction in served]
        wanted = [float(row[f"p_{name}"]) for row in expected]
        np.testing.assert_allclose(given, wanted, atol=1e-6)


def test_a_network_of_ones_own_is_loaded_as_it_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="mine")]).save(tmp_path / saved_run.KERAS_FILE)
    monkeypatch.setattr(queries, "logged_model", lambda uri, run_id: tmp_path)
    monkeypatch.setattr(saved_run, "join", lambda run: "rebuilt")
    plain = {"trusted_packages": ["mine"], "model": {"_target_": "mine.network"}}
    run = saved_run.Trained("name", "id", None, tmp_path, tmp_path / "manifest.csv", plain, {}, {})
    assert run.model().get_layer("mine")
    ours = {"trusted_packages": ["mine"], "model": {"_target_": "experiments.models.convnet.convnet"}}
    assert replace(run, plain=ours).model() == "rebuilt"
