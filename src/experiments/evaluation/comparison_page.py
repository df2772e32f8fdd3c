"""A comparison as files: Markdown, CSV, figures, and one HTML page that needs nothing beside itself.

What stands in a page was typed by somebody (classes, runs, paths): all of it is escaped, and the page may load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePosixPath

import matplotlib
from matplotlib.figure import Figure

from experiments.data import decoder
from experiments.errors import DataError
from experiments.evaluation import comparison_text, plots
from experiments.evaluation.comparison import Comparison, Disagreement, Verdict, disagreements
from experiments.storage import atomic_files
from experiments.system.redaction import visible

SIDE = 160  # pixels of a thumbnail's longer side
QUALITY = 80
MOST_VERDICTS = 8  # groups whose words stand under a picture
INTERVAL = re.compile(r"([+-]?[\d.]+%?) (\[[^\[]+\])")  # as tables have it
LARGEST = 200_000_000  # bytes of a picture's file

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --quiet: #5c6470; --paper: #fff; --line: #d8dce2; --mark: #f2f5f9;
  --right: #00694b; --wrong: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #a2abb8; --paper: #15181c; --line: #3a4149;
  --mark: #20252b; --right: #4fd6a8; --wrong: #ff9d66; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.quiet, figcaption { color: var(--quiet); } .said { font-size: 1.1rem; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
.wide br + span { color: var(--quiet); white-space: nowrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; } td { overflow-wrap: anywhere; min-width: 3rem; max-width: 26rem; }
td, li, figcaption { unicode-bidi: isolate; }
img.figure { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1rem; }
.gallery figure { margin: 0; background: var(--mark); border-radius: 6px; padding: .6rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.gallery img, .gallery .absent { display: block; width: 100%; height: 160px; object-fit: contain; }
.gallery ul { list-style: none; padding: 0; margin: .3rem 0 0; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
"""


def write(folder: Path, comparison: Comparison, pictures: int, data: Path | None = None) -> list[Path]:
    """Writes comparison.md, comparison.csv, comparison.html and figures/*.png.

    Args:
        folder: to write into; made where it is missing.
        comparison: what to write.
        pictures: how many of those to show on which the groups disagree.
        data: the folder that holds the pictures; None: those that the runs have read them from.

    Returns:
        What was written, the page first.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = draw(comparison)
    unlike = disagreements(comparison)
    files = {
        "comparison.html": html(comparison, unlike, drawn, pictures, data).encode(),
        "comparison.md": markdown(comparison, unlike, list(drawn), pictures).encode(),
        "comparison.csv": comparison_text.csv_text(comparison).encode(),
        **{f"figures/{name}.png": _saved(figure, "png") for name, figure in drawn.items()},
    }
    for name, content in files.items():
        atomic_files.write_file(folder / name, content)
    return [folder / name for name in files]


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The figures of a comparison: intervals, and curves where runs have left any."""
    drawn = {
        "intervals": plots.intervals(
            comparison.names,
            [measures["accuracy"] for measures in comparison.measures],
            [(one.value, one.low, one.high) if one else None for one in comparison.differences],
            comparison.split,
        )
    }
    curves = {
        name: [curve for repeat in group.repeats for curve in repeat.curves if curve]
        for name, group in zip(comparison.names, comparison.groups, strict=True)
    }
    if any(curves.values()):
        drawn["curves"] = plots.compared_curves(curves)
    return drawn


def _saved(figure: Figure, kind: str) -> bytes:
    """A figure's file, the same for the same figure: without its time, and with no names drawn by chance."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "experiments"}):
        figure.savefig(file, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


# --- Markdown


def markdown(comparison: Comparison, unlike: Sequence[Disagreement], drawn: Sequence[str], most: int) -> str:
    """The comparison as a text, with its figures beside it."""
    parts = [f"# {title(comparison)}", *(f"* {markdown_text(line)}" for line in comparison_text.sentences(comparison))]
    metrics = comparison_text.metric_table(comparison)
    parts += [
        markdown_table(comparison_text.score_table(comparison)),
        *([markdown_table(metrics)] if len(metrics[0]) > 1 else []),
    ]
    if len(comparison.groups) > 1:
        parts += ["## Behind the differences", markdown_table(comparison_text.paired_table(comparison))]
    parts += ["## What differs in configuration", *_differing(comparison)]
    parts += [f"![{name}](figures/{name}.png)" for name in drawn]
    if len(comparison.groups) > 1:
        header = ["picture", "class", *(str(at) for at in range(1, len(comparison.groups) + 1))]
        rows = [[one.path, one.label, *(_verdict(v) for v in one.verdicts)] for one in unlike[:most]]
        parts += [f"## {heading(unlike, most)}", *([markdown_table([header, *rows])] if rows else [])]
    runs = [[run.name, run.run_id] for run in comparison.runs]
    parts += ["## Runs", markdown_table([["name", "MLflow run"], *runs]), "## How it is computed", *METHODS]
    return "\n\n".join(parts) + "\n"


def title(comparison: Comparison) -> str:
    counts = sorted({len(group.images) for group in comparison.groups})
    pictures = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    runs = len(comparison.runs)
    return f"{runs} {'run' if runs == 1 else 'runs'} on {pictures} {comparison.split} pictures"


def heading(unlike: Sequence[Disagreement], most: int) -> str:
    if not unlike:
        return "There is no picture on which they disagree"
    more = f", the clearest {most} of {len(unlike)}" if len(unlike) > most else f" ({len(unlike)})"
    return f"The pictures on which they disagree{more}"


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    partly = f", {verdict.right:.0%} of the runs right" if 0 < verdict.right < 1 else ""
    return f"{verdict.predicted} {verdict.confidence:.0%}{partly}"


def _differing(comparison: Comparison) -> list[str]:
    valued, unread = comparison_text.configuration_tables(comparison)
    parts = (
        [markdown_table(valued)] if len(valued) > 1 else ["Nothing." if len(unread) == 1 else "No key that all read."]
    )
    return [*parts, *([UNREAD, markdown_table(unread)] if len(unread) > 1 else [])]


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in table]
    rows.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(rows)


def markdown_text(text: str) -> str:
    """A text as it is, between the marks of Markdown, which may hold HTML."""
    line = " ".join(visible(text).split())
    line = re.sub(r"([\\`*_\[\]|~$]|^[-+#=]|(?<=^\d)[.)])", r"\\\1", line)
    return escape(line, quote=False)


def markdown_code(text: str) -> str:
    """A text of several lines as it is, between more backticks than it has itself."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


UNREAD = "Keys that some do not read (–), because their regime or another choice of theirs has no use for them:"
METHODS = (
    "Accuracy is shown beside the baseline: the share of the most frequent class, which a model reaches that gives "
    "every image that class.",
    "The interval of a single run's accuracy is Wilson's score interval (1927). Of several seeds, accuracy, loss and "
    "Brier score have an interval over images and seeds, as two crossed random effects (Gallas 2006), each variance "
    "with the t-quantile of its own degrees of freedom (Banerjee 1960); the other metrics have Student's over the "
    "seeds, for these images. A single run's ROC area has a bootstrap's.",
    "Differences are taken image by image. Single runs are compared as trained models: McNemar's test (1947) and "
    "its dual, Tango's score interval (1998); on different images Newcombe's interval (1998, method 10) and its dual "
    "p-value. Training noise is in neither, so they say nothing about the settings.",
    "Several seeds or folds of each give a claim about the setting: the interval of the difference, seed by seed where "
    "both have the same seeds, has the variance between seeds and between images in it, as above. Folds have training "
    "sets that overlap, for which the variance between them is corrected (Nadeau and Bengio 2003).",
    "Every p-value is the dual of its interval: it is below 0.05 exactly where the 95 % interval excludes 0.",
    "The number of images needed is what a two-sided McNemar test at the 5 % level needs to see a difference between "
    "two models as large as this one, with as many discordant images, four times in five (Connor 1987).",
)


# --- HTML


def html(
    comparison: Comparison, unlike: Sequence[Disagreement], drawn: dict[str, Figure], most: int, data: Path | None
) -> str:
    """The page, self-contained: figures and thumbnails are in it, and it can load nothing else."""
    about = _text(title(comparison))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{about}</title><style>{STYLE}</style></head><body>",
        f"<h1>{about}</h1>",
        '<ul class="said">', *(f"<li>{_text(line)}</li>" for line in comparison_text.sentences(comparison)), "</ul>",
        _table(comparison_text.score_table(comparison)),
        '<p class="quiet">[95 % interval]; from first: difference in accuracy from the first row, in points; s: '
        "seconds of a run, from start to report; s/epoch: median of its last phase.</p>",
        _image(drawn["intervals"], "accuracy and difference from the first, with 95 % intervals"),
    ]  # fmt: skip
    if len(comparison.groups) > 1:
        parts += ["<h2>Behind the differences</h2>", _table(comparison_text.paired_table(comparison))]
    metrics = comparison_text.metric_table(comparison)
    if len(metrics[0]) > 1:
        parts += ["<h2>Other metrics</h2>", _table(metrics)]
    if "curves" in drawn:
        parts += ["<h2>Learning curves</h2>", _image(drawn["curves"], "validation accuracy and loss by epoch")]
    without = [run.name for group in comparison.groups for repeat in group.repeats
               for run, curve in zip(repeat.runs, repeat.curves, strict=True) if not curve]  # fmt: skip
    if without:
        parts.append(f'<p class="quiet">Without curves.csv: {_text(", ".join(without))}.</p>')
    valued, unread = comparison_text.configuration_tables(comparison)
    parts += ["<h2>What differs in configuration</h2>"]
    if len(valued) > 1:
        parts.append(_table(valued))
    else:
        parts.append(f"<p>{'Nothing.' if len(unread) == 1 else 'No key that all read.'}</p>")
    if len(unread) > 1:
        parts.append(f"<details><summary>{len(unread) - 1} keys that some do not read</summary>")
        parts.append(f'<p class="quiet">{UNREAD}</p>{_table(unread)}</details>')
    if len(comparison.groups) > 1:
        parts += [f"<h2>{_text(heading(unlike, most))}</h2>", '<div class="gallery">',
                  *(_card(one, data) for one in unlike[:most]), "</div>"]  # fmt: skip
        if len(unlike) > most:
            parts.append(f'<p class="quiet">{len(unlike) - most} more are not shown (--pictures {len(unlike)}).</p>')
    runs = [[run.name, run.run_id] for run in comparison.runs]
    parts += ["<h2>Runs</h2>", _table([["name", "MLflow run"], *runs])]
    parts += ["<h2>How it is computed</h2>", *(f'<p class="quiet">{_text(text)}</p>' for text in METHODS)]
    return "\n".join([*parts, "</body></html>", ""])


def _text(text: str) -> str:
    """A text as HTML shows it character by character, in elements and in quoted attributes."""
    return escape(visible(text))


def _table(table: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{_text(cell)}</th>" for cell in table[0])
    rows = ("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table[1:])
    return "\n".join(
        [f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>', *rows, "</tbody></table></div>"]
    )


def _cell(text: str) -> str:
    """A cell's text, an interval on a line of its own."""
    interval = INTERVAL.fullmatch(text)
    return f"{_text(interval[1])}<br><span>{_text(interval[2])}</span>" if interval else _text(text)


def _image(figure: Figure, text: str) -> str:
    # An image of its own: two drawings in one document would share the names they refer to.
    return f'<p><img class="figure" alt="{_text(text)}" src="{_inline(_saved(figure, "svg"), "image/svg+xml")}"></p>'


def _inline(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _card(one: Disagreement, data: Path | None) -> str:
    """A picture, its class, and what each group said of it."""
    try:
        picture = f'<img alt="{_text(one.path)}" src="{_inline(thumbnail(one, data), "image/jpeg")}">'
    except DataError as error:
        picture = f'<div class="absent quiet">{_text(str(error))}</div>'
    lines = []
    for at, verdict in enumerate(one.verdicts[:MOST_VERDICTS], 1):
        tone = "quiet" if verdict is None else "right" if verdict.right > 0.5 else "wrong"
        mark = {"quiet": "", "right": "✓ ", "wrong": "✗ "}[tone]
        lines.append(f'<li class="{tone}">{at}: {mark}{_text(_verdict(verdict))}</li>')
    further = [verdict for verdict in one.verdicts[MOST_VERDICTS:] if verdict]
    if further:
        right = sum(verdict.right > 0.5 for verdict in further)
        lines.append(f'<li class="quiet">{right} of {len(further)} more are right</li>')
    return (
        f"<figure>{picture}<figcaption>{_text(one.path).replace('/', '/<wbr>')}<br>is {_text(one.label)}</figcaption>"
        f"<ul>{''.join(lines)}</ul></figure>"
    )


def thumbnail(one: Disagreement, data: Path | None) -> bytes:
    """A picture made small, as JPEG, from the file that the runs have read.

    Raises:
        DataError: that is not there any more, or not the same; the message says so.
    """
    inside = PurePosixPath(one.path)
    if inside.is_absolute() or ".." in inside.parts:
        raise DataError("is not shown: its path leads out of the data's folder")
    roots = [data] if data else [Path(folder) for folder in one.data]
    changed = False
    for root in roots:
        path = root / inside
        if not path.is_file() or path.stat().st_size > LARGEST:
            continue
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != one.sha256:
            changed = True
            continue
        image = decoder.decode(content, decoder.logged_gray_range(one.gray_range))
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()
    where = ", ".join(map(str, roots)) or "no known folder"
    raise DataError(
        f"is not shown: its file in {where} has changed since" if changed
        else f"is not shown: its file is not in {where}; --data FOLDER says where the pictures are"
    )  # fmt: skip
