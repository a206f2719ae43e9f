"""Temperature, thresholds and "not sure", fitted on validation rows and measured on others."""

import logging

import numpy as np
import pytest
from datasets import Dataset

from trainer_ext.data.corpus import Corpus
from trainer_ext.evaluation.calibration import apply_temperature, fit_temperature, negative_log_likelihood
from trainer_ext.evaluation.decisions import decide, to_probabilities
from trainer_ext.evaluation.thresholds import (
    FEWEST_ANSWERS,
    abstention_threshold,
    accuracy_by_coverage,
    fit_thresholds,
)
from trainer_ext.evaluation.validation_fit import fit_on_validation

NAMES = ["anger", "fear", "joy"]


def single(rows: int, seed: int, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of a classifier that is `sharpness` times too sure, and the gold classes drawn from its belief."""
    rng = np.random.default_rng(seed)
    belief = rng.normal(size=(rows, len(NAMES)))
    gold = np.array([rng.choice(len(NAMES), p=p) for p in to_probabilities(belief, False)])
    return belief * sharpness, gold


def several(rows: int, seed: int, sharpness: float = 3.0, shift: float = -1.5) -> tuple[np.ndarray, np.ndarray]:
    """The same with several labels per row, all of them given too little probability."""
    rng = np.random.default_rng(seed)
    belief = rng.normal(size=(rows, len(NAMES)))
    return belief * sharpness + shift, (rng.random(belief.shape) < to_probabilities(belief, True)).astype(int)


def corpus_of(multi_label: bool, **gold: np.ndarray) -> Corpus:
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    splits = {}
    for split, labels in gold.items():
        rows = {"id": [f"{split} {i}" for i in range(len(labels))], "text": [""] * len(labels)}
        splits[split] = Dataset.from_dict(rows | {"labels": labels.astype(float if multi_label else int).tolist()})
    return Corpus(splits, NAMES, kind, "made up")


@pytest.mark.parametrize("made", [single, several])
def test_a_temperature_is_found_again_and_lowers_the_likelihoods_loss_on_other_rows(made):
    multi_label = made is several
    options = {"shift": 0.0} if multi_label else {}
    logits, gold = made(2000, 0, **options)
    temperature = fit_temperature(to_probabilities(logits, multi_label), gold)
    assert temperature == pytest.approx(3, rel=0.1)
    logits, gold = made(500, 1, **options)
    raw = to_probabilities(logits, multi_label)
    cooled = apply_temperature(raw, temperature, multi_label)
    assert negative_log_likelihood(cooled, gold) < negative_log_likelihood(raw, gold)
    assert np.allclose(cooled, to_probabilities(logits / temperature, multi_label), atol=1e-9)


def test_each_threshold_has_the_highest_f1_of_its_label():
    logits, gold = several(300, 2)
    probabilities = to_probabilities(logits, True)

    def f1(label: int, threshold: float) -> float:
        predicted = probabilities[:, label] >= threshold
        return 2 * (predicted & (gold[:, label] == 1)).sum() / (predicted.sum() + gold[:, label].sum())

    for label, threshold in enumerate(fit_thresholds(probabilities, gold)):
        assert f1(label, threshold) == max(f1(label, value) for value in [0, *probabilities[:, label]])
        assert threshold not in probabilities[:, label], "halfway between two rows, not on one"


def test_rare_labels_share_a_threshold():
    """A label with a handful of rows would otherwise follow the highest of them."""
    logits, gold = several(300, 3)
    gold[:, :2] = 0
    gold[:4, 0], gold[:1, 1] = 1, 1
    first, second, third = fit_thresholds(to_probabilities(logits, True), gold)
    assert first == second != third


def test_a_label_counts_from_its_threshold_on():
    values = np.array([[0.5, 0.51, 0.3]])
    assert decide(values, True).tolist() == [[0, 1, 0]]
    assert decide(values, True, [0.5, 0.6, 0.3]).tolist() == [[1, 0, 1]]


# ---- Answering only when sure -------------------------------------------------------------------------------------
def test_the_smallest_probability_that_reaches_an_accuracy():
    """Against every threshold that there is."""
    logits, gold = single(400, 4)
    probabilities = to_probabilities(logits, False)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == gold
    found = abstention_threshold(probabilities, gold, 0.7)
    assert right[confidence >= found].mean() >= 0.7
    lower = [value for value in confidence if value < found and (confidence >= value).sum() >= FEWEST_ANSWERS]
    assert lower
    assert all(right[confidence >= value].mean() < 0.7 for value in lower)
    assert abstention_threshold(probabilities, gold, right.mean()) == 0
    assert abstention_threshold(probabilities, (gold + 1) % 3, 0.99) is None


def test_the_curve_ends_at_the_accuracy_on_all_rows():
    logits, gold = single(400, 5)
    probabilities = to_probabilities(logits, False)
    points = accuracy_by_coverage(probabilities, gold)
    assert points[-1]["coverage"] == 1
    assert points[-1]["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == gold).mean())
    for point in points:
        answered = probabilities.max(axis=1) >= point["abstain_below"]
        assert answered.mean() == pytest.approx(point["coverage"])
    equal = accuracy_by_coverage(np.full((30, 3), 1 / 3), gold[:30])
    assert [point["coverage"] for point in equal] == [1], "rows of equal confidence are answered together"


def test_a_wanted_accuracy_is_told_with_its_coverage(caplog):
    (logits, gold), (more, test) = single(600, 6), single(400, 7)
    probabilities = {"validation": to_probabilities(logits, False), "test": to_probabilities(more, False)}
    with caplog.at_level(logging.INFO):
        fit, at_temperature = fit_on_validation(corpus_of(False, validation=gold, test=test), probabilities, 0.75)
    assert fit.settings().keys() == {"calibration_temperature", "abstain_below"}
    answered = at_temperature["test"].max(axis=1) >= fit.abstain_below
    assert fit.figures["test_coverage"] == answered.mean()
    right = at_temperature["test"].argmax(axis=1) == test
    assert fit.figures["test_answered_accuracy"] == right[answered].mean() > right.mean()
    assert f'"not sure" below {fit.abstain_below:.3f}; validation: ' in caplog.text
    assert fit.figures["eval_calibrated_nll"] < fit.figures["eval_nll"]
    assert [row["accuracy"] for row in fit.coverage["accuracies"]] == [0.8, 0.9, 0.95]


def test_a_wanted_accuracy_that_cannot_be_reached_is_told(caplog):
    logits, gold = single(300, 8)
    shuffled = np.random.default_rng(0).permutation(gold)
    fit, _ = fit_on_validation(
        corpus_of(False, validation=shuffled), {"validation": to_probabilities(logits, False)}, 1
    )
    assert fit.abstain_below is None
    assert "--target_accuracy 1: cannot be reached on validation, where at best" in caplog.text


def test_thresholds_raise_macro_f1_where_labels_get_too_little_probability():
    (logits, gold), (more, test) = several(500, 9), several(500, 10)
    corpus = corpus_of(True, validation=gold, test=test)
    probabilities = {"validation": to_probabilities(logits, True), "test": to_probabilities(more, True)}
    fit, at_temperature = fit_on_validation(corpus, probabilities)
    predicted = decide(at_temperature["test"], True, fit.thresholds)
    hits, both = (predicted * test).sum(axis=0), predicted.sum(axis=0) + test.sum(axis=0)
    assert fit.figures["test_tuned_macro_f1"] == pytest.approx((2 * hits / both).mean())
    half = decide(probabilities["test"], True)
    at_half = (2 * (half * test).sum(axis=0) / (half.sum(axis=0) + test.sum(axis=0))).mean()
    assert fit.figures["test_tuned_macro_f1"] > at_half + 0.05
    assert fit.figures["eval_tuned_macro_f1_low"] < fit.figures["eval_tuned_macro_f1"]


def test_a_handful_of_rows_or_errors_is_not_fitted_on(caplog):
    logits, gold = single(49, 11)
    corpus = corpus_of(False, validation=gold)
    fit, same = fit_on_validation(corpus, {"validation": to_probabilities(logits, False)}, 0.9)
    assert not fit.settings()
    assert same["validation"].tolist() == to_probabilities(logits, False).tolist()
    said = "--target_accuracy 0.9: 49 validation rows are too few to calibrate on; want 50 or more, of 5 groups"
    assert said in caplog.text
    perfect = np.random.default_rng(0).dirichlet([0.2] * 3, size=200)
    fit, _ = fit_on_validation(corpus_of(False, validation=perfect.argmax(axis=1)), {"validation": perfect})
    assert fit.temperature is None, "a model that is always right would become certain"
