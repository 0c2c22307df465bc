"""What the sites of a model count of a step's realised share, by the milliseconds that they were measured to take."""

import numpy as np

from solm.core.cost import ModelShapes, StepTimings
from solm.core.sparsity import SparsityConfig

_PART_RANGE = 0.15
"""How far from the part of the weights a measured `input_part` may lie: timings are noisy, and shares depend on it."""
_UPPER_RANGE = (0.5, 1.0)
"""In which a measured `upper_bits_part` is believed: half of the bits take at least half of the time."""


def measured_parts(timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes) -> dict[str, float]:
    """`SparsityConfig.input_part` and `SparsityConfig.projection_part` that count milliseconds: what all input channels
    of the MLP take of what all its channels take, and what the inputs of attention's projections take of all. Where
    bits are those of weights also `SparsityConfig.upper_bits_part`: what the MLP takes with their upper bits alone.

    Fitted by least squares to all levels and contexts, of steps whose sites keep shares together and of steps that
    leave out channels of one kind of site. The first is at most 0.15 from the part of the weights, the second between a
    quarter of it and all; they hold without measurements.
    """
    by_weights = shapes.up_weights / (shapes.up_weights + shapes.down_weights)
    most = shapes.projection_part if sparsity.projection_part else 0.0
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
