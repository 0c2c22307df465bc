"""Packed and low-precision weights of the engine, and its output head."""

import shutil

import pytest
import torch

from helpers.engine import engine_of
from helpers.models import tiny_model

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize(
    ("precision", "cache", "weight", "number", "bound"),
    [
        ("float32", "auto", 32, 32, 32),
        ("bfloat16", "auto", 16, 16, 16),
        ("int8", "auto", 8.5, 16, 16),  # with a scale of 4 bytes for the 64 inputs of an output
        ("int8", "int8", 8.5, 10, 16),  # with one for the 16 numbers of a head
    ],
)
def test_costs_know_in_how_many_bits_a_number_is_stored(precision, cache, weight, number, bound):
    shapes = engine_of(tiny_model("llama", torch.float32), precision=precision, kv_cache_dtype=cache).shapes
    assert (shapes.head_dim, shapes.hidden) == (16, 64)
    assert shapes.weight_bits == pytest.approx(weight, rel=0.02)
    assert shapes.head_bits == pytest.approx(weight, rel=0.12)  # whole strips of 32 outputs
    assert (shapes.cache_bits, shapes.bound_bits) == (number, bound)
