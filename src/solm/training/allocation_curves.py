"""The curves of an allocation that lose least, from what layers and heads lose at some shares."""

import numpy as np

from solm.core.allocation import KNOTS, Curves

UNIFORM = tuple(knot / (KNOTS - 1) for knot in range(KNOTS))
"""The curve of a layer or head that keeps the average."""
_STEP = 0.01
"""Share that is given to one unit at a time."""
_LEAST, _FLATTEST = 1e-5, -0.5
"""Bounds against noise: the lowest cost in nats, and the flattest slope of its logarithm per share."""


def greedy_curves(costs: np.ndarray, shares: tuple[float, ...]) -> Curves:
    """Curves of an allocation [units][KNOTS], from costs [units, shares] in nats of layers or heads that alone keep a
    share.

    The logarithm of a unit's cost is modelled as linear in its share, and costs of units as additive. The share is
    given out in steps of 0.01, each to the unit whose cost falls most. Curves therefore rise, and the mean at every
    knot is exactly the knot's share.
    """
    units = len(costs)
    grid = np.arange(0, 1 + _STEP / 2, _STEP)
    slope, height = np.polyfit(shares, np.log(costs.clip(_LEAST)).T, 1)
    predicted = np.exp(height[:, None] + slope.clip(max=_FLATTEST)[:, None] * grid)
    saved = np.append(-np.diff(predicted, axis=1), np.full((units, 1), -1.0), axis=1)
    taken, last = np.zeros(units, dtype=int), 0
    curves = np.zeros((units, KNOTS))
    for knot in range(KNOTS):
        wanted = units * knot / (KNOTS - 1)
        while grid[taken].sum() < wanted - 1e-9:
            last = int(saved[np.arange(units), taken].argmax())
            taken[last] += 1
        curves[:, knot] = grid[taken]
        curves[last, knot] -= grid[taken].sum() - wanted
    curves[:, -1] = 1
    return tuple(tuple(curve) for curve in np.maximum.accumulate(curves.clip(0, 1), axis=1).round(9).tolist())
