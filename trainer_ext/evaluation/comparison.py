"""Compare several systems on the same rows; the result is JSON values."""

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .decisions import ROUNDING, decide
from .metrics import SEVEN_FIGURES, EmotionMetric
from .significance import GroupCounts, draw_groups, holm, interval, paired_difference, randomization_test


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
                "interval": interval(counts[-1].macro_f1(draw_groups(len(counts[-1])))),
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
