"""The images whose labels a run, or the runs of several folds, doubt most: a table of all, a figure of the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data.issues import printable
from experiments.data.pixel_cache import open_image
from experiments.deploy.predict import predict_recorded
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.evaluation.label_quality import Doubt, LabelledImage, count_wrong, have_probabilities, labelled, rank
from experiments.images.decoder_settings import DecoderSettings
from experiments.images.resizing import fit
from experiments.inspection.inspection import Inspection
from experiments.reports import plots
from experiments.reports.figure_style import literal, short
from experiments.runs.candidate_runs import unrated
from experiments.training.types import Progress

THUMBNAIL = 240  # pixels of the longer side of an image
FOLDS = "data.fold=0,1,2,3,4 (with -m, then the sweep's name here) gives every image a model that has not seen it"


def inspect(
    runs: Sequence[Trained], *, sweep: Path | None, count: int, data: Path | None, progress: Progress
) -> Inspection:
    """List the images whose labels a run, or the finished runs of a sweep's candidate, doubt most.

    Raises:
        ConfigError: predictions are missing or have no probabilities, or the model cannot be read.
        DataError: images are missing or are not those of the run.
    """
    run = runs[0]
    root, settings = run.data_root(data), run.decoder_settings
    images = held_out(runs)
    name = sweep.name if sweep else run.name
    if sweep:
        folds = len({run.config.data.fold for run in runs} - {None})
        suffix = f" over {folds} folds" if folds > 1 else ""
        lines = [
            f"{name}: {len(images)} images, each by models not trained on it, of {len(runs)} runs of one "
            f"candidate{suffix}"
        ]
        if lacking := unrated(run.images(), [image.sha256 for image in images]):
            lines.append(f"{lacking} training images are not rated: no finished run validates with them. {FOLDS}")
    else:
        lines = [f"{name}: {len(images)} validation images, by a model not trained on them"]
        rows = run.images("train")
        shares = predict_recorded(run.model(), root, rows, settings, progress, "training images").tolist()
        trained = [
            LabelledImage(row["path"], row["sha256"], "train", row["class_name"], tuple(probabilities))
            for row, probabilities in zip(rows, shares, strict=True)
        ]
        lines.append(
            f"{len(trained)} training images, by the run's own model, which was trained on their labels: a wrong one "
            f"may look right. {FOLDS}"
        )
        images += trained
    doubts = rank(images, run.classes)
    lines += count_wrong(doubts)
    for doubt in doubts[:count]:
        image = doubt.image
        seen = "" if image.held_out else "  (training image)"
        rather = f"{printable(doubt.likely)} {doubt.probability:.1%}"
        label = printable(image.label)
        lines.append(f"{doubt.self_confidence:6.1%}  {label}, rather {rather}  {printable(image.path)}{seen}")
    table = [
        {
            "rank": at, "path": image.path, "sha256": image.sha256, "split": image.split, "label": image.label,
            "likely": likely, "self_confidence": self_confidence, "margin": margin,
            "probability_of_likely": probability, "probably_wrong": probably_wrong, "held_out": image.held_out,
        }
        for at, (image, self_confidence, margin, likely, probability, probably_wrong) in enumerate(doubts, 1)
    ]  # fmt: skip
    title = f"{literal(short(name, 60))}: the {min(count, len(doubts))} most doubtful of {len(doubts)} labels"
    return Inspection(
        run.config, "labels", lines, lambda: draw(root, settings, doubts[:count], title), {"count": str(count)},
        table=table, folder=sweep,
    )  # fmt: skip


def held_out(runs: Sequence[Trained]) -> list[LabelledImage]:
    """Return the validation images of runs, with the mean probabilities of the runs that validated with them."""
    predictions = []
    for run in runs:
        if not have_probabilities(found := run.predictions("validation"), runs[0].classes):
            raise ConfigError(
                f"{run.name}: its predictions have no labels and probabilities of {', '.join(runs[0].classes)}. "
                "Allowed: a run of this version, and a sweep whose jobs have the same classes"
            )
        predictions += found
    return labelled(predictions, runs[0].classes)


def draw(root: Path, settings: DecoderSettings, doubts: Sequence[Doubt], title: str) -> Figure:
    """Draw images in the folder `root`, each under its file's name, its label and the most probable other class."""
    grid, titles = [], []
    for doubt in doubts:
        image = open_image(root, doubt.image.path, doubt.image.sha256, settings)
        grid.append(np.asarray(fit(image, THUMBNAIL, "white")))
        titles.append(
            f"{short(doubt.image.path.rsplit('/', 1)[-1])}\n{short(doubt.image.label)} {doubt.self_confidence:.1%}\n"
            f"{short(doubt.likely)} {doubt.probability:.1%}"
        )
    figure = plots.image_grid(np.stack(grid), titles)
    figure.suptitle(f"{title}\nthe label and its probability, then the most probable other class", fontsize=10)
    return figure
