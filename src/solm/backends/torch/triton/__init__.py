"""Triton kernels for decode steps on a GPU, which read only what an action keeps. Nothing here imports triton: the
modules beside this one do, and are imported where `usable` says so."""

import importlib.util
import os
from functools import cache

import torch

from solm.backends.torch.plan import Plan

MOST_ROWS = 4
"""Rows up to which a step skips MLP channels: what any row keeps is read, and more rows keep nearly everything."""
_WIDEST = 512
"""Bytes of a head, so that a tile of keys and values fits the shared memory of any GPU since 2020."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in numpy: slow, for tests, and asked for by TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(x: torch.Tensor) -> bool:
    """Whether kernels can take `x`: on a GPU (or under Triton's interpreter), float32, bfloat16 or float16, and triton
    is installed."""
    return (x.is_cuda or interpreted()) and x.dtype in _DTYPES and _installed()


def reads_pages(query: torch.Tensor, plan: Plan) -> bool:
    """Whether the kernels carry out this plan's attention for query [N, Hq, Q, D]: one position per row, and exactly
    the budgeted pages per KV head outside sinks and window. Everything else is masked in plain torch."""
    sparsity = plan.sparsity
    return (
        query.shape[2] == 1
        and sparsity.select_per == "kv_head"
        and sparsity.window > 0
        and not sparsity.keep_ties
        and query.shape[3] * query.element_size() <= _WIDEST
        and usable(query)
    )
