"""What minutes buy: more for a faster model or a longer time, and never more than fits."""

import pytest
import torch

from helpers.timings import SHAPES, made_timings
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.fit.costs import check_worth
from solm.fit.plan import PHASES, Speed, default_minutes, measure_speed
from solm.fit.plan import plan as planned

SMALL = ModelShapes(
    layers=24, hidden=896, intermediate=4864, heads=14, kv_heads=2, head_dim=64, vocabulary=151_936, gated=True
)
PLACE = {"context": 512, "longest": 32_768, "windows": lambda length: 1000}
SPEED = Speed(250, 150)
SITES = ("mlp", "hidden", "qkv", "out")


def plan(*given, **place):
    return planned(*given, **place)[0]


def test_the_shares_of_the_phases_are_the_whole():
    assert sum(PHASES.values()) == pytest.approx(1)


def test_more_minutes_measure_more_and_logits_of_a_comparison_stay_within_memory():
    few, many = (plan(minutes, SPEED, SMALL, **PLACE) for minutes in (15, 45))
    for name in ("sample_batches", "cost_texts", "allocation_texts"):
        assert getattr(few, name) < getattr(many, name), name
    assert few.comparisons[0].texts < many.comparisons[0].texts
    assert few.timing_seconds <= many.timing_seconds
    for compared in (*few.comparisons, *many.comparisons):
        assert 5 * compared.length * compared.batch * SMALL.vocabulary * 4 <= 1 << 28


def test_the_time_that_a_phase_plans_is_its_share():
    sizes = plan(45, SPEED, SMALL, **PLACE)
    read = 512 / SPEED.prefill
    taken = sizes.sample_batches * (read + 4 * sizes.sample_length / SPEED.score)
    assert taken == pytest.approx(60 * 45 * PHASES["samples"], rel=0.05)
    taken = sum(c.texts * (c.context / SPEED.prefill + 26 * c.length / SPEED.score) for c in sizes.comparisons)
    assert taken == pytest.approx(60 * 45 * PHASES["comparison"], rel=0.1)


def test_kv_heads_are_told_apart_only_where_pages_save_time_and_there_is_enough():
    assert plan(120, SPEED, SMALL, **PLACE, attention=0.01).allocation_axes == SITES
    assert plan(120, SPEED, SMALL, **PLACE, attention=0.2).allocation_axes == ("attention", *SITES)
    assert plan(10, SPEED, SMALL, **PLACE, attention=0.2).allocation_axes == SITES


def test_what_too_few_minutes_lack_is_said():
    for speed in (SPEED, Speed(2500, 1500)):
        _, needed, phase = planned(0.2, speed, SMALL, **PLACE)
        assert 0.2 < needed < 15
        assert phase in PHASES
        sizes, least, _ = planned(needed, speed, SMALL, **PLACE)
        assert least <= needed
        assert sizes.comparisons[0].texts >= 2
    least = plan(1, SPEED, SMALL, **PLACE).comparisons
    assert [compared.texts for compared in least] == [2], "a phase that has begun does the least there is"


def test_other_contexts_are_compared_where_there_is_time_text_and_room():
    def contexts(minutes=45, **place):
        return [compared.context for compared in plan(minutes, SPEED, SMALL, **PLACE | place).comparisons]

    assert contexts() == [512, 64]
    assert contexts(110) == [512, 64, 4096]
    assert contexts(10) == [512], "no time"
    assert contexts(110, longest=4096) == [512, 64], "no room in the model or the text to learn from"
    assert contexts(110, windows=lambda length: 100 if length < 4000 else 7) == [512, 64], "too little held-out text"
    assert contexts(110, context=128) == [128, 4096], "too near to the first one"


def test_larger_models_get_more_time():
    assert default_minutes(SHAPES) == 5
    assert 30 <= default_minutes(SMALL) <= 45


def test_speed_is_measured_on_the_model(tiny_lm):
    speed = measure_speed(tiny_lm, torch.randint(3, 259, (1, 129)))
    assert all(value > 0 for value in speed)


def test_a_model_of_which_nothing_can_be_saved_is_refused(tiny_lm):
    known = made_timings(attention=0.001, mlp=0.001)
    with pytest.raises(SolmError, match=r"take at least 0\.99\d of the dense step's time.*there is nothing to fit"):
        check_worth(tiny_lm, known, 100)
