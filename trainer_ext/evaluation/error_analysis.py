"""Find where a model is wrong, and where the label probably is.

Label errors are found by confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", arXiv:1911.00068) with the library cleanlab (https://docs.cleanlab.ai). It needs probabilities from
models that did not train on the row.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ..errors import InputError
from .comparison import GroupCounts, interval
from .decisions import decide

# ---- Errors of models ------------------------------------------------------------------------------------------------
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
            row["interval"] = interval(counts.resampled)
        table.append(row)
    return table


def _numeric_first(value: str) -> tuple:
    try:
        return (0, float(value.split(" to ")[0]), value)
    except ValueError:
        return (1, 0.0, value)


# ---- Errors of labels ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Review:
    """The models' view of each row.

    Attributes:
        mean: Mean probabilities of all models that predict the row, `(rows, labels)`.
        proposed: What the mean decides: class ids `(rows,)`, or 0/1 `(rows, labels)`.
        confidence: `(rows,)`, how sure the mean is of `proposed`: its probability. If a row may have several labels, it
            is the least sure of its decisions, one half or more.
        against: `(rows,)`, the share of models that decide otherwise: than the given label where there is one, else
            than `proposed`.
        quality: `(rows,)`, cleanlab's score of the given label, from 0 (surely wrong) to 1; `None` without labels.
        suspect: `(rows,)`, whether cleanlab calls the label an error; `None` without labels.
        order: Row numbers, the first to look at first. With labels, only rows whose label is not the proposed one, by
            `quality`.
    """

    mean: np.ndarray
    proposed: np.ndarray
    confidence: np.ndarray
    against: np.ndarray
    quality: np.ndarray | None
    suspect: np.ndarray | None
    order: np.ndarray


def review(
    models: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: int,
    given: np.ndarray | None,
    multi_label: bool,
    disagreement: np.ndarray | None = None,
) -> Review:
    """Return what the models say of each row, and in which order a person should look.

    Args:
        models: For each model (or fold), the rows that it predicts `(predicted,)`, and their probabilities
            `(predicted, labels)`. Each row has one prediction or more.
        rows: Number of rows.
        given: Given labels as class ids `(rows,)`, or 0/1 `(rows, labels)`; `None` for unlabelled texts.
        multi_label: Whether a row may have several labels.
        disagreement: `(rows,)`, the share of an ensemble's members that disagree with it, where that is known.

    Raises:
        InputError: if cleanlab is needed and not installed.
    """
    total = np.zeros((rows, models[0][1].shape[1]))
    times = np.zeros(rows)
    for where, probabilities in models:
        np.add.at(total, where, probabilities)
        np.add.at(times, where, 1)
    mean = total / times[:, None]
    proposed = decide(mean, multi_label)
    confidence = np.maximum(mean, 1 - mean).min(axis=1) if multi_label else mean.max(axis=1)
    against = np.zeros(rows)
    compared = proposed if given is None else given
    for where, probabilities in models:
        np.add.at(against, where, _differ(decide(probabilities, multi_label), compared[where]))
    against /= times
    if given is None:
        if disagreement is not None:
            against = disagreement
        return Review(mean, proposed, confidence, against, None, None, np.lexsort((confidence, -against)))
    quality, suspect = label_quality(mean, given, multi_label)
    order = np.argsort(quality, kind="stable")
    return Review(mean, proposed, confidence, against, quality, suspect, order[_differ(proposed, given)[order]])


def label_quality(probabilities: np.ndarray, given: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return cleanlab's quality of each given label, and whether it calls the label an error, both `(rows,)`.

    The quality is the probability of the given label ("self-confidence"). If a row may have several labels, it is
    cleanlab's average over the decisions for each label, in which the worst count most.

    Args:
        probabilities: Out-of-fold probabilities `(rows, labels)`.
        given: Class ids `(rows,)`, or 0/1 `(rows, labels)`.

    Raises:
        InputError: if cleanlab is not installed.
    """
    check_installed()
    from cleanlab import multilabel_classification
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label with few rows
        if multi_label:
            labels = [np.flatnonzero(row).tolist() for row in given]
            issues = multilabel_classification.filter.find_label_issues(labels, probabilities, n_jobs=1)
            return multilabel_classification.get_label_quality_scores(labels, probabilities), issues
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        return get_label_quality_scores(given, probabilities), find_label_issues(given, probabilities, n_jobs=1)


def check_installed() -> None:
    """Check that cleanlab is installed.

    Raises:
        InputError: if not.
    """
    if find_spec("cleanlab") is None:
        raise InputError("finding label errors needs cleanlab, which is not installed: pip install cleanlab")


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return whether two decisions differ, `(rows,)`."""
    return (one != other).any(axis=1) if one.ndim == 2 else one != other
