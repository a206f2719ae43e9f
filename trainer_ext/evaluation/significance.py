"""Intervals and tests for macro F1 on texts of which several come from one writer.

Rows of a writer are alike, so writers are what is drawn, whole: a bootstrap for intervals (Efron and Tibshirani 1993,
chapter 8) and a paired randomization test for differences (Yeh 2000, https://aclanthology.org/C00-2137), with Holm's
correction (1979) where several systems are compared with one. Both speak about the predictions at hand. How much
another training would differ is not in them: the spread over seeds says that.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SAMPLES = 2000
PERMUTATIONS = 5000


class GroupCounts:
    """What macro F1 needs to know of a system's predictions, summed by writer.

    Args:
        references: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        predictions: The same for each run (seed) of the system, `(runs, rows)` or `(runs, rows, labels)`.
        groups: One value a row, for example its writer; rows stand alone if not given.
        number_of_labels: Of class ids.
    """

    def __init__(
        self,
        references: np.ndarray,
        predictions: np.ndarray,
        groups: Sequence[str] | None,
        number_of_labels: int,
    ):
        if references.ndim == 1:
            one_hot = np.eye(number_of_labels)
            references, predictions = one_hot[references], one_hot[predictions]
        names = np.arange(len(references)) if groups is None else np.asarray(groups)
        _, group = np.unique(names, return_inverse=True)
        # (groups, 2, runs, labels): rows that are right, and gold + predicted rows.
        counts = np.zeros((group.max() + 1, 2, len(predictions), references.shape[1]))
        found = np.moveaxis(np.stack([references * predictions, references + predictions]), 2, 0)
        np.add.at(counts, group, found)
        self.values = counts

    def __len__(self) -> int:
        return len(self.values)

    def macro_f1(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean over the runs of macro F1 over the labels that occur.

        Args:
            weights: `(samples, groups)`: how often each writer is in each sample; all of them once if not given.

        Returns:
            `(samples,)`.
        """
        weights = np.ones((1, len(self))) if weights is None else weights
        return mean_macro_f1(weights @ self.values.reshape(len(self), -1), self.values.shape[1:])


def mean_macro_f1(totals: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """`(samples,)` from counts `(samples, 2 * runs * labels)`: macro F1 of each run, averaged over runs."""
    hits, occurrences = np.moveaxis(totals.reshape(len(totals), *shape), 1, 0)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    # A sample may have no positive label at all.
    return (f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1).clip(min=1)).mean(axis=-1)


@lru_cache(maxsize=4)
def draw_groups(number: int) -> np.ndarray:
    """Bootstrap weights `(SAMPLES, number)`: how often each group is drawn, `number` draws a sample; the same ones
    every time, so that what is drawn for two systems is paired."""
    weights = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=SAMPLES).astype(float)
    weights.flags.writeable = False
    return weights


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of bootstrap values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_macro_f1(
    references: np.ndarray, predictions: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """95% interval of one system's macro F1.

    Args:
        references, predictions: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: One value a row, for example its writer.

    Returns:
        Lower and upper end.
    """
    width = int(max(references.max(), predictions.max())) + 1
    counts = GroupCounts(references, predictions[None], groups, width)
    return interval(counts.macro_f1(draw_groups(len(counts))))


def paired_difference(first: GroupCounts, second: GroupCounts) -> tuple[float, tuple[float, float]]:
    """Macro F1 of `second` less that of `first`, and its 95% interval: the same writers drawn for both."""
    weights = draw_groups(len(first))
    found = second.macro_f1() - first.macro_f1()
    return float(found[0]), interval(second.macro_f1(weights) - first.macro_f1(weights))


def randomization_test(first: GroupCounts, second: GroupCounts, permutations: int = PERMUTATIONS) -> float:
    """Two-sided p-value of the difference in macro F1, were it chance which system made which prediction.

    Each permutation swaps the two systems' predictions for about half of the writers, all runs of a writer together.
    Exact but for the drawing of permutations, the one at hand counted in: under the null hypothesis p is below any
    level at most that often.
    """
    if first.values.shape != second.values.shape:
        raise ValueError("the systems have different rows, labels or numbers of runs")
    shape = first.values.shape[1:]
    a, b = (counts.values.reshape(len(counts), -1) for counts in (first, second))
    stay = np.random.default_rng(0).integers(0, 2, size=(permutations, len(a))).astype(float)
    moved = stay @ (b - a)
    differences = mean_macro_f1(a.sum(axis=0) + moved, shape) - mean_macro_f1(b.sum(axis=0) - moved, shape)
    found = abs(second.macro_f1() - first.macro_f1())[0]
    return float((1 + (np.abs(differences) >= found - 1e-12).sum()) / (1 + permutations))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: below a level, all of them together are wrong at most that often (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
