"""The curve of a policy: what a loss asks for, and what is refused."""

import pytest
from pydantic import ValidationError

from helpers.timings import made_clock, made_curve
from solm.core.curve import BudgetCurve, CurvePoint


def point(context: int, budget: float, nats: float) -> CurvePoint:
    return CurvePoint(
        context=context, budget=budget, step_ms=10 * budget, speed=1 / budget, attention=1.0, mlp=budget, nats=nats,
        low=nats - 0.01, high=nats + 0.01, texts=8,
    )  # fmt: skip


def curve(*points: CurvePoint) -> BudgetCurve:
    return BudgetCurve(clock=made_clock(), points=points, texts=8, tokens=512)


KNOWN = curve(point(512, 0.6, 0.3), point(512, 0.8, 0.04), point(512, 0.9, 0.05), point(2048, 0.5, 0.1))


def test_a_loss_is_the_lowest_budget_that_loses_no_more():
    assert KNOWN.share_for_loss(0.05, 500) == pytest.approx(0.8)
    assert KNOWN.share_for_loss(0.175, 500) == pytest.approx(0.7)
    assert KNOWN.share_for_loss(0.025, 500) == pytest.approx(0.95), "0.9 is taken to lose no more than 0.8 does"
    assert KNOWN.share_for_loss(5.0, 500) == 0.6
    assert KNOWN.share_for_loss(0.05, 8000) == pytest.approx(0.75), "of the nearest context"


def test_a_share_loses_what_lies_between_the_points():
    assert KNOWN.loss(0.7, 500) == (pytest.approx(0.175), True)
    assert KNOWN.loss(0.95, 500) == (pytest.approx(0.025), True)
    assert KNOWN.loss(1, 500) == (0, True)
    assert KNOWN.loss(0.75, 8000) == (pytest.approx(0.05), True)
    assert KNOWN.loss(0.5, 500) == (pytest.approx(0.3), False), "below what was measured it is more"


def test_points_are_ordered_and_given_once():
    for points in ((point(512, 0.8, 0.1), point(512, 0.6, 0.2)), (point(512, 0.8, 0.1), point(512, 0.8, 0.1))):
        with pytest.raises(ValidationError, match="ordered"):
            curve(*points)


def test_points_take_the_time_of_another_machine_and_lose_what_they_lost():
    curve, clock = made_curve(), made_clock()
    (old,), (point,) = curve.points, curve.on(clock).points
    assert (point.nats, point.mlp, point.attention) == (old.nats, old.mlp, old.attention)
    assert point.step_ms == pytest.approx(10.5 + 0.4 - 0.6 * 6)
    assert point.budget == pytest.approx(point.step_ms / 10.5, abs=1e-3)
    assert point.speed == pytest.approx(10.5 / point.step_ms)
    assert curve.on(clock).about.startswith("Times of cpu int8, 2 threads of a fast one")
    assert curve.on(made_clock(mlp_ms=0.1)) is None, "nothing is saved there"
    assert curve.opening() == pytest.approx(1 - 0.3 * 0.1)
    assert curve.on(clock).model_dump_json() == curve.on(clock).model_dump_json()
    assert curve.on(clock).model_dump()["clock"] == curve.clock.model_dump()
