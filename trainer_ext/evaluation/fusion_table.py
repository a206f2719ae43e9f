"""Compare fusion rules on rows that no member was trained on."""

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .calibration import apply_temperature, calibration, fit_temperature
from .comparison import check_probabilities, compare
from .fusion import FUSIONS, cross_fitted, disagreement, fit_rule, fuse_by_rule, fuse_cross_fitted

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
