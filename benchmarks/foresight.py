"""What foreseeing a token's sensitivity is worth: predictions by ridge regression, and losses at equal shares."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from solm.evaluation.statistics import paired_difference

LEVELS, BASE = (0.45, 0.6, 0.8), 0.6
"""MLP shares that are measured, and the one that the layers before a look follow."""
_FINE = np.arange(45, 81) / 100
"""Shares that a token chooses from; between measured ones losses fall exponentially."""
_AT_BASE = int(np.abs(_FINE - BASE).argmin())
_LEAST_LOSS, _LEAST_SENSITIVITY = 1e-6, 0.05
_FOLDS, _PENALTIES = 4, np.logspace(0, 5, 11)
_HALVINGS = 60


@dataclass(frozen=True)
class Look:
    """A choice of the share of some layers. loss, cost, share: [W, T, shares], what it adds to the divergence and to
    the loss of the token that came, nats, and to the realised share of all layers."""

    loss: np.ndarray
    cost: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, kl: np.ndarray, cost: np.ndarray, share: np.ndarray, place: int, end: int | None) -> "Look":
        """Of the layers from look `place` up to look `end`, None: to the last layer; from arrays [W, D, L, T] for D
        looks and the L levels, each of all layers from a look on."""

        def part(values: np.ndarray, exponential: bool) -> np.ndarray:
            from_here = _between(values[:, place], exponential)
            return from_here if end is None else from_here - _between(values[:, end], exponential)

        return cls(part(kl, True), part(cost, False), part(share, False))

    @property
    def sensitivity(self) -> np.ndarray:
        """[W, T]: how steeply a token's divergence follows the average one, 1 on average."""
        curve = self.loss.mean((0, 1))
        rise = curve - curve[_AT_BASE]
        own = (self.loss - self.loss[..., _AT_BASE, None]) @ rise / (rise @ rise)
        return np.maximum(own, _LEAST_SENSITIVITY)


def _between(values: np.ndarray, exponential: bool) -> np.ndarray:
    """Values [W, L, T] at the levels as [W, T, shares]."""
    known = np.moveaxis(values.astype(np.float64), 1, -1)
    known = np.log(np.maximum(known, _LEAST_LOSS)) if exponential else known
    lower = np.clip(np.searchsorted(LEVELS, _FINE, side="right") - 1, 0, len(LEVELS) - 2)
    low, high = np.array(LEVELS)[lower], np.array(LEVELS)[lower + 1]
    part = (_FINE - low) / (high - low)
    found = known[..., lower] * (1 - part) + known[..., lower + 1] * part
    return np.exp(found) if exponential else found


def predicted(known: np.ndarray, sensitivities: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Sensitivities [V, T] of tokens with features asked [V, T, F], learned from known [W, T, F] with [W, T].

    A ridge regression of their logarithms, whose penalty loses least on texts left out, and a Poisson regression on
    what it predicts there, which says how far it is to be believed.
    """
    texts, steps, _ = known.shape
    mean, spread = known.mean((0, 1)), known.std((0, 1)) + 1e-9
    x, y = (known - mean) / spread, np.log(sensitivities)
    outside = np.zeros((len(_PENALTIES), texts, steps))
    for fold in range(_FOLDS):
        out = np.arange(texts) % _FOLDS == fold
        weights, level = _ridge(x[~out], y[~out])
        outside[:, out] = np.moveaxis(x[out] @ weights, -1, 0) + level
    best = int(((outside - y) ** 2).mean((1, 2)).argmin())
    weights, level = _ridge(x, y)
    base, slope = _trust(outside[best].ravel(), sensitivities.ravel())
    return np.asarray(np.exp(base + slope * ((asked - mean) / spread @ weights[:, best] + level)))


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [F, penalties] of x [..., F] for y [...], and the mean of y."""
    flat, level = x.reshape(-1, x.shape[-1]), float(y.mean())
    values, vectors = np.linalg.eigh(flat.T @ flat)
    turned = vectors.T @ (flat.T @ (y.ravel() - level))
    return vectors @ (turned[:, None] / (values.clip(min=0)[:, None] + _PENALTIES)), level


def _trust(logs: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """The a and b >= 0 at which exp(a + b * logs) is the best Poisson mean of what was seen, by Newton's method."""
    rows = np.stack([np.ones_like(logs), logs - logs.mean()], 1)
    found = np.array([np.log(seen.mean()), 0.0])
    for _ in range(50):
        mean = np.exp(rows @ found)
        found = found + np.linalg.solve((rows * mean[:, None]).T @ rows + 1e-9 * np.eye(2), rows.T @ (seen - mean))
    slope = max(0.0, float(found[1]))
    return float(np.log(seen.mean()) - np.log(np.exp(slope * rows[:, 1]).mean())) - slope * float(logs.mean()), slope


def saving(curves: list[Look], looks: list[Look], foreseen: list[np.ndarray]) -> dict[str, Any]:
    """What tokens lose that take, at every look, the share of the lowest predicted loss plus price.

    curves: the looks on texts to learn from, whose averages are the costs of a token of sensitivity 1. looks: on the
    texts that are judged. foreseen: per look sensitivities [W, T]. Prices are such that every text realises what it
    does where all layers are at `BASE`. `nats` and `saved`, the part of the loss of the same looks where they foresee
    nothing, are divergences; `saved_by_text` has the average `saved`; `came` is the difference in nats of the tokens
    that came.
    """
    target = sum(look.share[..., _AT_BASE] for look in looks).mean(1)
    costs = [(look.loss.mean((0, 1)), look.share.mean((0, 1))) for look in curves]

    def spent(guesses: list[np.ndarray], price: np.ndarray) -> np.ndarray:
        """Loss, cost and share of every text [3, W]."""
        total = np.zeros((3, len(target)))
        for look, guess, (cost, rate) in zip(looks, guesses, costs, strict=True):
            choice = (guess[..., None] * cost + price[:, None, None] * rate).argmin(-1)[..., None]
            total += [np.take_along_axis(x, choice, -1).mean((1, 2)) for x in (look.loss, look.cost, look.share)]
        return total

    def at_target(guesses: list[np.ndarray]) -> np.ndarray:
        low, high = np.full(len(target), 1e-6), np.full(len(target), 1e4)
        for _ in range(_HALVINGS):
            middle = np.sqrt(low * high)
            above = spent(guesses, middle)[2] > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        cheap, dear = spent(guesses, low), spent(guesses, high)
        gap = cheap[2] - dear[2]
        part = np.where(gap < 1e-12, 0.0, (target - dear[2]) / np.maximum(gap, 1e-12)).clip(0, 1)
        return np.asarray(dear + part * (cheap - dear))

    ours, theirs = at_target(foreseen), at_target([np.ones_like(guess) for guess in foreseen])
    saved, came = paired_difference(theirs[0], ours[0]), paired_difference(ours[1], theirs[1])
    whole = float(theirs[0].mean())
    return {
        "nats": float(ours[0].mean()), "blind_nats": whole, "missed": float(np.abs(ours[2] - target).max()),
        "saved": {name: value / whole for name, value in saved._asdict().items()}, "came": came._asdict(),
        "saved_by_text": ((theirs[0] - ours[0]) / whole).tolist(),
    }  # fmt: skip
