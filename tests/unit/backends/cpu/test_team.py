"""The engine's threads where there are fewer cores than threads: nothing is lost, and results stay what they are."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from helpers.engine import engine_of
from helpers.engine_edges import SPARSITY, Rows, tokens
from helpers.models import tiny_model

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
TESTS = Path(__file__).parents[3]
SECONDS = 120
"""More than what follows takes on a busy machine, by far; a thread that nobody wakes waits for ever."""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    built = tmp_path_factory.mktemp("team") / "team"
    sources = TESTS.parent / "src/solm/backends/cpu/csrc"
    command = ["g++", "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{sources}"]
    subprocess.run([*command, str(TESTS / "helpers/team.cpp"), "-o", str(built)], check=True)
    return built


def test_no_wake_up_is_lost(program):
    """Calls on eight threads, with pauses in which they fall asleep; teams destroyed asleep and awake."""
    done = subprocess.run([program, "10000"], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, "ok\n")


def threads_now() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_engines_with_as_many_threads_share_them(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    model = tiny_model("llama", torch.float32)
    before = threads_now()
    engines = [engine_of(model, SPARSITY, "int8", threads=5) for _ in range(3)]
    assert threads_now() < before + 8  # of one team, not three; other threads of the process come and go
    prompt = tokens(2, 70)
    expected = Rows(engines[0], 2).run(prompt).logits

    def often(engine):
        return all(torch.equal(Rows(engine, 2).run(prompt).logits, expected) for _ in range(10))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(often, engines)) == [True, True, True]
    del engines[0]
    assert often(engines[-1])


FORKED = """
import os
import torch
from helpers.engine import engine_of
from helpers.engine_edges import SPARSITY, Rows, tokens
from helpers.models import tiny_model

model = tiny_model("llama", torch.float32)
parents = engine_of(model, SPARSITY, "int8", threads=2)
expected = Rows(parents, 1).run(tokens(1, 20)).logits
child = os.fork()
if not child:
    own = engine_of(model, SPARSITY, "int8", threads=2)
    assert torch.equal(Rows(own, 1).run(tokens(1, 20)).logits, expected)
    del parents
    assert torch.equal(Rows(own, 1).run(tokens(1, 20)).logits, expected)
    del own
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_lets_go_of_its_parents_engine():
    """It has none of the parent's threads, and cannot wait for their end."""
    known = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=SECONDS, env=known)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
