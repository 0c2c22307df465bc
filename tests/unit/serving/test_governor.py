"""The governor on a clock of its own: budgets, savings that are measured beside noise, and prompts that wait."""

import random

import numpy as np
import pytest

from solm.serving.governor import Governor, Progress, Savings


def dials_of(governor: Governor) -> list[float]:
    return [governor.dial(rank) for rank in range(3)]


LOW, NORMAL, HIGH = 0, 1, 2


class Machine:
    """Rows whose steps take as long as their budgets say: a row at its floor `seconds_low`, at its budget
    `seconds_dense`."""

    def __init__(self, seconds_dense: float, seconds_low: float):
        self.now, self.dense, self.low = 0.0, seconds_dense, seconds_low
        self.lowered_steps = 0

    def run(self, governor: Governor, by_rank=(0, 8, 0), steps: int = 2000, fixed: int = 0) -> float:
        """Seconds per step over the last half. by_rank: rows that would decode, by rank of their priority; fixed: those
        whose budgets are fixed."""
        begun = 0.0
        for step in range(steps):
            if step == steps // 2:
                begun = self.now
            room, able = max(0, governor.rows - fixed), [0, 0, 0]
            for rank in reversed(range(3)):
                able[rank] = min(by_rank[rank], room)
                room -= able[rank]
            dials = dials_of(governor)
            took = fixed * self.dense + sum(
                count * (self.low + dial * (self.dense - self.low)) for count, dial in zip(able, dials, strict=True)
            )
            self.now += took
            self.lowered_steps += any(count and dial < 1 for count, dial in zip(able, dials, strict=True))
            if sum(by_rank) > sum(able):
                governor.may_read(1, [Progress(0, 0, 0)] * (sum(able) + fixed))
            governor.stepped(sum(able) + fixed, able, took)
        return (self.now - begun) / (steps - steps // 2)


def governed(objective, machine, rows=8):
    return Governor(objective, rows, lambda: machine.now)


def test_nothing_changes_while_the_objective_is_met():
    machine = Machine(0.010, 0.004)
    governor = governed(0.1, machine)
    machine.run(governor, steps=200)
    assert (dials_of(governor), governor.rows) == ([1, 1, 1], 8)
    assert machine.lowered_steps == 0


def test_budgets_fall_until_the_objective_is_met_and_rise_again():
    machine = Machine(0.010, 0.004)
    governor = governed(0.06, machine)
    assert machine.run(governor) == pytest.approx(0.054, rel=0.05)
    assert 0 < governor.dial(NORMAL) < 1
    assert governor.rows == 8
    assert governor.savings.of(8, 8) == pytest.approx(0.6)
    machine.run(governor, (0, 2, 0))
    assert dials_of(governor) == [1, 1, 1]


def test_rows_are_held_back_only_where_budgets_are_not_enough():
    machine = Machine(0.010, 0.008)
    governor = governed(0.04, machine)
    assert machine.run(governor, steps=3000) <= 0.04
    assert governor.rows < 8
    assert governor.dial(NORMAL) == 0, "while rows wait, budgets stay at their floors"
    free = Machine(0.001, 0.001)
    governor.clock = lambda: free.now
    governor.idle()
    free.run(governor)
    assert (dials_of(governor), governor.rows) == ([1, 1, 1], 8)


def test_budgets_are_left_alone_where_lower_ones_save_no_time():
    machine = Machine(0.010, 0.0099)
    governor = governed(0.04, machine)
    assert machine.run(governor, steps=3000) <= 0.04
    assert dials_of(governor) == [1, 1, 1]
    assert governor.rows < 8
    assert machine.lowered_steps < 150, "what the measurements took"


def test_a_higher_priority_is_lowered_only_when_lower_ones_are_at_their_floors():
    machine = Machine(0.010, 0.004)
    governor = governed(0.07, machine)
    machine.run(governor, (3, 3, 2))
    assert dials_of(governor) == [pytest.approx(0.06, abs=0.1), 1, 1], "3 of 8 rows lowered give 62 ms"
    governor.objective = 0.05
    machine.run(governor, (3, 3, 2))
    assert dials_of(governor)[LOW] == 0
    assert 0 < dials_of(governor)[NORMAL] < 1
    assert dials_of(governor)[HIGH] == 1
    assert governor.rows == 8
    governor.objective = 0.09
    machine.run(governor, (3, 3, 2))
    assert dials_of(governor) == [1, 1, 1]


def test_what_was_learnt_of_a_load_is_forgotten_when_it_is_over():
    machine = Machine(0.010, 0.004)
    governor = governed(0.02, machine)
    machine.run(governor)
    assert min(dials_of(governor)) < 1
    assert governor.rows < 8
    governor.idle()
    machine.now += 1
    governor.idle()
    assert min(dials_of(governor)) < 1, "the next request may come at once"
    machine.now += 5
    governor.idle()
    assert dials_of(governor) == [1, 1, 1]
    assert governor.rows == 8


def test_without_an_objective_it_only_watches():
    machine = Machine(0.010, 0.004)
    governor = governed(None, machine)
    machine.run(governor, steps=100)
    assert (dials_of(governor), governor.rows) == ([1, 1, 1], 8)
    assert governor.seconds == pytest.approx(0.08)


def test_a_deadline_lowers_one_rows_dial():
    machine = Machine(0.01, 0.01)
    governor = governed(None, machine)
    machine.run(governor, (0, 1, 0), steps=50)
    assert governor.dial_for(NORMAL, None, 0.0, 100) == 1
    assert governor.dial_for(NORMAL, 2.0, 0.0, 100) == 1
    assert governor.dial_for(NORMAL, 0.75, 0.0, 100) == pytest.approx(0.5)
    assert governor.dial_for(NORMAL, 0.0, 1.0, 100) == 0


def measured(saving, noise, rows=lambda step: 16, lowerable=16, drift=0.0, seed=0):
    """The result after as many steps as a measurement takes."""
    savings, rng = Savings(), np.random.default_rng(seed)
    savings.begin()
    step = 0
    while savings.measuring:
        seconds = 0.1 * rows(step) / 16 * (1 - saving * savings.lowered) * (1 + drift * step)
        savings.stepped(rows(step), lowerable, seconds * (1 + noise * rng.exponential()))
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


TOKENS = 192


def stepping(objective: float, steps: int, seconds: float) -> tuple[Machine, Governor]:
    """A governor that lets prompts be read up to `objective` seconds per token, after steps of one row."""
    machine = Machine(0, 0)
    governor = governed(objective / 0.99, machine)
    step(machine, governor, steps + 1, seconds)
    return machine, governor


def step(machine, governor, steps, seconds):
    for _ in range(steps):
        machine.now += seconds
        governor.stepped(1, [0, 0, 0], seconds)


def test_replies_wait_for_a_prompt_only_as_long_as_they_can_spare():
    """Steps take 10 ms, 20 ms are aimed at, and 100 tokens of a prompt take 100 ms."""
    _, governor = stepping(0.020, 5, 0.010)
    for _ in range(50):
        governor.was_read(100, 0.100)
    able, young, late = Progress(0.10, 10, 100), Progress(0.08, 8, 100), Progress(3.0, 100, 50)
    assert governor.may_read(100, [able], joins=False)
    assert not governor.may_read(100, [able, young], joins=False)
    assert governor.may_read(50, [able, young], joins=False)
    assert governor.may_read(100, [able, late], joins=False), "it cannot meet the objective whatever waits"
    assert not governor.may_read(100, [able, late._replace(left=200)], joins=False)
    never = Progress(9.0, 100, 100_000)
    assert governor.may_read(100, [able, never], joins=False), "it would take too long to catch up"


def test_some_of_a_prompt_is_read_even_if_nobody_can_ever_spare_the_time():
    machine, governor = stepping(0.020, 1, 0.019)
    busy = [Progress(0.0, 0, 1000)]
    for _ in range(2):
        machine.now += 9
        governor.was_read(100, 9.0)
        step(machine, governor, 255, 0.019)
        assert not governor.may_read(100, busy, joins=False)
        step(machine, governor, 1, 0.019)
        assert governor.may_read(100, busy, joins=False)


class Loop:
    """Clients that send a request as soon as they have a reply, at a server whose steps take a fixed time and more for
    each row. dense, low: these two at the requested budgets and at the floors."""

    dense, low, prompt, chunk = (0.0115, 0.0027), (0.0098, 0.0018), 90, 192

    def __init__(self):
        self.now, self.random = 0.0, random.Random(0)

    def run(self, governor: Governor, clients: int = 8, replies: int = 48) -> tuple[float, np.ndarray]:
        """Tokens per second, and milliseconds per token of every reply but the first ones."""
        waiting, unread, rows, found = clients, 0, [], []
        begun = None
        while len(found) < replies:
            begun = self.now if begun is None and len(found) >= clients else begun
            chunk = min(self.chunk, unread or self.prompt)
            so_far = [Progress(self.now - first, tokens, TOKENS - 1 - tokens) for first, tokens in rows]
            if (waiting or unread) and governor.may_read(chunk, so_far, not unread):
                waiting, unread = (waiting, unread) if unread else (waiting - 1, self.prompt)
                seconds = chunk * 0.002 * self.random.gauss(1, 0.05)
                self.now += seconds
                governor.was_read(chunk, seconds)
                unread -= chunk
                if not unread:
                    rows.append((self.now, 0))
            if rows:
                dial = governor.dial(1)
                fixed, each = (low + dial * (high - low) for low, high in zip(self.low, self.dense, strict=True))
                seconds = (fixed + each * len(rows)) * self.random.gauss(1, 0.03)
                self.now += seconds + 0.001
                governor.stepped(len(rows), [0, len(rows), 0], seconds)
                rows = [(first, tokens + 1) for first, tokens in rows]
                done = [row for row in rows if row[1] == TOKENS - 1]
                found += [(self.now - first) / (TOKENS - 1) for first, _ in done]
                rows, waiting = [row for row in rows if row not in done], waiting + len(done)
        return (len(found) - clients) * TOKENS / (self.now - begun), np.array(found[clients:]) * 1000


def loop(objective: float | None):
    machine = Loop()
    return machine.run(Governor(objective, 16, lambda: machine.now))


def test_every_reply_meets_the_objective_under_overload_and_there_are_more_tokens_than_without():
    dense, slow = loop(None)
    assert slow.min() > 35
    rate, milliseconds = loop(0.026)
    assert milliseconds.max() < 26
    assert rate > dense
