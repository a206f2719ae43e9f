"""Compare systems on the same rows: intervals, tests, a table of differences, and the nested score of a search.

Texts of one writer are alike, so whole writers are resampled. Intervals come from a bootstrap (Efron and Tibshirani
1993, chapter 8). Differences are tested with a paired randomization test (Yeh 2000, https://aclanthology.org/C00-2137),
with Holm's correction (1979) if several systems are compared with one. Both are about the given predictions only. The
spread over seeds shows how much another training would differ.

The best of many configurations is best partly by chance, so the score that chose it is too high (Cawley and Talbot
2010, https://jmlr.org/papers/v11/cawley10a.html). Nested cross-validation (Varma and Simon 2006,
https://doi.org/10.1186/1471-2105-7-91) scores the choice on rows that had no part in it. Finished configurations have
predictions of all folds, so this takes no training.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..errors import InputError
from .decisions import ROUNDING, decide
from .metrics import SEVEN_FIGURES, EmotionMetric

# ---- Intervals and tests ---------------------------------------------------------------------------------------------
SAMPLES = 2000
PERMUTATIONS = 5000
_AT_ONCE = 2**24  # numbers of samples times writers in memory at a time: 128 MB


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

    @cached_property
    def resampled(self) -> np.ndarray:
        """Return macro F1 of each bootstrap sample of the writers: `(SAMPLES,)`."""
        return np.concatenate([self.macro_f1(weights) for weights in draw_groups(len(self))])


def mean_macro_f1(totals: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return macro F1 averaged over runs, `(samples,)`, from counts `(samples, 2 * runs * labels)`."""
    hits, occurrences = np.moveaxis(totals.reshape(len(totals), *shape), 1, 0)
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    # A sample may have no label at all.
    return (f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1).clip(min=1)).mean(axis=-1)


def _blocks(samples: int, number: int) -> Iterator[int]:
    """Yield numbers of samples that add up to `samples`, so that `_AT_ONCE` holds for each with `number` groups."""
    most = max(1, _AT_ONCE // number)
    for start in range(0, samples, most):
        yield min(most, samples - start)


def draw_groups(number: int) -> Iterable[np.ndarray]:
    """Return bootstrap weights in blocks `(samples, number)`, `SAMPLES` in all: how often each sample has each group.

    The weights are the same in every call, so that the samples of two systems are paired. They do not depend on the
    size of the blocks.
    """
    return _drawn_once(number) if SAMPLES * number <= _AT_ONCE else _draw(number)


def _draw(number: int) -> Iterator[np.ndarray]:
    generator, shares = np.random.default_rng(0), np.full(number, 1 / number)
    for size in _blocks(SAMPLES, number):
        weights = generator.multinomial(number, shares, size=size).astype(float)
        weights.flags.writeable = False
        yield weights


@lru_cache(maxsize=4)
def _drawn_once(number: int) -> list[np.ndarray]:
    return list(_draw(number))


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
    return interval(counts.resampled)


def paired_difference(first: GroupCounts, second: GroupCounts) -> tuple[float, tuple[float, float]]:
    """Return macro F1 of `second` minus that of `first`, and its 95% interval from the same samples for both."""
    found = second.macro_f1() - first.macro_f1()
    return float(found[0]), interval(second.resampled - first.resampled)


def randomization_test(first: GroupCounts, second: GroupCounts, permutations: int = PERMUTATIONS) -> float:
    """Return the two-sided p-value of the difference in macro F1 between two systems.

    The null hypothesis is that the two systems' predictions are exchangeable. Each permutation swaps the predictions
    for about half of the writers, all runs of a writer together. The observed assignment counts as one of the
    permutations, so p-values are never too small.

    Raises:
        ValueError: if the systems have different rows, labels or numbers of runs.
    """
    if first.values.shape != second.values.shape:
        raise ValueError("the systems have different rows, labels or numbers of runs")
    shape = first.values.shape[1:]
    a, b = (counts.values.reshape(len(counts), -1) for counts in (first, second))
    found = abs(second.macro_f1() - first.macro_f1())[0]
    generator, as_far = np.random.default_rng(0), 0
    for size in _blocks(permutations, len(a)):
        moved = generator.integers(0, 2, size=(size, len(a))).astype(float) @ (b - a)
        differences = mean_macro_f1(a.sum(axis=0) + moved, shape) - mean_macro_f1(b.sum(axis=0) - moved, shape)
        as_far += int((np.abs(differences) >= found - 1e-12).sum())
    return (1 + as_far) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction (1979), in the order given. It controls the family-wise error."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# ---- Tables ----------------------------------------------------------------------------------------------------------
def compare(
    systems: dict[str, np.ndarray],
    gold: np.ndarray,
    groups: Sequence[str] | None,
    label_names: Sequence[str],
) -> list[dict]:
    """Return the scores of each system, and its difference in macro F1 to the first system.

    Args:
        systems: By name, probabilities `(seeds, rows, labels)`.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: The writer of each row. `None` if all rows are independent.
        label_names: Names of the labels, in the order of the columns.

    Returns:
        A list with one dict per system, all figures averaged over seeds: `macro_f1`, its 95% `interval` and
        `macro_f1_by_seed`, the seven `figures`, and `f1` of each label. Every system but the first also has a
        `difference`: in macro F1, with interval, by seed, p-value and Holm-corrected p-value.

    Raises:
        InputError: as [`check_probabilities`].
    """
    check_probabilities(systems)
    multi_label = gold.ndim == 2
    metric = EmotionMetric(label_names, multi_label=multi_label)
    rows, counts = [], []
    for name, probabilities in systems.items():
        decisions = decide(probabilities, multi_label)
        scores = [metric.compute(predictions=of_seed, references=gold) for of_seed in decisions]
        counts.append(GroupCounts(gold, decisions, groups, len(label_names)))
        rows.append(
            {
                "name": name,
                "macro_f1": _mean(scores, "macro_f1"),
                "interval": interval(counts[-1].resampled),
                "macro_f1_by_seed": [score["macro_f1"] for score in scores],
                "figures": {figure: _mean(scores, figure) for figure in SEVEN_FIGURES},
                "f1": {label: _mean(scores, f"f1_{label}") for label in label_names},
            }
        )
    for row, of_system in zip(rows[1:], counts[1:], strict=True):
        found, ends = paired_difference(counts[0], of_system)
        by_seed = np.subtract(row["macro_f1_by_seed"], rows[0]["macro_f1_by_seed"]).tolist()
        p = randomization_test(counts[0], of_system)
        row["difference"] = {"macro_f1": found, "interval": ends, "by_seed": by_seed, "p": p}
    for row, p in zip(rows[1:], holm([row["difference"]["p"] for row in rows[1:]]), strict=True):
        row["difference"]["p_holm"] = p
    return rows


def check_probabilities(systems: dict[str, np.ndarray]) -> None:
    """Check that all values of each system are probabilities; a diverged training gives others.

    Raises:
        InputError: if a value is not between 0 and 1, or not a number.
    """
    for name, values in systems.items():
        if not ((values >= 0) & (values <= 1 + ROUNDING)).all():  # NaN is neither
            raise InputError(f"{name}: its probabilities are not all from 0 to 1; did its training diverge?")


def _mean(scores: list[dict], name: str) -> float:
    """Return a score's mean over the seeds; a label that is neither in gold nor predicted has no F1."""
    values = [score[name] for score in scores if name in score]
    return float(np.mean(values)) if values else float("nan")


# ---- Nested cross-validation -----------------------------------------------------------------------------------------
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
