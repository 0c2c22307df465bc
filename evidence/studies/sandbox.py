"""Running programs that a model wrote: each inside of bubblewrap under limits, and what of these holds here."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evidence.studies import sandbox_child
from evidence.studies.sandbox_child import CONFINED
from solm.core.errors import SolmError

PASSED, FAILED, TIMED_OUT = "passed", "failed", "timed out"
_OUT_OF_TIME = (128 + signal.SIGXCPU, 128 + signal.SIGALRM)
_GRACE = 20
"""Seconds that Python may take to start, and after which a program that has put off its end is ended."""
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Sandbox:
    """How programs are run. They have Python's library, an empty folder of 16 MB in memory, an empty environment and no
    input; their output is thrown away. They see no network, no other process and no file but those of Python and of
    the system's libraries, and start no process and no thread.

    seconds: of processor time; twice as many may pass. memory: bytes of address space. file: bytes of a file.
    """

    seconds: int = 5
    memory: int = 512 << 20
    file: int = 1 << 20

    def run(self, program: str) -> str:
        """How `program` ended: `PASSED` where it ran to its last line, `FAILED` or `TIMED_OUT`.

        Raises `SolmError` where it could not be run under these limits.
        """
        secret = secrets.token_hex()
        limits = {
            "CORE": 0, "CPU": self.seconds, "FSIZE": self.file, "NOFILE": 32, "NPROC": 1, "AS": self.memory
        }  # fmt: skip
        asked = {"program": program, "limits": limits, "wall": 2 * self.seconds, "secret": secret}
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as log:
            try:
                code = subprocess.run(
                    _command(), input=json.dumps(asked).encode(), stdout=said, stderr=log, env={},
                    timeout=2 * self.seconds + _GRACE,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = _OUT_OF_TIME[0]
            except OSError as error:
                raise SolmError(f"generated code is not run: bubblewrap cannot be started: {error}") from error
            said.seek(0)
            log.seek(0)
            begun, ended = said.read(len(CONFINED)).decode(), said.read(len(secret) + 1)
            if begun != CONFINED:
                why = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no time was left"]
                raise SolmError(f"generated code is not run, because it cannot be confined here: {why[0]}")
        if ended == secret.encode():
            return PASSED
        return TIMED_OUT if code in _OUT_OF_TIME else FAILED

    def holds(self) -> dict[str, bool]:
        """What was tried just now, and whether it was refused."""
        with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as server:
            target = Path(name).resolve() / "target"
            target.touch()
            target.chmod(0o666)
            target.parent.chmod(0o755)
            attempts = {
                "network": f"import socket; socket.create_connection({server.getsockname()!r}, 1)",
                "files": f"open({str(target)!r}, 'w')",
                "processes": "import os; os.fork() or os._exit(0)",
                "signals": f"import os; os.kill({os.getpid()}, 0)",
                "memory": f"bytearray({2 * self.memory})",
                "environment": "import os; os.environ['PATH']",
            }
            return {name: self.run(attempt) == FAILED for name, attempt in attempts.items()}


def _command() -> list[str]:
    """Bubblewrap, and Python inside of it. Raises `SolmError` where it is not installed."""
    if (bubblewrap := shutil.which("bwrap")) is None:
        raise SolmError("generated code is not run without bubblewrap: install it, such as by apt install bubblewrap")
    child, python = "/child.py", os.path.realpath(sys.executable)
    options = ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if os.getuid() == 0:  # real namespaces; the child then becomes a user whom limits hold
        options += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        options += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-all"]
    for folder in ("/dev", "/etc", *map(str, reversed(Path(sys.base_prefix).parents))):  # else for root alone
        options += ["--perms", "0755", "--dir", folder]
    for path in (*_LIBRARIES, sys.base_prefix):
        options += ["--ro-bind-try", path, path]
    options += ["--ro-bind", sandbox_child.__file__, child, "--dev-bind", os.devnull, os.devnull]
    options += ["--size", str(16 << 20), "--perms", "0777", "--tmpfs", "/work", "--remount-ro", "/", "--chdir", "/work"]
    return [bubblewrap, *options, "--", python, "-I", "-S", "-B", child]


def sandbox() -> Sandbox:
    """One that was tried. Raises `SolmError` where programs cannot be confined."""
    found = Sandbox()
    if found.run("import collections, hashlib, math, random, re, typing") != PASSED:
        raise SolmError("generated code is not run: Python does not start inside of bubblewrap")
    return found
