"""What goes into the native engine for a pass and comes back, in places that stay where they are."""

import ctypes

import numpy as np
import torch

from solm.actions import DENSE
from solm.errors import DataError
from solm.native.engine import Cache, Engine
from solm.native.library import Rules
from solm.semantics import Semantics


class Frame:
    """What goes into the engine for N rows of Q tokens and comes back, in places that stay where they are.

    Steps stream all weights through the processor's caches, so every Python object that need not be touched counts.
    ids and places [N, Q], keep and realised [N·Q, 3].
    """

    def __init__(self, engine: Engine, semantics: Semantics, caches: list[Cache], rows: int, count: int):
        site = semantics.mlp_site
        self.rules = Rules(
            semantics.sinks, semantics.window, "input" in site, "hidden" in site, semantics.hidden_power,
            semantics.bits_group or 0,
        )  # fmt: skip
        self.offsets = np.arange(count)
        self.ids, self.places = np.empty((rows, count), dtype=np.int64), np.empty((rows, count), dtype=np.int32)
        self.keep, self.realised = np.empty((rows * count, 3)), np.empty((rows * count, 3))
        self.dense = True
        self.keep[:] = DENSE
        self.spent, self.booked = np.zeros((rows, 3)), 0  # of steps that are in no ledger yet
        self.caches = (ctypes.c_void_p * (rows * count))(*(c.handle for c in caches for _ in range(count)))
        self.before = (engine.handle, ctypes.addressof(self.rules), rows * count, count, self.caches)
        self.inputs = tuple(array.ctypes.data for array in (self.ids, self.places, self.keep))
        self.output = self.realised.ctypes.data

    def clear_books(self) -> None:
        if self.booked:
            self.spent.fill(0)
            self.booked = 0

    def set_keep(self, keep: torch.Tensor | None) -> None:
        """Follow keep [N, Q, 3], for one token a row also [N, 3]; None: dense. Raises `DataError` for other shapes."""
        if keep is not None:
            rows, count = self.ids.shape
            if keep.shape != (rows, count, 3) and (count > 1 or keep.shape != (rows, 3)):
                raise DataError(f"keep must be {[rows, count, 3]} for tokens {[rows, count]}, got {list(keep.shape)}")
            self.keep[:] = keep.reshape(-1, 3).numpy()
        elif not self.dense:
            self.keep[:] = DENSE
        self.dense = keep is None
