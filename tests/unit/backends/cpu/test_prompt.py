"""Many steps that the engine takes at once, prompts, known schedules and batches, against single steps; more for every
build in helpers.engine_edges."""

import shutil

import numpy as np
import pytest
import torch

from helpers.engine import KV_CACHES, engine_of
from helpers.engine_edges import ACTIONS, SPARSITY, Rows, tokens
from helpers.models import tiny_model
from solm.backends.cpu.engine import Engine
from solm.core.sparsity import SparsityConfig

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
DENSE = (1.0, 1.0, 16)
PRECISIONS = ["float32", "bfloat16", "int8", "packed", "nested", "int8 kv", "packed kv", "int8 kv4"]
# The streams' relative difference to that of steps. Of integers: where activations that differ by their last bit are
# rounded to different numbers.
MOST = {
    "float32": 1e-5,
    "bfloat16": 2e-3,
    "int8": 0.02,
    "packed": 0.02,
    "nested": 0.02,
    "int8 kv": 0.05,
    "packed kv": 0.05,
    "int8 kv4": 0.2,
}
SHAPES = {16: (64, 4, 2), 64: (192, 3, 3), 128: (256, 2, 1)}  # of a head: hidden size, heads, KV heads


def opened(family: str, precision: str, head_dim: int = 64, **options) -> Engine:
    """Over random weights, with norms and biases that are not all alike."""
    hidden, heads, kv_heads = SHAPES[head_dim]
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    if family == "phi3":
        sizes["sliding_window"] = 40
    model = tiny_model(family, torch.float32, intermediate_size=352, max_position_embeddings=1024, **sizes)
    draw = torch.Generator().manual_seed(3)
    for vector in model.parameters():
        if vector.dim() == 1:
            vector.data += 0.3 * torch.randn(vector.shape, generator=draw)
    precision, _, kv = precision.partition(" ")
    return engine_of(model, SPARSITY, precision, kv_cache_dtype=KV_CACHES[kv], **options)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", ["float32", "int8", "packed kv", "int8 kv4"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("count", [32, 49, 257])
def test_any_length_after_any_length(precision, count, family):
    """From the middle of a page and from its first token, and where pages are shared with a parent."""
    engine = opened(family, precision)
    for before in (0, 7, 16):
        ids = tokens(1, before + count, seed=count)
        parent = Rows(engine)
        if before:
            parent.run(ids[:, :before])
        stepped, rows = parent.fork(), parent.fork()
        expected = stepped.run(ids[:, before:], DENSE)
        found = rows.run(ids[:, before:])
        assert off(found.stream, expected.stream) < MOST[precision], before
        assert found.realised.tolist() == expected.realised.tolist()
        assert rows.states.tobytes() == stepped.states.tobytes()


@pytest.mark.parametrize("precision", ["float32", "packed kv"])
@pytest.mark.parametrize("count", [1, 60])
def test_pages_outside_a_window_are_never_read(precision, count):
    """In two layers that see 40 tokens, at 150 of them: whatever the first 64 were."""
    engine = opened("phi3", precision)
    known, other = Rows(engine), Rows(engine)
    last = tokens(1, 86)
    for seed, rows in enumerate((known, other)):
        rows.run(torch.cat([tokens(1, 64, seed=seed), last], 1))
    following = tokens(1, count, seed=2)
    assert torch.equal(*(some.run(following).logits for some in (known, other)))
    assert torch.equal(*(some.run(following, (0.3, 0.6, 8)).logits for some in (known, other)))


def opened_nested(precision: str, **options) -> tuple[Engine, SparsityConfig]:
    """With the sparsity under which its bits are those of weights, if it is nested."""
    engine = opened("qwen3", precision, **options)
    return engine, SPARSITY.model_copy(update={"bits_site": "weights" if precision == "nested" else "input"})


def drawn(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """One of `ACTIONS` for every step [N, Q, 3]."""
    chosen = torch.randint(len(ACTIONS), shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(ACTIONS, dtype=torch.float64)[chosen]


def close(found: np.ndarray, expected: np.ndarray, most: float) -> bool:
    """But for a few steps [..., H]: where values tie but for the last bits, others are selected."""
    away = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return bool((away < most).mean() > 0.9 and np.median(away) < most / 2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_known_schedules_equal_steps(precision):
    """An action per position, in several rows; also cut inside the pass and into stretches, with steps after them."""
    engine, sparsity = opened_nested(precision)
    ids, keep, most = tokens(2, 170), drawn((2, 170)), 10 * MOST[precision]
    stepped, rows, cut, split = (Rows(engine, 2, sparsity) for _ in range(4))
    steps = [stepped.run(ids[:, q : q + 1], keep[:, q : q + 1]) for q in range(170)]
    expected = np.concatenate([step.stream for step in steps], 1)
    found = rows.run(ids, keep)
    assert close(found.stream, expected, most)
    assert np.array_equal(found.realised, np.concatenate([step.realised for step in steps], 1))
    assert rows.states.tobytes() == stepped.states.tobytes()
    logits = torch.cat([step.logits for step in steps], 1)
    assert close(found.logits.numpy(), logits.numpy(), most)
    parts = [cut.run(ids[:, some], keep[:, some]).stream for some in (slice(61), slice(61, 130), slice(130, 170))]
    assert np.array_equal(np.concatenate(parts, 1), found.stream)
    before = split.run(ids, keep, last=1)
    assert np.array_equal(split.run(ids, keep, first=1, before=before).stream, found.stream)
