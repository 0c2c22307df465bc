"""The prefix cache: what it finds and drops, what it holds, and that no reply depends on it."""

import shutil

import numpy as np
import pytest
import torch

from helpers.engine import SPARSITY, engine_of
from helpers.models import tiny_model
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.runtime.prefixes import PrefixCache

COMPILED = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def engine():
    return engine_of(tiny_model("llama", torch.float32, max_position_embeddings=1024), SPARSITY, "int8", threads=1)


@pytest.fixture(params=[pytest.param("cpu", marks=COMPILED), "torch"])
def new(request):
    """Makes empty sessions."""
    if request.param == "cpu":
        engine = request.getfixturevalue("engine")
        yield lambda: CpuSession(engine, SPARSITY)
        return
    backend = TorchBackend(tiny_model("llama", torch.float32))
    yield lambda: backend.session(SPARSITY)
    backend.detach()


def prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, length)


def read(cache: PrefixCache, ids: np.ndarray, new):
    """A session that has read ids [C] as a server does, how many of them were kept, and the last logits [1, V]."""
    found = cache.find(ids, len(ids))
    session, known = found or new(), found.length(0) if found else 0
    logits = session.prefill(torch.from_numpy(ids[None, known:]))
    cache.keep(ids, session)
    return session, known, logits


def known(cache: PrefixCache, ids: np.ndarray) -> int:
    found = cache.find(ids, len(ids))
    return found.length(0) if found else 0


def test_all_pages_that_any_earlier_prompt_begins_with_are_found(new):
    cache = PrefixCache(1e9, 16)
    system, tails = prompt(0, 70), [prompt(seed, 50) for seed in (1, 2)]
    asked = [np.concatenate([system, tail]) for tail in tails]
    assert read(cache, asked[0], new)[1] == 0
    _, shared, logits = read(cache, asked[1], new)
    assert shared == 64  # whole pages of the system prompt
    torch.testing.assert_close(logits, new().prefill(torch.from_numpy(asked[1][None])))
    for ids in asked:
        assert known(cache, ids) == 112
    assert known(cache, asked[0][:71]) == known(cache, asked[0][:73]) == 64
    assert known(cache, asked[0][:70]) == 48  # some tokens are read in any case
    assert known(cache, asked[0][1:]) == 0
    assert cache.tokens == 64 + 2 * 48


def test_the_least_recently_used_pages_are_dropped_and_the_ends_of_prompts_before_their_beginnings(new):
    first, second, third = (prompt(seed, 64) for seed in range(3))
    room = PrefixCache(1e9, 16)
    read(room, first, new)
    read(room, second, new)
    cache = PrefixCache(room.bytes, 16)
    for ids in (first, second):
        read(cache, ids, new)
    first, second, third = (np.append(ids, [1] * 7) for ids in (first, second, third))
    assert known(cache, first) == 64
    read(cache, third[:32], new)
    assert [known(cache, ids) for ids in (first, third)] == [64, 32]
    read(cache, third, new)
    assert [known(cache, ids) for ids in (third, first, second)] == [64, 64, 0]
    assert cache.bytes <= cache.memory


def test_what_does_not_fit_or_is_turned_off_is_not_kept(new):
    cache = PrefixCache(1e9, 16)
    read(cache, prompt(0, 15), new)
    assert (cache.tokens, cache.bytes) == (0, 0)
    read(cache, prompt(0, 200), new)
    small, off = PrefixCache(cache.bytes / 2, 16), PrefixCache(0, 16)
    for some in (small, off):
        read(some, prompt(0, 200), new)
    assert 0 < known(small, prompt(0, 200)) < 112  # its beginning
    assert 0 < small.bytes <= small.memory
    assert (off.tokens, off.bytes, known(off, prompt(0, 200))) == (0, 0, 0)


@COMPILED
@pytest.mark.parametrize("length", [17, 31, 32, 33, 36, 48, 51, 255, 257, 300, 517])
def test_a_prompt_gives_the_same_logits_to_the_last_bit_whatever_was_kept(engine, length):
    ids, cache = prompt(5, length), PrefixCache(1e9, 16)
    expected = read(PrefixCache(0, 16), ids, lambda: CpuSession(engine, SPARSITY))[2]
    for kept in range(16, length, 16 if length < 60 else 80):
        read(cache, ids[:kept], lambda: CpuSession(engine, SPARSITY))
        _, known, found = read(cache, ids, lambda: CpuSession(engine, SPARSITY))
        assert known >= min(kept, length - 20)
        assert torch.equal(found, expected), known
        cache = PrefixCache(1e9, 16)


@COMPILED
def test_after_2000_joins_leaves_and_forks_the_engine_holds_what_the_cache_counts(engine):
    draw = np.random.default_rng(0)
    before = engine.page_memory().bytes
    cache, shared = PrefixCache(250_000, 16), [prompt(seed, 90) for seed in range(5)]
    held = before
    batch, forks = None, []
    for _ in range(2000):
        what = draw.random()
        if what < 0.45 and (batch is None or batch.rows < 6):
            start = shared[draw.integers(5)][: draw.integers(1, 90)]
            ids = np.concatenate([start, prompt(draw.integers(10**6), draw.integers(1, 40))])
            session = read(cache, ids, lambda: CpuSession(engine, SPARSITY))[0]
            if what < 0.05:
                continue  # cancelled while it was read
            if what < 0.1:
                forks.append(session.fork(3))
            elif batch is None:
                batch = session
            else:
                batch.join(session)
        elif what < 0.7 and batch is not None:
            if batch.rows == 1:
                batch = None
            else:
                batch.leave(int(draw.integers(batch.rows)))
        elif what < 0.75 and forks:
            forks.pop(int(draw.integers(len(forks))))
        elif batch is not None:
            batch.step(np.full(batch.rows, 7))
            for session in forks:
                session.step(np.full(3, 9))
        held = max(held, engine.page_memory().bytes)
        assert cache.bytes <= cache.memory
    assert held - before > 2 * cache.memory
    del batch, forks, session
    memory = engine.page_memory()
    assert memory.bytes - before == cache.bytes > 0.8 * cache.memory
    assert memory.pages * 16 >= cache.tokens
    del cache
    assert engine.page_memory().bytes == before


@COMPILED
def test_forks_and_copies_take_no_pages_until_they_write(engine):
    before = engine.page_memory()
    session = CpuSession(engine, SPARSITY)
    session.prefill(torch.from_numpy(prompt(0, 200)[None]))
    held = engine.page_memory().pages - before.pages
    assert held == 13
    forks = session.fork(8)
    copied = session.copy(200)
    assert engine.page_memory().pages - before.pages == held
    forks.step(np.full(8, 3))
    assert engine.page_memory().pages - before.pages == held + 8  # the page that they go on in
    for row in range(7):
        forks.leave(0)
        assert engine.page_memory().pages - before.pages == held + 7 - row
    del forks, copied, session
    assert engine.page_memory() == before
