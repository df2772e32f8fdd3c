"""A comparison's page, Markdown and CSV, from made-up runs, without a tracking database or training."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.comparison import page as comparison_page
from experiments.comparison.class_differences import compare_classes
from experiments.comparison.comparison import Comparison, Disagreement, EvaluatedRun, Group, disagreements, of_groups
from experiments.errors import ConfigError, DataError
from experiments.images.decoder_settings import DecoderSettings
from experiments.reports import page
from experiments.runs.predictions import Prediction
from experiments.system.redaction import visible
from experiments.tracking.queries import RunFacts
from experiments.training.types import EpochRecord

CLASSES = ("blobs", "<script>alert('stripes')</script>")
NAME = 'run $1 & <b>bold</b> | `code` [link](x) \u202e\x1b[31m " onload="x'


def group(drawn: Path, name: str, right: int, seeds: int = 1, **params: str) -> Group:
    """Runs on the drawn training images that get the first so many of them right."""
    paths = sorted((drawn / "train").rglob("*.jpg"))
    runs = []
    for seed in range(seeds):
        predictions = {}
        for at, path in enumerate(paths):
            label = int(path.parent.name == "stripes")
            predicted = label if at < right + seed else 1 - label
            shares = dict(zip(CLASSES, (0.9, 0.1) if predicted == 0 else (0.1, 0.9), strict=True))
            prediction = Prediction(
                path.relative_to(drawn).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest(), CLASSES[label],
                CLASSES[predicted], 0.9, predicted == label, shares,
            )  # fmt: skip
            predictions[prediction.sha256, prediction.label] = prediction
        metrics = {"total_seconds": 12.0, "validation.loss": 0.5, "validation.f1": 0.8}
        run = RunFacts(f"{name}{seed}", f"{name} {NAME}", params | {"seed": str(seed)}, metrics, {}, "1", str(drawn))
        curve = tuple(
            EpochRecord(step, phase, step, 0, {"seconds": 1.0 + step, "validation_accuracy": 0.5, "accuracy": 0.6,
                                               "validation_loss": 0.7, "loss": 0.6})
            for step, phase in enumerate(("head", "head", "finetune", "finetune"))
        )  # fmt: skip
        runs.append(EvaluatedRun(run, predictions, curve))
    return Group(params, tuple(runs))


@pytest.fixture(scope="module")
def comparison(drawn: Path) -> Comparison:
    scratch = group(drawn, "a", 14, regime="scratch", epochs="3")
    params: dict[str, Any] = {"regime": "finetune", "epochs": "3", "regime.views": NAME}
    return of_groups([scratch, group(drawn, "b", 19, **params)], "validation")


def write(folder: Path, comparison: Comparison, images: int, reports: dict[str, Path] | None = None) -> Path:
    """Write a comparison, and return its page."""
    return comparison_page.write(folder, comparison, compare_classes(comparison), images, reports=reports)[0]


def opened(image: Disagreement, data: Path | None = None) -> Image.Image:
    """Open the image of a disagreement as its thumbnail does."""
    roots = [data] if data else [Path(folder) for folder in image.data]
    return page.open_recorded(image.path, image.sha256, roots, image.decoder_settings)


class PageText(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("compared"), comparison, 3).parent


def test_the_page_holds_all_it_shows_and_nothing_of_others_is_markup(written: Path) -> None:
    page = PageText((written / "comparison.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "b", "a", "iframe", "object", "form"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert (value or "").startswith("data:"), (tag, value)
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and (policies[0] or "").startswith("default-src 'none'")
    assert "alert('stripes')" in page.text and visible(NAME) in page.text, "shown as they are"


def test_the_page_holds_what_the_comparison_finds(written: Path) -> None:
    text = PageText((written / "comparison.html").read_text(encoding="utf-8")).text
    for part in (
        "2 runs on 24 validation images",
        "finetune is better than the one trained with scratch by 20.8 points",
        "p = 0.025",
        "training noise is not in its interval",
        "regime.views",
        "The images on which they disagree, the clearest 3 of 5",
        "2 more are not shown",
        "Connor 1987",
    ):
        assert part in text, part
    assert "epochs" not in re.sub(r"epochs?,? counted", "", text), "what is the same is left out"


def test_images_and_figures_are_in_the_page(written: Path, drawn: Path) -> None:
    images = [a["src"] or "" for tag, a in PageText((written / "comparison.html").read_text()).elements if tag == "img"]
    kinds = [source.split(";")[0] for source in images]
    assert kinds == ["data:image/svg+xml"] * 2 + ["data:image/jpeg"] * 3
    thumbnail = Image.open(io.BytesIO(base64.b64decode(images[-1].split(",")[1])))
    assert thumbnail.size == (48, 48), "not enlarged"
    for name in ("intervals", "curves"):
        assert Image.open(written / "figures" / f"{name}.png").width > 500


def test_the_same_comparison_is_the_same_page(written: Path, comparison: Comparison, tmp_path: Path) -> None:
    assert write(tmp_path, comparison, 3).read_bytes() == (written / "comparison.html").read_bytes()
    assert dataclasses.replace(comparison, split="test").digest != comparison.digest, "a page of its own"


def test_the_page_links_to_the_reports_of_its_runs(comparison: Comparison, tmp_path: Path) -> None:
    report = tmp_path / "runs" / "a <run>" / "report.html"
    reports = {comparison.runs[0].run_id: report}
    written = write(tmp_path / "compare" / "one", comparison, 0, reports)
    links = [a["href"] for tag, a in PageText(written.read_text(encoding="utf-8")).elements if tag == "a"]
    assert links == ["../../runs/a%20%3Crun%3E/report.html"], "relative, so that outputs/ may be moved"


def test_the_page_of_a_comparison_that_cannot_be_logged_is_named(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> str:
        raise ConfigError("attempt to write a readonly database")

    (tmp_path / "comparison.md").write_text("# Comparison")
    monkeypatch.setattr(comparison_page, "write", lambda *arguments: [tmp_path / "comparison.html"])
    monkeypatch.setattr(comparison_page, "log_comparison", refuse)
    with pytest.raises(ConfigError, match=r"comparison\.html is written, but not logged to MLflow \(--no-log"):
        comparison_page.save(
            "sqlite:////theirs.db", comparison, compare_classes(comparison), tmp_path, 0, None, log=True
        )


def test_markdown_shows_the_marks_of_others_as_they_are(written: Path) -> None:
    text = (written / "comparison.md").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text and r"\[link\](x)" in text and r"\| \`code\`" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables) and "![intervals](figures/intervals.png)" in text


def test_csv_has_the_figures_as_numbers(written: Path) -> None:
    first, second = csv.DictReader(io.StringIO((written / "comparison.csv").read_text(encoding="utf-8")))
    assert float(first["accuracy"]) == 14 / 24 and first["difference"] == "" and first["regime.views"] == ""
    assert float(second["difference"]) == pytest.approx(5 / 24)
    assert (second["only_first_right"], second["only_this_right"], second["images_needed"]) == ("0", "5", "36")
    assert (second["seconds"], second["epoch_seconds"], second["f1_low"]) == ("12.0", "3.5", "")


def test_an_image_in_a_large_file_is_not_shown(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 10)
    image = disagreements(comparison)[0]
    with pytest.raises(DataError, match="is not shown: its file in .* has more than 10 bytes"):
        opened(image)
    with pytest.raises(DataError, match=r"is not shown: its file in .* cannot be read \(File name too long\)"):
        opened(dataclasses.replace(image, path="a" * 300))


def test_an_image_of_unknown_data_is_not_shown(comparison: Comparison) -> None:
    with pytest.raises(DataError, match="is not shown: the folder of its data is not known; --data FOLDER"):
        opened(dataclasses.replace(disagreements(comparison)[0], data=()))


def test_a_image_is_shown_only_as_the_runs_have_read_it(comparison: Comparison, drawn: Path, tmp_path: Path) -> None:
    image = disagreements(comparison)[0]
    original = opened(image)
    moved = tmp_path / image.path
    with pytest.raises(DataError, match="its file is not in .*--data FOLDER"):
        opened(image, tmp_path)
    moved.parent.mkdir(parents=True)
    moved.write_bytes((drawn / image.path).read_bytes())
    assert opened(image, tmp_path) == original
    moved.write_bytes(b"another image")
    with pytest.raises(DataError, match="has changed since"):
        opened(image, tmp_path)
    Image.fromarray(np.full((9, 9), 4000, "uint16")).save(moved, "PNG")
    sixteen = dataclasses.replace(image, sha256=hashlib.sha256(moved.read_bytes()).hexdigest())
    with pytest.raises(DataError, match="16-bit grays"):
        opened(sixteen, tmp_path)
    shown = opened(dataclasses.replace(sixteen, decoder_settings=DecoderSettings((0, 4095))), tmp_path)
    assert shown.getpixel((0, 0)) == (249, 249, 249)
    for path in ("../secret.jpg", "/etc/passwd", "a/../../b.jpg"):
        with pytest.raises(DataError, match="leads out of"):
            opened(dataclasses.replace(image, path=path))


def test_runs_that_agree_and_a_single_run_have_pages_too(drawn: Path, tmp_path: Path) -> None:
    a, b = group(drawn, "a", 14, regime="scratch"), group(drawn, "b", 14, regime="finetune")
    text = PageText(write(tmp_path, of_groups([a, b], "validation"), 3).read_text()).text
    assert "neither better nor worse" in text and "There is no image on which they disagree" in text
    text = PageText(write(tmp_path, of_groups([a], "validation"), 3).read_text()).text
    assert "1 run on 24 validation images" in text and "disagree" not in text


def test_many_groups_are_summarized_in_one_sentence(drawn: Path, tmp_path: Path) -> None:
    groups = [group(drawn, str(right), right, seeds=2, **{"model.head.dropout": str(right)}) for right in range(8, 20)]
    many = of_groups(groups, "validation")
    text = PageText(write(tmp_path, many, 2).read_text()).text
    apart = [str(at) for at, found in enumerate(many.differences, 1) if found and found.significant]
    assert 1 < len(apart) < 11
    assert f"Of the 11 others {len(apart)} are significantly different from model.head.dropout=8" in text
    assert f"(rows {', '.join(apart)}); {11 - len(apart)} are not." in text
    assert "of 4 more are right" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("-rf", "\\-rf"), ("# x", "\\# x"), ("1. x", "1\\. x"), ("a|b", "a\\|b"), ("a\nb", "a b"), ("$x$", "\\$x\\$"),
        ("<b>&", "&lt;b&gt;&amp;"), ("`c`", "\\`c\\`"), ("[l](x)", "\\[l\\](x)"), ("~~x", "\\~\\~x"), ("=", "\\="),
        ("\x1b[2J\u202e", "\\\\x1b\\[2J\\\\u202e"), ("plain 1.5", "plain 1.5"),
    ],
)  # fmt: skip
def test_a_foreign_name_is_no_markdown(name: str, written: str) -> None:
    assert comparison_page.markdown_text(name) == written
    assert comparison_page.markdown_table([["name"], [name]]) == f"| name |\n|---|\n| {written} |"


def test_code_in_markdown_ends_where_it_ends() -> None:
    assert comparison_page.markdown_code("a\n```\n# b\x1b") == "````\na\n```\n# b\\x1b\n````"
