"""Calibration of a classifier's probabilities: temperature, expected calibration error and Brier score.

Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html; Brier 1950.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

BINS = 15
_SMALLEST = np.finfo(np.float32).tiny  # smallest probability, the same as in the ensemble


_LARGEST = 1 - np.finfo(np.float64).epsneg


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the temperature that gives the gold labels the highest likelihood.

    A temperature divides the logits: the logarithms of the probabilities, or of the odds where a row may have several
    labels.

    Args:
        probabilities: `(rows, labels)`.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)` if a row may have several labels.

    Returns:
        A number from 0.05 to 20, above 1 if the classifier was overconfident.
    """
    if gold.ndim == 2:
        logits, sign = logit(probabilities.clip(_SMALLEST, _LARGEST)), 1 - 2 * gold
    else:
        logits = np.log(probabilities.clip(min=_SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if gold.ndim == 2:
            return np.logaddexp(0, sign * scaled).mean()
        return -log_softmax(scaled, axis=1)[np.arange(len(gold)), gold].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float, multi_label: bool = False) -> np.ndarray:
    """Return the probabilities `(rows, labels)` at a temperature; the ranking of the labels in a row stays the same."""
    if multi_label:
        return expit(logit(probabilities.clip(_SMALLEST, _LARGEST)) / temperature)
    return softmax(np.log(probabilities.clip(min=_SMALLEST)) / temperature, axis=1)


def negative_log_likelihood(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the gold labels, in nats per row.

    Args:
        probabilities, gold: As in [`fit_temperature`]. Where a row may have several labels, their sum counts.
    """
    if gold.ndim == 2:
        right = np.where(gold == 1, probabilities, 1 - probabilities)
        return float(-np.log(right.clip(min=_SMALLEST)).sum(axis=1).mean())
    return float(-np.log(probabilities[np.arange(len(gold)), gold].clip(min=_SMALLEST)).mean())


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
