"""How many rows of a server fit into memory, before a model is loaded."""

from typing import TYPE_CHECKING

from solm.core.errors import SolmError
from solm.runtime.facts import ModelFacts

if TYPE_CHECKING:
    from solm.serving.settings import ServeSettings

_GIB = 1 << 30
_LEAST_WEIGHT = 0.5  # bytes: weights of 4 bits


def rows_that_fit(
    chosen: "ServeSettings", facts: ModelFacts, kv_cache_dtype: str | None, explicit: bool
) -> "ServeSettings":
    """Settings whose rows fit into the memory that is free, each as long as the model's context.

    explicit: somebody asked for so many rows, which is refused where they do not fit; else there are fewer. Where the
    context or the free memory is not known nothing is checked. Weights count as little as they may take.
    """
    from solm.backends.free_memory import free_memory

    free = free_memory()
    if free is None or facts.context is None:
        return chosen
    shapes = facts.shapes
    number = 1 if kv_cache_dtype == "int8" else 2
    row = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * number * facts.context
    per_layer = shapes.attention_weights + shapes.up_weights + shapes.down_weights
    left = free - int(_LEAST_WEIGHT * (shapes.layers * per_layer + shapes.head_weights))
    most = max(0, left) // row
    if chosen.max_rows <= most:
        return chosen
    if explicit or not most:
        raise SolmError(
            f"--max-rows: {chosen.max_rows} rows of {facts.context} tokens take {chosen.max_rows * row / _GIB:.1f} GiB "
            f"of keys and values, and {max(0, left) / _GIB:.1f} GiB of memory are left beside the weights: {most} fit"
        )
    return chosen.model_copy(update={"max_rows": most})
