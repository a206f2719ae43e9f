"""Confidence intervals and significance tests for macro F1, where several texts may come from one writer.

Texts of one writer are alike, so whole writers are resampled. Intervals come from a bootstrap (Efron and Tibshirani
1993, chapter 8). Differences are tested with a paired randomization test (Yeh 2000, https://aclanthology.org/C00-2137),
with Holm's correction (1979) if several systems are compared with one. Both are about the given predictions only. The
spread over seeds shows how much another training would differ.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SAMPLES = 2000
PERMUTATIONS = 5000


class GroupCounts:
    """The counts of a system's predictions that macro F1 needs, summed by writer.

    Args:
        references: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        predictions: The same for each run (seed) of the system, `(runs, rows)` or `(runs, rows, labels)`.
        groups: One value per row, for example its writer. `None` if all rows are independent.
        number_of_labels: Number of classes, if the arrays hold class ids.
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
        # (groups, 2, runs, labels): correct rows, and gold rows plus predicted rows.
        counts = np.zeros((group.max() + 1, 2, len(predictions), references.shape[1]))
        found = np.moveaxis(np.stack([references * predictions, references + predictions]), 2, 0)
        np.add.at(counts, group, found)
        self.values = counts

    def __len__(self) -> int:
        return len(self.values)

    def macro_f1(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return macro F1 over the labels that occur, averaged over the runs, for each sample: `(samples,)`.

        Args:
            weights: `(samples, groups)`, how often each writer is in each sample. `None` for one sample of every
                writer.
        """
        weights = np.ones((1, len(self))) if weights is None else weights
        return mean_macro_f1(weights @ self.values.reshape(len(self), -1), self.values.shape[1:])


def mean_macro_f1(totals: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return macro F1 averaged over runs, `(samples,)`, from counts `(samples, 2 * runs * labels)`."""
    hits, occurrences = np.moveaxis(totals.reshape(len(totals), *shape), 1, 0)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    # A sample may have no label at all.
    return (f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1).clip(min=1)).mean(axis=-1)


@lru_cache(maxsize=4)
def draw_groups(number: int) -> np.ndarray:
    """Return bootstrap weights `(SAMPLES, number)`: how often each group is drawn in each sample.

    The weights are the same in every call, so that the samples of two systems are paired.
    """
    weights = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=SAMPLES).astype(float)
    weights.flags.writeable = False
    return weights


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of bootstrap values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_macro_f1(
    references: np.ndarray, predictions: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of one system's macro F1: lower and upper end.

    Args:
        references, predictions: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: One value per row, for example its writer. `None` if all rows are independent.
    """
    width = int(max(references.max(), predictions.max())) + 1
    counts = GroupCounts(references, predictions[None], groups, width)
    return interval(counts.macro_f1(draw_groups(len(counts))))


def paired_difference(first: GroupCounts, second: GroupCounts) -> tuple[float, tuple[float, float]]:
    """Return macro F1 of `second` minus that of `first`, and its 95% interval from the same samples for both."""
    weights = draw_groups(len(first))
    found = second.macro_f1() - first.macro_f1()
    return float(found[0]), interval(second.macro_f1(weights) - first.macro_f1(weights))


def randomization_test(first: GroupCounts, second: GroupCounts, permutations: int = PERMUTATIONS) -> float:
    """Return the two-sided p-value of the difference in macro F1 between two systems.

    The null hypothesis is that the two systems' predictions are exchangeable. Each permutation swaps the predictions
    for
    about half of the writers, all runs of a writer together. The observed assignment counts as one of the permutations,
    so
    p-values are never too small.

    Raises:
        ValueError: if the systems have different rows, labels or numbers of runs.
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
    """Return the p-values after Holm's correction (1979), in the order given. It controls the family-wise error."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
