"""Intervals and tests, on predictions of which the truth is known."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from trainer_ext.evaluation.significance import (
    GroupCounts,
    bootstrap_macro_f1,
    holm,
    paired_difference,
    randomization_test,
)

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
