"""How much memory a process may still take."""

from pathlib import Path

from solm.backends.cores import PROCESSES, SYSTEM, groups_around


def free_memory(system: Path = SYSTEM, processes: Path = PROCESSES) -> int | None:
    """Bytes that are free or can be freed, within the limits of the control groups of version 2 that the process is in;
    None where nothing tells it."""
    known = [_of_machine(processes / "meminfo")]
    known += [_of_group(group) for group in groups_around(system / "fs/cgroup", _group(processes / "self/cgroup"))]
    return min((found for found in known if found is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _group(groups: Path) -> str:
    """The path of this process's group; that of the root where it is not told."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _of_group(group: Path) -> int | None:
    """What is left of the limit of a control group; what the kernel caches of files counts as free."""
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
