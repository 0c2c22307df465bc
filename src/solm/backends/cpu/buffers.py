"""What goes into the compiled engine for a pass and comes back, in places that stay where they are, and the pass."""

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from solm.backends.cpu.engine import Cache, Engine
from solm.backends.cpu.library import NO_MEMORY, UNKNOWN_TOKEN, Rules
from solm.core.actions import DENSE
from solm.core.errors import DataError, SolmError
from solm.core.sparsity import SparsityConfig

if TYPE_CHECKING:
    from solm.backends.cpu.session import CpuSession

_WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


class Frame:
    """What goes into the engine for N rows of Q tokens and comes back, in places that stay where they are.

    Steps stream all weights through the processor's caches, so every Python object that need not be touched counts.
    shape: (N, Q); places [N, Q], keep and realised [N·Q, 3].
    """

    def __init__(self, engine: Engine, sparsity: SparsityConfig, caches: list[Cache], rows: int, count: int):
        site, self.sparsity = sparsity.mlp_site, sparsity  # whose allocation the engine reads
        allocation = sparsity.allocation
        self.rules = Rules(
            sparsity.sinks, sparsity.window, "input" in site, "hidden" in site, sparsity.hidden_power,
            sparsity.bits_group or 0, 1 if allocation is None else allocation.heads, sparsity.bits_site == "weights",
            None if allocation is None else allocation.table.data_ptr(),
        )  # fmt: skip
        self.shape, self.always_read, self.vocabulary = (rows, count), sparsity.always_read, engine.sizes.vocabulary
        self.offsets, self.places = np.arange(count), np.empty((rows, count), dtype=np.int32)
        self.keep, self.realised = np.empty((rows * count, 3)), np.empty((rows * count, 3))
        self.stream = np.empty((rows, count, engine.sizes.hidden), dtype=np.float32)
        self.actions = np.zeros((rows, count), dtype=np.int32)
        self.dense = True
        self.keep[:] = DENSE
        self.spent, self.booked = np.zeros((rows, 3)), 0  # of steps that are in no ledger yet
        self.caches = (ctypes.c_void_p * (rows * count))(*(c.handle for c in caches for _ in range(count)))
        self.before = (engine.handle, ctypes.addressof(self.rules), rows * count, count, self.caches)
        self.inputs = tuple(array.ctypes.data for array in (self.places, self.keep))
        self.outputs = self.realised.ctypes.data, self.stream.ctypes.data
        self._lent: np.ndarray | None = None
        self._lent_at = self.actions_at = self.actions.ctypes.data

    def lend(self, rows: np.ndarray) -> int:
        """Where records of dtype `ROW` [N] are, which stay alive as long as they are used here."""
        if rows is not self._lent:
            self._lent, self._lent_at = rows, rows.ctypes.data
        return self._lent_at

    def clear_books(self) -> None:
        if self.booked:
            self.spent.fill(0)
            self.booked = 0

    def set_keep(self, keep: torch.Tensor | None) -> None:
        """Follow keep [N, Q, 3], for one token a row also [N, 3]; None: dense. Raises `DataError` for other shapes."""
        if keep is not None:
            rows, count = self.shape
            if keep.shape != (rows, count, 3) and (count > 1 or keep.shape != (rows, 3)):
                raise DataError(f"keep must be {[rows, count, 3]} for tokens {[rows, count]}, got {list(keep.shape)}")
            self.keep[:] = keep.reshape(-1, 3).numpy()
        elif not self.dense:
            self.keep[:] = DENSE
        self.dense = keep is None


class Pass:
    """One walk through the layers: logits [N·Q, V], beside what is in the frame.

    tokens [N, Q], or [N] where Q is 1. Right after a step, which leaves nothing of Python's or torch's in the caches, a
    look at an attribute takes a microsecond, an operation of numpy's five and one of torch's ten to twenty.
    """

    def __init__(self, session: "CpuSession", tokens: torch.Tensor, count: int, keep: torch.Tensor | None):
        rows = session.rows
        if count < 1 or tokens.numel() != rows * count or len(tokens) != rows or tokens.dtype not in _WHOLE:
            wanted = f"whole numbers [{rows}, at least 1]"
            raise DataError(f"tokens must be {wanted}, got {tokens.dtype} {list(tokens.shape)}")
        if tokens.dtype is not torch.int64 or not tokens.is_contiguous():
            tokens = tokens.to(torch.int64).contiguous()
        self.tokens = tokens
        self.lengths = session.held
        lengths = self.lengths.tolist()
        self.shortest, longest = min(lengths), max(lengths) + count
        session.check_length(longest)
        session.prepare(longest)
        frame = session.frame
        if frame is None or frame.shape != (rows, count):
            frame = session.reframe(rows, count)
        np.add(self.lengths[:, None], frame.offsets, out=frame.places, casting="unsafe")
        frame.set_keep(keep)
        self.frame, self.engine, self.approximate_tail = frame, session.engine, session.approximate_tail
        self.logits = torch.empty(rows * count, frame.vocabulary)

    def run(self, first: int, last: int, rows: np.ndarray | None = None) -> None:
        """Layers first to last; rows as for `CpuSession.decide`. Raises `DataError` for unknown ids and for actions
        that the engine was not made for, `SolmError` without memory for rows that can no longer share theirs."""
        frame = self.frame
        decided = (None, None) if rows is None else (frame.lend(rows), frame.actions_at)
        failed = self.engine.library.solm_run(
            *frame.before, self.tokens.data_ptr(), *frame.inputs, *decided, frame.outputs[0], first, last,
            frame.outputs[1], self.logits.data_ptr(), self.approximate_tail,
        )  # fmt: skip
        if failed == UNKNOWN_TOKEN:
            known = f"[0, {frame.vocabulary - 1}]"
            raise DataError(f"token ids must be in {known}, got {self.tokens.flatten()[:8].tolist()}")
        if failed == NO_MEMORY:
            raise SolmError(f"no memory for caches of {frame.shape[0]} rows")
        if failed:
            raise DataError(f"keep must be shares from 0 to 1 and bits from 2 to 16, got {frame.keep[:4].tolist()}")
