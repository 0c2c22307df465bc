"""A calibration of a model without a policy, in at most half a minute: thresholds, an allocation, and a split."""

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from solm.backends.session import Session
from solm.core.actions import DENSE, FULL_BITS
from solm.core.arrays import as_numpy
from solm.core.cost import ModelShapes, ceil_share, site_parts, site_shares
from solm.core.sparsity import KNOTS, Allocation, SparsityConfig
from solm.policies.calibration import Calibration
from solm.policies.curves import PROBES, UNIFORM, priced_curves, site_axes, site_losses
from solm.runtime.controlled import ControlledModel

SECONDS = 24.0
"""That a calibration takes at most, but for its least: then every site is probed once, in all layers together."""
_TEXTS, _BEFORE, _SCORED = 2, 160, 56
"""Texts, tokens that are read densely before those that are scored, and those of each text."""
_PAGES, _SLOPE = 0.2, 10.0
"""Share of the pages at which their loss is measured, and how its logarithm falls with the share: 8 to 12 was measured
for 0.5 and 1.5 billion weights."""
_LAYERS_TOGETHER = 3
"""Neighbouring layers that are at least probed together: what a single one loses is near what rounding does."""
_HIDDEN, _PROJECTIONS = 0.6, 0.55
"""What weights that the hidden site and attention's projections leave out save, over as many of gate and up: measured
for the same two."""
_SLICE = 8
"""Rows of logits that stay in the last-level cache."""
Progress = Callable[[str, int, int], None]
"""Called with what is done now, parts done and parts in all."""


def can_calibrate(lm: ControlledModel) -> bool:
    """Whether the rules of `lm` have room for thresholds and an allocation."""
    rules = lm.sparsity
    return (
        lm.beside_engine and lm.trained is None and rules.allocation is None and rules.thresholds is None
        and rules.mlp_site != "input" and rules.window > 0 and rules.bits_site != "weights"
    )  # fmt: skip


def worth_parts(shapes: ModelShapes, sparsity: SparsityConfig) -> dict[str, float]:
    """The parts of `SparsityConfig` by which a step's realised share follows its time, estimated; none where the share
    is one of experts."""
    if sparsity.mlp_site == "experts":
        return {}
    inputs, hidden = shapes.up_weights, _HIDDEN * shapes.down_weights
    projections = _PROJECTIONS * shapes.attention_weights
    return {
        "input_part": round(inputs / (inputs + hidden), 3),
        "projection_part": round(projections / (inputs + hidden + projections), 3),
    }


def known_text(lm: ControlledModel, count: int) -> np.ndarray:
    """`count` tokens of the text that solm carries, repeated where that is too short; [1, count] int64."""
    found: list[int] = []
    if lm.tokenizer is not None:
        found = list(lm.tokenizer.encode(Path(__file__).with_name("calibration.txt").read_text()))
    ids = np.array(found or range(min(lm.shapes.vocabulary, count)), dtype=np.int64)
    return np.resize(ids, count)[None]


def calibrate(lm: ControlledModel, progress: Progress, seconds: float = SECONDS) -> Calibration:
    """Find what `lm` leaves out first, for which see `can_calibrate`.

    Each site of the layers (`solm.core.sparsity.SITES`) is probed, in as many groups of neighbouring layers as there is
    time for: how far the predictions move where these alone leave channels out.
    """
    begun, name = time.monotonic(), "calibrating the model, once"
    before = min(_BEFORE, (lm.context or 1 << 20) - _SCORED - 1)
    windows = known_text(lm, _TEXTS * (before + _SCORED)).reshape(_TEXTS, -1)
    progress(name, 0, 1)
    plain = lm.sparsity.changed(**worth_parts(lm.shapes, lm.sparsity))
    thresholds = lm.backend.channel_thresholds(windows, plain.sites)  # type: ignore[arg-type]
    rules = plain.changed(thresholds=thresholds)
    probing = time.monotonic()
    probes = Probes(lm, windows, before)
    attention = float(probes.losses(rules, (_PAGES, 1.0, FULL_BITS)).mean())
    each = (time.monotonic() - probing) / 3  # reading took about as long as scoring
    layers, sites = lm.shapes.layers, site_axes(rules)
    most = int((seconds - (time.monotonic() - begun)) / (each * len(sites)))
    groups = np.array_split(np.arange(layers), max(1, min(most, layers // _LAYERS_TOGETHER)))
    costs = {site: np.zeros((layers, len(PROBES[site]))) for site in sites}
    for number, group in enumerate(groups):
        for place, site in enumerate(sites):
            done = number * len(sites) + place
            progress(name, 1 + done, 1 + len(groups) * len(sites))
            lost = probes.losses(alone(rules, lm.shapes, site, group, PROBES[site][0]), (1.0, 0.5, FULL_BITS))
            costs[site][group, 0] = lost.mean() / len(group)
    progress(name, 1, 1)
    losses = site_losses(costs, np.array(thresholds.limits))
    curves = priced_curves(losses, site_parts(rules, lm.shapes))
    allocation = Allocation(attention=(UNIFORM,) * layers, **curves)
    space = lm.space
    pages = [0.0 if keep == 1 else attention * np.exp(_SLOPE * (_PAGES - keep)) for keep in space.attention]
    channels = _level_costs(losses, rules.under(allocation), np.array(space.mlp))
    table = (tuple(map(float, pages)), tuple(channels.tolist()), (0.0,) * len(space.bits))
    return Calibration(
        input_part=rules.input_part, projection_part=rules.projection_part, thresholds=thresholds,
        allocation=allocation, space=space, costs=table, groups=len(groups),
    )  # fmt: skip


def alone(rules: SparsityConfig, shapes: ModelShapes, axis: str, units: Iterable[int], share: float) -> SparsityConfig:
    """`rules` under which some units of an axis, layers or for ``attention`` KV heads, keep `share` of it at every keep
    rate below 1, and all others keep everything."""
    whole = (1.0,) * KNOTS
    curves = {site: [whole] * shapes.layers for site in site_axes(rules)}
    curves["attention"] = [whole] * (shapes.layers * shapes.kv_heads)
    for unit in units:
        curves[axis][unit] = (share,) * (KNOTS - 1) + (1.0,)
    return rules.under(Allocation(**{name: tuple(some) for name, some in curves.items()}))


def _level_costs(losses: np.ndarray, rules: SparsityConfig, keeps: np.ndarray) -> np.ndarray:
    """Nats that steps at keep rates keeps [L] lose by `site_losses`: [L], falling to 0."""
    percent = ceil_share(site_shares(keeps, rules), losses.shape[-1] - 1)  # [sites, layers, L]
    lost = np.take_along_axis(losses.swapaxes(0, 1), percent, -1).sum((0, 1))
    return np.maximum.accumulate(lost[::-1])[::-1] - lost[-1]


class Probes:
    """Texts windows [N, before + T], of which the first `before` tokens are read densely when they are first needed;
    and what steps under some rules lose on the others."""

    def __init__(self, lm: ControlledModel, windows: np.ndarray, before: int):
        self._lm, self._before, self._tokens = lm, windows[:, :before], windows[:, before:]

    def losses(self, rules: SparsityConfig, action: tuple[float, ...]) -> np.ndarray:
        """[N] float64: by text the mean divergence (KL) from the dense predictions, nats per token, where all steps
        take `action`."""
        (dense, sums), logits = self._dense, self._logits(rules, action)
        moved = []
        for first in range(0, len(dense), _SLICE):
            some = slice(first, first + _SLICE)
            weights = np.exp(dense[some] - sums[some, None])
            moved.append(np.einsum("tv,tv->t", weights, dense[some] - logits[some]))
        lost = np.concatenate(moved) - sums + _log_sums(logits)
        return np.asarray(lost.clip(min=0).reshape(self._tokens.shape).mean(1))

    @cached_property
    def _session(self) -> Session:
        session = self._lm.session(self._before.shape[1])
        session.prefill(self._before)
        return session

    @cached_property
    def _dense(self) -> tuple[np.ndarray, np.ndarray]:
        logits = self._logits(self._lm.sparsity, DENSE)
        return logits, _log_sums(logits)

    def _logits(self, rules: SparsityConfig, action: tuple[float, ...]) -> np.ndarray:
        """[N * T, V] float32."""
        keep = np.broadcast_to(np.array(action, dtype=np.float64), (*self._tokens.shape, len(action)))
        logits = self._session.fork(1, self._tokens.shape[1], rules).extend(self._tokens, keep).logits
        return as_numpy(logits).astype(np.float32, copy=False).reshape(self._tokens.size, -1)


def _log_sums(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp)) of logits [T, V]: [T]."""
    tops = logits.max(-1)
    sums = [np.exp(row - top).sum(dtype=np.float64) for row, top in zip(logits, tops, strict=True)]
    return np.asarray(tops + np.log(sums))
