"""`MeasuredCost`: what a step takes in milliseconds, as a linear function of the shares that it realises."""

from typing import Any

import numpy as np

from solm.core.actions import FULL_BITS
from solm.core.cost import ModelShapes
from solm.core.nested import HIGH_BITS
from solm.core.shares import axis_levels
from solm.core.sparsity import SparsityConfig
from solm.core.timings import LEVELS, StepTimings

_PART_RANGE = 0.15
"""How far from the part of the weights a measured `input_part` may lie: timings are noisy, and shares depend on it."""
_UPPER_RANGE = (0.5, 1.0)
"""In which a measured `upper_bits_part` is believed: half of the bits take at least half of the time."""
Rates = tuple[float, float, float]
"""Per axis what the whole of it costs, in one unit for all axes."""


class MeasuredCost:
    """Milliseconds of a step: those of the dense step less, per axis, a rate times the share that is left out.

    A rate is fitted to the measured levels of all contexts by least squares, at the shares that these levels realise,
    and is at least 0. That of attention is proportional to the context: what its keys save after 512 tokens is less
    than the noise of a timing, and after 4,096 it is not. That of the MLP, which does the same work in every context,
    is one for all of them. Being linear, the cost of an average is the average cost: arms of equal average shares take
    equal time. Between measured contexts dense steps and rates are interpolated; beyond them the nearest holds.
    """

    def __init__(self, timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes):
        self.timings = timings
        contexts: Any = np.array(timings.contexts)
        known = LEVELS.model_copy(update={"attention": timings.attention, "mlp": timings.mlp})
        rules, of_channels = _timed_rules(timings, sparsity, shapes)
        attention, mlp, _ = axis_levels(known, contexts, rules, shapes)
        left_out = of_channels * (1 - np.broadcast_to(np.asarray(mlp), np.shape(timings.mlp_ms)))
        dense = np.array(timings.dense_ms)
        of_mlp = _rate(left_out, dense[:, None] - timings.mlp_ms)
        keys_left = contexts[:, None] * (1 - np.asarray(attention))
        of_key = _rate(keys_left, dense[:, None] - timings.attention_ms)
        rates = [of_key * contexts, np.full(dense.shape, of_mlp)]
        halved = dense if not timings.halved_ms else np.array(timings.halved_ms)
        rates.append(np.maximum((dense - halved) / (1 - HIGH_BITS / FULL_BITS), 0))
        self._contexts, self._dense, self._rates = contexts, dense, np.stack(rates)

    def dense(self, context: float) -> float:
        """Milliseconds of the dense step that sees `context` keys."""
        return self.timings.dense(context)

    def rates(self, context: float) -> Rates:
        """Per axis the milliseconds of all of it, at `context` keys."""
        attention, mlp, bits = (float(np.interp(context, self._contexts, axis)) for axis in self._rates)
        return attention, mlp, bits

    def milliseconds(self, realised: np.ndarray, kv_length: np.ndarray | float) -> np.ndarray:
        """Of steps of realised shares [..., 3] that see kv_length [...] keys: [...] float64."""
        dense = np.interp(kv_length, self._contexts, self._dense)
        rates = np.stack([np.interp(kv_length, self._contexts, axis) for axis in self._rates], -1)
        return np.asarray(dense - ((1 - realised) * rates).sum(-1))

    def share(self, realised: tuple[float, ...], context: float) -> float:
        """Of the dense step's milliseconds, for realised shares [3]."""
        return float(self.milliseconds(np.array(realised), context)) / self.dense(context)


def _timed_rules(timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes) -> tuple[SparsityConfig, float]:
    """The rules under which the levels of `timings` realise their shares, and what of `sparsity`'s share of channels
    these are: 1, unless either of them drops inputs of attention's projections and the other does not. Those of the
    projections are then taken to be as fast as the MLP's."""
    rules, part = sparsity.exact.under(None), sparsity.projection_part
    if part and not timings.projected:
        return rules.with_projections(0), 1 - part
    if timings.projected and not part and sparsity.mlp_site == "input+hidden":
        timed = projection_part(shapes)
        return rules.with_projections(timed), 1 / (1 - timed)
    return rules, 1.0


def projection_part(shapes: ModelShapes) -> float:
    """`SparsityConfig.projection_part` by weights, which holds without measurements."""
    weights = shapes.attention_weights + shapes.up_weights + shapes.down_weights
    return round(shapes.attention_weights / weights, 3)


def measured_parts(timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes) -> dict[str, float]:
    """`SparsityConfig.input_part` and `SparsityConfig.projection_part` that count milliseconds: what all input channels
    of the MLP take of what all its channels take, and what the inputs of attention's projections take of all. Where
    bits are those of weights also `SparsityConfig.upper_bits_part`: what the MLP takes with their upper bits alone.

    Fitted by least squares to all levels and contexts, of steps whose sites keep shares together and of steps that
    leave out channels of one kind of site. The first is at most 0.15 from the part of the weights, the second between a
    quarter of it and all; they hold without measurements.
    """
    by_weights = shapes.up_weights / (shapes.up_weights + shapes.down_weights)
    most = projection_part(shapes) if sparsity.projection_part else 0.0
    if not timings.hidden:
        return {"input_part": by_weights, "projection_part": most}
    rows, saved = [], []
    for context, dense_ms in enumerate(timings.dense_ms):
        for level, ms in zip(timings.mlp, timings.mlp_ms[context], strict=True):
            rows.append((1 - level, 1 - level**sparsity.hidden_power, (1 - level) * (most > 0)))
            saved.append(dense_ms - ms)
        for site, (levels, table) in enumerate(
            ((timings.hidden, timings.hidden_ms), (timings.projected, timings.projected_ms)), start=1
        ):
            for level, ms in zip(levels, table[context] if levels else (), strict=True):
                rows.append((0.0, (1 - level) * (site == 1), (1 - level) * (site == 2)))
                saved.append(dense_ms - ms)
    inputs, hidden, projected = np.maximum(np.linalg.lstsq(np.array(rows), np.array(saved), rcond=None)[0], 0)
    of_inputs = inputs / (inputs + hidden) if inputs + hidden > 0 else by_weights
    of_projections = projected / (inputs + hidden + projected) if timings.projected and inputs + hidden > 0 else most
    return {
        "input_part": round(float(np.clip(of_inputs, by_weights - _PART_RANGE, by_weights + _PART_RANGE)), 3),
        "projection_part": round(float(np.clip(of_projections, most / 4, most)), 3),
        **_upper_bits_part(timings, float(inputs + hidden)),
    }


def _upper_bits_part(timings: StepTimings, of_mlp: float) -> dict[str, float]:
    """`SparsityConfig.upper_bits_part`, where it was measured. of_mlp: milliseconds of all of the MLP's channels."""
    if not timings.halved_ms or of_mlp <= 0:
        return {}
    saved = float(np.mean(np.subtract(timings.dense_ms, timings.halved_ms)))
    return {"upper_bits_part": round(float(np.clip(1 - saved / of_mlp, *_UPPER_RANGE)), 3)}


def _rate(left_out: np.ndarray, saved: np.ndarray) -> float:
    """Milliseconds per unit left out, from what measured levels leave out [...] and the milliseconds that they save
    [...]. 0 where no level leaves anything out."""
    return max(float((left_out * saved).sum() / max((left_out**2).sum(), 1e-12)), 0.0)
