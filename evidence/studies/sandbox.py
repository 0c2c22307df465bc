"""Running programs that a model wrote: each in a process of its own under limits, and what of these holds here."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evidence.studies import sandbox_child
from evidence.studies.sandbox_child import FAILED, PASSED, TIMED_OUT
from solm.core.errors import SolmError

_GRACE = 20.0
"""Seconds beyond the limit after which the process that watches a program is ended, too."""
OUTCOMES = {PASSED: "passed", FAILED: "failed", TIMED_OUT: "timed out"}


@dataclass(frozen=True)
class Sandbox:
    """How programs are run. They have Python's library, an empty folder, an empty environment and no input; their
    output is thrown away; they start no process and no thread.

    isolated: by Linux namespaces: no network, no sight of other processes, and no file that can be written but in a
    folder of 16 MB in memory. Otherwise an audit hook refuses these to Python code, which native code would get round.
    seconds: of processor time; twice as many may pass. memory: bytes of address space. file: bytes of a file.
    """

    isolated: bool
    seconds: int = 5
    memory: int = 512 << 20
    file: int = 1 << 20

    def run(self, program: str) -> str:
        """How `program` ended: one of `OUTCOMES`. It passed where it ran to its last line.

        Raises `SolmError` where it could not be run under these limits.
        """
        with _folder() as folder:
            asked = {
                "program": program, "folder": str(folder), "isolate": self.isolated, "seconds": self.seconds,
                "wall": 2 * self.seconds, "memory": self.memory, "file": self.file,
            }  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", sandbox_child.__file__], cwd=folder, env={}, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(json.dumps(asked).encode(), timeout=2 * self.seconds + _GRACE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode not in OUTCOMES:
            raise SolmError("a program cannot be confined here")
        return OUTCOMES[process.returncode]

    def holds(self) -> dict[str, bool]:
        """What was tried just now, and whether it was refused."""
        with _folder() as folder, socket.create_server(("127.0.0.1", 0)) as server:
            target = folder / "target"
            target.touch()
            target.chmod(0o666)
            folder.chmod(0o755)
            attempts = {
                "network": f"import socket; socket.create_connection({server.getsockname()!r}, 1)",
                "files": f"open({str(target)!r}, 'w')",
                "processes": "import os; os.fork() or os._exit(0)",
                "signals": f"import os; os.kill({os.getpid()}, 0)",
                "memory": f"bytearray({2 * self.memory})",
                "environment": "import os; os.environ['PATH']",
            }
            return {name: self.run(attempt) == OUTCOMES[FAILED] for name, attempt in attempts.items()}


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder, by its real path."""
    folder = Path(tempfile.mkdtemp(prefix="solm-sandbox-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sandbox() -> Sandbox:
    """The strongest that this machine offers. Raises `SolmError` where there is none."""
    for isolated in (True, False):
        found = Sandbox(isolated)
        try:
            if found.run("import collections, hashlib, math, random, re, typing") == OUTCOMES[PASSED]:
                return found
        except SolmError:
            continue
    raise SolmError(
        "generated code cannot be confined here: root needs namespaces; run as another user"
        if os.getuid() == 0
        else "generated code cannot be confined here"
    )
