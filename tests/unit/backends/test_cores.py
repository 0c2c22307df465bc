"""Threads by what the system tells, on machines that are pretended."""

import pytest

from solm.backends.cores import cores_of, cpu_quota, usable_cores


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
        ([[0, 4], [1, 5], [2, 6], [3, 7]], range(8), 100.0, 4),
        ([[0], [1]], [0, 1], 0.2, 1),
        ([], range(6), None, 6),  # nothing is told
    ],
)
def test_cores_count_once_and_only_where_the_process_may_run(machine, groups, allowed, quota, cores):
    siblings(machine, groups)
    assert cores_of(allowed, quota, machine.root, machine.root).threads == cores


def test_efficiency_cores_count_only_where_there_are_no_others(machine):
    siblings(machine, [[0, 1], [2, 3], [4], [5], [6], [7]])
    machine("devices/cpu_core/cpus", "0-3")
    assert cores_of(range(8), None, machine.root, machine.root).threads == 2
    assert cores_of([3, 4, 5], None, machine.root, machine.root).threads == 1
    assert cores_of([4, 5, 6], None, machine.root, machine.root).threads == 3


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/pod/box", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2),
        ("0::/pod/box", {"pod/cpu.max": "400000 100000", "pod/box/cpu.max": "50000 100000"}, 0.5),
        ("0::/host/path", {"cpu.max": "300000 100000"}, 3),  # the path of the host, inside a container
        (
            "4:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, 2.5,
        ),
        ("4:cpuacct,cpu:/box", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpuset:/box", {"cpuset/box/cpu.cfs_quota_us": "100000"}, None),
        ("0::/", {"cpu.max": "garbage"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_a_quota_is_that_of_the_group_or_of_one_around_it(machine, cgroup, files, quota):
    machine("self/cgroup", cgroup)
    for name, text in files.items():
        machine(f"fs/cgroup/{name}", text)
    assert cpu_quota(machine.root, machine.root) == quota


@pytest.mark.parametrize(
    ("allowed", "memory", "nodes"),
    [
        (range(16), "0-1", (0, 1)),
        (range(8), "0-1", (0,)),  # numactl --cpunodebind
        ([0, 9], "0-1", (0, 1)),
        (range(16), "1", (1,)),  # a cpuset's memory
        (range(16), None, (0, 1)),
    ],
)
def test_nodes_are_those_whose_cores_and_memory_the_process_may_use(machine, allowed, memory, nodes):
    siblings(machine, [[core, core + 4] for core in range(4)] + [[core, core + 4] for core in range(8, 12)])
    machine("devices/system/node/node0/cpulist", "0-7")
    machine("devices/system/node/node1/cpulist", "8-15")
    machine("devices/system/node/node2/cpulist", "")  # memory without cores
    if memory is not None:
        machine("self/status", f"Name:\tpython\nMems_allowed:\t3\nMems_allowed_list:\t{memory}")
    assert cores_of(allowed, None, machine.root, machine.root).nodes == nodes


def test_why_so_many_threads_is_said(machine):
    siblings(machine, [[0, 1], [2, 3], [4], [5]])
    machine("devices/cpu_core/cpus", "0-3")
    for node, cores in ((0, "0-1"), (1, "2-5")):
        machine(f"devices/system/node/node{node}/cpulist", cores)
    assert cores_of(range(6), 1.5, machine.root, machine.root).reason == (
        "6 hardware threads of 4 cores, 2 of them efficiency cores, on 2 NUMA nodes, over which weights and KV cache "
        "are spread, a quota of 1.5 cores"
    )
    assert cores_of([0, 2], None, machine.root, machine.root).threads == 2


def test_this_process_may_use_a_core():
    found = usable_cores()
    assert found.hardware_threads >= found.cores >= found.fast_cores >= 1
    assert 1 <= found.threads <= found.cores
