"""What `solm doctor` says of threads. What it says of models is in tests/integration/test_command_line.py."""

import pytest

from solm.backends.cores import UsableCores
from solm.cli.doctor import _why_threads

HERE = "8 hardware threads of 4 cores, a quota of 2.5 cores"


@pytest.mark.parametrize(
    ("said", "threads", "why"),
    [
        (None, 2, HERE),
        (None, 1, f"torch was set to so many; there are {HERE}"),
        ("6,1", 6, f"OMP_NUM_THREADS says so; there are {HERE}"),
    ],
)
def test_why_so_many_threads(monkeypatch, said, threads, why):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert _why_threads(threads, UsableCores(8, 4, 4, (0,), 2.5)) == why
