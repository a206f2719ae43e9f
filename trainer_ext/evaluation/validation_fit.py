"""Fit on the validation rows what a trained classifier needs besides weights: temperature, thresholds, when to abstain.

Figures about the validation rows themselves are cross-fitted: each row's come from what was fitted on other rows.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.corpus import Corpus
from .decisions import (
    abstention_threshold,
    accuracy_by_coverage,
    apply_temperature,
    calibration,
    decide,
    fit_temperature,
    fit_thresholds,
    negative_log_likelihood,
)
from .fusion import cross_fitted
from .metrics import EmotionMetric
from .predictions import interval, prefix_of

logger = logging.getLogger(__name__)
# Nothing is fitted on fewer rows. A temperature needs wrong decisions, too: for a model that is always right, the best
# one is as low as it may be.
FEWEST_ROWS, FEWEST_WRONG = 50, 5
FOLDS = 5
# The accuracies in the table of the card.
ACCURACIES = (0.8, 0.9, 0.95)


@dataclass
class ValidationFit:
    """What was fitted on the validation rows of a run; all `None` and empty if nothing was.

    Attributes:
        temperature, thresholds, abstain_below: As `calibration_temperature`, `label_thresholds` and `abstain_below` of
            `EmoDebertaConfig`.
        figures: By name, for all_results.json.
        reliability: If a row has one label: [`calibration`] `before` and `after` the temperature.
        coverage: If a row has one label: accuracy against coverage, the content of coverage.json.
    """

    temperature: float | None = None
    thresholds: list[float] | None = None
    abstain_below: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    reliability: dict[str, dict] = field(default_factory=dict)
    coverage: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return what was fitted by the names that it has in `EmoDebertaConfig`."""
        fitted = {
            "calibration_temperature": self.temperature,
            "label_thresholds": self.thresholds,
            "abstain_below": self.abstain_below,
        }
        return {name: value for name, value in fitted.items() if value is not None}


def fit_on_validation(
    corpus: Corpus, probabilities: dict[str, np.ndarray], target_accuracy: float | None = None
) -> tuple[ValidationFit, dict[str, np.ndarray]]:
    """Fit a temperature and, if a row may have several labels, thresholds; else also when to give no answer.

    Args:
        corpus: A corpus with labelled validation rows, on which the model was not trained.
        probabilities: The model's, by split, `(rows, labels)`.
        target_accuracy: The share of answers that should be right; sets `abstain_below`.

    Returns:
        What was fitted, and the probabilities at the temperature.
    """
    raw, gold = probabilities["validation"], corpus.classes("validation")
    several, fit = corpus.multi_label, ValidationFit()
    folds = _folds(corpus)
    if len(gold) < FEWEST_ROWS or len(set(folds.tolist())) < FOLDS:
        wanted = f"{FEWEST_ROWS} or more, of {FOLDS} groups or more"
        _tell(target_accuracy, f"{len(gold)} validation rows are too few to calibrate on; want {wanted}")
        return fit, probabilities
    wrong = int((decide(raw, several) != gold).sum())
    if wrong < FEWEST_WRONG:
        logger.info(f"no temperature: {wrong} wrong decisions on validation are too few to fit one on")
    elif _fit_temperature(fit, raw, gold, folds):
        probabilities = {
            split: apply_temperature(values, fit.temperature, several) for split, values in probabilities.items()
        }
    if several:
        _fit_thresholds(fit, corpus, probabilities, folds)
    else:
        _fit_abstention(fit, corpus, probabilities, folds, target_accuracy)
    return fit, probabilities


def _fit_temperature(fit: ValidationFit, raw: np.ndarray, gold: np.ndarray, folds: np.ndarray) -> bool:
    """Add a temperature if one lowers the loss on rows that it was not fitted on, and return whether it does."""
    several = gold.ndim == 2
    cooled = cross_fitted(
        lambda rows: fit_temperature(raw[rows], gold[rows]),
        lambda temperature, rows: apply_temperature(raw[rows], temperature, several),
        folds,
    )
    before, after = (negative_log_likelihood(values, gold) for values in (raw, cooled))
    told = f"negative log-likelihood {before:.3f} without, {after:.3f} with one that was fitted on other rows"
    if after >= before:
        logger.info(f"no temperature, because none helps; validation's {told}")
        return False
    fit.temperature = fit_temperature(raw, gold)
    fit.figures |= {"calibration_temperature": fit.temperature, "eval_nll": before, "eval_calibrated_nll": after}
    if not several:
        fit.reliability = {"before": calibration(raw, gold), "after": calibration(cooled, gold)}
    logger.info(f"temperature {fit.temperature:.2f}; validation's {told}")
    return True


def _folds(corpus: Corpus) -> np.ndarray:
    """Return the fold of each validation row `(rows,)`; rows of one group share a fold."""
    rows = corpus.splits["validation"]
    _, of_row = np.unique(rows["group"] if "group" in rows.column_names else rows["id"], return_inverse=True)
    return np.random.default_rng(0).permutation(of_row.max() + 1)[of_row] % FOLDS


def _tell(target_accuracy: float | None, problem: str) -> None:
    if target_accuracy is None:
        logger.info(problem)
    else:
        logger.warning(f"--target_accuracy {target_accuracy:g}: {problem}; abstain_below is not set")


# ---- Several labels per row ---------------------------------------------------------------------------------------
def _fit_thresholds(
    fit: ValidationFit, corpus: Corpus, probabilities: dict[str, np.ndarray], folds: np.ndarray
) -> None:
    """Add thresholds, and the figures at them of every labelled split, as `eval_tuned_macro_f1` and so on."""
    here, gold = probabilities["validation"], corpus.classes("validation")
    fit.thresholds = fit_thresholds(here, gold).tolist()
    held_out = cross_fitted(
        lambda rows: fit_thresholds(here[rows], gold[rows]),
        lambda thresholds, rows: decide(here[rows], True, thresholds),
        folds,
    )
    for split, values in probabilities.items():
        if corpus.is_labelled(split):
            predicted = held_out if split == "validation" else decide(values, True, fit.thresholds)
            fit.figures |= tuned_figures(corpus, split, predicted)


def tuned_figures(corpus: Corpus, split: str, predicted: np.ndarray) -> dict[str, float]:
    """Return the figures of a split's decisions at tuned thresholds, by names such as `test_tuned_macro_f1`.

    Args:
        predicted: 0/1 `(rows, labels)`.
    """
    prefix = prefix_of(split)
    metric = EmotionMetric(corpus.label_names, multi_label=True)
    found = metric.compute(predictions=predicted, references=corpus.classes(split))
    found |= {key.removeprefix(f"{prefix}_"): value for key, value in interval(corpus, split, predicted).items()}
    return {f"{prefix}_tuned_{name}": value for name, value in found.items()}


# ---- One label per row --------------------------------------------------------------------------------------------
def _fit_abstention(
    fit: ValidationFit,
    corpus: Corpus,
    probabilities: dict[str, np.ndarray],
    folds: np.ndarray,
    target_accuracy: float | None,
) -> None:
    """Add accuracy against coverage, and the threshold for the target accuracy."""
    here, gold = probabilities["validation"], corpus.classes("validation")
    fit.coverage = {
        "split": "validation",
        "rows": len(gold),
        "points": accuracy_by_coverage(here, gold),
        "accuracies": [_at(accuracy, corpus, probabilities, folds) for accuracy in ACCURACIES],
    }
    if target_accuracy is None:
        return
    fit.coverage["target"] = found = _at(target_accuracy, corpus, probabilities, folds)
    fit.abstain_below = found["abstain_below"]
    if fit.abstain_below is None:
        best = max(point["accuracy"] for point in fit.coverage["points"])
        _tell(target_accuracy, f"cannot be reached on validation, where at best {best:.1%} of the answers are right")
        return
    fit.figures["abstain_below"] = fit.abstain_below
    for split, measured in found["measured"].items():
        fit.figures |= {f"{prefix_of(split)}_{name}": value for name, value in measured.items() if value is not None}
    told = "; ".join(f"{split}: {in_words(measured)}" for split, measured in found["measured"].items())
    logger.info(f'--target_accuracy {target_accuracy:g}: "not sure" below {fit.abstain_below:.3f}; {told}')


def in_words(measured: dict[str, float | None]) -> str:
    """Return how many rows are answered, and how many of the answers are right."""
    if measured["answered_accuracy"] is None:
        return "no row is answered"
    return f"{measured['coverage']:.1%} answered, {measured['answered_accuracy']:.1%} of them right"


def _at(accuracy: float, corpus: Corpus, probabilities: dict[str, np.ndarray], folds: np.ndarray) -> dict[str, Any]:
    """Return the threshold for an accuracy, and what it gives on each labelled split, as JSON values."""
    here, gold = probabilities["validation"], corpus.classes("validation")
    threshold = abstention_threshold(here, gold, accuracy)
    found: dict[str, Any] = {"accuracy": accuracy, "abstain_below": threshold, "measured": {}}
    if threshold is None:
        return found

    def answers(below: float | None, values: np.ndarray) -> np.ndarray:
        return values.max(axis=1) >= (np.inf if below is None else below)

    for split, values in probabilities.items():
        if not corpus.is_labelled(split):
            continue
        answered = answers(threshold, values)
        if split == "validation":
            answered = cross_fitted(
                lambda rows: abstention_threshold(here[rows], gold[rows], accuracy),
                lambda below, rows: answers(below, here[rows]),
                folds,
            )
        right = values.argmax(axis=1) == corpus.classes(split)
        found["measured"][split] = {
            "coverage": float(answered.mean()),
            "answered_accuracy": float(right[answered].mean()) if answered.any() else None,
        }
    return found
