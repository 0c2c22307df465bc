"""The engine built for other processors, and with sanitizers."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")

EDGES = (
    "whatever or shortlist_is or head_of_integers or packed_weights or page_boundaries or whole_steps or depend_on_who"
    " or outgrow or share_pages or steps_forks or cache_of_bytes"
)


@pytest.mark.parametrize("processor", [pytest.param("x86-64", marks=pytest.mark.slow), "x86-64-v3"])
def test_other_processors_compute_the_same(processor):
    """The same tests on an engine without the instructions of this machine: plain C++, and AVX2."""
    if platform.machine() != "x86_64":
        pytest.skip("not an x86-64 machine")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", EDGES],
        capture_output=True, text=True, env={**os.environ, "SOLM_CXXFLAGS": f"-march={processor}"},
        cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count(".") > 20, done.stdout


def test_no_sanitizer_finds_anything_in_the_engine():
    """The tests of its edges once more, on an engine that checks every access and every overflow."""
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("no sanitizers here")
    # -fexpensive-optimizations: without it products and sums are fused where an intrinsic says so and nowhere else.
    environment = {
        **os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1",
        "SOLM_CXXFLAGS": "-g -O1 -fexpensive-optimizations -fsanitize=address,undefined "
        "-fno-sanitize-recover=undefined",
        "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", EDGES],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count(".") > 20, done.stdout
