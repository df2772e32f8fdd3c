"""The tutorial's three experiments and its exercise: the claims, the runs that test them, and the table of both.

Source: "A Gentle Introduction to Convolutional Neural Networks - Building a Deep Neural Network for Image
Classification with Keras" (S. Mujumdar, A. Jain).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from experiments.comparison.text import baseline_sentences
from experiments.config.identity import NOT_IDENTITY
from experiments.config.overrides import quoted
from experiments.config.schema import Config
from experiments.evaluation.evaluate import Baseline, majority_baseline
from experiments.evaluation.statistics import Interval, mean_interval, wilson
from experiments.reports.text import format_score
from experiments.runs.run_directory import CURVES, METRICS, RunDirectory, predictions_file
from experiments.storage import atomic_files
from experiments.sweeps import plan
from experiments.sweeps.launchers import processes
from experiments.sweeps.plan import Job
from experiments.system import hardware
from experiments.system.paths import run_name
from experiments.tracking import queries
from experiments.training.types import Status, last_phase

CLAIMED_FOR = "vgg16"  # the backbone of all claims but the first
CLAIM_IMAGES = 400  # images that the tutorial validated on, 200 per class
LAST = 5  # a measured accuracy is the mean of this many last epochs
# Backbones of the tutorial's presets, whose head takes flattened features. Any other backbone is run with
# MobileNetV2's presets, which keep the default head of the backbone.
TUTORIAL_BACKBONES = ("vgg16", "vgg19")
QUICK = ("data.limit.train=100", "data.limit.validation=200")  # per class


class Claim(NamedTuple):
    """A claim of the tutorial about one of its experiments; accuracies in [0, 1]."""

    about: str
    says: str
    low: float
    high: float
    measured: bool = True  # True: measured on images, so it has a sampling error; False: a goal

    def range(self) -> tuple[float, float]:
        """Return the lowest and highest accuracy compatible with the claim (95 % Wilson interval for its images)."""
        if not self.measured:
            return self.low, self.high
        low, high = (wilson(round(end * CLAIM_IMAGES), CLAIM_IMAGES) for end in (self.low, self.high))
        return low[0], high[1]


CLAIMS = {
    "scratch": Claim("from scratch: the small convnet", "74-78 %", 0.74, 0.78),
    "bottleneck": Claim("a head on bottleneck features", "about 90 %", 0.90, 0.90),
    "finetune": Claim("fine-tuning the last block", "about 95 %", 0.95, 0.95),
    "exercise": Claim("exercise: dropout 0.7, L2, two blocks", "above 95 %", 0.95, 1.0, measured=False),
}


class Result(NamedTuple):
    """The result of a finished run; accuracies in [0, 1], on the validation images."""

    last_epochs: float  # mean of the last phase's last five epochs, or of all its epochs if there are fewer
    accuracy: float  # after the last epoch
    images: int
    seconds: float
    ended: int  # [ms since 1970]
    baseline: float = 0.0  # accuracy of always predicting the most frequent class; 0: unknown


def overrides(name: str, *, backbone: str, data: str | None, weights: str | None, quick: bool) -> list[str]:
    """Return the overrides of a claim's runs, without the seed.

    `data` is a folder of images, or the cats-and-dogs zip file; None: the download, or synthetic images if `quick`,
    which trains on fewer images, for fewer epochs. Without `weights`, the backbone has those of its choice.
    """
    is_tutorial = name == "scratch" or backbone in TUTORIAL_BACKBONES
    presets, made_for = ("tutorial", CLAIMED_FOR) if is_tutorial else ("mobilenet", "mobilenet_v2")
    given = [f"experiment={presets}_{name}"]
    if name != "scratch":
        given += [f"model={backbone}"] if backbone != made_for else []
        given += [f"model.weights={quoted(weights)}"] if weights else []
    if data is None:
        given += ["data=synthetic" if quick else "data=cats_vs_dogs"]
    elif data.endswith(".zip"):
        given += ["data=cats_vs_dogs", f"data.archive={quoted(data)}"]
    else:
        given += [f"data.root={quoted(data)}"]
    if quick:
        given += QUICK
        given += ["epochs=15"] if name in ("scratch", "bottleneck") else ["epochs=5", "regime.head_epochs=15"]
    return given


def same_task(config: Config, given: Sequence[str]) -> bool:
    """Return whether runs match the claims: no synthetic images, and no overrides that change a run's identity."""
    altered = {re.split(r"[.=@]", override.lstrip("+~"))[0] for override in given} - {*NOT_IDENTITY, "runtime"}
    return not altered and not config.data.name.startswith("synthetic")


def train(job: Job, parent: str | None) -> None:
    """Train a job in a process of its own, and set its status, reason and run id; `parent` is that run's parent."""
    if job.status == Status.NEW:
        name = run_name(job.values["experiment"], job.config.model.name, f"seed{job.values['seed']}")
        job.folder = Path(job.config.outputs) / "runs" / name
    own = any(override.startswith("runtime.threads=") for override in job.overrides)
    settings = {"runtime.threads": None if own else job.threads, "sweep.parent": parent}
    reason = processes.join(processes.start("experiments.train", "run_planned", plan.planned(job, settings)))
    job.run_id = RunDirectory(job.folder).facts().get("run_id")
    job.status, job.reason = (Status.FAILED, reason) if reason else (Status.FINISHED, "")


def read_result(directory: RunDirectory) -> Result:
    """Return a run's result from the files RESULTS of its directory."""
    epochs, metrics = directory.epochs(), directory.metrics()
    last = [epoch.metrics["validation_accuracy"] for epoch in last_phase(epochs)[-LAST:]]
    labels = [prediction.label for prediction in directory.predictions("validation")]
    return Result(
        mean(last), metrics["validation.accuracy"], len(labels), metrics["total_seconds"], epochs[-1].timestamp,
        majority_baseline(labels).accuracy if any(labels) else 0.0,
    )  # fmt: skip


RESULTS = (CURVES, METRICS, predictions_file("validation"))


def result_of(job: Job) -> Result:
    """Return a finished run's result from its directory or, if that is on another machine, from MLflow."""
    directory = RunDirectory(job.folder)
    if directory.finished(job.identity) is not None and not directory.lacks(RESULTS):
        return read_result(directory)
    uri, run_id = str(job.config.tracking.uri), str(job.run_id)
    with tempfile.TemporaryDirectory() as folder:
        fetched = RunDirectory(Path(folder))
        fetched.write_fetched(queries.read_files(uri, run_id, RESULTS), job.identity, run_id)
        return read_result(fetched)


def check_claim(claim: Claim, low: float, high: float) -> str:
    """Return whether an interval lies inside the claim's range, below or above it, or across one of its ends."""
    lowest, highest = claim.range()
    if high < lowest:
        return "below"
    if low > highest:
        return "above"
    return "reproduced" if lowest <= low and min(high, 1.0) <= highest else "inconclusive"


def row(name: str, jobs: Sequence[Job], *, backbone: str, comparable: bool) -> dict[str, Any]:
    """Return a row of the table as plain values, accuracies in [0, 1]; for `comparable` see `same_task`."""
    claim = CLAIMS[name]
    done = [job for job in jobs if job.status == Status.FINISHED]
    results = [result_of(job) for job in done]
    says = claim.says if name == "scratch" or backbone == CLAIMED_FOR else f"{claim.says} ({CLAIMED_FOR})"
    found: dict[str, Any] = {
        "experiment": name, "about": claim.about, "claim": says,
        "command": " ".join(plain_overrides(jobs[0].overrides)), "seeds": len(jobs),
        "finished": [job.values["seed"] for job in done], "results": [result._asdict() for result in results],
        "run_ids": [job.run_id for job in done],
    }  # fmt: skip
    if results:  # the interval is over seeds and images
        images = min(result.images for result in results)
        found["mean"], found["low"], found["high"] = mean_interval([result.last_epochs for result in results], images)
    whole = len(done) == len(jobs)
    found["outcome"] = check_claim(claim, found["low"], found["high"]) if whole and comparable else ""
    return found


def plain_overrides(given: Sequence[str]) -> list[str]:
    """Return the overrides of a run without its seed, with placeholders for paths on this machine."""
    named = [re.sub(r"^data\.root=.*", "data.root=PATH", line) for line in given if not line.startswith("seed=")]
    return [re.sub(r"^(data\.archive=|model\.weights=(?=')).*", r"\1FILE", line) for line in named]


PAGE = "summary.md"
HEADER = ("experiment", "the tutorial says", "measured here", "last epoch", "seconds a run", "outcome")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row as text, in the order of HEADER without its first column."""
    results = row["results"]
    measured = format_score("accuracy", Interval(row["mean"], row["low"], row["high"])) if results else ""
    missing = row["seeds"] - len(results)
    return [
        row["claim"],
        measured.replace("%", " %"),
        ", ".join(f"{100 * result['accuracy']:.1f}" for result in results),
        ", ".join(f"{result['seconds']:.0f}" for result in results),
        row["outcome"] or (f"{missing} of {row['seeds']} runs missing" if missing else "-"),
    ]


def sentences(rows: Sequence[Mapping[str, Any]], *, backbone: str, comparable: bool) -> list[str]:
    """Return sentences that explain the table."""
    images = sorted({result["images"] for row in rows for result in row["results"]})
    single = all(row["seeds"] == 1 for row in rows)
    covered = "Wilson's over the images of the single run" if single else "over the seeds and the images"
    lines = [
        f"Measured: accuracy on {' or '.join(map(str, images)) or 'the'} validation images, mean of the last "
        f"{LAST} epochs (the curves swing, and no epoch is picked) with its 95 % interval, {covered}; beside it the "
        "accuracy after the last epoch, by seed.",
        "Later seeds reuse the features and heads that earlier runs have cached, so they take fewer seconds.",
    ]
    lines += baseline_sentences([
        (row["experiment"], Baseline("", known[0]), row["mean"], row["low"])
        for row in rows
        if (known := [result["baseline"] for result in row["results"] if result["baseline"]])
    ])  # fmt: skip
    if single:
        lines.append(
            "Each figure is of one trained model: training noise is not in its interval (--seeds 3 has it measured)."
        )
    if not comparable:
        return [
            *lines,
            "No outcome: other images, fewer of them or other settings than the claims are about. (From "
            "scratch, a few epochs on a few images hardly leave chance.)",
        ]
    ranges = [(row["experiment"], CLAIMS[row["experiment"]]) for row in rows]
    intervals = ", ".join(
        f"{name} {100 * claim.range()[0]:.1f} to {100 * claim.range()[1]:.1f} %" for name, claim in ranges
    )
    lines.append(
        f"A claim is itself a figure from {CLAIM_IMAGES} images, so it is read as all that fits it within a 95 % "
        f"interval ({intervals}; the exercise is a goal and read as it stands). Reproduced: our interval lies within; "
        "above, below: wholly outside; inconclusive: across an end."
    )
    if backbone != CLAIMED_FOR:
        lines.append(
            f"All claims but the first are {CLAIMED_FOR}'s, and these figures are {backbone}'s: there the outcome "
            "compares numbers, and neither confirms nor refutes the claim."
        )
    return lines


def markdown(rows: Sequence[Mapping[str, Any]], explanation: Sequence[str], about: str) -> str:
    """Return the table as a Markdown page, with the commands of single runs."""
    lines = ["# The tutorial, reproduced", "", about, "", f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    lines += [f"| {' | '.join([row['about'], *cells(row)])} |" for row in rows]
    lines += ["", *(f"{sentence}\n" for sentence in explanation), "One run of each, with its seed:", "", "```"]
    lines += [f"python -m experiments.train {row['command']} seed=0" for row in rows]
    return "\n".join([*lines, "```", ""])


def conclude(
    folder: Path, jobs: Sequence[Job], backbone: str, comparable: bool, command: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write summary.md and, with every run's results, summary.json; return the table's rows and its explanation."""
    by_claim = {name: [job for job in jobs if job.values["experiment"] == name] for name in CLAIMS}
    rows = [row(name, own, backbone=backbone, comparable=comparable) for name, own in by_claim.items()]
    explanation = sentences(rows, backbone=backbone, comparable=comparable)
    ended = [result["ended"] / 1000 for row in rows for result in row["results"]]
    day = time.strftime("%d %B %Y", time.localtime(max(ended, default=None))).lstrip("0")
    about = f"`{command}`, {day}; {hardware.sentence()}"
    atomic_files.write_file(folder / PAGE, markdown(rows, explanation, about).encode())
    atomic_files.write_json(folder / "summary.json", {"about": about, "rows": rows, "sentences": explanation})
    return rows, explanation


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics to log to MLflow for the parent run: the accuracy of every row, with its interval."""
    names = {"mean": "validation.accuracy", "low": "validation.accuracy_low", "high": "validation.accuracy_high"}
    return {f"{row['experiment']}.{metric}": row[key] for row in rows for key, metric in names.items() if key in row}
