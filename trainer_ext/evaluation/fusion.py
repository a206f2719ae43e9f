"""Late fusion (section 2.4 of the paper): the rules, what is fitted, and the table that compares them.

A fitted rule is scored on writers that it was not fitted on: see [`cross_fitted`].
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from ensemble_emodeberta import fuse

from ..errors import InputError
from .comparison import check_probabilities, compare
from .decisions import apply_temperature, calibration, fit_temperature

FUSIONS = ("hard", "soft", "weighted", "selected")
ROUNDS = 30  # picks of the greedy selection, which may pick a member several times


def hard_vote(probabilities: np.ndarray) -> np.ndarray:
    """Return each label's share of the votes `(rows, labels)`; ties go to the higher mean probability.

    Args:
        probabilities: `(members, rows, labels)`.
    """
    return fuse(torch.from_numpy(np.asarray(probabilities, dtype=np.float64)), "hard").numpy()


def soft_vote(probabilities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean or weighted mean of the members' probabilities, `(rows, labels)`.

    Args:
        probabilities: `(members, rows, labels)`.
        weights: `(members,)`, or `None` for equal weights.
    """
    values = torch.from_numpy(np.asarray(probabilities, dtype=np.float64))
    return fuse(values, "soft", None if weights is None else [float(weight) for weight in weights]).numpy()


def fit_weights(probabilities: np.ndarray, gold: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Return the weights of a soft vote that give the gold labels the highest likelihood, with a penalty.

    Args:
        probabilities: `(members, rows, labels)`.
        gold: Class ids `(rows,)`.
        penalty: Strength of a penalty on the squared log weights, which pulls the weights towards equality.

    Returns:
        `(members,)`, none below 0, with sum 1.
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
    """Return the members' weights by greedy ensemble selection (Caruana et al. 2004,
    https://doi.org/10.1145/1015330.1015432).

    Each of `ROUNDS` rounds adds the member with which the soft vote has the highest macro F1. A member may be added
    several times. Ties go to the higher likelihood. The best round is kept.

    Returns:
        `(members,)`, each member's share of the picks.
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
    """Return macro F1 `(systems,)` of class ids `(systems, rows)` over the labels that occur, as scikit-learn does."""
    systems = np.arange(len(predicted))[:, None]
    hits, occurrences = np.zeros((2, len(predicted), labels))
    np.add.at(occurrences, (systems, predicted), 1)
    occurrences += np.bincount(gold, minlength=labels)
    np.add.at(hits, (np.broadcast_to(systems, predicted.shape), predicted), predicted == gold)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    return f1.sum(axis=1) / (occurrences > 0).sum(axis=1)


def fit_rule(fusion: str, probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray | None:
    """Return the members' weights `(members,)` under one of [`FUSIONS`], or `None` for a rule without weights."""
    if fusion == "weighted":
        return fit_weights(probabilities, gold)
    return select_greedily(probabilities, gold) if fusion == "selected" else None


def fuse_by_rule(fusion: str, probabilities: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the fused probabilities `(rows, labels)` under one of [`FUSIONS`], with the weights from [`fit_rule`]."""
    return hard_vote(probabilities) if fusion == "hard" else soft_vote(probabilities, weights)


def cross_fitted(
    fit_on: Callable[[np.ndarray], object], apply_to: Callable[[object, np.ndarray], np.ndarray], folds: np.ndarray
) -> np.ndarray:
    """Return `(rows, labels)`, where each fold's rows are computed with what was fitted on all other folds.

    Args:
        fit_on: Function from row indices to the object fitted on these rows.
        apply_to: Function from that object and other row indices to `(rows, labels)`.
        folds: The fold of each row. All rows of a writer are in the same fold.
    """
    parts = {}
    for fold in np.unique(folds):
        here = np.flatnonzero(folds == fold)
        parts |= dict(zip(here, apply_to(fit_on(np.flatnonzero(folds != fold)), here), strict=True))
    return np.stack([parts[row] for row in range(len(folds))])


def fuse_cross_fitted(rule: str, probabilities: np.ndarray, gold: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the fused probabilities `(rows, labels)` under one of [`FUSIONS`], fitted for each fold on the other
    folds.
    """
    return cross_fitted(
        lambda rows: fit_rule(rule, probabilities[:, rows], gold[rows]),
        lambda weights, rows: fuse_by_rule(rule, probabilities[:, rows], weights),
        folds,
    )


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """Return for each pair of members the share of rows that they classify differently, `(members, members)`."""
    decisions = probabilities.argmax(axis=-1)
    return (decisions[:, None] != decisions[None]).mean(axis=-1)


# ---- The table -------------------------------------------------------------------------------------------------------
FOLDS = 5  # for scoring fitted rules


def check_names(names: Sequence[str]) -> None:
    """Check that the members' names are unique and differ from the names of the fusion rules.

    Raises:
        InputError: if they are not.
    """
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two members are called {sorted(twice)[0]!r}; tell them apart with --names")
    if taken := [name for name in names if name in map(_shown, FUSIONS)]:
        raise InputError(f"a member is called {taken[0]!r}, as one of the fusions; give it another name")


def _shown(fusion: str) -> str:
    return f"{fusion} vote" if fusion in ("hard", "soft") else fusion


def plain_votes(of: str, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the hard and the soft vote `(rows, labels)` of some systems, by name.

    Args:
        of: Describes the systems in the name, for example "2 bagged".
        probabilities: `(systems, rows, labels)`.
    """
    return {f"{_shown(rule)}, {of}": fuse_by_rule(rule, probabilities, None) for rule in ("hard", "soft")}


# ---- Figures ------------------------------------------------------------------------------------------------------
def compare_fusions(
    names: Sequence[str],
    probabilities: np.ndarray,
    gold: np.ndarray,
    groups: Sequence[str] | None,
    folds: np.ndarray,
    labels: Sequence[str],
    kept: str,
    further: dict[str, np.ndarray] | None = None,
) -> tuple[dict, np.ndarray]:
    """Compare the members and all fusion rules on rows that no member was trained on.

    Args:
        names: Names of the members.
        probabilities: `(members, rows, labels)`.
        gold: Class ids `(rows,)`.
        groups: The writer of each row, if known.
        folds: `(rows,)`. Fitted weights and temperatures are scored on other folds than those they were fitted on.
        labels: Names of the labels.
        kept: The rule that the ensemble folder uses. Its weights and temperature are fitted on all rows.
        further: By name, `(rows, labels)` of other systems to add to the table.

    Returns:
        A dict of JSON values and the cross-fitted probabilities of the kept rule, `(rows, labels)`. The dict has
        `variants` (as from [`compare`], the members first), `disagreement` of each pair of members, `calibration` of
        the kept rule before and after its temperature, `weights` and `temperature`.

    Raises:
        InputError: if a member has the name of another system, or its values are not probabilities.
    """
    further = further or {}
    if taken := sorted(further.keys() & set(names)):
        raise InputError(f"a member is called {taken[0]!r}, as another row of the table; give it another name")
    systems = dict(zip(names, probabilities, strict=True))
    check_probabilities(systems)
    fused = {rule: fuse_cross_fitted(rule, probabilities, gold, folds) for rule in FUSIONS}
    systems |= {_shown(rule): values for rule, values in fused.items()} | further
    weights = fit_rule(kept, probabilities, gold)

    def fit_both(rows: np.ndarray) -> tuple[np.ndarray | None, float]:
        of_rows = fit_rule(kept, probabilities[:, rows], gold[rows])
        return of_rows, fit_temperature(fuse_by_rule(kept, probabilities[:, rows], of_rows), gold[rows])

    cooled = cross_fitted(
        fit_both,
        lambda fitted, rows: apply_temperature(fuse_by_rule(kept, probabilities[:, rows], fitted[0]), fitted[1]),
        folds,
    )
    figures = without_figures(names, labels, kept) | {
        "weights": None if weights is None else weights.tolist(),
        "temperature": fit_temperature(fuse_by_rule(kept, probabilities, weights), gold),
        "rows": len(gold),
        "grouped": groups is not None,
        "groups": len(set(groups)) if groups is not None else len(gold),
        "variants": compare({name: values[None] for name, values in systems.items()}, gold, groups, labels),
        "disagreement": disagreement(probabilities).tolist(),
        "calibration": {"before": calibration(fused[kept], gold), "after": calibration(cooled, gold)},
    }
    return figures, fused[kept]


def without_figures(names: Sequence[str], labels: Sequence[str], kept: str) -> dict:
    """Return the dict of [`compare_fusions`] if there are no rows to compare on."""
    return {
        "members": list(names), "labels": list(labels), "fusion": kept, "weights": None, "temperature": 1.0,
        "rows": 0, "variants": [],
    }  # fmt: skip


def voters(figures: dict) -> dict[str, float | None]:
    """Return the members with a weight other than 0 under the kept rule: by name, the weight or `None` if all are
    equal.

    Greedy selection leaves some members out, and the ensemble folder does not need them.
    """
    weights = figures["weights"] or [None] * len(figures["members"])
    return {name: weight for name, weight in zip(figures["members"], weights, strict=True) if weight != 0}
