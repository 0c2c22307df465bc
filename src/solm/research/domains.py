"""Distribution shift: what a policy is worth, what it spends and what it predicts on text of other sources."""

import json
from collections.abc import Callable
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from solm.core.actions import AXES
from solm.core.errors import SolmError
from solm.core.files import write_json
from solm.data.windows import TokenStream
from solm.evaluation.perplexity import EvaluationSettings, evaluate, held_out_windows
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Difference, command_line, environment
from solm.policies.value_policy import ValuePolicy
from solm.runtime.drive import teacher_forced
from solm.runtime.language_model import LanguageModel

_BINS = 10
_WATCHED = 16
"""Texts of a source whose sensitivities are compared with training."""


class SourcePoint(BaseModel):
    """The policy on one source at one budget: requested and realised shares per axis, and policy minus static in nats
    per token, paired over texts."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    budget: float
    requested: dict[str, float]
    realised: dict[str, float]
    policy: float
    static: float
    dense: float
    difference: Difference

    @property
    def gap(self) -> float:
        """The largest |realised − requested| of an axis."""
        return max(abs(self.realised[axis] - self.requested[axis]) for axis in AXES)


class Sensitivity(BaseModel):
    """What the network says on one source about one axis. mean: 1 in training. divergence: KL of what it says here from
    what it said on training text, nats, over ten bins that were equally full there."""

    model_config = ConfigDict(extra="forbid")

    mean: float
    divergence: float


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str
    points: list[SourcePoint]
    sensitivities: dict[str, Sensitivity]


class ShiftResult(BaseModel):
    """Everything a study of distribution shift found, and what is needed to repeat it."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    kind: Literal["shift"] = "shift"
    schema_version: Literal[1] = 1
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    sources: list[Source]
    policy: dict[str, Any]


def shift(
    lm: LanguageModel,
    streams: list[TokenStream],
    settings: EvaluationSettings,
    partial: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda source, done, total: None,
) -> ShiftResult:
    """Evaluate the policy on each of `streams` by itself, `settings.texts` texts each.

    partial: a file of finished sources, so that an interrupted study goes on. progress: called with the source, batches
    of it done and in all. Raises `SolmError` without a policy trained with --method values, `DataError` as `evaluate`.
    """
    policy = None if lm.trained is None else lm.trained.policy()
    if lm.trained is None or not isinstance(policy, ValuePolicy):
        raise SolmError("this study asks what a policy trained with --method values predicts; give one with --policy")
    for stream in streams:
        held_out_windows([stream], settings)  # a source that is too short is told before hours of work
    known = policy.network.training_sensitivities.float()
    told: dict[str, Any] = settings.model_dump(mode="json") | {
        "model": lm.name, "dtype": str(lm.model.dtype).removeprefix("torch."),
        "space": lm.space.model_dump(mode="json"), "sparsity": lm.sparsity.model_dump(mode="json"),
    }  # fmt: skip
    key = json.loads(json.dumps([told, lm.trained.config.provenance, known.sum(0).tolist()]))
    finished = {source.fingerprint: source for source in _read_partial(partial, key)}
    for stream in streams:
        if stream.fingerprint in finished:
            continue
        result = evaluate(lm, [stream], settings, progress=bind(progress, stream.name))
        points = []
        for budget in settings.budgets:
            ours, static, dense = result.arm("policy", budget), result.arm("static", budget), result.points[0]
            assert ours is not None
            assert static is not None
            assert static.difference is not None
            points.append(
                SourcePoint(
                    budget=budget,
                    requested=dict(zip(AXES, lm.budget(budget).shares, strict=True)),
                    realised=ours.axes,
                    policy=ours.nats,
                    static=static.nats,
                    dense=dense.nats,
                    difference=static.difference,
                )
            )
        seen = observed(lm, policy, held_out_windows([stream], settings)[:_WATCHED], settings)
        finished[stream.fingerprint] = Source(
            name=stream.name, fingerprint=stream.fingerprint, points=points,
            sensitivities={
                axis: Sensitivity(
                    mean=float(seen[:, index].mean()),
                    divergence=divergence(seen[:, index].numpy(), known[:, index].numpy()),
                )
                for index, axis in enumerate(AXES)
            },
        )  # fmt: skip
        if partial is not None:
            kept = [source.model_dump(mode="json") for source in finished.values()]
            write_json(partial, {"key": key, "sources": kept})
    if partial is not None:
        partial.unlink(missing_ok=True)
    return ShiftResult(
        command=command_line(), settings=told, environment=environment(), policy=lm.trained.config.provenance,
        sources=[finished[stream.fingerprint] for stream in streams],
    )  # fmt: skip


class _Watched(ValuePolicy):
    """A policy that keeps what its network says."""

    said: list[torch.Tensor]

    def sensitivities(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        said = super().sensitivities(hidden, before)
        self.said.append(said.flatten(0, -2).float().cpu())
        return said


def observed(
    lm: LanguageModel, policy: ValuePolicy, windows: torch.Tensor, settings: EvaluationSettings
) -> torch.Tensor:
    """What the policy's network says of the controlled tokens of windows [N, C+T+1] at all budgets: [M, 3]."""
    watched = _Watched(policy.network, policy.space, policy.clamp)
    watched.said = []
    shares = torch.tensor([lm.budget(net).shares for net in settings.budgets], dtype=torch.float64)
    for batch in windows.split(settings.batch):
        session = lm.session(capacity=settings.context)
        session.prefill(batch[:, : settings.context])
        rows = session.fork(len(shares), capacity=settings.length + lm.sparsity.page_size)
        tokens = batch[:, settings.context :].repeat_interleave(len(shares), 0)
        teacher_forced(rows, watched, tokens, shares.repeat(len(batch), 1))
    return torch.cat(watched.said)


def divergence(seen: np.ndarray, known: np.ndarray) -> float:
    """KL(seen ‖ known) in nats, over bins between the deciles of `known`; half a count is added to every bin."""
    inner = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(inner, values, side="right"), minlength=len(inner) + 1) + 0.5
        for values in (seen, known)
    ]
    p, q = (count / count.sum() for count in counts)
    return float((p * np.log(p / q)).sum())


def _read_partial(path: Path | None, key: Any) -> list[Source]:
    if path is None or not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        return [Source.model_validate(source) for source in content["sources"]] if content["key"] == key else []
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError, ValidationError):
        return []  # half-written or foreign: measured again


def plot(result: ShiftResult, kind: Kind = "png") -> bytes:
    """Policy minus static by source and budget, and by how much the network's word differs from training."""
    names = [Path(source.name).stem or source.name for source in result.sources]
    figure, (worth, said) = blank(6, 2.2 + 0.75 * len(names), rows=2)
    budgets = [point.budget for point in result.sources[0].points]
    for place, budget in enumerate(budgets):
        found = [source.points[place].difference for source in result.sources]
        middle = np.array([one.value for one in found])
        ends = [middle - [one.low for one in found], [one.high for one in found] - middle]
        rows = np.arange(len(names)) + 0.18 * (place - (len(budgets) - 1) / 2)
        worth.errorbar(middle, rows, xerr=ends, fmt="o", capsize=3, label=f"{budget:g}")
    worth.axvline(0, color="#495057", ls="--", lw=1)
    worth.set_xlabel("policy − static, nats per token (left: the policy is better)")
    for place, axis in enumerate(AXES):
        rows = np.arange(len(names)) + 0.25 * (place - 1)
        said.barh(rows, [source.sensitivities[axis].divergence for source in result.sources], 0.22, label=axis)
    said.set_xlabel("sensitivities: KL from training, nats")
    for axes, title in ((worth, "net keep"), (said, "axis")):
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(alpha=0.25, axis="x")
        axes.legend(frameon=False, title=title, fontsize=8)
    return picture(figure, kind)
