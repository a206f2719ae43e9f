"""Late fusion of several systems' probabilities (paper, section 2.4): votes, fitted weights, greedy selection.

What is fitted on predictions is scored on writers that it was not fitted on: [`cross_fitted`].
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from ensemble_emodeberta import fuse

FUSIONS = ("hard", "soft", "weighted", "selected")
ROUNDS = 30  # members that greedy selection picks, one may be picked several times


def hard_vote(probabilities: np.ndarray) -> np.ndarray:
    """`(members, rows, labels)` to `(rows, labels)`: the share of votes; ties go to the higher mean probability."""
    return fuse(torch.from_numpy(np.asarray(probabilities, dtype=np.float64)), "hard").numpy()


def soft_vote(probabilities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """`(members, rows, labels)` to `(rows, labels)`: the mean, or weighted mean, of the probabilities."""
    values = torch.from_numpy(np.asarray(probabilities, dtype=np.float64))
    return fuse(values, "soft", None if weights is None else [float(weight) for weight in weights]).numpy()


def fit_weights(probabilities: np.ndarray, gold: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Weights of a soft vote that give the gold labels the highest likelihood.

    Args:
        probabilities: `(members, rows, labels)`.
        gold: Class ids `(rows,)`.
        penalty: On the squares of the weights' logarithms, in rows: it draws them to equality where the rows do not
            say otherwise.

    Returns:
        `(members,)`, none below 0, adding up to 1.
    """
    of_gold = probabilities[:, np.arange(len(gold)), gold].clip(min=1e-12)

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        weights = softmax(logits)
        mixed = weights @ of_gold
        share = of_gold * weights[:, None] / mixed
        centred = logits - logits.mean()
        gradient = -(share.sum(axis=1) - weights * len(gold)) + 2 * penalty * centred
        return float(-np.log(mixed).sum() + penalty * (centred**2).sum()), gradient

    found = minimize(loss, np.zeros(len(probabilities)), jac=True, method="L-BFGS-B")
    return softmax(found.x)


def select_greedily(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Ensemble selection (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432): again and again the member is
    added, perhaps once more, with which the soft vote has the highest macro F1; the best stage is kept.

    Returns:
        `(members,)`, the share of the picks that a member has; ties go to the higher likelihood.
    """
    total, counts = np.zeros(probabilities.shape[1:]), np.zeros(len(probabilities))
    best, chosen = (-1.0, -np.inf), counts
    rows = np.arange(len(gold))
    for picked in range(1, ROUNDS + 1):
        means = (total + probabilities) / picked
        f1 = _macro_f1(means.argmax(axis=-1), gold, probabilities.shape[-1])
        likelihood = np.log(means[:, rows, gold].clip(min=1e-12)).mean(axis=-1)
        scores = list(zip(f1.tolist(), likelihood.tolist(), strict=True))
        member = max(range(len(scores)), key=scores.__getitem__)
        counts = counts.copy()
        counts[member] += 1
        total += probabilities[member]
        if scores[member] > best:
            best, chosen = scores[member], counts
    return chosen / chosen.sum()


def _macro_f1(predicted: np.ndarray, gold: np.ndarray, labels: int) -> np.ndarray:
    """`(systems,)` from class ids `(systems, rows)`, over the labels that occur, as scikit-learn's."""
    systems = np.arange(len(predicted))[:, None]
    hits, occurrences = np.zeros((2, len(predicted), labels))
    np.add.at(occurrences, (systems, predicted), 1)
    occurrences += np.bincount(gold, minlength=labels)
    np.add.at(hits, (np.broadcast_to(systems, predicted.shape), predicted), predicted == gold)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    return f1.sum(axis=1) / (occurrences > 0).sum(axis=1)


def fit_rule(fusion: str, probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray | None:
    """Weights of the members under one of [`FUSIONS`]; `None` where there is nothing to fit."""
    if fusion == "weighted":
        return fit_weights(probabilities, gold)
    return select_greedily(probabilities, gold) if fusion == "selected" else None


def fuse_by_rule(fusion: str, probabilities: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """`(rows, labels)`: the members fused, with what [`fit_rule`] found."""
    return hard_vote(probabilities) if fusion == "hard" else soft_vote(probabilities, weights)


def cross_fitted(
    fit_on: Callable[[np.ndarray], object], apply_to: Callable[[object, np.ndarray], np.ndarray], folds: np.ndarray
) -> np.ndarray:
    """What is fitted on the rows of the other folds, applied to the rows of this one, fold by fold.

    Args:
        fit_on: From row indices to what was fitted on them.
        apply_to: From that and other row indices to `(rows, labels)`.
        folds: The fold of each row; rows of one writer share one.
    """
    parts = {}
    for fold in np.unique(folds):
        here = np.flatnonzero(folds == fold)
        parts |= dict(zip(here, apply_to(fit_on(np.flatnonzero(folds != fold)), here), strict=True))
    return np.stack([parts[row] for row in range(len(folds))])


def fuse_cross_fitted(rule: str, probabilities: np.ndarray, gold: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """`(rows, labels)`: the members fused by one of [`FUSIONS`], fitted on the rows of other folds."""
    return cross_fitted(
        lambda rows: fit_rule(rule, probabilities[:, rows], gold[rows]),
        lambda weights, rows: fuse_by_rule(rule, probabilities[:, rows], weights),
        folds,
    )


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """`(members, members)`: the share of rows that two members put into different classes."""
    decisions = probabilities.argmax(axis=-1)
    return (decisions[:, None] != decisions[None]).mean(axis=-1)
