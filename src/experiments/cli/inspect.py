"""`experiments inspect WHAT`: show a part of a configuration before a run, or the mistakes of a finished run."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_uri, positive
from experiments.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.config.schema import Config
    from experiments.deploy.saved_run import Trained

Parts = argparse._SubParsersAction  # argparse has no public name for this type


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments inspect",
        description="Looks at one part of a configuration, given as for train or as a run had it (--run), and writes "
        "what is to be seen as an image. `mistakes` looks at a run.",
    )
    components = parser.add_subparsers(dest="part", required=True, metavar="WHAT")
    for add in (add_augmentation, add_data, add_model, add_schedule, add_lr, add_mistakes):
        add(components)
    arguments, more = parser.parse_known_args()
    # argparse accepts positional arguments only in one piece, but overrides may be given on both sides of an option.
    wrong = [argument for argument in more if argument.startswith("-") or "overrides" not in arguments]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if more:
        arguments.overrides += more
    if getattr(arguments, "overrides", None) and arguments.run:
        parser.error(f"--run: its configuration is inspected without overrides. Received: {arguments.overrides[0]}")
    try:
        code = arguments.look(arguments)
    except (ConfigError, DataError) as error:
        sys.exit(str(error))
    if code:
        sys.exit(code)


def add_part(
    components: Parts[argparse.ArgumentParser], name: str, about: str, description: str
) -> argparse.ArgumentParser:
    """Add a subcommand that shows a part of a configuration, with the arguments that all of these share."""
    parser = components.add_parser(name, help=about, description=description)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train: augmentation=strong seed=1")
    parser.add_argument("--config-dir", type=Path, help="folder with further choices, as train takes it")
    parser.add_argument(
        "--run", metavar="RUN", help="a finished run's configuration instead (its folder, id or name); the image "
        "goes to its figures, in MLflow too",
    )  # fmt: skip
    add_output(parser)
    return parser


def add_output(parser: argparse.ArgumentParser) -> None:
    add_uri(parser)
    parser.add_argument("--dpi", type=positive, default=100, help="of the image (default: 100)")
    parser.add_argument(
        "--output", type=png, metavar="PATH", help="PNG file (default: inspect/ in outputs, of a run its figures/)"
    )


def rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a learning rate above 0. Received: {text!r}")
    return value


def png(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png. Received: {text!r}")
    return Path(text)


def configuration(arguments: argparse.Namespace) -> tuple[Config, Trained | None]:
    """Return the configuration to inspect, and the run that it belongs to if --run is given."""
    from experiments.cli.composed import read
    from experiments.deploy import saved_run

    if arguments.run:
        run = saved_run.find(arguments.run, arguments.uri)
        return run.config, run
    return read(arguments.overrides, arguments.config_dir), None


def save_figure(
    arguments: argparse.Namespace, figure: Figure, *, name: str, config: Config, run: Trained | None, **facts: str
) -> None:
    """Write a figure and print its path: into a run's directory, and its MLflow run, or else into outputs/inspect/.

    Args:
        arguments: the command line, with --output and --dpi.
        figure: the figure to write.
        name: name of the file, to which a hash of configuration and facts is added in outputs/inspect/.
        config: the configuration that the figure shows.
        run: the run that the configuration belongs to, if any.
        facts: values on which the figure depends besides the configuration.
    """
    from experiments.config.identity import run_identity
    from experiments.runs import run_directory
    from experiments.storage import atomic_files
    from experiments.tracking import mlflow_run
    from experiments.tracking.queries import local_store

    beside = run and run.folder and run.folder / "figures" / f"{name}.png"
    # The name is derived from the content, so that the same command always writes the same file.
    identity = run_identity(config, run=run.name if run else None, **facts)[:8]
    path = arguments.output or beside or Path(config.outputs) / "inspect" / f"{name}-{identity}.png"
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=arguments.dpi)
    atomic_files.write_file(path, content.getvalue())
    print(path)
    if run and run.run_id:
        told = run_directory.read_record(run.folder) if run.folder else None
        uri = (
            run.uri or (run_directory.store_of_run(run.folder, told) if run.folder and told else None) or local_store()
        )
        mlflow_run.add_figure(uri, run.run_id, path)
        print(f"also in MLflow: run {run.run_id}, figures/{path.name}")


def print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


# --- augmentation


def add_augmentation(components: Parts[argparse.ArgumentParser]) -> None:
    parser = add_part(
        components,
        "augmentation",
        "training images, and what the augmentation makes of them",
        "Draws training images, each in a row with what the augmentation makes of it in the first epochs. The draws "
        "are those of a run with this seed whose training images are these, in one batch. An image is 1.75 inches "
        "wide.",
    )
    parser.add_argument("--images", "--pictures", type=positive, default=8, help="rows (default: 8)")
    parser.add_argument("--views", type=positive, default=6, help="augmented images in a row (default: 6)")
    parser.set_defaults(look=inspect_augmentation)


def inspect_augmentation(arguments: argparse.Namespace) -> None:
    from experiments.system.startup import quiet_start

    config, run = configuration(arguments)
    with quiet_start():
        from experiments.inspection import augmentation
        from experiments.training import runtime
    with runtime.apply(config.runtime):
        shown = augmentation.sample(config, arguments.images)
        figure = augmentation.draw(config, shown, arguments.views)
    if "augmentation" in config.regime.ignores:
        print(f"regime={config.regime.name} trains on images as they are: it reads no augmentation")
    # Added explicitly, because the identity of a configuration omits an augmentation that its regime ignores.
    facts = {"data": shown.fingerprint, "augmentation": config.augmentation.model_dump_json()}
    name = f"augmentation-{config.augmentation.name}"
    save_figure(arguments, figure, name=name, config=config, run=run, views=str(arguments.views), **facts)


# --- data


def add_data(components: Parts[argparse.ArgumentParser]) -> None:
    parser = add_part(
        components,
        "data",
        "classes, splits, sizes, and every invalid file",
        "Reads the data set as a run would, and reports its classes and splits, its files' sizes, and for every "
        "invalid file the reason (exit code 1 if a run would refuse them). Files that data.limit or data.fold "
        "excludes are not decoded, as in a run.",
    )
    parser.add_argument("--images", "--pictures", type=positive, default=6, help="of each class (default: 6)")
    parser.set_defaults(look=inspect_data)


def inspect_data(arguments: argparse.Namespace) -> int:
    """Inspect a data set and return the exit code: 1 if a run would refuse it, else 0."""
    from experiments.system.startup import quiet_start

    config, run = configuration(arguments)
    with quiet_start():
        from experiments.data.manifest import fingerprint
        from experiments.inspection import data
    looked = data.inspect_data(config)
    print(looked.manifest.root)
    if looked.manifest.entries:
        from experiments.system.progress import PlainConsole

        PlainConsole().print(data.counts(looked.manifest))
    print_lines(data.sentences(looked.manifest, config.data.image_size))
    print_lines(data.issue_lines(looked, config.data.on_bad))
    print_lines(data.image_warning_lines(looked.manifest))
    if looked.manifest.entries:
        facts = {"data": fingerprint(looked.manifest), "faults": str(len(looked.faults))}
        figure = data.draw(looked, arguments.images)
        name = f"data-{config.data.name}"
        save_figure(arguments, figure, name=name, config=config, run=run, images=str(arguments.images), **facts)
    return 1 if looked.fatal else 0


# --- model


def add_model(components: Parts[argparse.ArgumentParser]) -> None:
    parser = add_part(
        components,
        "model",
        "layers, blocks, parameters, what is trained, and what an image costs",
        "Builds the network of a configuration and prints, block by block, its parameters and multiply-adds, what the "
        "regime trains of it, and before which layer activations are stored. Neither images nor weights are read. "
        "How many images a second that is on this machine: experiments backbones NAME.",
    )
    parser.add_argument("--layers", action="store_true", help="print every layer, not only the blocks")
    parser.add_argument("--classes", type=classes, help="of the head (default: the run's, else 2)")
    parser.set_defaults(look=inspect_model)


def classes(text: str) -> int:
    if positive(text) < 2:
        raise argparse.ArgumentTypeError(f"must be 2 or more. Received: {text!r}")
    return int(text)


def inspect_model(arguments: argparse.Namespace) -> None:

    from experiments.system.startup import quiet_start

    config, run = configuration(arguments)
    with quiet_start():
        from experiments.inspection import model
    count = arguments.classes or (len(run.classes) if run else 2)
    summary = model.summarize_model(config, count)
    table = model.layer_table(summary) if arguments.layers else model.block_table(summary)
    from experiments.system.progress import PlainConsole

    wide = PlainConsole(width=1000)  # wide enough for whole layer names
    PlainConsole(width=max(PlainConsole().width, wide.measure(table).maximum)).print(table)
    print(f"{config.model.name}, {config.data.image_size} pixels, {count} classes; weights are not read")
    print_lines(model.sentences(config, summary))
    name = f"model-{config.model.name}"
    save_figure(arguments, model.draw(config, summary), name=name, config=config, run=run, classes=str(count))


# --- schedule


def add_schedule(components: Parts[argparse.ArgumentParser]) -> None:
    parser = add_part(
        components,
        "schedule",
        "the learning rate over the epochs to come",
        "Draws the learning rate of every epoch, warm-up and phases with it, as the run will set it; of a schedule "
        "that watches the run, between which rates it will be.",
    )
    parser.set_defaults(look=inspect_schedule)


def inspect_schedule(arguments: argparse.Namespace) -> None:

    from experiments.system.startup import quiet_start

    config, run = configuration(arguments)
    with quiet_start():
        from experiments.inspection import schedule
    phases = schedule.phases(config)
    from experiments.system.progress import PlainConsole

    PlainConsole().print(schedule.table(phases))
    print_lines(schedule.sentences(config, phases))
    save_figure(
        arguments, schedule.draw(config, phases), name=f"schedule-{config.schedule.name}", config=config, run=run
    )


# --- lr


def add_lr(components: Parts[argparse.ArgumentParser]) -> None:
    parser = add_part(
        components,
        "lr",
        "range test: which learning rate this training takes",
        "Trains the run's last phase for some batches, with a learning rate that grows with each, until the loss runs "
        "away (Smith, 2017), and suggests one. What that phase starts from (cached features, for fine-tuning the "
        "trained head) is made or found in the cache as by the run; the weights are thrown away.",
    )
    parser.add_argument("--batches", type=positive, default=100, help="at most (default: 100)")
    parser.add_argument("--from", type=rate, default=1e-6, dest="lowest", metavar="LR", help="(default: 1e-6)")
    parser.add_argument("--to", type=rate, default=10.0, dest="highest", metavar="LR", help="(default: 10)")
    parser.set_defaults(look=inspect_lr)


def inspect_lr(arguments: argparse.Namespace) -> None:
    import tempfile

    from experiments.system.startup import quiet_start

    if arguments.lowest >= arguments.highest or arguments.batches < 2:
        raise ConfigError(
            f"--from must be below --to, with two batches or more between them. Received: --from {arguments.lowest:g} "
            f"--to {arguments.highest:g} --batches {arguments.batches}"
        )
    config, run = configuration(arguments)
    with quiet_start():
        import numpy as np

        from experiments.inspection import lr
        from experiments.system.progress import PlainConsole, Terminal
        from experiments.tracking import mlflow_run
        from experiments.training import runtime
    rates = np.geomspace(arguments.lowest, arguments.highest, arguments.batches)
    with tempfile.TemporaryDirectory() as folder, runtime.apply(config.runtime):
        files = mlflow_run.fetch(config, Path(folder))
        found = lr.range_test(config, files, rates, Terminal(PlainConsole(stderr=True)))
    print_lines(lr.sentences(config, found))
    limits = f"{arguments.lowest} {arguments.highest} {arguments.batches}"
    name = f"lr-{config.regime.name}-{config.optimizer.name}"
    save_figure(arguments, lr.draw(config, found), name=name, config=config, run=run, rates=limits)


# --- mistakes


def add_mistakes(components: Parts[argparse.ArgumentParser]) -> None:
    parser = components.add_parser(
        "mistakes",
        help="a run's most confident errors, with Grad-CAM",
        description="Draws the images that a finished run got wrong with most confidence, each beside what in it "
        "spoke for the class that was predicted (Grad-CAM), into the run's figures.",
    )
    parser.add_argument("run", metavar="RUN", help="its folder, MLflow id (or the beginning of it) or name")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--count", type=positive, default=12, help="at most (default: 12)")
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the images are now (default: data.root)")
    add_output(parser)
    parser.set_defaults(look=inspect_mistakes)


def inspect_mistakes(arguments: argparse.Namespace) -> None:
    from experiments.config.overrides import quoted
    from experiments.deploy import saved_run
    from experiments.system.startup import quiet_start

    run = saved_run.find(arguments.run, arguments.uri)
    config = run.config
    if arguments.data:
        config = run.changed([f"data.root={quoted(str(arguments.data.resolve()))}"])
    with quiet_start():
        from experiments.inspection import mistakes
    wrong, images = mistakes.find(run, arguments.split)
    print(f"{run.name}: {len(wrong)} mistakes in {images} {arguments.split} images")
    if not wrong:
        return
    shown = mistakes.explain(run, config, wrong[: arguments.count])
    print_lines([f"{one.confidence:6.1%}  {one.label} → {one.predicted}  {one.path}" for one in shown.mistakes])
    if shown.difference > 0.01:
        print(f"the model as it is read now differs from what the run recorded by up to {shown.difference:.1%}")
    figure = mistakes.draw(run, arguments.split, shown, len(wrong), images)
    name = f"{arguments.split}_gradcam"
    save_figure(arguments, figure, name=name, config=config, run=run, count=str(arguments.count))


if __name__ == "__main__":
    main()
