"""How sure a classifier may be: temperature, expected calibration error and Brier score.

Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html; Brier 1950.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
_SMALLEST = np.finfo(np.float32).tiny  # of a probability, as the ensemble has it


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """The number by which the logarithms of the probabilities are divided to give gold the highest likelihood.

    Args:
        probabilities: `(rows, labels)`.
        gold: Class ids `(rows,)`.

    Returns:
        Between 0.05 and 20; above 1 if the classifier was too sure.
    """
    logits = np.log(probabilities.clip(min=_SMALLEST))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(gold)), gold].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """`(rows, labels)` probabilities; the order of the labels in a row stays."""
    return softmax(np.log(probabilities.clip(min=_SMALLEST)) / temperature, axis=1)


def reliability(probabilities: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """By the probability of the predicted class, in `BINS` intervals of equal width that hold rows: how many, their
    mean probability, and the share of them that is right."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == gold
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "rows": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(right[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def expected_calibration_error(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the intervals of [`reliability`], weighted by their rows."""
    return sum(
        part["rows"] / len(gold) * abs(part["confidence"] - part["accuracy"])
        for part in reliability(probabilities, gold)
    )


def calibration(probabilities: np.ndarray, gold: np.ndarray) -> dict:
    """`expected_calibration_error`, `brier_score` and `reliability`, as JSON values."""
    return {
        "expected_calibration_error": expected_calibration_error(probabilities, gold),
        "brier_score": brier_score(probabilities, gold),
        "reliability": reliability(probabilities, gold),
    }


def brier_score(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Mean squared distance to the gold label, over all labels: 0 is best, 2 is worst."""
    return float(((probabilities - np.eye(probabilities.shape[1])[gold]) ** 2).sum(axis=1).mean())
