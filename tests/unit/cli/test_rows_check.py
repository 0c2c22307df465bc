"""Rows that fit into memory."""

import pytest

from solm.backends import machine as module
from solm.backends.names import BUILTIN
from solm.cli.rows_check import cache_numbers, rows_that_fit
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.runtime.facts import ModelFacts
from solm.serving.settings import ServeSettings

SHAPES = ModelShapes(
    layers=10, hidden=100, intermediate=200, heads=4, kv_heads=2, head_dim=25, vocabulary=1000, gated=True
)
FACTS = ModelFacts("llama", 1000, SHAPES)
PAGES, TILES = 63, 4  # of 16 tokens, and of 16 pages' bounds
ROW = 2 * 10 * 2 * 16 * 25 * 2 * (PAGES + TILES)
WEIGHTS = (10 * (2 * 100 * 25 * 6 + 3 * 100 * 200) + 100 * 1000) // 2
PREFIXES = 1_000_000
SETTINGS = ServeSettings(prefix_mb=1)


@pytest.fixture
def free(monkeypatch):
    def set_to(size):
        monkeypatch.setattr(module, "free_memory", lambda: size)

    return set_to


def test_rows_are_as_many_as_fit_unless_somebody_asked_for_more(free):
    def most(settings=SETTINGS, float32=False, int8=False, explicit=False):
        return rows_that_fit(settings, FACTS, float32, int8, explicit).max_rows

    free(WEIGHTS + PREFIXES + 6 * ROW)
    assert most() == 6
    assert most(float32=True) == 3
    assert most(int8=True) == 6 * ROW // (2 * 10 * 2 * 16 * (29 * PAGES + 50 * TILES)) == 9
    assert most(ServeSettings(prefix_mb=1, max_rows=6), explicit=True) == 6
    with pytest.raises(SolmError, match=r"--max-rows: 7 rows of 1000 tokens .* weights and --prefix-mb: 6 fit"):
        most(ServeSettings(prefix_mb=1, max_rows=7), explicit=True)
    assert most(ServeSettings(prefix_mb=0)) == 6 + PREFIXES // ROW
    free(WEIGHTS + PREFIXES)
    with pytest.raises(SolmError, match=": 0 fit"):
        most()


@pytest.mark.parametrize(
    ("given", "float32", "int8"),
    [
        (("other", "auto", "auto", None, None), False, False), (("other", "cpu", "auto", "float32", None), True, False),
        (("other", "auto", "float32", None, "int8"), False, True), ((BUILTIN, "auto", "auto", None, None), False, True),
        ((BUILTIN, "cpu", "auto", "bfloat16", None), False, False),
        (("other", "torch", "float32", None, None), True, False),
        ((BUILTIN, "torch", "float16", None, None), False, False),
    ],
)  # fmt: skip
def test_numbers_of_keys_and_values_are_those_of_the_backend(given, float32, int8):
    assert cache_numbers(*given) == (float32, int8)


def test_nothing_is_checked_where_the_context_is_not_known(free):
    free(0)
    facts = ModelFacts("llama", None, SHAPES)
    assert rows_that_fit(ServeSettings(max_rows=256), facts, False, False, True).max_rows == 256
