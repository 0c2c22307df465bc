"""A machine's clock: what steps cost by it, and how the steps of replies move it."""

import numpy as np
import pytest

from helpers.timings import CPU, SHAPES, made_clock
from solm.core.actions import ActionSpace
from solm.core.budget import Budgets
from solm.core.clock import RunningClock, StepClock
from solm.core.errors import BudgetError, PolicyMismatchError

DENSE, CHEAP = (1.0, 1.0, 1.0), (1.0, 0.5, 1.0)


def test_steps_cost_what_was_measured():
    cost = made_clock()
    assert cost.dense_ms(0) == 10
    assert cost.dense_ms(4000) == 14
    shares = np.array([DENSE, CHEAP, (0.5, 1.0, 1.0)])
    assert cost.milliseconds(shares, 1000).tolist() == pytest.approx([11, 11 + 0.4 - 3, 11 + 0.4 - 0.25])
    assert made_clock(bits_ms=4.0).milliseconds(np.array([1, 1, 4 / 16]), 0) == pytest.approx(10.4 - 3)
    busy = made_clock(dense=2.0, cheap=2.2)
    assert busy.dense_ms(0) == 20
    assert busy.share(CHEAP, 0) == pytest.approx(1.1 * cost.share(CHEAP, 0))


def test_the_cost_of_an_average_is_the_average_cost():
    known, shares = made_clock(), np.random.default_rng(0).random((3, 7, 3))
    every = known.milliseconds(shares, np.full(7, 230))
    assert every.shape == (3, 7)
    assert np.allclose(every.mean(1), known.milliseconds(shares.mean(1), 230.0))
    assert known.dense_ms(230) + known.extra(230) - (1 - shares[0, 0]) @ known.rates(230) == pytest.approx(every[0, 0])


@pytest.mark.parametrize("scales", [{}, {"dense": 3.0, "cheap": 3.0}, {"cheap": 1.1}])
@pytest.mark.parametrize("context", [100, 4000])
def test_budgets_are_met_by_the_clock_in_all_forms(scales, context):
    budgets = Budgets(ActionSpace.preset("cpu-wide"), CPU, SHAPES, None, 0, made_clock(**scales))
    found = budgets.resolve(0.9, context).terms
    assert found["time"] == pytest.approx(0.9, abs=2e-3)
    for form in (f"speed={1 / found['time']}", f"ms={found['ms']}"):
        assert budgets.resolve(form, context).terms["time"] == pytest.approx(found["time"], abs=2e-3)
    with pytest.raises(BudgetError, match=r"speeds are 1 to 1\.\d+; \d+% of the bytes of weights are the head's"):
        budgets.resolve("speed=5", context)
    with pytest.raises(BudgetError, match="needs a policy with a measured curve"):
        budgets.resolve("loss=0.1", context)


def test_where_nothing_saves_time_the_reason_is_told():
    slow = Budgets(ActionSpace.preset("cpu-wide"), CPU, SHAPES, None, 0, made_clock(mlp_ms=0.1, page_ms=0.0))
    with pytest.raises(BudgetError, match="take no less time, whatever they leave out"):
        slow.resolve(0.9, 100)


def test_other_models_and_backends_are_refused():
    made_clock().check("m", "cpu")
    with pytest.raises(PolicyMismatchError, match="are of m, not of n"):
        made_clock().check("n")
    with pytest.raises(PolicyMismatchError, match="are of cpu int8, not of torch"):
        made_clock().check("m", "torch")


class Seconds:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(clock: StepClock, shares, factor: float, keys: int = 100) -> float:
    return factor * float(clock.milliseconds(np.array(shares), keys))


def run(running: RunningClock, measured: StepClock, steps: int, **factors: float) -> None:
    for _ in range(steps):
        for name, factor in factors.items():
            shares = DENSE if name == "dense" else CHEAP
            running.stepped(shares, 100, taken(measured, shares, factor))


def test_scales_follow_the_medians_of_both_kinds_of_steps():
    measured = made_clock()
    running = RunningClock(measured, Seconds())
    begun = running.now
    run(running, measured, 64, dense=2.0, cheap=2.0)
    assert (running.now.dense, running.now.cheap) == (2.0, 2.0)
    assert begun.dense == 1, "a reply keeps the clock of its start"
    before, after = (clock.share(CHEAP, 100) for clock in (begun, running.now))
    assert after == pytest.approx(before), "a busy machine changes both alike"
    run(running, measured, 400, dense=2.0, cheap=2.2)
    assert running.now.cheap == pytest.approx(2.2)
    settled = running.now
    run(running, measured, 64, dense=2.005, cheap=2.21)
    assert running.now is settled, "texts do not change for nothing"


def test_one_kind_of_steps_alone_says_nothing_of_the_other():
    measured, seconds = made_clock(), Seconds()
    running = RunningClock(measured, seconds)
    run(running, measured, 64, dense=1.0, cheap=1.1)
    assert running.now.cheap / running.now.dense == pytest.approx(1.1, abs=2e-3)
    seconds.now = 100.0
    run(running, measured, 96, cheap=3.3)
    assert (running.now.dense, running.now.cheap) == (pytest.approx(3.0, abs=0.01), pytest.approx(3.3, abs=0.01))


def test_disturbed_steps_change_nothing():
    measured, seconds = made_clock(), Seconds()
    running = RunningClock(measured, seconds)
    for number in range(400):
        odd = {0: 1e7, 1: -5.0, 2: 0.0}.get(number % 8, 1.0)  # suspended, a clock that goes back, one that stands
        seconds.now = -1.0 if number % 16 == 3 else 10.0
        run(running, measured, 1, dense=1.0, cheap=odd)
    assert running.now is measured


def test_a_dense_step_is_due_where_there_are_none():
    measured = made_clock()
    running = RunningClock(measured, Seconds())
    due = [running.stepped(CHEAP, 100, 8.0) for _ in range(1100)]
    assert [number + 1 for number, one in enumerate(due) if one] == [512, 1024]
    mixed = [running.stepped(DENSE if number % 100 == 0 else CHEAP, 100, 8.0) for number in range(1100)]
    assert not any(mixed)
