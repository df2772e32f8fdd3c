"""Images and weights that are named in a configuration, checked before TensorFlow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.config.schema import Config
from experiments.config.targets import build_source
from experiments.models.weights_files import check_file

# Data sources that look at folders and names alone, which takes no time.
LOCAL_SOURCES = tuple(
    f"experiments.data.sources.{name}" for name in ("csv_labels.csv_labels", "filenames.filenames", "folder.folder")
)


def check(configs: Sequence[Config]) -> None:
    """Raise ConfigError or DataError for images or weights of a run, or of a sweep's jobs, that are not there."""
    sources = {repr((config.data.target, config.data.arguments)): config for config in configs}
    for config in sources.values():
        if config.data.target in LOCAL_SOURCES:
            build_source(config)()
    weights = {str(config.model.weights) for config in configs if "model.weights" not in config.regime.ignores}
    for name in sorted(weights):
        if name.endswith((".h5", ".keras")):
            check_file(Path(name).expanduser(), "model.weights")
