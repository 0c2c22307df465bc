"""The compiled engine for other processors and under sanitizers."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.engine_edges import EDGES
from solm.backends.cpu.library import library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
TESTS = Path(__file__).parents[3]


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
@pytest.mark.parametrize(
    "flags", ["", "-march=x86-64-v3", pytest.param("-march=x86-64", marks=pytest.mark.slow)], ids=["here", "v3", "v1"]
)
def test_every_processor_computes_the_same(flags, edge):
    """This machine's instructions, AVX2 and plain C++. What must hold is asserted in the edges themselves."""
    if flags and platform.machine() != "x86_64":
        pytest.skip("not an x86-64 machine")
    if flags == "-march=x86-64-v3" and "avx512" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("without AVX-512 it is this machine's own build")
    edge(library(flags))


@pytest.mark.slow
def test_no_sanitizer_finds_anything_in_the_engine():
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("no sanitizers here")
    # -fexpensive-optimizations: without it products and sums are fused where an intrinsic says so and nowhere else.
    flags = "-g -O1 -fexpensive-optimizations -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    environment = {
        **os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1",
        "OMP_NUM_THREADS": "2",
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
