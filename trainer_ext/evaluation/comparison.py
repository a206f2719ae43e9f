"""Tables of several systems on the same rows, and where one of them errs; JSON first, pages from it."""

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
    """Macro F1 of each system, and its difference to the first.

    Args:
        systems: By name, probabilities `(seeds, rows, labels)`.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: The writer of each row; rows are taken to be independent if not given.
        label_names: In the order of the columns.

    Returns:
        For each system its figures, as means over seeds: macro F1 with 95% interval and by seed; the difference to
        the first with interval, p-value and Holm's correction of it; the seven figures; F1 of each label.

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
    """Raises InputError for a system that gives no probabilities, as one does whose training diverged."""
    for name, values in systems.items():
        if not ((values >= 0) & (values <= 1 + ROUNDING)).all():  # NaN is neither
            raise InputError(f"{name}: its probabilities are not all from 0 to 1; did its training diverge?")


def _mean(scores: list[dict], name: str) -> float:
    """Over the seeds; a label that neither stands in gold nor is predicted has no F1."""
    values = [score[name] for score in scores if name in score]
    return float(np.mean(values)) if values else float("nan")
