"""What steps may spend: a batch in which skipped channels save no time computes all of them."""

import shutil

import numpy as np
import pytest
import torch

import solm
from helpers.budgets import resolved
from helpers.models import tiny_model
from solm.core.budget import Budget
from solm.policies.schedules import Static
from solm.serving.budgets import RequestBudget
from solm.serving.governor import Governor
from solm.serving.rows import Job, Row
from solm.serving.targets import Targets

MLP = 1  # the axis


@pytest.fixture(scope="module")
def lm(byte_tokenizer):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    with solm.attach(
        tiny_model("llama", torch.float32), None, byte_tokenizer, backend="cpu", precision="int8"
    ) as found:
        yield found


def rows_of(lm, count: int) -> tuple[list[Row], object]:
    """Rows that keep 0.6 of the channels on average, and their session."""
    budget = Budget(mlp=0.6)
    order = RequestBudget("static", Static(lm.space), resolved(budget))
    rows, session = [], None
    for number in range(count):
        row = Row(lm, Job(np.arange(3, 9 + number), 1000, order, lambda event: None))
        one = lm.session()
        one.prefill(row.job.ids[None])
        row.control(one)
        rows.append(row)
        session = one if session is None else session
        if one is not session:
            session.join(one)
    return rows, session


def spent(targets: Targets, session, rows: list[Row], steps: int) -> float:
    """The mean share of channels over steps of all rows."""
    found = []
    for _ in range(steps):
        targets.set(session, rows, 0.0)
        found.append(session.step(np.full(len(rows), 7)).realised[:, 0, MLP])
    return float(np.mean(found))


def test_large_batches_compute_all_channels_and_later_steps_do_not_make_up_for_it(lm):
    largest = lm.backend.skipping_rows
    assert largest == 3
    rows, session = rows_of(lm, largest + 1)
    targets = Targets(lm, Governor(None, 16))
    assert spent(targets, session, rows, 20) == 1
    session.leave(largest)
    assert spent(targets, session, rows[:largest], 50) == pytest.approx(0.6, abs=0.02)
    session.leave(1)
    session.leave(1)
    assert spent(targets, session, rows[:1], 50) == pytest.approx(0.6, abs=0.02)


def test_always_skipping_keeps_the_budget_in_large_batches(lm):
    rows, session = rows_of(lm, 6)
    assert spent(Targets(lm, Governor(None, 16), always_skip=True), session, rows, 50) == pytest.approx(0.6, abs=0.02)


def test_a_backend_without_a_limit_skips_in_batches_of_any_size(byte_tokenizer):
    with solm.attach(tiny_model("llama", torch.float32), None, byte_tokenizer) as torch_lm:
        assert torch_lm.backend.skipping_rows is None
        rows, session = rows_of(torch_lm, 6)
        assert spent(Targets(torch_lm, Governor(None, 16)), session, rows, 50) == pytest.approx(0.6, abs=0.02)
