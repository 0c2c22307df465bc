"""Instruction sets with a fused multiply-add compute the same, to the last bit. Those of Arm: test_arm.py."""

import platform
import shutil

import pytest

from helpers.recordings import PRECISIONS, differing, recorded
from solm.backends.cpu.library import NATIVE, usable_features, variants_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
HERE = [variant.name for variant in variants_of(platform.machine()) if not variant.missing(usable_features())]
NAMES = [name for name in HERE if name != "sse4"]  # which has none


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*NAMES[-1:], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:-1])])
def test_every_instruction_set_computes_what_the_native_engine_does(name, precision, monkeypatch):
    """Each is compiled once, which takes a while: the lowest one always, others with the slow tests."""
    found = []
    for asked in (name, NATIVE):
        monkeypatch.setenv("SOLM_CPU", asked)
        found.append(recorded(precision)[1].results)
    assert differing(*found) == {}
