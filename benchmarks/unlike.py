"""How well scores of a model recognize images unlike its training images: `python -m benchmarks.unlike RUN OTHER`.

The held-out images of RUN are compared with those of OTHER, and the other way round. Both are finished bottleneck runs
on this machine. A score is evaluated by its area under the ROC curve (AUROC): the probability that an unlike image has
the higher score.

* max probability: D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
  Neural Networks", ICLR 2017.
* energy: W. Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020. With two classes, whose logits are
  plus and minus half of the log odds, it ranks images as the max probability does.
* distance: Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022: the distance of the
  normalised features to the tenth nearest training image, as `experiments predict --unlike` computes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from experiments.deploy import saved_run
from experiments.deploy.predict import predictions
from experiments.deploy.saved_run import Trained
from experiments.deploy.unlike import training_features
from experiments.images.decoder_settings import DecoderSettings
from experiments.runs.run_directory import RunDirectory
from experiments.system.progress import PlainConsole, Terminal


def features(run: Trained, frozen: keras.Model, images: Trained, split: str) -> np.ndarray:
    """Return the features [N, D] that the frozen part of a run's model has for the images of a split of a run."""
    assert images.folder is not None
    root = Path(images.plain["data"]["root"])
    files = [str(root / row["path"]) for row in RunDirectory(images.folder).images() if row["split"] == split]
    batches = predictions(frozen, files, 32, DecoderSettings.of(run.plain["data"]))
    return np.stack([row.probabilities for some in batches for row in some if row.probabilities is not None])


def held_out(run: Trained) -> str:
    assert run.folder is not None
    return "test" if any(row["split"] == "test" for row in RunDirectory(run.folder).images()) else "validation"


def areas(run: Trained, other: Trained) -> dict[str, float]:
    """Return the AUROC of each score of a run's model for the images of another run against its own."""
    model = run.model()
    frozen = keras.Model(model.inputs[0], model.get_layer("frozen")(model.inputs[0]))
    own, unlike = features(run, frozen, run, held_out(run)), features(run, frozen, other, held_out(other))
    logits = np.asarray(model.get_layer("head")(np.concatenate([own, unlike]), training=False))
    if logits.shape[1] == 1:
        logits = np.concatenate([-logits / 2, logits / 2], axis=1)
    known = training_features(run, frozen, Terminal(PlainConsole(stderr=True)), None)
    scores = {
        "max probability": -softmax(logits, axis=1).max(axis=1),
        "energy": -logsumexp(logits, axis=1),
        "distance": known.distances(np.concatenate([own, unlike])),
    }
    is_unlike = np.repeat([0, 1], [len(own), len(unlike)])
    return {name: float(roc_auc_score(is_unlike, score)) for name, score in scores.items()}


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.unlike RUN OTHER")
    runs = [saved_run.find(named) for named in sys.argv[1:]]
    for run, other in (runs, reversed(runs)):
        found = ", ".join(f"{name} {area:.3f}" for name, area in areas(run, other).items())
        print(f"images of {other.name} by the model of {run.name}: AUROC {found}")


if __name__ == "__main__":
    main()
