"""Wheels with compiled engines, as `make wheel` builds them."""

import fcntl
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

ROOT = Path(__file__).parents[2]


@cache
def wheel_of(machine: str) -> Path:
    """The wheel for an architecture, before its tag is made more precise. Compiles what is not in build/engines yet,
    once for all processes that ask for it."""
    folder = mkdtemp(prefix="solm-wheel-")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, env={**os.environ, "SOLM_WHEEL": machine}, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling cannot be installed here")
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = Path(folder).glob("solm-*.whl")
    return built


@cache
def engine_of(machine: str, variant: str) -> Path:
    """The engine of a variant, out of the wheel for its architecture."""
    with zipfile.ZipFile(wheel_of(machine)) as content:
        (name,) = (name for name in content.namelist() if f"/prebuilt/engine-{variant}-" in name)
        return Path(content.extract(name, mkdtemp(prefix="solm-engine-")))
