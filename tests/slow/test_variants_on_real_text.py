"""Every instruction set that this machine has, and that has a fused multiply-add, decodes the same text."""

import json
import os
import platform
import subprocess
import sys

import pytest

from solm.backends.cpu.build import find_compiler
from solm.backends.cpu.library import usable_features, variants_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here")]
HERE = [variant.name for variant in variants_of(platform.machine()) if not variant.missing(usable_features())]
NAMES = [name for name in HERE if name != "sse4"]
PROBE = """
import json
from solm import load, quickstart
lm = load(quickstart.MODEL, quickstart.FAST_POLICY, backend="cpu", precision="{}")
ids = quickstart._passage(lm, quickstart.FAST["context"])
replies = [lm.generate(ids, budget=budget, max_new_tokens=60) for budget in (None, *quickstart.FAST["budgets"])]
print(json.dumps([reply.text if hasattr(reply, "text") else reply.tolist() for reply in replies]))
"""


@pytest.mark.parametrize("precision", ["auto", "int8", "bfloat16"])
def test_greedy_texts_of_the_quickstart_are_the_same(precision, real_model):
    found = {}
    for name in [*NAMES, "native"]:
        environment = {**os.environ, "SOLM_CPU": name}
        command = [sys.executable, "-c", PROBE.format(precision)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads(done.stdout)
    assert NAMES
    assert len(found["native"]) == 3
    assert all(texts == found["native"] for texts in found.values()), found
