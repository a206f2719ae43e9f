"""Figures where the truth is known, what is fitted on validation rows, and tables and plots with any names."""

import csv
import io
import json
import logging
import tracemalloc
import warnings

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager, image, rc_context
from matplotlib.font_manager import FontProperties
from sklearn.metrics import f1_score, precision_score, recall_score

from trainer_ext.data.corpus import Corpus
from trainer_ext.errors import InputError
from trainer_ext.evaluation import comparison, plots
from trainer_ext.evaluation.comparison import (
    GroupCounts,
    bootstrap_macro_f1,
    compare,
    holm,
    paired_difference,
    randomization_test,
)
from trainer_ext.evaluation.decisions import (
    FEWEST_ANSWERS,
    abstention_threshold,
    accuracy_by_coverage,
    apply_temperature,
    decide,
    fit_temperature,
    fit_thresholds,
    negative_log_likelihood,
    to_probabilities,
)
from trainer_ext.evaluation.fusion import compare_fusions
from trainer_ext.evaluation.metrics import SEVEN_FIGURES, EmotionMetric
from trainer_ext.evaluation.plots import (
    drawn_as_text,
    plot_comparison,
    plot_confusion_matrix,
    plot_reliability,
    plot_search,
)
from trainer_ext.evaluation.predictions import SYSTEMS, print_results, read_predictions, write_rows
from trainer_ext.evaluation.validation_fit import fit_on_validation
from trainer_ext.runs.trial import convert_predictions
from trainer_ext.runs.trial_archive import (
    ARCHIVE,
    PROBABILITIES,
    RECORD,
    TrialArchive,
    read_probabilities,
    write_archive,
)
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import Scores
from trainer_ext.scoring.text_stream import open_source

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


# ---- Intervals and tests ---------------------------------------------------------------------------------------------
# As in WASSA 2022: 372 writers of 5 essays, these shares of the classes, and two essays of a writer share their label
# so much oftener than chance that the intraclass correlation is .08 = 1 / (1 + CONCENTRATION).
WRITERS, ESSAYS = 372, 5
SHARES = np.array([349, 149, 194, 82, 275, 647, 164]) / 1860
CONCENTRATION = 11.5
SIMULATIONS = 1000


def simulate(rng, writers: int, better: float, systems: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold and the predictions of several systems, the last of them better by `better` on the logit scale.

    Rows of a writer are alike in label and in how hard they are; systems err on the same rows more often than not.
    """
    mixes = rng.dirichlet(CONCENTRATION * SHARES, size=writers).repeat(ESSAYS, axis=0)
    gold = (rng.random((len(mixes), 1)) > mixes.cumsum(axis=1)).sum(axis=1).clip(max=6)
    ease = np.array([0.6, 0.0, 0.7, 0.5, 0.2, 0.9, 0.1])[gold]
    ease = ease + rng.normal(0, 0.7, writers).repeat(ESSAYS) + rng.normal(0, 1.5, len(gold))
    shift = np.zeros((systems, 1))
    shift[-1] = better
    right = rng.random((systems, len(gold))) < 1 / (1 + np.exp(-(ease + shift)))
    wrong = rng.choice(7, size=(systems, len(gold)), p=SHARES)
    predicted = np.where(right, gold, np.where(wrong == gold, (gold + 1) % 7, wrong))
    return gold, predicted, np.arange(writers).repeat(ESSAYS)


def counts_of(gold, predicted, writers) -> list[GroupCounts]:
    return [GroupCounts(gold, of_system[None], writers, 7) for of_system in predicted]


def test_intervals_cover_a_known_difference_in_95_of_100_simulations():
    gold, predicted, _ = simulate(np.random.default_rng(0), 60_000, 0.3, 2)
    true = [f1_score(gold, of_system, average="macro") for of_system in predicted]
    rng = np.random.default_rng(1)
    single = paired = 0
    for _ in range(SIMULATIONS):
        gold, predicted, writers = simulate(rng, WRITERS, 0.3, 2)
        low, high = bootstrap_macro_f1(gold, predicted[0], writers)
        single += low <= true[0] <= high
        _, (low, high) = paired_difference(*counts_of(gold, predicted, writers))
        paired += low <= true[1] - true[0] <= high
    assert 0.93 <= single / SIMULATIONS <= 0.97
    assert 0.93 <= paired / SIMULATIONS <= 0.97


def test_the_corrected_test_rejects_true_nulls_in_at_most_5_of_100_simulations():
    """Three variants of the same quality as the first: how often any of them passes for different."""
    rng = np.random.default_rng(2)
    false_alarms = 0
    for _ in range(SIMULATIONS):
        first, *others = counts_of(*simulate(rng, WRITERS, 0.0, 4))
        false_alarms += min(holm([randomization_test(first, other, 1000) for other in others])) < 0.05
    assert false_alarms / SIMULATIONS <= 0.05


def test_a_real_difference_is_found():
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(40):
        first, second = counts_of(*simulate(rng, WRITERS, 0.5, 2))
        found += randomization_test(first, second, 1000) < 0.05
    assert found >= 36


def test_seeds_are_averaged_and_stay_with_their_writer():
    gold, predicted, writers = simulate(np.random.default_rng(4), WRITERS, 0.4, 4)
    first, second = (GroupCounts(gold, predicted[pair], writers, 7) for pair in (slice(0, 2), slice(2, 4)))
    scores = [f1_score(gold, of_system, average="macro") for of_system in predicted]
    found, (low, high) = paired_difference(first, second)
    assert found == pytest.approx(np.mean(scores[2:]) - np.mean(scores[:2]))
    assert low < found < high
    # Two runs that are the same run tell no more than one.
    twice = [GroupCounts(gold, predicted[[index, index]], writers, 7) for index in (0, 3)]
    once = [GroupCounts(gold, predicted[[index]], writers, 7) for index in (0, 3)]
    assert np.hstack(paired_difference(*twice)) == pytest.approx(np.hstack(paired_difference(*once)))
    assert randomization_test(*twice) == randomization_test(*once)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_systems_of_different_size_are_refused():
    gold, predicted, writers = simulate(np.random.default_rng(5), 10, 0.0, 3)
    with pytest.raises(ValueError, match="numbers of runs"):
        randomization_test(GroupCounts(gold, predicted[:2], writers, 7), GroupCounts(gold, predicted[2:], writers, 7))


def test_bootstrap_of_rows_agrees_with_resampling_by_hand():
    generator = np.random.default_rng(1)
    gold = generator.integers(0, 3, 120)
    predicted = np.where(generator.random(120) < 0.7, gold, generator.integers(0, 3, 120))
    low, high = bootstrap_macro_f1(gold, predicted)
    by_hand = []
    for _ in range(1500):
        rows = generator.integers(0, 120, 120)
        by_hand.append(f1_score(gold[rows], predicted[rows], average="macro"))
    assert (low, high) == pytest.approx(np.percentile(by_hand, [2.5, 97.5]), abs=0.015)


def test_bootstrap_resamples_whole_groups():
    """Writers whose rows are all right or all wrong: as many independent facts as writers, so a wider interval."""
    generator = np.random.default_rng(2)
    writers = np.repeat(np.arange(40), 5)
    gold = generator.integers(0, 3, 200)
    right = np.repeat(generator.random(40) < 0.6, 5)
    predicted = np.where(right, gold, (gold + 1) % 3)
    rows = np.subtract(*bootstrap_macro_f1(gold, predicted)[::-1])
    groups = np.subtract(*bootstrap_macro_f1(gold, predicted, writers)[::-1])
    assert groups > 1.6 * rows


def test_bootstrap_is_reproducible_and_takes_several_classes():
    gold = np.random.default_rng(3).integers(0, 2, (60, 4))
    predicted = np.random.default_rng(4).integers(0, 2, (60, 4))
    assert bootstrap_macro_f1(gold, predicted) == bootstrap_macro_f1(gold, predicted)
    low, high = bootstrap_macro_f1(gold, predicted)
    assert low < f1_score(gold, predicted, average="macro") < high
    rare = np.zeros((20, 2), dtype=int)
    rare[0, 0] = 1  # many samples have no positive label at all
    assert bootstrap_macro_f1(rare, rare) == (0.0, 1.0)


@pytest.mark.parametrize("at_once", [2**24, 1000, 1])
def test_blocks_of_samples_give_the_figures_of_all_samples_at_once(at_once, monkeypatch):
    """To the last bit, with a shorter last block, too, and with blocks of one sample."""
    gold, predicted, writers = simulate(np.random.default_rng(6), 30, 0.1, 4)
    a, b = (GroupCounts(gold, predicted[pair], writers, 7) for pair in (slice(0, 2), slice(2, 4)))
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=comparison.SAMPLES).astype(float)
    resampled = [counts.macro_f1(drawn) for counts in (a, b)]
    stay = np.random.default_rng(0).integers(0, 2, size=(comparison.PERMUTATIONS, 30)).astype(float)
    values = [counts.values.reshape(30, -1) for counts in (a, b)]
    moved, shape = stay @ (values[1] - values[0]), a.values.shape[1:]
    swapped = comparison.mean_macro_f1(values[0].sum(axis=0) + moved, shape)
    swapped -= comparison.mean_macro_f1(values[1].sum(axis=0) - moved, shape)
    as_far = (np.abs(swapped) >= abs(b.macro_f1() - a.macro_f1())[0] - 1e-12).sum()

    monkeypatch.setattr(comparison, "_AT_ONCE", at_once)
    assert (a.resampled == resampled[0]).all()
    assert paired_difference(a, b)[1] == comparison.interval(resampled[1] - resampled[0])
    assert randomization_test(a, b) == (1 + as_far) / (1 + comparison.PERMUTATIONS)


def test_the_memory_for_samples_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(comparison, "_AT_ONCE", 2**16)
    gold, predicted, _ = simulate(np.random.default_rng(7), 2000 // ESSAYS, 0.1, 2)
    first, second = (GroupCounts(gold, of_system[None], None, 7) for of_system in predicted)
    tracemalloc.start()
    try:
        paired_difference(first, second)
        randomization_test(first, second)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(gold) > 1900
    assert most < 8e6  # all samples of all rows are 32 MB, all permutations 80 MB


# ---- Temperature, thresholds and "not sure" --------------------------------------------------------------------------
LABEL_NAMES = ["anger", "fear", "joy"]


def single(rows: int, seed: int, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of a classifier that is `sharpness` times too sure, and the gold classes drawn from its belief."""
    rng = np.random.default_rng(seed)
    belief = rng.normal(size=(rows, len(LABEL_NAMES)))
    gold = np.array([rng.choice(len(LABEL_NAMES), p=p) for p in to_probabilities(belief, False)])
    return belief * sharpness, gold


def several(rows: int, seed: int, sharpness: float = 3.0, shift: float = -1.5) -> tuple[np.ndarray, np.ndarray]:
    """The same with several labels per row, all of them given too little probability."""
    rng = np.random.default_rng(seed)
    belief = rng.normal(size=(rows, len(LABEL_NAMES)))
    return belief * sharpness + shift, (rng.random(belief.shape) < to_probabilities(belief, True)).astype(int)


def corpus_of(multi_label: bool, **gold: np.ndarray) -> Corpus:
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    splits = {}
    for split, labels in gold.items():
        rows = {"id": [f"{split} {i}" for i in range(len(labels))], "text": [""] * len(labels)}
        splits[split] = Dataset.from_dict(rows | {"labels": labels.astype(float if multi_label else int).tolist()})
    return Corpus(splits, LABEL_NAMES, kind, "made up")


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


# ---- Tables of predictions, whatever people call their labels --------------------------------------------------------
# As the columns that are not probabilities, in any of the tables; and what a table's own syntax is made of.
LABELS = [
    *("group", "id", "row", "error", "text", "split", "gold", "predicted", "trial", "variant", "seed", "fold", "label"),
    *("truncated", "disagreement", "probability_x", "a\tb", 'say "hi"', "two\nlines", "a,b", "a.b", "$_$", "日本語"),
]


def written(folder, labels=LABELS, rows=None):
    values = np.random.default_rng(0).dirichlet(np.ones(len(labels)), size=4)
    rows = rows or [("validation", f"v{i}", f"w{i % 2}", labels[i % 2], labels[0]) for i in range(4)]
    write_rows(folder, labels, rows, values, True)
    return rows, values


def test_no_label_is_taken_for_a_column_of_ours(tmp_path):
    rows, values = written(tmp_path)
    table = read_predictions(tmp_path, one_label=True)
    assert (table.rows, table.label_names) == (rows, LABELS)
    assert np.allclose(table.probabilities, values)
    header = next(csv.reader(io.StringIO((tmp_path / "predictions.tsv").read_text(), newline=""), delimiter="\t"))
    assert len(set(header)) == len(header) == 5 + len(LABELS)


def test_the_archive_of_trials_gives_them_back(tmp_path):
    _, values = written(tmp_path)
    trial = tmp_path / "trial"
    trial.mkdir()
    convert_predictions(tmp_path, trial / PROBABILITIES)
    (trial / RECORD).write_text(json.dumps({"trial": {"overrides": {}, "fold": [2, 0], "seed": 1}, "settings": {}}))
    write_archive(tmp_path / ARCHIVE, [(trial, "mean")])
    names = pyarrow.parquet.read_table(tmp_path / ARCHIVE).column_names
    assert len(set(names)) == len(names)
    restored = tmp_path / "again" / "trial"
    TrialArchive(tmp_path / ARCHIVE).restore(restored)
    ids, found, labels = read_probabilities(restored / PROBABILITIES)
    assert (ids, labels) == ({"validation": [f"v{i}" for i in range(4)]}, LABELS)
    assert np.allclose(found["validation"], values, atol=1e-7)

    # As it was written before, with bare labels for columns.
    table = pyarrow.parquet.read_table(tmp_path / ARCHIVE)
    bare = [name.removeprefix("probability_") for name in names]
    old = table.rename_columns([f"{name}?" if bare.count(name) > 1 and i > 5 else name for i, name in enumerate(bare)])
    pyarrow.parquet.write_table(old.replace_schema_metadata(table.schema.metadata), tmp_path / "old.parquet")
    TrialArchive(tmp_path / "old.parquet").restore(tmp_path / "old" / "trial")
    assert np.array_equal(read_probabilities(tmp_path / "old" / "trial" / PROBABILITIES)[1]["validation"],
                          found["validation"])  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_scores_have_a_column_for_each_label(form, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    source = open_source(str(tmp_path / "texts.txt"))
    settings = {"rows_per_shard": 2, "format": form}
    folder = ScoreFolder(tmp_path / "scores", source, {"name": "m", "version": "1"}, LABELS, settings, {})
    values = np.random.default_rng(0).dirichlet(np.ones(len(LABELS)), size=2).astype(np.float32)
    ((number, rows),) = folder.shards(0, 1)
    folder.write(number, rows, Scores(values, False, np.zeros(2, dtype=bool), None))
    (path,) = (tmp_path / "scores").glob("scores-*")
    if form == "jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    elif form == "csv":
        found = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).to_pylist()
    else:
        found = pyarrow.parquet.read_table(path).to_pylist()
    for row, of_row in zip(found, values, strict=True):
        assert [row[f"probability_{label}"] for label in LABELS] == pytest.approx(of_row.tolist())
        assert row["label"] == LABELS[of_row.argmax()]


@pytest.mark.parametrize(
    "header", [["split", "id", "group", "gold", "predicted"], ["split", "id", "gold", "predicted"]], ids=len
)
def test_files_of_before_are_read(header, tmp_path):
    """With bare labels, one of them called as a column of ours, and from before there were groups."""
    of_column = {"split": "test", "id": "1", "group": "w1", "gold": "group", "predicted": "id"}
    line = [*(of_column[name] for name in header), "0.25", "0.75"]
    with open(tmp_path / "predictions.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([[*header, "group", "id"], line])
    table = read_predictions(tmp_path, one_label=True)
    assert table.label_names == ["group", "id"]
    assert table.rows == [("test", "1", "w1" if len(header) == 5 else "", "group", "id")]
    assert table.probabilities.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("nan", "row 2, joy: 'nan'; want a probability, 0 to 1"),
        ("-1", "row 2, joy: '-1'; want a probability"),
        ("1e308", "row 2, joy: '1e308'; want a probability"),
        ("inf", "row 2, joy: 'inf'; want a probability"),
        ("", "row 2, joy: ''; want a probability"),
        ("much", "row 2, joy: 'much'; want a probability"),
        ("0.2", "row 2: its probabilities add up to 0.9; want 1"),
        ("0.3\t0.1", "row 2: 8 fields; want 7"),
    ],
)
def test_a_number_that_no_probability_can_be_is_refused(number, says, tmp_path):
    lines = ["split\tid\tgroup\tgold\tpredicted\tprobability_joy\tprobability_fear", "test\t1\t\tjoy\tjoy\t1\t0"]
    (tmp_path / "predictions.tsv").write_text("\n".join([*lines, f"test\t2\t\tjoy\tjoy\t{number}\t0.7"]))
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, one_label=True)
    assert str(error.value).startswith(f"{tmp_path}/predictions.tsv, {says}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a table of predictions"),
        (b"text\tlabel\nx\ty\n", "its columns are text, label; want split, id, gold, predicted and one for each"),
        (b"split\tid\tgroup\tgold\tpredicted\n", "want split, id, group, gold, predicted and one for each label"),
        (b"split\tid\tgold\tpredicted\tjoy\n\xff", "not a table of predictions"),
        (b"split\tid\tgold\tpredicted\tjoy\tjoy\n", "two columns have one label's probabilities"),
        (b"split\tid\tgold\tpredicted\tjoy\ntest\t1\tjoy\tbliss\t1\n", "row 1: 'bliss'; want one of joy"),
        (b'split\tid\tgold\tpredicted\tjoy\ntest\t1\tjoy\t"joy\t1\n', "not a table of predictions"),
    ],
)
def test_what_is_no_table_of_predictions_is_one_line(content, says, tmp_path):
    (tmp_path / "predictions.tsv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, one_label=True)
    assert str(error.value).startswith(f"{tmp_path}/predictions.tsv")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, -1.0, 1e308])
def test_a_system_that_gives_no_probabilities_is_named(value):
    values = np.full((3, 20, 2), 0.5)
    values[1, 7, 0] = value
    gold = np.arange(20) % 2
    with pytest.raises(InputError, match="second: its probabilities are not all from 0 to 1"):
        compare_fusions(["first", "second", "third"], values, gold, None, gold, ["joy", "fear"], "weighted")
    with pytest.raises(InputError, match="second: its probabilities are not all from 0 to 1"):
        compare({"first": values[:1], "second": values[1:2]}, gold, None, ["joy", "fear"])


def test_printed_figures_fit_a_terminal(capsys):
    """A column per system, with all systems that a run can have."""
    figures = {f"test_{infix}{name}": 0.12345 for infix in SYSTEMS.values() for name in SEVEN_FIGURES}
    print_results(figures | {"test_rows": 1860, "test_macro_f1_low": 0.1, "test_macro_f1_high": 0.2}, ["test"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[3:10]] == list(SEVEN_FIGURES)
    assert all(line.split()[1:] == ["0.1235"] * 3 for line in lines[3:10])
    assert len({len(line) for line in lines[2:10]}) == 1


# ---- Plots -----------------------------------------------------------------------------------------------------------
ODD_NAMES = [
    "$_$",
    "$\\frac$",
    "$",
    "a\nb",
    "日本語",
    "مرحبا",
    "😀",
    "👩‍👩‍👧",
    "\ud83d",
    "\0",
    "x" * 5000,
    "^_{",
    "%",
    "",
]


def draw(labels, tmp_path):
    source, target = tmp_path / "a.json", tmp_path / "a.png"
    bins = [{"rows": 3, "confidence": 0.5, "accuracy": 0.4}]
    for plot, content in (
        (
            plot_confusion_matrix,
            {"split": labels[0], "labels": labels, "counts": np.eye(len(labels), dtype=int).tolist()},
        ),
        (plot_reliability, {"calibration": {labels[0]: {"expected_calibration_error": 0.1, "reliability": bins}}}),
        (
            plot_comparison,
            {
                "variants": [
                    {"name": name, "interval": [0, 1], "macro_f1": 0.5, "macro_f1_by_seed": [0.5]} for name in labels
                ]
            },
        ),
    ):
        source.write_text(json.dumps(content))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot(source, target)
        assert image.imread(target).std() > 0
        yield target


def test_no_name_breaks_a_plot_or_warns(tmp_path):
    assert len(list(draw(ODD_NAMES, tmp_path))) == 3


def test_many_labels_make_a_picture_that_can_be_written(tmp_path):
    assert len(list(draw([f"label {number}" for number in range(90)], tmp_path))) == 3


def test_a_recipes_own_value_has_a_tick_though_it_is_not_listed(tmp_path):
    """Listed values are compared as numbers: 4 epochs are 4.0 to the flag. Of a range, it may be no number at all."""
    values = [{"batch": 8, "epochs": 4.0, "rate": None}, {"batch": 16, "epochs": 2, "rate": 0.001}]
    rows = [{"state": "finished", "scores": [0.5, 0.6], "values": each} for each in values]
    space, nested = {"batch": [16, 32], "epochs": [2, 4, 7]}, {"interval": [0.4, 0.7], "macro_f1": 0.55}
    space["rate"] = {"low": 0.0001, "high": 0.01, "log": True, "step": None}
    content = {"configurations": rows, "space": space, "importance": {}, "nested": {"nested": nested}}
    (tmp_path / "search.json").write_text(json.dumps(content))
    with rc_context({"svg.fonttype": "none"}):
        plot_search(tmp_path / "search.json", tmp_path / "search.svg")
    written = (tmp_path / "search.svg").read_text(encoding="utf-8")
    assert all(f">{tick}</text>" in written for tick in (16, 32, 8, 2, 4, 7))
    assert ">4.0</text>" not in written


def test_names_are_drawn_as_they_are():
    """Not as the formula that the dollars would make of them."""
    with drawn_as_text(["$_$", "a\tb", "x" * 61]) as names:
        assert names == ["$_$", "a b", "x" * 59 + "…"]


def test_a_character_that_no_font_has_is_written_as_a_code(monkeypatch, caplog):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(font_manager, "findfont", lambda _: DEJAVU)
    with caplog.at_level(logging.WARNING), drawn_as_text(["喜び", "怒り", "joy"]) as names:
        assert names == [r"\u559c\u3073", r"\u6012\u308a", "joy"]
    (record,) = caplog.records
    assert "no font of this machine has びり喜怒" in record.getMessage()


DEJAVU = font_manager.findfont("DejaVu Sans")


@pytest.fixture
def only_han(tmp_path):
    """A font with one glyph, a filled square for 喜, as a machine with a Japanese font has."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "joy"])
    builder.setupCharacterMap({ord("喜"): "joy"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "joy": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "joy": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Only Han", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "OnlyHan-Regular.ttf"
    builder.save(path)
    return str(path)


def test_a_font_of_the_machine_is_found_for_what_the_usual_one_lacks(only_han, monkeypatch, caplog):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [only_han])
    with drawn_as_text(["喜 joy"]) as names:
        assert names == ["喜 joy"]
        assert "Only Han" in FontProperties().get_family()
    assert not caplog.records
    assert plots._fonts_for(frozenset("joy")) == (["DejaVu Sans"], set())
