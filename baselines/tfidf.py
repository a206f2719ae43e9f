"""TF-IDF and logistic regression: what a fine-tuned encoder has to beat."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm.auto import tqdm

from trainer_ext.errors import InputError


def fit_tfidf(texts: Sequence[str], classes: np.ndarray, groups: Sequence[str] | None, seed: int) -> Pipeline:
    """Word 1- and 2-grams, sublinear counts, balanced classes; the regularisation by grouped 4-fold macro F1.

    Args:
        texts, classes: Training rows; class ids `(rows,)`.
        groups: Writers, kept together in a fold; rows stand alone if not given.

    Returns:
        A fitted scikit-learn pipeline from texts to class ids.

    Raises:
        InputError: if a class has fewer rows than there are folds.
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )
    if (fewest := np.bincount(classes)[np.unique(classes)].min()) < 4:
        raise InputError(f"TF-IDF's settings are chosen in 4 folds; a class has {fewest} training rows only")
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"logisticregression__C": [0.3, 1, 3, 10, 30]}, scoring="f1_macro", cv=folds)
    return search.fit(texts, classes, groups=np.arange(len(texts)) if groups is None else groups).best_estimator_


def held_out_probabilities(
    texts: Sequence[str],
    classes: np.ndarray,
    groups: Sequence[str] | None,
    folds: np.ndarray,
    labels: int,
    seed: int,
) -> np.ndarray:
    """`(rows, labels)`: what [`fit_tfidf`] of the other folds says of each row.

    Args:
        texts, classes, groups, seed: As for [`fit_tfidf`].
        folds: `(rows,)`, the fold of each row.
        labels: How many there are; one that no training row of a fold has gets 0 there.

    Raises:
        InputError: as [`fit_tfidf`].
    """
    texts, groups = np.asarray(texts, dtype=object), None if groups is None else np.asarray(groups)
    found = np.zeros((len(texts), labels))
    for fold in tqdm(np.unique(folds), desc="TF-IDF", unit="fold"):
        held_out = folds == fold
        of_train = None if groups is None else groups[~held_out]
        model = fit_tfidf(texts[~held_out], classes[~held_out], of_train, seed)
        found[np.ix_(held_out, model.classes_)] = model.predict_proba(texts[held_out])
    return found
