"""The program that prints sums of the integer kernels, for any processor."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from solm.backends.cpu.build import CSRC

LINES = 1576
"""That it prints. Some processors multiply more tokens at a time than others, so that their order differs."""


def compile_sums(compiler: str, flags: Sequence[str], program: Path) -> None:
    options = ["-std=c++20", "-O2", "-static", "-Wno-psabi", "-fopenmp-simd", f"-I{CSRC}"]
    source = Path(__file__).with_name("kernels.cpp")
    subprocess.run([compiler, *options, *flags, str(source), "-o", str(program)], check=True)
