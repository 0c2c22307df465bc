"""What is said of a reply's cost."""

from types import SimpleNamespace

import pytest

from helpers.timings import CPU, SHAPES, made_timings
from solm.cli.spent import saved


@pytest.mark.parametrize("note", [None, "step times were measured elsewhere"])
def test_speeds_are_compared_with_timings_of_this_machine_alone(note):
    lm = SimpleNamespace(timings=made_timings(CPU, SHAPES), timings_note=note, sparsity=CPU)
    compute = SimpleNamespace(requested={"net": 0.7, "attention": 1.0}, bytes=0.6, whole_attention=0)
    reply = SimpleNamespace(tokens=[1, 2, 3], compute=compute)
    told = saved(lm, reply, [0.0, 0.005, 0.01], 100)
    assert told is not None
    assert "steps read 0.600 of the bytes" in told
    assert ("times as fast" in told) == (note is None)
