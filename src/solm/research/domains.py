"""Distribution shift: what a policy is worth, what it spends and what it predicts on text of other sources.

Every source is evaluated by itself: policy minus allocated (without an allocation: minus uniform) at the same realised
budget, how far what was spent is from what was asked for, and how differently the network judges tokens from how it did
in training.

Example: solm study domains --policy builtin:smollm2-135m --space joint-27 --data poems.txt,logs.txt,pydoc --out d.json
"""

from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solm.core.actions import AXES, ActionSpace
from solm.core.errors import SolmError
from solm.core.parts import Parts
from solm.data.windows import TokenStream
from solm.evaluation.perplexity import EvaluationSettings, evaluate, held_out_windows
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_policy import ValuePolicy
from solm.research.studies import Numbers, Progress, StudyOptions
from solm.research.texts import Texts
from solm.runtime.language_model import LanguageModel

_BINS = 10
_WATCHED = 16
"""Texts of a source whose sensitivities are compared with training."""


class Options(StudyOptions):
    policy: str = Field(description="Folder or hub id of a policy trained with --method values.")
    space: str | None = Field(None, description="Action space within the policy's own, such as joint-27.")
    budgets: Numbers = Field((0.5, 0.65), description="Budgets, as net keeps.")
    texts: int = Field(32, ge=1, description="Texts of each source.")


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    trained = TrainedPolicy.from_pretrained(options.policy)
    if options.space is not None:
        trained = trained.with_space(ActionSpace.preset(options.space))
    return measure(options.load(trained), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results, by source: `points`, the policy at every budget, and `sensitivities` by axis: the mean of what the
    network says (1 in training) and its divergence from what it said on training text, in nats.

    Raises `SolmError` without a policy trained with --method values, `DataError` where a source has too little text.
    """
    policy = None if lm.trained is None else lm.trained.policy()
    if lm.trained is None or not isinstance(policy, ValuePolicy):
        raise SolmError("this study asks what a policy trained with --method values predicts; give one with --policy")
    how = EvaluationSettings(
        budgets=options.budgets, texts=options.texts, context=options.context, length=options.length, trials=1,
        seed=options.seed, examples=0,
    )  # fmt: skip
    streams = options.streams(lm)
    for stream in streams:
        held_out_windows([stream], how)  # a source that is too short is told before hours of work
    known = policy.network.training_sensitivities.float()
    settings = options.model_dump(mode="json") | {
        "space": lm.space.model_dump(mode="json"), "sparsity": lm.sparsity.model_dump(mode="json"),
    }  # fmt: skip
    parts = Parts(partial, [settings, lm.trained.config.provenance, known.sum(0).tolist()])
    sources = []
    for stream in streams:
        found = parts.get(
            stream.fingerprint,
            lambda stream=stream: _source(lm, policy, known, stream, how, bind(progress, stream.name)),  # type: ignore[misc]
        )
        sources.append(found | {"name": stream.name, "fingerprint": stream.fingerprint})
    return record("domains", settings, {"sources": sources, "policy": lm.trained.config.provenance})


def _source(
    lm: LanguageModel, policy: ValuePolicy, known: torch.Tensor, stream: TokenStream, how: EvaluationSettings,
    progress: Any,
) -> dict[str, Any]:  # fmt: skip
    result = evaluate(lm, [stream], how, progress=progress)
    points = []
    for budget in how.budgets:
        ours, static = result.arm("policy", budget), result.static(budget)
        assert ours is not None
        assert static is not None
        assert static.difference is not None
        requested = dict(zip(AXES, lm.budget(f"keep={budget}").shares, strict=True))
        points.append({
            "budget": budget, "requested": requested, "realised": ours.axes,
            "gap": max(abs(ours.axes[axis] - requested[axis]) for axis in AXES),
            "policy": ours.nats, static.arm: static.nats, "dense": result.points[0].nats,
            "difference": static.difference.model_dump(mode="json"),
        })  # fmt: skip
    windows = held_out_windows([stream], how)[:_WATCHED]
    seen = observed(lm, policy, windows, how.context, how.budgets).numpy()
    sensitivities = {
        axis: {
            "mean": float(seen[:, index].mean()),
            "divergence": divergence(seen[:, index], known[:, index].numpy()),
        }
        for index, axis in enumerate(AXES)
    }
    return {"points": points, "sensitivities": sensitivities}


class _Watched(ValuePolicy):
    """A policy that keeps what its network says."""

    said: list[torch.Tensor]

    def sensitivities(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        said = super().sensitivities(hidden, before)
        self.said.append(said.flatten(0, -2).float().cpu())
        return said


def observed(
    lm: LanguageModel, policy: ValuePolicy, windows: torch.Tensor, context: int, budgets: tuple[float, ...]
) -> torch.Tensor:
    """What the policy's network says of the controlled tokens of windows [N, C+T+1] at all budgets: [M, 3] float32."""
    watched = _Watched(policy.network, policy.space, policy.clamp)
    watched.said = []
    target = torch.tensor([lm.budget(f"keep={net}").shares for net in budgets], dtype=torch.float64)
    Texts(lm, windows, context, batch=8).run(watched, target.expand(len(windows), -1, 3))
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


def lines(found: Record) -> list[str]:
    shown = []
    for source in found.results["sources"]:
        said = ", ".join(
            f"{axis} {one['mean']:.2f} (KL {one['divergence']:.3f})" for axis, one in source["sensitivities"].items()
        )
        shown.append(f"{Path(source['name']).name}: mean sensitivities {said}")
        for point in source["points"]:
            gain, net = point["difference"], sum(point["realised"].values()) / 3
            shown.append(
                f"  budget {point['budget']:g}: realised {net:.3f}, gap {point['gap']:.3f}, policy minus baseline "
                f"{gain['value']:+.4f} [{float(gain['low']):+.4f}, {float(gain['high']):+.4f}]"
            )
    return shown


def plot(found: Record, kind: Kind) -> bytes:
    """Policy minus baseline by source and budget, and by how much the network's word differs from training."""
    sources = found.results["sources"]
    names = [Path(source["name"]).stem or source["name"] for source in sources]
    figure, (worth, said) = blank(6, 2.2 + 0.75 * len(names), rows=2)
    budgets = [point["budget"] for point in sources[0]["points"]]
    for place, budget in enumerate(budgets):
        gains = [source["points"][place]["difference"] for source in sources]
        middle, low, high = (np.array([float(gain[end]) for gain in gains]) for end in ("value", "low", "high"))
        rows = np.arange(len(names)) + 0.18 * (place - (len(budgets) - 1) / 2)
        worth.errorbar(middle, rows, xerr=[middle - low, high - middle], fmt="o", capsize=3, label=f"{budget:g}")
    worth.axvline(0, color="#495057", ls="--", lw=1)
    worth.set_xlabel("policy minus baseline, nats per token (left: the policy is better)")
    for place, axis in enumerate(AXES):
        rows = np.arange(len(names)) + 0.25 * (place - 1)
        said.barh(rows, [source["sensitivities"][axis]["divergence"] for source in sources], 0.22, label=axis)
    said.set_xlabel("sensitivities: KL from training, nats")
    for axes, title in ((worth, "net keep"), (said, "axis")):
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(alpha=0.25, axis="x")
        axes.legend(frameon=False, title=title, fontsize=8)
    return picture(figure, kind)
