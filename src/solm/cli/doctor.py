"""`solm doctor`."""

import os
import platform
import shlex
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from solm.cli.options import DEFAULT_MODEL, ModelOptions
from solm.cli.output import Result
from solm.core.errors import CacheFolderError, SolmError

if TYPE_CHECKING:
    from solm.backends.machine import UsableCores

_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_INSTALL = "install one, such as: apt install g++ (or set CXX to a compiler)"


def doctor(model: str = DEFAULT_MODEL, revision: str | None = None, trust_remote_code: bool = False) -> Result:
    """Check this machine: processor, threads, compiled engine, memory bandwidth, and which backend would run a model.

    \b
    Examples:
      solm doctor
      solm doctor --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --json
    """
    import torch

    from solm.backends.cpu.build import find_compiler
    from solm.backends.cpu.library import asked_engine, choose_engine, library, usable_features, variants_of
    from solm.backends.machine import default_threads, free_memory, usable_cores
    from solm.core.provenance import memory_bandwidth

    fixes = []
    compiler = find_compiler()
    engine_error, choice = None, None
    try:
        choice = choose_engine(*asked_engine())
        library()
    except SolmError as error:
        engine_error = str(error)
        if choice is None or choice.path is not None or isinstance(error, CacheFolderError):
            fixes.append(engine_error)
        else:
            fixes.append(_INSTALL if compiler is None else f"update the compiler, or set CXX to another: {error}")
    reason, model_error, weights, free = engine_error, None, None, free_memory()
    try:
        prepared = ModelOptions(model, revision=revision, trust_remote_code=trust_remote_code).prepare()
        reason, weights = reason or prepared.reason, round(prepared.weight_bytes())
        if weights > free:
            told = f"its weights take {weights / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
            told += "" if reason else ", so that steps read from the disk"
            fixes.append(f"{told}: choose a file of fewer bits, or a smaller model")
    except SolmError as error:
        reason = model_error = str(error)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    known, cores, threads = usable_features(), usable_cores(), default_threads()
    features = [name for name in _FEATURES if name in known]
    lacks = {variant.name: needs for variant in variants_of(platform.machine()) if (needs := variant.missing(known))}
    if platform.machine() == "x86_64" and "avx2" not in features:
        fixes.append("this processor lacks AVX2: steps are slow on any backend")
    if reason != engine_error and model_error is None and accelerator is None:
        fixes.append("the torch backend runs this model and simulates budgets; it saves no time on a CPU")
    report: dict[str, Any] = {
        "processor": {
            "features": features, "cores": os.cpu_count(), "usable": asdict(cores), "threads": threads,
            "why": _why_threads(threads, cores),
        },
        "gigabytes_per_second": round(memory_bandwidth(), 1),
        "accelerator": None if accelerator is None else str(accelerator),
        "compiler": None if compiler is None else {"path": compiler, "version": _version(compiler)},
        "engine": {
            "builds": engine_error is None, "reason": engine_error,
            "runs": None if choice is None else choice.variant,
            "compiled": None if choice is None else "ahead of time" if choice.path else "here",
            "why": None if choice is None else choice.reason, "lacks": lacks,
        },
        "model": {"name": model, "error": model_error, "bytes": weights}, "free_bytes": free,
        "backend": {"auto": None if model_error else "cpu" if reason is None else "torch", "reason": reason},
        "fixes": fixes,
    }  # fmt: skip
    return Result(report)


def _why_threads(threads: int, cores: "UsableCores") -> str:
    if os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip().isdecimal():
        return f"OMP_NUM_THREADS says so; there are {cores.reason}"
    return cores.reason if threads == cores.threads else f"torch was set to so many; there are {cores.reason}"


def _version(compiler: str) -> str:
    """The first line of what a compiler says about itself."""
    try:
        done = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run: {error}"
    return (done.stdout or done.stderr).strip().split("\n")[0]
