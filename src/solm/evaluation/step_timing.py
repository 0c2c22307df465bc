"""How fast a machine reads memory, and a model verifies guesses."""

import mmap
import statistics
import time

import torch

from solm.runtime.language_model import LanguageModel

PASSES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are timed."""


def pass_milliseconds(lm: LanguageModel, tokens: torch.Tensor, context: int, rounds: int = 5) -> dict[int, float]:
    """Medians of dense passes over so many known tokens of a row, as they verify guesses, after a context. tokens:
    [1, context + 16]."""
    session = lm.session(capacity=context + max(PASSES))
    session.prefill(tokens[:, :context])
    found: dict[int, list[float]] = {count: [] for count in PASSES}
    for _ in range(rounds + 1):
        for count, times in found.items():
            begun = time.perf_counter()
            session.extend(tokens[:, context : context + count], exact_largest=1)
            times.append(1000 * (time.perf_counter() - begun))
            session.truncate(torch.tensor([context]))
    return {count: statistics.median(times[1:]) for count, times in found.items()}


def memory_bandwidth() -> float:
    """Gigabytes per second of a sum over more memory than any cache holds."""
    # Mapped for itself: the heap would keep this size (`backends.machine`).
    data = torch.frombuffer(mmap.mmap(-1, 1 << 27), dtype=torch.float32).fill_(1.0)
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - begun)
    return data.nbytes / 1e9 / statistics.median(times)
