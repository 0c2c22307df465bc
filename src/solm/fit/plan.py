"""How the minutes of a fit are spent: each phase has its share of what is left, and its size follows from the speed."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import BaseModel

from solm.core.actions import ActionSpace
from solm.core.cost import ModelShapes
from solm.fit.texts import SCORED
from solm.policies.curves import BIT_PROBES, CHECKED, PROBED, PROBES
from solm.runtime.language_model import LanguageModel

PHASES = {
    "thresholds": 0.02, "timings": 0.08, "allocation": 0.25, "own texts": 0.02, "samples": 0.28, "level costs": 0.1,
    "long contexts": 0.07, "comparison": 0.18,
}  # fmt: skip
"""Shares of the minutes, in the order of the phases."""
BUDGETS = 5
"""Budgets of the comparison."""
SCHEDULES = 3
"""Random schedules per text of the samples."""
OWN_ROWS = 4
"""Texts that the model continues together: few, because each of them holds keys and values."""
_MOST_OWN = 64
_ARMS = 5
"""Of the comparison, beside dense steps; with weight bits one more."""
_CONTEXTS = (128, 512, 1024, 4096, 8192)
GRID = ActionSpace.preset("sites")
"""Levels whose costs are measured."""
_LEVELS, _LEVEL_LENGTH = 1 + sum(size - 1 for size in GRID.shape), 64
"""Passes that level costs need after a text, one of them dense, and tokens of each."""
_MUCH_LONGER, _FEW_LONG = 4, 4
"""Times the usual context from which on level costs are measured again, and texts below which a context is left out."""
_OTHER_CONTEXTS, _OTHER_PART, _FEW = (64, 4096), 0.2, 8
"""Contexts after which the policy is compared, too; the part of the comparison's time that each gets; and the texts
below which it is left out."""
_ALLOCATION_LENGTH, _SAMPLE_LENGTH = 32, 128
"""Tokens of each text of the allocation and of the samples."""
_LOGITS = 1 << 26
"""Most logits of the rows that a comparison scores together. They are computed a stretch of tokens at a time."""
_MOST_TIMING = 60.0
"""Seconds of steps that are timed: more make nothing surer."""
_UNIT = 20.0
"""Seconds of the comparison that an interruption may lose."""
_DECIDING_TEXTS = 6
"""Texts below which KV heads are not told apart: layers are fewer, and their shares save more."""
_LEAST = {"thresholds": 1.0, "allocation": 1.0, "samples": 4.0, "level costs": 1.0, "comparison": 2.0}
"""What a phase needs at least: texts that thresholds are measured on, texts of each half of the allocation, batches of
samples, texts of level costs, texts compared."""
MINUTES_PER_BILLION = 75
"""Of weights: the default time, for two cores."""


class Speed(NamedTuple):
    """Tokens per second that are read densely, and that are scored under known actions."""

    prefill: float
    score: float


class Compared(NamedTuple):
    """A comparison: `texts` texts, `batch` at a time, of `length` tokens each after `context`."""

    context: int
    texts: int
    length: int
    batch: int


class Sizes(BaseModel, frozen=True, extra="forbid"):
    """How much every phase measures; kept in the folder, so that a run that goes on measures the same."""

    context: int
    """Tokens read densely before those that are scored."""
    timing_seconds: float
    threshold_texts: int
    allocation_axes: tuple[str, ...]
    allocation_texts: int
    """Half to measure on, half to check on."""
    allocation_length: int
    own_texts: int = 0
    """That the model continues after `context` tokens."""
    sample_batches: int
    sample_length: int
    cost_texts: int
    cost_length: int
    long_contexts: tuple[int, ...] = ()
    long_texts: int = 0
    """After each of `long_contexts`."""
    comparisons: tuple[Compared, ...]
    """That after `context` first."""


def default_minutes(shapes: ModelShapes) -> float:
    """What a fit takes where nothing is asked for: longer for larger models, at least 5."""
    weights = shapes.layers * (shapes.attention_weights + shapes.up_weights + shapes.down_weights)
    return round(max(5.0, (weights + shapes.head_weights) / 1e9 * MINUTES_PER_BILLION))


def measure_speed(lm: LanguageModel, tokens: torch.Tensor) -> Speed:
    """How fast the model is on tokens [1, C + 1], in a few seconds."""
    context, rows, steps = tokens.shape[1] - 1, 8, 16
    session = lm.session(capacity=context)
    begun = time.perf_counter()
    session.prefill(tokens[:, :context])
    prefill = context / (time.perf_counter() - begun)
    known = tokens[:, -steps - 1 :].expand(rows, -1)
    keep = torch.tensor([0.5, 0.7, 16.0], dtype=torch.float64).expand(rows, steps, 3)
    score = 0.0
    for _ in range(2):  # the first pass also takes memory
        forks = session.fork(rows, capacity=steps)
        begun = time.perf_counter()
        forks.score(known, keep)
        score = rows * steps / (time.perf_counter() - begun)
    return Speed(prefill, score)


def plan(
    minutes: float,
    speed: Speed,
    shapes: ModelShapes,
    *,
    context: int,
    longest: int,
    windows: Callable[[int], int],
    sites: tuple[str, ...] = tuple(PROBES),
    attention: float = 0.0,
) -> tuple[Sizes, float, str]:
    """The sizes that fit into `minutes`, or the least that a phase can do with; the minutes in which the least of every
    phase fits, and the phase that needs these.

    context: tokens read densely. longest: tokens that model and text have room for. windows: how many texts of so many
    tokens the held-out text has room for. sites: of a layer, which the allocation tells apart. attention: the most that
    all pages are worth, as a share of a step.
    """
    seconds = {name: 60 * minutes * share for name, share in PHASES.items()}
    read = context / speed.prefill
    logits = max(1, _LOGITS // shapes.vocabulary)

    axes = sites
    half = _allocation_texts(seconds["allocation"], speed, shapes, axes, read)
    if attention > 0.03:
        both = _allocation_texts(seconds["allocation"], speed, shapes, ("attention", *sites), read)
        if both >= _DECIDING_TEXTS:
            axes, half = ("attention", *sites), both

    # Steps of several rows take about as long as scoring as many tokens.
    own = seconds["own texts"] / (read + SCORED / speed.score)
    batches = seconds["samples"] / (read + (SCHEDULES + 1) * _SAMPLE_LENGTH / speed.score)
    costs = seconds["level costs"] / (read + _LEVELS * _LEVEL_LENGTH / speed.score)
    long_contexts, long_texts = _long_contexts(seconds["long contexts"], speed, context, longest)
    arms = _ARMS + bool(set(sites) & set(BIT_PROBES))
    texts, comparisons = _comparisons(seconds["comparison"], speed, logits, context, longest, windows, arms)
    measured = seconds["thresholds"] / read
    found = dict(zip(_LEAST, (measured, half, batches, costs, texts), strict=True))
    needed = {name: _LEAST[name] / count for name, count in found.items()}  # times the minutes
    short, phase = max((times, name) for name, times in needed.items())
    measured, half, batches, costs, _ = (max(count, _LEAST[name]) for name, count in found.items())
    sizes = Sizes(
        context=context, timing_seconds=min(seconds["timings"], _MOST_TIMING),
        threshold_texts=int(min(measured, 16)), allocation_axes=axes,
        allocation_texts=2 * int(min(half, 64)), allocation_length=_ALLOCATION_LENGTH,
        own_texts=int(min(own, _MOST_OWN)),
        sample_batches=int(min(batches, 400)), sample_length=_SAMPLE_LENGTH, cost_texts=int(min(costs, 128)),
        cost_length=_LEVEL_LENGTH, long_contexts=long_contexts, long_texts=long_texts, comparisons=comparisons,
    )  # fmt: skip
    return sizes, minutes * short, phase


def _allocation_texts(seconds: float, speed: Speed, shapes: ModelShapes, axes: tuple[str, ...], read: float) -> float:
    """Texts per half that the allocation has time for."""
    units = {axis: shapes.layers * (shapes.kv_heads if axis == "attention" else 1) for axis in axes}
    passes = 2 + sum(units[axis] * len(PROBED[axis]) + 2 * len(CHECKED.get(axis, ())) for axis in axes)
    return seconds / (2 * read + passes * _ALLOCATION_LENGTH / speed.score)


def _long_contexts(seconds: float, speed: Speed, context: int, longest: int) -> tuple[tuple[int, ...], int]:
    """The contexts after which level costs are measured again, two at most, and the texts after each."""
    contexts = [seen for seen in _CONTEXTS if seen >= _MUCH_LONGER * context and seen + _LEVEL_LENGTH < longest][-2:]
    while contexts:
        text = sum(seen / speed.prefill + _LEVELS * _LEVEL_LENGTH / speed.score for seen in contexts)
        if seconds / text >= _FEW_LONG:
            return tuple(contexts), int(min(seconds / text, 32))
        contexts.pop()
    return (), 0


def _comparisons(
    seconds: float, speed: Speed, logits: int, context: int, longest: int, windows: Callable[[int], int], arms: int
) -> tuple[float, tuple[Compared, ...]]:
    """The texts that a comparison after `context` alone has time for, and the comparisons to make."""
    length = min(64, logits // BUDGETS)

    def compared(after: int, part: float, least: float = 0.0) -> tuple[float, Compared]:
        text = after / speed.prefill + (1 + arms * BUDGETS) * length / speed.score
        affordable = part * seconds / text
        texts = min(max(affordable, least), windows(after + length + 1), 200)
        together = int(min(8, logits // (BUDGETS * length), _UNIT / text))
        return affordable, Compared(after, int(texts), length, max(1, together))

    others = [
        compared(after, _OTHER_PART)[1]
        for after in _OTHER_CONTEXTS
        if max(after, context) > 2 * min(after, context) and after + length < longest
    ]
    others = [other for other in others if other.texts >= _FEW]
    _, main = compared(context, 1 - _OTHER_PART * len(others), _LEAST["comparison"])
    return compared(context, 1)[0], (main, *others)
