"""Spreading memory over NUMA nodes. A machine with one node has the system calls, too."""

import ctypes
import mmap
from pathlib import Path

import pytest

from solm.backends import numa
from solm.backends.cores import UsableCores
from solm.backends.cpu.files.repack import Arena
from solm.backends.cpu.library import library

MAPS = Path("/proc/self/numa_maps")


def test_nodes_become_bits_and_one_node_is_nothing_to_spread_over():
    assert numa.node_bits([0, 2]) == 0b101
    assert numa.node_bits([]) == numa.node_bits([3]) == numa.node_bits([3, 64]) == 0


def test_where_a_user_says_where_memory_goes_nothing_is_spread(monkeypatch):
    monkeypatch.setattr(numa, "usable_cores", lambda: UsableCores(8, 8, 8, (0, 1), None))
    for policy, expected in ((0, 0b11), (2, 0), (3, 0), (-1, 0)):  # the default; numactl's --membind and --interleave
        monkeypatch.setattr(numa, "_policy", lambda policy=policy: policy)
        assert numa.spread_nodes() == expected


def policy_at(address: int) -> str:
    """What the kernel says of where memory at an address goes."""
    starts = [line.split()[:2] for line in MAPS.read_text().splitlines()]
    return next(policy for start, policy in reversed(starts) if int(start, 16) <= address)


@pytest.fixture
def allowed():
    """Whether the kernel lets a process say where memory goes: some containers do not."""
    if not MAPS.exists() or numa._policy() != 0:
        pytest.skip("this kernel has no NUMA policies, or another than the default is in force")
    mask = ctypes.c_uint64(1)
    if numa._call(numa._SET, numa._INTERLEAVE, ctypes.byref(mask), numa._BITS + 1):
        pytest.skip("this process may not say where memory goes")
    numa._call(numa._SET, numa._DEFAULT, None, 0)


def test_what_is_first_touched_inside_the_block_is_spread_and_nothing_after_it(allowed):
    with numa.spread_over(1):
        assert numa._policy() == numa._INTERLEAVE
    assert numa._policy() == numa._DEFAULT
    with numa.spread_over(0):
        assert numa._policy() == numa._DEFAULT


def test_memory_of_the_engine_is_spread_where_it_is_told_to(allowed):
    loaded = library()
    try:
        loaded.solm_place_memory(1)
        spread = Arena(loaded, mmap.PAGESIZE)
        ctypes.memset(spread.address, 1, mmap.PAGESIZE)
        assert policy_at(spread.address).startswith("interleave:0")
    finally:
        loaded.solm_place_memory(numa.spread_nodes())
    usual = Arena(loaded, mmap.PAGESIZE)
    assert policy_at(usual.address) == "default"
