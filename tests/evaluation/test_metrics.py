import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from trainer_ext.evaluation.metrics import SEVEN_FIGURES, EmotionMetric

NAMES = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
classes = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


def official_scores(gold: list[int], predicted: list[int]) -> dict[str, float]:
    """The shared task's arithmetic as its description gives it, written out by hand."""
    labels = sorted(set(gold) | set(predicted))
    per_class = []
    for label in labels:
        tp = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        fp = sum(p == label != g for g, p in zip(gold, predicted, strict=True))
        fn = sum(g == label != p for g, p in zip(gold, predicted, strict=True))
        recall = tp / (tp + fn) if tp + fn else 0.0
        precision = tp / (tp + fp) if tp + fp else 1.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        per_class.append((precision, recall, f1))
    precision, recall, f1 = (sum(values) / len(labels) for values in zip(*per_class, strict=True))
    micro = sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)
    return {"precision": precision, "recall": recall, "f1": f1, "micro": micro}


@settings(max_examples=60, deadline=None)
@given(classes)
def test_figures_are_those_of_the_official_scorer(pairs):
    gold, predicted = map(list, zip(*pairs, strict=True))
    scores = EmotionMetric(NAMES).compute(predictions=predicted, references=gold)
    official = official_scores(gold, predicted)
    assert scores["macro_f1"] == pytest.approx(official["f1"])
    assert scores["macro_recall"] == pytest.approx(official["recall"])
    assert scores["official_macro_precision"] == pytest.approx(official["precision"])
    for figure in ("micro_f1", "micro_precision", "micro_recall", "accuracy"):
        assert scores[figure] == pytest.approx(official["micro"])
    assert scores["macro_precision"] == pytest.approx(
        precision_score(gold, predicted, average="macro", zero_division=0)
    )


def test_a_class_never_predicted_counts_only_in_the_official_precision():
    scores = EmotionMetric(NAMES).compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 3])
    assert scores["macro_precision"] == pytest.approx((0.75 + 0) / 2)
    assert scores["official_macro_precision"] == pytest.approx((0.75 + 1) / 2)
    assert scores["f1_joy"] == scores["precision_joy"] == scores["recall_joy"] == 0


def test_all_seven_figures_and_every_class_that_occurs():
    scores = EmotionMetric(NAMES).compute(predictions=[0, 1, 2], references=[0, 1, 1])
    assert set(SEVEN_FIGURES) <= scores.keys()
    assert {key for key in scores if key.startswith("f1_")} == {"f1_anger", "f1_disgust", "f1_fear"}


def test_several_classes_a_row():
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 2, (2, 50, 4))
    scores = EmotionMetric(NAMES[:4], multi_label=True).compute(predictions=predicted, references=gold)
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert scores["micro_recall"] == pytest.approx(recall_score(gold, predicted, average="micro"))
    assert scores["accuracy"] == pytest.approx((gold == predicted).all(1).mean())
