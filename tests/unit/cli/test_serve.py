"""What `solm serve` makes of its options; what it refuses: test_bad_input.py."""

from types import SimpleNamespace

import pytest

from solm.backends import machine
from solm.backends.cpu.files.layout import cache_memory
from solm.cli.serve import _rows_that_fit
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.runtime.load import ModelFacts
from solm.serving.settings import ServeSettings

SHAPES = ModelShapes(
    layers=10, hidden=100, intermediate=200, heads=4, kv_heads=2, head_dim=25, vocabulary=1000, gated=True
)
WEIGHTS = (10 * (2 * 100 * 25 * 6 + 3 * 100 * 200) + 100 * 1000) // 2


def prepared(context: int | None) -> SimpleNamespace:
    return SimpleNamespace(
        drafting=None,
        facts=ModelFacts("llama", context, SHAPES),
        cache_bytes=lambda tokens: cache_memory(SHAPES, tokens, float32=False, value_bits=0),
    )


def test_rows_are_as_many_as_fit_unless_more_were_requested(monkeypatch):
    row = cache_memory(SHAPES, 1000, float32=False, value_bits=0)
    monkeypatch.setattr(machine, "free_memory", lambda: WEIGHTS + 1_000_000 + 6 * row)

    def most(context=1000, explicit=False, **settings):
        return _rows_that_fit(prepared(context), ServeSettings(prefix_mb=1, **settings), explicit).max_rows

    assert most() == 6
    assert most(max_model_len=500) > 6
    assert most(explicit=True, max_rows=6) == 6
    assert most(context=None, explicit=True, max_rows=256) == 256, "nothing is checked"
    with pytest.raises(SolmError, match=r"--max-rows: 7 rows of 1000 tokens .* beside weights and prefix_mb: 6 fit"):
        most(explicit=True, max_rows=7)
    monkeypatch.setattr(machine, "free_memory", lambda: WEIGHTS)
    with pytest.raises(SolmError, match=": 0 fit"):
        most()
