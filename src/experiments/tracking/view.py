"""Default view of an experiment in the MLflow UI: its description, its kind, and a shared view of its runs.

The shared view is a tag of the experiment, in the format of the UI's own Share button, and has a name that a URL refers
to. It defines the columns for comparing runs; changes by a reader stay in their browser. Other versions of MLflow
ignore settings that they do not support.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from experiments.tracking import connection
from experiments.tracking.private_mlflow_api import KIND, NOTE, SHARED_VIEW

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

KEY = "experiments"  # the name of the view in its URL
SHARED = f"{SHARED_VIEW}.{KEY}"  # the tag that holds it
# The first line is all that the UI shows until the text is opened.
TEXT = """\
**Compare `validation.accuracy`** and its 95 % interval, `validation.accuracy_low` to `_high`. How to read the rest: \
open this text (at its right end).

**Runs.** Each is one training: `regime` says how (scratch, bottleneck, finetune), `model` with which network. A \
sweep is a run, too; under *Sort: Created* its jobs lie below it, behind the `+`. Parameters are the configuration's \
keys as typed, such as `optimizer.lr`; *Columns* shows more of them. *Model training*, at the top left, hides what \
is not for this.

**Which is better?** The interval is Wilson's over the validation images; always predicting the most frequent class \
reaches `validation.accuracy_baseline`. Where intervals overlap, or runs differ in `seed` only, use \
`experiments compare RUN RUN ...`, which compares image by image. Single runs show which of two trained models is \
better; whether a setting is takes several seeds of each. The best of many is flattered by the choice. `test.*` is \
there to be read once, not to choose by.

**Curves.** The chart symbol above the table draws all runs' curves; in a run they are under *Model metrics*, below \
the scores by class: `accuracy` and `loss` in training, `validation_accuracy` and `validation_loss`, by epoch. A \
finetune run begins with its head's epochs (`phase` 1, then 2). `seconds`, `input_wait` and `images_per_second` are an \
epoch's, `total_seconds` is the run's, `fit_seconds` what training took of it.

**Figures and predictions.** In a run, under *Artifacts*: `figures/` (curves, confusion matrix, ROC, calibration, \
most confident mistakes), `per_class_validation.json` with the scores of every class, \
`predictions_validation.json` with every image, `config.yaml`, `manifest.csv`. Whole \
models are under *Models*. Runs with the same tag `data_fingerprint` saw the same images.
"""
# The columns for comparing runs, in this order, with their widths in pixels.
COLUMNS = {
    "metrics.`validation.accuracy`": 150, "metrics.`validation.accuracy_low`": 175,
    "metrics.`validation.accuracy_high`": 180, "metrics.`validation.accuracy_baseline`": 205,
    "params.`regime`": 100, "params.`model`": 110, "params.`seed`": 60, "params.`model.head.dropout`": 150,
    "params.`model.head.l2`": 115, "params.`regime.unfrozen_blocks`": 175, "params.`optimizer.lr`": 100,
    "params.`epochs`": 80, "params.`augmentation`": 120, "params.`data`": 110,
}  # fmt: skip
FIXED = {"1": 73, "attributes.`Run Name`": 350, "runDateAndNestInfo": 130, "duration": 80}  # the UI's own columns
CURVES = ("validation_accuracy", "validation_loss", "accuracy", "loss")  # shown first; all others follow
SECTION = "Model metrics"  # the UI's own section of charts
BY_CLASS = ("f1_by_class", "precision_by_class", "recall_by_class")  # the UI has a section of each before its own


def charts(tested: bool = False) -> dict[str, Any]:
    """Return the charts that are shown first, in the UI's format; the sections of single classes are closed."""
    card = {"metricSectionId": SECTION, "runsCountToCompare": 10, "deleted": False, "isGenerated": True}
    line = {
        "type": "LINE", "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
        "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
        "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
    }  # fmt: skip
    cards = [{**card, **line, "uuid": name, "metricKey": name, "displayName": name} for name in CURVES]
    # `isReordered` makes the UI put further charts after these.
    shown = {SECTION: {"display": True, "isReordered": True}}
    splits = ("validation", "test") if tested else ("validation",)  # the UI would show an empty section of another
    shown |= {f"{split}.{name}": {"display": False, "isReordered": False} for split in splits for name in BY_CLASS}
    section = {"deleted": False, "isGenerated": True}
    sections = [{"uuid": name, "name": name, **section, **how} for name, how in shown.items()]
    return {"compareRunCharts": cards, "compareRunSections": sections}


def tags(tested: bool = False) -> dict[str, str]:
    """Return the tags of an experiment that set its description, its kind and its shared view in the UI.

    Args:
        tested: whether runs of the experiment were evaluated on test images.
    """
    widths = FIXED | COLUMNS
    view = {
        "selectedColumns": [*COLUMNS], "columnOrder": [*widths], "columnWidths": widths,
        # Sorted by anything but time, the UI lists jobs among all other runs instead of below their sweep.
        "orderByKey": "metrics.`validation.accuracy`", "orderByAsc": False, **charts(tested),
    }  # fmt: skip
    return {NOTE: TEXT, KIND: "custom_model_development", SHARED: json.dumps(view)}


def configure_experiment_view(uri: str) -> list[tuple[str, str]]:
    """Set the tags of those experiments of a store that contain runs of this project; keep an existing description.

    Returns:
        For each of these experiments its name and its path in the UI's URL, the one with the latest run first.
    """
    connection.check_runs(uri)
    with connection.client(uri) as client:
        from mlflow.exceptions import MlflowException

        ours = [(latest, found) for found in client.search_experiments() if (latest := _latest(client, found))]
        for _, experiment in ours:
            tested = _latest(client, experiment, "metrics.`test.accuracy` >= 0") > 0
            for name, value in tags(tested).items():
                if experiment.tags.get(name) != value and (name != NOTE or NOTE not in experiment.tags):
                    try:
                        client.set_experiment_tag(experiment.experiment_id, name, value)
                    except MlflowException as error:
                        if "readonly database" not in str(error):
                            raise
    address = "#/experiments/{}/runs?workflowType=machine_learning&viewStateShareKey={}"
    latest_first = sorted(ours, key=lambda pair: pair[0], reverse=True)
    return [(experiment.name, address.format(experiment.experiment_id, KEY)) for _, experiment in latest_first]


def _latest(client: MlflowClient, experiment: Experiment, condition: str = "tags.run_folder != ''") -> int:
    """Return when the latest run of this project (or that meets the condition) began, in ms since 1970; 0: none."""
    runs: list[Any] = client.search_runs(
        [experiment.experiment_id], condition, order_by=["attributes.start_time DESC"], max_results=1
    )
    return int(runs[0].info.start_time) if runs else 0
