"""Where memory goes on machines with several NUMA nodes: weights and KV caches are spread over all that compute.

The engine's threads share every matrix and are not bound to cores, so that no page is one node's own.
"""

import ctypes
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from solm.backends.cores import usable_cores

_SET, _GET = {"x86_64": (238, 239), "aarch64": (237, 236)}.get(platform.machine(), (0, 0))
"""The system calls set_mempolicy and get_mempolicy; libc has no functions for them."""
_DEFAULT, _INTERLEAVE = 0, 3
_BITS = 64


def node_bits(nodes: Iterable[int]) -> int:
    """Nodes as the kernel takes them, a bit each; 0, nothing to spread, for fewer than two. Nodes from 64 on are left
    out."""
    found = {node for node in nodes if node < _BITS}
    return sum(1 << node for node in found) if len(found) > 1 else 0


def spread_nodes() -> int:
    """The `node_bits` that this process's memory is to be spread over; 0 where a user has said where memory goes, such
    as ``numactl`` does, and where the kernel does not tell."""
    bits = node_bits(usable_cores().nodes)
    return bits if bits and _policy() == _DEFAULT else 0


@contextmanager
def spread_over(bits: int) -> Iterator[None]:
    """Inside the block, memory that this thread and those that it starts touch first goes to these nodes in turn, and
    so do files that they read. A kernel that forbids it, as in some containers, places memory as usual."""
    mask = ctypes.c_uint64(bits)
    done = bits and _call(_SET, _INTERLEAVE, ctypes.byref(mask), _BITS + 1) == 0
    try:
        yield
    finally:
        if done:
            _call(_SET, _DEFAULT, None, 0)


def _policy() -> int:
    """Where memory of this thread goes, as the kernel numbers it; -1 where it does not say."""
    mode = ctypes.c_int(-1)
    return mode.value if _call(_GET, ctypes.byref(mode), None, 0, None, 0) == 0 else -1


def _call(number: int, *arguments: object) -> int:
    """What a system call returns: -1 for an error."""
    if not number or os.name != "posix":
        return -1
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(call(ctypes.c_long(number), *given))
