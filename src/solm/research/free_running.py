"""Free-running quality: text generated under a budget, judged by the dense model, policy against its baselines.

Prompts are the first tokens of held-out windows. Every arm samples at temperature 1 with the same random numbers; the
baselines get, text by text, the shares that the policy realised, which take equal milliseconds by its step times. Along
the generated text: log-probability under the dense model, and KL of the dense model's distribution from the arm's. All
arms and the dense model run on one backend with the same weights.

Example: solm study free-running --model qwen.gguf --data wiki.txt,books.jsonl --budgets 0.9,0.8 --out free-running.json
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solm.backends.logits import divergences, log_probabilities
from solm.core.actions import AXES
from solm.core.cost import ModelShapes
from solm.core.parts import Parts
from solm.evaluation.arms import Arm
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.policies.artifact import TrainedPolicy
from solm.research.compared import ComparedOptions, budget_at
from solm.research.studies import Progress, StudyOptions
from solm.research.texts import windows_of
from solm.runtime.language_model import LanguageModel

_CHUNK, _ROWS = 16, 25
"""Tokens between two passes of the dense model, and texts that are generated at once."""


class Options(ComparedOptions, StudyOptions):
    texts: int = Field(100, ge=2, description="Number of prompts.")
    context: int = Field(256, ge=1, description="Tokens of a prompt.")
    length: int = Field(256, ge=_CHUNK, multiple_of=_CHUNK, description="Tokens that are generated.")

    @property
    def seen(self) -> int:
        """Tokens that an average step sees."""
        return self.context + self.length // 2

    def check(self, shapes: ModelShapes, context: int | None, trained: TrainedPolicy | None) -> None:
        self.values(self.offer(trained, shapes), self.seen)


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    return measure(options.loaded(), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `currency`, what budgets are; `points`, by budget and arm the mean log-probability under the dense model
    (`score`), KL, realised shares and, where step times are known, milliseconds per step, and policy minus each
    baseline with 95 % intervals over prompts."""
    assert lm.trained is not None
    offer, streams = lm.budgets(), options.streams(lm)
    budgets = options.values(offer, options.seen)
    prompts = windows_of(streams, options.texts, options.context, options.length, options.seed)[:, : options.context]
    settings = options.model_dump(mode="json") | {
        "model": lm.name, "backend": lm.backend.name, "budgets": budgets,
        "data_fingerprint": [stream.fingerprint for stream in streams],
    }  # fmt: skip
    frozen = None if lm.timings is None else lm.timings.model_dump(mode="json")
    parts = Parts(partial, [settings, lm.trained.config.digest, lm.sparsity.model_dump(mode="json"), frozen])
    baselines = options.arms(lm)
    arms = {"dense": Arm(lm.policy("dense")), "policy": Arm(lm.policy("policy")), **baselines}
    points = []
    for place, share in enumerate(budgets):
        target = torch.tensor(budget_at(offer, share, options.seen).shares).repeat(len(prompts), 1)
        rows: dict[str, dict[str, np.ndarray]] = {}
        for step, (name, arm) in enumerate(arms.items()):
            progress(f"{name} at {share:g}", place * len(arms) + step, len(arms) * len(budgets))
            found: dict[str, list[Any]] = {"score": [], "kl": [], "realised": []}
            for seed, (some, goal) in enumerate(zip(prompts.split(_ROWS), target.split(_ROWS), strict=True)):
                made = parts.get(
                    f"{name} {seed}" if name == "dense" else f"{share} {name} {seed}",
                    lambda some=some, goal=goal, seed=seed, arm=arm: generated(  # type: ignore[misc]
                        lm, some, arm, goal, options.length, options.seed * 1000 + seed
                    ),
                )
                for what, values in found.items():
                    values += made[what]
            rows[name] = {what: np.array(values) for what, values in found.items()}
            if name == "policy":
                target = torch.from_numpy(rows[name]["realised"])
        point: dict[str, Any] = {"budget": share, "arms": {}}
        for name, told in rows.items():
            means = {"score": float(told["score"].mean()), "kl": float(told["kl"].mean())}
            if offer.measured is not None:
                means["ms"] = float(offer.measured.milliseconds(told["realised"], options.seen).mean())
            point["arms"][name] = means | dict(zip(AXES, told["realised"].mean(0).tolist(), strict=True))
        for name in baselines:
            for what in ("score", "kl"):
                gain = paired_difference(rows["policy"][what], rows[name][what])
                point[f"policy_minus_{name}_{what}"] = gain._asdict()
        points.append(point)
    return record("free-running", settings, {"currency": "keep" if lm.timings is None else "time", "points": points})


@torch.no_grad()
def generated(
    lm: LanguageModel, prompts: torch.Tensor, arm: Arm, target: torch.Tensor, length: int, seed: int
) -> dict[str, list[Any]]:
    """Per prompt: mean log-probability under the dense model, mean KL, realised shares [N, 3]."""
    parent = lm.session(capacity=prompts.shape[1])
    logits = parent.prefill(prompts)
    session, dense = (parent.fork(1, length + _CHUNK, sparsity) for sparsity in (arm.sparsity, None))
    session.control(arm.policy, target, length, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    scores, distances = [], []
    before = logits[:, None]
    for _ in range(length // _CHUNK):
        tokens, seen = [], []
        for _ in range(_CHUNK):
            noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
            tokens.append((logits.float().cpu() + noise).argmax(-1))
            seen.append(logits)
            logits = session.step(tokens[-1]).logits[:, 0]
        known, ours = torch.stack(tokens, 1), torch.stack(seen, 1)
        after = dense.extend(known).logits
        theirs = torch.cat([before, after[:, :-1]], 1)
        before = after[:, -1:]
        scores.append(log_probabilities(theirs, known))
        distances.append(divergences(ours.flatten(0, 1)[:, None], theirs.flatten(0, 1)).view(known.shape))
    return {
        "score": torch.cat(scores, 1).mean(1).tolist(), "kl": torch.cat(distances, 1).mean(1).tolist(),
        "realised": session.ledger.average.tolist(),
    }  # fmt: skip


def lines(found: Record) -> list[str]:
    return [
        f"{_budget(found, point['budget'])}, {name}: log-probability {arm['score']:+.4f}, KL {arm['kl']:.4f} nats per "
        "token" + (f", {arm['ms']:.1f} ms" if "ms" in arm else "")
        for point in found.results["points"]
        for name, arm in point["arms"].items()
    ]


def _budget(found: Record, share: float) -> str:
    return f"{share:g} of the time" if found.results["currency"] == "time" else f"net keep {share:g}"


def plot(found: Record, kind: Kind) -> bytes:
    """KL from the dense model by budget and arm."""
    figure, axes = blank()
    points = found.results["points"]
    for name in points[0]["arms"]:
        if name != "dense":
            kl = [point["arms"][name]["kl"] for point in points]
            axes.plot([point["budget"] for point in points], kl, "o-", label=name)
    axes.set_xlabel("share of the dense step's time" if found.results["currency"] == "time" else "net keep")
    axes.set_ylabel("KL from the dense model, nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return picture(figure, kind)
