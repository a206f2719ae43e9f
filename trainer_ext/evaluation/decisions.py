"""Turn logits into probabilities, and probabilities into predicted classes."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax


def to_probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return probabilities `(rows, labels)`: softmax of the logits, or sigmoid if a row may have several labels."""
    logits = logits.astype(np.float64)
    return expit(logits) if multi_label else softmax(logits, axis=1)


ROUNDING = 1e-6  # how far a probability may exceed 1


def decide(
    probabilities: np.ndarray, multi_label: bool, thresholds: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Return the predicted class ids `(..., rows)`, or 0/1 `(..., rows, labels)` if a row may have several labels.

    Args:
        thresholds: If a row may have several labels: for each label, the probability from which it counts. `None`
            counts probabilities above one half.
    """
    if not multi_label:
        return probabilities.argmax(axis=-1)
    return (probabilities > 0.5 if thresholds is None else probabilities >= np.asarray(thresholds)).astype(int)


def as_classes(labels: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return gold labels in the form of [`decide`]; a distribution `(rows, labels)` becomes its most probable class."""
    return labels.argmax(axis=1) if labels.ndim == 2 and not multi_label else labels.astype(int)
