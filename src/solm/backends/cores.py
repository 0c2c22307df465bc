"""How many cores a process may use: its affinity, hardware threads, slower cores and the quota of its control group."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

SYSTEM, PROCESSES = Path("/sys"), Path("/proc")


def usable_cores() -> int:
    """Of this process, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return core_count(allowed, cpu_quota())


def core_count(allowed: Collection[int], quota: float | None, system: Path = SYSTEM) -> int:
    """Cores among the hardware threads `allowed`, which are told by their numbers. Two threads of one core count once.
    Beside performance cores efficiency cores do not count: all threads of a step wait for the slowest one. quota: how
    many cores the process may keep busy, rounded down, because a thread that is stopped holds up all others; None: all.
    """
    fast = set(allowed) & _numbers(_read(system / "devices/cpu_core/cpus"))
    cores = {_siblings(number, system) for number in fast or allowed}
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


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
            found += [_quota_v2(_read(group / "cpu.max")) for group in _groups(system / "fs/cgroup", path)]
        elif "cpu" in names:
            for mount in {controllers, "cpu"}:
                for group in _groups(system / "fs/cgroup" / mount, path):
                    found.append(_quota(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")))
    return min((quota for quota in found if quota is not None), default=None)


def _groups(mount: Path, path: str) -> Iterable[Path]:
    """A group and those around it."""
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
