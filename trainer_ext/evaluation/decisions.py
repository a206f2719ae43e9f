"""From a row of logits to probabilities, and from probabilities to what they decide."""

import numpy as np
from scipy.special import expit, softmax


def to_probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return `(rows, labels)`: softmax, or the sigmoid of each logit where a row may have several classes."""
    logits = logits.astype(np.float64)
    return expit(logits) if multi_label else softmax(logits, axis=1)


ROUNDING = 1e-6  # by which a probability may be above 1


def decide(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids `(..., rows)`, or 0/1 `(..., rows, labels)` where a row may have several."""
    return (probabilities > 0.5).astype(int) if multi_label else probabilities.argmax(axis=-1)


def as_classes(labels: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return a dataset's labels in the form of [`decide`]; of a distribution `(rows, labels)` the likeliest class."""
    return labels.argmax(axis=1) if labels.ndim == 2 and not multi_label else labels.astype(int)
