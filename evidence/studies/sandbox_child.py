"""Runs one program that nobody has read, and says by its exit code how it ended.

`sandbox` starts it as a script, with ``python -I -S -B``: it imports Python's library alone. Standard
input is JSON: `program`, an empty `folder`, `seconds` of processor time and `wall` seconds, bytes of `memory` and of a
`file`, and whether to `isolate` the program by namespaces, without which an audit hook refuses what Python code would
do beyond its folder.
"""

import errno
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PASSED, FAILED, TIMED_OUT, NOT_CONFINED = 10, 11, 12, 13
"""Exit codes, none of which Python ends with on its own."""
_CONFINED = b"c"
_MOST_OF = 0.5
"""Share of its processor time that a program which was killed must have used to have been killed for it. Far below 1:
the limit is counted in ticks of the clock, which on a busy machine may run ahead of the time that is reported."""
NOBODY = 65534
BOX = "/run"
"""Where an isolated program has Python's library and its work folder."""
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE, _READ_ONLY, _NO_SUID, _NO_DEVICES = 1 << 12, 1 << 14, 1 << 18, 1, 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _HERE = 442, 0x8000, -100
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES, _CAPABILITIES_3 = 1, 38, 0x20080522
_REFUSED = (
    "socket.", "subprocess.", "ctypes.", "os.fork", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.kill",
    "pty.", "signal.pthread_kill",
)  # fmt: skip
"""Beginnings of the names of events that the audit hook refuses."""
_CHANGES = (
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename", "os.rmdir",
    "os.setxattr", "os.symlink", "os.truncate", "os.utime",
)  # fmt: skip
"""Events that change files; it refuses them outside the work folder."""


def main() -> int:
    asked = json.load(sys.stdin)
    isolate = bool(asked["isolate"])
    if os.getuid() == 0 and not isolate:
        return NOT_CONFINED  # root without namespaces could do anything
    libc = None
    if isolate:
        try:
            libc = _Libc()
            _namespaces(libc)
        except (OSError, AttributeError):
            return NOT_CONFINED
    secret = os.urandom(16)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            _confine(libc, asked, writing)
            os.write(writing, _CONFINED)
            exec(compile(asked["program"], "program", "exec", dont_inherit=True), {"__name__": "__main__"})
            os.write(writing, secret)
        finally:
            os._exit(0)  # what counts is the secret: a program may end with any code
    os.close(writing)
    end = time.monotonic() + asked["wall"]
    begun = _read(reading, len(_CONFINED), end)
    ended = _read(reading, 64, end) if begun else None
    os.killpg(child, signal.SIGKILL)  # in namespaces this is the first process, with which all others end
    _, status, used = os.wait4(child, 0)
    if not begun:
        return NOT_CONFINED
    if ended == secret:
        return PASSED
    spent = used.ru_utime + used.ru_stime >= _MOST_OF * asked["seconds"]
    return TIMED_OUT if ended is None or (spent and os.WIFSIGNALED(status)) else FAILED


def _read(pipe: int, count: int, end: float) -> bytes | None:
    """Up to `count` bytes, none where nobody holds the other end any more; None where nothing happens until `end`."""
    ready = select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]
    return os.read(pipe, count) if ready else None


class _Libc:
    """System calls that Python's library lacks. Raises `OSError` where one fails, `AttributeError` where none is."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes, self._known = ctypes, ctypes.CDLL(None, use_errno=True)

    def __call__(self, name: str, *arguments: Any) -> None:
        if getattr(self._known, name)(*arguments) < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def numbers(self, kind: str, *values: int) -> Any:
        """An array of C numbers."""
        return (getattr(self._ctypes, kind) * len(values))(*values)

    def mount(self, source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        told = [None if text is None else text.encode() for text in (source, target, kind, options)]
        self("mount", *told[:3], self._ctypes.c_ulong(flags), told[3])


def _namespaces(libc: _Libc) -> None:
    """Give the process to come a view of its own: no network, no other process, all files read-only but those of an
    empty work folder in memory, and neither /tmp nor /run, where sockets of servers lie."""
    user, group, library = os.getuid(), os.getgid(), os.path.dirname(os.__file__)
    libc("unshare", _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK | (_NEW_USER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    quiet = _NO_SUID | _NO_DEVICES
    libc.mount("none", "/", None, _RECURSIVE | _PRIVATE)
    libc.mount("box", BOX, "tmpfs", quiet, "size=64k,mode=755")
    os.mkdir(f"{BOX}/python")
    os.mkdir(f"{BOX}/work")
    # Python may lie where another user cannot look, such as in root's home.
    libc.mount(library, f"{BOX}/python", None, _BIND | _RECURSIVE)
    for hidden in ("/proc", "/tmp"):
        libc.mount("empty", hidden, "tmpfs", quiet, "size=4k")
    attributes = libc.numbers("c_uint64", _READ_ONLY, 0, 0, 0)
    libc("syscall", _MOUNT_SETATTR, _HERE, b"/", _AT_RECURSIVE, attributes, 32)
    libc.mount("work", f"{BOX}/work", "tmpfs", quiet, "size=16m,nr_inodes=1024,mode=777")


def _confine(libc: _Libc | None, asked: dict[str, Any], kept: int) -> None:
    """Give up every right, set limits, and close all descriptors but `kept`."""
    os.chdir(asked["folder"] if libc is None else f"{BOX}/work")
    os.environ.clear()
    if libc is not None:
        sys.path[:] = [f"{BOX}/python", f"{BOX}/python/lib-dynload"]
        sys.path_importer_cache.clear()
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        else:
            libc("capset", libc.numbers("c_uint32", _CAPABILITIES_3, 0), libc.numbers("c_uint32", *[0] * 6))
        libc("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc("prctl", _DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    for name, limit in (
        ("CORE", 0), ("CPU", asked["seconds"]), ("FSIZE", asked["file"]), ("NOFILE", 32), ("NPROC", 1),
        ("AS", asked["memory"]),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, 1024)
    if libc is None:
        sys.addaudithook(_hook(os.getcwd()))


def _hook(work: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses network, processes, signals, foreign code, and changes of files outside `work`."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True  # what is open already
        found = os.path.realpath(os.fsdecode(path))
        return found == work or found.startswith(work + os.sep)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        changed: tuple[Any, ...] = ()
        if event == "open" and arguments[2] & writes:
            changed = arguments[:1]
        elif event in _CHANGES:
            changed = arguments[:2] if event in ("os.link", "os.rename", "os.symlink") else arguments[:1]
        if event.startswith(_REFUSED) or not all(map(inside, changed)):
            raise PermissionError(errno.EPERM, f"{event} is not allowed here")

    return refuse


if __name__ == "__main__":
    sys.exit(main())
