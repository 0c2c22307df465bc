"""Building and loading the engine: compiled for the machine it runs on, at first use, and kept.

No build step at installation: the package stays pure Python, runs where there is no compiler (on the reference
backend), and ``-march=native`` fits the very processor instead of a list of guesses. ctypes costs two microseconds a
call, and a decode step is one or two calls.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from solm.core.errors import SolmError

SOURCES = [Path(__file__).parent / "csrc" / "engine.cpp", *sorted((Path(__file__).parent / "csrc").glob("*.h"))]
# Not -ffast-math: linking with it makes the whole process flush subnormal numbers to zero. Nor -fassociative-math: a
# step's sums come out the same whatever steps go with it because they are added up in the order that is written.
_FLAGS = [
    "-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-freciprocal-math", "-ffp-contract=fast", "-fopenmp-simd", "-shared", "-fPIC", "-pthread", "-Wno-psabi",
]  # fmt: skip

UNKNOWN_TOKEN, NO_MEMORY = 1, 3
"""What `solm_run` returns for a token that the model lacks, and without memory; 0: done, 2: an action out of range."""


class Sizes(ctypes.Structure):
    """A model's sizes; precision 0: float32, 1: bfloat16, 2: int8 weights, 3: packed where they can be, else int8, 4:
    the MLP's nested, others as with 3; embedding 0: float32, 1: bfloat16, 2: float16; kv_bytes 1: caches hold bytes;
    norms_after 1: what attention and MLP give is normed, not what they take; whole_norms 1: queries and keys are normed
    over all heads together."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary", "precision",
            "embedding", "kv_bytes", "threads", "norms_after", "whole_norms",
        )),
        ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class Rules(ctypes.Structure):
    """How an action is carried out: the engine's part of `SparsityConfig`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "sinks", "window", "input_site", "hidden_site", "hidden_power", "group", "heads", "weight_bits",
        )),
        ("allocation", ctypes.c_void_p),
    ]  # fmt: skip


def find_compiler() -> str | None:
    """The C++ compiler that builds the engine; None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@cache
def library() -> ctypes.CDLL:
    """The engine; raises `SolmError` with what was tried where there is no compiler or it fails.

    The environment variable SOLM_CXXFLAGS adds flags for the compiler, such as those of sanitizers.
    """
    flags = [*_FLAGS, *os.environ.get("SOLM_CXXFLAGS", "").split()]
    compiler = find_compiler()
    if compiler is None:
        raise SolmError("the cpu backend needs a C++20 compiler (g++ 11 or clang++ 14); none was found")
    stamp = b"".join(source.read_bytes() for source in SOURCES) + " ".join([compiler, *flags, _processor()]).encode()
    root = Path(os.environ.get("SOLM_CACHE", Path.home() / ".cache" / "solm"))
    target = root / f"engine-{hashlib.sha256(stamp).hexdigest()[:16]}.so"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(dir=root, suffix=".so")
        os.close(handle)
        try:
            done = subprocess.run([compiler, *flags, str(SOURCES[0]), "-o", work], capture_output=True, text=True)
            if done.returncode:
                line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
                raise SolmError(f"{compiler} could not build the cpu backend: {line}")
            os.replace(work, target)
        except OSError as error:
            raise SolmError(f"cannot build the cpu backend with {compiler}: {error}") from error
        finally:
            Path(work).unlink(missing_ok=True)
    loaded = ctypes.CDLL(str(target))
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    loaded.solm_engine.restype = pointer
    loaded.solm_engine.argtypes = [ctypes.POINTER(Sizes), *[pointer] * 6]
    loaded.solm_arena.restype = pointer
    loaded.solm_arena.argtypes = [ctypes.c_size_t]
    loaded.solm_arena_data.restype = pointer
    loaded.solm_arena_data.argtypes = [pointer]
    loaded.solm_arena_free.argtypes = [pointer]
    loaded.solm_engine_free.argtypes = [pointer]
    loaded.solm_cache.restype = pointer
    loaded.solm_cache.argtypes = [pointer, pointer, integer, integer]
    loaded.solm_cache_free.argtypes = [pointer]
    loaded.solm_cache_fill.restype = integer
    loaded.solm_cache_fill.argtypes = [pointer, pointer, integer, integer, integer, pointer, pointer]
    loaded.solm_run.restype = integer
    loaded.solm_run.argtypes = [
        pointer, pointer, integer, integer, *[pointer] * 7, integer, integer, pointer, pointer, integer
    ]  # fmt: skip
    return loaded


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()
