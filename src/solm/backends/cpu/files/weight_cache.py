"""Repacked weights kept in a file, which the next start maps into memory instead of repacking, and other processes
share.

It is mapped in huge pages: sparse steps touch few bytes of every small page, so that looking up addresses would take a
part of their time.
"""

import ctypes
import json
import logging
import mmap
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solm.backends.cpu.build import sources_digest
from solm.backends.cpu.files.layout import Layout
from solm.backends.cpu.files.repack import Progress, repack
from solm.backends.cpu.files.sources import WeightSource
from solm.backends.machine import free_memory
from solm.core.errors import SolmError
from solm.core.files import cache_folder, replacing

SUFFIX, _FORMAT = ".weights", 2
_LONGEST_HEADER = 1 << 20
_ALIGNED = 1 << 12
_POPULATE_READ = 22
"""MADV_POPULATE_READ: read everything now."""
_ENOUGH = 0.75
"""Part of a file in huge pages from which on it is not read again. With 0.61 steps of 1.5 billion weights took 6 to
10 % longer; those of 0.5 billion took no longer with 0.84."""
_TRIAL = 1 << 24
"""Bytes that show whether a file system has huge pages. Smaller files are not read again."""
_MAPPED = re.compile(r"([0-9a-f]+)-[0-9a-f]+ ")
_HUGE = "FilePmdMapped:"
_log = logging.getLogger(__name__)


def load_weights(
    library: ctypes.CDLL,
    source: WeightSource,
    precision: str,
    layout: Layout,
    threads: int,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """A source's weights in `layout` in memory: mapped read-only from the cache folder where they are kept there,
    otherwise repacked and kept. So the first start, too, holds them once, and shares them with other processes.

    A file of another layout, engine or source is replaced, and so is one of which any byte has changed. A folder that
    cannot be read or written costs time and a line in the log, nothing else, unless the weights are larger than the
    free memory: then `SolmError` is raised. progress, and other errors: as of `repack`.
    """
    identity, made = source.identity, partial(repack, source, layout, library, threads, progress)
    if identity is None:
        return made()
    path = cache_folder() / _name_of(source, identity, precision)
    expected = {
        "identity": identity, "times": source.times, "precision": precision, "layout": layout.digest(),
        "nbytes": layout.nbytes, "code": sources_digest(), "format": _FORMAT,
    }  # fmt: skip
    mapped = _mapped(library, path, expected, threads)
    if mapped is not None:
        return mapped
    weights = made() if layout.nbytes <= free_memory() else None
    try:
        _keep(library, path, expected, made if weights is None else weights, threads)
    except SolmError as error:
        if weights is None:
            raise
        _log.warning("the repacked weights are not kept, so that the next start takes as long: %s", error)
        return weights
    del weights  # before the file is mapped: there may not be enough memory for both
    mapped = _mapped(library, path, expected, threads)
    return made() if mapped is None else mapped


def _name_of(source: WeightSource, identity: str, precision: str) -> str:
    """The name of a source's file, which a person can recognise."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.spec.name)[:60].strip("-.") or "model"
    return f"{readable}-{precision}-{identity[:16]}{SUFFIX}"


def _mapped(library: ctypes.CDLL, path: Path, expected: dict[str, Any], threads: int) -> NDArray[np.uint8] | None:
    """The weights in `path`; None where it is not there or not what is expected."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)))
            checksum = header.pop("checksum")
            if header != expected:
                raise ValueError("it was made from another file or by another version")
            start = file.tell()
            if size != start + expected["nbytes"]:
                raise ValueError("it is damaged")
            weights = np.frombuffer(map_file(file.fileno()), np.uint8)[start:]
        if library.solm_checksum(weights.ctypes.data, len(weights), threads) != checksum:
            raise ValueError("it is damaged")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        _log.info("not using %s: %s", path, getattr(error, "strerror", None) or error)
        return None
    return weights


def _keep(
    library: ctypes.CDLL,
    path: Path,
    header: dict[str, Any],
    weights: NDArray[np.uint8] | Callable[..., NDArray[np.uint8]],
    threads: int,
) -> None:
    """Write the weights to `path`, after the length of a header and the header. Those that do not fit into memory are
    made in the file: the kernel writes to the disk what it has no room for."""
    length = len(json.dumps(header | {"checksum": (1 << 64) - 1})) + 8
    start = -(-length // _ALIGNED) * _ALIGNED
    with replacing(path) as file:
        if callable(weights):
            os.posix_fallocate(file.fileno(), 0, start + header["nbytes"])  # a full disk is told now
            weights = weights(memory=np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)[start:])
        else:
            file.seek(start)
            file.write(weights.data)
        checksum = library.solm_checksum(weights.ctypes.data, len(weights), threads)
        file.seek(0)
        file.write(
            (start - 8).to_bytes(8, "little") + json.dumps(header | {"checksum": checksum}).encode().ljust(start - 8)
        )


def map_file(file: int) -> mmap.mmap:
    """The content of an open file, read into huge pages where the system has them for its file system.

    Where less than three quarters of it lie in huge ones, it is read from the disk once more: another program may have
    read it into small pages, or huge ones were short. That changes nothing while another process maps the file. Of a
    file that is larger than the free memory parts are read when they are used.
    """
    if os.fstat(file).st_size > free_memory():
        return mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    map_ = _map(file)
    if len(map_) <= _TRIAL or huge_part(map_) >= _ENOUGH:
        return map_
    map_.close()
    return read_again(file) if huge_part(read_again(file, _TRIAL)) > 0 else _map(file)


def read_again(file: int, length: int = 0) -> mmap.mmap:
    """Read an open file, or its first `length` bytes, which is in memory in small pages, into huge ones, as long as no
    other process maps it."""
    os.posix_fadvise(file, 0, length, os.POSIX_FADV_DONTNEED)
    return _map(file, length)


def huge_part(map_: mmap.mmap) -> float:
    """The part of a mapped file that is in huge pages; 0 where the system does not tell."""
    address, here = f"{np.frombuffer(map_, np.uint8).ctypes.data:x}", False
    with suppress(OSError), Path("/proc/self/smaps").open() as lines:
        for line in lines:
            mapped = _MAPPED.match(line)
            if mapped:
                here = mapped[1] == address
            elif here and line.startswith(_HUGE):
                return int(line.split()[1]) * 1024 / len(map_)
    return 0.0


def _map(file: int, length: int = 0) -> mmap.mmap:
    map_ = mmap.mmap(file, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    for advice in (mmap.MADV_HUGEPAGE, _POPULATE_READ):
        with suppress(OSError):  # a kernel without it reads the file in small pages, or when it is used
            map_.madvise(advice)
    return map_
