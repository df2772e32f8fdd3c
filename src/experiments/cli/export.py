"""`experiments export RUN --output FOLDER`: export a trained model as .keras and SavedModel, and verify both."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.arguments import add_run, exit_on_error, positive
from experiments.errors import ConfigError


@exit_on_error(OSError, RuntimeError)
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments export",
        description="Writes a finished run's model as model.keras and saved_model/, with model.json (class names in "
        "order, image size, what goes in and out). Preprocessing is inside: both take pixels in [0, 255]. Both are "
        "read back and compared with the model on images; where they differ nothing is written.",
    )
    add_run(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export has written there")
    parser.add_argument(
        "--images", "--pictures", type=positive, default=32, metavar="N", help="to compare on (default: 32)"
    )
    arguments = parser.parse_args()
    export(arguments.run, arguments.output, arguments.overwrite, arguments.images, arguments.uri)


def export(named: str, folder: Path, overwrite: bool, images: int, uri: str | None) -> None:
    """Write the exported files and print how much their predictions differ from the model's.

    Raises:
        ConfigError: no such run, or the folder exists and is not to be replaced.
    """
    from experiments.deploy import saved_run
    from experiments.system.startup import quiet_start

    # Only a folder that an earlier export has written is ever replaced.
    if folder.exists() and not (overwrite and (folder / "model.json").is_file()):
        how = "Give --overwrite to replace it" if (folder / "model.json").is_file() else "Give another one"
        raise ConfigError(f"--output: {folder} is there already. {how}")
    run = saved_run.find(named, uri)
    with quiet_start():
        from experiments.deploy import export as exports

        model = run.model()
    pixels, what = exports.sample(run, int(model.input_shape[1]), images)
    print(f"compared on {what}: largest difference in probability from the model")
    for name, difference in exports.export(run, model, pixels, folder).items():
        print(f"  {folder / name}  {difference:.1e}")
    print(f"  {folder / exports.ABOUT}  classes: {', '.join(run.classes)}")


if __name__ == "__main__":
    main()
