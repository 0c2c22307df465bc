"""How a fit's phases share the time that is left."""

from types import SimpleNamespace

import pytest

from solm.fit.job import Job
from solm.fit.plan import PHASES


def job(**seconds):
    return Job(None, None, SimpleNamespace(seconds=seconds), minutes=10, seed=0, stop=[])


def test_the_time_left_is_told_by_the_parts_of_this_run(monkeypatch):
    """Sixty of a hundred parts are from an interrupted run; the next ones take two seconds each."""
    clock, told = [100.0], []
    monkeypatch.setattr("solm.fit.job.time.monotonic", lambda: clock[0])
    run = job()
    run.report = lambda phase, done, total, left: told.append(left)
    progress = run.progress("comparison")
    planned = 60 * run.pace("comparison") * PHASES["comparison"]
    for done in (0, 30, 60, 61, 62):
        progress(done, 100)
        clock[0] += 0.001 if done < 60 else 2
    assert told == pytest.approx([planned, planned * 0.7, planned * 0.4, 2 * 39, 2 * 38])


def test_phases_have_the_time_that_is_left():
    assert job().pace("timings") == pytest.approx(10)
    planned = {name: 600 * share for name, share in PHASES.items()}
    assert job(timings=planned["timings"]).pace("thresholds") == pytest.approx(10)
    late = job(timings=planned["timings"] + 120)
    left = 1 - PHASES["timings"]
    assert late.pace("thresholds") * left == pytest.approx(10 * left - 2), "two minutes are missing"
    early = job(timings=0.0)
    assert early.pace("thresholds") * left == pytest.approx(10), "a phase that took no time leaves it to the others"
    assert job(timings=550.0).pace("comparison") == 5, "however late, half of the plan"
