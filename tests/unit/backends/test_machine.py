"""What is found out about the machine without torch: threads, memory, accelerators; what is set is set back."""

import platform
import subprocess
import sys

import pytest

from solm.backends.machine import cores_of, cpu_quota, free_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_freed_memory_is_kept_until_it_is_given_back():
    check = (
        "import re\n"
        "from pathlib import Path\n"
        "from solm.backends.machine import give_back_freed_memory, keep_freed_memory\n"
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


@pytest.fixture
def machine(tmp_path):
    """write(path, text) puts a file of /sys or /proc in place."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    write.root = tmp_path
    return write


def siblings(machine, groups):
    for group in groups:
        for number in group:
            text = ",".join(map(str, group))
            machine(f"devices/system/cpu/cpu{number}/topology/thread_siblings_list", text)


@pytest.mark.parametrize(
    ("groups", "allowed", "quota", "cores"),
    [
        ([[0], [1]], [0, 1], None, 2),
        ([[0, 4], [1, 5], [2, 6], [3, 7]], range(8), None, 4),  # two hardware threads a core
        ([[0, 4], [1, 5], [2, 6], [3, 7]], [0, 4, 5], None, 2),  # taskset
        ([[0, 4], [1, 5], [2, 6], [3, 7]], range(8), 2.9, 2),
        ([[0], [1]], [0, 1], 0.2, 1),
        ([], range(6), None, 6),  # nothing is told
    ],
)
def test_cores_count_once_and_only_where_the_process_may_run(machine, groups, allowed, quota, cores):
    siblings(machine, groups)
    assert cores_of(allowed, quota, machine.root).threads == cores


def test_efficiency_cores_count_only_where_there_are_no_others(machine):
    siblings(machine, [[0, 1], [2, 3], [4], [5], [6], [7]])
    machine("devices/cpu_core/cpus", "0-3")
    assert cores_of(range(8), None, machine.root).threads == 2
    assert cores_of([3, 4, 5], None, machine.root).threads == 1
    assert cores_of([4, 5, 6], None, machine.root).threads == 3


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/pod/box", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2),
        ("0::/host/path", {"cpu.max": "300000 100000"}, 3),  # the path of the host, inside a container
        (
            "4:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, 2.5,
        ),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "garbage"}, None),
    ],
)  # fmt: skip
def test_a_quota_is_that_of_the_group_or_of_one_around_it(machine, cgroup, files, quota):
    machine("self/cgroup", cgroup)
    for name, text in files.items():
        machine(f"fs/cgroup/{name}", text)
    assert cpu_quota(machine.root, machine.root) == quota


def test_free_memory_is_within_the_limits_of_control_groups(machine):
    machine("self/cgroup", "1:cpu:/elsewhere\n0::/system.slice/job")
    groups = ("fs/cgroup/system.slice", "fs/cgroup/system.slice/job")
    for group in groups:
        for name, text in (("max", "max"), ("current", "1500000"), ("stat", "anon 7\ninactive_file 500000")):
            machine(f"{group}/memory.{name}", text)
    whole = free_memory(machine.root, machine.root)
    assert whole > 2_000_000
    machine(f"{groups[0]}/memory.max", "2000000")
    assert free_memory(machine.root, machine.root) == 1_000_000, "the limit of a group around it counts"
    machine(f"{groups[1]}/memory.max", "1500000")
    assert free_memory(machine.root, machine.root) == 500_000
