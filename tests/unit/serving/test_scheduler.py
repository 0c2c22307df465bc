"""The scheduler: rows that end in any way beside prompts that are kept, and a loop that fails."""

import gc
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
from solm.serving.budgets import RequestBudget
from solm.serving.errors import ApiError
from solm.serving.metrics import Metrics
from solm.serving.scheduler import Ended, Failed, Job, Piece, Scheduler, chunk_end
from solm.serving.settings import ServeSettings


def prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, length)


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

        def job(number: int) -> Job:
            def emit(event) -> None:
                if isinstance(event, (Ended, Failed)):
                    ends[number] = event
                else:
                    texts.setdefault(number, []).extend(said.id for said in event.tokens)
                if number % 5 == 3 and len(texts.get(number, ())) == 4:
                    scheduler.cancel(jobs[number])
                if number == 9 and len(texts.get(number, ())) == 4:
                    jobs[number].expires = 0.0

            budget = [Budget(), Budget(mlp=0.5), Budget(attention=0.3, mlp=0.7)][number % 3]
            ids = np.concatenate([prompt(0, 150), prompt(number, 30)])
            budget = RequestBudget("static", Static(lm.space), resolved(budget))
            return Job(ids, 16, budget, emit, sampling={"do_sample": False, "sequence_bias": {(2,): -1e9}})

        jobs = [job(number) for number in range(12)]
        scheduler.start()
        try:
            scheduler.submit(jobs)
            until(lambda: not scheduler.busy)
        finally:
            scheduler.stop()
        value = metrics.registry.get_sample_value
        assert value("solm_pages") * 16 == value("solm_prefix_cache_tokens") == (144 + 12 * 32 if memory else 0)
        assert value("solm_page_bytes") == value("solm_prefix_cache_bytes")
        assert value("solm_tokens_total", {"kind": "cached"}) == (11 * 144 if memory else None)
        assert sorted(len(said) for said in texts.values()) == [4, 4, 4, *[16] * 9]
        assert isinstance(ends[9], Failed)
        for number in (0, 1, 2, 4, 10, 11):
            session = lm.session()
            logits = session.prefill(jobs[number].ids[None])
            session.control(jobs[number].budget.policy, np.array([jobs[number].budget.resolved.target(1.0)]), 16)
            expected: list[int] = []
            for _ in texts[number]:
                logits[0, 2] = -np.inf  # the end
                expected.append(int(logits[0].argmax()))
                logits = session.step(np.array(expected[-1:])).logits[:, 0]
            assert texts[number] == expected


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("always_skip", "share"), [(False, 1.0), (True, 0.6)])
def test_a_large_batch_computes_all_channels_unless_it_shall_always_skip(always_skip, share, byte_tokenizer):
    model = tiny_model("llama", torch.float32, max_position_embeddings=1024)
    with solm.attach(model, None, byte_tokenizer, backend="cpu", precision="int8") as lm:
        scheduler = Scheduler(lm, ServeSettings(max_rows=6, always_skip=always_skip), Metrics())
        budget, ends = RequestBudget("static", Static(lm.space), resolved(Budget(mlp=0.6))), []

        def emit(event) -> None:
            if isinstance(event, (Ended, Failed)):
                ends.append(event)

        sampling = {"do_sample": False, "sequence_bias": {(2,): -1e9}}
        jobs = [Job(prompt(number, 20), 80, budget, emit, sampling=sampling) for number in range(6)]
        scheduler.start()
        try:
            scheduler.submit(jobs)
            until(lambda: len(ends) == 6)
        finally:
            scheduler.stop()
        # The first and the last steps are of fewer rows.
        assert [end.compute.realised["mlp"] for end in ends] == pytest.approx([share] * 6, abs=0.06)


def test_a_loop_that_fails_ends_every_job_and_takes_no_more(byte_tokenizer):
    with solm.attach(tiny_model("llama", torch.float32), None, byte_tokenizer) as lm:
        scheduler = Scheduler(lm, ServeSettings(max_rows=2, prefill_chunk=4), Metrics())
        ends: list[object] = []

        def job(length: int) -> Job:
            budget = RequestBudget("dense", lm.policy("dense"), resolved(Budget()))
            return Job(prompt(0, length), 100, budget, ends.append, sampling={"do_sample": False})

        def stepped(*_) -> None:
            if scheduler._reading is not None:
                raise MemoryError

        scheduler.governor.stepped = stepped
        scheduler.start()
        try:
            scheduler.submit([job(4), job(200), job(4)])  # one decodes, one is read, one waits
            until(lambda: scheduler.failed)
        finally:
            scheduler.stop(60)
        failed = [end for end in ends if not isinstance(end, Piece)]
        assert failed == [Failed("this server can no longer decode")] * 3
        assert not scheduler.busy
        with pytest.raises(ApiError, match="can no longer decode"):
            scheduler.submit([job(4)])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_prompt_that_made_way_frees_its_pages_when_it_is_cancelled(byte_tokenizer):
    model = tiny_model("llama", torch.float32, max_position_embeddings=1024)
    with solm.attach(model, None, byte_tokenizer, backend="cpu", precision="int8") as lm:
        scheduler = Scheduler(lm, ServeSettings(prefix_mb=0, prefill_chunk=32), Metrics())

        def job(priority: str) -> Job:
            budget = RequestBudget("dense", lm.policy("dense"), resolved(Budget()), priority=priority)
            return Job(prompt(0, 200), 6, budget, lambda event: None, sampling={"do_sample": False})

        low, high = job("low"), job("high")
        scheduler.submit([low])
        scheduler._read()
        scheduler.submit([high])
        scheduler._read()
        scheduler.cancel(high)
        gc.disable()
        try:
            scheduler._drop()
            assert low.row is not None
            assert lm.backend.pages_held()[0] > 0
            scheduler.cancel(low)
            scheduler._drop()
            assert lm.backend.pages_held()[0] == 0
        finally:
            gc.enable()


def test_a_prompt_that_is_read_makes_way_for_a_higher_priority(byte_tokenizer):
    """The loop's calls, made one by one. What was read of it is kept."""
    with solm.attach(tiny_model("llama", torch.float32), None, byte_tokenizer) as lm:
        metrics = Metrics()
        scheduler = Scheduler(lm, ServeSettings(max_rows=3, prefill_chunk=8), metrics)
        texts: dict[int, list[int]] = {}

        def job(number: int, priority: str, length: int) -> Job:
            def emit(event) -> None:
                if isinstance(event, Piece):
                    texts.setdefault(number, []).extend(said.id for said in event.tokens)

            budget = RequestBudget("dense", lm.policy("dense"), resolved(Budget()), priority=priority)
            sampling = {"do_sample": False, "sequence_bias": {(2,): -1e9}}
            return Job(prompt(number, length), 6, budget, emit, sampling=sampling)

        long, urgent, gone = job(0, "low", 40), job(1, "high", 20), job(2, "low", 30)
        scheduler.submit([long])
        scheduler._read()
        scheduler._read()
        scheduler.submit([urgent, gone])
        scheduler._read()
        assert scheduler._reading.job is urgent
        assert (long.row.read, scheduler.busy) == (16, 3)
        scheduler.cancel(gone)
        for _ in range(40):
            for act in (scheduler._drop, scheduler._read, scheduler._step):
                act()
        assert scheduler.busy == 0
        assert list(texts) == [1, 0]
        for number, one in ((0, long), (1, urgent)):
            session, expected = lm.session(), []
            logits = session.prefill(one.ids[None])
            for _ in range(6):
                logits = np.array(logits)
                logits[0, 2] = -np.inf
                expected.append(int(logits[0].argmax()))
                logits = session.step(np.array(expected[-1:])).logits[:, 0]
            assert texts[number] == expected
        read = metrics.registry.get_sample_value("solm_tokens_total", {"kind": "prompt"})
        assert read == 60, "nothing was read twice"


@pytest.mark.parametrize(
    ("tokens", "done", "read"),
    [(128, 0, [128]), (155, 0, [155]), (192, 16, [176]), (193, 0, [128, 65]), (400, 0, [128, 128, 144])],
)  # fmt: skip
def test_the_short_rest_of_a_prompt_is_read_with_what_comes_before_it(tokens, done, read):
    ends = [done]
    while ends[-1] < tokens:
        ends.append(chunk_end(tokens, ends[-1], 128))
    assert np.diff(ends).tolist() == read
