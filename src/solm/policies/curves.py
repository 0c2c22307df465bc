"""Curves of an allocation: of the channels of all sites under one price of time, and of the pages of KV heads."""

from typing import Any

import numpy as np

from solm.core.sparsity import KNOTS, MLP_SITES, PERCENTAGES, SITES, Allocation, Curves, SparsityConfig

PROBES = {"mlp": (0.45, 0.95), "hidden": (0.2,), "qkv": (0.45,), "out": (0.45,)}
"""By site, in the order of `solm.core.sparsity.SITES`, shares of its channels at which a layer is measured alone. The
first costs several times what rounding does. At 0.95 nearly all that is lost comes from later layers, which round
differently: this is subtracted."""
BIT_PROBES = {"input_bits": (0.0,), "hidden_bits": (0.0,)}
"""The same for the bits of weights that the sites of the MLP read: a layer alone reads only the upper ones."""
HEAD_PROBES = (0.02, 0.12, 0.3)
"""Shares of the pages that may be skipped which one KV head keeps while the others keep all."""
PROBED = {"attention": HEAD_PROBES, **PROBES, **BIT_PROBES}
"""By axis the shares that one unit keeps while all others keep everything: a KV head of its pages, a layer of the
channels of one site, or a layer of the bits of one site's weights."""
CHECKED = {"attention": (0.1, 0.2, 0.4), "mlp": (0.5, 0.7, 0.9)}
"""Keep rates at which the allocation is compared with uniform shares, on other texts."""
_POWER = 1.3
"""How a loss grows with the mean square that a site leaves out: about 1.0 (hidden channels) to 1.3 (input channels) was
measured where one layer leaves channels out, and 1.3 lost least where all do (0.5 billion weights, training texts)."""
_LEAST = 1e-5
"""Nats: bound against noise."""
_CELLS = PERCENTAGES - 1
UNIFORM = tuple(knot / (KNOTS - 1) for knot in range(KNOTS))
"""The curve of a layer or head that keeps the average."""
_STEP = 0.01
"""Share of the pages that is given to one head at a time."""
_FLATTEST = -0.5
"""Bound against noise: the flattest slope of a cost's logarithm per share."""
_LOWEST_PRICE, _HIGHEST_PRICE, _HALVINGS = 1e-9, 1e9, 60
"""Nats for the time of all channels: bounds of a search."""


def site_axes(sparsity: SparsityConfig) -> tuple[str, ...]:
    """What is allocated under one price of time: the sites of a layer that drop channels, and the bits of its weights
    where these can be read in part."""
    return (*list(PROBES)[: sparsity.sites], *(BIT_PROBES if sparsity.bits_site == "weights" else ()))


def trusted(result: dict[str, Any]) -> Allocation:
    """The allocation in a result of `find_allocation`. An axis is uniform where, on the texts left out, it lost more on
    average than uniform shares."""
    allocation = Allocation.model_validate(result["allocation"])
    changes: dict[str, Any] = {}
    for axis in CHECKED:
        if not sum(row["even"] - row["allocation"] for row in result["checked"] if row["axis"] == axis) > 0:
            changes[axis] = (UNIFORM,) * len(getattr(allocation, axis))
            # Hidden channels are cheaper to lose, as with `SparsityConfig.hidden_power`.
            if axis == "mlp" and allocation.hidden is not None:
                changes["hidden"] = (tuple(share**2 for share in UNIFORM),) * allocation.layers
                others = SITES[MLP_SITES : allocation.sites]
                changes |= dict.fromkeys(others, changes[axis]) | dict.fromkeys(BIT_PROBES)
    return allocation.model_copy(update=changes)


def left_out(limits: np.ndarray) -> np.ndarray:
    """Mean square per channel of the activations that a share leaves out, of all percentages kept [layers, sites, 101].

    limits [layers, sites, 101]: as of `ChannelThresholds`, the quantiles of |x| from the largest to the least.
    """
    rising = limits[..., ::-1].astype(np.float64) ** 2
    cells = (rising[..., 1:] + rising[..., :-1]) / 2 / _CELLS
    return np.concatenate([np.zeros_like(rising[..., :1]), cells.cumsum(-1)], -1)[..., ::-1]


def site_losses(costs: dict[str, np.ndarray], limits: np.ndarray) -> np.ndarray:
    """Nats that sites lose at all percentages kept: [layers, sites, 101].

    costs: by site, the first ones of `PROBES` or all, [layers, shares] nats of a layer that alone keeps a share.
    limits: as in `left_out`.
    The loss follows the mean square that is left out, so that one probe gives the whole curve, and the part near 1,
    where a loss is too small to be measured, as well as any other.
    """
    squares = left_out(limits)
    found = []
    for site, axis in enumerate(axis for axis in PROBES if axis in costs):
        probed = squares[:, site, round(PROBES[axis][0] * _CELLS), None].clip(1e-30)
        cost = (costs[axis][:, 0] - costs["mlp"][:, -1]).clip(_LEAST)
        found.append(cost[:, None] * (squares[:, site] / probed) ** _POWER)
    return np.stack(found, 1)


def bit_losses(costs: dict[str, np.ndarray], sites: int) -> np.ndarray:
    """Nats that a layer loses which reads only the upper bits of a site's weights: [layers, sites], infinite where that
    is no choice. costs: by the names of `BIT_PROBES` and ``mlp``, as in `site_losses`."""
    found = np.full((len(costs["mlp"]), sites), np.inf)
    for site, axis in enumerate(axis for axis in BIT_PROBES if axis in costs):
        found[:, site] = (costs[axis][:, 0] - costs["mlp"][:, -1]).clip(_LEAST)
    return found


def priced_curves(
    lost: np.ndarray, parts: tuple[float, ...], of_bits: np.ndarray | None = None, upper_part: float = 1.0
) -> dict[str, Curves]:
    """Curves of the sites, by the names of `PROBES` and `BIT_PROBES`, from what they lose [layers, sites, 101].

    At a price of time every layer and site keeps the channels that are worth it, each by what it loses less per time
    that it takes. It gives up the lower bits of its weights where that and the channels which are worth their time then
    lose less, with the price of the time that is left. The curves have the lowest price at which the average step
    realises the share of a knot.

    parts: of the time of all channels what those of each site take. of_bits: of `bit_losses`; None: all bits are read.
    upper_part: the time of a channel of which only the upper bits are read, as a part of that of the whole one.
    """
    layers, sites, _ = lost.shape
    weight = np.array(parts) / layers
    worth = -np.diff(lost, axis=-1) * _CELLS / weight[:, None]
    kept, whole = np.ones((layers, sites)), np.ones((layers, sites), dtype=bool)
    shares, bits = np.ones((KNOTS, layers, sites)), np.ones((KNOTS, layers, sites))
    place = np.arange(layers)[:, None], np.arange(sites)

    def at(price: float) -> tuple[np.ndarray, np.ndarray, float]:
        """What is kept, which weights are read whole, and the share that this realises. Never more than at lower
        prices, so that curves rise."""
        options = []
        for part, more in ((1.0, 0.0), (upper_part, np.inf if of_bits is None else of_bits)):
            some = np.minimum((worth > price * part).sum(-1), np.round(kept * _CELLS).astype(int))
            loss = lost[(*place, some)] + more + price * part * weight * some / _CELLS
            options.append((some / _CELLS, loss))
        (full, full_loss), (upper, upper_loss) = options
        all_bits = whole & (full_loss <= upper_loss)
        share = np.where(all_bits, full, upper)
        return share, all_bits, float((share * np.where(all_bits, 1.0, upper_part) * weight).sum())

    for knot in reversed(range(KNOTS - 1)):
        low, high = _LOWEST_PRICE, _HIGHEST_PRICE
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if at(middle)[2] <= knot / (KNOTS - 1) + 1e-9 else (middle, high)
        kept, whole, _ = at(high)
        shares[knot], bits[knot] = kept, whole
    names = list(zip(range(sites), PROBES, strict=False))
    curves = {axis: _curves(shares[..., site]) for site, axis in names}
    if of_bits is not None:
        curves |= {axis: _curves(bits[..., site]) for site, axis in enumerate(BIT_PROBES)}
    return curves


def _curves(table: np.ndarray) -> Curves:
    return tuple(map(tuple, table.T.tolist()))


def greedy_curves(costs: np.ndarray, shares: tuple[float, ...]) -> Curves:
    """Curves of an allocation [units][KNOTS], from costs [units, shares] in nats of heads that alone keep a share.

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
