"""The governor on a clock of its own."""

import pytest

from solm.serving.governor import Governor


class Machine:
    """Rows whose steps take as long as their budgets say."""

    def __init__(self, seconds_dense: float, seconds_low: float):
        self.now, self.dense, self.low = 0.0, seconds_dense, seconds_low

    def run(self, governor: Governor, rows: int, steps: int) -> float:
        """Seconds per step over the last half."""
        begun = 0.0
        for step in range(steps):
            if step == steps // 2:
                begun = self.now
            active = min(rows, governor.rows)
            took = active * (self.low + governor.dial * (self.dense - self.low))
            self.now += took
            governor.stepped(active)
        return (self.now - begun) / (steps - steps // 2)


def governed(objective, machine, rows=8, hold_rows=True):
    return Governor(objective, rows, hold_rows, lambda: machine.now)


def test_nothing_changes_while_the_objective_is_met():
    machine = Machine(0.010, 0.004)
    governor = governed(0.1, machine)
    machine.run(governor, 8, 200)
    assert (governor.dial, governor.rows) == (1.0, 8)


def test_budgets_fall_until_the_objective_is_met_and_rise_again():
    machine = Machine(0.010, 0.004)
    governor = governed(0.06, machine)
    assert machine.run(governor, 8, 2000) == pytest.approx(0.054, rel=0.05)
    assert 0 < governor.dial < 1
    assert governor.rows == 8
    machine.run(governor, 2, 2000)
    assert governor.dial == 1.0


def test_rows_are_held_back_only_where_budgets_are_not_enough():
    machine = Machine(0.010, 0.008)
    governor = governed(0.04, machine)
    assert machine.run(governor, 8, 3000) <= 0.04
    assert governor.rows < 8
    stubborn = governed(0.04, machine, hold_rows=False)
    machine.run(stubborn, 8, 2000)
    assert (stubborn.dial, stubborn.rows) == (0.0, 8)
    free = Machine(0.001, 0.001)
    governor.clock = lambda: free.now
    governor.idle()
    free.run(governor, 8, 2000)
    assert (governor.dial, governor.rows) == (1.0, 8)


def test_without_an_objective_it_only_watches():
    machine = Machine(0.010, 0.004)
    governor = governed(None, machine)
    machine.run(governor, 8, 100)
    assert (governor.dial, governor.rows) == (1.0, 8)
    assert governor.seconds == pytest.approx(0.08)


def test_a_deadline_lowers_one_rows_dial():
    machine = Machine(0.01, 0.01)
    governor = governed(None, machine)
    machine.run(governor, 1, 50)
    assert governor.dial_for(None, 0.0, 100) == 1
    assert governor.dial_for(2.0, 0.0, 100) == 1
    assert governor.dial_for(0.75, 0.0, 100) == pytest.approx(0.5)
    assert governor.dial_for(0.0, 1.0, 100) == 0
