"""Instruction sets with a fused multiply-add compute the same, to the last bit. Those of Arm: test_arm.py."""

import platform
import shutil
from pathlib import Path

import pytest

from helpers.recordings import PRECISIONS, differing, recorded
from solm.backends.cpu.library import NATIVE, VARIANTS, library, usable_features, variants_of

pytestmark = [
    pytest.mark.slow,  # every build takes a minute
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here"),
]
HERE = [variant.name for variant in variants_of(platform.machine()) if not variant.missing(usable_features())]
AMX, AVX512 = (next(one for one in VARIANTS if one.name == name) for name in ("amx", "avx512"))
NAMES = [name for name in HERE if name != "sse4"]  # which has none


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set_computes_what_the_native_engine_does(name, precision, monkeypatch):
    found = []
    for asked in (name, NATIVE):
        monkeypatch.setenv("SOLM_CPU", asked)
        found.append(recorded(precision)[1].results)
    assert differing(*found) == {}


@pytest.mark.skipif(bool(AVX512.missing(usable_features())), reason="no AVX-512 here")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles_of_amx_compute_what_the_native_engine_does(precision):
    """AMX in C++, which ends the process where a thread has not configured its tiles."""
    tiles = Path(__file__).parents[3] / "helpers" / "amx_tiles.h"
    built = library(" ".join([*AMX.flags, "-include", str(tiles)]))
    assert differing(recorded(precision, built)[1].results, recorded(precision)[1].results) == {}
