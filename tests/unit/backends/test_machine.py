"""What is found out about the machine without torch: threads and accelerators; what is set is set back."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from transformers.utils import logging

from solm.backends.accelerator import accelerator_available
from solm.backends.quiet import quiet
from solm.backends.threads import default_threads, threads_of


def test_without_torch_there_are_as_many_threads_as_with_it():
    code = "import sys; {}; from solm.backends.threads import default_threads; print(default_threads())"
    for more in ({}, {"OMP_NUM_THREADS": "1"}):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | more
        told = {
            first: subprocess.run(
                [sys.executable, "-c", code.format(first)], env=environment, capture_output=True, text=True, check=True
            ).stdout
            for first in ("pass", "import torch")
        }
        assert told["pass"] == told["import torch"]


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("2,1", 2)])
def test_the_environment_says_how_many(monkeypatch, said, threads):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert default_threads() == threads
    with threads_of(5):
        assert default_threads() == 5
    assert default_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= default_threads() <= os.cpu_count()


def test_threads_of_a_block_are_torchs_too_until_its_end():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_of(1):
            assert torch.get_num_threads() == default_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_talks_as_before_after_it_was_kept_from_it(bars):
    verbosity, before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    switch[bars]()
    try:
        with quiet():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
        assert logging.is_progress_bar_enabled() == bars
        assert logging.get_verbosity() == verbosity
    finally:
        switch[before]()


def test_torch_is_asked_only_where_there_may_be_an_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert accelerator_available(tmp_path) is (sys.platform != "linux")
    (tmp_path / "nvidia0").touch()
    assert accelerator_available(tmp_path)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_freed_memory_is_kept_until_it_is_given_back():
    check = (
        "import re\n"
        "from pathlib import Path\n"
        "from solm.backends.heap import give_back_freed_memory, keep_freed_memory\n"
        "def held():\n"
        "    return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10\n"
        "keep_freed_memory()\n"
        "large = bytearray(200 << 20)\n"
        "for at in range(0, len(large), 4096):\n"
        "    large[at] = 1\n"
        "there = held()\n"
        "del large\n"
        "kept = held()\n"
        "give_back_freed_memory()\n"
        "print(there - kept, kept - held())\n"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    freed, given_back = map(int, done.stdout.split())
    assert freed < 20
    assert given_back > 180
