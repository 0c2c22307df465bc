"""Which weights stand for a model, on either backend: what a policy's `WeightSample` is made of."""

from collections.abc import Callable

import numpy as np

_LAYERS, _INPUTS, _NORM = 8, 64, 32
"""Layers that are sampled, and numbers of each: inputs of one output of the down projection, and of a norm."""


def sampled(layers: int, read: Callable[[int], tuple[np.ndarray | None, np.ndarray | None]]) -> dict[str, np.ndarray]:
    """``mlp`` and ``norms``, float32 [L, n], of up to `_LAYERS` layers, evenly spread; empty where one lacks them.

    read: gives of a layer the middle row of its down projection and the first of its norms by name.
    """
    rows = [read(int(layer)) for layer in np.linspace(0, layers - 1, min(_LAYERS, layers))]
    return {
        name: _together([part[place] for part in rows], count)
        for place, (name, count) in enumerate((("mlp", _INPUTS), ("norms", _NORM)))
    }


def _together(parts: list[np.ndarray | None], count: int) -> np.ndarray:
    enough = [part[:count] for part in parts if part is not None and part.size >= count]
    return np.array(enough if len(enough) == len(parts) else [], np.float32)


def spread(vocabulary: int) -> np.ndarray:
    """Token ids [32], evenly spread: those whose embeddings are sampled. As torch.linspace has them, in float32 from
    either end."""
    last, steps = np.float32(vocabulary - 1), np.arange(32, dtype=np.float32)
    gap = last / np.float32(31)
    return np.where(steps < 16, gap * steps, last - gap * (31 - steps)).astype(np.int64)
