"""The report of a run, from a run directory that is written by hand: what it shows, and what it does without images."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from comparison.test_page import PageText
from hydra import compose, initialize_config_dir
from PIL import Image

from experiments.config.identity import dump_yaml, logged
from experiments.errors import ConfigError
from experiments.evaluation.decision import Decision
from experiments.evaluation.evaluate import Report
from experiments.reports import image_sections, label_section, page, run_report
from experiments.runs import curves
from experiments.runs.continuation import KEY
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import RunDirectory
from experiments.system import paths
from experiments.training.types import EpochRecord

OTHER = "<script>alert('stripes')</script>"
CLASSES = ("blobs", OTHER)
COMMAND = {"directory": "/work", "config_name": "config", "overrides": ["epochs=3", "regime=bottleneck"]}


@pytest.fixture
def directory(drawn: Path, tmp_path: Path, config: object) -> RunDirectory:
    """A run on the drawn images that gets 9 of 12 validation images right; its second of three epochs is the best."""

    directory = RunDirectory(tmp_path / "a run")
    directory.folder.mkdir()
    composed = config("regime=bottleneck", "data=folder", f"data.root={drawn}", "data.image_size=48", "epochs=3")  # type: ignore[operator]
    directory.write_config(dump_yaml(logged(composed)))
    rows: list[dict[str, str | int]] = []
    predictions: list[Prediction] = []
    for path in sorted(drawn.rglob("*.jpg")):
        split, folder, _ = path.relative_to(drawn).parts
        label, sha256 = int(folder == "stripes"), hashlib.sha256(path.read_bytes()).hexdigest()
        inside = path.relative_to(drawn).as_posix()
        rows.append({"split": split, "path": inside, "class_name": CLASSES[label], "label": label, "bytes": 9,
                     "sha256": sha256, "width": 48, "height": 48, "mode": "RGB"})  # fmt: skip
        if split == "validation":
            guess = 1 if len(predictions) in (0, 2, 4) else label
            shares = dict(zip(CLASSES, (0.8, 0.2) if guess == 0 else (0.1, 0.9), strict=True))
            predictions.append(
                Prediction(inside, sha256, CLASSES[label], CLASSES[guess], max(shares.values()), guess == label, shares)
            )
    pairs = [(f"same{at}.jpg", "train", "c.jpg") for at in range(11)] + [("a.jpg", "validation", "b.jpg")]
    copies = [
        {"split": "train", "path": path, "other_split": split, "other_path": other} for path, split, other in pairs
    ]
    directory.write_images(rows, [{"path": "bad.jpg", "reason": "cannot be read"}], [], copies)
    directory.write_predictions("validation", predictions)
    scores = {"accuracy": 0.75, "accuracy_low": 0.47, "accuracy_high": 0.9, "calibration_error": 0.1}
    directory.write_metrics({f"validation.{name}": value for name, value in scores.items()})
    losses = (0.7, 0.4, 0.5)
    history = [EpochRecord(at, "head", at, 0, {"loss": loss, "validation_loss": loss, "seconds": 1.5})
               for at, loss in enumerate(losses)]  # fmt: skip
    (directory.folder / "curves.csv").write_text(curves.format_rows(history, header=True))
    directory.write_facts({"command": COMMAND, "status": "FINISHED", "total_seconds": 9.0, "fit_seconds": 4.5,
                           "warnings": ["Something <looks> wrong"], "threads": 2, "data_root": str(drawn)})  # fmt: skip
    return directory


@pytest.fixture(autouse=True)
def blank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render no figures, which take most of a report's time, but in the test that asks for them."""
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr(page, "svg", lambda figure: "")


@pytest.fixture
def rendered() -> None:
    """Ask for rendered figures."""


def page_of(directory: RunDirectory, root: Path | None) -> PageText:
    html = run_report.write(directory, root, None).read_text(encoding="utf-8")
    return PageText(html.replace("<td", " <td"))  # so that the texts of two cells are two words


@pytest.mark.usefixtures("rendered")
def test_the_page_loads_nothing_and_names_are_no_markup(directory: RunDirectory, drawn: Path) -> None:
    shown = page_of(directory, drawn)
    assert not {tag for tag, _ in shown.elements} & {"script", "a", "iframe", "object", "form", "looks"}
    sources = [value or "" for _, attributes in shown.elements for name, value in attributes.items() if name == "src"]
    assert all(source.startswith("data:image/") for source in sources)
    assert sum(source.startswith("data:image/svg+xml;base64,PD94") for source in sources) == 5, "<?x, in base64"
    (policy,) = [a["content"] for tag, a in shown.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'")
    assert OTHER in shown.text and "Something <looks> wrong" in shown.text


def test_the_page_holds_what_the_run_recorded(directory: RunDirectory, drawn: Path) -> None:
    text = re.sub(r"\s+", " ", page_of(directory, drawn).text)
    for part in (
        "Run a run",
        "validation accuracy 75.0 % (95 % interval 47.0 % to 90.0 %, 12 images)",
        "best epoch 2 of 3 (head, validation_loss 0.400), the last one is the result",
        "python -m experiments.train epochs=3 regime=bottleneck",
        "data.image_size 48",
        "44 images of 2 classes",
        "48 × 48 pixels",
        "bad.jpg: cannot be read",
        "12 pairs of near-duplicates, 1 in two splits: the scores may be too good. a.jpg and b.jpg (train and "
        "validation) same0.jpg and c.jpg (train)",
        "and 2 more: near_duplicates.csv",
        "100.0% [43.9, 100] 50.0% [18.8, 81.2] 0.667",  # precision, recall, F1 of blobs
        f"blobs → {OTHER} 3",
        "from start to results 9.0 s",
        "training (Keras's fit) 4.5 s for 3 epochs",
        "experiments predict",
    ):
        assert part in text, part


def test_the_epochs_of_a_head_from_the_cache_are_no_part_of_the_cost(directory: RunDirectory, drawn: Path) -> None:
    history = [*directory.epochs(), EpochRecord(3, "finetune", 0, 0, {"loss": 0.3, "validation_loss": 0.3})]
    (directory.folder / "curves.csv").write_text(curves.format_rows(history, header=True))
    directory.write_facts({**directory.facts(), "reused_seconds": 4.5})
    assert "4.5 s for 1 epochs" in re.sub(r"\s+", " ", page_of(directory, drawn).text)


def test_the_epochs_of_a_run_that_was_trained_further_are_no_part_of_the_cost(
    directory: RunDirectory, drawn: Path
) -> None:
    earlier = directory.inputs(KEY)
    earlier.mkdir(parents=True)
    (earlier / "curves.csv").write_text(curves.format_rows(directory.epochs()[:2], header=True))
    directory.write_facts({**directory.facts(), "continues": "/runs/first"})
    text = re.sub(r"\s+", " ", page_of(directory, drawn).text)
    assert "It continues /runs/first after epoch 2, whose epochs are part of the curves." in text
    assert "4.5 s for 1 epochs" in text


def test_the_images_are_those_of_validation_though_test_images_were_evaluated(
    directory: RunDirectory, drawn: Path
) -> None:
    shares = {"blobs": 0.9, OTHER: 0.1}
    directory.write_predictions("test", [
        Prediction(row["path"], row["sha256"], row["class_name"], "blobs", 0.9, row["class_name"] == "blobs", shares)
        for row in directory.images() if row["split"] == "test"
    ])  # fmt: skip
    metrics = directory.metrics()
    directory.write_metrics(metrics | {name.replace("validation", "test"): value for name, value in metrics.items()})
    shown = page_of(directory, drawn)
    assert "test accuracy 75.0 %" in shown.text
    images = [a["alt"] or "" for tag, a in shown.elements if tag == "img" and "data:image/jpeg" in (a["src"] or "")]
    assert images and all(name.startswith("validation/") for name in images), "the test split is not looked into"


def test_doubtful_labels_of_a_run_outside_sweeps_come_from_the_run(directory: RunDirectory, drawn: Path) -> None:
    def text_of(directory: RunDirectory) -> str:
        text = re.sub(r"\s+", " ", page_of(directory, drawn).text)
        return text.partition("Doubtful labels")[2].partition("What it cost")[0]

    text = text_of(directory)
    assert (
        "12 validation images, rated by this model, which was not trained on them. Training images are not rated."
        in text
    )
    assert f"blobs 10.0%, rather {OTHER} 90.0%" in text and "3 of 12 labels are probably wrong" in text
    rows = [row for row in directory.images() if row["split"] == "train"]
    trained = [
        Prediction(row["path"], row["sha256"], row["class_name"], "", 0.0, True, {"blobs": share, OTHER: 1 - share})
        for row, share in zip(rows, [0.02, *[0.7] * 99], strict=False)
    ]
    directory.write_predictions("train", trained)
    text = text_of(directory)
    assert f"{len(trained)} training images, rated by this model, trained on their labels" in text
    shown = text.partition("The most doubtful")[2]
    assert shown.index("blobs 2.0%, rather") < shown.index("training image") < shown.index("blobs 10.0%, rather")


def test_a_report_takes_the_folds_of_the_winner_wherever_they_were_trained(
    directory: RunDirectory, drawn: Path, tmp_path: Path
) -> None:
    """A sweep over rates, seeds and folds, whose fold 0 was trained by another sweep, and whose last fold failed."""
    sweep = tmp_path / "sweep"
    rows = [row for row in directory.images() if row["split"] == "train"]
    halves = (rows[: len(rows) // 2], rows[len(rows) // 2 : -1])
    jobs = [("0.1", seed, str(fold)) for seed in "01" for fold in range(2)] + [("1", "0", "0"), ("0.1", "0", "2")]
    for number, (rate, seed, fold) in enumerate(jobs):
        folder = (tmp_path / "elsewhere" if fold == "0" else sweep) / str(number)
        share = 0.9 if rate == "1" else 0.1 if seed == "0" else 0.3
        shares = {"blobs": share, OTHER: 1 - share}
        shutil.copytree(directory.folder, folder)
        status = "FAILED" if fold == "2" else "FINISHED"
        RunDirectory(folder).write_facts({"command": COMMAND, "status": status, "identity": str(number)})
        RunDirectory(folder).write_predictions("validation", [
            Prediction(row["path"], row["sha256"], row["class_name"], "", 0.0, True, shares)
            for row in halves[int(fold) % 2]
        ])  # fmt: skip
        write_job(sweep, number, {"optimizer.lr": rate, "seed": seed, "data.fold": fold}, folder)
    final = RunDirectory(directory.folder.rename(sweep / "6"))
    write_job(sweep, 6, {"optimizer.lr": "0.1", "seed": "0"}, final.folder, final=True)
    (sweep / "sweep.json").write_text("{}")
    images, sentences = label_section.rated(final, final.predictions("validation"), CLASSES)
    assert {round(image.probabilities[0], 6) for image in images[: len(rows) - 1]} == {0.2}, "without the other rate"
    assert sentences == [
        f"{len(rows) - 1} training images, each rated by the models of one of the sweep's folds (2 of them have "
        "finished, with 4 runs), which were not trained on it.",
        "12 validation images, rated by this model, which was not trained on them.",
        "1 training images are not rated: no finished fold validates with them.",
    ]
    assert "2 of them have finished" in page_of(final, drawn).text


def write_job(sweep: Path, number: int, values: dict[str, str], folder: Path, final: bool = False) -> None:
    record = {"number": number, "values": values, "identity": str(number), "folder": str(folder), "final": final}
    (sweep / str(number)).mkdir(parents=True, exist_ok=True)
    (sweep / str(number) / "job.json").write_text(json.dumps(record))


def test_keys_that_differ_are_found_within_a_hydra_job(directory: RunDirectory) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        rows = run_report.differing(run_report.read(directory))
        assert rows is not None and ["epochs", "3"] in rows and ["regime", "bottleneck"] in rows
        assert compose("config")["epochs"], "the job's Hydra is the present one again"
    (directory.folder / "config.yaml").write_text("foreign: 1\ndata: {image_size: 48}\noutputs: o\n")
    assert run_report.differing(run_report.read(directory)) is None
    assert "this version cannot compose" in page_of(directory, None).text


def test_confusion_has_counts_and_percentages_and_blank_cells(directory: RunDirectory) -> None:
    text = run_report.write(directory, None, None).read_text(encoding="utf-8")
    tables = [table.split("</table>")[0] for table in text.split('<table class="confusion">')[1:]]
    rows = [row for table in tables for row in table.split("<tbody>")[1].split("</tr>")[:-1]]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    assert cells == [["3", "3"], ["", "6"], ["50", "50"], ["", "100"]]


def test_images_are_thumbnails_of_the_original_files(directory: RunDirectory, drawn: Path) -> None:
    shown = page_of(directory, drawn)
    images = [a for tag, a in shown.elements if tag == "img" and (a["src"] or "").startswith("data:image/jpeg")]
    names = [a["alt"] for a in images]
    assert names[:3] == [f"validation/blobs/blobs.{at}.jpg" for at in (0, 2, 4)], "the mistakes first"
    thumbnail = Image.open(io.BytesIO(base64.b64decode((images[0]["src"] or "").split(",")[1])))
    assert thumbnail.size == (48, 48)
    assert len(images) == 3 + 2 + 2 + 2 + 3, (
        "mistakes; of blobs two right and two wrong, of the other two right; labels"
    )
    assert "Grad-CAM is not shown" in shown.text


def test_without_images_the_page_reports_it(directory: RunDirectory, tmp_path: Path) -> None:
    for root, reason in ((None, "the folder of its data is not known"), (tmp_path, f"its file is not in {tmp_path}")):
        shown = page_of(directory, root)
        assert f"{reason}; --data FOLDER" in shown.text
        assert not [a for tag, a in shown.elements if tag == "img" and (a["src"] or "").startswith("data:image/jpeg")]
        assert shown.text.count("not shown") == 3 + 4 + 2 + 3 + 1


def test_a_changed_image_is_not_shown(directory: RunDirectory, drawn: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(drawn, moved)
    (moved / "validation/blobs/blobs.0.jpg").write_bytes(b"another image")
    shown = page_of(directory, moved)
    assert "has changed since" in shown.text
    assert len([a for tag, a in shown.elements if tag == "img" and a["alt"] == "validation/blobs/blobs.2.jpg"]) == 3


def test_a_run_without_its_predictions_has_no_report(directory: RunDirectory) -> None:
    (directory.folder / "predictions_validation.csv").unlink()
    with pytest.raises(ConfigError, match=r"its predictions_validation\.csv is gone, without which there is no report"):
        run_report.read(directory)


def test_of_many_classes_the_worst_have_examples() -> None:
    def report_of(names: list[str]) -> Report:
        """Of class n, n // 10 images are predicted to be of class 0."""
        rows = tuple(
            Prediction(path := f"{at}/{copy}", path, name, name if right else names[0], 0.9, right, {})
            for at, name in enumerate(names)
            for copy, right in enumerate([False] * (at // 10) + [True] * (5 - at // 10))
        )
        return Report("validation", tuple(names), {}, rows, Decision())

    names = [f"class {at:02}" for at in range(45)]
    chosen = image_sections.examples(report_of(names))
    assert len(chosen) == 40 and list(chosen) == sorted(chosen)
    assert not {"class 05", "class 09"} & set(chosen), "which are always right"
    assert all(len(right) <= 1 and len(wrong) <= 1 for right, wrong in chosen.values())
    (right, wrong) = image_sections.examples(report_of(names[:20]))["class 10"]
    assert [row.path for row in right] == ["10/1", "10/4"] and [row.path for row in wrong] == ["10/0"]
