"""Predict the held-out rows of a corpus within minutes, with two small models, for run_review.py.

One is a logistic regression on the frozen text vectors of a checkpoint, from four of its layers, the other one on
character n-grams. They make different mistakes, so their mean finds more label errors than either model alone
(results/review.json). Lower layers help: the last one of a model of sentence similarity has lost some of the tone.
A second checkpoint, a model of another corpus' emotions, or a second round without the most suspect rows find hardly
more.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from ..data.corpus import Corpus
from ..data.emotion_corpora import text_groups
from ..errors import InputError, first_line
from ..files import shown
from ..flag_parser import MINILM, MPNET
from ..training.checkpoint_source import resolve_checkpoint

logger = logging.getLogger(__name__)
# Values of scikit-learn's `C` for each model; the one with the lowest held-out log loss is taken. On character n-grams
# it makes little difference.
_OF_VECTORS = (0.0001, 0.0003, 0.001, 0.003)
_OF_CHARACTERS = (3.0,)
_FOLDS = 10
_FEW_ROWS = 200  # with fewer, n-grams of one text count, too


def encoder_at_hand() -> str:
    """Return MPNet, whose vectors find the most label errors, or MiniLM if MPNet cannot be had, and log why."""
    try:
        resolve_checkpoint(MPNET)
    except InputError as error:
        logger.warning(f"{first_line(error)}; {shown(MINILM)} is used instead, and finds fewer label errors")
        return MINILM
    return MPNET


def quick_predictions(
    corpus: Corpus, folds: int | None, vectors_of: Callable[[list[str]], np.ndarray]
) -> list[np.ndarray]:
    """Return each model's probabilities for the training rows, `(rows, labels)`, every row's from models that saw
    neither it nor another row of its group or with its text.

    Args:
        corpus: Its `train` split has labels.
        folds: Number of folds; by default 10, or fewer for fewer rows.
        vectors_of: Returns the text vectors of the texts, `(texts, features)`.

    Raises:
        InputError: if there are too few rows for the folds.
    """
    rows, classes = corpus.splits["train"], corpus.classes("train")
    texts = np.array(rows["text"][:], dtype=object)
    groups = rows["group"] if "group" in rows.column_names else text_groups(texts)
    of_row = quick_group_folds(classes, groups, folds)
    vectors = vectors_of(texts.tolist())
    characters = {
        "analyzer": "char_wb",
        "ngram_range": (2, 5),
        "sublinear_tf": True,
        "min_df": 1 if len(texts) < _FEW_ROWS else 2,
    }
    labels = len(corpus.label_names)
    return [
        _best(StandardScaler, _OF_VECTORS, vectors, classes, of_row, labels),
        _best(lambda: TfidfVectorizer(**characters), _OF_CHARACTERS, texts, classes, of_row, labels),
    ]


def quick_group_folds(classes: np.ndarray, groups: Sequence[str], folds: int | None) -> np.ndarray:
    """Return the fold of each row, `(rows,)`, with the rows of a group in one fold and similar shares of classes.

    Unlike [`trainer_ext.data.folds.group_folds`], it takes no time for thousands of groups.

    Args:
        classes: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: Of each row; for example of texts that are copies.
        folds: Number of folds; by default 10, or fewer for fewer rows.

    Raises:
        InputError: if there are too few groups.
    """
    _, first, of_row = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    of_group = (classes.argmax(axis=1) if classes.ndim == 2 else classes)[first]
    counts = np.bincount(of_group)
    if classes.ndim == 1 and (counts > 1).sum() < 2:
        raise InputError("too few rows to predict from one another; want two labels with two different texts or more")
    most = int(counts.max())
    folds = min(_FOLDS, most) if folds is None else folds
    if not 2 <= folds <= most:
        raise InputError(f"--cv_folds is {folds}; want 2 to {most}, the texts (or groups) with the most frequent label")
    assigned = np.zeros(len(first), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
        splits = StratifiedKFold(folds, shuffle=True, random_state=1).split(of_group, of_group)
        for fold, (_, held_out) in enumerate(splits):
            assigned[held_out] = fold
    return assigned[of_row]


def _best(
    features: Callable,
    strengths: Sequence[float],
    inputs: np.ndarray,
    classes: np.ndarray,
    folds: np.ndarray,
    labels: int,
) -> np.ndarray:
    """Return the held-out probabilities `(rows, labels)` of the regularisation with the lowest held-out log loss.

    A label without training rows in the other folds gets probability 0.
    """
    found = np.zeros((len(strengths), len(inputs), labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label that no row of a fold has
        for fold in np.unique(folds):
            held_out = folds == fold
            extractor = features().fit(inputs[~held_out])
            seen, unseen = extractor.transform(inputs[~held_out]), extractor.transform(inputs[held_out])
            for index, strength in enumerate(strengths):
                regression = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
                model = regression if classes.ndim == 1 else OneVsRestClassifier(regression)
                model.fit(seen, classes[~held_out])
                found[index][np.ix_(held_out, model.classes_)] = model.predict_proba(unseen)
    return min(found, key=lambda probabilities: _loss(classes, probabilities))


def _loss(classes: np.ndarray, probabilities: np.ndarray) -> float:
    clipped = probabilities.clip(1e-6, 1 - 1e-6)
    if classes.ndim == 2:
        return float(-(classes * np.log(clipped) + (1 - classes) * np.log(1 - clipped)).mean())
    return log_loss(classes, clipped / clipped.sum(axis=1, keepdims=True), labels=range(probabilities.shape[1]))
