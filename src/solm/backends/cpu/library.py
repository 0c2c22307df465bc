"""Building and loading the engine: compiled for the machine it runs on, at first use, and kept.

Nothing is built at installation: the package stays pure Python, works without a compiler (on the torch backend), and
``-march=native`` fits the processor at hand.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import zip_longest
from pathlib import Path

from solm.backends.cpu import structs
from solm.core.cache_folder import cache_folder
from solm.core.errors import SolmError

CSRC = Path(__file__).parent / "csrc"
# Not -ffast-math: linking with it makes the whole process flush subnormal numbers to zero. Not -fassociative-math: the
# results of a step do not depend on its neighbours because sums are added up in the order that is written.
_FLAGS = [
    "-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-freciprocal-math", "-ffp-contract=fast", "-fopenmp-simd", "-shared", "-fPIC", "-pthread", "-Wno-psabi",
]  # fmt: skip

DONE, INVALID, NO_MEMORY = 0, 1, 2
"""What functions of the library return."""


def library(flags: str | None = None) -> ctypes.CDLL:
    """The engine, built with additional compiler flags such as ``-march=x86-64-v3``; None: those of the environment
    variable SOLM_CXXFLAGS. Libraries of different flags can be loaded side by side.

    Raises `SolmError` with what was tried where there is no compiler or it fails, and where the library's structs are
    not those of this package.
    """
    return _library(os.environ.get("SOLM_CXXFLAGS", "") if flags is None else flags)


def find_compiler() -> str | None:
    """The C++ compiler that builds the engine; None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@cache
def _library(flags: str) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(_built([*_FLAGS, *flags.split()])))
    pointer, integer, long, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
    for name, returns, arguments in (
        ("layout", ctypes.c_char_p, []),
        ("repack_head", integer, [integer, pointer, long, integer, integer, integer, pointer, pointer]),
        ("engine", integer, [pointer, pointer, pointer]),
        ("engine_free", None, [pointer]),
        ("arena", pointer, [size]),
        ("arena_data", pointer, [pointer]),
        ("arena_free", None, [pointer]),
        (
            "repack", integer,
            [integer, pointer, size, integer, integer, pointer, *[integer] * 3, *[pointer] * 3, integer, pointer],
        ),
        ("dequantise", integer, [integer, pointer, size, integer, integer, pointer, long, pointer, pointer]),
        ("checksum", ctypes.c_uint64, [pointer, size, integer]),
        ("cache", integer, [pointer, pointer, long, long, pointer, pointer]),
        ("cache_free", None, [pointer]),
        ("pages", None, [pointer, pointer]),
        ("cache_fill", integer, [pointer, pointer, integer, long, long, pointer, pointer, pointer]),
        ("run", integer, [pointer, pointer]),
    ):  # fmt: skip
        function = getattr(loaded, f"solm_{name}")
        function.restype, function.argtypes = returns, arguments
    check_layout(loaded)
    return loaded


def check_layout(loaded: ctypes.CDLL) -> None:
    """Raises `SolmError` where a struct or constant of the library is not the one that Python declares."""
    for theirs, ours in zip_longest(loaded.solm_layout().decode().splitlines(), structs.layout(), fillvalue="nothing"):
        if theirs != ours:
            raise SolmError(f"the cpu backend does not fit this package: the library has {theirs}, Python has {ours}")


def _built(flags: list[str]) -> Path:
    """The library's file, which is compiled where it is not in the cache yet."""
    compiler = find_compiler()
    if compiler is None:
        raise SolmError("the cpu backend needs a C++20 compiler (g++ 11 or clang++ 14); none was found")
    sources = b"".join(path.read_bytes() for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp"))
    stamp = hashlib.sha256(sources + " ".join([compiler, *flags, _processor()]).encode()).hexdigest()
    root = cache_folder()
    target = root / f"engine-{stamp[:16]}.so"
    if target.exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    logging.getLogger("solm").info("compiling the engine for this processor, once; it takes up to a minute")
    try:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            work = Path(folder)
            # The workers take longest, and come last by name.
            parts = {path: work / f"{path.stem}.o" for path in sorted(CSRC.glob("*.cpp"), reverse=True)}
            with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
                commands = [[compiler, *flags, "-c", str(path), "-o", str(part)] for path, part in parts.items()]
                for _ in pool.map(_run, commands):
                    pass
            _run([compiler, *flags, *map(str, parts.values()), "-o", str(work / target.name)])
            os.replace(work / target.name, target)
    except OSError as error:
        raise SolmError(f"cannot build the cpu backend with {compiler}: {error}") from error
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise SolmError(f"{command[0]} could not build the cpu backend: {line}")


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()
