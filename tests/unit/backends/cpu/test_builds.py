"""The compiled engine for other processors and under sanitizers."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.engine_edges import EDGES
from helpers.wheels import engine_of
from solm.backends.cpu.border import declare
from solm.backends.cpu.build import built
from solm.backends.cpu.library import NATIVE, choose_engine, library, usable_features, variants_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
TESTS = Path(__file__).parents[3]


def builds():
    """The engine that is compiled here, and those of a wheel that this machine runs."""
    yield pytest.param(None, id="here")
    for variant in variants_of(platform.machine()):
        if not variant.missing(usable_features()):
            yield pytest.param(variant.name, id=variant.name, marks=pytest.mark.slow)


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
@pytest.mark.parametrize("variant", builds())
def test_every_processor_computes_the_same(variant, edge):
    """What must hold is asserted in the edges themselves."""
    edge(library("") if variant is None else declare(ctypes.CDLL(str(engine_of(platform.machine(), variant)))))


@pytest.mark.slow
def test_no_sanitizer_finds_anything_in_the_engine():
    # The sanitizer looks for the library of C++ when it starts: without it the first exception ends the process.
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(path).is_file() for path in libraries):
        pytest.skip("no sanitizers here")
    # -fexpensive-optimizations: without it products and sums are fused where an intrinsic says so and nowhere else.
    flags = "-g -O1 -fexpensive-optimizations -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    built(choose_engine(NATIVE, flags).flags)  # here, since the compiler takes far longer under the sanitizer's runtime
    environment = {
        **os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "helpers.engine_edges", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(done.stdout.split()) == len(EDGES) - 1


def test_the_engine_compiles_without_warnings():
    sources = sorted((TESTS.parent / "src/solm/backends/cpu/csrc").glob("*.cpp"))
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-march=native", "-Wno-psabi"]
    done = subprocess.run([*command, "-fopenmp-simd", *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
