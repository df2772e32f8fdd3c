"""`experiments pretrained`: train the small convnet's backbone whose weights `model.weights=pretrained` loads."""

from __future__ import annotations

import argparse
import shutil

from experiments.cli.arguments import add_overrides, exit_on_error
from experiments.system.paths import PACKAGE


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments pretrained",
        description="Train experiment=pretrained on synthetic animals and put its backbone's weights into the package.",
    )
    add_overrides(parser)
    arguments = parser.parse_args()
    from experiments.api.training import train
    from experiments.evaluation.evaluate import Baseline, percent
    from experiments.runs.run_directory import RunDirectory

    run = train("experiment=pretrained", *arguments.overrides)
    assert run.folder is not None, "it was trained here"
    target = PACKAGE / "weights" / "convnet.weights.h5"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(RunDirectory(run.folder).weights("backbone"), target)
    accuracy, low, share = (run.metrics[f"validation.accuracy{name}"] for name in ("", "_low", "_baseline"))
    beside = Baseline("", share).describe(accuracy, low)
    print(f"{target}: {target.stat().st_size} bytes, validation accuracy {percent(accuracy)}, {beside}")
