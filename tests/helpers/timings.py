"""Step timings that were not measured: pages are worth a known part of a step, MLP channels another."""

from solm.core.clock import StepClock
from solm.core.cost import ModelShapes
from solm.core.curve import BudgetCurve, CurvePoint
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(
    layers=4, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True
)
CPU = SparsityConfig.preset("cpu")


def made_timings(attention=0.4, mlp=0.5, **changes) -> StepClock:
    """A dense step takes 10 ms; after 400 tokens all pages take `attention` of it, all channels `mlp` anywhere."""
    known = {"contexts": (100, 400), "key_ms": 0.0, "page_ms": attention / 40, "mlp_ms": 10 * mlp, "extra_ms": 0.0}
    return made_clock(**known | changes)


def made_curve(**changes) -> BudgetCurve:
    """Dense steps take 10 ms; after 500 tokens 0.7 of that loses 0.1 nats."""
    point = CurvePoint(
        context=500, budget=0.7, step_ms=7, speed=10 / 7, attention=1, mlp=0.4, nats=0.1, low=0.09, high=0.11, texts=4,
    )  # fmt: skip
    return BudgetCurve(clock=made_timings(0.04, **changes), points=(point,), texts=4, tokens=256)


def as_measured(lm, progress, seconds):
    """In place of `solm.runtime.clock.measure_clock`, as times of a tiny model or on a busy machine are noise."""
    progress("measuring", 1, 1)
    bits = 2 / 0.75 if lm.sparsity.bits_site == "weights" else 0.0
    return made_timings(0.04, model=lm.name, backend=lm.backend.name, bits_ms=bits)


def made_clock(**changes) -> StepClock:
    """A dense step takes 10 ms and 1 more per 1,000 keys, of which pages are half; all channels 6."""
    known = {
        "model": "m", "backend": "cpu int8", "threads": 2, "processor": "a fast one", "contexts": (64, 512),
        "base_ms": 10.0, "key_ms": 1e-3, "page_ms": 5e-4, "mlp_ms": 6.0, "extra_ms": 0.4, "error": 0.01,
    }  # fmt: skip
    return StepClock(**{**known, **changes})
