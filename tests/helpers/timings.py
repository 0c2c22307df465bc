"""Step timings that were not measured: pages are worth a known part of a step, MLP channels another."""

import numpy as np

from solm.core.clock import StepClock
from solm.core.cost import LEVELS, ModelShapes, StepTimings, axis_levels
from solm.core.curve import BudgetCurve, CurvePoint, TextFacts
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(
    layers=4, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True
)
CPU = SparsityConfig.preset("cpu")


def made_timings(
    sparsity: SparsityConfig, shapes: ModelShapes, contexts=(100, 400), attention=(0.1, 0.4), mlp=0.5, **changes
) -> StepTimings:
    """A dense step takes 10 ms; by context, all pages take `attention` of it, all channels `mlp`."""
    pages, channels, _ = axis_levels(LEVELS, np.array(contexts), sparsity.under(None), shapes)
    parts = np.array(attention)[:, None]
    known = {
        "model": "m", "backend": "cpu int8", "threads": 2, "contexts": contexts,
        "attention_ms": (10 - 10 * parts * (1 - pages)).tolist(), "mlp_ms": (10 - 10 * mlp * (1 - channels)).tolist(),
        "joint_ms": (5.0,) * len(contexts), "gigabytes_per_second": 30.0,
    }  # fmt: skip
    return StepTimings(**{**known, **changes})


def made_curve(sparsity: SparsityConfig, shapes: ModelShapes, contexts=(100, 4000), **changes) -> BudgetCurve:
    """Dense steps take 10 ms; after 500 tokens 0.7 of that loses 0.1 nats."""
    point = CurvePoint(
        context=500, budget=0.7, step_ms=7, speed=10 / 7, attention=1, mlp=0.4, nats=0.1, low=0.09, high=0.11
    )
    source = TextFacts(name="prose", nats=3.0, characters_per_token=4.0)
    return BudgetCurve(
        timings=made_timings(sparsity, shapes, contexts, **changes), points=(point,), texts=4, tokens=256,
        sources=(source,),
    )  # fmt: skip


def as_measured(lm, tokens, contexts, rounds, progress):
    """In place of `solm.evaluation.step_timing.measure`, as times of a tiny model or on a busy machine are noise."""
    progress(1, 1)
    halved = {"halved_ms": (8.0,) * len(contexts)} if lm.sparsity.bits_site == "weights" else {}
    known = made_timings(lm.sparsity, lm.shapes, tuple(contexts), (0.1,) * len(contexts), **halved)
    return known.model_copy(update={"model": lm.name, "backend": lm.backend.name})


def made_clock(**changes) -> StepClock:
    """A dense step takes 10 ms and 1 more per 1,000 keys, of which pages are half; all channels 6."""
    known = {
        "model": "m", "backend": "cpu int8", "threads": 2, "processor": "a fast one", "contexts": (64, 512),
        "base_ms": 10.0, "key_ms": 1e-3, "page_ms": 5e-4, "mlp_ms": 6.0, "extra_ms": 0.4, "error": 0.01,
    }  # fmt: skip
    return StepClock(**{**known, **changes})
