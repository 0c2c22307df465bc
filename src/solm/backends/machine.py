"""What a process may use of the machine: cores and threads, memory, an accelerator."""

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from solm.core.errors import SolmError

SYSTEM, PROCESSES = Path("/sys"), Path("/proc")
_DEVICES = ("nvidia*", "kfd", "dxg", "dri/render*", "accel*", "davinci*", "habanalabs*", "neuron*")
"""What kernel drivers of accelerators make in /dev."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GIB = 1 << 30


@dataclass(frozen=True)
class UsableCores:
    """What a process may use. hardware_threads: of its affinity; cores: that those belong to; fast_cores: those of them
    that are no efficiency cores; quota: how many cores it may keep busy, None for all."""

    hardware_threads: int
    cores: int
    fast_cores: int
    quota: float | None

    @property
    def threads(self) -> int:
        """How many threads compute by default: one a core. All threads of a step wait for the slowest one, so that
        efficiency cores are left out, and the quota is rounded down: a thread that is stopped holds up all others."""
        return max(1, self.fast_cores if self.quota is None else min(self.fast_cores, int(self.quota)))

    @property
    def reason(self) -> str:
        """Why so many threads, in words."""
        parts = [f"{self.hardware_threads} hardware threads of {self.cores} cores"]
        if self.fast_cores < self.cores:
            parts.append(f"{self.cores - self.fast_cores} of them efficiency cores")
        if self.quota is not None:
            parts.append(f"a quota of {self.quota:g} cores")
        return ", ".join(parts)


def usable_cores() -> UsableCores:
    """Of this process."""
    return cores_of(os.sched_getaffinity(0), cpu_quota())


def cores_of(allowed: Collection[int], quota: float | None, system: Path = SYSTEM) -> UsableCores:
    """What the hardware threads `allowed`, given by their numbers, amount to. Two of one core count once."""
    folder, fast = system / "devices/system/cpu", _numbers(_read(system / "devices/cpu_core/cpus"))
    core = {n: _read(folder / f"cpu{n}/topology/thread_siblings_list").strip() or str(n) for n in allowed}
    fast_cores = {core[number] for number in set(core) & fast or core}
    return UsableCores(len(core), len(set(core.values())), len(fast_cores), quota)


def cpu_quota(system: Path = SYSTEM, processes: Path = PROCESSES) -> float | None:
    """How many cores the control groups of this process, version 1 or 2, let it keep busy; None: as many as there are.

    The smallest quota of a group and those around it counts.
    """
    quotas = []
    for group in _control_groups("cpu", system, processes):
        texts = _read(group / "cpu.max").split() or [_read(group / f"cpu.cfs_{of}_us") for of in ("quota", "period")]
        with suppress(ValueError):  # "max", or no such file
            quota, period = map(int, texts)
            if quota > 0 and period > 0:  # -1: no limit
                quotas.append(quota / period)
    return min(quotas, default=None)


def free_memory(system: Path = SYSTEM, processes: Path = PROCESSES) -> int:
    """Bytes that are free or can be freed, within the limits of the control groups of version 2 that the process is
    in. What the kernel caches of files counts as free."""
    import psutil

    room = [int(psutil.virtual_memory().available)]
    for group in _control_groups("memory", system, processes):
        with suppress(ValueError):  # "max", or no such file
            limit, used = int(_read(group / "memory.max")), int(_read(group / "memory.current"))
            cached = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            room.append(max(0, limit - used + int(cached.get("inactive_file", 0))))
    return min(room)


def _control_groups(controller: str, system: Path, processes: Path) -> list[Path]:
    """The folders of the control groups of this process with `controller`, and of those around them. Where a container
    does not see its own group's path, the root that it sees is its own."""
    groups = []
    for line in filter(None, _read(processes / "self/cgroup").splitlines()):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {controllers, controller} if controllers else {""}:  # of version 1, and 2
            root = system / "fs/cgroup" / mount
            group = root / path.strip("/")
            groups += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return groups


def _numbers(text: str) -> set[int]:
    """Of a list such as ``0-3,8``; those that cannot be read are left out."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _read(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def default_threads() -> int:
    """OMP_NUM_THREADS, else one a core that this process may use, and no more than torch is set to use."""
    requested = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    explicit = int(requested) if requested.isdecimal() else 0
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads() if explicit else min(torch.get_num_threads(), usable_cores().threads)
    return explicit or usable_cores().threads


def check_threads(threads: int) -> None:
    """Raises `SolmError` for more threads than this machine has, or fewer than one."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise SolmError(f"threads {threads} is out of range: this machine has 1 to {cores}")


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Inside the block, `count` threads are the default."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        with _torch_threads(count) if "torch" in sys.modules else nullcontext():
            yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def one_torch_thread(wanted: bool = True) -> AbstractContextManager[None]:
    """Between the engine's steps, do torch's work in the calling thread alone, where `wanted`.

    OpenMP's other threads wait in a loop for the next operation, on the cores that the engine's need: choosing a token
    on two threads would make a step of 4 ms one of 12.
    """
    return _torch_threads(1) if wanted else nullcontext()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def accelerator_available(devices: Path = Path("/dev")) -> bool:
    """Whether torch has an accelerator. It is only asked where the machine may have one."""
    if not any(any(devices.glob(pattern)) for pattern in _DEVICES):
        return False
    import torch

    return bool(torch.accelerator.is_available())


def keep_freed_memory() -> None:
    """Serve large tensors from the heap, and do not give it back between passes. Nothing happens without glibc.

    Activations are freed and wanted again every layer of every pass. By default glibc maps and unmaps every block above
    32 MiB, and the kernel zeroes its pages anew. Scoring 1,024 tokens of a 135M model spent a third of its time there.
    The setting is the process's, so it helps the stock model as much as the controlled one.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIB)
        libc.mallopt(_M_TOP_PAD, _GIB >> 4)


def give_back_freed_memory() -> None:
    """Return to the system what was freed: the next phase of work needs blocks of other sizes."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
