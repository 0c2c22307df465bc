"""The curves of an allocation that lose least, from what layers, heads and sites lose at some shares."""

from collections.abc import Mapping

import numpy as np

from solm.core.allocation import KNOTS, Curves
from solm.core.sparsity import SparsityConfig

UNIFORM = tuple(knot / (KNOTS - 1) for knot in range(KNOTS))
"""The curve of a layer or head that keeps the average."""
_ROUNDED = 0.003
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


def split_sites(
    curves: dict[str, Curves],
    together: dict[str, list[float]],
    shares: Mapping[str, tuple[float, ...]],
    rounding: float,
    part: float,
) -> dict[str, Curves]:
    """Curves of the MLP's sites at whose knots the keep rate is the share that input channels, which count `part` of
    it, and hidden ones realise together, split so that the sum of what both lose is lowest.

    curves: of both sites, by the site's own average share. together: what all layers lose at the average `shares` of a
    site, nats, with the rounding cost `rounding`.
    """
    grid = np.linspace(0, 1, 1001)
    lost = {axis: _lost(np.array(costs) - rounding, shares[axis], grid) for axis, costs in together.items()}
    split: dict[str, list[float]] = {axis: [0.0] for axis in together}
    for knot in range(1, KNOTS - 1):
        rate = knot / (KNOTS - 1)
        rest = (rate - part * grid) / (1 - part)
        cost = lost["mlp"] + np.interp(rest, grid, lost["hidden"])
        # A site keeps no less where both together keep more, but for what rounding to the grid takes.
        allowed = (grid >= split["mlp"][-1]) & (rest >= split["hidden"][-1] - _ROUNDED) & (rest <= 1 + _ROUNDED)
        best = int(np.where(allowed, cost, np.inf).argmin())
        split["mlp"].append(float(grid[best]))
        split["hidden"].append(float(rest[best]))
    found = {}
    for axis, wanted in split.items():
        table = np.array(curves[axis])
        at = np.maximum.accumulate([*wanted, 1.0]).clip(max=1)
        found[axis] = tuple(tuple(np.interp(at, UNIFORM, curve).round(9).tolist()) for curve in table)
    return found


def uniform_sites(sparsity: SparsityConfig, sites: int) -> list[np.ndarray]:
    """The shares [KNOTS] that every layer keeps without an allocation, at the keep rates of the knots: of one site, or
    of the MLP's input and hidden channels where both have curves."""
    knots = np.array(UNIFORM)
    if sites == 1:
        return [knots]
    grid = np.linspace(0, 1, 1001)
    kept = sparsity.input_part * grid + (1 - sparsity.input_part) * grid**sparsity.hidden_power
    inputs = np.interp(knots, kept, grid)
    return [inputs, inputs**sparsity.hidden_power]


def faded(curves: Curves, alike: np.ndarray, above: float, until: float) -> Curves:
    """Curves that turn into the one of uniform shares, `alike` [KNOTS], between two keep rates. One that has risen
    further stays where it is."""
    part = np.clip((np.array(UNIFORM) - above) / (until - above), 0, 1)
    table = np.maximum.accumulate((1 - part) * np.array(curves) + part * alike, axis=1)
    return tuple(tuple(curve) for curve in table.round(9).tolist())


def _lost(costs: np.ndarray, shares: tuple[float, ...], grid: np.ndarray) -> np.ndarray:
    """What all layers lose at every share of `grid`, from costs at some: a line between logarithms, 0 at 1, falling."""
    nats = np.log(np.maximum.accumulate(costs[::-1])[::-1].clip(_LEAST))
    slope = min((nats[1] - nats[0]) / (shares[1] - shares[0]), _FLATTEST)
    low = np.exp(nats[0] + slope * (grid - shares[0]))
    inside = np.exp(np.interp(grid, shares, nats))
    high = np.exp(nats[-1]) * (1 - grid) / (1 - shares[-1])
    return np.where(grid < shares[0], low, np.where(grid > shares[-1], high, inside))
