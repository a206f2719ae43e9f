"""Calibration of a classifier's probabilities: temperature, expected calibration error and Brier score.

Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html; Brier 1950.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
_SMALLEST = np.finfo(np.float32).tiny  # smallest probability, the same as in the ensemble


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the temperature that gives the gold labels the highest likelihood.

    A temperature divides the logarithms of the probabilities.

    Args:
        probabilities: `(rows, labels)`.
        gold: Class ids `(rows,)`.

    Returns:
        A number from 0.05 to 20, above 1 if the classifier was overconfident.
    """
    logits = np.log(probabilities.clip(min=_SMALLEST))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(gold)), gold].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities `(rows, labels)` at a temperature; the ranking of the labels in a row stays the same."""
    return softmax(np.log(probabilities.clip(min=_SMALLEST)) / temperature, axis=1)


def reliability(probabilities: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """Return confidence and accuracy of the rows in each bin of confidence (the probability of the predicted class).

    There are `BINS` bins of equal width. Empty bins are left out.

    Returns:
        For each bin `rows` (their number), `confidence` (their mean) and `accuracy` (the share predicted correctly).
    """
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
    """Return the mean distance between confidence and accuracy over the bins of [`reliability`], weighted by their
    rows.
    """
    return sum(
        part["rows"] / len(gold) * abs(part["confidence"] - part["accuracy"])
        for part in reliability(probabilities, gold)
    )


def calibration(probabilities: np.ndarray, gold: np.ndarray) -> dict:
    """Return `expected_calibration_error`, `brier_score` and `reliability`, as JSON values."""
    return {
        "expected_calibration_error": expected_calibration_error(probabilities, gold),
        "brier_score": brier_score(probabilities, gold),
        "reliability": reliability(probabilities, gold),
    }


def brier_score(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the mean squared distance between probabilities and gold, summed over labels: 0 is best, 2 is worst."""
    return float(((probabilities - np.eye(probabilities.shape[1])[gold]) ** 2).sum(axis=1).mean())
