"""Choosing and loading the engine: compiled ahead of time where the package came so, otherwise at first use."""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from solm.backends.cpu.border import declare
from solm.backends.cpu.build import NATIVE_FLAGS, built
from solm.backends.cpu.prebuilt import prebuilt_library
from solm.backends.cpu.variants import (
    NATIVE,
    NO_AMX,
    best_variant,
    cpu_features,
    machine,
    usable_features,
    variant_named,
)
from solm.core.errors import SolmError


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs. variant: its instruction set, ``native`` where it is compiled for this very processor. path:
    of the library that came with the package; None: it is compiled with `flags`. reason: why this one."""

    variant: str
    reason: str
    path: Path | None = None
    flags: tuple[str, ...] = NATIVE_FLAGS


def choose_engine(asked: str, flags: str) -> EngineChoice:
    """The engine for this processor, or the one that is asked for by name; "" leaves the choice to the processor.
    flags: more flags of the compiler; with some, nothing that was compiled before is used.

    Raises `SolmError` for a name that is not known or that the processor cannot run, and for libraries beside the
    package that do not belong to it or are damaged.
    """
    here, features, more = machine(), usable_features(cpu_features()), tuple(flags.split())
    native = (*NATIVE_FLAGS, *([NO_AMX] if "amx_tile" in features else []), *more)
    if asked == NATIVE:
        return EngineChoice(NATIVE, "it was asked for", flags=native)
    if asked:
        variant = variant_named(asked, here, features)
        path = None if more else prebuilt_library(variant.name, here)
        return EngineChoice(variant.name, "SOLM_CPU asks for it", path, (*variant.flags, *more))
    best = best_variant(here, features)
    path = None if best is None or more else prebuilt_library(best.name, here)
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
def _library(asked: str, flags: str) -> ctypes.CDLL:
    choice = choose_engine(asked, flags)
    return _loaded(built(choice.flags) if choice.path is None else choice.path)


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise SolmError(f"the cpu backend cannot be loaded: {error}; delete {path}, or set SOLM_CACHE") from error
    return declare(loaded)
