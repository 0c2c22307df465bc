"""Where an artefact comes from: command, commit, versions, machine."""

import mmap
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

MOST_SEED = (1 << 32) - 1
"""The largest seed of a run. Every part of it derives seeds of its own from this one, of at most 64 bits."""


def command_line() -> str:
    """The command being run, without the machine's folders: of an absolute path only the last part is told."""
    program = Path(sys.argv[0]).name
    program = "solm" if program == "__main__.py" else program  # python -m solm.cli, as under torchrun
    return shlex.join([program, *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    """An argument such as ``--data=/a/b,/c:train`` with only the last part of every absolute path."""
    if " " in argument:  # a command inside the command
        return " ".join(map(_without_folders, argument.split(" ")))
    option, equals, value = argument.rpartition("=")
    parts = (Path(part).name if Path(part).is_absolute() else part for part in value.split(","))
    return option + equals + ",".join(parts)


def plain_name(name: str) -> str:
    """A model or text as others may read it: of a file's or folder's path only the last part, all else as it is."""
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() else name


def plain_names(names: Sequence[str]) -> list[str]:
    """The same of several, with as many folders before the last part as tell them apart."""
    short, paths = [plain_name(name) for name in names], [Path(name).resolve() for name in names]
    found = []
    for name, path in zip(short, paths, strict=True):
        count, length = 1, len(path.parts)
        alike = {other.parts for other, its in zip(paths, short, strict=True) if its == name} - {path.parts}
        while count < length and any(parts[-count:] == path.parts[-count:] for parts in alike):
            count += 1
        found.append(name if count == 1 else "/".join(path.parts[-count:]))
    return found


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    import torch

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
    }


def versions() -> dict[str, str]:
    """Of the packages that a result depends on."""
    return {name: version(name) for name in ("solm", "torch", "transformers")}


def commit() -> str:
    """The commit of the code that runs, ``+changes`` where it has others, ``unknown`` outside a checkout of solm."""
    here = Path(__file__).parent
    tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]  # solm may be installed in another checkout
    try:
        ours = subprocess.run(tracked, cwd=here, capture_output=True)
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    if ours.returncode or head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def processor() -> str:
    """The name of this machine's processor. On x86 with its family and model, because virtual machines often tell a
    name that several generations share."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())  # of the first core
    name, family, model = (fields.get(key, "") for key in ("model name", "cpu family", "model"))
    told = f"{name} (family {family}, model {model})" if name and family and model else name
    return told or platform.processor() or platform.machine()


def memory_bandwidth() -> float:
    """Gigabytes per second of a sum over more memory than any cache holds."""
    import torch

    # Mapped for itself: the heap would keep this size.
    data = torch.frombuffer(mmap.mmap(-1, 1 << 27), dtype=torch.float32).fill_(1.0)
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - begun)
    return data.nbytes / 1e9 / statistics.median(times)
