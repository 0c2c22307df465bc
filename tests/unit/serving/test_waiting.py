"""Whose turn it is."""

import numpy as np

from helpers.budgets import resolved
from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.policies.schedules import Dense
from solm.serving.budgets import RequestBudget
from solm.serving.rows import Job
from solm.serving.waiting import WaitingJobs

POLICY = Dense(ActionSpace.preset("cpu-wide"))


def job(seed, priority="normal"):
    order = RequestBudget("dense", POLICY, resolved(Budget()), priority)
    return Job(np.zeros(1, dtype=np.int64), 1, order, print, seed)


def turns(waiting):
    found = []
    while (first := waiting.first) is not None:
        waiting.take(first)
        found.append(first.seed)
    return found


def test_higher_priorities_go_first_and_equal_ones_by_arrival():
    waiting = WaitingJobs()
    for seed, priority in enumerate(["low", "normal", "high", "low", "high", "normal"]):
        waiting.add(job(seed, priority))
    assert (len(waiting), waiting.counts) == (6, [2, 2, 2])
    assert turns(waiting) == [2, 4, 1, 5, 0, 3]
    assert len(waiting) == 0


def test_dropped_jobs_leave_the_others_in_order():
    waiting = WaitingJobs()
    for seed in range(6):
        waiting.add(job(seed))
    waiting.drop(lambda some: some.seed in (0, 3), all_of_them=False)
    assert waiting.counts == [0, 5, 0], "only the oldest was looked at"
    waiting.drop(lambda some: some.seed in (0, 3), all_of_them=True)
    assert turns(waiting) == [1, 2, 4, 5]
    waiting.add(job(7))
    assert [some.seed for some in waiting.clear()] == [7]
    assert waiting.first is None
