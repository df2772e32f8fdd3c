"""The public names, which components of your own import; each is loaded at its first use."""

import importlib

__version__ = "0.2.0"

_MODULES = {
    "errors": ("ConfigError", "DataError"),
    "data.types": ("Dataset", "ImageRecord", "ImageSet"),
    "models.network": ("join", "predict_probabilities", "split_network"),
    "models.types": ("Backbone",),
    "regimes.bottleneck": ("feature_requests",),
    "regimes.declaration": ("Declaration", "Trains", "declare"),
    "regimes.feature_cache": ("cached_features",),
    "training.fit": ("fit",),
    "training.types": ("EpochRecord", "PhaseInputs", "RunComponents", "TrainingContext", "TrainingResult"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
