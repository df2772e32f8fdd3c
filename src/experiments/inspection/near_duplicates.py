"""Near-duplicates in the report of `experiments inspect data`: lines, and pairs of images side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import SubFigure
from PIL import Image

from experiments.data.issues import printable
from experiments.data.pixel_cache import open_image
from experiments.data.types import Manifest, NearDuplicatePair
from experiments.reports.figure_style import literal, short

PAIRS_IN_A_ROW = 3
PAIR_HEIGHT = 1.9  # inches of a row
MOST_PAIRS = 12  # pairs that the figure shows
MOST_LINES = 20  # pairs that are listed, unless more are in two splits
_SIDE, _GAP = 160, 6  # pixels: the longer side of a shown image, between the two of a pair

_CONSEQUENCES = {
    "warn": "a run warns of these (data.on_leak=warn); data.on_leak=group keeps copies in one split",
    "error": "a run with data.on_leak=error refuses them",
    "group": "data.on_leak=group keeps copies in one split",
}


def lines(found: Manifest, on_leak: str) -> list[str]:
    """Return how many near-duplicates there are, and a line for each of the first, all those in two splits before."""
    leaks = set(found.leaks)
    pairs = sorted(found.near_duplicates, key=lambda pair: pair not in leaks)
    if not pairs:
        return ["no near-duplicates: no image is a re-encoded, resized, cropped or mirrored copy of another"]
    entries = {entry.path: entry for entry in found.entries}
    number = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of near-duplicates, {len(found.leaks)} in two splits"
    listed = [f"{number}{': ' + _CONSEQUENCES[on_leak] if found.leaks else ''}"]
    most = max(len(found.leaks), MOST_LINES)
    for pair in pairs[:most]:
        first, second = entries[pair.first], entries[pair.second]
        places = f"{first.split} and {second.split}" if first.split != second.split else f"both {first.split}"
        classes = "" if first.class_name == second.class_name else ", in two classes"
        listed.append(
            f"  {printable(pair.first)}  {printable(pair.second)}: {places}{classes}, "
            f"similarity {pair.similarity:.2f}{', mirrored' if pair.mirrored else ''}"
        )
    if len(pairs) > most:
        listed.append(f"  and {len(pairs) - most} more, in one split each; near_duplicates.csv of a run lists all")
    return listed


def shown(found: Manifest) -> list[NearDuplicatePair]:
    """Return the pairs that the figure shows: those in two splits first, and of these the least similar."""
    leaks = set(found.leaks)
    return sorted(found.near_duplicates, key=lambda pair: (pair not in leaks, pair.similarity))[:MOST_PAIRS]


def draw(figure: SubFigure, found: Manifest, pairs: Sequence[NearDuplicatePair]) -> None:
    """Draw the two images of each pair side by side, with their splits and classes."""
    entries = {entry.path: entry for entry in found.entries}
    panels = figure.subplots(math.ceil(len(pairs) / PAIRS_IN_A_ROW), PAIRS_IN_A_ROW, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, pair in zip(panels, pairs, strict=False):
        both = entries[pair.first], entries[pair.second]
        canvas = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), "white")
        for side, entry in enumerate(both):
            image = open_image(found.root, entry.path, entry.sha256, found.decoder_settings)
            image.thumbnail((_SIDE, _SIDE))
            canvas.paste(image, (side * (_SIDE + _GAP), 0))
        panel.imshow(np.asarray(canvas))
        splits = dict.fromkeys(entry.split for entry in both)
        classes = dict.fromkeys(entry.class_name for entry in both)
        panel.set_title(literal(short(f"{' and '.join(splits)}: {' and '.join(classes)}", 40)), fontsize=8)
    count = f"{len(pairs)} of {len(found.near_duplicates)} pairs" if len(pairs) > 1 else "a pair"
    figure.suptitle(f"near-duplicates: {count}", fontsize=10)
