"""A budget, or what steps spent, in all the words that are known: shares per axis, bytes, time, speed, loss.

Keys: ``attention``, ``mlp`` and ``bits``, shares per axis; ``net``, their mean; ``bytes``, a share of what dense steps
read. Where step times are known also ``time``, a share of the dense step's milliseconds, ``speed``, its inverse, and
``ms`` per step. Where a policy with a measured curve splits the budget also ``loss``, nats per token above the dense
model, and ``perplexity``, the factor that this is worth; below the lowest budget measured ``loss_above`` instead.
"""

import math
from collections.abc import Sequence

import numpy as np

from solm.core.actions import AXES
from solm.core.budget import Budget
from solm.runtime.offer import Offer
from solm.runtime.reply import Compute, Token

Terms = dict[str, float]


def asked_terms(offer: Offer, budget: Budget, context: int, split: bool) -> Terms:
    """Those of a budget, for steps that see `context` tokens. split: the policy split it over the axes at one price for
    a millisecond, which is what its curve was measured with."""
    found = dict(zip(AXES, budget.shares, strict=True)) | {"net": budget.net, "bytes": offer.bytes(budget, context)}
    known = offer.time(budget, context)
    if known is not None:
        share, dense = known
        found |= _timed(share, dense)
        if split and offer.curve is not None:
            found |= _lost(offer, share, context)
    return found


def spent(offer: Offer, tokens: Sequence[Token], prompt: int, requested: Terms) -> Compute:
    """What the steps of a reply to `prompt` tokens spent on average, per axis those that it could control.

    requested: what was asked for, which stands beside it."""
    steps = tokens[1:]
    shares = np.array([[step.realised[axis] for axis in AXES] for step in steps] or [[1.0] * len(AXES)])
    on = np.array([[step.controllable[axis] for axis in AXES] for step in steps] or [[False] * len(AXES)])
    averages = np.where(on.any(0), (shares * on).sum(0) / on.sum(0).clip(min=1), 1.0)
    found: Terms = dict(zip(AXES, averages.tolist(), strict=True))
    found["net"] = sum(found.values()) / len(AXES)
    found["bytes"] = float(np.mean([step.cost for step in steps])) if steps else 1.0
    if offer.measured is not None:
        seen = prompt + 1 + np.arange(len(shares))
        dense = float(np.mean(offer.measured.milliseconds(np.ones_like(shares), seen)))
        share = float(np.mean(offer.measured.milliseconds(shares, seen))) / dense
        found |= _timed(share, dense)
        if requested.keys() & {"loss", "loss_above"}:
            found |= _lost(offer, share, int(seen.mean()))
    return Compute(requested, found, sum(not step.controllable["attention"] for step in steps))


def mean_terms(terms: Sequence[Terms], weights: Sequence[int]) -> Terms:
    """The mean of several, by what all of them have."""
    names = [name for name in terms[0] if all(name in each for each in terms)]
    found = {name: float(np.average([each[name] for each in terms], weights=weights)) for name in names}
    if "speed" in found:
        found["speed"] = 1 / found["time"]
    if "perplexity" in found:
        found["perplexity"] = math.exp(found["loss"])
    return found


def _timed(share: float, dense: float) -> Terms:
    return {"time": share, "speed": 1 / share, "ms": share * dense}


def _lost(offer: Offer, share: float, context: int) -> Terms:
    assert offer.curve is not None
    loss, exact = offer.curve.loss(share, context)
    return {"loss": loss, "perplexity": math.exp(loss)} if exact else {"loss_above": loss}
