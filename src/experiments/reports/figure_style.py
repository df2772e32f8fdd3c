"""The style that all figures share: colours, font sizes, names as text, ticks that do not overlap."""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.system.redaction import visible

# Okabe and Ito's palette, which colour-blind readers can distinguish, too (https://jfly.uni-koeln.de/color/).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
TRAIN, VALIDATION = PALETTE[0], PALETTE[1]
QUIET = "#8a8a8a"
BANDS = ("#f2f5f9", "#fbf4ec")  # background colours of the phases, in turn

TITLE, TEXT, SMALL = 11, 10, 9  # font sizes: titles; axes; ticks, legends and text beside points

# Names in scripts that the font lacks are drawn as boxes; a warning for each of their characters would not help.
warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)

OURS: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": TEXT,
    "axes.titlesize": TITLE,
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "experiments",  # for ids that are the same in every file
}


# A decorator: matplotlib's own style with OURS, whatever the user's matplotlibrc or `plt.style.use` says.
STYLE = style.context(["default", OURS])

# Up to this number of lines, a legend fits inside the axes and the palette has enough colours.
MOST_IN_LEGEND = 7


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of this size in inches, outside of pyplot's global state, with constrained layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@STYLE
def save_figure(figure: Figure, kind: str = "png", dpi: int = 100) -> bytes:
    """Return the content of a figure's file, reproducibly: without a date, and with fixed ids in SVG."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def short(name: str, most: int = 22) -> str:
    """Return a name on one line, without control characters.

    A long name is shortened in the middle, as names usually differ at their ends.
    """
    line = visible(name).replace("\n", r"\n").replace("\t", r"\t")
    return line if len(line) <= most else f"{line[: most - 10]}…{line[-9:]}"


def literal(text: str) -> str:
    """Escape a text so that Matplotlib draws it literally.

    Otherwise a dollar sign would begin a formula, an underscore at the start would hide the text's legend entry, and
    the text after a Hebrew or Arabic name would be drawn before it.
    """
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        text = f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
    return (f"\N{THIN SPACE}{text}" if text.startswith("_") else text).replace("$", r"\$")


def wrapped(name: str, width: int) -> str:
    """Return a name wrapped to at most two lines, escaped for Matplotlib."""
    return literal("\n".join(textwrap.wrap(visible(name), width, max_lines=2, placeholder=" …")))


def colors(count: int) -> Sequence[Any]:
    """Return distinguishable colours for so many lines."""
    if count <= MOST_IN_LEGEND:
        return PALETTE[:count]
    spectrum: np.ndarray = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
    return list(spectrum)


def name_ticks(panel: Axes, positions: Sequence[float], names: Sequence[str]) -> None:
    """Label the x axis with names, rotated where they would overlap."""
    panel.set_xticks(positions, names)
    if len(names) > 3 or max(map(len, names), default=0) > 8:
        for label in panel.get_xticklabels():
            label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")


def log_scale(panel: Axes) -> None:
    """Give the x axis a logarithmic scale whose minor ticks have no labels, as these would overlap."""
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
