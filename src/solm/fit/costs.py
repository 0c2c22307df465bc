"""What steps take, how large an activation must be to be kept, and what every level costs where all steps take it."""

import functools
from collections.abc import Callable

import torch

from solm.backends.logits import LOGITS_AT_ONCE
from solm.core.actions import AXES, DENSE, ActionSpace
from solm.core.budget import Budgets
from solm.core.clock import UNSURE, StepClock
from solm.core.errors import SolmError
from solm.core.files import Parts, read_json, resumable, write_json, write_text
from solm.fit.folder import COSTS, LONG_COSTS, THRESHOLDS, TIMINGS
from solm.fit.job import Job
from solm.fit.plan import GRID
from solm.fit.texts import draw_windows
from solm.policies.priced import SAME_COSTS
from solm.runtime.calibrate import Probes
from solm.runtime.clock import measure_clock
from solm.runtime.language_model import LanguageModel

_MOST_TEXTS = 8
"""That share a pass."""
_LEAST_FACTOR = 0.01
_TRIES = 3
"""Measurements of steps at most, as long as a busy machine leaves them unsure."""
_WORST_FLOOR = 0.99
"""Share of the dense step's time above which the lowest levels save nothing that is worth a fit."""


def time_steps(job: Job) -> None:
    """What steps take on this machine. Raises `SolmError` where no level saves any time."""
    sizes, lm, found = job.sizes("timings"), job.lm.with_policy(None, job.rules), None
    for _ in range(_TRIES):
        tell = functools.partial(_told, job.progress("timings"))
        again = measure_clock(lm, tell, sizes.timing_seconds)
        found = again if found is None or again.error < found.error else found
        if found.error <= UNSURE:
            break
    assert found is not None
    if found.error > UNSURE:
        job.remark(
            f"timings: steps are known to within {found.error:.0%} of a dense step, so budgets in time are no surer "
            "than that; other processes use this machine"
        )
    check_worth(lm, found, sizes.context)
    write_text(job.folder.path / TIMINGS, found.model_dump_json(indent=2) + "\n")


def _told(progress: Callable[[int, int], None], _: str, done: int, total: int) -> None:
    progress(done, total)


def check_worth(lm: LanguageModel, timings: StepClock, context: int) -> None:
    """Raises `SolmError` where even the lowest levels save no time after `context` tokens."""
    space = ActionSpace.preset("cpu-fine")
    floor = Budgets(space, lm.sparsity, lm.shapes, timings=timings).time_floor(context)
    if floor > _WORST_FLOOR:
        raise SolmError(
            f"steps of this model take at least {floor:.3f} of the dense step's time, whatever they leave out "
            f"({timings.backend}, {context} tokens): there is nothing to fit"
        )


def find_thresholds(job: Job) -> None:
    """How large an activation must be for its channel to be kept, by the share of channels to keep."""
    sizes, progress = job.sizes("thresholds"), job.progress("thresholds")
    windows = draw_windows(job.texts.train, sizes.threshold_texts, sizes.context, job.generator())
    progress(0, 1)
    thresholds = job.lm.backend.channel_thresholds(windows, job.lm.sparsity.sites)
    progress(1, 1)
    write_text(job.folder.path / THRESHOLDS, thresholds.model_dump_json() + "\n")


def cost_levels(job: Job) -> None:
    """Per axis of `GRID` [levels] nats per token, at least 0, after the usual context."""
    sizes = job.sizes("level costs")
    batch = max(1, min(_MOST_TEXTS, LOGITS_AT_ONCE // (2 * sizes.cost_length * job.lm.shapes.vocabulary)))
    with resumable(job.folder.path / COSTS) as partial:
        parts = Parts(partial, job.folder.key)
        costs = _average(job, sizes.context, sizes.cost_texts, batch, parts, job.progress("level costs"))
        write_json(job.folder.path / COSTS, costs)


def cost_long_contexts(job: Job) -> None:
    """The factors per axis by which costs differ after long contexts, where pages are worth much and few of them are
    needed: a list of (context, factors) that begins with the usual context, or nothing."""
    sizes, progress = job.sizes("long contexts"), job.progress("long contexts")
    near, factors = read_json(job.folder.path / COSTS), [(sizes.context, SAME_COSTS)]
    total = sizes.long_texts * len(sizes.long_contexts)
    with resumable(job.folder.path / LONG_COSTS) as partial:
        parts = Parts(partial, job.folder.key)
        for number, context in enumerate(sizes.long_contexts):

            def tell(done: int, _: int, before: int = number * sizes.long_texts) -> None:
                progress(before + done, total)

            far = _average(job, context, sizes.long_texts, 1, parts, tell)
            factors.append((context, cost_factors(near, far)))
        write_json(job.folder.path / LONG_COSTS, factors if sizes.long_contexts else [])


def _average(
    job: Job, context: int, texts: int, batch: int, parts: Parts, progress: Callable[[int, int], None]
) -> list[list[float]]:
    """Per axis the mean costs of its levels, over `texts` texts of which `batch` share a pass: the divergence from the
    dense run's predictions to those of a run whose steps all take that level, and the dense one on the other axes.
    parts: keeps passes."""
    lm, length = job.lm.with_policy(None, job.sparsity), job.sizes("level costs").cost_length
    windows = draw_windows(job.texts.train, texts, context + length, job.generator(1))
    actions = [
        [(*DENSE[:axis], float(level), *DENSE[axis + 1 :]) for level in levels[:-1]]
        for axis, levels in enumerate((GRID.attention, GRID.mlp, GRID.bits))
    ]

    def measure(some: torch.Tensor) -> list[list[float]]:
        probes = Probes(lm, some.numpy(), context)
        return [[float(probes.losses(lm.sparsity, action).sum()) for action in axis] + [0.0] for axis in actions]

    sums = []
    progress(0, texts)
    for number, some in enumerate(windows.split(batch)):
        sums.append(parts.get(f"{context} {number}", lambda some=some: measure(some)))  # type: ignore[misc]
        progress(min((number + 1) * batch, texts), texts)
    return [[sum(levels) / texts for levels in zip(*axis, strict=True)] for axis in zip(*sums, strict=True)]


def cost_factors(near: list[list[float]], far: list[list[float]]) -> tuple[float, ...]:
    """Per axis the level costs `far`, summed over the levels, divided by `near`: between 0.01 and 100, and 1 where
    `near` is 0. Each per axis [levels] nats, after another context."""
    totals = [(sum(far[axis]), sum(near[axis])) for axis in range(len(AXES))]
    return tuple(min(max(more / less, _LEAST_FACTOR), 1 / _LEAST_FACTOR) if less > 0 else 1.0 for more, less in totals)
