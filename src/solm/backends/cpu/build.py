"""Compiling the engine: for the machine it runs on, at first use, and kept; or ahead of time, for a wheel.

Imports nothing outside the standard library and `solm.core`, so that building a wheel needs no other package.
"""

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from solm.core.errors import CacheFolderError, SolmError

CSRC, PREBUILT = Path(__file__).parent / "csrc", Path(__file__).parent / "prebuilt"
# Not -ffast-math: linking with it makes the whole process flush subnormal numbers to zero. Not -fassociative-math: the
# results of a step do not depend on its neighbours because sums are added up in the order that is written.
# Not -freciprocal-math: where a division becomes a product differs by processor, and results shall not.
_FLAGS = [
    "-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-ffp-contract=fast", "-fopenmp-simd", "-shared", "-fPIC", "-pthread", "-Wno-psabi",
]  # fmt: skip
NATIVE_FLAGS = ("-march=native",)


def find_compiler() -> str | None:
    """The C++ compiler that builds the engine, with what the variable CXX says beside its name, such as ``ccache g++``;
    None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def sources_digest() -> str:
    """A digest of the engine's sources, by which a library is known to be theirs."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def built(flags: Sequence[str]) -> Path:
    """The library built with additional compiler flags, which is compiled where it is not in the cache folder yet.

    Raises `SolmError` where there is no compiler or it fails, `CacheFolderError` where the folder cannot be written or
    executed from.
    """
    from solm.core.files import CURE, cache_folder  # which needs other packages

    compiler = find_compiler()
    if compiler is None:
        raise SolmError("the cpu backend needs a C++20 compiler (g++ 11 or clang++ 14); none was found")
    processor = sorted(cpu_features())  # on which -march=native depends
    stamp = hashlib.sha256(" ".join([sources_digest(), compiler, *_FLAGS, *flags, *processor]).encode()).hexdigest()
    root = cache_folder()
    target = root / f"engine-{stamp[:16]}.so"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.statvfs(root).f_flag & os.ST_NOEXEC:
            raise CacheFolderError(f"the cpu backend is compiled to {root}, where nothing may be executed; {CURE}")
        if target.exists():
            return target
        logging.getLogger("solm").info("compiling the engine for this processor, once; it takes up to a minute")
        with tempfile.TemporaryDirectory(dir=root) as folder:
            compile_engine(compiler, flags, Path(folder) / target.name)
            with (Path(folder) / target.name).open("rb") as made:
                os.fsync(made.fileno())  # one that is cut short would end the process that loads it
            os.replace(made.name, target)
    except OSError as error:
        reason = error.strerror or error
        raise CacheFolderError(f"the cpu backend cannot be compiled to {root}: {reason}; {CURE}") from error
    return target


def compile_engine(compiler: str, flags: Sequence[str], target: Path, link_flags: Sequence[str] = ()) -> None:
    """Write the library to `target`, in whose folder the compiled parts stay. Raises `SolmError` where the compiler
    fails."""
    compiled_by = shlex.split(compiler)
    # The workers take longest, and come last by name.
    parts = {path: target.parent / f"{path.stem}.o" for path in sorted(CSRC.glob("*.cpp"), reverse=True)}
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        commands = [[*compiled_by, *_FLAGS, *flags, "-c", str(path), "-o", str(part)] for path, part in parts.items()]
        for _ in pool.map(_run, commands):
            pass
    _run([*compiled_by, *_FLAGS, *flags, *link_flags, *map(str, parts.values()), "-o", str(target)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SolmError(f"the cpu backend cannot be compiled with {command[0]}: {error.strerror}") from error
    if done.returncode:
        line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise SolmError(f"{command[0]} could not build the cpu backend: {line}")


def library_name(variant: str) -> str:
    """The file of a variant's library that is compiled ahead of time from these sources."""
    return f"engine-{variant}-{sources_digest()[:16]}.so"


def prebuilt_library(variant: str) -> Path | None:
    """The library of a variant that came with the package; None where the package came without."""
    path = PREBUILT / library_name(variant)
    return path if path.exists() else None


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor has and the kernel lets programs use, by its names in /proc/cpuinfo; empty where it does not
    say."""
    try:
        with cpuinfo.open() as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())
