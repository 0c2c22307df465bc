"""When prompts are read beside replies that have an objective."""

import random

import numpy as np
import pytest

from solm.serving.governor import Admission, Governor, Progress, StepTimes

TOKENS = 192


def seen(*times: tuple[int, float], most: int = 8) -> StepTimes:
    """Four steps of every time."""
    found = StepTimes(most)
    for rows, seconds in times:
        for _ in range(4):
            found.add(rows, seconds)
    return found


def test_times_of_numbers_that_were_not_seen_lie_on_a_line():
    assert StepTimes(3).by_rows.tolist() == [0, 0, 0, 0]
    assert seen((1, 0.010), (4, 0.010)).by_rows[1:7] == pytest.approx([0.010] * 5 + [np.inf])
    times = seen(*[(1, 0.010), (4, 0.016)] * 50)
    assert times.by_rows[1:7] == pytest.approx([0.010, 0.012, 0.014, 0.016, 0.018, np.inf], rel=0.01)
    assert seen((2, 0.010), most=4).by_rows[1:] == pytest.approx([0.010, 0.010, 0.010, np.inf])
    assert seen((8, 0.010)).by_rows[8] == pytest.approx(0.010)


def test_single_steps_say_nothing():
    times = seen((1, 0.010), (2, 0.010))
    times.add(3, 9.0)
    assert times.by_rows[1:5] == pytest.approx([0.010, 0.010, 0.010, np.inf])


def test_more_rows_never_take_less():
    times = seen(*[(1, 0.012), (2, 0.010), (3, 0.014)] * 50)
    assert times.by_rows[1:4] == pytest.approx([0.012, 0.012, 0.014], rel=0.01)


def test_what_makes_all_steps_slower_makes_those_of_other_numbers_slower_too():
    times = seen(*[(2, 0.010), (4, 0.020)] * 50)
    for _ in range(200):
        times.add(2, 0.030)
    assert times.by_rows[4] == pytest.approx(0.060, rel=0.05)
    for _ in range(200):
        times.add(2, 0.010)
    assert times.by_rows[[2, 4]] == pytest.approx([0.010, 0.020], rel=0.05)


def test_a_number_of_rows_that_was_not_seen_for_long_is_tried_again():
    admission = Admission(8)
    for rows in (1, 2, 3) * 50:
        admission.stepped(rows, 0.010 * rows)
    assert admission.most(0.025) == 2
    for _ in range(600):
        admission.stepped(2, 0.020)
    assert admission.most(0.025) == 3


def test_replies_wait_for_a_prompt_only_as_long_as_they_can_spare():
    """Steps take 10 ms, 20 ms are aimed at, and 100 tokens of a prompt take 100 ms."""
    admission = Admission(8)
    for _ in range(5):
        admission.stepped(1, 0.010)
    for _ in range(50):
        admission.was_read(100, 0.100)
    able, young = Progress(0.10, 10, 100), Progress(0.08, 8, 100)
    assert admission.spared(0.020, 100, [able])
    assert not admission.spared(0.020, 100, [able, young])
    assert admission.spared(0.020, 50, [able, young])
    late = Progress(3.0, 100, 50)
    assert admission.spared(0.020, 100, [able, late]), "it cannot meet the objective whatever waits"
    assert not admission.spared(0.020, 100, [able, late._replace(left=200)])
    assert admission.spared(0.020, 100, [able, Progress(9.0, 100, 100_000)]), "it would take too long to catch up"


def test_some_of_a_prompt_is_read_even_if_nobody_can_ever_spare_the_time():
    admission = Admission(8)
    admission.was_read(100, 9.0)
    for _ in range(255):
        admission.stepped(1, 0.019)
    busy = [Progress(0.0, 0, 1000)]
    assert not admission.spared(0.020, 100, busy)
    admission.stepped(1, 0.019)
    assert admission.spared(0.020, 100, busy)
    admission.was_read(100, 9.0)
    assert not admission.spared(0.020, 100, busy)


def test_short_stretches_say_little_about_long_ones():
    """A pass takes 10 ms, and a token 1 ms more."""
    admission = Admission(8)
    for _ in range(5):
        admission.stepped(1, 0.010)
    for tokens in (1, 4, 128, 5, 3, 10):
        admission.was_read(tokens, 0.010 + 0.001 * tokens)
    assert admission.spared(0.020, 100, [Progress(0.0, 6, 100)])
    assert not admission.spared(0.020, 100, [Progress(0.0, 5, 100)])
    for _ in range(3):
        admission.was_read(4, 0.030)  # a cold one
    assert admission.spared(0.020, 100, [Progress(0.0, 7, 100)])


class Loop:
    """Clients that send a request as soon as they have a reply, at a server whose steps take a fixed time and more for
    each row. dense, low: these two at the requested budgets and at the floors."""

    def __init__(self, dense: tuple[float, float], low: tuple[float, float], prompt: int = 90, chunk: int = 192):
        self.dense, self.low, self.prompt, self.chunk = dense, low, prompt, chunk
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
                lowerable = [0, len(rows) if self.low < self.dense else 0, 0]
                governor.stepped(len(rows), lowerable, seconds)
                rows = [(first, tokens + 1) for first, tokens in rows]
                done = [row for row in rows if row[1] == TOKENS - 1]
                found += [(self.now - first) / (TOKENS - 1) for first, _ in done]
                rows, waiting = [row for row in rows if row not in done], waiting + len(done)
        return (len(found) - clients) * TOKENS / (self.now - begun), np.array(found[clients:]) * 1000


def loop(objective: float | None, low=(0.0098, 0.0018), hold_rows=True, **options):
    machine = Loop((0.0115, 0.0027), low, **options)
    return machine.run(Governor(objective, 16, hold_rows, lambda: machine.now))


def test_every_reply_meets_the_objective_under_overload_and_there_are_more_tokens_than_without():
    dense, slow = loop(None)
    assert slow.min() > 35
    rate, milliseconds = loop(0.026)
    assert milliseconds.max() < 26
    assert rate > dense
    budgets, milliseconds = loop(0.026, hold_rows=False)
    assert milliseconds.min() > 26
    assert budgets > rate


def test_where_lower_budgets_save_nothing_prompts_wait():
    rate, milliseconds = loop(0.026, low=(0.0115, 0.0027))
    assert milliseconds.max() < 26
    assert rate > 120


def test_nobody_waits_where_the_objective_is_far():
    assert loop(0.2)[0] == pytest.approx(loop(None)[0], rel=0.01)


def test_a_long_prompt_is_read_in_stretches_that_the_others_can_spare():
    rate, milliseconds = loop(0.026, prompt=1000)
    assert milliseconds.max() < 26
    assert rate > 40


def test_an_objective_that_one_reply_misses_leaves_one_reply_at_a_time():
    machine = Loop((0.0115, 0.0027), (0.0115, 0.0027))
    governor = Governor(0.005, 16, True, lambda: machine.now)
    assert machine.run(governor, replies=20)[1].max() < 16
    assert governor.rows == 1


def test_what_a_prompt_takes_is_still_known_when_a_server_was_idle():
    machine = Loop((0.0115, 0.0027), (0.0115, 0.0027))
    governor = Governor(0.026, 16, True, lambda: machine.now)
    machine.run(governor, replies=20)
    governor.idle()
    machine.now += 60
    governor.idle()
    assert governor.may_read(90, [])
    machine.now += 0.2
    governor.was_read(90, 0.2)
    assert not governor.may_read(90, [Progress(0.0, 0, TOKENS)])
