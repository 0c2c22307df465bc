"""Rows that fit into memory."""

import pytest

from solm.backends import free_memory as module
from solm.backends.free_memory import free_memory
from solm.cli.rows_check import rows_that_fit
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.runtime.facts import ModelFacts
from solm.serving.settings import ServeSettings

SHAPES = ModelShapes(
    layers=10, hidden=100, intermediate=200, heads=4, kv_heads=2, head_dim=25, vocabulary=1000, gated=True
)
FACTS = ModelFacts("llama", 1000, SHAPES)
ROW = 2 * 10 * 2 * 25 * 2 * 1000
WEIGHTS = (10 * (2 * 100 * 25 * 6 + 3 * 100 * 200) + 100 * 1000) // 2


@pytest.fixture
def free(monkeypatch):
    def set_to(size):
        monkeypatch.setattr(module, "free_memory", lambda: size)

    return set_to


def test_rows_are_as_many_as_fit_unless_somebody_asked_for_more(free):
    free(WEIGHTS + 5 * ROW)
    assert rows_that_fit(ServeSettings(), FACTS, None, explicit=False).max_rows == 5
    assert rows_that_fit(ServeSettings(), FACTS, "int8", explicit=False).max_rows == 10
    assert rows_that_fit(ServeSettings(max_rows=5), FACTS, None, explicit=True).max_rows == 5
    with pytest.raises(SolmError, match=r"--max-rows: 6 rows of 1000 tokens .*: 5 fit"):
        rows_that_fit(ServeSettings(max_rows=6), FACTS, None, explicit=True)
    free(WEIGHTS)
    with pytest.raises(SolmError, match=": 0 fit"):
        rows_that_fit(ServeSettings(), FACTS, None, explicit=False)


@pytest.mark.parametrize("context", [None, 1000])
def test_nothing_is_checked_where_nothing_is_known(free, context):
    free(None if context else 0)
    assert rows_that_fit(ServeSettings(max_rows=256), ModelFacts("llama", context, SHAPES), None, True).max_rows == 256


def test_free_memory_is_that_of_the_machine_or_of_its_control_group(tmp_path):
    meminfo = tmp_path / "meminfo"
    assert free_memory(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:   2000 kB\n")
    assert free_memory(meminfo, tmp_path) == 2_048_000
    for name, text in (("max", "max"), ("current", "1500000"), ("stat", "anon 7\ninactive_file 500000")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(meminfo, tmp_path) == 2_048_000
    (tmp_path / "memory.max").write_text("2000000")
    assert free_memory(meminfo, tmp_path) == 1_000_000
