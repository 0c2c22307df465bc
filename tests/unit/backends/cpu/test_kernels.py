"""The integer kernels of every instruction set give the same sums, to the last bit. Arm's run in an emulator."""

import platform
import shutil
import subprocess

import pytest

from helpers.kernel_sums import LINES, compile_sums
from solm.backends.cpu.library import VARIANTS, usable_features

pytestmark = pytest.mark.slow


def sums(variant, folder) -> list[str]:
    """What the kernels of a variant give, line by line. Skips where it can neither be compiled nor run."""
    here = variant.machine == platform.machine()
    compiler = "g++" if here else f"{variant.machine}-linux-gnu-g++"
    runner = [] if here else [f"qemu-{variant.machine}", "-cpu", "max"]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here: apt install g++-{variant.machine.replace('_', '-')}-linux-gnu")
    if here and variant.missing(usable_features()):
        pytest.skip(f"this processor lacks {', '.join(variant.missing(usable_features()))}")
    if runner and shutil.which(runner[0]) is None:
        pytest.skip(f"no {runner[0]} here: apt install qemu-user")
    program = folder / variant.name
    compile_sums(compiler, variant.flags, program)
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What plain C++ gives."""
    variant = next(variant for variant in reversed(VARIANTS) if variant.machine == platform.machine())
    return sums(variant, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_integer_sums_are_the_same_to_the_last_bit(variant, plain, tmp_path):
    assert len(plain) == LINES
    assert sums(variant, tmp_path) == plain
