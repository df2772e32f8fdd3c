"""Checks after a training: errors for results that are inconsistent, warnings for results that look wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy import stats

from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError
from experiments.evaluation.statistics import LEVEL
from experiments.training.types import EpochRecord, TrainingResult, last_phase

JOINED_IMAGES = 32  # number of images on which every run compares its joined model with the reported scores
JOINED_BATCH = 8  # of these, in one forward pass
# Largest accepted difference between two computations of a probability: bfloat16 has 8 significant bits, float16 11.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}
SHORT = 3  # epochs; in shorter trainings, a loss above that of guessing may still be falling


@contextmanager
def keep_error(errors: list[Exception], step: str) -> Iterator[None]:
    """Collect an error, with a note on the step, so that a step after the training cannot lose the results."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The training is finished and its results are written. What failed after it: {step}")
        errors.append(error)


def check_joined(config: Config, result: TrainingResult, dataset: Dataset) -> None:
    """Raise RuntimeError if the joined model, from pixels on, does not give the scores from cached features."""
    pixels = dataset.validation.pixels[:JOINED_IMAGES].astype("float32")
    # The model is not compiled, which takes longer than it saves on so few images. The batches are small, because the
    # outputs of all layers stay in memory until the last layer is computed.
    batches = np.split(pixels, range(JOINED_BATCH, len(pixels), JOINED_BATCH))
    whole = np.concatenate([result.model(batch, training=False) for batch in batches])
    difference = float(np.max(np.abs(whole - result.scores["validation"][:JOINED_IMAGES])))
    if not difference <= max(TOLERANCES[config.runtime.precision], TOLERANCES[config.regime.activations]):
        raise RuntimeError(
            f"The joined model and the head on cached features disagree by {difference:.2g} in probability on "
            f"{len(whole)} validation images. This is an error of the program; remove outputs/cache and report it. "
            "The results that were written are those of the head on cached features"
        )


def check_reached(config: Config, result: TrainingResult) -> None:
    """Raise ConfigError if the last epoch's training accuracy is below `must_reach`."""
    if config.must_reach is None:
        return
    reached = result.history[-1].metrics["accuracy"] if result.history else math.nan  # a regime without epochs
    if not reached >= config.must_reach:
        raise ConfigError(
            f"must_reach: after {len(result.history)} epochs the training accuracy is {reached:.1%}, below the "
            f"{config.must_reach:.1%} asked for. Look for wrong labels, a learning rate that is too low or too high "
            f"(optimizer.lr={config.optimizer.lr:g}) or too few epochs ({config.epochs})"
        )


def warnings_of(config: Config, result: TrainingResult, best: EpochRecord | None, labels: np.ndarray) -> list[str]:
    """Return a sentence for everything that looks wrong in a finished training, with advice on what to try.

    `best` is its best epoch; the labels [N] int32 are those of the validation images.
    """
    if best is None:  # a regime without epochs
        return []
    curve = last_phase(result.history)
    monitored = [record.metrics[config.monitor] for record in curve]
    kept = best if config.best_weights else curve[-1]
    scores = result.scores["validation"]
    found = [
        diverged(config, curve, kept, scores.shape[1]),
        None if config.best_weights else past_the_best(config, monitored, curve.index(best), len(labels)),
        worse_than_the_head(config, result.head_scores, scores, labels),
    ]
    return [sentence for sentence in found if sentence]


def candidate_epochs(history: Sequence[EpochRecord], first: int) -> list[EpochRecord]:
    """Return the epochs of a run's last phase that can be its best one: from `first` on, its `first_candidate`."""
    return [record for record in last_phase(history) if record.epoch >= first]


def best_epoch(candidates: Sequence[EpochRecord], monitor: str) -> EpochRecord | None:
    """Return the first epoch with the best value of the metric `monitor`; None if no epoch has this metric."""
    pick = min if monitor == "validation_loss" else max
    known = (record for record in candidates if monitor in record.metrics)
    return pick(known, key=lambda record: record.metrics[monitor], default=None)


def diverged(config: Config, curve: Sequence[EpochRecord], kept: EpochRecord, classes: int) -> str | None:
    """Return a warning if both the training and the validation loss are above the loss of guessing; else None.

    While the training loss is still falling, and in the first epochs, there is a warning only if they are far above. An
    overfitted network, of which only the validation loss is that high, has not diverged.
    """
    chance = 1.0 if config.loss == "hinge" else math.log(classes)
    losses = [record.metrics["loss"] for record in curve]
    tolerated = 1.05 if len(curve) < 2 * SHORT else 1.0  # times chance
    if len(curve) < SHORT or losses[-1] <= min(losses):
        tolerated = 3.0
    if min(kept.metrics["loss"], kept.metrics["validation_loss"]) <= tolerated * chance:
        return None
    return (
        f"The training is no better than guessing, it has diverged: its loss is {kept.metrics['loss']:.3g}, that of "
        f"validation {kept.metrics['validation_loss']:.3g}; guessing has {chance:.3g}. Try a lower optimizer.lr (now "
        f"{config.optimizer.lr:g}), optimizer.clipnorm=1 or schedule.warmup"
    )


def past_the_best(config: Config, monitored: Sequence[float], best: int, images: int) -> str | None:
    """Return a warning if the last epoch is long after the best one, and worse by more than noise; else None."""
    epochs, last = len(monitored), monitored[-1]
    if epochs - 1 - best < max(3, epochs / 4):
        return None
    if config.monitor == "validation_loss":
        is_worse = last > max(1.2 * monitored[best], monitored[best] + 0.05)
    else:
        error = math.sqrt(monitored[best] * (1 - monitored[best]) / images)
        is_worse = last < monitored[best] - 2 * error - 1 / images
    if not is_worse:
        return None
    return (
        f"The best epoch was {best + 1} of {epochs} ({config.monitor} {monitored[best]:.3g}), and the last one, which "
        f"is reported, is worse ({last:.3g}). Try best_weights=true, early_stopping={max(3, epochs // 10)}, fewer "
        "epochs, or more dropout or augmentation"
    )


def worse_than_the_head(config: Config, before: np.ndarray | None, after: np.ndarray, labels: np.ndarray) -> str | None:
    """Return a warning if fine-tuning is significantly worse than its head on the same images; else None.

    There is a warning if accuracy is lower, and either an exact McNemar test or a paired t-test of the losses is
    significant; the latter has more power on few images. The probabilities are [N, C].
    """
    if before is None or len(labels) < 2:
        return None
    right_before, right_after = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    if right_after.sum() >= right_before.sum():
        return None
    losses = [-np.log(np.clip(scores[np.arange(len(labels)), labels], 1e-7, 1)) for scores in (before, after)]
    only_before, only_after = int(np.sum(right_before & ~right_after)), int(np.sum(right_after & ~right_before))
    of_accuracy = stats.binomtest(only_after, only_before + only_after).pvalue
    of_losses = stats.ttest_rel(losses[1], losses[0], alternative="greater").pvalue
    if not min(of_accuracy, of_losses) < LEVEL / 2:  # two tests, each at half of the level (Bonferroni)
        return None
    return (
        f"Fine-tuning ended worse than the head it started from, on the same {len(labels)} validation images: accuracy "
        f"{right_after.mean():.1%}, before {right_before.mean():.1%} (p = {of_accuracy:.2g}); log loss "
        f"{losses[1].mean():.3g}, before {losses[0].mean():.3g} (p = {of_losses:.2g}). Try a lower optimizer.lr "
        f"(now {config.optimizer.lr:g}), fewer regime.unfrozen_blocks (now {config.regime.unfrozen_blocks}), or "
        "best_weights=true"
    )
