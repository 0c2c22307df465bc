"""The scheduler: rows that end in any way beside prompts that are kept, and a loop that fails."""

import shutil

import numpy as np
import pytest
import torch

import solm
from helpers.budgets import resolved
from helpers.models import tiny_model
from helpers.serving import until
from solm.core.budget import Budget
from solm.policies.schedules import Static
from solm.runtime.sampling import Sampler
from solm.serving.budgets import RequestBudget
from solm.serving.errors import ApiError
from solm.serving.metrics import Metrics
from solm.serving.scheduler import Piece, Row, Scheduler
from solm.serving.settings import ServeSettings


def prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, length)


def row(lm, ids: np.ndarray, longest: int, budget: RequestBudget, emit) -> Row:
    """A greedy reply without end tokens."""
    sampler = Sampler.of(lm, ids[None], 0, {"do_sample": False, "sequence_bias": {(2,): -1e9}})
    return Row(lm, ids, longest, budget, emit, sampler)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize("memory", [0.0, 50.0])
def test_rows_that_end_in_any_way_leave_what_the_cache_holds(memory, byte_tokenizer):
    """Replies, cancelled ones and ones that take too long, under several budgets behind one system prompt. They are the
    same with the cache and without, but for what is read."""
    model = tiny_model("llama", torch.float32, max_position_embeddings=1024)
    with solm.attach(model, None, byte_tokenizer, backend="cpu", precision="int8") as lm:
        metrics = Metrics()
        scheduler = Scheduler(lm, ServeSettings(prefix_mb=memory, max_rows=3), metrics)
        texts: dict[int, list[int]] = {}
        ends: dict[int, object] = {}

        def made(number: int) -> Row:
            def emit(event) -> None:
                if not isinstance(event, Piece):
                    ends[number] = event
                else:
                    texts.setdefault(number, []).extend(said.id for said in event.tokens)
                if number % 5 == 3 and len(texts.get(number, ())) == 4:
                    scheduler.cancel(rows[number])
                if number == 9 and len(texts.get(number, ())) == 4:
                    rows[number].expires = 0.0

            budget = [Budget(), Budget(mlp=0.5), Budget(attention=0.3, mlp=0.7)][number % 3]
            ids = np.concatenate([prompt(0, 150), prompt(number, 30)])
            budget = RequestBudget("static", Static(lm.space), resolved(budget))
            return row(lm, ids, 16, budget, emit)

        rows = [made(number) for number in range(12)]
        scheduler.start()
        try:
            scheduler.submit(rows)
            until(lambda: not scheduler.busy)
        finally:
            scheduler.stop()
        value = metrics.registry.get_sample_value
        assert value("solm_pages") * 16 == value("solm_prefix_cache_tokens") == (144 + 12 * 32 if memory else 0)
        assert value("solm_page_bytes") == value("solm_prefix_cache_bytes")
        assert value("solm_tokens_total", {"kind": "cached"}) == (11 * 144 if memory else None)
        assert sorted(len(said) for said in texts.values()) == [4, 4, 4, *[16] * 9]
        assert ends[9].code == "timeout"
        for number in (0, 1, 2, 4, 10, 11):
            session = lm.session()
            logits = session.prefill(rows[number].prompt[None])
            session.control(rows[number].policy, np.array([rows[number].budget.resolved.target(1.0)]), 16)
            expected: list[int] = []
            for _ in texts[number]:
                logits[0, 2] = -np.inf  # the end
                expected.append(int(logits[0].argmax()))
                logits = session.step(np.array(expected[-1:])).logits[:, 0]
            assert texts[number] == expected


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_large_batch_computes_all_channels(byte_tokenizer):
    model = tiny_model("llama", torch.float32, max_position_embeddings=1024)
    with solm.attach(model, None, byte_tokenizer, backend="cpu", precision="int8") as lm:
        scheduler = Scheduler(lm, ServeSettings(max_rows=6), Metrics())
        budget = RequestBudget("static", Static(lm.space), resolved(Budget(mlp=0.6)))
        rows = [row(lm, prompt(number, 20), 80, budget, lambda _: None) for number in range(6)]
        scheduler.start()
        try:
            scheduler.submit(rows)
            until(lambda: not scheduler.busy)
        finally:
            scheduler.stop()
        # The first and the last steps are of fewer rows.
        assert [each.compute.realised["mlp"] for each in rows] == pytest.approx([1.0] * 6, abs=0.06)


def test_a_loop_that_fails_ends_every_job_and_takes_no_more(byte_tokenizer):
    with solm.attach(tiny_model("llama", torch.float32), None, byte_tokenizer) as lm:
        scheduler = Scheduler(lm, ServeSettings(max_rows=2, prefill_chunk=4), Metrics())
        ends: list[object] = []

        def made(length: int) -> Row:
            budget = RequestBudget("dense", lm.policy("dense"), resolved(Budget()))
            return row(lm, prompt(0, length), 100, budget, ends.append)

        def stepped(*_) -> None:
            if any(waiting.read for waiting in scheduler._waiting):
                raise MemoryError

        scheduler.governor.stepped = stepped
        scheduler.start()
        try:
            scheduler.submit([made(4), made(200), made(4)])  # one decodes, one is read, one waits
            until(lambda: scheduler.failed)
        finally:
            scheduler.stop(60)
        failed = [end for end in ends if not isinstance(end, Piece)]
        assert [(end.status, end.message) for end in failed] == [(500, "this server can no longer decode")] * 3
        assert not scheduler.busy
        with pytest.raises(ApiError, match="can no longer decode"):
            scheduler.submit([made(4)])
