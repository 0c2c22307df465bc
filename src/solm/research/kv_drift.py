"""KV pollution: how long a burst of cheap steps makes the dense steps after it worse (METHOD section 6)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from solm.core.actions import AXES, DENSE, FULL_BITS, Action
from solm.core.errors import SolmError
from solm.data.windows import TokenStream
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Difference, command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.runtime.language_model import LanguageModel


class PollutionResult(BaseModel):
    """Nats per token above the dense run of the same text, during a burst and in stretches of `stretch` dense tokens
    after it; per kind of burst. Stretches after it with their paired 95 % intervals over texts."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["pollution"] = "pollution"
    schema_version: Literal[1] = 1
    command: str
    environment: dict[str, object]
    burst: int
    stretch: int
    sequences: int
    seed: int = 0
    data_fingerprint: str = ""
    during: dict[str, Difference]
    after: dict[str, list[Difference]] = Field(default_factory=dict)


def pollution(
    lm: LanguageModel,
    streams: list[TokenStream],
    action: Action,
    burst: int = 16,
    stretch: int = 16,
    sequences: int = 48,
    context: int = 512,
    length: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PollutionResult:
    """Run `burst` steps of `action`, all of it and each of its axes alone, then dense ones up to `length`.

    A burst's keys and values stay in the cache; attention alone leaves those of the first layer as they were.
    Raises `SolmError` where the burst leaves no stretch after it.
    """
    if burst + stretch > length or burst < 1:
        raise SolmError(f"burst {burst} must be at least 1 and leave {stretch} of {length} tokens after it")
    alone = (
        Action(action.attention, 1.0, FULL_BITS),
        Action(1.0, action.mlp, FULL_BITS),
        Action(1.0, 1.0, action.bits),
    )
    kinds = {"all": action} | {axis: some for axis, some in zip(AXES, alone, strict=True) if some != DENSE}
    settings = EvaluationSettings(budgets=(1.0,), texts=sequences, context=context, length=length, seed=seed)
    batches = held_out_windows(streams, settings).split(settings.batch)
    lost: dict[str, list[torch.Tensor]] = {kind: [] for kind in kinds}
    for done, batch in enumerate(batches, start=1):
        session = lm.session(capacity=context)
        session.prefill(batch[:, :context])

        def run(action: Action) -> torch.Tensor:
            keep = torch.tensor(DENSE, dtype=torch.float64).repeat(len(batch), length, 1)  # noqa: B023
            keep[:, :burst] = torch.tensor(action, dtype=torch.float64)
            rows = session.fork(1, capacity=length + lm.sparsity.page_size)  # noqa: B023
            return -rows.score(batch[:, context:], keep).log_probabilities.double().cpu()  # noqa: B023

        dense = run(DENSE)
        for kind, some in kinds.items():
            lost[kind].append(run(some) - dense)
        progress(done, len(batches))
    result = PollutionResult(
        command=command_line(), environment=environment(), burst=burst, stretch=stretch, sequences=sequences, during={},
        seed=seed, data_fingerprint="-".join(stream.fingerprint for stream in streams),
    )  # fmt: skip
    for kind, parts in lost.items():
        rows = torch.cat(parts).numpy()
        result.during[kind] = _interval(rows[:, :burst])
        starts = range(burst, length - stretch + 1, stretch)
        result.after[kind] = [_interval(rows[:, start : start + stretch]) for start in starts]
    return result


def _interval(rows: np.ndarray) -> Difference:
    return Difference(**paired_difference(rows.mean(1), np.zeros(len(rows)))._asdict())


def plot(result: PollutionResult, kind: Kind = "png") -> bytes:
    """What is lost after the burst, by distance from its end."""
    figure, axes = blank()
    for name, points in result.after.items():
        x = (np.arange(len(points)) + 0.5) * result.stretch
        middle = np.array([point.value for point in points])
        low, high = (np.array([getattr(point, end) for point in points]) for end in ("low", "high"))
        axes.errorbar(x, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, lw=1.5, label=name)
    axes.axhline(0, color="#495057", ls="--", lw=1)
    axes.set_xlabel(f"dense tokens after a burst of {result.burst}")
    axes.set_ylabel("nats per token above dense")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title="burst on")
    return picture(figure, kind)
