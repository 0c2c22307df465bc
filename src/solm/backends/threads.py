"""How many threads compute, and keeping torch's out of the way of the compiled engine's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from solm.backends.cores import usable_cores
from solm.core.errors import SolmError


def default_threads() -> int:
    """OMP_NUM_THREADS, else one a core that this process may use, and no more than torch was told to use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    explicit = int(asked) if asked.isdecimal() else 0
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads() if explicit else min(torch.get_num_threads(), usable_cores().threads)
    return explicit or usable_cores().threads


def check_threads(threads: int) -> None:
    """Raises `SolmError` for more threads than this machine has, or fewer than one."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise SolmError(f"threads {threads} is out of range: this machine has 1 to {cores}")


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Inside the block, `count` threads are the default."""
    before, torchs = os.environ.get("OMP_NUM_THREADS"), None
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torchs = torch.get_num_threads()
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torchs is not None:
            torch.set_num_threads(torchs)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def one_torch_thread(wanted: bool = True) -> Iterator[None]:
    """Between the engine's steps, do torch's work in the calling thread alone, where `wanted`.

    OpenMP's other threads wait in a loop for the next operation, on the cores that the engine's need: choosing a token
    on two threads would make a step of 4 ms one of 12.
    """
    import torch

    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
