"""How many rows of a server fit into memory, before a model is loaded."""

from typing import TYPE_CHECKING

from solm.core.errors import SolmError
from solm.runtime.facts import ModelFacts

if TYPE_CHECKING:
    from solm.serving.settings import ServeSettings

_GIB = 1 << 30
_LEAST_WEIGHT = 0.5  # bytes: weights of 4 bits


def cache_numbers(
    model: str, backend: str, dtype: str, precision: str | None, kv_cache_dtype: str | None
) -> tuple[bool, bool]:
    """Whether keys and values will be in float32, and whether in int8. backend ``auto`` counts as ``cpu``."""
    from solm.runtime.load import default_kv_cache

    if backend == "torch":
        import torch

        from solm.backends.torch.load import resolve_dtype

        return resolve_dtype(dtype) == torch.float32, False
    numbers = precision or "auto"
    return numbers == "float32", (kv_cache_dtype or default_kv_cache(model, numbers)) == "int8"


def rows_that_fit(
    chosen: "ServeSettings", facts: ModelFacts, float32: bool, int8: bool, explicit: bool
) -> "ServeSettings":
    """Settings whose rows, each as long as the model's context, fit into the free memory beside weights and prefixes.

    float32, int8: of `cache_numbers`. explicit: somebody asked for so many rows, which is refused where they do not
    fit; else there are fewer. Where the context is not known nothing is checked. Weights count as little as they may
    take.
    """
    from solm.backends.cpu.files.layout import cache_memory
    from solm.backends.machine import free_memory

    free = free_memory()
    if facts.context is None:
        return chosen
    shapes = facts.shapes
    row = cache_memory(shapes, facts.context, float32, int8)
    weights = _LEAST_WEIGHT * (shapes.layers * shapes.layer_weights + shapes.head_weights)
    left = max(0, free - int(weights + chosen.prefix_mb * 1e6))
    most = left // row
    if chosen.max_rows <= most:
        return chosen
    if explicit or not most:
        raise SolmError(
            f"--max-rows: {chosen.max_rows} rows of {facts.context} tokens take {chosen.max_rows * row / _GIB:.1f} GiB "
            f"of keys and values, and {left / _GIB:.1f} GiB of memory are left beside the "
            f"weights and --prefix-mb: {most} fit"
        )
    return chosen.model_copy(update={"max_rows": most})
