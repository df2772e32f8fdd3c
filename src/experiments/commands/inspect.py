"""`experiments inspect WHAT [KEY=VALUE ...]`: what a configuration does, before anything is trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.types import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from experiments.schema import Config
    from experiments.types import Splits


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments inspect",
        description="Looks at one part of a configuration, given as for train. Nothing is trained.",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="WHAT")
    add_augmentation(parts)
    arguments, more = parser.parse_known_args()
    # argparse takes arguments of one kind in one piece only; overrides may stand on both sides of an option.
    if wrong := [argument for argument in more if argument.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    arguments.overrides += more
    try:
        arguments.look(arguments)
    except (ConfigError, DataError) as error:
        sys.exit(str(error))


def add_part(parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, description: str) -> (
    argparse.ArgumentParser
):  # fmt: skip
    """A sub-command with what all of them take."""
    parser = parts.add_parser(name, help=about, description=description)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train: augmentation=strong seed=1")
    parser.add_argument("--config-dir", type=Path, help="folder with further choices, as train takes it")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Received: {text!r}")
    return int(text)


def png(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png. Received: {text!r}")
    return Path(text)


# --- augmentation


def add_augmentation(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(
        parts,
        "augmentation",
        "training pictures, and what the augmentation makes of them",
        "Draws training pictures, each in a row with what the augmentation makes of it in the first epochs. The draws "
        "are those of a run with this seed whose training pictures are these, in one batch.",
    )
    parser.add_argument("--pictures", type=positive, default=8, help="rows (default: 8)")
    parser.add_argument("--views", type=positive, default=6, help="augmented pictures in a row (default: 6)")
    parser.add_argument("--dpi", type=positive, default=100, help="of the figure; a picture is 1.75 inches wide")
    parser.add_argument("--output", type=png, metavar="PATH", help="PNG file (default: inspect/ in outputs)")
    parser.set_defaults(look=look_at_augmentation)


def look_at_augmentation(arguments: argparse.Namespace) -> None:
    """Writes the figure and tells where it is."""
    import io

    from experiments.commands.composed import read
    from experiments.quiet import quiet_start

    config = read(arguments.overrides, arguments.config_dir)
    with quiet_start():
        from experiments import runtime, schema, store
    with runtime.apply(config.runtime):
        shown = sample(config, arguments.pictures)
        figure = augmentation_figure(config, shown, arguments.views)
    name = config.augmentation.name
    # A name by content: the same command writes the same file.
    spec = config.augmentation.model_dump_json()
    identity = schema.identity(config, data=shown.fingerprint, augmentation=spec, views=str(arguments.views))
    path = arguments.output or Path(config.outputs) / "inspect" / f"augmentation-{name}-{identity[:8]}.png"
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=arguments.dpi)
    store.write_file(path, content.getvalue())
    if "augmentation" in config.regime.ignores:
        print(f"regime={config.regime.name} trains on pictures as they are: it reads no augmentation")
    print(path)


def sample(config: Config, count: int) -> Splits:
    """The data set cut down to `count` training pictures, of the classes in turn; no others become pixels.

    Raises:
        ConfigError, DataError: as `run.read_manifest`.
    """
    import dataclasses
    from collections import defaultdict

    from experiments.build import build_source
    from experiments.data import manifest
    from experiments.run import read_manifest
    from experiments.schema import Limit

    half = -(-count // 2)  # there are two classes or more
    limit = Limit(train=min(half, config.data.limit.train or half), validation=1, test=1)
    data = config.data.model_copy(update={"limit": limit})
    found = read_manifest(config.model_copy(update={"data": data}), build_source(config)())
    places: dict[str, int] = defaultdict(int)
    turns = []
    for entry in found.of("train"):
        turns.append((places[entry.class_name], entry.class_name, entry))
        places[entry.class_name] += 1
    chosen = [entry for _, _, entry in sorted(turns, key=lambda turn: turn[:2])[:count]]
    others = [entry for entry in found.entries if entry.split != "train"]
    few = dataclasses.replace(found, entries=(*chosen, *others))
    return manifest.splits(few, config.data.image_size, config.cache, config.runtime.memory * 1e9)


def augmentation_figure(config: Config, shown: Splits, views: int) -> Figure:
    """A row for each training picture: the original, then how each of the first epochs shows it.

    Where labels are mixed, a view's title tells its shares of the classes.

    Raises:
        ConfigError: an augmentation that cannot be built.
    """
    import numpy as np

    from experiments import figures

    originals = shown.train.pixels[:].astype("float32")
    rows = [[pixels] for pixels in originals]
    titles = [[figures.label_title(label, shown.classes)] for label in shown.train.labels]
    for pixels, labels in augmented_views(config, shown, views):
        for at, label in enumerate(labels):
            rows[at].append(pixels[at])
            titles[at].append(figures.label_title(label, shown.classes) if label.ndim else "")
    flat = np.stack([pixels for row in rows for pixels in row])
    figure = figures.picture_grid(flat, [title for row in titles for title in row], columns=1 + views)
    span = "epoch 1 shows" if views == 1 else f"epochs 1 to {views} show"
    figure.suptitle(f"augmentation={config.augmentation.name}: originals, and what {span}", fontsize=11)
    return figure


def augmented_views(config: Config, shown: Splits, views: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The training pictures of each epoch as the network is given them, in the order of `shown`.

    Yields:
        Pixels [N, H, W, 3] float32 in [0, 255] and labels [N] int32, or shares of classes [N, C] float32.
    """
    import numpy as np

    from experiments.build import build_augmentation, build_layer
    from experiments.data.pipeline import picture_batches, rng

    batches = picture_batches(
        shown.train,
        classes=len(shown.classes),
        augmentation=build_augmentation(config),
        extra_layers=[build_layer(config, at, node) for at, node in enumerate(config.augmentation.layers)],
        batch_size=len(shown.train),
        seed=config.seed,
        epochs=range(views),
    )
    for epoch, (pixels, labels) in enumerate(batches.dataset):
        back = np.argsort(rng(config.seed, epoch).permutation(len(shown.train)))  # undoes the epoch's order
        yield np.asarray(pixels)[back], np.asarray(labels)[back]


if __name__ == "__main__":
    main()
