"""What programs that nobody has read can do: pass or fail, and nothing else."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from evidence.studies import sandbox_child
from evidence.studies.sandbox import Sandbox, sandbox
from solm.core.errors import SolmError

SECONDS = 20
"""Many more than any of these programs needs: on a busy machine even one that is refused takes a second or two."""


@pytest.fixture(scope="module")
def confined() -> Sandbox:
    try:
        return replace(sandbox(), seconds=SECONDS)
    except SolmError as error:
        pytest.skip(str(error))


def test_a_program_passes_where_it_runs_to_its_last_line(confined):
    program = (
        "import math, re, typing\nassert math.sqrt(4) == 2\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'"
    )
    assert confined.run(program) == "passed"
    for ends in ("assert 1 == 2", "def f(:", "raise SystemExit(0)", "import os; os._exit(0)"):
        assert confined.run(f"{ends}\n") == "failed"


HOSTILE = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "another program": "import subprocess; subprocess.run(['true'])",
    "memory": "x = []\nwhile True: x.append(bytearray(100 << 20))",
    "a big file": "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "every process": "import os; os.kill(-1, 9)",
    "a higher limit": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (100, 100))",
    "input": "import sys; assert sys.stdin.read()",
    "environment": "import os; assert os.environ",
    "a parent's environment": "import os; assert open(f'/proc/{PARENT}/environ').read()",
    "a parent's memory": "assert open(f'/proc/{PARENT}/mem', 'rb')",
    "a file of the system": "assert open('/etc/passwd').read()",
    "a folder of the system": "open('/usr/mine', 'w')",
    "another folder": "open('/mine', 'w')",
    "the code of success": "import os; os.write(3, b'secret'); os._exit(0)",
    "the name server": "import socket; socket.getaddrinfo('example.org', 80)",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_code_is_refused(what, confined, monkeypatch):
    monkeypatch.setenv("SOLM_SECRET", "secret")
    assert confined.run(HOSTILE[what].replace("{PARENT}", str(os.getpid()))) == "failed"


@pytest.mark.parametrize(
    "program", ["while True: pass", "while True: print('x' * 10**6)", "import time; time.sleep(60)"]
)
def test_what_does_not_end_is_ended(program, confined):
    assert replace(confined, seconds=1).run(program) == "timed out"


BROKEN = {
    "no limits": "resource.setrlimit = lambda *_: int('x')",
    "root": "os.getuid, os.setuid = lambda: 0, lambda _: int('x')",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_program_that_could_not_be_run_has_not_failed(what, confined, tmp_path, monkeypatch):
    broken = tmp_path / "child.py"
    source = Path(sandbox_child.__file__).read_text()
    broken.write_text(source.replace('if __name__ == "__main__"', BROKEN[what] + '\nif __name__ == "__main__"'))
    monkeypatch.setattr(sandbox_child, "__file__", str(broken))
    with pytest.raises(SolmError, match="cannot be confined here"):
        confined.run("pass")


def test_files_and_servers_beyond_the_folder_are_out_of_reach(confined, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    victim.chmod(0o666)
    for harm in ("open({!r}, 'w')", "import os; os.remove({!r})", "import os; os.rename({!r}, 'mine')"):
        assert confined.run(harm.format(str(victim))) == "failed"
    assert victim.read_text() == "kept"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert confined.run(f"import socket; socket.create_connection({address!r}, 1)") == "failed"


def test_what_holds_is_tried(confined):
    assert all(confined.holds().values())


def test_without_bubblewrap_nothing_is_run(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SolmError, match="not run without bubblewrap"):
        sandbox()
