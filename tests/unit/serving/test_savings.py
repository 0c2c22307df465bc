"""What low budgets save, measured beside noise."""

import numpy as np
import pytest

from solm.serving.governor import Savings


def measured(saving, noise, rows=lambda step: 16, lowerable=16, drift=0.0, seed=0):
    """The result after as many steps as a measurement takes."""
    savings, random = Savings(), np.random.default_rng(seed)
    savings.begin()
    step = 0
    while savings.measuring:
        seconds = 0.1 * rows(step) / 16 * (1 - saving * savings.lowered) * (1 + drift * step)
        savings.stepped(rows(step), lowerable, seconds * (1 + noise * random.exponential()))
        step += 1
    return savings.of(rows(0), lowerable), step


@pytest.mark.parametrize("saving", [0.0, 0.2])
def test_a_saving_is_found_beside_noise_and_growing_contexts(saving):
    found, steps = measured(saving, noise=0.1, drift=0.002)
    assert saving - 0.09 < found < saving + 0.01
    assert steps <= 40


def test_noise_is_hardly_ever_taken_for_a_saving():
    """The governor lowers budgets where a twentieth of a step is saved."""
    small, large = (np.array([measured(saving, 0.1, seed=seed)[0] for seed in range(50)]) for saving in (0.02, 0.15))
    assert np.mean(small >= 0.05) <= 0.04
    assert np.mean(large >= 0.05) >= 0.96


def test_rows_that_come_and_go_are_not_taken_for_a_saving():
    found, _ = measured(0.0, 0.02, rows=lambda step: 16 + step // 3 % 2)
    assert found == pytest.approx(0, abs=0.03)


def test_where_nothing_can_be_compared_nothing_is_saved():
    found, steps = measured(0.5, 0.0, rows=lambda step: 16 + step % 2)
    assert (found, steps) == (0.0, 128)


def test_results_are_kept_by_the_number_of_rows_and_for_a_while():
    savings = Savings()
    savings.begin()
    while savings.measuring:
        savings.stepped(4, 4, 0.5 if savings.lowered else 1.0)
    assert savings.of(5, 4) == savings.of(4, 4) == 0.5
    assert savings.of(8, 4) is savings.of(4, 1) is None
    for _ in range(4001):
        savings.stepped(4, 4, 1.0)
    assert savings.of(4, 4) is None


def test_a_measurement_ends_when_nothing_can_be_lowered():
    savings = Savings()
    savings.begin()
    savings.stepped(4, 0, 1.0)
    assert not savings.measuring
    assert savings.of(4, 0) is None
