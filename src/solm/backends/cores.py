"""Which cores a process may use: its affinity, hardware threads, slower cores, NUMA nodes and the quota of its control
group."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

SYSTEM, PROCESSES = Path("/sys"), Path("/proc")


@dataclass(frozen=True)
class UsableCores:
    """What a process may use. hardware_threads: of its affinity; cores: that those belong to; fast_cores: those of them
    that are no efficiency cores; nodes: of memory that these cores are beside, by number; quota: how many cores it may
    keep busy, None for all."""

    hardware_threads: int
    cores: int
    fast_cores: int
    nodes: tuple[int, ...]
    quota: float | None

    @property
    def threads(self) -> int:
        """How many threads compute by default: one a core. All threads of a step wait for the slowest one, so that
        efficiency cores are left out, and the quota is rounded down: a thread that is stopped holds up all others."""
        return max(1, self.fast_cores if self.quota is None else min(self.fast_cores, int(self.quota)))

    @property
    def reason(self) -> str:
        """Why so many threads, in words."""
        found = [f"{self.hardware_threads} hardware threads of {self.cores} cores"]
        if self.fast_cores < self.cores:
            found.append(f"{self.cores - self.fast_cores} of them efficiency cores")
        if len(self.nodes) > 1:
            found.append(f"on {len(self.nodes)} NUMA nodes, over which weights and KV cache are spread")
        if self.quota is not None:
            found.append(f"a quota of {self.quota:g} cores")
        return ", ".join(found)


def usable_cores() -> UsableCores:
    """Of this process."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return cores_of(allowed, cpu_quota())


def cores_of(
    allowed: Collection[int], quota: float | None, system: Path = SYSTEM, processes: Path = PROCESSES
) -> UsableCores:
    """What the hardware threads `allowed`, which are told by their numbers, amount to. Two of one core count once."""
    fast = set(allowed) & _numbers(_read(system / "devices/cpu_core/cpus")) or set(allowed)
    cores, fast_cores = ({_siblings(number, system) for number in some} for some in (set(allowed), fast))
    return UsableCores(len(set(allowed)), len(cores), len(fast_cores), _nodes(fast, system, processes), quota)


def cpu_quota(system: Path = SYSTEM, processes: Path = PROCESSES) -> float | None:
    """How many cores the control groups of this process, version 1 or 2, let it keep busy; None: as many as there are.

    The smallest quota of a group and those around it counts. Where a container does not see its own group's path, the
    root that it sees is its own.
    """
    found = []
    for line in _read(processes / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = [name for name in controllers.split(",") if name]
        if not names:
            found += [_quota_v2(_read(group / "cpu.max")) for group in groups_around(system / "fs/cgroup", path)]
        elif "cpu" in names:
            for mount in {controllers, "cpu"}:
                for group in groups_around(system / "fs/cgroup" / mount, path):
                    found.append(_quota(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")))
    return min((quota for quota in found if quota is not None), default=None)


def groups_around(mount: Path, path: str) -> Iterable[Path]:
    """The folder of the control group `path`, and of those around it, under their file system at `mount`."""
    group = mount / path.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _quota_v2(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")
    return _quota(quota, period)


def _quota(quota: str, period: str) -> float | None:
    """Cores by microseconds of time in a period; None where there is no limit, which is told as ``max`` or -1."""
    try:
        allowed, of = int(quota), int(period)
    except ValueError:
        return None
    return allowed / of if allowed > 0 and of > 0 else None


def _nodes(allowed: set[int], system: Path, processes: Path) -> tuple[int, ...]:
    """The NUMA nodes with some of these hardware threads and with memory that the process may use."""
    status = _read(processes / "self/status")
    memory = next((line for line in status.splitlines() if line.startswith("Mems_allowed_list:")), "")
    usable = _numbers(memory.partition(":")[2])
    folders = (system / "devices/system/node").glob("node[0-9]*")
    found = {int(folder.name[4:]) for folder in folders if allowed & _numbers(_read(folder / "cpulist"))}
    return tuple(sorted(found & usable if usable else found))


def _siblings(number: int, system: Path) -> str:
    """What tells the core of a hardware thread."""
    return _read(system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list").strip() or str(number)


def _numbers(text: str) -> set[int]:
    """Of a list such as ``0-3,8``; those that cannot be read are left out."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
