"""The engine with AVX-512 and AMX, on an emulated processor: it computes what this machine does."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers import emulator
from helpers.kernel_sums import LINES, compile_sums
from helpers.recordings import PRECISIONS, differing, recorded, recorded_text
from solm.backends.cpu.build import CSRC, compile_engine
from solm.backends.cpu.library import VARIANTS, usable_features

EMULATED = [variant for variant in VARIANTS if variant.name in ("amx", "avx512") and variant.missing(usable_features())]
"""What this machine does not run itself (see test_same_numbers.py)."""
NAMES = [variant.name for variant in EMULATED]
HELPERS = Path(__file__).parents[3] / "helpers"
SECONDS = 3000
TILES = ("-include", str(HELPERS / "guest" / "amx_tiles.h"))
"""AMX in C++, for inputs of either sign."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="it takes a kernel of this machine's architecture"),
    pytest.mark.skipif(emulator.missing() is not None, reason=emulator.missing() or ""),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """What everything below computes there, in one start of the machine: by variant and what is run, how it ended and
    the recorder of what was repeated or the tokens expected."""
    folder = tmp_path_factory.mktemp("emulated")
    command = ["g++", "-std=c++20", "-O1", f"-I{CSRC}", str(HELPERS / "replay.cpp"), "-o", str(folder / "replay")]
    subprocess.run(command, check=True)
    files, runs = {"/replay": folder / "replay"}, {}
    for precision in (*PRECISIONS, "text"):
        record = folder / f"record-{precision.replace(' ', '-')}"
        if precision == "text":
            engine, recorder, expected = recorded_text("auto")
            vocabulary = f" {engine.sizes.vocabulary}"
        else:
            (engine, recorder), vocabulary = recorded(precision), ""
            expected = recorder
        recorder.write(engine, record)
        files[f"/{record.name}"] = record
        runs[precision] = f"/{record.name} /result{vocabulary}", expected
    commands = {}
    for variant in EMULATED:
        work = folder / variant.name
        work.mkdir()
        flags = (*variant.flags, *(TILES if variant.name == "amx" else ()))
        compile_engine("g++", flags, work / "engine.so")
        compile_sums("g++", flags, work / "kernels"), compile_sums("g++", variant.flags, work / "processor")
        files |= {f"/{variant.name}/{name}": work / name for name in ("engine.so", "kernels", "processor")}
        commands[variant.name, "kernels"] = f"/{variant.name}/kernels", None
        commands[variant.name, "processor"] = f"/{variant.name}/processor nonnegative", None
        for precision, (arguments, expected) in runs.items():
            commands[variant.name, precision] = f"/replay /{variant.name}/engine.so {arguments}", expected
    ended = emulator.run([command for command, _ in commands.values()], files, folder, SECONDS)
    return {key: (found, expected) for (key, (_, expected)), found in zip(commands.items(), ended, strict=True)}


@pytest.fixture(params=NAMES)
def repeated(request, emulated):
    """repeated(what): see `emulated`, of one variant and of what ran to its end."""

    def told(what):
        found, expected = emulated[request.param, what]
        assert found.status == 0, found.printed.decode(errors="replace")[-500:]
        return found, expected

    return told


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    program = tmp_path_factory.mktemp("plain") / "plain"
    compile_sums("g++", ["-march=x86-64-v2"], program)
    return program


@pytest.mark.parametrize(("what", "arguments"), [("kernels", []), ("processor", ["nonnegative"])])
def test_integer_sums_are_the_same_to_the_last_bit(repeated, plain, what, arguments):
    """processor: by its own instructions for tiles, too."""
    expected = subprocess.run([str(plain), *arguments], capture_output=True, check=True).stdout.splitlines()
    assert len(expected) == LINES
    assert sorted(repeated(what)[0].printed.splitlines()) == sorted(expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_computes_what_this_machine_does(repeated, precision):
    """To the last bit."""
    found, recorder = repeated(precision)
    assert differing(recorder.split(found.result), recorder.results) == {}


def test_a_question_is_answered_with_the_same_text(repeated):
    found, expected = repeated("text")
    assert np.frombuffer(found.result, np.int64).tolist() == expected.tolist()
