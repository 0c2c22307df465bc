"""What glibc does with freed memory: kept within a phase of work, and given back after it."""

import ctypes
import gc
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GIB = 1 << 30


def keep_freed_memory() -> None:
    """Serve large tensors from the heap, and do not give it back between passes. Nothing happens without glibc.

    Activations are freed and wanted again every layer of every pass. By default glibc maps and unmaps every block above
    32 MiB, and the kernel zeroes its pages anew. Scoring 1,024 tokens of a 135M model spent a third of its time there.
    The setting is the process's, so it helps the stock model as much as the controlled one.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIB)
        libc.mallopt(_M_TOP_PAD, _GIB >> 4)


def give_back_freed_memory() -> None:
    """Return to the system what was freed: the next phase of work needs blocks of other sizes."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
