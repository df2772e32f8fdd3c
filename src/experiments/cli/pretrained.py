"""`experiments pretrained`: train the small convnet's backbone whose weights `model.weights=pretrained` loads."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from experiments.errors import ConfigError
from experiments.system.paths import PACKAGE


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments pretrained",
        description="Train experiment=pretrained on synthetic animals and put its backbone's weights into the package.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args()
    from experiments.cli.composed import start
    from experiments.evaluation.evaluate import Baseline, percent

    try:
        _, (run,) = start([["experiment=pretrained", *arguments.overrides]], "pretrained")
    except ConfigError as error:
        sys.exit(str(error))
    target = PACKAGE / "weights" / "convnet.weights.h5"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(Path(run.tags["run_folder"]) / "weights" / "backbone.weights.h5", target)
    accuracy, low, share = (run.metrics[f"validation.accuracy{name}"] for name in ("", "_low", "_baseline"))
    beside = Baseline("", share).beside(accuracy, low)
    print(f"{target}: {target.stat().st_size} bytes, validation accuracy {percent(accuracy)}, {beside}")


if __name__ == "__main__":
    main()
