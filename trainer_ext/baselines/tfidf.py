"""TF-IDF and logistic regression, the baseline that a fine-tuned encoder has to beat."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm.auto import tqdm

from ..data.corpus import Corpus
from ..errors import InputError
from ..evaluation.metrics import EmotionMetric
from ..evaluation.predictions import evaluated, prefix_of


def fit_tfidf(texts: Sequence[str], classes: np.ndarray, groups: Sequence[str] | None, seed: int) -> Pipeline:
    """Return a fitted classifier on word 1- and 2-grams, with sublinear counts and balanced classes.

    The regularisation is chosen by macro F1 in 4-fold cross-validation.

    Args:
        texts: Training texts.
        classes: Class ids `(rows,)`.
        groups: Writers, kept together in a fold. `None` if all rows are independent.

    Returns:
        A scikit-learn pipeline from texts to class ids.

    Raises:
        InputError: if a class has fewer rows than there are folds.
    """
    return fit_logistic(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        [0.3, 1, 3, 10, 30],
        texts,
        classes,
        groups,
        seed,
    )


def fit_logistic(
    features: BaseEstimator,
    regularisations: Sequence[float],
    inputs: Sequence[Any],
    classes: np.ndarray,
    groups: Sequence[str] | None,
    seed: int,
) -> Pipeline:
    """Return a fitted logistic regression with balanced classes on the features of the inputs; see [`fit_tfidf`].

    Args:
        features: A scikit-learn transformer from the inputs to features.
        regularisations: Values of scikit-learn's `C` to choose from.
    """
    model = make_pipeline(features, LogisticRegression(class_weight="balanced", max_iter=2000))
    if (fewest := np.bincount(classes)[np.unique(classes)].min()) < 4:
        raise InputError(f"the regularisation is chosen in 4 folds; a class has {fewest} training rows only")
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"logisticregression__C": regularisations}, scoring="f1_macro", cv=folds)
    return search.fit(inputs, classes, groups=np.arange(len(inputs)) if groups is None else groups).best_estimator_


def held_out_probabilities(
    inputs: np.ndarray,
    classes: np.ndarray,
    groups: Sequence[str] | None,
    folds: np.ndarray,
    labels: int,
    seed: int,
    fit: Callable[..., Pipeline] = fit_tfidf,
) -> np.ndarray:
    """Return probabilities `(rows, labels)`, each row's from a model fitted on the other folds.

    Args:
        inputs: Texts, as an array of `object`, or other inputs that `fit` takes, one per row.
        classes, groups, seed: As in [`fit_tfidf`].
        folds: `(rows,)`, the fold of each row.
        labels: Number of labels. A label without training rows in the other folds gets probability 0.
        fit: [`fit_tfidf`], or a function with the same arguments.

    Raises:
        InputError: as [`fit_tfidf`].
    """
    groups = None if groups is None else np.asarray(groups)
    found = np.zeros((len(inputs), labels))
    for fold in tqdm(np.unique(folds), desc="logistic regression", unit="fold"):
        held_out = folds == fold
        of_train = None if groups is None else groups[~held_out]
        model = fit(inputs[~held_out], classes[~held_out], of_train, seed)
        found[np.ix_(held_out, model.classes_)] = model.predict_proba(inputs[held_out])
    return found


def tfidf_figures(corpus: Corpus, seed: int) -> dict[str, float]:
    """Train on the training rows, and return the figures (`eval_tfidf_macro_f1`, ...) of each labelled split."""
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else None
    model = fit_tfidf(train["text"], corpus.classes("train"), groups, seed)
    metric, figures = EmotionMetric(corpus.label_names), {}
    for split in filter(corpus.is_labelled, evaluated(corpus)):
        predicted = model.predict(corpus.splits[split]["text"])
        scores = metric.compute(predictions=predicted, references=corpus.classes(split))
        figures |= {f"{prefix_of(split)}_tfidf_{name}": value for name, value in scores.items()}
    return figures
