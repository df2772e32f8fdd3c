"""Comparison of finished runs as an object."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.api import display
from experiments.api.display import Page
from experiments.api.process import unchanged_libraries
from experiments.api.run import Run, load
from experiments.api.sweep import Sweep
from experiments.comparison import comparison as comparisons
from experiments.comparison import text as comparison_text
from experiments.comparison.class_differences import compare_classes
from experiments.errors import ConfigError
from experiments.system.paths import tracking_uri
from experiments.tracking.queries import find_runs

if TYPE_CHECKING:
    import pandas as pd


class Comparison:
    """A comparison of runs, as `compare` returns it; a notebook shows its table and sentences.

    Runs that differ in their seed only are one row. The first row is what the others are compared with. `split` names
    the images that are compared: validation or test.
    """

    def __init__(self, compared: comparisons.Comparison, uri: str) -> None:
        self._compared, self._uri = compared, uri
        self.split = compared.split

    def __repr__(self) -> str:
        return f"Comparison({len(self._compared.runs)} runs, {self.split})"

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        tables = [comparison_text.score_table(self._compared), *comparison_text.metric_tables(self._compared)]
        differing = comparison_text.configuration_tables(self._compared)[0]
        tables += [differing] if len(differing) > 1 else []
        return "".join([*map(display.table, tables), *map(display.text, self.sentences)])

    @cached_property
    def sentences(self) -> list[str]:
        """The findings in sentences: accuracies against the baseline, each row against the first, and limitations."""
        return comparison_text.sentences(self._compared)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The scores, a row per setting (runs that differ in their seed only).

        The columns are `label`, `runs`, `run_ids`, `images`, every metric with the bounds of its 95 % interval
        (`accuracy`, `accuracy_low`, `accuracy_high`), the difference in accuracy from the first row with its interval,
        the durations in seconds, and the keys in which the configurations differ (`loss` is the metric, `params.loss`
        the key).
        """
        import pandas as pd

        table = pd.DataFrame(comparison_text.group_rows(self._compared)).set_index("number")
        for key in comparisons.configuration(self._compared.groups):
            with contextlib.suppress(ValueError):  # not every value of this key is a number
                table[key] = pd.to_numeric(table[key].replace("", "none"))  # an empty text is no number
        return table

    @cached_property
    def significance(self) -> pd.DataFrame:
        """The differences in accuracy from the first row, a row for each of the others.

        The columns are `label`, `difference` with the bounds of its 95 % interval `low` and `high` (shares of images,
        -1 to 1), `p_value`, `significant` (bool), `about` (setting: it covers the variance between seeds; models: it is
        about these two trained models) and `images`.
        """
        rows = zip(self._compared.labels, self._compared.differences, strict=True)
        return display.frame([
            {"label": " ".join(label), "difference": difference.value, "low": difference.low, "high": difference.high,
             "p_value": difference.p_value, "significant": difference.significant,
             "about": "setting" if difference.about_setting else "models", "images": difference.images}
            for label, difference in rows if difference
        ])  # fmt: skip

    @unchanged_libraries()
    def page(
        self, folder: str | os.PathLike[str] | None = None, *, images: int = 24, data: str | Path | None = None,
        log: bool = True,
    ) -> Page:  # fmt: skip
        """Write the comparison as one HTML page, beside Markdown and CSV files, and log these to MLflow.

        Args:
            folder: where to write them (default: outputs/compare/compare-...).
            images: how many images to show on which the runs disagree.
            data: the folder where the images are now (default: where they were).
            log: whether to log the files to MLflow.
        """
        from experiments.comparison import page as comparison_page

        place = Path(folder) if folder else None
        root = Path(data) if data else None
        classes = compare_classes(self._compared)
        return Page(comparison_page.save(self._uri, self._compared, classes, place, images, root, log=log)[0])


@unchanged_libraries()
def compare(
    *runs: Run | Sweep | str | os.PathLike[str], split: str = "validation", uri: str | None = None
) -> Comparison:
    """Compare finished runs image by image, as `experiments compare` does.

    Args:
        runs: at least one: runs; names, ids or directories of runs; or sweeps, which stand for their jobs. Single runs
            are compared as trained models; several seeds of each are needed for a claim about a setting.
        split: validation or test.
        uri: the MLflow tracking store in which runs are looked up by name or id.

    Raises:
        ConfigError: there is no such run, no job of the sweeps has finished, or the runs are in several MLflow stores.
    """
    if not runs:
        raise ConfigError("compare: give at least one run")
    named = [run if isinstance(run, Run) else load(run, uri=uri) for run in runs if not isinstance(run, Sweep)]
    jobs = [run for sweep in runs if isinstance(sweep, Sweep) for run in sweep.runs]
    if not (named or jobs):
        raise ConfigError("compare: no job of these sweeps has finished, so there is no run to compare")
    stores = list(dict.fromkeys(run.store for run in (*named, *jobs) if run.id))
    if len(stores) > 1:
        raise ConfigError(f"compare: the runs are in several MLflow stores, but must be in one: {', '.join(stores)}")
    store = stores[0] if stores else tracking_uri()
    single, of_sweeps = (
        find_runs(store, [run.id or Path(str(run.folder)) for run in chosen]) for chosen in (named, jobs)
    )
    return Comparison(comparisons.compare(store, single, split, of_sweeps), store)
