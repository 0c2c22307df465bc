"""The whole engine on Arm, in an emulator: it computes what this machine does."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.recordings import PRECISIONS, differing, recorded, recorded_text
from helpers.wheels import engine_of
from solm.backends.cpu.build import CSRC
from solm.backends.cpu.library import variants_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="apt install g++-aarch64-linux-gnu"),
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="apt install qemu-user"),
]
SYSTEM = "/usr/aarch64-linux-gnu"
COMPILER = "aarch64-linux-gnu-g++"


@pytest.fixture(scope="module", params=variants_of("aarch64"), ids=lambda variant: variant.name)
def arm(request, tmp_path_factory):
    """repeat(recorder, engine, ...): the result of recorded calls by an Arm engine, see helpers/replay.cpp."""
    folder = tmp_path_factory.mktemp(request.param.name)
    shutil.copy(engine_of("aarch64", request.param.name), folder / "engine.so")
    source = Path(__file__).parents[3] / "helpers" / "replay.cpp"
    command = [COMPILER, "-std=c++20", "-O1", f"-I{CSRC}", str(source), "-o", str(folder / "replay")]
    subprocess.run(command, check=True)

    def repeat(recorder, engine, *more):
        recorder.write(engine, folder / "record")
        command = ["qemu-aarch64", "-cpu", "max", "-L", SYSTEM, "replay", "./engine.so", "record", "result", *more]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (folder / "result").read_bytes()

    return repeat


@pytest.mark.parametrize("precision", PRECISIONS)
def test_arm_computes_what_this_machine_does(arm, precision):
    """To the last bit."""
    engine, recorder = recorded(precision)
    assert differing(recorder.split(arm(recorder, engine)), recorder.results) == {}


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_arm_answers_a_question_with_the_same_text(arm, precision):
    engine, recorder, expected = recorded_text(precision)
    found = np.frombuffer(arm(recorder, engine, str(engine.sizes.vocabulary)), np.int64)
    assert found.tolist() == expected.tolist()
