"""Which engine runs: the instruction sets that it is compiled for ahead of time, which of them a processor has, and the
library, which came with the package or is compiled at first use."""

import ctypes
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from solm.backends.cpu.border import declare
from solm.backends.cpu.build import NATIVE_FLAGS, built, cpu_features, prebuilt_library
from solm.core.errors import SolmError

NATIVE = "native"
"""In place of a variant's name: compiled here, for this very processor."""


@dataclass(frozen=True)
class Variant:
    """An instruction set. machine: as `platform.machine` names it. flags: of the compiler. needs: what a processor must
    have, as `usable_features` names it. on_request: it runs only where it is asked for by name."""

    name: str
    machine: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    on_request: bool = False

    def missing(self, features: Collection[str]) -> list[str]:
        """What it needs and `features` lack."""
        return [name for name in self.needs if name not in features]


_SSE4 = ("ssse3", "sse4_1", "sse4_2", "popcnt")
_AVX2 = (*_SSE4, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni")
PERMISSION = "the kernel's permission for AMX"
"""Listed among a processor's features where the kernel lets this process use AMX, see `usable_features`."""
NO_AMX = "-DSOLM_NO_AMX"
"""A flag of the compiler, for an engine that does without AMX where the processor has it."""
_DOTPROD = ("asimd", "atomics", "asimdrdm", "asimddp")

VARIANTS = (
    # Nobody has timed it on a processor that has AMX: until then it is no default.
    Variant(
        "amx", "x86_64", ("-march=x86-64-v4", "-mavx512vnni", "-mamx-tile", "-mamx-int8"),
        (*_AVX512, "amx_tile", "amx_int8", PERMISSION), on_request=True,
    ),
    Variant("avx512", "x86_64", ("-march=x86-64-v4", "-mavx512vnni"), _AVX512),
    Variant("avx2", "x86_64", ("-march=x86-64-v3",), _AVX2),
    Variant("sse4", "x86_64", ("-march=x86-64-v2",), _SSE4),
    Variant("i8mm", "aarch64", ("-march=armv8.2-a+dotprod+i8mm",), (*_DOTPROD, "i8mm")),
    Variant("dotprod", "aarch64", ("-march=armv8.2-a+dotprod",), _DOTPROD),
    Variant("neon", "aarch64", ("-march=armv8-a",), ("asimd",)),
)  # fmt: skip
"""Of every architecture the best one first."""


def variants_of(machine: str) -> list[Variant]:
    """The variants of an architecture, the best one first."""
    return [variant for variant in VARIANTS if variant.machine == machine]


def best_variant(machine: str, features: Collection[str]) -> Variant | None:
    """What a processor runs fastest, of those that run by themselves; None where it runs none."""
    return next(
        (variant for variant in variants_of(machine) if not (variant.on_request or variant.missing(features))),
        None,
    )


def variant_named(name: str, machine: str, features: Collection[str]) -> Variant:
    """The variant that a user asks for in SOLM_CPU. Raises `SolmError` for one that this architecture does not have, or
    that the processor cannot run."""
    known = {variant.name: variant for variant in variants_of(machine)}
    if name not in known:
        others = ", ".join([*known, NATIVE])
        raise SolmError(f"SOLM_CPU: unknown instruction set {name!r} for {machine}; choose one of {others}")
    missing = known[name].missing(features)
    if missing:
        best = best_variant(machine, features)
        other = NATIVE if best is None else best.name
        raise SolmError(f"SOLM_CPU: this machine cannot run {name}, it lacks {', '.join(missing)}; choose {other}")
    return known[name]


def usable_features() -> frozenset[str]:
    """`cpu_features`, and `PERMISSION` where the kernel lets this process use AMX, which it must be asked for. Once
    granted, permission is for all threads until the process ends, and costs nothing while AMX is not used."""
    usable = cpu_features()
    return usable | {PERMISSION} if "amx_tile" in usable and _permit_amx() else usable


def _permit_amx() -> bool:
    arch_prctl, ask_for_component, tile_data = 158, 0x1023, 18
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    return call(ctypes.c_long(arch_prctl), ctypes.c_long(ask_for_component), ctypes.c_long(tile_data)) == 0


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs. variant: its instruction set, ``native`` where it is compiled for this very processor. path:
    of the library that came with the package; None: it is compiled with `flags`. reason: why this one."""

    variant: str
    reason: str
    path: Path | None = None
    flags: tuple[str, ...] = NATIVE_FLAGS


def choose_engine(requested: str, flags: str) -> EngineChoice:
    """The engine for this processor, or the one requested by name; "" leaves the choice to the processor.
    flags: more flags of the compiler; with some, nothing that was compiled before is used.

    Raises `SolmError` for a name that is not known or that the processor cannot run.
    """
    here, features, more = platform.machine(), usable_features(), tuple(flags.split())
    native = (*NATIVE_FLAGS, *([NO_AMX] if "amx_tile" in features else []), *more)
    if requested == NATIVE:
        return EngineChoice(NATIVE, "it was asked for", flags=native)
    if requested:
        variant = variant_named(requested, here, features)
        path = None if more else prebuilt_library(variant.name)
        return EngineChoice(variant.name, "SOLM_CPU asks for it", path, (*variant.flags, *more))
    best = best_variant(here, features)
    path = None if best is None or more else prebuilt_library(best.name)
    if best is None or path is None:
        reason = "SOLM_CXXFLAGS is set" if more else "no compiled engine came with the package"
        return EngineChoice(NATIVE, reason, flags=native)
    return EngineChoice(best.name, "the best that this processor runs", path)


def asked_engine() -> tuple[str, str]:
    """What the environment variables SOLM_CPU and SOLM_CXXFLAGS say, as `choose_engine` takes it."""
    return os.environ.get("SOLM_CPU", "").strip(), os.environ.get("SOLM_CXXFLAGS", "").strip()


def library(flags: str | None = None) -> ctypes.CDLL:
    """The engine that the environment asks for, see `choose_engine`; with `flags`, such as ``-march=x86-64-v3``, one
    that is compiled with them in place of or besides ``-march=native``. Several can be loaded side by side.

    Raises `SolmError` with what was tried where there is none and it cannot be compiled, and where it cannot be loaded.
    """
    return _library(*asked_engine()) if flags is None else _library(NATIVE, flags)


@cache
def _library(requested: str, flags: str) -> ctypes.CDLL:
    choice = choose_engine(requested, flags)
    path = built(choice.flags) if choice.path is None else choice.path
    try:
        return declare(ctypes.CDLL(str(path)))
    except OSError as error:
        raise SolmError(f"the cpu backend cannot be loaded: {error}; delete {path}, or set SOLM_CACHE") from error
