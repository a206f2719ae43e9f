"""Find the rows and classes that a model gets wrong."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .decisions import decide
from .significance import GroupCounts, draw_groups, interval

FEWEST_ROWS = 20  # smaller subgroups get no macro F1


def analyse_errors(
    systems: dict[str, np.ndarray],
    of: str,
    gold: np.ndarray,
    groups: Sequence[str] | None,
    label_names: Sequence[str],
    ids: Sequence[str],
    columns: dict[str, Sequence[str]],
    rows_shown: int = 20,
) -> dict:
    """Return the errors of the system `of`, and the rows whose gold label all systems find improbable.

    Args:
        systems, gold, groups, label_names: As in [`compare`].
        of: Name of the system whose errors are analysed.
        ids: Row ids.
        columns: By name, a value for each row. Numeric columns with many values are split into quarters.
        rows_shown: How many rows to list per confusion, and how many contested rows.

    Returns:
        `confusions`: pairs of gold and predicted label with the ids of their rows, most frequent first.
        `contested`: rows whose gold label has the lowest mean probability over all systems and seeds.
        `columns`: macro F1 for each value of each column.
        If a row may have several labels, only `columns` is there.
    """
    multi_label = gold.ndim == 2
    decisions = decide(systems[of], multi_label)
    found: dict = {"of": of, "models": sum(len(each) for each in systems.values()), "columns": {}}
    for name, values in columns.items():
        found["columns"][name] = _by_value(banded(values), gold, decisions, groups, len(label_names))
    if multi_label:
        return found
    wrong: Counter[tuple[int, int]] = Counter()
    rows_of: dict[tuple[int, int], Counter[str]] = {}
    for of_seed in decisions:
        for index in np.flatnonzero(of_seed != gold):
            pair = (int(gold[index]), int(of_seed[index]))
            wrong[pair] += 1
            rows_of.setdefault(pair, Counter())[ids[index]] += 1
    found["confusions"] = [
        {
            "gold": label_names[pair[0]],
            "predicted": label_names[pair[1]],
            "share_of_gold": count / (len(decisions) * int((gold == pair[0]).sum())),
            "rows": [row for row, _ in rows_of[pair].most_common(rows_shown)],
            "number_of_rows": len(rows_of[pair]),
        }
        for pair, count in wrong.most_common(10)
    ]
    every = np.concatenate(list(systems.values()))  # (models, rows, labels)
    mean = every.mean(axis=0)
    of_gold = mean[np.arange(len(gold)), gold]
    found["contested"] = [
        {
            "id": ids[index],
            "gold": label_names[gold[index]],
            "probability_of_gold": float(of_gold[index]),
            "models_say": label_names[mean[index].argmax()],
            "probability": float(mean[index].max()),
            "share_of_models": float((every[:, index].argmax(axis=1) == mean[index].argmax()).mean()),
        }
        for index in np.argsort(of_gold, kind="stable")[:rows_shown]
    ]
    return found


def banded(values: Sequence[str]) -> list[str]:
    """Return the values as texts; a numeric column with more than 8 different values is split into quarters of the
    rows.
    """
    try:
        numbers = np.array([float(value) if value.strip() else np.nan for value in values])
    except ValueError:
        return list(values)
    if np.isfinite(numbers).sum() < sum(
        bool(value.strip()) for value in values
    ):  # "inf" and "nan" are treated as words
        return list(values)
    if len(set(numbers[~np.isnan(numbers)])) <= 8:
        return ["" if np.isnan(number) else f"{number:g}" for number in numbers]
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    position = np.searchsorted(edges, numbers, side="right").clip(1, len(edges) - 1)
    return [
        "" if np.isnan(number) else f"{edges[at - 1]:g} to {edges[at]:g}"
        for number, at in zip(numbers, position, strict=True)
    ]


def _by_value(values, gold, decisions, groups, number_of_labels: int) -> list[dict]:
    """Return for each value its number of rows and, if there are enough of them, macro F1 with its interval."""
    table = []
    values = np.asarray(values)
    groups = None if groups is None else np.asarray(groups)
    for value in sorted(set(values.tolist()), key=_numeric_first):
        here = values == value
        row = {"value": value, "rows": int(here.sum())}
        if groups is not None:
            row["groups"] = len(set(groups[here]))
        if row["rows"] >= FEWEST_ROWS:
            counts = GroupCounts(
                gold[here], decisions[:, here], None if groups is None else groups[here], number_of_labels
            )
            row["macro_f1"] = float(counts.macro_f1()[0])
            row["interval"] = interval(counts.macro_f1(draw_groups(len(counts))))
        table.append(row)
    return table


def _numeric_first(value: str) -> tuple:
    try:
        return (0, float(value.split(" to ")[0]), value)
    except ValueError:
        return (1, 0.0, value)
