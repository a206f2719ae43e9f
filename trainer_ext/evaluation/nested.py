"""Score a search honestly: each fold by the configuration that is best on the other folds.

The best of many configurations is best partly by chance, so the score that chose it is too high (Cawley and Talbot
2010, https://jmlr.org/papers/v11/cawley10a.html). Nested cross-validation (Varma and Simon 2006,
https://doi.org/10.1186/1471-2105-7-91) scores the choice on rows that had no part in it. Finished configurations have
predictions of all folds, so this takes no training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .comparison import compare
from .decisions import decide
from .significance import GroupCounts

NESTED = "the search, nested"


def _by_fold(probabilities: np.ndarray, gold: np.ndarray, assigned: np.ndarray) -> GroupCounts:
    """Return the counts of each fold, in the order of the folds' numbers."""
    decisions = decide(probabilities, gold.ndim == 2)
    return GroupCounts(gold, decisions[None], assigned, probabilities.shape[1])


def running_scores(probabilities: np.ndarray, gold: np.ndarray, assigned: np.ndarray) -> list[float]:
    """Return macro F1 over the rows of the first fold, of the first two folds, and so on.

    Args:
        probabilities: `(rows, labels)`.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        assigned: `(rows,)`, the fold of each row.
    """
    counts = _by_fold(probabilities, gold, assigned)
    return counts.macro_f1(np.tril(np.ones((len(counts), len(counts))))).tolist()


def choose_by_other_folds(systems: Mapping[str, np.ndarray], gold: np.ndarray, assigned: np.ndarray) -> list[str]:
    """Return for each fold the configuration with the best macro F1 over the rows of the other folds.

    If several are equal, the first of them is chosen. Arguments are as in [`nested_comparison`].
    """
    counts = [_by_fold(probabilities, gold, assigned) for probabilities in systems.values()]
    others = np.stack([each.macro_f1(1 - np.eye(len(each))) for each in counts])
    names = list(systems)
    return [names[index] for index in others.argmax(axis=0)]


def nested_comparison(
    systems: Mapping[str, np.ndarray],
    gold: np.ndarray,
    assigned: np.ndarray,
    groups: Sequence[str] | None,
    label_names: Sequence[str],
) -> dict[str, Any]:
    """Return the winner of a search, its selection score, and the nested score, as JSON values.

    Args:
        systems: By the name of a configuration, probabilities `(rows, labels)`. The first has the recipe's own values.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        assigned: `(rows,)`, the fold of each row.
        groups: The writer of each row. `None` if all rows are independent.
        label_names: Names of the labels, in the order of the columns.

    Returns:
        `winner`, its name; `chosen`, the name of the configuration that each fold's rows are scored by; and the rows of
        [`compare`] `own`, `nested` and `selection` (the winner's), each with its paired difference to `own`.

    Raises:
        InputError: if a value is not a probability.
    """
    scores = {name: _by_fold(values, gold, assigned).macro_f1()[0] for name, values in systems.items()}
    winner = max(scores, key=scores.__getitem__)
    chosen = choose_by_other_folds(systems, gold, assigned)
    nested = np.stack(list(systems.values()))[[list(systems).index(name) for name in chosen]]
    nested = nested[assigned, np.arange(len(gold))]
    first = next(iter(systems))
    honest = compare({first: systems[first][None], NESTED: nested[None]}, gold, groups, label_names)
    selected = compare({first: systems[first][None], "winner": systems[winner][None]}, gold, groups, label_names)[1]
    return {"winner": winner, "chosen": chosen, "own": honest[0], "nested": honest[1], "selection": selected}
