"""Measuring `StepTimings`: every level of the dial at several contexts, on this machine.

Steps are those of greedy decoding: logits that cannot win may be approximate.
"""

import mmap
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from solm.backends.session import Session
from solm.core.actions import FULL_BITS, HIGH_BITS
from solm.core.cost import LEVELS, StepTimings
from solm.core.provenance import command_line, environment
from solm.core.sparsity import KNOTS, Allocation, SparsityConfig
from solm.runtime.language_model import LanguageModel

ALONE = (0.3, 0.6)
"""Shares of the MLP's hidden channels, and of the inputs of attention's projections, that steps are timed with which
keep all else."""
PASSES = (1, 2, 4, 8, 16)
"""Tokens of the passes that are timed."""
STEPS = 12
"""Steps of which the median is taken."""


def measure(
    lm: LanguageModel,
    tokens: torch.Tensor,
    contexts: tuple[int, ...],
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StepTimings:
    """Time every level at every context; medians. tokens: [1, longest context + 1]. contexts: ascending.

    All layers are alike and exact numbers of channels are kept, whatever the model's policy does, so that it is known
    what every level reads. A round times everything once, because what else a machine does changes in the course of
    minutes.
    """
    rules = lm.sparsity.exact.under(None)
    nested = rules.bits_site == "weights"
    single = [(axis, level) for axis in ("attention", "mlp") for level in getattr(LEVELS, axis)]
    keeps = [(level, 1.0) if axis == "attention" else (1.0, level) for axis, level in single]
    keeps.append((LEVELS.attention[0], LEVELS.mlp[0]))
    actions = [(*keep, FULL_BITS) for keep in keeps] + [(1.0, 1.0, HIGH_BITS)] * nested
    plans = [(torch.tensor([action], dtype=torch.float64), rules) for action in actions]
    hidden = ALONE if rules.mlp_site == "input+hidden" else ()
    projected = ALONE if rules.projection_part else ()
    half = torch.tensor([[1.0, 0.5, FULL_BITS]], dtype=torch.float64)
    plans += [(half, _alone(rules, lm.shapes.layers, "hidden", keep)) for keep in hidden]
    plans += [(half, _alone(rules, lm.shapes.layers, "projections", keep)) for keep in projected]
    total = len(contexts) * (rounds + 1)
    progress(0, total)
    session, read = lm.session(capacity=contexts[-1]), []
    for before, context in pairwise((0, *contexts)):
        session.prefill(tokens[:, before:context])
        read.append(session.fork(1, capacity=STEPS))
    found: list[list[list[float]]] = [[[] for _ in plans] for _ in contexts]
    for turn in range(rounds + 1):
        for number, context in enumerate(contexts):
            for (keep, sparsity), kept in zip(plans, found[number], strict=True):
                row = read[number].fork(1, capacity=STEPS, sparsity=sparsity)
                kept.append(_median_step(row, tokens[:, context], keep))
            progress(turn * len(contexts) + number + 1, total)
    times = [[statistics.median(values[1:]) for values in of_context] for of_context in found]
    count, alone = len(LEVELS.attention), len(keeps) + nested
    return StepTimings(
        model=lm.name,
        backend=lm.backend.name,
        threads=lm.threads,
        contexts=contexts,
        attention_ms=tuple(tuple(row[:count]) for row in times),
        mlp_ms=tuple(tuple(row[count : len(single)]) for row in times),
        joint_ms=tuple(row[len(single)] for row in times),
        hidden=hidden,
        hidden_ms=tuple(tuple(row[alone : alone + len(hidden)]) for row in times) if hidden else (),
        projected=projected,
        projected_ms=tuple(tuple(row[alone + len(hidden) :]) for row in times) if projected else (),
        halved_ms=tuple(row[len(keeps)] for row in times) if nested else (),
        gigabytes_per_second=memory_bandwidth(),
        command=command_line(),
        environment=environment(),
    )


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


def _alone(rules: SparsityConfig, layers: int, sites: str, share: float) -> SparsityConfig:
    """`rules` under which steps that do not keep all channels keep `share` of those of some sites, ``hidden`` or
    ``projections``, and all others."""
    whole, some = ((1.0,) * KNOTS,) * layers, ((share,) * (KNOTS - 1) + (1.0,),) * layers
    curves = dict.fromkeys(("attention", "mlp", "hidden", "qkv", "out")[: 1 + rules.sites], whole)
    curves |= dict.fromkeys(("hidden",) if sites == "hidden" else ("qkv", "out"), some)
    return rules.under(Allocation(**curves))


def _median_step(session: Session, token: torch.Tensor, keep: torch.Tensor) -> float:
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        session.step(token, keep, exact_largest=1)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


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
