"""Divide rows by writer: cross-validation folds, validation splits and bootstrap samples."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import concatenate_datasets
from sklearn.model_selection import StratifiedGroupKFold

from ..errors import InputError
from .corpus import Corpus
from .emotion_corpora import text_groups

logger = logging.getLogger(__name__)
_MANY_GROUPS = 5000
_ATTEMPTS = 20  # draws of a validation split until every class keeps training rows


def split_off_validation(corpus: Corpus, percentage: float, seed: int) -> Corpus:
    """Return the corpus with about `percentage` percent of the training rows moved to `validation`.

    Rows of one group stay together. Class shares are kept as far as the groups allow. The corpus is returned unchanged
    if it has a validation split or `percentage` is 0.

    Raises:
        InputError: if the percentage is not between 0 and 50, or there are too few groups or rows.
    """
    if not 0 <= percentage <= 50:
        raise InputError(f"--validation_split_percentage is {percentage}; want 0 to 50")
    if not percentage or "validation" in corpus.splits:
        return corpus
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else train["id"]
    folds = max(2, round(100 / percentage))
    classes = corpus.classes("train")
    if classes.ndim == 2:
        classes = classes.argmax(axis=1)
    if len(set(groups)) < folds:
        raise InputError(
            f"{corpus.source}: {len(set(groups))} groups in train cannot give {percentage}% for validation; "
            "name a validation file"
        )
    if len(set(groups)) > _MANY_GROUPS or folds > np.bincount(classes).max():
        kept, held_out = _split_many_groups(np.asarray(groups), classes, percentage, seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        kept, held_out = next(splitter.split(classes, classes, groups))
    if not len(held_out):
        raise InputError(
            f"{corpus.source}: no class has enough rows in train to give {percentage}% of them for validation; name a "
            "validation file, or a higher percentage"
        )
    return corpus.with_splits(train=train.select(kept), validation=train.select(held_out))


def hold_out_validation(corpus: Corpus, percentage: int, seed: int) -> Corpus:
    """Return the corpus with about `percentage` percent of the training rows moved to `validation`, where that can be.

    Unlike [`split_off_validation`], it never refuses, and takes whole groups such that every class keeps training rows.
    Without a group column, rows whose texts differ in case and punctuation only stay together. Every n-th group is held
    out, with groups in the order of their first row's class and drawn at random within it, so class shares are kept
    also in few rows. If classes cannot be kept, or fewer than three groups can be chosen from, the corpus is returned
    unchanged.
    """
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else text_groups(train["text"])
    _, first, group_of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    classes = corpus.classes("train")
    class_of = (classes.argmax(axis=1) if classes.ndim == 2 else classes)[first]
    candidates = np.flatnonzero(np.bincount(class_of)[class_of] > 1)  # the only group of a class stays
    step = min(round(100 / percentage), len(candidates))
    present = {name for name, count in corpus.class_counts("train").items() if count}
    for attempt in range(_ATTEMPTS if len(candidates) > 2 else 0):
        drawn = np.random.default_rng((seed, attempt)).permutation(candidates)
        chosen = np.zeros(len(first), dtype=bool)
        chosen[drawn[np.argsort(class_of[drawn], kind="stable")][step // 2 :: step]] = True
        held_out = chosen[group_of]
        divided = corpus.with_splits(
            train=train.select(np.flatnonzero(~held_out)), validation=train.select(np.flatnonzero(held_out))
        )
        if present == {name for name, count in divided.class_counts("train").items() if count}:
            return divided
    return corpus


def _split_many_groups(
    groups: np.ndarray, classes: np.ndarray, percentage: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row indices to keep and to hold out. Groups are sampled per class of their first row, at the same
    share.

    This replaces `StratifiedGroupKFold`, which takes minutes for thousands of groups and refuses more folds than a
    class has rows.
    """
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    rng, chosen = np.random.default_rng(seed), np.zeros(len(first), dtype=bool)
    for label in np.unique(classes):
        of_class = np.flatnonzero(classes[first] == label)
        chosen[rng.permutation(of_class)[: round(len(of_class) * percentage / 100)]] = True
    return np.flatnonzero(~chosen[group_of]), np.flatnonzero(chosen[group_of])


def cross_validation_folds(corpus: Corpus, folds: int) -> np.ndarray:
    """Return the fold, 0 to `folds - 1`, of each training row: `(rows,)`.

    Rows of one group are in the same fold. Folds have similar sizes and class shares, as far as the groups allow: 20
    seeds of scikit-learn's `StratifiedGroupKFold` are tried, and the most even result is taken. The same rows always
    give the same folds.

    Raises:
        InputError: if there are fewer groups than folds, or no class has as many rows as folds.
    """
    train = corpus.splits["train"]
    groups = np.asarray(train["group"] if "group" in train.column_names else train["id"])
    if not 2 <= folds <= len(set(groups)):
        raise InputError(
            f"{corpus.source}: {folds} folds of {len(set(groups))} groups in train; want 2 folds or more, and no more "
            "than groups"
        )
    classes = corpus.classes("train")
    classes = classes.argmax(axis=1) if classes.ndim == 2 else classes
    if folds > (most := int(np.bincount(classes).max())):
        raise InputError(
            f"{corpus.source}: {folds} folds, but no class has more than {most} rows in train; want {most} or fewer"
        )
    return group_folds(classes, groups, folds)


def group_folds(classes: np.ndarray, groups: Sequence[str], folds: int = 5) -> np.ndarray:
    """Return the fold `(rows,)` of rows with these class ids and groups, as in [`cross_validation_folds`]."""
    one_hot = np.eye(classes.max() + 1)[classes]
    best, found = np.inf, np.zeros(len(classes), dtype=int)
    for seed in range(20):
        assigned = np.zeros(len(classes), dtype=int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            for fold, (_, held_out) in enumerate(splitter.split(classes, classes, groups)):
                assigned[held_out] = fold
        sizes = np.bincount(assigned, minlength=folds)
        shares = np.stack([one_hot[assigned == fold].sum(axis=0) / max(sizes[fold], 1) for fold in range(folds)])
        worst = max(np.abs(shares - one_hot.mean(axis=0)).max(), np.abs(sizes / len(classes) - 1 / folds).max())
        if worst < best:
            best, found = worst, assigned
    return found


def join_validation(corpus: Corpus) -> Corpus:
    """Return the corpus with the validation rows added to the training rows, and no validation split.

    Raises:
        InputError: if there are no training rows, or no labelled validation rows.
    """
    if "train" not in corpus.splits:
        raise InputError(f"--train_on_validation: {corpus.source} has no training rows to add to; leave it out")
    if not corpus.is_labelled("validation"):
        raise InputError(f"--train_on_validation: {corpus.source} has no labelled validation rows; leave it out")
    joined = concatenate_datasets([corpus.splits["train"], corpus.splits["validation"]])
    return corpus.with_splits(train=joined).only_splits(name for name in corpus.splits if name != "validation")


def hold_out_folds(corpus: Corpus, folds: int, which: Sequence[int]) -> Corpus:
    """Return the corpus with the given folds of its training rows as `test`, the rest as `train`, and no other splits.

    Raises:
        InputError: as [`cross_validation_folds`], or if a fold does not exist or no fold is left to train on.
    """
    if wrong := [fold for fold in which if not 0 <= fold < folds]:
        raise InputError(f"fold {wrong[0]} of {folds}; want 0 to {folds - 1}")
    if len(set(which)) == folds:
        raise InputError(f"all {folds} folds are held out; leave at least one to train on")
    train, assigned = corpus.splits["train"], cross_validation_folds(corpus, folds)
    held_out = np.isin(assigned, which)
    splits = {"train": train.select(np.flatnonzero(~held_out)), "test": train.select(np.flatnonzero(held_out))}
    return replace(corpus, splits=splits)


def bootstrap_groups(corpus: Corpus, seed: int) -> Corpus:
    """Return the corpus with a bootstrap sample of its training rows, for bagging (Breiman 1996).

    Groups are drawn with replacement, as many as there are. Each draw adds all rows of the group.
    """
    train = corpus.splits["train"]
    groups = np.asarray(train["group"] if "group" in train.column_names else train["id"])
    names, of_row = np.unique(groups, return_inverse=True)
    times = np.bincount(np.random.default_rng(seed).integers(len(names), size=len(names)), minlength=len(names))
    return corpus.with_splits(train=train.select(np.repeat(np.arange(len(groups)), times[of_row])))


def check_trainable(corpus: Corpus) -> None:
    """Check that a classifier can be trained on the training split, and log labels without training rows.

    Raises:
        InputError: if there is no labelled training split with at least two classes.
    """
    if "train" not in corpus.splits:
        raise InputError(f"{corpus.source}: no train split; name it with --train_file or --train_split_name")
    if not corpus.is_labelled("train"):
        raise InputError(f"{corpus.source}: the train split has no labels; name their column with --label_column_name")
    counts = corpus.class_counts("train")
    present = [name for name in corpus.label_names if counts[name]]
    if len(present) < 2:
        raise InputError(
            f"{corpus.source}: the train split has one class only ({', '.join(present) or 'none'}); want at least two"
        )
    for name in corpus.label_names:
        if not counts[name]:
            logger.warning(f"{corpus.source}: no training row has the label {name!r}; it cannot be learnt")


def limit_rows(corpus: Corpus, train: int | None, validation: int | None, test: int | None) -> Corpus:
    """Return the corpus with only the first rows of each split, up to the given numbers; `None` keeps all rows.

    Raises:
        InputError: if a number is below 1.
    """
    for split, limit in (("train", train), ("validation", validation), ("test", test)):
        if limit is not None and limit < 1:
            raise InputError(f"the sample limit of {split} is {limit}; want at least 1")
        if limit is not None and split in corpus.splits:
            rows = corpus.splits[split]
            corpus = corpus.with_splits(**{split: rows.select(range(min(limit, len(rows))))})
    return corpus
