"""Mapping a file of weights in huge pages. Sparse steps touch few bytes of every small page, so that looking up
addresses takes a part of their time."""

import mmap
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

_POPULATE_READ = 22 if sys.platform == "linux" else None
"""MADV_POPULATE_READ: read everything now."""
_ENOUGH = 0.75
"""Part of a file in huge pages from which on it is not read again. With 0.61 steps of 1.5 billion weights took 6 to
10 % longer; those of 0.5 billion took no longer with 0.84."""
_TRIAL = 1 << 24
"""Bytes that show whether a file system has huge pages. Smaller files are not read again."""
_MAPPED = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")
_HUGE = "FilePmdMapped:"


def map_file(file: int) -> mmap.mmap:
    """The content of an open file, read into huge pages where the system has them for its file system.

    Where less than three quarters of it lie in huge ones, it is read from the disk once more: another program may have
    read it into small pages, or huge ones were short. That changes nothing while another process maps the file.
    """
    map_ = _map(file)
    if len(map_) <= _TRIAL or huge_part(map_) >= _ENOUGH:
        return map_
    map_.close()
    return read_again(file) if huge_part(read_again(file, _TRIAL)) > 0 else _map(file)


def read_again(file: int, length: int = 0) -> mmap.mmap:
    """Read an open file, or its first `length` bytes, which is in memory in small pages, into huge ones, as long as no
    other process maps it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, length, os.POSIX_FADV_DONTNEED)
    return _map(file, length)


def huge_part(map_: mmap.mmap) -> float:
    """The part of a mapped file that is in huge pages; 0 where the system does not tell."""
    address, found = f"{np.frombuffer(map_, np.uint8).ctypes.data:x}", False
    with suppress(OSError), Path("/proc/self/smaps").open() as lines:
        for line in lines:
            mapped = _MAPPED.match(line)
            if mapped:
                found = mapped[1] == address
            elif found and line.startswith(_HUGE):
                return int(line.split()[1]) * 1024 / len(map_)
    return 0.0


def _map(file: int, length: int = 0) -> mmap.mmap:
    map_ = mmap.mmap(file, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    for advice in (getattr(mmap, "MADV_HUGEPAGE", None), _POPULATE_READ):
        if advice is not None:
            with suppress(OSError):  # a system without it reads the file in small pages, or when it is used
                map_.madvise(advice)
    return map_
