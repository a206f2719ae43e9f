"""Find rows whose label is probably wrong, and texts that models disagree on.

Label errors are found by confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", arXiv:1911.00068) with the library cleanlab (https://docs.cleanlab.ai). It needs probabilities from
models that did not train on the row.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ..errors import InputError
from .decisions import decide


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
        order: Row numbers, the first to look at first. With labels, only rows whose label is not the proposed one: by
            how many times as probable the proposed label is as the given one, or where a row may have several labels
            by `quality`. With one label per row, `quality` puts rows first that no label fits well.
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
    likeness = quality if multi_label else mean[np.arange(rows), given] / mean.max(axis=1)
    order = np.argsort(likeness, kind="stable")
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
