"""The curves of an allocation of channels by one price: what it costs to leave out an activation, in every site."""

import numpy as np

from solm.core.allocation import KNOTS, Curves
from solm.core.thresholds import PERCENTAGES

PROBES = {"mlp": (0.45, 0.95), "hidden": (0.2,), "qkv": (0.45,), "out": (0.45,)}
"""By site, in the order of `solm.core.thresholds.SITES`, shares of its channels at which a layer is measured alone. The
first costs several times what rounding does. At 0.95 nearly all that is lost comes from later layers, which round
differently: this is subtracted."""
_POWER = 1.3
"""How a loss grows with the mean square that a site leaves out: about 1.0 (hidden channels) to 1.3 (input channels) was
measured where one layer leaves channels out, and 1.3 lost least where all do (0.5 billion weights, training texts)."""
_LEAST = 1e-5
"""Nats: bound against noise."""
_CELLS = PERCENTAGES - 1


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


def priced_curves(lost: np.ndarray, parts: tuple[float, ...]) -> dict[str, Curves]:
    """Curves of the sites, by the names of `PROBES`, from what they lose [layers, sites, 101].

    One per cent of a site's channels is worth what it loses less per time that it takes. Those worth most are kept, of
    all layers and sites together, until they realise the share of a knot: all sites have the same price of time.
    parts: of the time of all channels what those of each site take.
    """
    layers, sites, _ = lost.shape
    weight = np.array(parts)
    worth = -np.diff(lost, axis=-1) / weight[:, None]
    order = np.argsort(-worth, axis=None, kind="stable")
    realised = np.broadcast_to(weight[:, None] / (layers * _CELLS), worth.shape).flatten()[order].cumsum()
    table = np.ones((KNOTS, layers * sites))
    for knot in range(KNOTS - 1):
        kept = order[: np.searchsorted(realised, knot / (KNOTS - 1) + 1e-9)]
        table[knot] = np.bincount(kept // _CELLS, minlength=layers * sites) / _CELLS
    by_site = table.reshape(KNOTS, layers, sites)
    return {
        axis: tuple(map(tuple, by_site[..., site].T.tolist())) for site, axis in zip(range(sites), PROBES, strict=False)
    }
