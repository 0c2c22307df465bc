"""Selection of the largest values in C++."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import solm as package

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("flags", [["-march=native"], []], ids=["this processor", "any"])
def test_selection_takes_the_largest_and_of_equal_ones_the_first_or_all_from_a_limit_on(tmp_path, flags):
    source = Path(package.__file__).parent / "backends/cpu/csrc"
    (tmp_path / "chosen.cpp").write_text(
        '#include "select.h"\nextern "C" int chosen(const float* x, int n, int count, int32_t* index, float* values)'
        " { return solm::select(x, n, count, index, values); }"
        'extern "C" int above(const float* x, int n, float limit, int32_t* index, float* values)'
        " { return solm::select_from(x, n, limit, index, values); }"
    )
    built = tmp_path / "chosen.so"
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        "-shared",
        "-fPIC",
        *flags,
        f"-I{source}",
        tmp_path / "chosen.cpp",
        "-o",
        built,
    ]
    subprocess.run(command, check=True)
    library, spare = ctypes.CDLL(str(built)), 16
    chosen, above = library.chosen, library.above
    rng = np.random.default_rng(0)
    for n in (1, 15, 16, 17, 33, 64, 100, 576, 1536, 4864):
        close = 1 + rng.integers(0, 300, n) * 2.0**-23  # apart in the lower bits only, some equal
        for x in (rng.standard_normal(n), close, rng.integers(-3, 4, n), np.zeros(n), rng.integers(0, 2, n) * 1e-40):
            x = x.astype(np.float32)
            for count in sorted({0, 1, n // 3, n // 2, n - 1, n}):
                index, values = np.full(n + spare, -1, np.int32), np.zeros(n + spare, np.float32)
                where = [ctypes.c_void_p(array.ctypes.data) for array in (x, index, values)]
                found = chosen(where[0], n, count, *where[1:])
                expected = np.sort(np.argsort(-np.abs(x), kind="stable")[:count])
                assert found == count
                assert index[:count].tolist() == expected.tolist(), (n, count)
                assert np.array_equal(values[:count], x[expected])
            for limit in sorted({0.0, *np.abs(x[: 2 * n : max(1, n // 3)]).tolist(), 1e9}):
                index, values = np.full(n + spare, -1, np.int32), np.zeros(n + spare, np.float32)
                where = [ctypes.c_void_p(array.ctypes.data) for array in (x, index, values)]
                expected = np.flatnonzero(np.abs(x) >= np.float32(limit))
                found = above(where[0], n, ctypes.c_float(limit), *where[1:])
                assert index[:found].tolist() == expected.tolist(), (n, limit)
                assert np.array_equal(values[:found], x[expected])
