"""Choose from which probability on a label counts, or an answer is given at all.

Thresholds per label are those of Yang 2001 (SCut, https://doi.org/10.1145/383952.383975). Accuracy against coverage is
selective classification, El-Yaniv and Wiener 2010 (https://jmlr.org/papers/v11/el-yaniv10a.html).
"""

import numpy as np

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
