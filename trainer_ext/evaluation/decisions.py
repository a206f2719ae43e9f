"""Turn logits into probabilities and decisions: classes, temperature, thresholds, and how sure is sure enough.

Temperature and expected calibration error: Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html; Brier 1950.
Thresholds per label are those of Yang 2001 (SCut, https://doi.org/10.1145/383952.383975). Accuracy against coverage is
selective classification, El-Yaniv and Wiener 2010 (https://jmlr.org/papers/v11/el-yaniv10a.html).
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax


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
    """Return gold labels in the form in which [`decide`] returns predictions, so that the two can be compared.

    Args:
        labels: Class ids `(rows,)`, distributions `(rows, labels)`, or 0/1 `(rows, labels)`.
        multi_label: Whether a row may have several labels. If not, a distribution becomes its most probable class.
    """
    return labels.argmax(axis=1) if labels.ndim == 2 and not multi_label else labels.astype(int)


# ---- Calibration -----------------------------------------------------------------------------------------------------
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


# ---- Thresholds ------------------------------------------------------------------------------------------------------
# A threshold of its own needs this many rows with the label. Fitted on fewer, it would follow single rows.
FEWEST_POSITIVES = 20
# An accuracy is measured on at least this many answered rows.
FEWEST_ANSWERS = 20
POINTS = 100  # of the curve
_ROUNDING = 1e-9
_GRID = np.arange(1, 100) / 100  # candidates for the threshold that rare labels share


def fit_thresholds(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return for each label the threshold `(labels,)` with the highest F1 of that label.

    Labels with fewer than `FEWEST_POSITIVES` rows share one threshold: the one with the highest mean F1 over all labels
    that occur.

    Args:
        probabilities: `(rows, labels)`.
        gold: 0/1 `(rows, labels)`.
    """
    positives = gold.sum(axis=0)
    occurring = positives > 0
    macro_f1 = [_f1(probabilities >= threshold, gold)[occurring].mean() for threshold in _GRID if occurring.any()]
    shared = _GRID[int(np.argmax(macro_f1))] if macro_f1 else 0.5
    return np.array(
        [
            _highest_f1(probabilities[:, label], gold[:, label]) if count >= FEWEST_POSITIVES else shared
            for label, count in enumerate(positives)
        ]
    )


def _f1(predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return F1 of each label `(labels,)`, 0 for one that is neither predicted nor gold."""
    return 2 * (predicted * gold).sum(axis=0) / (predicted.sum(axis=0) + gold.sum(axis=0)).clip(min=1)


def _highest_f1(scores: np.ndarray, gold: np.ndarray) -> float:
    """Return the threshold with the highest F1, halfway between two scores `(rows,)`."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(gold[order])
    f1 = 2 * hits / (np.arange(1, len(gold) + 1) + gold.sum())
    return _below(ranked, int(np.where(_cuts(ranked), f1, -1).argmax()))


def _cuts(ranked: np.ndarray) -> np.ndarray:
    """Return whether a threshold may lie just below each row `(rows,)`, so not between equal scores (highest first)."""
    return np.append(ranked[:-1] > ranked[1:], True)


def _below(ranked: np.ndarray, last: int) -> float:
    """Return the threshold that the rows up to `last` reach, halfway to the next score."""
    following = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + following) / 2)


# ---- Answering only when sure -------------------------------------------------------------------------------------
def accuracy_by_coverage(probabilities: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """Return how often the classifier is right if it answers only its most confident rows.

    Args:
        probabilities: `(rows, labels)`.
        gold: Class ids `(rows,)`.

    Returns:
        At most `POINTS` points, as JSON values: `coverage` (the share of rows that are answered), `accuracy` on them,
        and `abstain_below`, the probability that all of them reach.
    """
    ranked, accuracy = _ranked(probabilities, gold)
    cuts = np.flatnonzero(_cuts(ranked))
    wanted = np.ceil(np.arange(1, POINTS + 1) / POINTS * len(ranked)) - 1
    chosen = np.unique(cuts[np.searchsorted(cuts, wanted)])
    return [
        {"coverage": (last + 1) / len(ranked), "accuracy": float(accuracy[last]), "abstain_below": _below(ranked, last)}
        for last in chosen.tolist()
    ]


def abstention_threshold(probabilities: np.ndarray, gold: np.ndarray, accuracy: float) -> float | None:
    """Return the smallest probability of the predicted class from which on this accuracy is reached.

    Args:
        probabilities, gold: As in [`accuracy_by_coverage`].
        accuracy: Share of the answered rows to get right, above 0 and at most 1.

    Returns:
        The threshold: 0 if all rows together reach the accuracy, `None` if no `FEWEST_ANSWERS` rows do.
    """
    ranked, reached = _ranked(probabilities, gold)
    enough = (reached >= accuracy - _ROUNDING) & _cuts(ranked)
    enough[: FEWEST_ANSWERS - 1] = False
    if not enough.any():
        return None
    last = int(np.flatnonzero(enough)[-1])
    return 0.0 if last == len(ranked) - 1 else _below(ranked, last)


def _ranked(probabilities: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows' confidence, highest first, and the accuracy on each row and those before it, both `(rows,)`."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == gold
    order = np.argsort(-confidence, kind="stable")
    return confidence[order], np.cumsum(right[order]) / np.arange(1, len(gold) + 1)
