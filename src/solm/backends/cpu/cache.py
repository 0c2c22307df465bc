"""The KV cache of one row in the engine."""

import ctypes

import numpy as np

from solm.backends.cpu.engine import Engine, error_of
from solm.backends.cpu.structs import MESSAGE, PAGE
from solm.core.arrays import Array, as_numpy
from solm.core.errors import DataError


class Cache:
    """Keys and values of one row, with the first `length` tokens of `source`, if given, whose pages it shares.

    Pages are taken when they are first written to, at most for `capacity` tokens. Writing to a shared page makes a copy
    of it first, so that neither row sees what the other writes. Raises `SolmError` without memory, `DataError` for a
    length or capacity that is out of range and for a source of another engine.
    """

    def __init__(self, engine: Engine, capacity: int, source: "Cache | None" = None, length: int = 0):
        self.engine, self.capacity = engine, -(-max(capacity, 1) // PAGE) * PAGE
        made, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE)
        held = None if source is None else source.handle
        code = engine.library.solm_cache(engine.handle, held, length, self.capacity, ctypes.byref(made), message)
        if code:
            raise error_of(code, message)
        self.handle: int | None = made.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.engine.library.solm_cache_free(self.handle)
            self.handle = None

    def fill(self, layer: int, position: int, keys: Array, values: Array) -> None:
        """Write keys and values [kv_heads, count, D] of one layer from `position` on.

        Raises `DataError` for shapes, layers and positions that do not fit, `SolmError` without memory.
        """
        sizes, count = self.engine.sizes, keys.shape[1]
        if keys.shape != values.shape or keys.shape != (sizes.kv_heads, count, sizes.head_dim):
            wanted = [sizes.kv_heads, count, sizes.head_dim]
            raise DataError(f"keys and values must be {wanted}, got {list(keys.shape)} and {list(values.shape)}")
        ours, theirs = (np.ascontiguousarray(as_numpy(some), np.float32) for some in (keys, values))
        message = ctypes.create_string_buffer(MESSAGE)
        code = self.engine.library.solm_cache_fill(
            self.engine.handle, self.handle, layer, position, count, ours.ctypes.data, theirs.ctypes.data, message
        )
        if code:
            raise error_of(code, message)
