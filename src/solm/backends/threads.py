"""How many threads compute, and keeping torch's out of the way of the compiled engine's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def default_threads() -> int:
    """As many threads as torch uses, or would: OMP_NUM_THREADS, else one a core that this process may use."""
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else _cores()


def _cores() -> int:
    """Cores that this process may use; two hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        return len({Path(_SIBLINGS.format(number)).read_text() for number in allowed})
    except OSError:
        return len(allowed)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Inside the block, `count` threads are the default."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
    try:
        yield
    finally:
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
