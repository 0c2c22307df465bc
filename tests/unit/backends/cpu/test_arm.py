"""The whole engine on Arm, in an emulator: what it computes against what this machine does."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.engine import engine_of
from helpers.engine_edges import SPARSITY, Rows, tokens
from helpers.models import tiny_model
from helpers.replay import Recorder
from helpers.weights import GRID_SIZES
from solm.backends.cpu.build import CSRC, compile_engine
from solm.backends.cpu.library import library
from solm.backends.cpu.variants import variants_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="apt install g++-aarch64-linux-gnu"),
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="apt install qemu-user"),
]
SYSTEM = "/usr/aarch64-linux-gnu"
COMPILER = "aarch64-linux-gnu-g++"


@pytest.fixture(scope="module", params=variants_of("aarch64"), ids=lambda variant: variant.name)
def arm(request, tmp_path_factory):
    """repeat(recorder, engine): the outputs of recorded calls by an Arm engine."""
    folder = tmp_path_factory.mktemp(request.param.name)
    compile_engine(COMPILER, request.param.flags, folder / "engine.so")
    source = Path(__file__).parents[3] / "helpers" / "replay.cpp"
    command = [COMPILER, "-std=c++20", "-O1", f"-I{CSRC}", str(source), "-o", str(folder / "replay")]
    subprocess.run(command, check=True)

    def repeat(recorder, engine):
        recorder.write(engine, folder / "record")
        command = ["qemu-aarch64", "-cpu", "max", "-L", SYSTEM, "replay", "./engine.so", "record", "result"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return recorder.read(folder / "result")

    return repeat


# Of the norm. An input that is halfway between two integers may be rounded the other way.
OFF = {"float32": 1e-5, "bfloat16": 2e-3, "int8": 0.01, "packed": 0.01, "nested": 0.01}


def recorded(precision):
    """An engine, and the recorder of what it computes: prompts, single steps and batches, dense and not."""
    model = tiny_model("qwen3", torch.float32, intermediate_size=352, **GRID_SIZES)
    recorder = Recorder(library())
    name, _, kv = precision.partition(" ")
    engine = engine_of(model, SPARSITY, name, 1, "int8" if kv else "auto", library=recorder)
    rows, alone = Rows(engine, 2), Rows(engine)
    rows.run(tokens(2, 70))
    rows.run(tokens(2, 1, seed=1), (1.0, 1.0, 16))
    rows.run(tokens(2, 3, seed=2), (0.3, 0.6, 8))
    alone.run(tokens(1, 40, seed=3))
    alone.run(tokens(1, 1, seed=4), (1.0, 0.5, 16))
    alone.run(tokens(1, 1, seed=5), approximate_tail=3)
    return engine, recorder


def floats(results):
    """The residual streams and logits of all calls."""
    return [np.frombuffer(result, np.float32) for at, result in enumerate(results) if at % 4 in (2, 3)]


@pytest.mark.parametrize("precision", OFF)
def test_arm_computes_what_this_machine_does(arm, precision):
    engine, recorder = recorded(precision)
    found, expected = arm(recorder, engine), recorder.results
    assert len(expected) == 4 * 6
    for shares in range(0, len(expected), 4):
        assert np.allclose(*(np.frombuffer(each[shares]) for each in (found, expected)), rtol=0, atol=1e-9)
    for ours, theirs in zip(floats(found), floats(expected), strict=True):
        off = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert off < OFF[precision], off


def test_an_int8_kv_cache_on_arm_is_as_close_to_floats_as_here(arm):
    """Keys and values that are rounded the other way are seen by all later tokens, so that results differ more."""
    engine, recorder = recorded("int8 kv")
    _, exact = recorded("float32")
    found = zip(*map(floats, (arm(recorder, engine), recorder.results, exact.results)), strict=True)
    distances = np.array([[np.linalg.norm(some - floating) for some in both] for *both, floating in found])
    ours, theirs = distances.sum(0)
    assert ours < 1.1 * theirs, distances
