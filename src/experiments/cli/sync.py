"""`experiments sync [FOLDER ...]`: upload the tracking buffers of runs whose MLflow store could not be reached."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.cli.arguments import exit_on_error
from experiments.errors import ConfigError
from experiments.runs.run_directory import FACTS, RunDirectory
from experiments.system.paths import default_outputs


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments sync",
        description="A run continues if its MLflow server is unavailable, and buffers in its folder what it could "
        "not upload. This uploads it: parameters, curves, results, artifacts, the model, the final status. "
        "Uploading is idempotent.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER",
        help="of runs; their curves are uploaded again whole (default: all below outputs/ that need it)",
    )  # fmt: skip
    parser.add_argument("--uri", help="the MLflow store, where it is another than the run was started with")
    arguments = parser.parse_args()
    wrong = [folder for folder in arguments.folders if RunDirectory(folder).lacks([FACTS])]
    if wrong:
        parser.error(f"no run's folder, as it has no {FACTS}. Received: {', '.join(map(str, wrong))}")
    from experiments.tracking.sync import sync
    from experiments.tracking.upload import UNSENT

    failed = 0
    folders = arguments.folders or sorted(path.parent for path in Path(default_outputs()).glob(f"*/**/{UNSENT}"))
    if not folders:
        print(f"Nothing to upload: no run or sweep in {default_outputs()} has a tracking buffer")
    for folder in folders:
        try:
            print(f"{folder}: {sync(folder.resolve(), arguments.uri, whole=bool(arguments.folders))}")
        except (ConfigError, OSError) as error:  # the other runs may succeed
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)
