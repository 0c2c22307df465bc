"""Stopgap until the engine's own call struct is merged."""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

from solm.backends.cpu.library import Rules
from solm.core.actions import DENSE
from solm.core.errors import DataError, SolmError

ROW = np.dtype(
    [
        ("decider", np.uint64),
        *((n, np.float64, 3) for n in ("target", "spent", "early")),
        ("booked", np.int64),
        ("left", np.int64),
    ]
)


@dataclass
class Done:
    logits: torch.Tensor
    stream: np.ndarray
    realised: np.ndarray
    actions: np.ndarray


class EngineCall:
    def __init__(self, engine, sparsity):
        self.engine, self.sparsity = engine, sparsity
        a = sparsity.allocation
        self.rules = Rules(
            sparsity.sinks,
            sparsity.window,
            "input" in sparsity.mlp_site,
            "hidden" in sparsity.mlp_site,
            sparsity.hidden_power,
            sparsity.bits_group or 0,
            1 if a is None else a.heads,
            sparsity.bits_site == "weights",
            None if a is None else a.table.data_ptr(),
        )

    def run(self, caches, tokens, lengths, keep, state, first=0, last=None, before=None, approximate_tail=False):
        layers = self.engine.sizes.layers
        last = layers if last is None else last
        rows, count = tokens.shape
        whole = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
        if count < 1 or rows != len(lengths) or tokens.dtype not in whole:
            raise DataError(
                f"tokens must be whole numbers [{len(lengths)}, at least 1], got {tokens.dtype} {list(tokens.shape)}"
            )
        tokens = tokens.to(torch.int64).contiguous()
        n = rows * count
        plan = np.empty((n, 3))
        plan[:] = DENSE
        if keep is not None:
            if keep.shape != (rows, count, 3):
                raise DataError(f"keep must be {[rows, count, 3]} for tokens {[rows, count]}, got {list(keep.shape)}")
            plan[:] = keep.reshape(-1, 3).numpy()
        realised, actions32 = np.zeros((n, 3)), np.zeros((rows, count), np.int32)
        stream = (
            np.empty((rows, count, self.engine.sizes.hidden), np.float32) if before is None else before.stream.copy()
        )
        logits = torch.empty(rows, count, self.engine.sizes.vocabulary)
        places = (lengths[:, None] + np.arange(count)).astype(np.int32)
        handles = (ctypes.c_void_p * n)(*(c.handle for c in caches for _ in range(count)))
        lent = np.zeros(rows, ROW)
        decide = bool(state["decider"].any()) and first == 0 and last == layers
        if decide:
            for name in ("decider", "target", "spent", "early", "booked"):
                lent[name] = state[name]
            lent["left"] = state["horizon"] - state["taken"]
        failed = self.engine.library.solm_run(
            self.engine.handle,
            ctypes.addressof(self.rules),
            n,
            count,
            handles,
            tokens.data_ptr(),
            places.ctypes.data,
            plan.ctypes.data,
            lent.ctypes.data if decide else None,
            actions32.ctypes.data,
            realised.ctypes.data,
            first,
            last,
            stream.ctypes.data,
            logits.data_ptr(),
            approximate_tail,
        )
        if failed == 1:
            raise DataError(
                f"token ids must be in [0, {self.engine.sizes.vocabulary - 1}], got {tokens.flatten()[:8].tolist()}"
            )
        if failed == 3:
            raise SolmError(f"no memory for caches of {rows} rows")
        if failed:
            raise DataError(f"keep must be shares from 0 to 1 and bits from 2 to 16, got {plan[:4].tolist()}")
        realised = realised.reshape(rows, count, 3)
        if before is not None:
            realised = realised + before.realised
        actions = actions32.astype(np.int64)
        if last == layers:
            counted = places >= self.sparsity.always_read
            own = state["decider"] != 0
            spent = (realised * counted[..., None]).sum(1)
            state["spent"] += spent
            state["booked"] += counted.sum(1)
            state["taken"] += count
            if decide:
                state["early"][own] = lent["early"][own]
                state["spent"][own] = lent["spent"][own]
                state["previous"][own] = actions[own, -1]
            actions[~own] = state["previous"][~own][:, None]
        return Done(logits, stream, realised, actions)
