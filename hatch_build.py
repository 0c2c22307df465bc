"""Puts engines that are compiled ahead of time into a wheel; see docs/install.md.

SOLM_WHEEL names the architecture, ``x86_64`` or ``aarch64``. Without it, and for an editable installation, nothing is
compiled: the wheel is pure Python and the engine is compiled at first use.
"""

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
_LINK_FLAGS = ["-static-libstdc++", "-Wl,--gc-sections", "-s"]


class EngineHook(BuildHookInterface[Any]):
    """Compiles what is not in build/engines yet."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        machine = os.environ.get("SOLM_WHEEL", "")
        if not machine or version == "editable":
            return
        sys.path.insert(0, str(ROOT / "src"))
        from solm.backends.cpu.build import library_name
        from solm.backends.cpu.library import variants_of

        names = [variant.name for variant in variants_of(machine)]
        if not names:
            raise ValueError(f"SOLM_WHEEL: {machine!r} is not known; choose x86_64 or aarch64")
        folder = engines(machine)
        for name in map(library_name, names):
            build_data["force_include"][str(folder / name)] = f"solm/backends/cpu/prebuilt/{name}"
        build_data["pure_python"], build_data["tag"] = False, f"py3-none-linux_{machine}"


def engines(machine: str) -> Path:
    """The folder of an architecture's libraries, of the sources as they are. What is not in it yet is compiled."""
    from solm.backends.cpu.build import _FLAGS, CSRC, compile_engine, find_compiler, library_name, sources_digest
    from solm.backends.cpu.library import variants_of

    compiler = find_compiler() if machine == platform.machine() else shutil.which(f"{machine}-linux-gnu-g++")
    if compiler is None:
        raise ValueError(
            f"SOLM_WHEEL: no C++ compiler for {machine}; apt install g++-{machine.replace('_', '-')}-linux-gnu"
        )
    symbols = (CSRC / "exports.map").read_text()
    how = [sources_digest(), compiler, *_FLAGS, *_LINK_FLAGS, symbols, *map(repr, variants_of(machine))]
    folder = ROOT / "build" / "engines" / f"{machine}-{hashlib.sha256(' '.join(how).encode()).hexdigest()[:16]}"
    exports = f"-Wl,--version-script={CSRC / 'exports.map'}"
    for variant in variants_of(machine):
        target = folder / library_name(variant.name)
        if target.exists():
            continue
        work = folder / variant.name
        work.mkdir(parents=True, exist_ok=True)
        compile_engine(compiler, variant.flags, work / target.name, [*_LINK_FLAGS, exports])
        os.replace(work / target.name, target)
        shutil.rmtree(work)
    return folder
