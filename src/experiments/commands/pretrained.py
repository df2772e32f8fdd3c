"""`experiments pretrained`: trains the body of the small convnet that `model.weights=pretrained` loads."""

from __future__ import annotations

import argparse
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.paths import PACKAGE


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments pretrained",
        description="Trains experiment=pretrained on drawn animals and puts its backbone's weights into the package.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    arguments = parser.parse_args()
    token = f"t{secrets.token_hex(4)}"  # a letter first: Hydra reads 12345678 as a number
    command = [sys.executable, "-m", "experiments.train", "experiment=pretrained", f"+tags.pretrained={token}"]
    done = subprocess.run([*command, *arguments.overrides])
    if done.returncode:
        sys.exit(done.returncode)

    from experiments.tracking import find_runs, local_store

    (run,) = find_runs(local_store(), (), tag=("pretrained", token))
    target = PACKAGE / "weights" / "convnet.weights.h5"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(Path(run.tags["run_folder"]) / "weights" / "backbone.weights.h5", target)
    print(f"{target}: {target.stat().st_size} bytes, validation accuracy {run.metrics['validation.accuracy']:.1%}")


if __name__ == "__main__":
    main()
