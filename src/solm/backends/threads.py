"""Keeping torch's threads out of the way of the compiled engine's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread(wanted: bool = True) -> Iterator[None]:
    """Between the engine's steps, do torch's work in the calling thread alone, where `wanted`.

    OpenMP's other threads wait in a loop for the next operation, on the cores that the engine's need: choosing a token
    on two threads would make a step of 4 ms one of 12.
    """
    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
