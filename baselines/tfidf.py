"""TF-IDF and logistic regression: what a fine-tuned encoder has to beat."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

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
